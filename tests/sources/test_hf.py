"""Hugging Face folders, written here exactly as save_to_disk and the hub lay them out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, parse_source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PETS = {
    "image": {"_type": "Image"},
    "animal": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "name": {"dtype": "string", "_type": "Value"},
}
OBJECTS = {
    "feature": {
        "bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"},
        "category": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    },
    "_type": "Sequence",
}


def picture(width: int = 40, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def pets(*animals: int | None, features: dict[str, Any] = PETS) -> pa.Table:
    columns = {
        "image": pa.array([{"bytes": picture(), "path": f"{row}.png"} for row in range(len(animals))], STRUCT),
        "animal": pa.array(animals, pa.int64()),
        "name": pa.array([f"pet {row}" for row in range(len(animals))]),
    }
    told = json.dumps({"info": {"features": features}}).encode()
    return pa.table(columns).replace_schema_metadata({"huggingface": told})


def save(table: pa.Table, folder: Path, files: int = 1, split: str | None = None) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    rows = -(-len(table) // files)
    for number, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(number * rows, rows), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0a1b", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": PETS}))


def read(spec: dict[str, Any]) -> list[Any]:
    source = parse_source(spec)
    return [item for shard in source.shards() for item in source.read(shard)]


def reasons(items: list[Any]) -> list[str]:
    return [item.reason if isinstance(item, Reject) else item.key for item in items]


def test_save_to_disk(tmp_path: Path) -> None:
    save(pets(0, 1, 1, -1, None), tmp_path / "pets", files=2, split="train")
    items = read({"hf": str(tmp_path / "pets")})
    assert [item.id for item in items] == [
        *(f"pets/data-00000-of-00002/{row:09d}" for row in range(3)),
        *(f"pets/data-00001-of-00002/{row:09d}" for row in range(2)),
    ]
    assert [item.members["json"]["animal"] for item in items] == ["cat", "dog", "dog", None, None]
    assert [item.members.get("cls") for item in items] == ["cat", "dog", "dog", None, None]
    assert items[4].members["json"] == {"animal": None, "name": "pet 4", "split": "train"}
    assert items[0].image == picture()


def test_dataset_dict_and_splits(tmp_path: Path) -> None:
    save(pets(0), tmp_path / "pets/train")
    save(pets(1), tmp_path / "pets/test")
    (tmp_path / "pets/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    items = read({"hf": str(tmp_path / "pets")})
    assert [(item.id, item.members["json"]["split"]) for item in items] == [
        ("pets/test/data-00000-of-00001/000000000", "test"),
        ("pets/train/data-00000-of-00001/000000000", "train"),
    ]
    assert [item.members["json"]["split"] for item in read({"hf": str(tmp_path / "pets"), "splits": "train"})] == [
        "train"
    ]
    with pytest.raises(UsageError, match="no split 'tests'; it has train, test. Did you mean 'test'"):
        read({"hf": str(tmp_path / "pets"), "splits": ["tests"]})


def test_hub_parquet(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001-0123456789abcdef.parquet", "default/validation/0000.parquet"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True)
        pq.write_table(pets(1), tmp_path / "pets" / name)
    (tmp_path / "pets/README.md").write_text("cards are passed over")
    items = read({"hf": str(tmp_path / "pets"), "id": "name"})
    assert [(item.id, item.members["json"]["split"], item.members["cls"]) for item in items] == [
        ("pets/data/train-00000-of-00001-0123456789abcdef/pet 0", "train", "dog"),
        ("pets/default/validation/0000/pet 0", "validation", "dog"),
    ]


def test_a_column_that_the_table_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    pq.write_table(pets(0), tmp_path / "pets/train-00000-of-00001.parquet")
    spec = {"hf": str(tmp_path / "pets"), "columns": {"split": "row.split", "who": "row.nmae"}}
    with pytest.raises(UsageError, match="columns: who: .* has no column 'nmae'; it has .*mean 'name'"):
        parse_source(spec).shards()
    assert len(parse_source({**spec, "columns": {"split": "row.split", "who": "row.name"}}).shards()) == 1


def test_class_without_a_name_is_a_bad_record(tmp_path: Path) -> None:
    save(pets(0, 2, 1), tmp_path / "pets")
    items = read({"hf": str(tmp_path / "pets")})
    assert reasons(items) == ["000000000", "bad_record", "000000002"]
    assert "class 2" in items[1].error


def objects(value: Any, kind: pa.DataType | None = None) -> pa.Table:
    table = pets(*[0] * len(value), features={**PETS, "objects": OBJECTS})
    return table.append_column("objects", pa.array(value, kind))


@pytest.mark.parametrize(
    ("form", "bbox"),
    [
        ("xywh", [30.0, 5.0, 20.0, 10.0]),
        ("xyxy", [30.0, 5.0, 50.0, 15.0]),
        ("relative_xywh_center", [1.0, 0.5, 0.5, 0.5]),
    ],
)
def test_boxes_in_each_form_are_clipped(tmp_path: Path, form: str, bbox: list[float]) -> None:
    value = [{"bbox": [bbox, [1.0, 1.0, 0.0, 0.0]], "category": [1, 0]}, {"bbox": [], "category": []}, None]
    save(objects(value), tmp_path / "pets")
    source = parse_source({"hf": str(tmp_path / "pets"), "boxes": "objects", "box_format": form})
    assert [field.name for field in source.own_fields()] == ["boxes"]
    first, second, third = read({"hf": str(tmp_path / "pets"), "boxes": "objects", "box_format": form})
    assert first.extra["boxes"] == [{"label": "dog", "x": 30.0, "y": 5.0, "w": 10.0, "h": 10.0}]
    assert first.members["json"]["boxes_dropped"] == 1
    assert "objects" not in first.members["json"]
    assert second.extra == third.extra == {"boxes": []}


def test_list_of_objects_and_bad_boxes(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("bbox", pa.list_(pa.float32())), ("category", pa.int64())]))
    value = [[{"bbox": [1, 2, 3, 4], "category": 0}], [{"bbox": [1, 2, 3], "category": 0}]]
    save(objects(value, kind), tmp_path / "pets")
    first, second = read({"hf": str(tmp_path / "pets"), "boxes": "objects"})
    assert first.extra["boxes"] == [{"label": "cat", "x": 1.0, "y": 2.0, "w": 3.0, "h": 4.0}]
    assert (second.reason, second.offset) == ("bad_record", 1)


def test_cut_streams(tmp_path: Path) -> None:
    save(pets(0, 1, 0, 1, 0, 1), tmp_path / "pets")
    path = tmp_path / "pets/data-00000-of-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 8])  # between two batches, where Arrow itself sees nothing
    items = read({"hf": str(tmp_path / "pets")})
    assert reasons(items) == [*(f"{row:09d}" for row in range(6)), "not_a_table"]
    assert "end mark" in items[-1].error
    path.write_bytes(whole[: len(whole) - 200])
    items = read({"hf": str(tmp_path / "pets")})
    assert reasons(items) == [*(f"{row:09d}" for row in range(4)), "not_a_table"]
    path.write_bytes(b"garbage that is no stream")
    assert reasons(read({"hf": str(tmp_path / "pets")})) == ["not_a_table"]


def test_state_may_not_lead_out(tmp_path: Path) -> None:
    save(pets(0), tmp_path / "pets")
    (tmp_path / "pets/state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(UsageError, match="leads out"):
        parse_source({"hf": str(tmp_path / "pets")}).shards()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("x")
    with pytest.raises(UsageError, match="holds neither what save_to_disk writes"):
        parse_source({"hf": str(tmp_path / "empty")}).shards()
    save(pets(0), tmp_path / "pets")
    with pytest.raises(UsageError, match="no column 'object'"):
        parse_source({"hf": str(tmp_path / "pets"), "boxes": "object"}).shards()
    (tmp_path / "pets/data-00000-of-00001.arrow").unlink()
    with pytest.raises(UsageError, match="is missing; copy it"):
        parse_source({"hf": str(tmp_path / "pets")}).shards()
    with pytest.raises(UsageError, match="set it, too"):
        parse_source({"hf": "x", "box_format": "xyxy"})
    with pytest.raises(UsageError, match="'boxes' is a column that this source fills"):
        parse_source({"hf": "x", "boxes": "objects", "columns": {"boxes": "json.objects"}})
