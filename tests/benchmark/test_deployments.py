"""The twenty deployments as files, and the steps that make their tables and their experts' selections."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command import datas3

from datas3_ray.benchmark.deployments import FOLDER, find_deployment, names
from datas3_ray.errors import UsageError
from datas3_ray.recipe import parse_recipe, run_recipe

# Query rows and the sizes of pool and expert, as the paper has them.
PAPER = {
    "auto_arborist": (
        781_000,
        {
            "surrey": (1500, 70_000),
            "calgary": (1500, 123_000),
            "los_angeles": (1500, 35_000),
            "washington_dc": (1500, 26_000),
        },
    ),
    "fish_detection": (
        841_000,
        {
            "pnw_freshwater_lakes": (500, 179_000),
            "pacific": (600, 152_000),
            "east_atlantic": (541, 6_000),
            "gulf_of_mexico": (519, 320),
        },
    ),
    "geode": (
        53_000,
        {"indonesia": (500, 2_900), "nigeria": (500, 2_600), "indoor": (500, 1_400), "outdoor": (500, 2_600)},
    ),
    "iwildcam": (
        130_000,
        {
            "central_america": (301, 8_500),
            "eastern_africa": (302, 9_200),
            "southern_africa": (301, 19_000),
            "se_asia": (309, 21_000),
        },
    ),
    "nuscenes": (
        100_000,
        {
            "boston_seaport": (6000, 20_000),
            "holland_village": (1000, 4_600),
            "one_north": (2700, 10_000),
            "queenstown": (1900, 7_000),
        },
    ),
}
METRICS = {
    "auto_arborist": "accuracy",
    "geode": "accuracy",
    "iwildcam": "accuracy",
    "nuscenes": "mse",
    "fish_detection": "map50",
}


def test_the_twenty_are_the_paper_s() -> None:
    assert set(names()) == {f"{dataset}/{name}" for dataset, (_, inner) in PAPER.items() for name in inner}
    for of in names():
        found = find_deployment(of)
        pool, sizes = PAPER[found.dataset]
        query, expert = sizes[found.name]
        assert (found.paper.pool, found.paper.query, found.paper.expert) == (pool, query, expert)
        assert found.metric == METRICS[found.dataset]
        assert found.query_split("test").rows == query


@pytest.mark.parametrize("of", names())
def test_query_and_test_are_disjoint_and_of_one_place(of: str) -> None:
    found = find_deployment(of)
    test, query = found.test_split(), found.query_split("t")
    assert test.where == query.where == found.where
    assert test.hash == query.hash and test.seed == query.seed
    assert query.share[1] <= test.share[0]
    assert query.like == ("t" if found.task == "classification" else None)
    assert found.expert_selector().method in ("expert", "nearby")


def test_values_are_changed_by_their_path() -> None:
    found = find_deployment("geode/nigeria", {"query.rows": 7, "expert": {"expert": {"where": "country = 'Ghana'"}}})
    assert found.query_split("t").rows == 7 and found.query_split("t").stratify == "label"
    assert found.expert_selector().where == "country = 'Ghana'"
    assert find_deployment("geode/nigeria").query_split("t").rows == 500


@pytest.mark.parametrize(
    ("of", "changes", "said"),
    [
        ("geoed/nigeria", {}, "no data set 'geoed'.*Did you mean 'geode'"),
        ("geode/nigera", {}, "no deployment 'geode/nigera'; geode has indonesia.*Did you mean 'nigeria'"),
        ("geode", {}, "no deployment 'geode'"),
        ("geode/nigeria", {"quary.rows": 3}, "unknown key 'quary'"),
        ("geode/nigeria", {"title.rows": 3}, "title holds 'Nigeria' and has no keys"),
        ("geode/nigeria", {"expert": {}}, "an expert is one method"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(of: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_deployment(of, changes)


def test_a_wrong_split_or_expert_is_told_when_the_recipe_is_read(tmp_path: Path) -> None:
    def step(kind: str, **changes: Any) -> dict[str, Any]:
        body = {"of": "geode/nigeria", "from": "pool", "set": changes}
        return {"lake": str(tmp_path / "lake"), "steps": [{"name": "nigeria", kind: body}]}

    for raw, said in (
        (step("deployment", **{"query.rows": 0}), "query of geode/nigeria: rows = 0"),
        (step("deployment", **{"test.share": [0.5]}), "test of geode/nigeria: the key 'share.1'"),
        (step("expert", expert={"expret": {}}), "no selection method 'expret'"),
        ({**step("deployment"), "steps": [{"name": "a", "deployment": {"of": "geode/nigeria"}}]}, "'from' is missing"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_recipe(raw)


def world(lake: Any, make_pool: Any, name: str, seed: int) -> None:
    """Two places, four classes of which each place lacks one."""
    rng = np.random.default_rng(seed)
    place = ["here" if i % 2 else "there" for i in range(400)]
    classes = {"here": ["a", "a", "b", "c"], "there": ["b", "c", "d", "d"]}
    columns = {
        "place": place,
        "label": [classes[p][int(rng.integers(4))] for p in place],
        "latitude": [0.0 if p == "here" else 20.0 for p in place],
        "longitude": [10.0] * 400,
    }
    make_pool(lake, name, [f"{name}-{i:03}" for i in range(400)], rng.normal(size=(400, 4)), fragments=3, **columns)


@pytest.fixture
def own_file(tmp_path: Path) -> str:
    document = {
        "dataset": "mine",
        "task": "classification",
        "metric": "accuracy",
        "column": "label",
        "query": {"hash": "id", "share": [0.0, 0.5], "rows": 40, "stratify": "label"},
        "test": {"hash": "id", "share": [0.5, 1.0]},
        "deployments": {
            "here": {"title": "Here", "where": "place = 'here'", "expert": {"nearby": {"km": 1, "label": "label"}}},
            "there": {"title": "There", "where": "place = 'there'", "expert": {"expert": {"where": "place = 'there'"}}},
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def labels(lake: Any, name: str) -> Counter[str]:
    return Counter(lake.table(name).to_arrow(["label"]).column("label").to_pylist())


def test_steps_make_tables_and_experts_of_a_file_of_ones_own(lake, make_pool, own_file, tmp_path) -> None:
    world(lake, make_pool, "pool", 0)
    world(lake, make_pool, "heldout", 1)
    raw = {
        "lake": lake.uri,
        "output": str(tmp_path / "output"),
        "places": ["here", "there"],
        "file": own_file,
        "steps": [
            {
                "name": "{deployment}",
                "for": {"deployment": "${places}"},
                "deployment": {"of": "mine/{deployment}", "from": "heldout", "file": "${file}"},
            },
            {
                "name": "expert-{deployment}",
                "for": {"deployment": "${places}"},
                "expert": {"of": "mine/{deployment}", "from": "pool", "file": "${file}"},
            },
            {"name": "everything", "select": {"from": "pool", "everything": {}}},
            {
                "name": "probe",
                "sweep": {
                    "config": "tune_configs/vit_linear_probe.yaml",
                    "set": {"grid": {"lr": [0.01], "batch_size": [32]}, "epochs": 1},
                    "selections": ["everything", "expert-{deployment}"],
                    "deployments": "${places}",
                },
            },
        ],
    }
    said: list[str] = []
    run_recipe(parse_recipe(raw), dry_run=True, say=said.append)
    assert "set query and test of mine/here aside" in said[0]
    run_recipe(parse_recipe(raw), say=said.append, progress=False)
    test, query = labels(lake, "here-test"), labels(lake, "here-query")
    assert set(test) == {"a", "b", "c"} and query.total() == 40
    for label, count in test.items():
        assert abs(query[label] - 40 * count / test.total()) < 1
    ids = [set(lake.table(f"here-{part}").to_arrow(["id"]).column("id").to_pylist()) for part in ("query", "test")]
    assert not ids[0] & ids[1]
    # The expert of "here" is a distance from its test rows and their classes; of "there" a predicate.
    expert = lake.selection("expert-here")
    assert expert.lineage()["query"] == "here-test" and expert.lineage()["method"] == "nearby"
    rows = lake.table("pool").to_arrow(["id", "place", "label"]).to_pylist()
    assert set(expert.ids().to_pylist()) == {row["id"] for row in rows if row["place"] == "here"}
    assert set(lake.selection("expert-there").ids().to_pylist()) == {r["id"] for r in rows if r["place"] == "there"}
    results = lake.results().to_pylist()
    assert {(row["deployment"], row["method"]) for row in results} == {
        (place, method) for place in ("here", "there") for method in ("everything", "expert")
    }
    said.clear()
    run_recipe(parse_recipe(raw), say=said.append, progress=False)
    assert all("up to date" in line for line in said), said


def test_a_plan_follows_each_of_a_deployments_tables(lake, make_pool, own_file) -> None:
    """The selections of the table are stale in any case; a sweep's model is tested anew only on another test table."""
    world(lake, make_pool, "pool", 0)
    world(lake, make_pool, "train", 1)
    probe: dict[str, Any] = {
        "config": {"model": "vit_linear_probe", "grid": {"lr": [0.01], "batch_size": [32]}, "epochs": 1},
        "selections": ["elsewhere"],
        "deployments": {"here": {"query": "here-query", "test": "here-test"}},
    }
    place: dict[str, Any] = {"of": "mine/here", "from": "pool", "file": own_file}
    steps: list[dict[str, Any]] = [
        {"name": "here", "deployment": place},
        {"name": "some", "select": {"from": "pool", "random": {"size": 9}}},
        {"name": "tests", "select": {"from": "here-test", "random": {"size": 9}}},
        {"name": "queries", "select": {"from": "here-query", "random": {"size": 9}}},
        {"name": "elsewhere", "select": {"from": "train", "random": {"size": 60}}},
        {"name": "probe", "sweep": probe},
    ]

    def ran() -> list[bool]:
        recipe, plan = parse_recipe({"lake": lake.uri, "steps": steps}), []
        run_recipe(recipe, dry_run=True, say=plan.append)
        outcomes = run_recipe(recipe, say=lambda line: None, progress=False)
        done = [not outcome.skipped for outcome in outcomes]
        assert [" up to date" not in line for line in plan] == done, plan
        return done

    assert ran() == [True, True, True, True, True, True]
    assert not any(ran())
    place["set"] = {"query.rows": 20}
    assert ran() == [True, True, False, True, False, False]
    probe["config"]["validation_on"] = "query"
    assert ran() == [False, False, False, False, False, True]
    place["set"]["query.rows"] = 30
    assert ran() == [True, True, False, True, False, True]
    place["set"]["test.share"] = [0.6, 1.0]
    assert ran() == [True, True, True, True, False, True]


