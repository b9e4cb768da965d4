"""Rows set aside by a predicate or a hash are copied once and never selected."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import vector_field
from datas3_ray.lake.splits import Split, held_out_ids, split_is_current, split_table, splits_of
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
    assert aside == set(held_out_ids(splits_of(lake, "pool")).to_pylist())
    everything = Everything().select(lake, "pool", name="everything")
    assert len(everything) == 400 - len(aside)
    assert not aside & set(everything.ids().to_pylist())
    counts = everything.lineage()["counts"]
    assert counts["held_out"] == len(aside)
    assert counts["eligible"] + counts["held_out"] == counts["rows"] == 400
    drawn = Random(size=1.0).select(lake, "pool", name="random")
    assert set(drawn.ids().to_pylist()) == set(everything.ids().to_pylist())


def test_a_split_gets_the_vectors_that_its_pool_got_since(lake, pool) -> None:
    split = Split(where="region = 'north'", hash="site", share=(0.0, 0.5))
    before = split_table(lake, "pool", "query", split)
    everything = Everything()
    everything.select(lake, "pool", name="everything")
    assert split_is_current(lake, "pool", "query", split)
    rng = np.random.default_rng(1)
    ids = rng.permutation([f"r{i:03}" for i in range(400)])
    vectors = dict(zip(ids.tolist(), rng.normal(size=(400, 3)).astype(np.float32).tolist(), strict=True))
    field = vector_field("w", 3, {"weights": "mine"})
    columns = [pa.array(list(vectors)), pa.array(list(vectors.values()), field.type)]
    pool = lake.table("pool")
    pool.dataset.merge(pa.Table.from_arrays(columns, schema=pa.schema([pa.field("id", pa.string()), field])), "id")
    assert not split_is_current(lake, "pool", "query", split)
    after = split_table(lake, "pool", "query", split)
    assert split_is_current(lake, "pool", "query", split)
    assert after.to_arrow(before.schema.names) == before.to_arrow()
    rows = after.to_arrow(["id", "w"]).to_pylist()
    assert len(rows) > 50
    assert all(row["w"] == vectors[row["id"]] for row in rows)
    assert after.encoder("w") == {"weights": "mine"}
    assert after.content_mark == before.content_mark
    assert after.lineage() == before.lineage()
    assert everything.is_current(lake, "pool", "everything")
    assert split_table(lake, "pool", "query", split).version == after.version


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
        (Split(where="regionn = 'north'"), r"on table 'pool': No field named regionn\. Did you mean 'region'\?$"),
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


def labels_of(table) -> dict[str, int]:
    return dict(Counter(table.to_arrow(["label"]).column("label").to_pylist()))


@pytest.fixture
def labelled(lake, make_pool):
    labels = [["cat", "dog", "owl", None][i % 4] for i in range(400)]
    ids = [f"r{i:03}" for i in range(400)]
    return make_pool(lake, "pool", ids, np.ones((400, 4)), fragments=3, label=labels, half=[i % 2 for i in range(400)])


def test_a_number_of_rows_is_drawn_by_a_hash(lake, labelled) -> None:
    one = split_table(lake, "pool", "one", Split(rows=37))
    assert one.count_rows() == 37 and one.lineage()["counts"]["shortfall"] == 0
    smaller = split_table(lake, "pool", "smaller", Split(rows=12))
    ids = [set(table.to_arrow(["id"]).column("id").to_pylist()) for table in (one, smaller)]
    assert ids[1] < ids[0]
    other = split_table(lake, "pool", "other", Split(rows=37, seed=1))
    assert set(other.to_arrow(["id"]).column("id").to_pylist()) != ids[0]
    few = split_table(lake, "pool", "few", Split(where="half = 1", rows=1000, hash="id", share=(0.0, 0.5)))
    assert few.count_rows() == 1000 - few.lineage()["counts"]["shortfall"] < 200


def test_the_draw_does_not_depend_on_fragments_or_order(lake, make_pool, labelled) -> None:
    rows = labelled.to_arrow(["id", "label"])
    back = rows.take(np.arange(400)[::-1].copy())
    columns = {"label": back.column("label").to_pylist(), "half": [0] * 400}
    make_pool(lake, "turned", back.column("id").to_pylist(), np.ones((400, 4)), fragments=7, **columns)
    split = Split(rows=50, stratify="label")
    drawn = [split_table(lake, table, f"q-{table}", split).to_arrow(["id"]) for table in ("pool", "turned")]
    assert drawn[0].num_rows == 50 and drawn[0].sort_by("id") == drawn[1].sort_by("id")


def test_strata_follow_the_rows_drawn_from_or_another_table(lake, labelled, make_pool) -> None:
    even = split_table(lake, "pool", "even", Split(rows=30, stratify="label"))
    assert labels_of(even) == {"cat": 10, "dog": 10, "owl": 10}
    make_pool(lake, "test", list("abcde"), np.ones((5, 4)), label=["cat", "cat", "cat", "dog", "bear"], half=[0] * 5)
    like = split_table(lake, "pool", "like", Split(rows=40, stratify="label", like="test"))
    assert labels_of(like) == {"cat": 30, "dog": 10}
    assert like.lineage()["inputs"].keys() == {"pool", "test"}
    # There are 100 cats; what they cannot give the dogs do.
    many = split_table(lake, "pool", "many", Split(rows=150, stratify="label", like="test"))
    assert labels_of(many) == {"cat": 100, "dog": 50}


def test_a_split_is_stale_when_the_table_it_follows_has_changed(lake, labelled, make_pool) -> None:
    columns = {"label": ["cat", "dog"], "half": [0, 0]}
    make_pool(lake, "test", ["a", "b"], np.ones((2, 4)), **columns)
    split = Split(rows=40, stratify="label", like="test")
    assert not split_is_current(lake, "pool", "query", split)
    split_table(lake, "pool", "query", split)
    assert split_is_current(lake, "pool", "query", split)
    make_pool(lake, "test", ["c", "d"], np.ones((2, 4)), **columns)
    assert not split_is_current(lake, "pool", "query", split)


def test_what_cannot_be_drawn_is_one_sentence(lake, labelled, make_pool) -> None:
    make_pool(lake, "test", ["a"], np.ones((1, 4)), label=["bear"], half=[0])
    with pytest.raises(UsageError, match="label as in test matches nothing"):
        split_table(lake, "pool", "query", Split(rows=5, stratify="label", like="test"))
    with pytest.raises(UsageError, match="no column 'lable'"):
        split_table(lake, "pool", "query", Split(rows=5, stratify="lable"))
    with pytest.raises(UsageError, match="no table 'tests'"):
        split_table(lake, "pool", "query", Split(rows=5, stratify="label", like="tests"))
    for wrong in ({"stratify": "label", "where": "half = 1"}, {"rows": 3, "like": "test"}, {"rows": 0}, {}):
        with pytest.raises(ValidationError):
            Split(**wrong)
