"""Stratified: coverage-centric selection against a plain reading of its algorithm."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.strata import stratum_counts
from datas3_ray.selectors import Expert, ImageAlign, ImportScore, Random, Stratified


def brute_force(ids, value, size, bins, beta, hardest, seed) -> set[str]:
    draw = dict(zip(ids, hash64(id_words(ids), seed=seed, stream="stratified").tolist(), strict=True))
    of = dict(zip(ids, value, strict=True))
    easiest = sorted(ids, key=lambda name: (of[name] if hardest == "highest" else -of[name], name))
    dropped = min(math.floor(beta * len(ids) + 0.5), len(ids) - size)
    left = easiest[: len(ids) - dropped]
    low, high = min(of[name] for name in left), max(of[name] for name in left)
    strata: list[list[str]] = [[] for _ in range(bins)]
    for name in left:
        place = 0 if high == low else min(bins - 1, math.floor((of[name] - low) / (high - low) * bins))
        strata[place].append(name)
    kept = set()
    for stratum, budget in zip(strata, stratum_counts([len(s) for s in strata], size), strict=True):
        kept |= set(sorted(stratum, key=lambda name: draw[name])[:budget])
    return kept


@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize(("beta", "hardest"), [(0.0, "highest"), (0.25, "highest"), (0.25, "lowest"), (0.9, "lowest")])
@pytest.mark.parametrize("levels", [4, 1000, 1])
def test_equals_brute_force(lake, make_pool, fragments, beta, hardest, levels) -> None:
    rng = np.random.default_rng(levels)
    ids = [f"{i:03}" for i in rng.permutation(140)]
    value = (rng.integers(0, levels, 140) ** 2 / 8).tolist()
    make_pool(lake, "pool", ids, np.ones((140, 2)), fragments=fragments, el2n=value)
    selector = Stratified(score_column="el2n", size=50, bins=8, beta=beta, hardest=hardest, seed=4)
    selection = selector.select(lake, "pool")
    assert set(selection.ids().to_pylist()) == brute_force(ids, value, 50, 8, beta, hardest, 4)
    assert len(selection) == 50
    rows = selection.to_arrow().to_pylist()
    assert {row["id"]: row["value"] for row in rows} == dict(zip(ids, value, strict=True))
    dropped = selection.lineage()["report"]["dropped_hardest"]
    assert sum(row["stratum"] == -1 for row in rows) == dropped == min(math.floor(beta * 140 + 0.5), 90)


def test_known_answer(lake, make_pool) -> None:
    # Strata [0, 1), [1, 2), [2, 3]: 1, 5 and 3 rows; 7 rows are 1, 3 and 3.
    value = [0.0, 1.0, 1.2, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0, 9.0]
    make_pool(lake, "pool", list("abcdefghij"), np.ones((10, 2)), fragments=3, loss=value)
    selection = Stratified(score_column="loss", size=7, bins=3, beta=0.1).select(lake, "pool")
    kept = [row for row in selection.to_arrow().to_pylist() if row["keep"]]
    assert np.bincount([row["stratum"] for row in kept]).tolist() == [1, 3, 3]
    report = selection.lineage()["report"]
    assert (report["lowest"], report["highest"], report["dropped_hardest"]) == (0.0, 3.0, 1)
    assert (report["strata_with_rows"], report["strata_kept_whole"], report["largest_budget"]) == (3, 2, 3)


def test_rows_without_a_finite_score_are_invalid(lake, make_pool) -> None:
    value = pa.array([1.0, None, float("nan"), float("inf"), 2.0, 3.0])
    make_pool(lake, "pool", list("abcdef"), np.ones((6, 2)), fragments=2, loss=value)
    selection = Stratified(score_column="loss", size=10).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {"a", "e", "f"}
    counts = selection.lineage()["counts"]
    assert (counts["invalid"], counts["eligible"], counts["shortfall"]) == (3, 3, 7)


@pytest.mark.parametrize("compacted", [False, True])
def test_scores_of_another_selection(lake, make_pool, compacted) -> None:
    rng = np.random.default_rng(5)
    ids, vectors = [f"{i:02}" for i in rng.permutation(90)], rng.normal(size=(90, 3))
    make_pool(lake, "pool", ids, vectors, fragments=4)
    make_pool(lake, "query", ["q"], np.ones((1, 3)))
    ImageAlign(column="vec", x=1, size=60).select(lake, "pool", query="query", name="near")
    make_pool(lake, "pool", ["late"], np.ones((1, 3)))  # has no score, so it is invalid
    parent = Random(size=70).select(lake, "pool", name="parent")
    if compacted:
        lake.table("pool").dataset.optimize.compact_files()
    selector = Stratified(selection="near", size=20, bins=5, hardest="lowest", seed=1)
    selection = selector.select(lake, "pool", within="parent", name="s")
    near = {row["id"]: row["score"] for row in lake.selection("near").to_arrow().to_pylist()}
    inside = [name for name in parent.ids().to_pylist() if name != "late"]
    wanted = brute_force(inside, [near[name] for name in inside], 20, 5, 0, "lowest", 1)
    assert set(selection.ids().to_pylist()) == wanted
    lineage = selection.lineage()
    assert lineage["counts"]["invalid"] == 70 - len(inside)
    assert lineage["inputs"]["near"] == lake.table("near").version
    assert selector.is_current(lake, "pool", "s", within="parent")


def test_another_selection_under_the_same_name_makes_it_stale(lake, make_pool) -> None:
    make_pool(lake, "pool", list("abcd"), np.ones((4, 2)), one=[1.0, 2.0, 3.0, 4.0], two=[4.0, 3.0, 2.0, 1.0])
    selector = Stratified(selection="scores", size=2)
    assert not selector.is_current(lake, "pool", "s")  # a plan can be made before the scores are there
    ImportScore(score_column="one", size=1).select(lake, "pool", name="scores")
    selector.select(lake, "pool", name="s")
    assert selector.is_current(lake, "pool", "s")
    ImportScore(score_column="two", size=1).select(lake, "pool", name="scores", replace=True)
    assert not selector.is_current(lake, "pool", "s")


def test_mistakes(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a"], np.ones((1, 2)), word=["x"])
    make_pool(lake, "other", ["a"], np.ones((1, 2)))
    Random(size=1).select(lake, "other", name="elsewhere")
    with pytest.raises(UsageError, match="selection 'elsewhere' was made from table 'other', not from 'pool'"):
        Stratified(selection="elsewhere", size=1).select(lake, "pool")
    with pytest.raises(UsageError, match="no table 'nothing'"):
        Stratified(selection="nothing", size=1).select(lake, "pool")
    with pytest.raises(UsageError, match="column 'word' of table 'pool' is string"):
        Stratified(score_column="word", size=1).select(lake, "pool")
    for wrong in ({}, {"score_column": "a", "selection": "b"}):
        with pytest.raises(UsageError, match="stratified: give either score_column or selection"):
            Stratified(size=1, **wrong)
    with pytest.raises(UsageError, match="stratified: beta = 1"):
        Stratified(score_column="a", size=1, beta=1)


def test_scores_that_are_nowhere(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b"], np.eye(2), empty=pa.array([None, None], pa.float64()))
    Expert("id = 'a'").select(lake, "pool", name="no-scores")
    for parameters in ({"selection": "no-scores"}, {"score_column": "empty"}):
        with pytest.raises(UsageError, match="stratified: of the 2 rows of table 'pool' to choose from, none has"):
            Stratified(size=1, **parameters).select(lake, "pool")
