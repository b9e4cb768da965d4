"""iWildCam: both layouts, sparse categories, places of cameras, MegaDetector, splits, and what does not agree."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from worlds import iwildcam as world

from datas3_ray.errors import UsageError
from datas3_ray.sources import FileSource, Reject, decode_image, parse_source

HEADER = ["", "split", "location_remapped", "location", "sequence_remapped", "seq_id", "y", "category_id"]
HEADER += ["datetime", "filename", "image_id"]
CATEGORIES = "y,category_id,name\n0,0,empty\n1,71,loxodonta africana\n2,372,panthera pardus\n99999,570,homo sapiens\n"
SPLITS = ("train", "val", "test", "id_val", "id_test")


def row(name: str, split: str = "train", location: Any = 7, y: Any = 0, category_id: Any = 0, **more: Any) -> list[Any]:
    values = {
        "split": split,
        "location_remapped": 1,
        "location": location,
        "sequence_remapped": 2,
        "seq_id": "6f2c",
        "y": y,
        "category_id": category_id,
        "datetime": "2013-05-31 06:30:00.000",
        "filename": f"{name}.jpg",
        "image_id": name,
    }
    return list((values | more).values())


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def wilds(folder: Path, rows: list[list[Any]], categories: str = CATEGORIES, header: list[str] = HEADER) -> dict:
    """A release with an image for every row."""
    home = folder / "iwildcam_v2.0"
    (home / "train").mkdir(parents=True)
    (home / "categories.csv").write_text(categories)
    lines = [",".join(header), *(",".join(map(str, [number, *cells])) for number, cells in enumerate(rows))]
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    for cells in rows:
        name = str(cells[HEADER.index("filename") - 1])
        if name.endswith(".jpg") and ".." not in name:
            write_image(home / "train" / name)
    return {"iwildcam": str(home)}


def challenge(folder: Path, images: list[dict[str, Any]], annotations: Any = None, changed: Any = None) -> dict:
    """A file of a challenge with an image for every entry; without ``annotations`` it has no such list."""
    document: dict[str, Any] = {
        "info": {"year": 2021},
        "images": images,
        "categories": [{"id": 0, "name": "empty"}, {"id": 71, "name": "elk"}, {"id": 372, "name": "owl"}],
    }
    name = "iwildcam2021_test_information" if annotations is None else "iwildcam2021_train_annotations"
    if annotations is not None:
        document["annotations"] = [
            {"id": f"n{number}", "image_id": image, "category_id": category}
            for number, (image, category) in enumerate(annotations)
        ]
    home = folder / "iwildcam2021"
    for entry in images:
        write_image(home / "images" / entry["file_name"])
    (home / f"{name}.json").write_text(json.dumps(document | (changed or {})))
    return {"iwildcam": str(home), "annotations": str(home / f"{name}.json"), "images": str(home / "images")}


def shot(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "file_name": f"{name}.jpg", "location": 7, "seq_id": "6f2c", "frame_num": 1, **more}


def write_json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def read(spec: dict[str, Any]) -> dict[str, Any]:
    source = parse_source(spec)
    items = [item for shard in source.shards() for item in source.read(shard)]
    return {item.key.rpartition("/")[2]: item for item in items}


def labels(found: dict[str, Any]) -> dict[str, Any]:
    return {key: item.members["json"].get("label") for key, item in found.items()}


def test_a_row_of_wilds(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a", "id_val", 11, 1, 71), row("b")])
    found = read(spec)["a"]
    assert found.id == "iwildcam_v2.0/a"
    assert found.uri == str(tmp_path / "iwildcam_v2.0/train/a.jpg")
    assert found.extra == {
        "location": 11,
        "latitude": None,
        "longitude": None,
        "split": "id_val",
        "datetime": "2013-05-31 06:30:00.000",
        "category_id": 71,
        "sequence": "6f2c",
    }
    assert found.members["json"] == {
        "label": "loxodonta africana",
        "y": 1,
        "image_id": "a",
        "location_remapped": "1",
        "sequence_remapped": "2",
    }


def test_sparse_categories_and_the_one_that_is_zero(tmp_path: Path) -> None:
    found = read(wilds(tmp_path, [row("a", y=2, category_id=372), row("b"), row("c", y=1, category_id=71)]))
    assert labels(found) == {"a": "panthera pardus", "b": "empty", "c": "loxodonta africana"}
    assert [found[key].extra["category_id"] for key in "abc"] == [372, 0, 71]


def test_categories_that_never_occur_are_none(tmp_path: Path) -> None:
    # Several rows with y = 99999 are no clash, and a row of the metadata cannot be of one of them.
    spec = wilds(tmp_path, [row("a"), row("b", y=99999, category_id=570)], CATEGORIES + "99999,571,homo ludens\n")
    found = read(spec)
    assert labels({"a": found["a"]}) == {"a": "empty"}
    assert isinstance(found["b"], Reject) and found["b"].reason == "bad_record"
    assert "it has no category 570" in found["b"].error


def test_categories_have_to_agree_with_the_rows(tmp_path: Path) -> None:
    found = read(wilds(tmp_path, [row("a"), row("b", y=1, category_id=372), row("c", y="", category_id=372)]))
    assert found["b"].reason == "bad_record"
    assert "y = 1, and category 372 has y = 2 there" in found["b"].error
    assert "y = None, and category 372 has y = 2" in found["c"].error
    assert labels({"a": found["a"]}) == {"a": "empty"}


def test_no_row_that_agrees_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of the 2 rows of .*metadata.csv' has a category of categories.csv") as e:
        read(wilds(tmp_path, [row("a", y=5), row("b", y=6)]))
    assert "\n" not in str(e.value)


def test_categories_that_cannot_be_meant(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a")])
    for text, said in (
        (CATEGORIES + "7,71,elk\n", "two categories have the category_id 71"),
        (CATEGORIES + "x,8,elk\n", "has no y, category_id and name"),
        ("y,id,name\n0,0,empty\n", "has no column 'category_id'; its columns are y, id, name"),
    ):
        (tmp_path / "iwildcam_v2.0/categories.csv").write_text(text)
        with pytest.raises(UsageError, match=said):
            read(spec)


def test_rows_that_are_not_as_they_should_be_do_not_hide_their_neighbours(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("b", location="north"),
        row("c", split=""),
        row("d", filename="../secret.jpg"),
        row("e", filename=""),
        [*row("f"), "too", "many"],
        row("g", location=""),
    ]
    spec = wilds(tmp_path, rows)
    write_image(tmp_path / "iwildcam_v2.0/secret.jpg")
    source = parse_source(spec)
    found = [item for shard in source.shards() for item in source.read(shard)]
    errors = {item.key.rpartition("/")[2]: item.error for item in found if isinstance(item, Reject)}
    assert {item.reason for item in found if isinstance(item, Reject)} == {"bad_record"}
    assert sorted(errors) == ["b", "c", "row-5", "row-6", "row-7"]
    assert "location = 'north' is no whole number" in errors["b"]
    assert "row 4 of" in errors["c"] and "has no split" in errors["c"]
    assert "leads out" in errors["row-5"]
    assert "None is no file name" in errors["row-6"]
    assert "13 cells, the first line 11" in errors["row-7"]
    kept = {item.key: item for item in found if not isinstance(item, Reject)}
    assert sorted(kept) == ["iwildcam_v2.0/a", "iwildcam_v2.0/g"]
    assert kept["iwildcam_v2.0/g"].extra["location"] is None


def test_missing_and_extra_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = wilds(tmp_path, [row("a"), row("b"), row("c", "val")])
    (tmp_path / "iwildcam_v2.0/train/b.jpg").unlink()
    write_image(tmp_path / "iwildcam_v2.0/train/more.jpg")
    with caplog.at_level(logging.INFO):
        found = read({**spec, "splits": "train"})
    assert sorted(found) == ["a", "b"]
    assert found["b"].reason == "unreadable_file" and "b.jpg' is not there" in found["b"].error
    assert [record.getMessage() for record in caplog.records] == [
        "iwildcam: 1 images of other splits than train are left out",
        "iwildcam: 1 images in the folders are named by no row",
    ]


def test_metadata_alone_can_be_planned(tmp_path: Path) -> None:
    rows = [row("a"), row("b")]
    spec = wilds(tmp_path, rows)
    for name in ("a", "b"):
        (tmp_path / f"iwildcam_v2.0/train/{name}.jpg").unlink()
    with pytest.raises(UsageError, match="none of the 2 images is below '.*train', such as '.*a.jpg'"):
        parse_source(spec).shards()
    (tmp_path / "iwildcam_v2.0/train").rmdir()
    with pytest.raises(UsageError, match="the folder .*train' does not exist"):
        parse_source(spec).shards()
    source = parse_source({**spec, "check_files": False})
    assert isinstance(source, FileSource)
    assert [(item.id, item.size) for item in source.items()] == [("iwildcam_v2.0/a", 0), ("iwildcam_v2.0/b", 0)]
    assert {item.reason for item in read({**spec, "check_files": False}).values()} == {"unreadable_file"}


def test_files_are_listed_and_not_asked_for_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = wilds(tmp_path, [row(f"n{number}") for number in range(50)])
    source = parse_source(spec)
    asked: list[Any] = []

    def counted(real: Any) -> Any:
        return lambda path, *args, **more: asked.append(path) or real(path, *args, **more)

    monkeypatch.setattr(os, "stat", counted(os.stat))
    monkeypatch.setattr(os.path, "isfile", counted(os.path.isfile))
    monkeypatch.setattr(os.path, "exists", counted(os.path.exists))
    assert len(source.items()) == 50  # type: ignore[attr-defined]
    assert len(asked) < 10


def test_only_what_changed_has_another_fingerprint(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a"), row("b", location=8), row("c")])
    gps = {"7": {"latitude": 1.0, "longitude": 2.0}, "8": {"latitude": 3.0, "longitude": 4.0}}
    spec["gps"] = write_json(tmp_path / "gps.json", gps)

    def marks() -> list[str]:
        return [item.fingerprint for item in parse_source(spec).items()]  # type: ignore[attr-defined]

    before = marks()
    gps["8"]["latitude"] = 3.5
    write_json(tmp_path / "gps.json", gps)
    Image.new("RGB", (30, 30)).save(tmp_path / "iwildcam_v2.0/train/c.jpg")
    assert [one == other for one, other in zip(before, marks(), strict=True)] == [True, False, False]


def test_one_name_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two rows name the file '.*/a.jpg'; an image belongs to one row"):
        read(wilds(tmp_path, [row("a"), row("b"), row("a", "val")]))


def test_one_name_in_two_formats_keeps_the_extension(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a"), row("b"), row("c", filename="a.png")])
    write_image(tmp_path / "iwildcam_v2.0/train/a.png")
    assert sorted(read(spec)) == ["a.jpg", "a.png", "b"]


def test_all_five_splits_and_some_of_them(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row(f"{split}-{n}", split) for split in SPLITS for n in range(2)])
    assert Counter(item.extra["split"] for item in read(spec).values()) == dict.fromkeys(SPLITS, 2)
    assert sorted(read({**spec, "splits": ["id_val", "test"]})) == ["id_val-0", "id_val-1", "test-0", "test-1"]
    with pytest.raises(UsageError, match=r"splits: no image is in 'idval'; the splits are id_test \(2\), .*'id_val'"):
        read({**spec, "splits": ["train", "idval"]})


def test_places_of_cameras(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row("a", location=7), row("b", location=8), row("c", location=9), row("d", location="")]
    spec = wilds(tmp_path, rows)
    places = {"7": {"latitude": -1.5, "longitude": 36}, "9": None, "70": {"latitude": 5.5, "longitude": 6.5}}
    spec["gps"] = write_json(tmp_path / "gps.json", places)
    with caplog.at_level(logging.WARNING):
        found = read(spec)
    assert [(found[key].extra["latitude"], found[key].extra["longitude"]) for key in "abcd"] == [
        (-1.5, 36.0),
        (None, None),
        (None, None),
        (None, None),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"iwildcam: 3 of 4 images have no GPS: their locations are not in {spec['gps']}"
    ]


def test_zero_degrees_are_a_place(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a")])
    spec["gps"] = write_json(tmp_path / "gps.json", {"7": {"latitude": 0, "longitude": 0}})
    assert (read(spec)["a"].extra["latitude"], read(spec)["a"].extra["longitude"]) == (0.0, 0.0)


def test_a_part_of_a_location_has_its_own_place_where_one_is_known(tmp_path: Path) -> None:
    images = [shot("a"), shot("b", sub_location=71), shot("c", sub_location=72), shot("d", sub_location=None)]
    spec = challenge(tmp_path, images, [(name, 0) for name in "abcd"])
    places = {"7": {"latitude": -1.5, "longitude": 36.5}, "71": {"latitude": -1.25, "longitude": 36.25}}
    spec["gps"] = write_json(tmp_path / "gps.json", places)
    found = read(spec)
    assert {key: item.extra["latitude"] for key, item in found.items()} == {"a": -1.5, "b": -1.25, "c": -1.5, "d": -1.5}
    assert {item.extra["location"] for item in found.values()} == {7}
    assert found["b"].members["json"]["sub_location"] == 71
    assert "sub_location" not in found["a"].members["json"]


@pytest.mark.parametrize(
    "place",
    [
        {"latitude": "1", "longitude": 2},
        {"latitude": 1},
        {"latitude": 91, "longitude": 2},
        {"latitude": 1, "longitude": -181},
        {"latitude": True, "longitude": 2},
        [1, 2],
        "here",
    ],
)
def test_what_is_no_place_is_said(tmp_path: Path, place: Any) -> None:
    spec = wilds(tmp_path, [row("a")])
    spec["gps"] = write_json(tmp_path / "gps.json", {"7": place})
    with pytest.raises(UsageError, match=r"gps: '.*gps.json': the location '7' has .*no latitude \(-90 to 90\)"):
        read(spec)


def test_a_challenge_with_annotations(tmp_path: Path) -> None:
    images = [shot("a", datetime="2013-05-31 06:30:00.000", width=8), shot("b", seq_id=None), shot("c", location=None)]
    found = read(challenge(tmp_path, images, [("c", 372), ("a", 0), ("b", 71)]))
    assert labels(found) == {"a": "empty", "b": "elk", "c": "owl"}
    assert found["a"].id == "iwildcam2021/a"
    assert found["a"].extra == {
        "location": 7,
        "latitude": None,
        "longitude": None,
        "split": "train",
        "datetime": "2013-05-31 06:30:00.000",
        "category_id": 0,
        "sequence": "6f2c",
    }
    assert found["a"].members["json"] == {"label": "empty", "image_id": "a", "frame_num": 1, "width": 8}
    assert (found["b"].extra["sequence"], found["c"].extra["location"]) == (None, None)


def test_a_test_set_without_annotations_has_no_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read(challenge(tmp_path, [shot("a"), shot("b")]))
    assert labels(found) == {"a": None, "b": None}
    assert {(item.extra["split"], item.extra["category_id"]) for item in found.values()} == {("test", None)}
    assert not caplog.records


def test_train_and_test_of_a_challenge_in_their_folders(tmp_path: Path) -> None:
    one = challenge(tmp_path, [shot("a")], [("a", 71)])
    challenge(tmp_path, [shot("b")])
    home = tmp_path / "iwildcam2021"
    (home / "images").rename(home / "train")
    (home / "test").mkdir()
    (home / "train/b.jpg").rename(home / "test/b.jpg")
    folders = {"iwildcam2021_train_annotations": str(home / "train"), "iwildcam2021_test_information": "x"}
    spec = {**one, "annotations": str(home / "iwildcam2021_*.json"), "images": folders}
    folders["iwildcam2021_test_information"] = str(home / "test")
    found = read(spec)
    assert {key: (item.extra["split"], item.id) for key, item in found.items()} == {
        "a": ("train", "iwildcam2021/a"),
        "b": ("test", "iwildcam2021/b"),
    }
    assert sorted(read({**spec, "splits": ["test"]})) == ["b"]
    del folders["iwildcam2021_test_information"]
    with pytest.raises(UsageError, match="no folder for 'iwildcam2021_test_information'; it has iwildcam2021_train"):
        read(spec)


def test_names_with_folders_count_from_the_data_set_where_no_images_are_named(tmp_path: Path) -> None:
    spec = challenge(tmp_path, [shot("a", file_name="train/x.jpg"), shot("b", file_name="train/y.jpg")], [("a", 0)])
    (tmp_path / "iwildcam2021/images/train").rename(tmp_path / "iwildcam2021/train")
    del spec["images"]
    source = parse_source(spec)
    assert [item.id for shard in source.shards() for item in source.read(shard)] == [
        "iwildcam2021/train/x",
        "iwildcam2021/train/y",
    ]


def test_annotations_that_say_nothing_or_too_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    annotations = [("a", 0), ("a", 0), ("b", 71), ("b", 372), ("c", 570), ("gone", 0)]
    spec = challenge(tmp_path, [shot("a"), shot("b"), shot("c"), shot("d")], annotations)
    with caplog.at_level(logging.WARNING):
        found = read(spec)
    assert labels({key: found[key] for key in "abd"}) == {"a": "empty", "b": None, "d": None}
    assert found["b"].members["json"]["category_ids"] == [71, 372]
    assert found["c"].reason == "bad_record" and "annotated with category 570" in found["c"].error
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "1 images have annotations and are not listed; those are left out",
        "1 images have several categories, and so no label",
        "1 images have no annotation, and so no label",
    ]
    with pytest.raises(
        UsageError, match="none of its annotations is of an image that it lists: .*'gone'.* such as 'a'"
    ):
        read(challenge(tmp_path / "other", [shot("a")], [("gone", 0)]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": {}}, "has no list 'images'"),
        ({"categories": {}}, "has no list 'categories'"),
        ({"annotations": {}}, "has no list 'annotations'"),
        ({"annotations": [{"image_id": "a", "category_id": "0"}]}, "no whole number as category_id"),
        ({"categories": [{"id": "0", "name": "empty"}]}, "has no whole number as id"),
        ({"categories": [{"id": 0, "name": "empty"}, {"id": 0, "name": "elk"}]}, "two categories have the id 0"),
        ({"images": []}, "there are no rows"),
    ],
)
def test_what_is_no_file_of_a_challenge(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"iwildcam: .*{said}") as error:
        read(challenge(tmp_path, [shot("a")], [], changed))
    assert "\n" not in str(error.value)


def test_images_of_a_challenge_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    spec = challenge(tmp_path, [shot("a"), shot("b", location="north"), shot("c")], [("a", 0)])
    path = Path(spec["annotations"])
    document = json.loads(path.read_text())
    document["images"] += ["x", {"id": "z", "file_name": "../../z.jpg"}, {"location": 7}]
    path.write_text(json.dumps(document))
    found = read(spec)
    reasons = {key: item.reason for key, item in found.items() if isinstance(item, Reject)}
    assert reasons == dict.fromkeys(["b", "row-4", "row-6", "row-z"], "bad_record")
    assert "location = 'north'" in found["b"].error


def detections(entries: list[dict[str, Any]], **categories: str) -> dict[str, Any]:
    return {"images": entries, "info": {}, "detection_categories": categories or {"1": "animal", "2": "person"}}


def seen(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"category": category, "bbox": [0.1, 0.1, 0.2, 0.2], "conf": conf} for category, conf in pairs]


def test_what_megadetector_saw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = wilds(tmp_path, [row(name) for name in "abcdefgh"])
    entries = [
        {"id": "a", "max_detection_conf": 0.97, "detections": seen(("1", 0.25), ("1", 0.75), ("2", 0.97))},
        {"id": "b", "max_detection_conf": 0.9, "detections": seen(("2", 0.9))},
        {"id": "c", "max_detection_conf": 0, "detections": []},
        {"id": "d", "detections": None, "failure": "Failure image access"},
        {"id": "e"},
        {"id": "elsewhere", "detections": seen(("1", 0.5))},
        {"id": "g", "detections": [*seen(("1", 0.5)), {"category": "1"}, 7]},
    ]
    with caplog.at_level(logging.WARNING):
        found = read({**spec, "detections": write_json(tmp_path / "md.json", detections(entries))})
    animals = {key: item.extra["animal"] for key, item in found.items()}
    assert animals == {"a": 0.75, "b": None, "c": None, "d": None, "e": None, "f": None, "g": 0.5, "h": None}
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "they have no file or no confidence"
    ]
    assert "animal" not in read(spec)["a"].extra


def test_megadetector_of_2022_has_files_and_its_own_numbers(tmp_path: Path) -> None:
    spec = challenge(tmp_path, [shot("a"), shot("b")], [("a", 0), ("b", 0)])
    entries = [{"file": "train/a.jpg", "detections": seen(("3", 0.5), ("1", 0.9))}, {"file": "train/b.jpg"}]
    document = detections(entries, **{"1": "person", "2": "vehicle", "3": "animal"})
    spec["detections"] = write_json(tmp_path / "md.json", document)
    assert {key: item.extra["animal"] for key, item in read(spec).items()} == {"a": 0.5, "b": None}


def test_what_is_not_megadetectors_file_is_said(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a")])
    other = write_json(tmp_path / "md.json", detections([{"id": "x", "detections": []}]))
    with pytest.raises(UsageError, match="detections: .* has none of the 1 images, but ids such as 'x'"):
        read({**spec, "detections": other})
    with pytest.raises(UsageError, match="names no category 'animal' in detection_categories"):
        read({**spec, "detections": write_json(tmp_path / "b.json", {"images": []})})
    with pytest.raises(UsageError, match="detections: .*gone.json' is not there"):
        read({**spec, "detections": str(tmp_path / "gone.json")})


def test_wrong_folders_options_and_names(tmp_path: Path) -> None:
    spec = wilds(tmp_path, [row("a")])
    with pytest.raises(UsageError, match="has no metadata.csv, as a release of WILDS has"):
        parse_source({"iwildcam": str(tmp_path / "iwildcam_v2.0/train")}).shards()
    with pytest.raises(UsageError, match="gone' does not exist"):
        parse_source({"iwildcam": str(tmp_path / "gone")}).shards()
    with pytest.raises(UsageError, match="columns: 'split' is a column that this source fills itself"):
        parse_source({**spec, "columns": {"split": "row.split"}})
    with pytest.raises(UsageError, match="columns: 'animal' is a column"):
        parse_source({**spec, "detections": "md.json", "columns": {"animal": "row.y"}})
    assert parse_source({**spec, "columns": {"animal": "row.y"}})
    with pytest.raises(UsageError, match="`images:` as a mapping needs `annotations:`"):
        parse_source({**spec, "images": {"train": "a"}})
    lines = (tmp_path / "iwildcam_v2.0/metadata.csv").read_text().replace(",location,", ",place,")
    (tmp_path / "iwildcam_v2.0/metadata.csv").write_text(lines)
    with pytest.raises(UsageError, match="has no column 'location'; its columns are split, location_remapped, place"):
        parse_source(spec).shards()


def test_memory_for_a_row_is_small(tmp_path: Path) -> None:
    """A million rows are planned in one process: what is kept of each is its own text and little more."""
    items = parse_source({**wilds(tmp_path, [row(f"{n:036}") for n in range(3)]), "check_files": False}).items()  # type: ignore[attr-defined]
    assert max(len(item.members) for item in items) < 400


def kilometres(one: dict[str, float], other: dict[str, float]) -> float:
    south, north = math.radians(one["latitude"]), math.radians(other["latitude"])
    east = math.radians(one["longitude"] - other["longitude"])
    return 6371 * math.acos(math.sin(south) * math.sin(north) + math.cos(south) * math.cos(north) * math.cos(east))


def test_the_world_is_as_it_says(tmp_path: Path) -> None:
    world.build(tmp_path)
    spec = {"iwildcam": str(tmp_path / world.NAME), "gps": str(tmp_path / "gps_locations.json")}
    found = read({**spec, "detections": str(tmp_path / "detections.json")})
    assert len(found) == 480 and not any(isinstance(item, Reject) for item in found.values())
    assert {item.extra["split"] for item in found.values()} == set(SPLITS)
    assert {decode_image(item.image).width for item in found.values()} == {32}
    assert {item.extra["location"] for item in found.values() if item.extra["latitude"] is None} == {world.NOWHERE}
    assert {item.extra["animal"] is None for item in found.values()} == {True, False}
    places = world.places()
    boxes = {
        "Central America": (8, 18, -93, -77),
        "Eastern Africa": (-5, 5, 33, 41),
        "Southern Africa": (-30, -20, 20, 33),
        "SE Asia": (-5, 20, 95, 120),
    }
    for region, (south, north, west, east) in boxes.items():
        mine = {str(world.FIRST_LOCATION[region] + at): role for at, role in enumerate(world.CAMERAS)}  # location: role
        rows = [item for item in found.values() if str(item.extra["location"]) in mine]
        assert all(south < row.extra["latitude"] < north and west < row.extra["longitude"] < east for row in rows)
        splits: dict[str, set[str]] = {}
        for item in rows:
            splits.setdefault(mine[str(item.extra["location"])], set()).add(item.extra["split"])
        assert splits == {"test": {"test"}, "val": {"val"}} | dict.fromkeys(
            ("near", "near too", "far"), {"train", "id_val", "id_test"}
        )
        by_role = {role: places[location] for location, role in mine.items()}
        for role, low, high in (("near", 1, 100), ("near too", 1, 100), ("far", 200, 400)):
            nearest = min(kilometres(by_role[role], by_role[deployed]) for deployed in ("test", "val"))
            assert low < nearest < high, (region, role)
        names = {item.members["json"]["label"] for item in rows}
        assert len(names) == 6 and "empty" in names
        for split in SPLITS:
            assert {item.members["json"]["label"] for item in rows if item.extra["split"] == split} == names


def test_the_world_is_the_same_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        world.build(tmp_path / name, images=120)
    world.build(tmp_path / "three", images=120, seed=1)
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two", "three")]
    texts = [[path.read_bytes() for path in paths if path.is_file()] for paths in files]
    assert texts[0] == texts[1] and texts[0] != texts[2]