def test_two_steps_that_make_one_table_are_told(tmp_path: Path) -> None:
    raw = {
        "lake": str(tmp_path / "lake"),
        "steps": [
            {"name": "pool", "ingest": {"source": {"folder": str(tmp_path)}, "encoders": {}}},
            {"name": "nigeria-query", "split": {"from": "pool", "rows": 3}},
            {"name": "nigeria", "deployment": {"of": "geode/nigeria", "from": "pool"}},
        ],
    }
    with pytest.raises(UsageError, match="two steps are named 'nigeria-query'"):
        parse_recipe(raw)


def test_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, said in (("- 1", "is a mapping"), ("dataset: a", "deployments"), ("a: [", "cannot be read")):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            find_deployment("a/b", file=path)
        path = path.with_name(path.stem + "x.yaml")
    with pytest.raises(UsageError, match="describes the data set 'geode', not 'a'"):
        find_deployment("a/b", file=FOLDER / "geode.yaml")


def test_the_command_lists_and_shows(own_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = datas3("deployments", "--json", capsys=capsys)
    assert status == 0 and [row["deployment"] for row in json.loads(said)] == names()
    status, said, _ = datas3("deployments", "geode/nigeria", capsys=capsys)
    assert status == 0 and "country = 'Nigeria'" in said and "region = 'Africa'" in said
    status, said, _ = datas3("deployments", "--file", own_file, capsys=capsys)
    assert status == 0 and "mine/here" in said and "40 queries" in said
    status, _, complaint = datas3("deployments", "geod", capsys=capsys)
    assert status == 2 and "Did you mean 'geode'" in complaint
