"""The step auto: what it plans and what it counts as done."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datas3_ray import Lake
from datas3_ray.recipe import parse_recipe, run_recipe

SWEEP = {"grid": {"batch_size": 32, "lr": 0.02}, "epochs": 10}


@pytest.fixture
def filled(lake: Lake, make_pool) -> Lake:
    rng = np.random.default_rng(0)
    for name, count in (("pool", 120), ("query", 40), ("test", 40)):
        labels = np.arange(count) % 2
        vectors = rng.normal(size=(count, 4)) + 3 * np.eye(4)[labels]
        right = np.arange(count) % 4 < 2 if name == "pool" else np.ones(count, bool)
        columns = {"label": [f"c{label}" for label in np.where(right, labels, 1 - labels)], "right": right.tolist()}
        make_pool(lake, name, [f"{name}{i:03}" for i in range(count)], vectors, **columns)
    return lake


def test_a_search_that_was_done_is_planned_as_such(filled: Lake, tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "from": "pool",
        "query": "query",
        "test": "test",
        "column": "vec",
        "candidates": [{"expert": {"where": ["right"]}}, {"stratified": {"selection": "some", "size": 20}}],
        "probe": SWEEP,
        "config": SWEEP,
    }
    first = [{"name": "some", "select": {"from": "pool", "random": {"size": 60}}}]
    rest = [{"name": "here", "auto": body}, {"name": "page", "report": {"samples": 0}}]

    def ran(*before: dict[str, Any]) -> list[bool]:
        steps = copy.deepcopy([*before, *first, *rest])
        recipe = parse_recipe({"lake": filled.uri, "output": str(tmp_path / "out"), "steps": steps})
        plan: list[str] = []
        run_recipe(recipe, dry_run=True, say=plan.append)
        outcomes = run_recipe(recipe, say=lambda line: None, progress=False)
        done = [not outcome.skipped for outcome in outcomes]
        assert [" up to date" not in line for line in plan] == done, plan
        return done

    assert ran() == [True, True, True]
    assert ran() == [False, False, False]
    # One more candidate, which does not win: only probes are trained.
    body["candidates"][0]["expert"]["where"].append("NOT right")
    trained = filled.results().num_rows
    assert ran() == [False, True, True]
    assert filled.results("here.probes").num_rows > 2
    assert filled.results().num_rows == trained
    assert ran() == [False, False, False]
    # What a candidate reads is followed too, and the rows that are set aside.
    first[0]["select"]["random"]["size"] = 50
    assert ran() == [True, True, True]
    aside = {"name": "aside", "split": {"from": "pool", "hash": "id", "share": [0.0, 0.1]}}
    assert ran(aside) == [True, True, True, True]
    assert ran(aside) == [False, False, False, False]
