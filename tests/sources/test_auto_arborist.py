"""Auto Arborist's TFRecord files: two spellings, numbers from zero or one, damage, and what is asked for."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from worlds import auto_arborist as world
from worlds.tfrecords import example, framed

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, Sample, decode_image, parse_source
from datas3_ray.sources.auto_arborist import city_name
from datas3_ray.sources.fetch import fetch_images


def jpeg(red: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


CARD: dict[str, list[Any]] = {
    "tree/id": [b"id 1"],
    "tree/idx": [b"t1"],
    "tree/city": [b"WashingtonDc"],
    "tree/latitude": [10.5],
    "tree/longitude": [-20.25],
    "tree/genus/label": [325],
    "tree/genus/genus": [b"Ziziphus"],
    "streetlevel/encoded": [jpeg()],
    "streetlevel/capturetime": [b"July 2019"],
    "streetlevel/object/bbox/xmin": [0.25],
    "streetlevel/object/bbox/xmax": [0.5],
    "streetlevel/object/bbox/ymin": [0.125],
    "streetlevel/object/bbox/ymax": [1.0],
    "streetlevel/center/x": [384],
    "streetlevel/center/y": [576],
    "aerial/encoded": [jpeg(200)],
}
"""A record in the spelling of the data card."""


def readme(features: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The same in the spelling of the README."""
    renamed = {"tree/idx": "tree/tree_locations_idx"}
    return {
        renamed.get(name, name if name.startswith("tree/") else f"image/{name}"): values
        for name, values in features.items()
    }


def write(
    root: Path, records: Sequence[Mapping[str, list[Any]] | bytes], place: str = "washington_dc/train-00000-of-00001"
) -> Path:
    path = root / "trees" / "tfrecords" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(one if isinstance(one, bytes) else framed(example(one)) for one in records))
    return path


def read(root: Path, **options: Any) -> list[Sample | Reject]:
    source = parse_source({"auto_arborist": str(root / "trees"), **options})
    return [item for shard in source.shards() for item in source.read(shard)]


def told(items: Sequence[Sample | Reject]) -> list[str]:
    return [item.reason if isinstance(item, Reject) else item.id for item in items]


@pytest.mark.parametrize("spelling", [dict, readme])
@pytest.mark.parametrize("packed", [True, False])
def test_both_spellings_say_the_same(tmp_path: Path, spelling: Any, packed: bool) -> None:
    write(tmp_path, [framed(example(spelling(CARD), packed))])
    (sample,) = read(tmp_path)
    assert isinstance(sample, Sample)
    assert (sample.id, sample.key) == ("trees/washington_dc/t1", "washington_dc/t1")
    assert sample.image == jpeg()
    assert sample.extra == {
        "city": "washington_dc",
        "split": "train",
        "latitude": 10.5,
        "longitude": -20.25,
        "taxonomy_id": 325,
        "captured": "July 2019",
    }
    assert sample.members == {
        "json": {
            "label": "ziziphus",
            "idx": "t1",
            "tree_id": "id 1",
            "tree_city": "WashingtonDc",
            "view": "streetlevel",
            "bbox": {"xmin": [0.25], "ymin": [0.125], "xmax": [0.5], "ymax": [1.0]},
            "center": {"x": 384, "y": 576},
        }
    }


@pytest.mark.parametrize("spelling", [dict, readme])
def test_the_view_from_above(tmp_path: Path, spelling: Any) -> None:
    write(tmp_path, [spelling(CARD)])
    (sample,) = read(tmp_path, view="aerial")
    assert isinstance(sample, Sample)
    assert sample.image == jpeg(200) and sample.members["json"]["view"] == "aerial"
    # When the street was photographed, and where in that picture the tree is, is not said of the one from above.
    assert sample.extra["captured"] is None and not {"bbox", "center"} & set(sample.members["json"])


