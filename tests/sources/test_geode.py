"""GeoDE: countries, places, older tables, downloads by region, and images that are not RGB."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from worlds import geode as world

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, decode_image, parse_source
from datas3_ray.sources.geode import read_places

HEADER = "file_path,object,region,ip_country"


def write(folder: Path, lines: list[str], header: str = HEADER, images: str = "images") -> dict[str, Any]:
    """A data set with an image for every line, whose first cell is its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.csv").write_text("\n".join([header, *lines]) + "\n")
    for line in lines:
        name = line.partition(",")[0]
        if name.endswith((".jpg", ".png")) and ".." not in name:
            path = folder / images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(path)
    return {"geode": str(folder)}


def read(spec: dict[str, Any]) -> dict[str, Any]:
    source = parse_source(spec)
    return {item.key: item for shard in source.shards() for item in source.read(shard)}


def test_a_row(tmp_path: Path) -> None:
    line = "3.tree/Nigeria_tree_1.jpg,tree,Africa,Nigeria"
    found = read(write(tmp_path / "geode", [line]))["geode/3.tree/Nigeria_tree_1"]
    assert found.id == "geode/3.tree/Nigeria_tree_1"
    assert found.uri == str(tmp_path / "geode/images/3.tree/Nigeria_tree_1.jpg")
    assert found.members == {"json": {"label": "tree"}}
    assert found.extra == {"region": "Africa", "country": "Nigeria", "place": "outdoor"}


def test_south_africa_has_a_space_however_it_is_written(tmp_path: Path) -> None:
    lines = [
        "1.bag/a.jpg,bag,Africa,South Africa",
        "1.bag/b.jpg,bag,Africa,South_Africa",
        "1.bag/c.jpg,bag,WestAsia,United_Arab_Emirates",
    ]
    found = read(write(tmp_path / "geode", lines))
    assert [item.extra["country"] for item in found.values()] == [
        "South Africa",
        "South Africa",
        "United Arab Emirates",
    ]


def test_places_come_from_lists_that_can_be_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"1/{name}.jpg,{name},Africa,Nigeria" for name in ("bus", "stove", "giraffe")] + [
        "1/z.jpg,,Africa,Nigeria"
    ]
    spec = write(tmp_path / "geode", lines)
    with caplog.at_level(logging.WARNING):
        found = read(spec)
    assert {key.rpartition("/")[2]: item.extra["place"] for key, item in found.items()} == {
        "bus": "outdoor",
        "stove": "indoor",
        "giraffe": None,
        "z": None,
    }
    assert "label" not in found["geode/1/z"].members["json"]
    assert [record.getMessage() for record in caplog.records] == [
        "geode: 1 images have no place: no list of places has giraffe"
    ]
    (tmp_path / "mine.yaml").write_text("indoor: [bus]\nsavanna: [giraffe, stove]\n")
    found = read({**spec, "places": str(tmp_path / "mine.yaml")})
    assert [item.extra["place"] for item in found.values()] == ["indoor", "savanna", "savanna", None]


def test_the_lists_of_the_package_have_twenty_objects_each() -> None:
    assert Counter(read_places().values()) == {"indoor": 20, "outdoor": 20}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no lists such as"),
        ("[a, b]", "has no lists such as"),
        ("indoor: chair", "'indoor' is no list of objects"),
        ("indoor: [1]", "'indoor' is no list of objects"),
        ("indoor: [a]\noutdoor: [b, a]", "'a' is in 'indoor' and in 'outdoor'; keep one"),
        ("indoor: [a", "is not YAML"),
        ("indoor: !!python/name:os.system [a]", "is not YAML"),
    ],
)
def test_lists_that_cannot_be_meant(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"geode: places: '.*mine.yaml'.*{said}") as error:
        read_places(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="gone.yaml' is not there"):
        read_places(str(tmp_path / "gone.yaml"))


def test_older_tables_have_other_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["Africa/South_Africa/South_Africa_bag_1.jpg,bag,South Africa"]
    spec = write(tmp_path / "geode", lines, "file_name,script_name,ip_country", images=".")
    with caplog.at_level(logging.WARNING):
        (found,) = read(spec).values()
    assert found.id == "geode/Africa/South_Africa/South_Africa_bag_1"
    assert found.uri == str(tmp_path / "geode" / lines[0].partition(",")[0])
    assert (found.members["json"], found.extra) == (
        {"label": "bag"},
        {"region": None, "country": "South Africa", "place": "indoor"},
    )
    assert ["has no column 'region'" in record.getMessage() for record in caplog.records] == [True]


def test_downloads_by_region_are_one_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "geode_region"
    write(root / "geode_africa", ["1.bag/a.jpg,bag,Africa,Nigeria"])
    write(root / "geode_asia", ["1.bag/a.jpg,bag,SouthEastAsia,Malaysia", "1.bag/b.jpg,bag,SouthEastAsia,Malaysia"])
    found = read({"geode": str(root)})
    assert {key: item.extra["country"] for key, item in found.items()} == {
        "geode_region/geode_africa/1.bag/a": "Nigeria",
        "geode_region/geode_asia/1.bag/a": "Malaysia",
        "geode_region/geode_asia/1.bag/b": "Malaysia",
    }
    assert found["geode_region/geode_asia/1.bag/a"].uri == str(root / "geode_asia/images/1.bag/a.jpg")
    write(root, ["2.hat/c.jpg,hat,Europe,Italy"])
    with caplog.at_level(logging.WARNING):
        assert sorted(read({"geode": str(root)})) == ["geode_region/2.hat/c"]
    assert ["2 tables further down are not read" in record.getMessage() for record in caplog.records] == [True]


