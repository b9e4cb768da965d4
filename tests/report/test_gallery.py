"""Thumbnails: bytes by range from wherever they are, and the reason where there are none."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake
from datas3_ray.lake import Table
from datas3_ray.report import gallery
from datas3_ray.report.gallery import EDGE, Album, shrink

ROWS = 30


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    Image.fromarray(values).resize(size).save(out, "PNG")
    return out.getvalue()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows whose bytes lie one after another in two files."""
    out = []
    for part in range(2):
        data = b"header"
        for i in range(part, ROWS, 2):
            bytes_ = picture(i)
            place = {"uri": str(folder / f"{part}.bin"), "offset": len(data), "length": len(bytes_)}
            out.append({"id": f"row/{i:03d}", "label": "zebra", "caption": "", **place})
            data += bytes_
        (folder / f"{part}.bin").write_bytes(data)
    return sorted(out, key=lambda row: row["id"])


def table(folder: Path, made: list[dict[str, Any]], **columns: pa.Array) -> Table:
    content = pa.Table.from_pylist(made)
    for name, values in columns.items():
        content = content.append_column(name, values)
    return Lake(folder / "lake").write("pool", content, kind="image")


def load(pool: Table, **options: Any) -> tuple[Album, list[gallery.Picture]]:
    album = Album(**options)
    ids = pool.to_arrow(["id"]).column("id").to_pylist()
    album.load(pool, ids)
    return album, [album.picture("pool", i) for i in ids]


def test_every_picture_is_the_rows_own(tmp_path: Path) -> None:
    album, found = load(table(tmp_path, rows(tmp_path)))
    for i, shown in enumerate(found):
        assert shown.thumb is not None
        assert album.thumbs[shown.thumb] == shrink(picture(i))
        assert shown.alt == f"zebra: row/{i:03d}"


def test_whole_files_need_no_range(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    made = [{"id": "a", "uri": f"file://{tmp_path}/a.png", "offset": None, "length": None}]
    fields = [("id", pa.string()), ("uri", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
    pool = Lake(tmp_path / "lake").write("pool", pa.Table.from_pylist(made, pa.schema(fields)), kind="image")
    album, (shown,) = load(pool)
    assert list(album.thumbs.values()) == [shrink(picture(1))]
    assert shown.alt == "a"


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4" + b"0" * 8)
    broken: list[tuple[dict[str, Any], str]] = [
        ({"uri": None}, "added as vectors: no picture"),
        ({"uri": str(tmp_path / "nowhere.tar")}, "nowhere.tar' is not there"),
        ({"uri": str(tmp_path / "paper.pdf"), "offset": 0, "length": 16}, "cannot be decoded: the image is PDF"),
        ({"uri": "no-such-protocol://x/y"}, "Protocol not known: no-such-protocol"),
        ({"length": 100 << 30}, "102400 MiB is too large for a thumbnail"),
        ({"length": 10_000_000}, " of 10,000,000 bytes are there"),
        ({"offset": 0}, "cannot be decoded: "),
    ]
    made = rows(tmp_path)
    for row, (change, _) in zip(made, broken, strict=False):
        row.update(change)
    _, found = load(table(tmp_path, made))
    for shown, (_, expected) in zip(found, broken, strict=False):
        assert shown.thumb is None and expected in shown.reason
    assert all(shown.thumb for shown in found[len(broken) :])


def test_stored_bytes_come_before_the_uri(tmp_path: Path) -> None:
    made = [{**row, "uri": str(tmp_path / "moved.tar")} for row in rows(tmp_path)]
    stored = pa.array([None, *(picture(i) for i in range(1, ROWS))], pa.large_binary())
    album, found = load(table(tmp_path, made, image=stored))
    assert found[0].reason.endswith("moved.tar' is not there")
    assert [album.thumbs[str(shown.thumb)] for shown in found[1:]] == [shrink(picture(i)) for i in range(1, ROWS)]


def test_the_answer_does_not_depend_on_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = table(tmp_path, rows(tmp_path))
    whole = load(pool)
    monkeypatch.setattr(gallery, "BATCH_BYTES", 1)
    monkeypatch.setattr(gallery, "IDS_PER_READ", 7)
    pieces = load(pool)
    assert (whole[0].thumbs, whole[1]) == (pieces[0].thumbs, pieces[1])


def test_equal_pictures_are_stored_once(tmp_path: Path) -> None:
    first = rows(tmp_path)[0]
    album, found = load(table(tmp_path, [{**first, "id": f"copy {i}"} for i in range(5)]))
    assert len(album.thumbs) == 1 and len({shown.thumb for shown in found}) == 1


def test_rows_are_read_once_and_unknown_ids_have_a_reason(tmp_path: Path) -> None:
    pool = table(tmp_path, rows(tmp_path))
    album, found = load(pool)
    (tmp_path / "0.bin").unlink()
    album.load(pool, ["row/000", "it's gone"])
    assert album.picture("pool", "row/000") == found[0]
    assert album.picture("pool", "it's gone").reason == "no longer in the table"


def test_the_page_stays_small(tmp_path: Path) -> None:
    album, found = load(table(tmp_path, rows(tmp_path)), budget=2000)
    assert 0 < len(album.thumbs) < ROWS
    assert sum(len(thumb.data_uri) for thumb in album.thumbs.values()) <= 2000
    assert found[-1].reason == "left out to keep the page small"


@pytest.mark.parametrize(
    ("size", "expected", "shape"),
    [((900, 300), (112, 37), "wide"), ((200, 800), (28, 112), "tall"), ((9, 9), (9, 9), "")],
)
def test_thumbnails_keep_their_shape_and_are_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int], shape: str
) -> None:
    thumb = shrink(picture(0, size))
    kind, _, data = thumb.data_uri.partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (thumb.width, thumb.height) == expected
    assert max(expected) <= EDGE
    assert Album(thumbs={"t0": thumb}).shape() == shape