def test_images_stay_where_they_are(tmp_path: Path) -> None:
    records = [{**CARD, "tree/idx": [f"t{n}".encode()], "streetlevel/encoded": [jpeg(20 * n)]} for n in range(5)]
    path = write(tmp_path, records)
    source = parse_source({"auto_arborist": str(tmp_path / "trees")})
    assert source.ranged
    samples = [sample for sample in read(tmp_path) if isinstance(sample, Sample)]
    data = path.read_bytes()
    for number, sample in enumerate(samples):
        assert data[sample.offset : sample.offset + sample.length] == jpeg(20 * number) == sample.image
    rows = {name: [getattr(sample, name) for sample in samples] for name in ("uri", "offset", "length")}
    assert list(fetch_images(pa.table(rows))) == [jpeg(20 * n) for n in range(5)]


@pytest.mark.parametrize(("base", "written", "number"), [(0, 0, 0), (0, 325, 325), (1, 1, 0), (1, 326, 325)])
def test_numbers_from_zero_or_one_are_from_zero(tmp_path: Path, base: int, written: int, number: int) -> None:
    write(tmp_path, [{**CARD, "tree/genus/label": [written]}])
    (sample,) = read(tmp_path, label_base=base)
    assert isinstance(sample, Sample) and sample.extra["taxonomy_id"] == number


def test_numbers_below_the_first(tmp_path: Path) -> None:
    zero, below = {**CARD, "tree/genus/label": [0]}, {**CARD, "tree/idx": [b"t2"], "tree/genus/label": [-1]}
    write(tmp_path, [zero, below])
    assert told(read(tmp_path, label_base=1)) == ["bad_record", "bad_record"]
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/t1", "bad_record"]
    assert isinstance(items[1], Reject) and "-1" in items[1].error and items[1].key == "washington_dc/t2"
    with pytest.raises(UsageError, match="label_base = 2"):
        read(tmp_path, label_base=2)


def test_records_without_the_view(tmp_path: Path) -> None:
    kinds: list[list[Any]] = [[], [b""], [3]]
    records = [{**CARD, "tree/idx": [f"t{n}".encode()], "streetlevel/encoded": kind} for n, kind in enumerate(kinds)]
    missing = {name: values for name, values in CARD.items() if name != "streetlevel/encoded"}
    write(tmp_path, [*records, {**missing, "tree/idx": [b"t3"]}])
    items = read(tmp_path)
    assert told(items) == ["no_image"] * 4
    assert [item.key for item in items] == [f"washington_dc/t{n}" for n in range(4)]
    assert len([item for item in read(tmp_path, view="aerial") if isinstance(item, Sample)]) == 4


def test_what_may_be_missing(tmp_path: Path) -> None:
    bare = {"tree/idx": [b"t1"], "streetlevel/encoded": [jpeg()], "tree/latitude": [float("nan")]}
    write(tmp_path, [bare, {**bare, "tree/idx": [b" "], "tree/id": [b"i2"]}, {"streetlevel/encoded": [jpeg()]}])
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/t1", "trees/washington_dc/i2", "bad_record"]
    assert isinstance(items[0], Sample) and items[0].members == {"json": {"idx": "t1", "view": "streetlevel"}}
    assert items[0].extra == {"city": "washington_dc", "split": "train"} | dict.fromkeys(
        ("latitude", "longitude", "taxonomy_id", "captured")
    )
    assert isinstance(items[2], Reject) and "no usable tree/idx" in items[2].error and items[2].key


def test_a_tree_that_comes_twice(tmp_path: Path) -> None:
    write(tmp_path, [CARD, {**CARD, "tree/genus/genus": [b"acer"]}, {**CARD, "tree/idx": [b"t2"]}])
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/t1", "duplicate_key", "trees/washington_dc/t2"]
    assert isinstance(items[0], Sample) and items[0].members["json"]["label"] == "ziziphus"


