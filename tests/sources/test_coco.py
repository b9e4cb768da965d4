"""COCO: boxes, labels, counts of what is left out, and file names that are not believed."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, parse_source

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}]


def picture(width: int = 100, height: int = 50) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    folder: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    name: str = "instances_val2017",
    categories: list[dict[str, Any]] = CATEGORIES,
) -> dict[str, Any]:
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(document))
    for image in images:
        path = folder / "images" / str(image.get("file_name"))
        if ".." not in path.parts and not str(image.get("file_name")).startswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture())
    return {"coco": str(folder / f"{name}.json"), "images": str(folder / "images")}


def image(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 100, "height": 50, **more}


def box(image_id: Any, category_id: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def read(spec: dict[str, Any]) -> dict[str, Any]:
    source = parse_source(spec)
    items = [item for shard in source.shards() for item in source.read(shard)]
    return {item.key.rpartition("/")[2]: item for item in items}


def test_boxes_by_name_clipped_dropped_and_crowds(tmp_path: Path) -> None:
    annotations = [
        box(1, 90, [10, 20, 30, 10], segmentation=[[0, 0, 1, 1]]),
        box(1, 90, [90, -5, 30, 20.5]),
        box(1, 1, [0, 0, 100, 50], iscrowd=1),
        box(1, 90, [5, 5, 0, 5]),
        box(1, 90, [5, 5, float("nan"), 5]),
        box(1, 90, [500, 5, 5, 5]),
        box(2, 1, [0, 0, 5, 5]),
        box(2, 90, [0, 0, 5, 5]),
    ]
    spec = write(tmp_path, [image(1, license=3), image(2), image(3)], annotations)
    found = read(spec)
    assert found["1"].extra["boxes"] == [
        {"label": "dog", "x": 10.0, "y": 20.0, "w": 30.0, "h": 10.0},
        {"label": "dog", "x": 90.0, "y": 0.0, "w": 10.0, "h": 15.5},
    ]
    record = found["1"].members["json"]
    assert (record["license"], record["split"]) == (3, "val")
    assert (record["boxes_crowd"], record["boxes_dropped"]) == (1, 3)
    assert "segmentation" not in json.dumps(record)
    assert found["1"].members["cls"] == "dog"
    assert "cls" not in found["2"].members
    assert found["3"].extra == {"boxes": []}
    assert found["1"].id == "images/1"
    assert found["1"].image == picture()


def test_size_from_the_header_where_the_entry_has_none(tmp_path: Path) -> None:
    spec = write(tmp_path, [{"id": 1, "file_name": "1.png"}], [box(1, 1, [90, 40, 50, 50])])
    assert read(spec)["1"].extra["boxes"] == [{"label": "cat", "x": 90.0, "y": 40.0, "w": 10.0, "h": 10.0}]


def test_categories_without_boxes_as_camera_traps_have(tmp_path: Path) -> None:
    entry = {"id": "ab-1", "file_name": "1.png", "location": 4}
    annotations = [{"id": "x", "image_id": "ab-1", "category_id": 1}, box("ab-1", 1, [])]
    found = read(write(tmp_path, [entry], annotations))["1"]
    assert (found.members["cls"], found.extra["boxes"], found.members["json"]["location"]) == ("cat", [], 4)


@pytest.mark.parametrize(
    ("segmentation", "boxes", "dropped"),
    [
        ([[10, 10, 20, 10, 20, 30], [5, 12, 6, 12, 6, 45.5]], [(5.0, 10.0, 15.0, 35.5)], 0),
        ([[90, 40, 120, 40, 120, 60]], [(90.0, 40.0, 10.0, 10.0)], 0),
        ({"counts": "abc", "size": [50, 100]}, [], 1),
        ([[10, 10, 20]], [], 1),
        ([[]], [], 1),
        ([], [], 0),
    ],
)
def test_polygons_without_a_box_give_the_one_around_them(
    tmp_path: Path, segmentation: Any, boxes: list[tuple[float, ...]], dropped: int
) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 90, "segmentation": segmentation}
    found = read(write(tmp_path, [image(1)], [annotation]))["1"]
    assert [(box["x"], box["y"], box["w"], box["h"]) for box in found.extra["boxes"]] == boxes
    assert found.members["json"]["boxes_dropped"] == dropped
    assert found.members.get("cls") == (None if dropped else "dog")


def test_boxes_that_were_drawn_on_an_image_of_another_size(tmp_path: Path) -> None:
    entries = [image(1, width=50, height=100), image(2, width=200), image(3, width=200), image(4)]
    annotations = [box(number, 1, [0, 0, 9, 9]) for number in (1, 2, 4)]
    spec = write(tmp_path, entries, annotations)
    exif = Image.Exif()
    exif[0x0112] = 6  # 4 is displayed as 50 x 100, and its boxes are on 100 x 50
    Image.new("RGB", (100, 50)).save(tmp_path / "images/4.png", exif=exif)
    found = read(spec)
    assert {name: found[name].reason for name in ("1", "2", "4")} == dict.fromkeys(("1", "2", "4"), "bad_record")
    assert "says 200 x 50 pixels and the upright image has 100 x 50" in found["2"].error
    assert found["3"].extra == {"boxes": []}  # it has no box that could be in the wrong place


def test_numbers_that_are_none_and_categories_without_a_name(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": None}, {"id": 2}]
    annotations = [box(1, 1, [0, 0, 9, 9]), box(2, 2, [0, 0, 9, 9])]
    found = read(write(tmp_path, [image(1, depth=float("nan")), image(2)], annotations, categories=categories))
    assert (found["1"].members["cls"], found["2"].members["cls"]) == ("1", "2")
    assert found["1"].members["json"]["depth"] is None


def test_names_that_lead_out_and_files_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    outer = [image(2, file_name="../secret.png"), image(3, file_name=str(tmp_path / "secret.png"))]
    spec = write(tmp_path, [image(1), *outer, image(4), image(5, file_name=None)], [])
    (tmp_path / "images/4.png").unlink()
    source = parse_source(spec)
    items = [item for shard in source.shards() for item in source.read(shard)]
    assert sorted(item.reason if isinstance(item, Reject) else item.id for item in items) == [
        "bad_record",
        "bad_record",
        "bad_record",
        "images/1",
        "unreadable_file",
    ]


def test_wrong_boxes_are_bad_records(tmp_path: Path) -> None:
    spec = write(tmp_path, [image(1), image(2)], [box(1, 1, [1, 2, 3]), box(2, 1, [1, 2, 3, 4])])
    found = read(spec)
    assert found["1"].reason == "bad_record"
    assert "[1, 2, 3]" in found["1"].error
    assert found["2"].members["cls"] == "cat"


def test_unknown_ids_are_counted_and_all_unknown_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = box(1, 1, [0, 0, 5, 5])
    spec = write(tmp_path, [image(1)], [good, box(8, 1, [0, 0, 5, 5]), box(1, 5, [0, 0, 5, 5])])
    with caplog.at_level(logging.WARNING):
        assert len(read(spec)["1"].extra["boxes"]) == 1
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 annotations are left out: they are of images that it does not list",
        "1 annotations are left out: they are of categories that it does not list",
    ]
    spec = write(tmp_path, [image(1)], [box("1", 1, [0, 0, 5, 5])])
    with pytest.raises(UsageError, match="image_id '1', and images have ids such as 1"):
        read(spec)


def test_duplicates_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two images have the id 1: '1.png' and 'b.png'"):
        read(write(tmp_path, [image(1), image(1, file_name="b.png")], []))
    with pytest.raises(UsageError, match="1.png' is in .* and again in"):
        read(write(tmp_path, [image(1), image(2, file_name="./1.png")], []))


def test_same_name_in_two_formats_keeps_the_extension(tmp_path: Path) -> None:
    spec = write(tmp_path, [image(1), image(2, file_name="1.jpg")], [])
    assert sorted(read(spec)) == ["1.jpg", "1.png"]


def test_same_name_in_two_formats_of_two_annotation_files(tmp_path: Path) -> None:
    spec = write(tmp_path, [image(1)], [], name="train")
    write(tmp_path, [image(1, file_name="1.jpg")], [], name="val")
    assert sorted(read({**spec, "coco": str(tmp_path / "*.json")})) == ["1.jpg", "1.png"]


def test_same_names_in_folders_of_one_name_are_told(tmp_path: Path) -> None:
    folders = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        folders[split] = write(tmp_path / split, [image(1)], [], name=split)["images"]
    spec = {"coco": str(tmp_path / "*/*.json"), "images": folders}
    with pytest.raises(UsageError, match="would both have the id 'images/1'; set `id_folders: 2`"):
        parse_source(spec).shards()
    assert sorted(item.id for item in parse_source({**spec, "id_folders": 2}).items()) == [
        "train/images/1",
        "val/images/1",
    ]


def test_several_files_and_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.png").write_bytes(picture())
        document = {"images": [image(1)], "annotations": [box(1, 1, [0, 0, 9, 9])], "categories": CATEGORIES}
        (tmp_path / f"{split}.json").write_text(json.dumps(document))
    folders = {split: str(tmp_path / split) for split in ("train", "val")}
    source = parse_source({"coco": str(tmp_path / "{train,val}.json"), "images": folders})
    items = [item for shard in source.shards() for item in source.read(shard)]
    assert [(item.id, item.members["json"]["split"]) for item in items] == [("train/1", "train"), ("val/1", "val")]
    with pytest.raises(UsageError, match="give `images:` as a mapping"):
        parse_source({"coco": str(tmp_path / "{train,val}.json"), "images": str(tmp_path / "train")}).shards()


def test_only_what_changed_has_another_fingerprint(tmp_path: Path) -> None:
    before = parse_source(write(tmp_path, [image(1), image(2)], [box(1, 1, [0, 0, 9, 9])])).items()  # type: ignore[attr-defined]
    document = json.loads((tmp_path / "instances_val2017.json").read_text())
    document["annotations"][0]["bbox"] = [0, 0, 8, 8]
    (tmp_path / "instances_val2017.json").write_text(json.dumps(document))
    spec = {"coco": str(tmp_path / "instances_val2017.json"), "images": str(tmp_path / "images")}
    after = parse_source(spec).items()  # type: ignore[attr-defined]
    same = [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)]
    assert same == [False, True]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": 3}', '{"images": [1]}', '{"images": [{"file_name": "a"}]}']
)
def test_what_is_no_coco(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="coco: "):
        parse_source({"coco": str(tmp_path / "a.json"), "images": str(tmp_path / "images")}).shards()


def test_wrong_folder_is_said(tmp_path: Path) -> None:
    spec = write(tmp_path, [image(1)], [])
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="none of the 1 images is below"):
        parse_source({**spec, "images": str(tmp_path / "other")}).shards()
