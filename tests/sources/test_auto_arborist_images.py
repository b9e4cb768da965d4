"""Auto Arborist's trees as image files: joined with the CSVs by IDX or by path, and nothing lost on the way."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from worlds import auto_arborist as world

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, Sample, parse_source

HEADER = "IDX,SHAPE_LNG,SHAPE_LAT,GENUS,TAXONOMY_ID"


def jpeg(red: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_csv(root: Path, name: str, lines: Sequence[str], header: str = HEADER) -> None:
    path = root / "trees" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")


def write_image(root: Path, name: str, data: bytes | None = None) -> str:
    path = root / "trees" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg() if data is None else data)
    return str(path)


def read(root: Path, **options: Any) -> list[Sample | Reject]:
    source = parse_source({"auto_arborist": str(root / "trees"), "images": ".", **options})
    return [item for shard in source.shards() for item in source.read(shard)]


def told(items: Sequence[Sample | Reject]) -> list[str]:
    return [f"{item.reason} {item.key}" if isinstance(item, Reject) else item.id for item in items]


def test_the_release_s_csvs_joined_by_idx(tmp_path: Path) -> None:
    write_csv(tmp_path, "tree_locations/WashingtonDcTrees_train.csv", ["a-1,-20.25,10.5,pyrus,246"])
    write_csv(tmp_path, "tree_locations/WashingtonDcTrees_test.csv", ["b,-20,10,Acer,0", "c,,,,"])
    uris = [write_image(tmp_path, f"washington_dc/{name}.jpg") for name in ("train/a-1", "test/b", "test/c")]
    items = read(tmp_path)
    assert told(items) == ["trees/washington_dc/a-1", "trees/washington_dc/b", "trees/washington_dc/c"]
    assert [item.uri for item in items] == uris
    assert [item.members["json"].get("label") for item in items if isinstance(item, Sample)] == ["pyrus", "acer", None]
    assert isinstance(items[0], Sample) and isinstance(items[2], Sample)
    assert items[0].extra == {
        "city": "washington_dc",
        "split": "train",
        "latitude": 10.5,
        "longitude": -20.25,
        "taxonomy_id": 246,
        "captured": None,
    }
    assert items[2].extra == {"city": "washington_dc", "split": "test"} | dict.fromkeys(
        ("latitude", "longitude", "taxonomy_id", "captured")
    )


@pytest.mark.parametrize(("base", "written", "number"), [(0, 0, 0), (0, 325, 325), (1, 1, 0), (1, 326, 325)])
def test_numbers_from_zero_or_one_are_from_zero(tmp_path: Path, base: int, written: int, number: int) -> None:
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", [f"a,1,1,acer,{written}"])
    write_image(tmp_path, "surrey/train/a.jpg")
    (sample,) = read(tmp_path, label_base=base)
    assert isinstance(sample, Sample) and sample.extra["taxonomy_id"] == number


def test_rows_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    lines = ["a,1,1,acer,0", ",1,1,acer,1", "c,east,1,acer,1", "d,1,nan,acer,1", "e,1,1,acer,x", "f,1,1,acer,1,2,3"]
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", lines)
    for name in "acdef":
        write_image(tmp_path, f"surrey/train/{name}.jpg")
    items = read(tmp_path)
    rows = [f"bad_record trees/SurreyTrees_train.csv/row-{number}" for number in range(3, 8)]
    assert told(items) == [*rows, "trees/surrey/a"]
    rows = [f"bad_record trees/SurreyTrees_train.csv/row-{number}" for number in range(2, 8)]
    assert told(read(tmp_path, label_base=1)) == rows  # no number is below the first


def test_trees_without_image_and_images_without_tree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0", "../../b,1,1,acer,1", "c,1,1,acer,1"])
    write_image(tmp_path, "surrey/train/a.jpg")
    write_image(tmp_path, "surrey/train/spare.jpg")
    write_image(tmp_path, "elsewhere.jpg")
    (tmp_path / "b.jpg").write_bytes(b"secret")
    with caplog.at_level(logging.WARNING):
        items = read(tmp_path)
    assert sorted(told(items)) == [
        "trees/surrey/a",
        "unreadable_file trees/surrey/../../b",
        "unreadable_file trees/surrey/c",
    ]
    assert "2 images below" in caplog.text and "of no tree" in caplog.text


def test_a_whole_city_s_csv_adds_what_its_splits_lack(tmp_path: Path) -> None:
    write_csv(tmp_path, "tree_locations/SurreyTrees.csv", ["a,1,1,acer,0", "b,1,1,acer,1", "c,1,1,acer,2"])
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0"])
    write_csv(tmp_path, "tree_locations/SurreyTrees_test.csv", ["b,1,1,acer,1"])
    for name in "abc":
        write_image(tmp_path, f"surrey/{name}.jpg")
    items = read(tmp_path, file="{city}/{idx}.jpg")
    assert [(item.key[-1], item.extra["split"]) for item in items if isinstance(item, Sample)] == [
        ("a", "train"),
        ("b", "test"),
        ("c", None),
    ]
    assert told(read(tmp_path, file="{city}/{idx}.jpg", splits="test")) == ["trees/surrey/b"]


def test_a_tree_that_comes_twice_and_one_with_two_images(tmp_path: Path) -> None:
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0", "a,1,1,tilia,1", "b,1,1,acer,2"])
    write_csv(tmp_path, "tree_locations/SurreyTrees_test.csv", ["a,1,1,acer,0"])
    for name in ("a_acer_image1", "b_acer_image1", "b_acer_image2"):
        write_image(tmp_path, f"photos/tree_{name}.jpeg")
    items = read(tmp_path, images="photos", file="tree_{idx}_{genus}_image*.jpeg")
    assert told(items) == [
        "trees/surrey/a",
        "duplicate_key trees/surrey/a#2",
        "duplicate_key trees/surrey/a#3",
        "trees/surrey/b",
        "duplicate_key trees/surrey/b#2",
    ]
    assert items[3].uri.endswith("image1.jpeg") and items[4].uri.endswith("image2.jpeg")
    assert isinstance(items[0], Sample) and items[0].extra["split"] == "test"  # its CSV comes first


def test_an_image_of_two_trees(tmp_path: Path) -> None:
    for city in ("Surrey", "Calgary"):
        write_csv(tmp_path, f"tree_locations/{city}Trees_train.csv", ["a,1,1,acer,0"])
    write_image(tmp_path, "photos/a.jpg")
    with pytest.raises(UsageError, match="both have the image .*put {city} into `file:`"):
        read(tmp_path, file="{idx}.jpg")


@pytest.mark.parametrize("images", ["photos", "photos/*/*.jpg", "photos/{surrey,new_york}/*.jpg"])
def test_images_as_a_folder_or_a_pattern(tmp_path: Path, images: str) -> None:
    for city, name in (("Surrey", "surrey"), ("NewYork", "NewYork")):
        write_csv(tmp_path, f"tree_locations/{city}Trees_train.csv", ["a,1,1,acer,0"])
        write_image(tmp_path, f"photos/{'new_york' if name == 'NewYork' else name}/a.jpg")
    items = read(tmp_path, images=images, file="{city}/{idx}.jpg")
    assert told(items) == ["trees/new_york/a", "trees/surrey/a"]
    assert told(read(tmp_path, images=images, file="{city}/{idx}.jpg", cities="New York")) == ["trees/new_york/a"]


PATHS = "uid,label,genus,street_level,city,capturetime"


def test_a_csv_with_the_images_paths(tmp_path: Path) -> None:
    lines = [
        "u1,17,Acer,photos/1.jpg,WashingtonDc,July 2019",
        "u2,17,Tilia,,Los Angeles,July 2019",
        "u3,17,Acer,../secret.jpg,Surrey,",
        "u4,17,Acer,photos/4.jpg,Surrey,",
        "u5,17,Acer,photos/1.jpg,Surrey,",
        "u6,17,Acer,photos/1.jpg,,",
    ]
    write_csv(tmp_path, "splits/test1.csv", lines, PATHS)
    uri = write_image(tmp_path, "photos/1.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    items = read(tmp_path, trees="splits/*.csv")
    assert told(items) == [
        "no_image trees/los_angeles/u2",
        "bad_record trees/surrey/u3",
        "unreadable_file trees/surrey/u4",
        "trees/surrey/u5",
        "bad_record trees/test1.csv/row-7",
        "trees/washington_dc/u1",
    ]
    sample = items[-1]
    assert isinstance(sample, Sample) and sample.uri == uri
    record = {"label": "acer", "idx": "u1", "class": "17", "tree_city": "WashingtonDc", "uid": "u1"}
    assert sample.members == {"json": record}
    assert sample.extra == {
        "city": "washington_dc",
        "split": "test",
        "latitude": None,
        "longitude": None,
        "taxonomy_id": None,
        "captured": "July 2019",
    }
    with pytest.raises(UsageError, match=r"has no column aerial \(view: aerial\)"):
        read(tmp_path, trees="splits/*.csv", view="aerial")


def test_the_view_from_above_by_path(tmp_path: Path) -> None:
    write_csv(
        tmp_path, "train.csv", ["1,acer,s.jpg,a.jpg,Surrey,May 2018"], "idx,genus,street_level,aerial,city,capturetime"
    )
    write_image(tmp_path, "s.jpg", jpeg(10))
    write_image(tmp_path, "a.jpg", jpeg(200))
    (above,) = read(tmp_path, trees="train.csv", view="aerial")
    assert isinstance(above, Sample) and above.image == jpeg(200) and above.extra["captured"] is None
    (street,) = read(tmp_path, trees="train.csv")
    assert isinstance(street, Sample) and street.image == jpeg(10) and street.extra["captured"] == "May 2018"


@pytest.mark.parametrize(
    ("header", "missing"), [("IDX,CITY", "genus"), ("genus,city", "idx or uid"), ("idx,genus", "city")]
)
def test_columns_that_are_missing(tmp_path: Path, header: str, missing: str) -> None:
    write_csv(tmp_path, "table.csv", ["1,2"], header)
    write_image(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match=f"has no column {missing}"):
        read(tmp_path, trees="table.csv")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{city}.jpg", "has to have {idx}"),
        ("{idx}/{idx}.jpg", "has to have"),
        ("{idx}_{tree}.jpg", "{tree} is none of"),
    ],
)
def test_templates_that_cannot_be_meant(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, file=template)


def test_nothing_where_it_should_be(tmp_path: Path) -> None:
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0"])
    with pytest.raises(UsageError, match="none of the trees, 1 of which are asked for, has an image .*where 0"):
        read(tmp_path)
    with pytest.raises(UsageError, match="there is no 'calgary'"):
        write_image(tmp_path, "surrey/train/a.jpg")
        read(tmp_path, cities="Calgary")
    with pytest.raises(UsageError, match="auto_arborist: images: the folder"):
        read(tmp_path, images="photos")
    with pytest.raises(UsageError, match="auto_arborist: trees: "):
        read(tmp_path, trees="nowhere/*.csv")
    with pytest.raises(UsageError, match="'split' is a column that this source fills itself"):
        read(tmp_path, columns={"split": "row.x"})


def test_only_what_changed_has_another_fingerprint(tmp_path: Path) -> None:
    spec = {"auto_arborist": str(tmp_path / "trees"), "images": "."}
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0", "b,1,1,acer,0"])
    for name in "ab":
        write_image(tmp_path, f"surrey/train/{name}.jpg")
    before = parse_source(spec).items()  # type: ignore[attr-defined]
    write_csv(tmp_path, "tree_locations/SurreyTrees_train.csv", ["a,1,1,acer,0", "b,1,1,tilia,9"])
    after = parse_source(spec).items()  # type: ignore[attr-defined]
    assert [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)] == [True, False]


def test_the_world_s_csvs_and_its_records_agree(tmp_path: Path) -> None:
    world.build(tmp_path, images=90)
    top = tmp_path / "auto_arborist"
    source = parse_source({"auto_arborist": str(top)})
    released = {row.id: row for shard in source.shards() for row in source.read(shard) if isinstance(row, Sample)}
    for row in released.values():
        path = top / "photos" / row.extra["city"] / row.extra["split"] / f"{row.members['json']['idx']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.image)
    source = parse_source({"auto_arborist": str(top), "images": "photos"})
    extracted = [row for shard in source.shards() for row in source.read(shard)]
    assert sorted(told(extracted)) == sorted(released) and len(released) == 90
    for row in extracted:
        assert isinstance(row, Sample)
        twin = released[row.id]
        assert row.image == twin.image and row.members["json"]["label"] == twin.members["json"]["label"]
        for name in ("city", "split", "taxonomy_id"):
            assert row.extra[name] == twin.extra[name]
        assert row.extra["latitude"] == pytest.approx(twin.extra["latitude"], abs=1e-5)
        assert row.extra["longitude"] == pytest.approx(twin.extra["longitude"], abs=1e-5)
