"""What detectors learn from: boxes out of a lake, which images are held out, what is written to a folder; mistakes."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.sources.boxes import BOXES
from datas3_ray.training import yolo_folder
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.detection_data import DetectionImages, hold_out, read_detection_images
from datas3_ray.training.image_rows import ImageRows
from datas3_ray.training.models.yolov8n import Yolov8n
from datas3_ray.training.yolo_folder import label_lines, write_images


def box(label: str | None, x: float, y: float, w: float, h: float) -> dict[str, Any]:
    return {"label": label, "x": x, "y": y, "w": w, "h": h}


def test_boxes_are_read_in_the_order_of_ids(tmp_path: Path) -> None:
    lists = [
        [box("dog", 1, 2, 3, 4), box("cat", 5, 6, 7, 8)],
        None,
        [],
        [box("cat", 0, 0, 1, 1), box(None, 0, 0, 2, 2)],
        [box("elk", float("nan"), 0, 1, 1), box("cat", 0, 0, 0, 5), box("dog", 9, 9, 1, 2)],
        [box("cat", 0, 0, 4, 4)],
    ]
    uris = ["u"] * 5 + [None]
    ids = ["e", "d", "c", "b", "a", "f"]
    lake = Lake(tmp_path / "lake")
    lake.add("pool", pa.table({"id": ids, "uri": pa.array(uris, pa.string()), "boxes": pa.array(lists, BOXES.type)}))
    found = read_detection_images(lake.table("pool"), "boxes")
    assert found.rows.ids.to_pylist() == ["a", "c", "e"]
    assert found.unlabelled.to_pylist() == ["b", "d"] and found.unusable.to_pylist() == ["f"]
    assert found.classes == ("cat", "dog")
    assert [found.classes[code] for code in found.codes] == ["dog", "dog", "cat"]
    assert found.owner.tolist() == [0, 2, 2]
    assert found.places.tolist() == [[9, 9, 1, 2], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert [found.boxes_of(position) for position in range(3)] == [slice(0, 1), slice(1, 1), slice(1, 3)]
    some = read_detection_images(lake.table("pool"), "boxes", pa.array(["e", "d"]))
    assert some.rows.ids.to_pylist() == ["e"] and some.places.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(UsageError, match=r"row 'a' of table 'pool' has 3 boxes, more than options.max_boxes = 2"):
        read_detection_images(lake.table("pool"), "boxes", most_boxes=2)
    with pytest.raises(UsageError, match=r"column 'uri' of table 'pool' holds string, not boxes .* 'label': boxes\."):
        read_detection_images(lake.table("pool"), "uri")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=0, max_size=40),
    st.floats(0.05, 0.9),
    st.integers(0, 5),
)
def test_what_is_held_out(images: list[set[int]], share: float, seed: int) -> None:
    ids = pa.array([f"i{place:03d}" for place in range(len(images))], pa.string())
    pairs = [(place, code) for place, classes in enumerate(images) for code in sorted(classes)]
    owner, codes = (np.array([pair[part] for pair in pairs], dtype=np.int64) for part in (0, 1))
    held = hold_out(ids, owner, codes, share, seed)
    assert held.shape == (len(images),)
    learnt = set().union(*(classes for classes, out in zip(images, held, strict=True) if not out), set())
    assert learnt == set(codes.tolist())
    if len(images) < 10:
        assert not held.any()
    elif held.any():
        assert any(images[place] for place in np.flatnonzero(held))
    else:  # no image could be spared: each that has boxes is its only one of some class
        for place, classes in enumerate(images):
            others = [other for number, other in enumerate(images) if number != place]
            assert not classes or any(all(code not in other for other in others) for code in classes)
    # A split looks at ids, not at places.
    order = np.random.default_rng(0).permutation(len(images))
    place_of = np.argsort(order)
    moved = hold_out(ids.take(pa.array(order)), place_of[owner], codes, share, seed)
    assert np.array_equal(moved, held[order])


def test_label_lines_against_a_plain_clip() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-60, 120, (500, 4)).astype(np.float32)
    places[:, 2:] = np.abs(places[:, 2:]) + 0.5
    lines = label_lines(np.arange(500), places, (100, 60))
    written = {int(line.split()[0]): [float(part) for part in line.split()[1:]] for line in lines}
    for code, (x, y, w, h) in enumerate(places.astype(np.float64)):
        left, right, top, bottom = max(x, 0), min(x + w, 100), max(y, 0), min(y + h, 60)
        if right <= left or bottom <= top:
            assert code not in written
            continue
        wanted = [(left + right) / 200, (top + bottom) / 120, (right - left) / 100, (bottom - top) / 60]
        assert written[code] == pytest.approx(wanted, abs=1e-6)
    assert 0 < len(written) < 500
    assert all(0 <= value <= 1 for values in written.values() for value in values)


def picture(size: tuple[int, int], place: tuple[int, int, int, int], turned: bool = False) -> bytes:
    """A dark image with a white box, stored on its side where ``turned``."""
    image = Image.new("RGB", size, (20, 20, 20))
    x, y, w, h = place
    image.paste((250, 250, 250), (x, y, x + w, y + h))
    buffer, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def detection_images(folder: Path, encoded: list[bytes], places: list[tuple[int, int, int, int]]) -> DetectionImages:
    uris = []
    for number, content in enumerate(encoded):
        path = folder / f"{number}.bin"
        path.write_bytes(content)
        uris.append(str(path))
    count = len(encoded)
    empty = pa.nulls(count, pa.int64())
    rows = ImageRows(
        pa.array([f"../../{number}/images/x" for number in range(count)]),
        pa.table({"uri": uris, "offset": empty, "length": empty}),
    )
    nobody = pa.array([], pa.string())
    whole = np.arange(count)
    return DetectionImages(rows, whole, whole * 0, np.array(places, np.float32), ("white",), nobody, nobody)


def test_written_boxes_lie_on_what_they_are_of(tmp_path: Path) -> None:
    sizes = [(200, 100), (90, 180), (40, 30), (200, 100)]
    places = [(120, 30, 50, 40), (10, 100, 60, 50), (5, 6, 20, 12), (20, 10, 90, 60)]
    turned = [False, True, False, True]
    encoded = [picture(*given) for given in zip(sizes, places, turned, strict=True)]
    encoded += [b"no image", picture((9, 200), (0, 0, 4, 4))]
    images = detection_images(tmp_path, encoded, [*places, (0, 0, 1, 1), (0, 0, 1, 1)])
    positions = np.array([5, 3, 0, 4, 1, 2])
    written = write_images(tmp_path / "out", images, positions, np.full(6, 7), 100)
    assert (written.images, written.boxes, written.unreadable) == (4, 4, 2)
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert names == [
        f"{part}/000000{n}.{end}" for part, end in (("images", "jpg"), ("labels", "txt")) for n in (1, 2, 4, 5)
    ]
    for number in (1, 2, 4, 5):
        size, place = sizes[positions[number]], places[positions[number]]
        with Image.open(tmp_path / "out" / "images" / f"000000{number}.jpg") as image:
            pixels = np.asarray(image.convert("L"))
        scale = min(1.0, 100 / max(size))
        assert pixels.shape[::-1] == (round(size[0] * scale), round(size[1] * scale))
        line = (tmp_path / "out" / "labels" / f"000000{number}.txt").read_text().split()
        x, y, w, h = (float(part) * side for part, side in zip(line[1:], (*pixels.shape[::-1],) * 2, strict=True))
        assert line[0] == "7"
        rows, columns = np.nonzero(pixels > 130)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.subtract(seen, [x - w / 2, y - h / 2, x + w / 2, y + h / 2])).max() <= 1
        assert (w / scale, h / scale) == pytest.approx(place[2:], abs=1e-3)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = detection_images(tmp_path, [picture((40, 30), (5, 6, 20, 12))], [(5, 6, 20, 12)])
    monkeypatch.setattr(yolo_folder, "KEPT_FREE", 1 << 62)
    with pytest.raises(Datas3Error, match=r"no room for a trial's 1 images of 64 pixels .* TMPDIR"):
        write_images(tmp_path / "out", images, np.arange(1), np.zeros(1, int), 64)


def boxed(rows: int, first: str, lists: list[Any]) -> pa.Table:
    """A table of images that nobody reads, with these boxes; ids are numbers after ``first``."""
    ids = [f"{first}{number:02d}" for number in range(rows)]
    return pa.table({"id": ids, "uri": ["u"] * rows, "boxes": pa.array(lists, BOXES.type)})


@pytest.mark.skipif(find_spec("ultralytics") is None, reason="the extra `detection` (AGPL-3.0) is not installed")
def test_one_sentence_for_each_mistake(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    owl, hare = box("owl", 1, 2, 30, 40), box("hare", 5, 5, 20, 20)
    pool = [[owl]] * 20 + [[hare, hare]] * 10 + [[]] * 10
    lake.add("pool", boxed(40, "p", pool).append_column("label", pa.array(["x"] * 40)))
    for name, rows in (("there", [[owl], [hare]]), ("empty", [[], []]), ("unlabelled", [None, None])):
        lake.add(name, boxed(2, name, rows))
    lake.add("plain", boxed(2, "plain", [[owl]] * 2).drop_columns(["boxes"]))
    lake.add("again", boxed(3, "p", pool[:3]))
    place = np.arange(40)
    for name, keep in (("all", place >= 0), ("none", place < 0), ("owls", place < 20), ("nothing", place >= 30)):
        lineage = {"method": "handmade", "table": "pool", "inputs": {"pool": 1}, "fingerprint": name}
        lineage["counts"] = {"kept": int(keep.sum())}
        rows = pa.table({"id": lake.table("pool").to_arrow(["id"]).column("id"), "keep": keep})
        lake.write(name, rows, kind="selection", lineage=lineage)

    def prepare(selection: str = "all", test: str = "there", **settings: Any) -> Any:
        given = {"model": "yolov8n", "label": "boxes", "grid": {"batch_size": 16, "lr": 0.01}, **settings}
        chosen, tests = {selection: lake.selection(selection)}, {test: lake.table(test)}
        return Yolov8n().prepare(lake, SweepConfig.model_validate(given), chosen, tests)

    assert prepare().training["all", 0].classes == ("hare", "owl")
    for sentence, selection, test, wrong in (
        ("selection 'none' keeps 0 rows", "none", "there", {}),
        ("'nothing' has 10 labelled images and no box on any", "nothing", "there", {}),
        (r"'owls' has boxes of one class only \('owl', 20 boxes\) of the 2", "owls", "there", {}),
        ("test table 'empty' has no labelled box on any image", "all", "empty", {}),
        ("test table 'unlabelled' has no labelled box .* 2 without labels", "all", "unlabelled", {}),
        ("no column 'boxes'", "all", "plain", {}),
        ("'all' keeps 3 rows of test table 'again'", "all", "again", {}),
        ("column 'label' of table 'pool' holds string, not boxes .*: boxes", "all", "pool", {"label": "label"}),
        ("'yolov8n.pt': that file does not exist", "all", "there", {"weights": "yolov8n.pt"}),
        ("lr = 2 is not possible .* at most 1", "all", "there", {"grid": {"batch_size": 16, "lr": [0.1, 2]}}),
        ("has 2 boxes, more than options.max_boxes = 1;", "all", "there", {"options": {"max_boxes": 1}}),
        ("image_size = 100", "all", "there", {"options": {"image_size": 100}}),
    ):
        with pytest.raises(UsageError, match=sentence):
            prepare(selection, test, **wrong)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(UsageError, match=r"AGPL-3\.0 .* pip install 'datas3-ray\[detection\]'"):
        prepare()
