"""The recipe step that combines selections."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.recipe import parse_recipe, run_recipe

STEPS = [
    {"name": "low", "select": {"from": "pool", "expert": {"where": "number < 25"}}},
    {"name": "even", "select": {"from": "pool", "expert": {"where": "number % 2 = 0"}}},
    {"name": "both", "combine": {"intersect": ["low", "even"]}},
    {"name": "three", "select": {"from": "pool", "within": "both", "random": {"size": 3}}},
]


@pytest.fixture
def raw(lake, make_pool):
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], np.ones((40, 2)), fragments=2, number=list(range(40)))
    return {"lake": lake.uri, "steps": STEPS}


def test_runs_skips_and_follows_a_change(lake, raw) -> None:
    lines: list[str] = []
    outcomes = run_recipe(parse_recipe(raw), say=lines.append, progress=False)
    assert [outcome.skipped for outcome in outcomes] == [False] * 4
    assert "13 of 40 rows kept (32.5%)" in lines[2]
    assert {int(name) for name in lake.selection("three").ids().to_pylist()} <= set(range(0, 25, 2))
    assert all(outcome.skipped for outcome in run_recipe(parse_recipe(raw), say=lines.append, progress=False))
    changed = parse_recipe(raw, overrides=["steps.low.select.expert.where=number < 5"])
    plan: list[str] = []
    run_recipe(changed, dry_run=True, say=plan.append)
    assert [("up to date" in line) for line in plan] == [False, True, False, False]
    assert "will run, since low will change" in plan[2]
    assert [outcome.skipped for outcome in run_recipe(changed, say=lines.append, progress=False)] == [
        False,
        True,
        False,
        False,
    ]
    assert lake.selection("both").ids().to_pylist() == ["00", "02", "04"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"unite": ["low", "even"]}, "step 'both': unknown key 'unite'; it takes: union, intersect, minus"),
        ({}, "step 'both': exactly one of union, intersect, minus is needed, got none"),
        ({"union": ["low", "even"], "minus": ["low", "even"]}, "exactly one of .* is needed, got union, minus"),
        ({"union": "low"}, r"'union' takes a list of selections such as \[a, b\], got 'low'"),
        ({"union": ["low"]}, "step 'both': union needs two selections or more, got low"),
        ({"union": ["low", "odd"]}, "step 'both' reads 'odd', which is neither an earlier step nor a table"),
    ],
)
def test_mistakes(raw, body, sentence) -> None:
    steps = [*STEPS[:2], {"name": "both", "combine": body}]
    with pytest.raises(UsageError, match=sentence):
        parse_recipe({**raw, "steps": steps})