def test_a_damaged_record_is_set_aside_alone(tmp_path: Path) -> None:
    records = [framed(example({**CARD, "tree/idx": [f"t{n}".encode()]})) for n in range(3)]
    broken = bytearray(records[1])
    at = broken.index(b"WashingtonDc")
    broken[at] ^= 32
    path = write(tmp_path, [records[0], bytes(broken), records[2]])
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/t0", "damaged_record", "trees/washington_dc/t2"]
    assert isinstance(items[1], Reject) and items[1].offset == len(records[0]) + 12 and items[1].uri == str(path)
    assert items[1].key
    assert len(told(read(tmp_path, verify=False))) == 3 and "damaged_record" not in told(read(tmp_path, verify=False))


def test_a_damaged_length_ends_the_file(tmp_path: Path) -> None:
    records = [framed(example({**CARD, "tree/idx": [f"t{n}".encode()]})) for n in range(3)]
    write(tmp_path, [records[0], b"\x01" + records[1][1:], records[2]])
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/t0", "truncated_shard"]
    assert isinstance(items[1], Reject) and (items[1].offset, items[1].key) == (len(records[0]), "")


def test_a_file_that_is_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    path = write(tmp_path, [CARD, {**CARD, "tree/idx": [b"t2"]}])
    path.write_bytes(path.read_bytes()[:-20])
    assert told(read(tmp_path)) == ["trees/washington_dc/t1", "truncated_shard"]
    path.write_bytes(b"")
    assert told(read(tmp_path)) == ["empty_shard"]
    path.write_bytes(b"no records at all here")
    assert told(read(tmp_path)) == ["not_a_table"]
    source = parse_source({"auto_arborist": str(tmp_path / "trees")})
    (shard,) = source.shards()
    path.unlink()
    assert told(list(source.read(shard))) == ["unreadable_shard"]


def test_big_records_do_not_hide_their_neighbours(tmp_path: Path) -> None:
    big = {**CARD, "tree/idx": [b"t2"], "aerial/encoded": [bytes(5000)]}
    write(tmp_path, [CARD, big, {**CARD, "tree/idx": [b"t3"]}])
    items = read(tmp_path, max_bytes=3000)
    assert told(items) == ["trees/washington_dc/t1", "too_large", "trees/washington_dc/t3"]


def test_records_that_are_no_trees(tmp_path: Path) -> None:
    write(tmp_path, [framed(b"\x0a\x7f"), framed(b"\xff"), CARD, {**CARD, "tree/idx": [b"\xff"]}])
    items = read(tmp_path)
    assert told(items) == ["bad_record", "bad_record", "trees/washington_dc/t1", "bad_record"]
    assert all("\n" not in item.error for item in items if isinstance(item, Reject))


def test_damage_never_ends_the_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    whole = b"".join(framed(example({**CARD, "tree/idx": [f"t{n}".encode()]})) for n in range(4))
    seen: Counter[str] = Counter()
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] ^= 1 << rng.integers(8)
        write(tmp_path, [bytes(data)])
        seen.update(word.partition("/")[0] for word in told(read(tmp_path, verify=bool(rng.integers(2)))))
    assert {"trees", "damaged_record", "truncated_shard"} <= set(seen)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("WashingtonDc", "washington_dc"),
        ("WashingtonDC", "washington_dc"),
        ("Washington DC", "washington_dc"),
        ("Washington D.C.", "washington_dc"),
        ("washington_dc", "washington_dc"),
        ("LosAngeles", "los_angeles"),
        ("los-angeles", "los_angeles"),
        (" New  York ", "new_york"),
        ("SantaMonica", "santa_monica"),
        ("Surrey", "surrey"),
        ("Montréal", "montreal"),
    ],
)
def test_cities_have_one_name(text: str, name: str) -> None:
    assert city_name(text) == name


def test_only_what_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for city in ("LosAngeles", "surrey", "calgary"):
        for split in ("train", "test"):
            records = [{**CARD, "tree/idx": [split.encode()], "tree/city": [b"x"]}]
            write(tmp_path, records, f"{city}/{split}-00000-of-00001")
    assert told(read(tmp_path, cities="los_angeles", splits="test")) == ["trees/los_angeles/test"]
    found = read(tmp_path, cities=["Los Angeles", "Surrey"], id_prefix="a/", id_folders=0)
    assert sorted(told(found)) == ["a/los_angeles/test", "a/los_angeles/train", "a/surrey/test", "a/surrey/train"]
    assert told(read(tmp_path, cities=["calgary"], splits=["test"], id_folders=0)) == ["calgary/test"]
    with pytest.raises(UsageError, match="cities: there is no 'surey' below .*calgary, los_angeles, surrey.*'surrey'?"):
        read(tmp_path, cities=["Surey"])
    with pytest.raises(UsageError, match="splits: there is no 'val'"):
        read(tmp_path, splits=["val"])


