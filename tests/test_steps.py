"""What a dry run says that a recipe would do, and what the recipe then does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from training.pictures import rows as pictures

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.recipe import parse_recipe, run_recipe

TINY = {"timm": "test_resnet", "weights": "random", "image_size": 32, "precision": "float32"}


@pytest.fixture
def filled(lake: Lake, make_pool) -> Lake:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    vectors = rng.normal(size=(120, 8)) + 3 * np.eye(8)[labels]
    columns = {"label": [f"c{label}" for label in labels], "site": [f"s{i % 20}" for i in range(120)]}
    make_pool(lake, "pool", [f"{i:03}" for i in range(120)], vectors, fragments=2, **columns)
    return lake


def split(share: list[float], name: str = "q", source: str = "pool") -> dict[str, Any]:
    return {"name": name, "split": {"from": source, "hash": "site", "share": share}}


def select(name: str, **body: Any) -> dict[str, Any]:
    return {"name": name, "select": {"from": "pool", **body}}


def score(**body: Any) -> dict[str, Any]:
    return {"name": "sc", "score": {"table": "pool", "column": "vec", "scores": ["el2n", "aum"], "epochs": 2, **body}}


def ran(lake: Lake, *steps: dict[str, Any], **options: Any) -> dict[str, bool]:
    """Which steps did something; the dry run before must have said so."""
    recipe = parse_recipe({"lake": lake.uri, "steps": copy.deepcopy(list(steps))})
    plan: list[str] = []
    run_recipe(recipe, dry_run=True, say=plan.append, **options)
    outcomes = run_recipe(recipe, say=lambda line: None, progress=False, **options)
    names = [step.name for step in recipe.steps]
    told = {
        name: not line.split(maxsplit=2)[2].startswith("up to date") for name, line in zip(names, plan, strict=True)
    }
    done = {name: not outcome.skipped for name, outcome in zip(names, outcomes, strict=True)}
    assert told == done, plan
    return done


def test_another_split_makes_what_is_chosen_from_its_pool_stale(filled: Lake) -> None:
    rest = [
        select("one", random={"size": 0.5}),
        select("two", random={"size": 0.5, "seed": 1}),
        {"name": "both", "combine": {"union": ["one", "two"]}},
        score(),
        select("hard", import_score={"score_column": "el2n", "size": 30}),
        select("even", stratified={"selection": "hard", "size": 10}),
    ]
    assert all(ran(filled, split([0.0, 0.2]), *rest).values())
    assert not any(ran(filled, split([0.0, 0.2]), *rest).values())
    assert all(ran(filled, split([0.5, 0.8]), *rest).values())
    # The pool's scores are others now, so that the split is made again; the rows that it sets aside are the same.
    again = ran(filled, split([0.5, 0.8]), *rest)
    assert [name for name, did in again.items() if not did] == ["sc"]
    assert not any(ran(filled, split([0.5, 0.8]), *rest).values())
    # A combination of selections that the recipe does not make.
    assert ran(filled, split([0.0, 0.3], "more"), rest[2]) == {"more": True, "both": True}


def test_other_scores_make_stale_what_reads_the_rows_and_nothing_else(filled: Lake) -> None:
    def steps(**changes: Any) -> list[dict[str, Any]]:
        return [
            split([0.0, 0.3]),
            score(**changes),
            {"name": "labels", "index": {"from": "pool", "columns": ["label"]}},
            {"name": "scores", "index": {"from": "pool", "columns": ["el2n"]}},
            select("hard", import_score={"score_column": "el2n", "size": 30}),
        ]

    ran(filled, *steps())
    assert not any(ran(filled, *steps()).values())
    done = ran(filled, *steps(seed=7))
    assert done == {"q": False, "sc": True, "labels": False, "scores": True, "hard": True}
    done = ran(filled, *steps(seed=7))
    assert done == {"q": True, "sc": False, "labels": False, "scores": False, "hard": True}
    assert not any(ran(filled, *steps(seed=7)).values())


def test_a_selection_that_a_method_reads_is_followed_and_comes_first(filled: Lake) -> None:
    hard = select("hard", random={"size": 30})
    even = select("even", stratified={"selection": "hard", "size": 10})
    ran(filled, hard, even)
    hard["select"]["random"]["size"] = 20
    assert ran(filled, hard, even) == {"hard": True, "even": True}
    hard["name"], even["select"]["stratified"]["selection"] = "later", "later"
    with pytest.raises(UsageError, match="step 'even' reads 'later', which comes later; move it up"):
        ran(filled, even, hard)
    with pytest.raises(UsageError, match="step 'even' reads 'later', which is neither an earlier step nor a table"):
        ran(filled, even)


def test_an_embedded_column_reaches_the_splits_that_are_there(lake: Lake) -> None:
    lake.add("pool", pictures(40, "p", 0))
    aside = {"name": "q", "split": {"from": "pool", "hash": "id", "share": [0.0, 0.3]}}
    small = {"name": "small", "split": {"from": "q", "hash": "id", "share": [0.0, 0.2]}}
    drawn = select("drawn", random={"size": 5})
    near = select("near", query="q", near_neighbors={"column": "w", "reading": "ranked", "size": 5})
    ran(lake, aside, small, drawn)
    embed = {"name": "e", "embed": {"from": "pool", "encoders": {"w": TINY}}}
    done = ran(lake, embed, aside, small, drawn, near)
    assert done == {"e": True, "q": True, "small": True, "drawn": False, "near": True}
    assert "w" in lake.table("small").vector_columns()
    assert not any(ran(lake, embed, aside, small, drawn, near).values())
    # A selection that is there and reads another column now.
    embed["embed"]["encoders"]["v"] = {**TINY, "image_size": 48}
    near["select"]["near_neighbors"]["column"] = "v"
    assert ran(lake, embed, aside, near) == {"e": True, "q": True, "near": True}
    # A column that some rows came without is filled in place: these are other rows then.
    lake.table("pool").dataset.insert(pictures(10, "n", 1))
    done = ran(lake, embed, aside, drawn)
    assert done == {"e": True, "q": True, "drawn": True}
    plan: list[str] = []
    lake.table("pool").dataset.merge(lake.table("pool").to_arrow(["id", "w"]).rename_columns(["id", "u"]), "id")
    run_recipe(parse_recipe({"lake": lake.uri, "steps": [aside]}), dry_run=True, say=plan.append)
    assert plan[0].endswith("add u to q")


def test_a_logic_over_selections_is_no_method(filled: Lake) -> None:
    for body in (["a", "b"], {"selections": ["a", "b"]}):
        with pytest.raises(
            UsageError, match=r"step 's': 'intersect' is no method .*: combine: \{intersect: \[a, b\]\}"
        ):
            parse_recipe({"lake": filled.uri, "steps": [select("s", intersect=body)]})
