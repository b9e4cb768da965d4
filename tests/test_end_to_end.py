"""The whole path on real images: 15,680 drawings to a leaderboard, with the answers checked by brute force."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pyarrow.compute as pc
import pytest

from datas3_ray import Lake
from datas3_ray.benchmark.leaderboard import leaderboard
from datas3_ray.lake.schemas import matrix
from datas3_ray.recipe import Recipe, load_recipe, run_recipe

ROOT = Path(__file__).resolve().parents[1]
# Of the recipe's methods these seven; test_emoji_recipe.py has all of them on fewer images.
METHODS = ["everything", "random", "dedup", "diverse", "expert-{deployment}", "align-{deployment}", "near-{deployment}"]
KEPT = {
    "pool",
    "probe",
    "report",
    *(f"{place}-{part}" for place in ("google", "twitter") for part in ("query", "test")),
}


def recipe_of(data: Path, lake: Path | str, output: Path | str) -> Recipe:
    settings = [f"data={data}", f"lake={lake}", f"output={output}", f"methods={json.dumps(METHODS)}"]
    recipe = load_recipe(ROOT / "pipelines" / "emoji.yaml", settings)
    wanted = KEPT | {name.replace("{deployment}", place) for name in METHODS for place in ("google", "twitter")}
    return replace(recipe, steps=tuple(step for step in recipe.steps if step.name in wanted))


@pytest.fixture(scope="module")
def emoji(real_data, ray_session, tmp_path_factory) -> tuple[Lake, Path, list[str]]:
    """The lake after `datas3 run pipelines/emoji.yaml`, its output folder, and what the run said."""
    folder = tmp_path_factory.mktemp("emoji")
    lines: list[str] = []
    recipe = recipe_of(real_data, folder / "lake", folder / "output")
    run_recipe(recipe, say=lines.append, progress=False)
    return recipe.lake, Path(recipe.output), lines


def versions(lake: Lake) -> dict[str, int]:
    return {name: lake.table(name).version for name in lake.names()}


def test_every_image_is_there_once(emoji, real_data) -> None:
    lake = emoji[0]
    pool = lake.table("pool").to_arrow(["id", "uri", "offset", "length", "domain", "label", "caption"])
    assert pool.num_rows == 15_680
    assert len(pc.unique(pool.column("id"))) == 15_680
    assert lake.table("pool.quarantine").count_rows() == 0
    counts = dict(zip(*pc.value_counts(pool.column("domain")).flatten(), strict=True))
    assert {key.as_py(): value.as_py() for key, value in counts.items()} == {
        "google": 3_781,
        "twitter": 3_781,
        "clipart": 8_118,
    }
    row = pool.slice(7_000, 1).to_pylist()[0]
    with open(row["uri"], "rb") as shard:
        shard.seek(row["offset"])
        start = shard.read(row["length"])[:4]
    assert start in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb")


def test_a_second_run_changes_no_table(emoji, real_data) -> None:
    lake, output, _ = emoji
    before = versions(lake)
    outcomes = run_recipe(recipe_of(real_data, lake.uri, output), say=lambda _: None, progress=False)
    assert versions(lake) == before
    assert all(outcome.skipped for outcome in outcomes)


def test_plain_lancedb_finds_an_image_itself_first(emoji) -> None:
    table = lancedb.connect(emoji[0].uri).open_table("pool")
    row = table.search().where("caption = 'person with crown'").limit(1).to_list()[0]
    found = table.search(row["lite"]).limit(5).to_list()
    assert found[0]["id"] == row["id"]
    assert found[0]["_distance"] == pytest.approx(0.0, abs=1e-3)
    assert len(found) == 5


def test_no_emoji_is_on_two_sides(emoji) -> None:
    lake = emoji[0]

    def emoji_of(name: str) -> set[str]:
        return set(lake.table(name).to_arrow(["base_unicode"]).column("base_unicode").to_pylist())

    query = emoji_of("google-query") | emoji_of("twitter-query")
    test = emoji_of("google-test") | emoji_of("twitter-test")
    assert emoji_of("google-query") == emoji_of("twitter-query")
    assert not query & test
    chosen = lake.selection("everything").ids()
    pool = lake.table("pool").to_arrow(["id", "base_unicode"])
    left = set(pool.filter(pc.is_in(pool.column("id"), value_set=chosen)).column("base_unicode").to_pylist()) - {None}
    assert not left & (query | test)
    assert len(left | query | test) == len(set(pool.column("base_unicode").to_pylist()) - {None})


def test_semdedup_equals_brute_force(emoji) -> None:
    lake = emoji[0]
    rows = lake.selection("dedup").to_arrow(["id", "keep", "cluster", "similarity"])
    pool = lake.table("pool").to_arrow(["id", "lite"])
    vectors = matrix(pool.column("lite").take(pc.index_in(rows.column("id"), value_set=pool.column("id"))))
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    ids, cluster = rows.column("id").to_pylist(), rows.column("cluster").to_numpy()
    similarity = rows.column("similarity").to_numpy()
    kept = set()
    for number in np.unique(cluster):
        order = sorted(np.flatnonzero(cluster == number), key=lambda i: (similarity[i], ids[i].encode()))
        cosines = np.tril(unit[order] @ unit[order].T, -1)
        largest = np.round(cosines.max(axis=1, initial=0.0), 6)
        kept |= {ids[order[i]] for i in np.flatnonzero(~(largest > 0.97))}
    assert set(lake.selection("dedup").ids().to_pylist()) == kept
    assert 5_000 < len(kept) < 12_000


def test_sizes_are_exact(emoji) -> None:
    lake = emoji[0]
    dedup = len(lake.selection("dedup"))
    assert len(lake.selection("diverse")) == int(dedup * 0.4 + 0.5)
    assert len(lake.selection("near-google")) == int(dedup * 0.25 + 0.5)
    everything = len(lake.selection("everything"))
    for name in ("random", "align-google", "align-twitter"):
        assert len(lake.selection(name)) == int(everything * 0.25 + 0.5)


def test_the_expert_subset_beats_everything_on_both_deployments(emoji) -> None:
    lake = emoji[0]
    results = lake.results()
    assert results.num_rows == 2 * 7 * 9
    assert pc.sum(results.column("best")).as_py() == 2 * 7
    board = {row["method"]: row["deployments"] for row in leaderboard(results).to_rows()}
    for deployment in ("google", "twitter"):
        assert board["expert"][deployment]["score"] > board["everything"][deployment]["score"]


def test_the_report_and_tunes_files_are_there(emoji) -> None:
    lake, output, lines = emoji
    page = (output / "report.html").read_text()
    assert "near-google" in page
    assert len(page) < 8_000_000
    trials = [name for name in os.listdir(output / "tune") if (output / "tune" / name).is_dir()]
    assert len(trials) == 1
    events = list((output / "tune").rglob("events.out.tfevents.*"))
    assert len(events) == 9 * 10
    assert any("15680 rows and 0 rejects" in line for line in lines)
    assert json.loads(lake.results().column("lineage")[0].as_py())["inputs"]
