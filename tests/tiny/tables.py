"""A tiny data set of every format of tables and annotations, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny.formats import Built, Expected, png

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(root: Path) -> Any:
    (root / "rows").mkdir()
    expected = {}
    for part in range(2):
        columns = {
            "image": [png(0), png(1), b"", None],
            "name": [f"r{part}{row}" for row in range(4)],
            "caption": [f"caption {row}" for row in range(4)],
            "label": ["cat", "dog", "cat", "dog"],
            "site": [{"name": "N", "at": 1.5}] * 4,
        }
        pq.write_table(pa.table(columns), root / "rows" / f"{part}.parquet")
        for row in range(2):
            record = {"name": f"r{part}{row}", "site": {"name": "N", "at": 1.5}}
            wanted = Expected(png(row), f"caption {row}", ["cat", "dog"][row], record)
            expected[f"rows/{part}/r{part}{row}"] = wanted
    rejects = ["empty_image", "empty_image", "no_image", "no_image"]
    return Built({"parquet": str(root / "rows/*.parquet"), "id": "name"}, expected, rejects)


def parquet_uris(root: Path) -> Any:
    (root / "rows").mkdir()
    expected = {}
    for row in range(3):
        (root / "rows" / f"{row}.png").write_bytes(png(row))
        expected[f"rows/all/{row:09d}"] = Expected(png(row), None, None, {"path": f"{row}.png", "n": row})
    names = ["0.png", "1.png", "2.png", "gone.png", "../outside.png"]
    pq.write_table(pa.table({"path": names, "n": range(5)}), root / "rows/all.parquet")
    return Built({"parquet": str(root / "rows/all.parquet")}, expected, ["bad_record", "unreadable_file"])


def hf(root: Path) -> Any:
    features = {"image": {"_type": "Image"}, "animal": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    expected = {}
    for split, animals in (("train", [0, 1, 5]), ("test", [1, -1])):
        folder = root / "pets" / split
        folder.mkdir(parents=True)
        images = pa.array([{"bytes": png(row), "path": None} for row in range(len(animals))], STRUCT)
        table = pa.table({"image": images, "animal": animals}).replace_schema_metadata(told)
        name = "data-00000-of-00001.arrow"
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": None}))
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
        for row, animal in enumerate(animals):
            label = {0: "cat", 1: "dog"}.get(animal)
            if animal < 2:
                record = {"animal": label, "split": split}
                expected[f"pets/{split}/data-00000-of-00001/{row:09d}"] = Expected(png(row), None, label, record)
    (root / "pets/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return Built({"hf": str(root / "pets")}, expected, ["bad_record"])


def coco(root: Path) -> Any:
    (root / "photos").mkdir()
    images: list[dict[str, Any]] = []
    expected = {}
    for number in range(3):
        (root / "photos" / f"{number}.png").write_bytes(png(number))
        images.append({"id": number, "file_name": f"{number}.png", "width": 8 + number, "height": 6, "license": 4})
        label = "owl" if number < 2 else None
        expected[f"photos/{number}"] = Expected(png(number), None, label, {"license": 4, "split": "train"})
    images += [{"id": 3, "file_name": "gone.png"}, {"id": 4, "file_name": "../outside.png"}]
    boxes = [{"id": n, "image_id": n, "category_id": 17, "bbox": [1, 1, 3, 3]} for n in range(2)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 17, "name": "owl"}]}
    (root / "train.json").write_text(json.dumps(document))
    spec = {"coco": str(root / "train.json"), "images": str(root / "photos"), "items_per_shard": 2}
    return Built(spec, expected, ["bad_record", "unreadable_file"])


def yolo(root: Path) -> Any:
    expected = {}
    for kind in ("images", "labels"):
        (root / "set" / kind / "train").mkdir(parents=True)
    for number in range(4):
        (root / "set/images/train" / f"{number}.png").write_bytes(png(number))
        line = "9 .5 .5 .5 .5" if number == 3 else "0 .5 .5 .5 .5"
        (root / "set/labels/train" / f"{number}.txt").write_text(line)
        if number < 3:
            expected[f"set/images/train/{number}"] = Expected(png(number), None, "owl", {"split": "train"})
    (root / "set/data.yaml").write_text("train: images/train\nnames: [owl]\n")
    return Built({"yolo": str(root / "set/data.yaml"), "items_per_shard": 3}, expected, ["bad_record"])


def vectors(root: Path) -> Any:
    np.save(root / "part.npy", np.eye(3, dtype=np.float32))
    return Built({"vectors": str(root / "part.npy"), "column": "clip"}, {})


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "parquet": parquet,
    "parquet_uris": parquet_uris,
    "hf": hf,
    "coco": coco,
    "yolo": yolo,
    "vectors": vectors,
}
