"""Expert: a SQL predicate over the pool's columns."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import Expert, Random


@pytest.fixture
def pool(lake, make_pool):
    regions = [None if i % 10 == 0 else ("north" if i % 2 else "south") for i in range(100)]
    widths = list(range(100))
    return make_pool(
        lake, "pool", [f"{i:02}" for i in range(100)], np.ones((100, 2)), fragments=3, region=regions, width=widths
    )


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("region = 'north'", lambda i: i % 2 == 1),
        ("region = 'north' AND width >= 50", lambda i: i % 2 == 1 and i >= 50),
        ("region IS NULL", lambda i: i % 10 == 0),
        ("region = 'west'", lambda i: False),
    ],
)
def test_keeps_what_matches(lake, pool, where, kept) -> None:
    selection = Expert(where).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {f"{i:02}" for i in range(100) if kept(i)}
    assert selection.to_arrow().num_rows == 100


def test_inside_a_parent(lake, pool) -> None:
    parent = Random(size=30).select(lake, "pool", name="parent")
    selection = Expert("width < 50").select(lake, "pool", within="parent")
    assert set(selection.ids().to_pylist()) == {name for name in parent.ids().to_pylist() if int(name) < 50}


@pytest.mark.parametrize("where", ["regionn = 'north'", "region = ", "region = 'north' AND"])
def test_predicates_that_do_not_parse(lake, pool, where) -> None:
    with pytest.raises(UsageError, match="does not work on table 'pool'") as refused:
        Expert(where).select(lake, "pool")
    assert ".rs:" not in str(refused.value), "where the engine's own code complains is nothing to the reader"
    assert lake.names() == ["pool"]


def test_a_predicate_that_fails_on_a_later_row_only(lake, make_pool) -> None:
    make_pool(lake, "late", ["a", "b", "c", "d"], np.eye(4), fragments=4, code=["1", "5", "7", "x"])
    with pytest.raises(UsageError, match="where = 'cast.code as int. > 3' does not work on table 'late'"):
        Expert("cast(code as int) > 3").select(lake, "late")
    assert lake.names() == ["late"]


def test_the_predicate_is_given_once() -> None:
    assert Expert(where="a > 1") == Expert("a > 1")
    with pytest.raises(UsageError, match="'where' is given twice"):
        Expert("a > 1", where="b > 1")
