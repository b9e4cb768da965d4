"""Selection algebra: logic over selections of one pool, whatever its fragments are."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.lake.algebra import combine
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Expert, ImageAlign, Random

IDS = [f"{i:02}" for i in range(40)]


@pytest.fixture
def pool(lake, make_pool):
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    make_pool(lake, "pool", IDS, vectors, fragments=3, number=list(range(40)))
    Expert("number < 25").select(lake, "pool", name="low")
    Expert("number % 2 = 0").select(lake, "pool", name="even")
    Random(size=10, seed=1).select(lake, "pool", name="few")
    return lake


def kept(selection) -> set[int]:
    return {int(name) for name in selection.ids().to_pylist()}


LOW, EVEN = set(range(25)), set(range(0, 40, 2))


@pytest.mark.parametrize(
    ("operation", "answer"), [("union", LOW | EVEN), ("intersect", LOW & EVEN), ("minus", LOW - EVEN)]
)
def test_logic_of_two(pool, operation, answer) -> None:
    selection = combine(pool, operation, ["low", "even"], "c")
    assert kept(selection) == answer
    counts = selection.lineage()["counts"]
    assert counts == {
        "rows": 40,
        "outside": 0,
        "held_out": 0,
        "invalid": 0,
        "eligible": 40,
        "kept": len(answer),
        "dropped": 40 - len(answer),
        "shortfall": 0,
    }
    table = selection.to_arrow()
    assert table.column("id").to_pylist() == IDS
    assert table.column("kept_by").to_pylist() == [(i in LOW) + (i in EVEN) for i in range(40)]
    assert set(table.column("score").to_pylist()) == {1.0}
    lineage = selection.lineage()
    assert lineage["method"] == "combine"
    assert lineage["parameters"] == {operation: ["low", "even"]}
    assert lineage["inputs"] == {name: pool.table(name).version for name in ("pool", "low", "even")}
    assert lineage["report"] == {"kept": {"low": 25, "even": 20}}
    with pytest.raises(UsageError, match="has no ranking to cut"):
        selection.resize(3)


def test_logic_of_three(pool) -> None:
    few = kept(pool.selection("few"))
    assert kept(combine(pool, "union", ["few", "low", "even"])) == few | LOW | EVEN
    assert kept(combine(pool, "intersect", ["few", "low", "even"])) == few & LOW & EVEN
    assert kept(combine(pool, "minus", ["few", "low", "even"])) == few - LOW - EVEN


def test_the_score_is_the_firsts(pool) -> None:
    few = pool.selection("few").to_arrow()
    combined = combine(pool, "intersect", ["few", "low"]).to_arrow()
    assert combined.column("score").to_pylist() == few.column("score").to_pylist()


@pytest.mark.parametrize(("operation", "eligible"), [("union", 32), ("intersect", 13), ("minus", 25)])
def test_eligible_rows_differ_among_the_inputs(pool, operation, eligible) -> None:
    Expert("number % 3 = 0").select(pool, "pool", within="low", name="a")  # eligible: low
    Random(size=3).select(pool, "pool", within="even", name="b")  # eligible: even
    a, b = {i for i in range(25) if i % 3 == 0}, kept(pool.selection("b"))
    selection = combine(pool, operation, ["a", "b"])
    assert selection.lineage()["counts"]["eligible"] == eligible
    assert selection.lineage()["counts"]["outside"] == 40 - eligible
    assert kept(selection) == {"union": a | b, "intersect": a & b, "minus": a - b}[operation]


def test_it_can_be_a_parent_and_be_combined_again(pool, make_pool) -> None:
    combine(pool, "minus", ["low", "even"], "odd-low")
    make_pool(pool, "query", ["q"], np.ones((1, 4)))
    near = ImageAlign(column="vec", size=5).select(pool, "pool", within="odd-low", query="query", name="near")
    assert kept(near) <= LOW - EVEN
    assert len(near) == 5
    assert kept(combine(pool, "union", ["near", "few"])) == kept(near) | kept(pool.selection("few"))


def test_after_the_pool_grew_and_was_compacted(pool, make_pool) -> None:
    expected = kept(combine(pool, "minus", ["low", "even"], "before"))
    make_pool(pool, "pool", ["99"], np.ones((1, 4)), number=[99])
    grown = combine(pool, "minus", ["low", "even"], "grown")
    assert kept(grown) == expected
    assert grown.lineage()["counts"] | {"rows": 0, "outside": 0} == pool.selection("before").lineage()["counts"] | {
        "rows": 0,
        "outside": 0,
    }
    Random(size=41).select(pool, "pool", name="all")
    pool.table("pool").dataset.optimize.compact_files()
    assert kept(combine(pool, "minus", ["low", "even"], "compacted")) == expected
    # One that is aligned to the pool as it is now, with one that is not.
    Random(size=41, seed=2).select(pool, "pool", name="all-now")
    assert kept(combine(pool, "intersect", ["all-now", "low", "all"], "mixed")) == LOW


def test_rows_set_aside_since_are_left_out(pool) -> None:
    split_table(pool, "pool", "test", Split(where="number < 5"))
    selection = combine(pool, "union", ["low", "even"])
    assert kept(selection) == (LOW | EVEN) - set(range(5))
    assert selection.lineage()["counts"]["held_out"] == 5


def test_made_once_and_replaced_on_request(pool) -> None:
    first = combine(pool, "union", ["low", "even"], "c")
    assert combine(pool, "union", ["low", "even"], "c").table.version == first.table.version
    with pytest.raises(UsageError, match="'c' exists and was made otherwise"):
        combine(pool, "union", ["low", "few"], "c")
    again = combine(pool, "union", ["low", "few"], "c", replace=True)
    assert kept(again) == LOW | kept(pool.selection("few"))
    with pytest.raises(UsageError, match="cannot be replaced by a combination of itself"):
        combine(pool, "union", ["c", "even"], "c", replace=True)
    with pytest.raises(UsageError, match="'pool' is a table of kind image already"):
        combine(pool, "union", ["low", "even"], "pool")


def test_mistakes(pool, make_pool) -> None:
    make_pool(pool, "other", ["x", "y"], np.eye(2))
    Random(size=1).select(pool, "other", name="elsewhere")
    names = pool.names()
    for operation, selections, sentence in (
        ("unoin", ["low", "even"], "no operation 'unoin'.*Did you mean 'union'"),
        ("union", ["low"], "union needs two selections or more, got low"),
        ("minus", ["low", "even", "low"], "minus names 'low' more than once"),
        ("union", ["low", "evven"], "no table 'evven'.*Did you mean 'even'"),
        ("union", ["low", "pool"], "'pool' is a table of kind image, not a selection"),
        ("union", ["low", "elsewhere"], "'low' was made from table 'pool' and 'elsewhere' from 'other'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            combine(pool, operation, selections)
    assert pool.names() == names
