"""MatchLabel and MatchDist: the query's classes, and its shares of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.selectors import MatchDist, MatchLabel


@pytest.fixture
def make(lake, make_pool):
    """``make(pool_labels, query_labels, fragments)`` fills the lake; ids are p000, p001, ..."""

    def fill(pool, query, fragments=3):
        ids = [f"p{i:03}" for i in range(len(pool))]
        make_pool(lake, "pool", ids, np.ones((len(pool), 2)), fragments=fragments, label=pa.array(pool))
        make_pool(lake, "query", [f"q{i}" for i in range(len(query))], np.ones((len(query), 2)), label=pa.array(query))
        return dict(zip(ids, pool, strict=True))

    return fill


def kept(selection, label) -> Counter:
    return Counter(label[name] for name in selection.ids().to_pylist())


def test_match_label_keeps_the_querys_classes(lake, make) -> None:
    label = make(["a", "b", None, "c", "b", "a", "d"], ["b", "d", "b", None, "z"])
    selection = MatchLabel().select(lake, "pool", query="query")
    assert kept(selection, label) == {"b": 2, "d": 1}
    lineage = selection.lineage()
    assert lineage["counts"]["invalid"] == 1
    assert lineage["report"] == {"classes": 3, "unlabelled_queries": 1, "missing_classes": 1, "missing": ["z"]}
    again = MatchLabel().select(lake, "pool", query="query", within=selection)
    assert set(again.ids().to_pylist()) == set(selection.ids().to_pylist())


def test_a_query_with_every_class_keeps_the_whole_pool(lake, make) -> None:
    make([3, 1, 2, 1], [1, 2, 3])
    assert len(MatchLabel().select(lake, "pool", query="query")) == 4


@pytest.mark.parametrize(
    ("policy", "rows", "copies", "distance", "missing"),
    [
        ("stop", {"a": 2, "b": 4}, {"a": 2, "b": 4}, 0.166667, 2),
        ("redistribute", {"a": 2, "b": 6}, {"a": 2, "b": 6}, 0.25, 0),
        ("oversample", {"a": 2, "b": 4}, {"a": 4, "b": 4}, 0.0, 0),
    ],
)
def test_the_three_policies(lake, make, policy, rows, copies, distance, missing) -> None:
    label = make(["b"] * 5 + ["a"] * 2 + ["b"] * 5 + ["c"] * 4, ["a", "b"])
    selection = MatchDist(size=8, on_shortage=policy).select(lake, "pool", query="query")
    assert kept(selection, label) == rows
    table = selection.to_arrow().to_pylist()
    assert {name: sum(row["copies"] for row in table if label[row["id"]] == name) for name in "ab"} == copies
    assert all((row["copies"] > 0) == row["keep"] for row in table)
    report = selection.lineage()["report"]
    assert report["total_variation"] == distance
    assert report["missing_rows"] == missing
    assert report["classes_short"] == 1


def test_oversampling_counts_the_first_drawn_once_more(lake, make) -> None:
    label = make(["a"] * 3 + ["b"] * 20, ["a", "b"])
    selection = MatchDist(size=16, on_shortage="oversample", seed=5).select(lake, "pool", query="query")
    copies = {row["id"]: row["copies"] for row in selection.to_arrow().to_pylist() if label[row["id"]] == "a"}
    draw = hash64(id_words(list(copies)), seed=5, stream="match_dist")
    first = [name for _, name in sorted(zip(draw, copies, strict=True))]
    assert [copies[name] for name in first] == [3, 3, 2]
    assert sum(row["copies"] for row in selection.to_arrow().to_pylist()) == 16


@pytest.mark.parametrize("fragments", [1, 5])
@pytest.mark.parametrize("size", [0, 1, 37, 150, 0.5])
def test_each_class_gives_its_first_drawn_rows(lake, make, fragments, size) -> None:
    rng = np.random.default_rng(4)
    label = make(rng.choice(["a", "b", "c", "d"], 160).tolist(), ["a"] * 5 + ["b"] * 3 + ["d"] * 2 + ["z"], fragments)
    selection = MatchDist(size=size, seed=2).select(lake, "pool", query="query")
    there = Counter(label.values())
    asked = 80 if size == 0.5 else size
    assert len(selection) == min(asked, there["a"] + there["b"] + there["d"])
    taken = kept(selection, label)
    assert taken["c"] == 0
    ids = list(label)
    draw = dict(zip(ids, hash64(id_words(ids), seed=2, stream="match_dist").tolist(), strict=True))
    for name in "abd":
        mine = sorted((n for n in ids if label[n] == name), key=lambda n: draw[n])
        assert {n for n in selection.ids().to_pylist() if label[n] == name} == set(mine[: taken[name]])
    if asked == 37:  # no class is short of its share of ten
        assert {name: abs(taken[name] - 37 * share / 10) < 1 for name, share in (("a", 5), ("b", 3), ("d", 2))} == {
            "a": True,
            "b": True,
            "d": True,
        }


def test_numbers_and_texts_are_one(lake, make_pool) -> None:
    make_pool(lake, "pool", list("abcd"), np.ones((4, 2)), kind=pa.array([1, 2, 2, 3], pa.int64()))
    make_pool(lake, "query", ["q"], np.ones((1, 2)), kind=["2"])
    assert MatchLabel(label="kind").select(lake, "pool", query="query").ids().to_pylist() == ["b", "c"]


@pytest.mark.parametrize("selector", [MatchLabel, lambda: MatchDist(size=2)])
def test_tables_without_labels(lake, make_pool, selector) -> None:
    make_pool(lake, "pool", ["a", "b"], np.ones((2, 2)), label=["x", "y"])
    make_pool(lake, "bare", ["q"], np.ones((1, 2)))
    make_pool(lake, "empty", ["q"], np.ones((1, 2)), label=pa.array([None], pa.string()))
    make_pool(lake, "real", ["q"], np.ones((1, 2)), label=[0.5])
    for query, sentence in (
        ("bare", "table 'bare' has no column 'label'"),
        ("empty", "query table 'empty' has no row with a label in column 'label'"),
        ("real", "column 'label' of table 'real' is double; labels are texts or whole numbers"),
    ):
        with pytest.raises(UsageError, match=sentence):
            selector().select(lake, "pool", query=query)