def test_another_table_for_the_same_images(tmp_path: Path) -> None:
    spec = write(tmp_path / "geode", ["1.bag/a.jpg,bag,Africa,Nigeria", "1.bag/b.jpg,bag,Africa,Nigeria"])
    (tmp_path / "few.jsonl").write_text(
        '{"file_path": "1.bag/b.jpg", "object": "bag", "region": "Africa", "ip_country": "Nigeria", "n": 3}\n'
    )
    found = read({**spec, "index": str(tmp_path / "few.jsonl")})
    assert sorted(found) == ["geode/1.bag/b"]
    assert found["geode/1.bag/b"].members["json"] == {"label": "bag", "n": 3}


def test_rows_that_name_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["a.jpg,bag,Africa,Nigeria", "gone.jpg,bag,Africa,Nigeria", "../../x.jpg,bag,Africa,Nigeria", ",bag,x,y"]
    spec = write(tmp_path / "geode", [*lines, "b.jpg,bag,Africa,Nigeria,more"])
    (tmp_path / "geode/images/gone.jpg").unlink()
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg")
    with caplog.at_level(logging.INFO):
        found = read(spec)
    assert {key: item.reason if isinstance(item, Reject) else "" for key, item in found.items()} == {
        "geode/a": "",
        "geode/gone": "unreadable_file",
        "geode/index/row-4": "bad_record",
        "geode/index/row-5": "bad_record",
        "geode/index/row-6": "bad_record",
    }
    assert [record.getMessage() for record in caplog.records] == ["geode: 1 images in the folders are named by no row"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder .*geode' does not exist"):
        read({"geode": str(tmp_path / "geode")})
    line = "a.jpg,bag,Africa,Nigeria"
    spec = write(tmp_path / "geode", [line])
    with pytest.raises(UsageError, match="few.csv' is not there"):
        read({**spec, "index": str(tmp_path / "few.csv")})
    (tmp_path / "geode/index.csv").write_text(f"path,object,region,ip_country\n{line}\n")
    with pytest.raises(UsageError, match="has no column 'file_path'; its columns are path, object, region, ip_country"):
        read(spec)
    (tmp_path / "geode/index.csv").write_text(f"{HEADER.replace('ip_country', 'ip_contry')}\n{line}\n")
    with pytest.raises(UsageError, match="has no column 'ip_country'.* Did you mean 'ip_contry'"):
        read(spec)
    (tmp_path / "geode/index.csv").write_text(f"{HEADER}\n{line}\n./{line}\n")
    with pytest.raises(UsageError, match="two rows name the file '.*images/a.jpg'"):
        read(spec)
    (tmp_path / "geode/index.csv").write_text(f"{HEADER}\nx/{line}\n")
    with pytest.raises(UsageError, match="none of the 1 images is below '.*images', such as '.*images/x/a.jpg'"):
        read(spec)
    (tmp_path / "geode/index.csv").unlink()
    with pytest.raises(UsageError, match="there is no index.csv in '.*geode', nor in a folder of it"):
        read(spec)
    with pytest.raises(UsageError, match="columns: 'Region' is a column that this source fills itself"):
        parse_source({**spec, "columns": {"Region": "row.region"}})


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_images_that_are_not_rgb_become_so(tmp_path: Path, mode: str) -> None:
    spec = write(tmp_path / "geode", ["1.bag/a.png,bag,Africa,Nigeria"])
    red = Image.new("RGB", (8, 6), (250, 10, 10)).convert(mode)
    form = "PNG" if mode == "RGBA" else "JPEG"  # a JPEG may be called .png; only its bytes count
    red.save(tmp_path / "geode/images/1.bag/a.png", form)
    (found,) = read(spec).values()
    image = decode_image(found.image).image
    assert (image.mode, image.size) == ("RGB", (8, 6))
    wanted = (82, 82, 82) if mode == "L" else (250, 10, 10)
    assert all(abs(one - other) < 12 for one, other in zip(image.getpixel((4, 3)), wanted, strict=True))


def test_the_world_is_ingested_whole(tmp_path: Path, lake: Lake) -> None:
    world.build(tmp_path, images=288)
    modes = Counter(Image.open(path).mode for path in (tmp_path / "geode/images").glob("*/*"))
    assert modes == {"RGB": 144, "L": 48, "RGBA": 48, "CMYK": 48}
    lake.ingest("pool", source={"geode": str(tmp_path / "geode")}, encoders={}, progress=False)
    rows = lake.table("pool").to_arrow(["id", "label", "region", "country", "place", "width"]).to_pylist()
    assert len({row["id"] for row in rows}) == 288 and {row["width"] for row in rows} == {32}
    assert Counter((row["region"], row["country"]) for row in rows) == {
        ("Africa", "Nigeria"): 48,
        ("Africa", "South Africa"): 48,
        ("SouthEastAsia", "Indonesia"): 48,
        ("SouthEastAsia", "Malaysia"): 48,
        ("Europe", "Germany"): 48,
        ("Americas", "Brazil"): 48,
    }
    assert {row["label"]: row["place"] for row in rows} == {
        **dict.fromkeys(world.INDOOR, "indoor"),
        **dict.fromkeys(world.OUTDOOR, "outdoor"),
    }


def test_the_world_is_the_same_again(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        world.build(tmp_path / name, images=96, seed=seed)
    texts = [
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*")) if path.is_file()]
        for name in ("one", "two", "three")
    ]
    assert texts[0] == texts[1] and texts[0] != texts[2]
