"""The generated camera-trap world against what a plain tar reader finds in it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datas3_ray.errors import UsageError
from datas3_ray.sources.synthetic import CORRUPT_KINDS, EMPTY, LABELS, World, WorldSummary, generate
from datas3_ray.sources.synthetic_drawing import Coat, Form, Pose
from datas3_ray.sources.synthetic_scenery import LIGHTS, REGIONS, Actor, Shot, build_scenery, extent, shoot
from datas3_ray.sources.synthetic_species import SPECIES, draw_animal

WORLD = World(images=120, seed=3, shards=4, corrupt=6, mislabelled=0.1, unlabelled=0.05)
Sample = dict[str, bytes]


def read(folder: Path) -> dict[str, Sample]:
    """Key to extension to bytes, over all shards."""
    samples: dict[str, Sample] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                key, extension = member.name.split(".")
                samples.setdefault(key, {})[extension] = content.read()
    return samples


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> WorldSummary:
    return generate(tmp_path_factory.mktemp("world") / "shards", WORLD)


@pytest.fixture(scope="module")
def samples(summary: WorldSummary) -> dict[str, Sample]:
    return read(summary.folder)


@pytest.fixture(scope="module")
def rows(summary: WorldSummary, samples: dict[str, Sample]) -> dict[str, dict[str, str]]:
    """The JSON of the good samples, by key."""
    bad = {file.key for file in summary.corrupt_files}
    return {key: json.loads(sample["json"]) for key, sample in samples.items() if key not in bad}


def test_the_same_world_has_the_same_bytes_in_another_process(summary: WorldSummary, tmp_path: Path) -> None:
    code = (
        "import sys; from datas3_ray.sources.synthetic import World, generate; "
        "generate(sys.argv[1], World(images=120, seed=3, shards=4, corrupt=6, mislabelled=0.1, unlabelled=0.05))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True)
    assert digests(tmp_path / "again") == digests(summary.folder)


def test_another_seed_is_another_world(summary: WorldSummary, tmp_path: Path) -> None:
    generate(tmp_path, replace(WORLD, seed=4))
    mine, other = digests(summary.folder), digests(tmp_path)
    assert mine.keys() == other.keys()
    assert not set(mine.values()) & set(other.values())


def test_shards_are_the_summarys_and_members_carry_no_trace_of_the_maker(summary: WorldSummary) -> None:
    assert [path.name for path in summary.shards] == [f"shard-{i:05d}.tar" for i in range(4)]
    assert {path.name for path in summary.folder.iterdir()} == {*(p.name for p in summary.shards), "world.json"}
    for path in summary.shards:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert [m.name.split(".")[1] for m in members] == ["jpg", "json", "txt"] * (len(members) // 3)
        keys = [m.name.split(".")[0] for m in members]
        assert keys[0::3] == keys[1::3] == keys[2::3]
        assert len({key.split("-")[0] for key in keys}) == len(REGIONS)  # shuffled over shards


def test_the_summary_counts_what_a_tar_reader_finds(
    summary: WorldSummary, samples: dict[str, Sample], rows: dict[str, dict[str, str]]
) -> None:
    assert (summary.images, summary.corrupt) == (len(rows), len(samples) - len(rows)) == (120, 6)
    bursts = Counter(row["burst"] for row in rows.values())
    assert summary.bursts == len(bursts)
    assert summary.near_duplicates == sum(bursts.values()) - len(bursts) > 30
    assert set(bursts.values()) <= {1, 2, 3, 4, 5, 6}
    wrong = [row for row in rows.values() if row["label"] not in (None, row["true_label"])]
    assert summary.mislabelled == len(wrong)
    assert summary.unlabelled == sum(row["label"] is None for row in rows.values())
    assert abs(summary.mislabelled - 12) <= 2
    assert abs(summary.unlabelled - 6) <= 2
    assert summary.regions == Counter(row["region"] for row in rows.values())
    for region, counts in summary.species.items():
        assert counts == Counter(row["true_label"] for row in rows.values() if row["region"] == region)
        assert sum(counts.values()) == summary.regions[region]


def test_regions_and_species_are_there(summary: WorldSummary) -> None:
    assert tuple(summary.species) == REGIONS
    assert all(len(counts) >= 5 for counts in summary.species.values())
    assert len(set().union(*summary.species.values())) >= 9
    shared = set.intersection(*(set(counts) for counts in summary.species.values()))
    assert len(shared) >= 2


def test_json_fields_and_caption_agree(samples: dict[str, Sample], rows: dict[str, dict[str, str]]) -> None:
    fields = {"label", "true_label", "region", "site", "timestamp", "light", "burst", "caption", "boxes"}
    for key, row in rows.items():
        assert set(row) == fields
        assert all(isinstance(value, str) for name, value in row.items() if name not in ("label", "boxes"))
        assert row["label"] is None or row["label"] in LABELS
        assert (row["true_label"] in LABELS, row["region"] in REGIONS, row["light"] in LIGHTS) == (True, True, True)
        assert row["site"].rsplit("-", 1)[0] == row["region"]
        assert key.rsplit("-", 1)[0] == row["burst"]
        assert datetime.fromisoformat(row["timestamp"]).utcoffset() == timedelta(0)
        assert samples[key]["txt"].decode() == row["caption"]
        named = "empty scene" if row["label"] == EMPTY else row["label"]
        assert named is None or f" {named} in the {row['region']} " in row["caption"]
        others = set(SPECIES) - {row["label"]}
        assert not others & set(row["caption"].split())  # the caption never tells the truth behind a wrong label


def test_boxes_hold_the_animals(samples: dict[str, Sample], rows: dict[str, dict[str, Any]]) -> None:
    counts = Counter(len(row["boxes"]) for row in rows.values())
    assert set(counts) == {0, 1, 2}
    for row in rows.values():
        assert (not row["boxes"]) == (row["true_label"] == EMPTY)
        for box in row["boxes"]:
            assert set(box) == {"label", "x", "y", "w", "h"} and box["label"] == row["true_label"]
            assert min(box["x"], box["y"]) >= 0 and min(box["w"], box["h"]) > 0
            assert box["x"] + box["w"] <= 160 and box["y"] + box["h"] <= 120


def test_an_animal_changes_the_pixels_of_its_box_and_few_others() -> None:
    scenery = build_scenery("savanna", (160, 120), np.random.default_rng(2))
    coat, pose = Coat((228, 222, 208), (0, 0, 0)), Pose(0.4, 0.8, 0.7, right=True)
    for x in (0.5, 0.02):  # whole, and cut off by the frame
        actor = Actor("zebra", Form(), coat, pose, x=x, y=0.8, scale=40.0)
        frames = [
            np.asarray(shoot(scenery, Shot("day", 1.0, actors), np.random.default_rng(3))).astype(int)
            for actors in ((), (actor,))
        ]
        rows_of, columns_of = np.nonzero(np.abs(frames[1] - frames[0]).max(axis=2) > 0)
        found = extent(actor, (160, 120))
        assert found is not None
        left, top, width, height = found
        inside = (columns_of >= left) & (columns_of < left + width) & (rows_of >= top) & (rows_of < top + height)
        assert inside.mean() > 0.85  # the shadow is outside
        above = rows_of < top + height - 4
        assert inside[above].all()
        edges = rows_of[above].min(), columns_of[above].min(), columns_of[above].max()
        assert np.abs(np.subtract(edges, (top, left, left + width - 1))).max() <= 1
    assert extent(replace(actor, x=-1.0), (160, 120)) is None


def test_images_decode_and_night_is_grey(samples: dict[str, Sample], rows: dict[str, dict[str, str]]) -> None:
    for key, row in rows.items():
        with Image.open(io.BytesIO(samples[key]["jpg"])) as image:
            pixels = np.asarray(image).astype(int)
        assert pixels.shape == (120, 160, 3)
        colourful = np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 4
        assert colourful == (row["light"] != "night")


def test_a_burst_is_seconds_long_and_nearly_the_same_pixels(
    samples: dict[str, Sample], rows: dict[str, dict[str, str]]
) -> None:
    bursts: dict[str, list[str]] = {}
    for key in sorted(rows):
        bursts.setdefault(rows[key]["burst"], []).append(key)
    for keys in bursts.values():
        times = [datetime.fromisoformat(rows[key]["timestamp"]) for key in keys]
        gaps = [(b - a).total_seconds() for a, b in zip(times, times[1:], strict=False)]
        assert all(1 <= gap <= 3 for gap in gaps)
        assert len({(rows[key]["site"], rows[key]["true_label"], rows[key]["label"]) for key in keys}) == 1
        frames = [np.asarray(Image.open(io.BytesIO(samples[key]["jpg"])), float).ravel() for key in keys]
        for before, after in zip(frames, frames[1:], strict=False):
            assert np.corrcoef(before, after)[0, 1] > 0.97
            assert not np.array_equal(before, after)


def test_corrupt_files_are_broken_in_every_kind(summary: WorldSummary, samples: dict[str, Sample]) -> None:
    assert {file.kind for file in summary.corrupt_files} == set(CORRUPT_KINDS)
    assert len({file.shard for file in summary.corrupt_files}) == len(summary.shards)
    for file in summary.corrupt_files:
        sample = samples[file.key]
        with tarfile.open(summary.folder / file.shard) as tar:
            assert f"{file.key}.jpg" in tar.getnames()
        if file.kind == "invalid json":
            with pytest.raises(ValueError):
                json.loads(sample["json"])
        else:
            with pytest.raises(OSError):
                Image.open(io.BytesIO(sample["jpg"])).load()
            json.loads(sample["json"])


def test_careless_cameras_have_most_of_the_wrong_labels(tmp_path: Path) -> None:
    world = World(images=600, size=(32, 32), mislabelled=0.05, unlabelled=0.05, corrupt=0)
    generate(tmp_path, world)
    rows = [json.loads(sample["json"]) for sample in read(tmp_path).values()]
    faults = Counter(row["site"] for row in rows if row["label"] != row["true_label"])
    sizes = Counter(row["site"] for row in rows)
    worst = sorted(sizes, key=lambda site: faults[site] / sizes[site], reverse=True)[: len(sizes) // 3]
    assert sum(faults[site] for site in worst) > 0.6 * faults.total()
    assert sum(sizes[site] for site in worst) < 0.5 * len(rows)


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    world = World(images=9, shards=2, corrupt=1)
    first = generate(tmp_path / "w", world)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert generate(str(tmp_path / "w"), world) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == stamps


def test_a_broken_off_folder_is_made_whole(tmp_path: Path) -> None:
    world = World(images=9, shards=2, corrupt=1)
    summary = generate(tmp_path / "w", world)
    whole = digests(summary.folder)
    (summary.folder / "world.json").unlink()
    summary.shards[0].write_bytes(b"half")
    (summary.folder / "shard-00007.tar").write_bytes(b"of a larger world")
    (summary.folder / "shard-00001.tar.part").write_bytes(b"half")
    generate(summary.folder, world)
    assert digests(summary.folder) == whole
    summary.shards[1].unlink()  # and a shard lost afterwards comes back
    generate(summary.folder, world)
    assert digests(summary.folder) == whole


def test_another_world_or_other_files_are_refused(tmp_path: Path) -> None:
    world = World(images=9, shards=2, corrupt=1)
    generate(tmp_path / "w", world)
    with pytest.raises(UsageError, match=r"w already holds another world \(images is 9 there, 10 is asked\).*delete"):
        generate(tmp_path / "w", replace(world, images=10))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="thesis.tex"):
        generate(tmp_path / "mine", world)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    with pytest.raises(UsageError, match="thesis.tex is a file; name a folder"):
        generate(tmp_path / "mine" / "thesis.tex", world)
    with pytest.raises(UsageError, match=r"thesis.tex/data: .*thesis.tex is a file; name a folder"):
        generate(tmp_path / "mine" / "thesis.tex" / "data", world)
    (tmp_path / "w" / "world.json").write_text("{")
    with pytest.raises(UsageError, match="world.json"):
        generate(tmp_path / "w", world)


@pytest.mark.parametrize(
    "bad",
    [{"images": 0}, {"seed": -1}, {"shards": 0}, {"size": (8, 120)}, {"mislabelled": 0.7, "unlabelled": 0.4}],
)
def test_a_world_that_cannot_be_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        World(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("species", SPECIES)
def test_an_animal_looks_both_ways_and_stands_on_its_feet(species: str) -> None:
    coat = Coat((120, 100, 80), (0, 0, 0))
    right, foot = draw_animal(species, Form(), coat, Pose(0.4, 0.8, 0.7, right=True), 40.0)
    left, _ = draw_animal(species, Form(), coat, Pose(0.4, 0.8, 0.7, right=False), 40.0)
    assert abs(foot[1] - right.height) < 4
    assert abs(right.width - left.width) <= 2
    shape, mirrored = (np.asarray(one.resize((64, 64)).getchannel("A"), float) > 127 for one in (right, left))
    assert (shape == mirrored[:, ::-1]).mean() > 0.95
    assert (shape == mirrored).mean() < 0.95


def test_drawing_takes_its_randomness_from_the_generator() -> None:
    np.random.seed(1)
    frames = []
    for _ in range(2):
        scenery = build_scenery("tundra", (64, 48), np.random.default_rng(5))
        frames.append(np.asarray(shoot(scenery, Shot("dusk", 1.0), np.random.default_rng(6))))
        np.random.random(7)
    assert np.array_equal(*frames)
