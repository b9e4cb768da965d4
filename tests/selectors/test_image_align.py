"""ImageAlign: the x-th order statistic equals the rule "cosine above the threshold for at least x queries"."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import ImageAlign

# Rows whose cosines to the three axes are the known answers; a fourth coordinate makes them unit vectors.
KNOWN = {"A": (0.9, 0.1, 0.1), "B": (0.5, 0.5, 0.5), "C": (0.6, 0.6, 0.0)}


@pytest.fixture
def known(lake, make_pool):
    cosines = np.array(list(KNOWN.values()))
    rest = np.sqrt(1 - (cosines**2).sum(axis=1, keepdims=True))
    make_pool(lake, "pool", list(KNOWN), np.hstack([cosines, rest]), fragments=2)
    make_pool(lake, "query", ["q1", "q2", "q3"], np.eye(4)[:3])
    return lake


def ranking(selection) -> list[str]:
    rows = selection.to_arrow().sort_by([("score", "descending")])
    return rows.column("id").to_pylist()


@pytest.mark.parametrize(("x", "order"), [(1, "ACB"), (2, "CBA")])
def test_known_orders(known, x, order) -> None:
    assert ranking(ImageAlign(column="vec", x=x, size=3).select(known, "pool", query="query")) == list(order)


def test_the_third_largest_cosine_ranks_the_even_row_first(known) -> None:
    table = ImageAlign(column="vec", x=3, size=1).select(known, "pool", query="query").to_arrow()
    assert dict(zip(table.column("id").to_pylist(), table.column("score").to_pylist(), strict=True)) == pytest.approx(
        {"A": 0.1, "B": 0.5, "C": 0.0}, abs=1e-6
    )
    assert table.filter(table.column("keep")).column("id").to_pylist() == ["B"]


def test_mean_cosine(known) -> None:
    selection = ImageAlign(column="vec", form="mean", size=3).select(known, "pool", query="query")
    assert ranking(selection) == ["B", "C", "A"]


@pytest.mark.parametrize(("x", "kept"), [(1, {"A", "C"}), (2, {"C"}), (3, set())])
def test_known_thresholds(known, x, kept) -> None:
    selection = ImageAlign(column="vec", x=x, threshold=0.55).select(known, "pool", query="query")
    assert set(selection.ids().to_pylist()) == kept


def test_equals_counting_queries_above_the_threshold(lake, make_pool) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(300, 6)), rng.normal(size=(25, 6))
    ids = [f"{i:03}" for i in range(300)]
    make_pool(lake, "pool", ids, vectors, fragments=3)
    make_pool(lake, "query", [f"q{i}" for i in range(25)], queries)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = unit @ unit_queries.T
    for x, threshold in ((1, 0.8), (5, 0.4), (25, -0.9), (12, 0.033)):
        selection = ImageAlign(column="vec", x=x, threshold=threshold).select(lake, "pool", query="query")
        agree = (cosines > threshold).sum(axis=1)
        assert set(selection.ids().to_pylist()) == {ids[i] for i in np.flatnonzero(agree >= x)}


def test_more_agreement_than_there_are_queries_is_refused(known) -> None:
    with pytest.raises(UsageError, match=r"x = 4 queries .* has 3 rows"):
        ImageAlign(column="vec", x=4, size=1).select(known, "pool", query="query")
    with pytest.raises(UsageError, match="either size or threshold"):
        ImageAlign(column="vec")


def test_unusable_queries_are_left_out_and_reported(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b"], np.eye(2))
    make_pool(lake, "query", ["q", "zero"], [[1.0, 0.0], [0.0, 0.0]])
    selection = ImageAlign(column="vec", size=1).select(lake, "pool", query="query")
    assert selection.ids().to_pylist() == ["a"]
    assert selection.lineage()["report"] == {"queries": 1, "unusable_queries": 1}
    make_pool(lake, "zeros", ["z"], [[0.0, 0.0]])
    with pytest.raises(UsageError, match="query table 'zeros' has no usable vector"):
        ImageAlign(column="vec", size=1).select(lake, "pool", query="zeros")


@pytest.mark.parametrize(("threshold", "kept"), [(0.45, {"B"}), (0.38, {"B", "C"}), (0.6, set())])
def test_known_thresholds_of_the_mean(known, threshold, kept) -> None:
    """Mean cosines: A 1.1 / 3, B 0.5, C 0.4."""
    selector = ImageAlign(column="vec", form="mean", threshold=threshold)
    assert set(selector.select(known, "pool", query="query").ids().to_pylist()) == kept


def test_a_threshold_can_be_cut_by_size_afterwards(known) -> None:
    for form in ("order_statistic", "mean"):
        selection = ImageAlign(column="vec", form=form, x=1, threshold=-1.0).select(known, "pool", query="query")
        assert len(selection) == 3
        by_size = ImageAlign(column="vec", form=form, x=1, size=2).select(known, "pool", query="query")
        assert selection.resize(2).ids().to_pylist() == by_size.ids().to_pylist()
