"""YOLO data sets in ultralytics' layout: splits, label files, polygons, rotated photographs, lines that are wrong."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, parse_source


def picture(width: int = 100, height: int = 50, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def make(root: Path, labels: dict[str, str | None], **data: Any) -> dict[str, Any]:
    """A data set of images (``train/1``) with the text of their label files."""
    for name, text in labels.items():
        image = root / "images" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(picture())
        if text is not None:
            path = root / "labels" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    document = {"train": "images/train", "names": ["cat", "dog"], **data}
    (root / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in document.items() if value}))
    return {"yolo": str(root / "data.yaml")}


def read(spec: dict[str, Any]) -> dict[str, Any]:
    source = parse_source(spec)
    shards = source.shards()
    source = pickle.loads(pickle.dumps(source))
    items = [item for shard in shards for item in source.read(shard)]
    return {item.key: item for item in items}


def test_boxes_splits_and_missing_labels(tmp_path: Path) -> None:
    labels = {
        "train/1": "1 0.5 0.5 0.2 0.4\n\n1 0.1 0.1 0.2 0.2\n",
        "train/2": None,
        "train/3": "",
        "val/4": "0 .5 .5 1 1\n1 .5 .5 1 1",
    }
    found = read(make(tmp_path / "set", labels, val="images/val"))
    one = found["set/images/train/1"]
    assert one.id == "set/images/train/1"
    assert one.extra["boxes"] == [
        {"label": "dog", "x": 40.0, "y": 15.0, "w": 20.0, "h": 20.0},
        {"label": "dog", "x": 0.0, "y": 0.0, "w": 20.0, "h": 10.0},
    ]
    assert one.members == {"json": {"split": "train", "boxes_dropped": 0}, "cls": "dog"}
    assert found["set/images/train/2"].extra == found["set/images/train/3"].extra == {"boxes": []}
    assert found["set/images/val/4"].members == {"json": {"split": "val", "boxes_dropped": 0}}


def test_polygons_clipping_and_repeated_lines(tmp_path: Path) -> None:
    text = "0 0.1 0.2 0.5 0.2 0.3 0.8\n0 1.0 0.5 0.4 0.4\n0 1.0 0.5 0.4 0.4\n0 0.5 0.5 0 0.1\n0 2 2 0.1 0.1\n"
    (found,) = read(make(tmp_path / "set", {"train/1": text})).values()
    assert [[round(box[key], 3) for key in "xywh"] for box in found.extra["boxes"]] == [
        [10.0, 10.0, 40.0, 30.0],
        [80.0, 15.0, 20.0, 20.0],
    ]
    assert found.members["json"]["boxes_dropped"] == 3


def test_boxes_are_on_the_upright_image(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": "0 0.5 0.5 0.5 0.5"})
    (tmp_path / "set/images/train/1.jpg").write_bytes(picture(100, 50, orientation=6))
    (found,) = read(spec).values()
    assert found.extra["boxes"] == [{"label": "cat", "x": 12.5, "y": 25.0, "w": 25.0, "h": 50.0}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", "line 2 of .* has 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line 2 of .* has 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 numbers"),
        ("0 0.5 nan 0.2 0.2", "line 2 of .*: 'nan' is not a number"),
        ("cat 0.5 0.5 0.2 0.2", "'cat' is not a number"),
        ("2 0.5 0.5 0.2 0.2", "line 2 of .*: class 2 has no name; 2 classes"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 has no name"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 has no name"),
    ],
)
def test_bad_lines_cost_their_image(tmp_path: Path, line: str, words: str) -> None:
    found = read(make(tmp_path / "set", {"train/1": f"0 .5 .5 .1 .1\n{line}\n", "train/2": ""}))
    bad = found["set/images/train/1"]
    assert (type(bad), bad.reason) == (Reject, "bad_record")
    assert re.search(words, bad.error)
    assert found["set/images/train/2"].extra == {"boxes": []}


def test_sparse_names_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": "7.0 .5 .5 .1 .1", "train/2": ""}, names={0: "cat", 7: "owl"})
    (tmp_path / "set/labels/train/2.txt").write_bytes(b"\xff\xfe\x00")
    found = read(spec)
    assert found["set/images/train/1"].members["cls"] == "owl"
    assert found["set/images/train/2"].reason == "bad_record"


def test_broken_image(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": "", "train/2": ""})
    (tmp_path / "set/images/train/1.jpg").write_bytes(b"<html>")
    (tmp_path / "set/images/train/2.jpg").write_bytes(b"")
    assert sorted(item.reason for item in read(spec).values()) == ["empty_image", "not_an_image"]


def test_lists_of_images(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": "", "train/2": "", "train/3": ""}, train=["a.txt", "lists/b.txt"])
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "set/a.txt").write_text(
        f"./images/train/1.jpg\nimages/train/1.jpg\n../secret.jpg\n{tmp_path}/secret.jpg\nimages/train/gone.jpg\n"
    )
    (tmp_path / "set/lists").mkdir()
    (tmp_path / "set/lists/b.txt").write_text(f"{tmp_path}/set/images/train/2.jpg\n")
    items = read(spec).values()
    assert sorted(item.reason if isinstance(item, Reject) else item.id for item in items) == [
        "bad_record",
        "bad_record",
        "set/images/train/1",
        "set/images/train/2",
        "unreadable_file",
    ]


@pytest.mark.parametrize("path", ["set", "../datasets/set", "/nowhere/set", ".", None])
def test_where_the_data_set_is(tmp_path: Path, path: str | None) -> None:
    spec = make(tmp_path / "set", {"train/1": ""}, path=path)
    assert list(read(spec)) == ["set/images/train/1"]
    assert list(read({"yolo": str(tmp_path / "set")})) == ["set/images/train/1"]


def test_data_yaml_elsewhere_with_a_root(tmp_path: Path) -> None:
    make(tmp_path / "set", {"train/1": "0 .5 .5 .1 .1"})
    (tmp_path / "set/data.yaml").rename(tmp_path / "mine.yaml")
    found = read({"yolo": str(tmp_path / "mine.yaml"), "root": str(tmp_path / "set"), "id_prefix": "p"})
    assert [(item.id, item.members["cls"]) for item in found.values()] == [("p/set/images/train/1", "cat")]


def test_roboflow_layout(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for kind, name, data in (("images", "1.jpg", picture()), ("labels", "1.txt", b"0 .5 .5 .1 .1")):
            (tmp_path / "set" / split / kind).mkdir(parents=True)
            (tmp_path / "set" / split / kind / name).write_bytes(data)
    document = {"train": "../train/images", "val": "../valid/images", "nc": 1, "names": ["cat"]}
    (tmp_path / "set/data.yaml").write_text(yaml.safe_dump(document))
    found = read({"yolo": str(tmp_path / "set")})
    assert {key: item.members["json"]["split"] for key, item in found.items()} == {
        "set/train/images/1": "train",
        "set/valid/images/1": "val",
    }
    assert {item.members["cls"] for item in found.values()} == {"cat"}


def test_misuse_is_said(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": ""}, val="images/train")
    with pytest.raises(UsageError, match="is in train and in val"):
        read(spec)
    with pytest.raises(UsageError, match="no split 'tset'"):
        read({**spec, "splits": "tset"})
    with pytest.raises(UsageError, match="there are no images in"):
        read(make(tmp_path / "set", {"train/1": ""}, train="images/trian"))
    with pytest.raises(UsageError, match="leads out of"):
        read(make(tmp_path / "set", {"train/1": ""}, train="/etc"))
    with pytest.raises(UsageError, match="has no `names:`"):
        read(make(tmp_path / "set", {"train/1": ""}, names=None))
    (tmp_path / "set/data.yaml").write_text("!!python/object/apply:os.system [true]")
    with pytest.raises(UsageError, match="is not YAML"):
        read(spec)


def test_lists_of_which_no_image_is_there(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": ""}, train="a.txt")
    for line in ("/content/set/images/1.jpg", "images/train/2.jpg"):
        (tmp_path / "set/a.txt").write_text(f"{line}\n")
        with pytest.raises(UsageError, match=f"none of the 1 images is below .*{line}.*set `root:`"):
            read(spec)


def test_labels_that_are_nowhere_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = make(tmp_path / "set", {"train/1": "0 .5 .5 .1 .1", "train/2": None})
    assert len(read(spec)) == 2 and not caplog.records
    (tmp_path / "set/labels").rename(tmp_path / "set/label")
    assert [item.extra["boxes"] for item in read(spec).values()] == [[], []]
    assert "none of the 2 images has a label file, such as" in caplog.text


@pytest.mark.parametrize("name", ["no", "On", "null", ""])
def test_classes_that_yaml_takes_for_something_else(tmp_path: Path, name: str) -> None:
    spec = make(tmp_path / "set", {"train/1": "0 .5 .5 .1 .1"})
    (tmp_path / "set/data.yaml").write_text(f"train: images/train\nnames:\n  0: {name}\n")
    with pytest.raises(UsageError, match="put it in quotes"):
        read(spec)
    (tmp_path / "set/data.yaml").write_text(f"train: images/train\nnames:\n  0: '{name}'\n")
    assert [box["label"] for item in read(spec).values() for box in item.extra["boxes"]] == [name]


def test_a_changed_label_file_changes_its_image_alone(tmp_path: Path) -> None:
    spec = make(tmp_path / "set", {"train/1": "0 .5 .5 .1 .1", "train/2": ""})
    before = parse_source(spec).items()  # type: ignore[attr-defined]
    (tmp_path / "set/labels/train/1.txt").write_text("0 .5 .5 .1 .25")
    after = parse_source(spec).items()  # type: ignore[attr-defined]
    assert [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)] == [False, True]
