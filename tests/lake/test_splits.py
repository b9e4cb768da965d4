"""Rows set aside by a predicate or a hash are copied once and never selected."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.lake.splits import Split, held_out_ids, split_table
from datas3_ray.selectors import Everything, Random


@pytest.fixture
def pool(lake, make_pool):
    rng = np.random.default_rng(0)
    sites = [f"site-{i % 20}" for i in range(400)]
    regions = ["north" if i % 2 else "south" for i in range(400)]
    ids = [f"r{i:03}" for i in range(400)]
    return make_pool(lake, "pool", ids, rng.normal(size=(400, 4)), fragments=3, site=sites, region=regions)


def test_a_hash_keeps_equal_values_together(lake, pool) -> None:
    query = split_table(lake, "pool", "query", Split(hash="site", share=(0.0, 0.3)))
    test = split_table(lake, "pool", "test", Split(hash="site", share=(0.3, 0.6)))
    rest = split_table(lake, "pool", "rest", Split(hash="site", share=(0.6, 1.0)))
    sites = [set(table.to_arrow(["site"]).column("site").to_pylist()) for table in (query, test, rest)]
    assert sum(map(len, sites)) == 20
    assert not (sites[0] & sites[1] or sites[1] & sites[2] or sites[0] & sites[2])
    assert sum(table.count_rows() for table in (query, test, rest)) == 400


def test_another_seed_draws_other_values(lake, pool) -> None:
    one = split_table(lake, "pool", "one", Split(hash="site", share=(0.0, 0.5), seed=1))
    two = split_table(lake, "pool", "two", Split(hash="site", share=(0.0, 0.5), seed=2))
    assert one.to_arrow(["id"]) != two.to_arrow(["id"])


def test_rows_set_aside_are_in_no_selection(lake, pool) -> None:
    query = split_table(lake, "pool", "query", Split(where="region = 'north'", hash="site", share=(0.0, 0.5)))
    aside = set(query.to_arrow(["id"]).column("id").to_pylist())
    assert aside == set(held_out_ids(lake, "pool").to_pylist())
    everything = Everything().select(lake, "pool", name="everything")
    assert len(everything) == 400 - len(aside)
    assert not aside & set(everything.ids().to_pylist())
    counts = everything.lineage()["counts"]
    assert counts["held_out"] == len(aside)
    assert counts["eligible"] + counts["held_out"] == counts["rows"] == 400
    drawn = Random(size=1.0).select(lake, "pool", name="random")
    assert set(drawn.ids().to_pylist()) == set(everything.ids().to_pylist())


def test_a_new_split_makes_selections_stale(lake, pool) -> None:
    everything = Everything()
    everything.select(lake, "pool", name="everything")
    assert everything.is_current(lake, "pool", "everything")
    split_table(lake, "pool", "query", Split(where="region = 'north'"))
    assert not everything.is_current(lake, "pool", "everything")


def test_values_that_are_missing_stay_in_the_pool(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b", "c"], np.eye(3), site=["x", None, "x"])
    split = split_table(lake, "pool", "all", Split(hash="site", share=(0.0, 1.0)))
    assert split.to_arrow(["id"]).column("id").to_pylist() == ["a", "c"]


def test_the_same_split_is_not_written_twice_and_another_needs_to_be_asked_for(lake, pool) -> None:
    split = Split(where="region = 'north'")
    version = split_table(lake, "pool", "query", split).version
    assert split_table(lake, "pool", "query", split).version == version
    other = Split(where="region = 'south'")
    with pytest.raises(UsageError, match="split 'query' exists and was made otherwise"):
        split_table(lake, "pool", "query", other)
    assert split_table(lake, "pool", "query", other, replace=True).version > version


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (Split(where="region = 'west'"), "where region = 'west' matches nothing"),
        (Split(where="regionn = 'north'"), "does not work on table 'pool'"),
        (Split(hash="sites", share=(0, 1)), "has no column 'sites'.*Did you mean 'site'"),
    ],
)
def test_what_cannot_be_meant_leaves_the_lake_as_it_was(lake, pool, split, says) -> None:
    with pytest.raises(UsageError, match=says):
        split_table(lake, "pool", "query", split)
    assert lake.names() == ["pool"]


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_shares_must_be_ranges(share) -> None:
    with pytest.raises(ValueError, match="share must be"):
        Split(hash="site", share=share)
    with pytest.raises(ValueError, match="belong together"):
        Split(hash="site")
