"""A tiny data set in every format, and what has to come out of it; ``test_contract.py`` runs over all of them.

A builder writes into an empty folder and gives a ``Built``. ``BUILDERS`` of every file here is what the suite collects.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


@dataclass
class Expected:
    """What is known of one sample; None is not checked."""

    image: bytes
    caption: str | None = None
    label: str | None = None
    record: dict[str, Any] | None = None
    """What the sample's record has to have; it may have more."""


@dataclass
class Built:
    """A recipe's mapping, what has to come out by id, and the reasons of the rejects, sorted."""

    spec: dict[str, Any]
    expected: dict[str, Expected]
    rejects: list[str] = field(default_factory=list)


Builder = Callable[[Path], Built]


def png(index: int) -> bytes:
    """A small image, another one for every index."""
    out = io.BytesIO()
    Image.new("RGB", (8 + index, 6), COLOURS[index % len(COLOURS)]).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data) if path.name.endswith("gz") else data)


def _tars(root: Path, ending: str) -> Built:
    expected = {}
    for shard in range(2):
        members = []
        for number in range(3):
            record = {"label": f"kind {number}", "site": {"name": f"s{shard}"}}
            members += [(f"{number}.png", png(number)), (f"{number}.json", json.dumps(record).encode())]
            members.append((f"{number}.txt", f"a caption {number}".encode()))
            place = f"pool/{shard:05d}/{number}"
            expected[place] = Expected(png(number), f"a caption {number}", f"kind {number}", record)
        members += [("bad.json", b"{}")]
        write_tar(root / "pool" / f"{shard:05d}{ending}", members)
    return Built({"webdataset": str(root / "pool" / f"*{ending}")}, expected, ["no_image", "no_image"])


def webdataset(root: Path) -> Built:
    return _tars(root, ".tar")


def webdataset_gzip(root: Path) -> Built:
    return _tars(root, ".tar.gz")


def folder(root: Path) -> Built:
    expected = {}
    for number, label in enumerate(("cat", "dog")):
        for index in range(2):
            path = root / "pets" / label / "inner" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(2 * number + index))
            record = {"site": {"name": index}, "note": None} if label == "dog" else None
            expected[f"pets/{label}/inner/{index}"] = Expected(png(2 * number + index), None, label, record)
    rows = [{"file_name": f"inner/{index}.png", "site": {"name": index}, "note": None} for index in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "pets" / "dog" / "metadata.jsonl").write_text(text)
    (root / "pets" / "cat" / "empty.jpg").write_bytes(b"")
    (root / "pets" / "cat" / ".hidden.png").write_bytes(png(0))
    (root / "pets" / "README.txt").write_text("nothing")
    return Built({"folder": str(root / "pets"), "items_per_shard": 2}, expected, ["empty_image", "unreadable_file"])


def manifest(root: Path) -> Built:
    (root / "images").mkdir()
    expected = {}
    rows = []
    for index in range(4):
        (root / "images" / f"{index}.png").write_bytes(png(index))
        rows.append({"path": f"images/{index}.png", "key": f"k{index}", "caption": f"c{index}", "site": f"s{index}"})
        record = {"site": f"s{index}", "caption": f"c{index}"}
        expected[f"all/k{index}"] = Expected(png(index), f"c{index}", None, record)
    rows += [{"path": "images/gone.png", "key": "gone"}, {"path": "", "key": "unnamed"}, {"path": "images/0.png"}]
    with open(root / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "key", "caption", "site"])
        writer.writeheader()
        writer.writerows(rows)
    spec = {"manifest": str(root / "rows.csv"), "id": "key", "id_prefix": "all", "items_per_shard": 3}
    return Built(spec, expected, ["bad_record", "bad_record", "unreadable_file"])


IMG2DATASET_ROWS = 5  # of each of two shards; the row 3 was not downloaded


def img2dataset_row(shard: int, index: int) -> dict[str, Any]:
    """A row as img2dataset writes it beside every form."""
    failed = index == 3
    return {
        "caption": f"caption {shard} {index}",
        "url": f"https://example.org/{shard}/{index}.png",
        "licence": None if index else "cc0",
        "key": f"{shard:05d}{index:04d}",
        "status": "failed_to_download" if failed else "success",
        "error_message": "HTTP Error 404: Not Found" if failed else None,
        "width": None if failed else 8 + index,
        "height": None if failed else 6,
        "original_width": None if failed else 800,
        "original_height": None if failed else 600,
        "exif": None if failed else "{}",
        "sha256": None if failed else f"{index:064x}",
    }


def write_img2dataset(root: Path, form: str) -> Path:
    """Two shards in one of the forms that img2dataset writes; their folder."""
    out = root / "laion"
    out.mkdir()
    for shard in range(2):
        rows = [img2dataset_row(shard, index) for index in range(IMG2DATASET_ROWS)]
        images = [png(index) if row["status"] == "success" else None for index, row in enumerate(rows)]
        _write_form(out, form, f"{shard:05d}", rows, images)
        (out / f"{shard:05d}_stats.json").write_text('{"count": 5, "successes": 4}')
    return out


def _write_form(out: Path, form: str, name: str, rows: list[dict[str, Any]], images: list[bytes | None]) -> None:
    whole = pa.Table.from_pylist(rows)
    if form == "parquet":
        pq.write_table(whole.append_column("png", pa.array(images, pa.binary())), out / f"{name}.parquet")
        return
    pq.write_table(whole, out / f"{name}.parquet")
    members = []
    for row, image in zip(rows, images, strict=True):
        if image is not None:
            members.append((f"{row['key']}.png", image))
            members.append((f"{row['key']}.txt", row["caption"].encode()))
            members.append((f"{row['key']}.json", json.dumps(row, indent=4).encode()))
    if form == "webdataset":
        write_tar(out / f"{name}.tar", members)
        return
    (out / name).mkdir()
    for file, data in members:
        (out / name / file).write_bytes(data)


def _img2dataset(root: Path, form: str) -> Built:
    expected = {}
    for shard in range(2):
        for index in (0, 1, 2, 4):
            row = img2dataset_row(shard, index)
            expected[f"laion/{shard:05d}/{row['key']}"] = Expected(png(index), row["caption"], None, row)
    return Built({"img2dataset": str(write_img2dataset(root, form))}, expected, ["not_downloaded"] * 2)


def img2dataset_webdataset(root: Path) -> Built:
    return _img2dataset(root, "webdataset")


def img2dataset_files(root: Path) -> Built:
    return _img2dataset(root, "files")


def img2dataset_parquet(root: Path) -> Built:
    return _img2dataset(root, "parquet")


BUILDERS: dict[str, Builder] = {
    "webdataset": webdataset,
    "webdataset_gzip": webdataset_gzip,
    "folder": folder,
    "manifest": manifest,
    "img2dataset_webdataset": img2dataset_webdataset,
    "img2dataset_files": img2dataset_files,
    "img2dataset_parquet": img2dataset_parquet,
}