def test_files_that_are_missing_or_others_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, [CARD], "surrey/train-00000-of-00003")
    write(tmp_path, [{**CARD, "tree/idx": [b"t2"]}], "surrey/train-00002-of-00003")
    write(tmp_path, [b"x"], "surrey/README.txt")
    write(tmp_path, [b"x"], "surrey/deeper/train-00000-of-00001")
    with caplog.at_level(logging.WARNING):
        assert told(read(tmp_path)) == ["trees/surrey/t1", "trees/surrey/t2"]
    assert "2 of the 3 files of surrey, train, are there" in caplog.text
    assert "2 files below" in caplog.text
    write(tmp_path, [CARD], "surrey/train-00000-of-00003.tfrecord")
    with pytest.raises(UsageError, match="are the same part of one city"):
        read(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto_arborist: the folder '.*/tfrecords' does not exist"):
        read(tmp_path)
    (tmp_path / "trees/tfrecords/surrey").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no file such as"):
        read(tmp_path)


def test_own_columns_cannot_be_mapped(tmp_path: Path) -> None:
    for name in ("city", "Taxonomy_ID"):
        with pytest.raises(UsageError, match=f"'{name}' is a column that this source fills itself"):
            parse_source({"auto_arborist": str(tmp_path), "columns": {name: "row.idx"}})


def test_another_view_is_other_content(tmp_path: Path) -> None:
    write(tmp_path, [CARD])
    spec = {"auto_arborist": str(tmp_path / "trees")}
    marks = [
        parse_source({**spec, **more}).shards()[0].fingerprint
        for more in ({}, {"view": "aerial"}, {"label_base": 1}, {"max_bytes": 10_000})
    ]
    assert len(set(marks)) == 3 and marks[0] == marks[3]


def test_the_world_can_be_learned(tmp_path: Path) -> None:
    world.build(tmp_path)
    source = parse_source({"auto_arborist": str(tmp_path / "auto_arborist")})
    items = [item for shard in source.shards() for item in source.read(shard)]
    rejects = Counter(item.reason for item in items if isinstance(item, Reject))
    assert rejects == {"no_image": 1, "damaged_record": 1, "duplicate_key": 1}
    rows = [item for item in items if isinstance(item, Sample)]
    assert Counter((row.extra["city"], row.extra["split"]) for row in rows) == {
        (city, split): count for city in world.CITIES for split, count in (("train", 36), ("test", 24))
    }
    for city in world.CITIES:
        labels = {row.members["json"]["label"] for row in rows if row.extra["city"] == city}
        assert labels == set(world.genera_of(city)) and len(labels) == 6
    for row in rows:
        assert row.extra["taxonomy_id"] == world.GENERA[row.members["json"]["label"]]
    # The mean colour of the middle is enough for most.
    colours = np.array([np.asarray(decode_image(row.image).image)[10:22, 10:22].mean((0, 1)) for row in rows])
    labels = np.array([row.members["json"]["label"] for row in rows])
    train = np.array([row.extra["split"] == "train" for row in rows])
    names = sorted(world.GENERA)
    means = np.stack([colours[train & (labels == name)].mean(0) for name in names])
    nearest = np.argmin(((colours[~train, None] - means) ** 2).sum(-1), axis=1)
    assert np.mean(np.array(names)[nearest] == labels[~train]) > 0.7


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_world_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        world.build(tmp_path / name, images=27, size=16, seed=5)
    first, second = files_below(tmp_path / "a"), files_below(tmp_path / "b")
    assert first == second and len(first) == 19 + 27
