"""DomainClassifier: ratios from models that saw nothing of the row's fold, and draws that follow them."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.logistic import fit_logistic
from datas3_ray.selectors import DomainClassifier


@pytest.fixture
def blobs(lake, make_pool):
    """800 rows near one axis and 200 near another; the query comes from the small blob alone."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(4)[:2], [800, 200], axis=0) + 0.2 * rng.normal(size=(1000, 4))
    make_pool(lake, "pool", [f"{i:04}" for i in range(1000)], vectors, fragments=3)
    queries = np.eye(4)[1] + 0.2 * rng.normal(size=(60, 4))
    make_pool(lake, "query", [f"q{i:02}" for i in range(60)], queries)
    return lake, vectors, queries


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_equal_cross_fitting_written_out(blobs) -> None:
    lake, vectors, queries = blobs
    selection = DomainClassifier(column="vec", size=100, folds=3, l2=0.01).select(lake, "pool", query="query")
    ids = [f"{i:04}" for i in range(1000)]
    fold = hash64(id_words(ids), seed=0, stream="domain-folds") % np.uint64(3)
    names = hash64(id_words([f"q{i:02}" for i in range(60)]), seed=0, stream="domain-folds")
    query_fold = np.argsort(np.argsort(names)) % 3
    expected = np.empty(1000)
    for number in range(3):
        fit = fit_logistic(unit(queries)[query_fold != number], unit(vectors)[fold != number], 0.01)
        expected[fold == number] = fit.log_odds(unit(vectors)[fold == number])
    table = selection.to_arrow()
    np.testing.assert_allclose(table.column("log_ratio").to_numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(table.column("score").to_numpy(), table.column("log_ratio").to_numpy())
    assert selection.lineage()["report"]["trained_on"] == 1000
    assert all(int(name) >= 800 for name in selection.ids().to_pylist())


def test_a_query_like_the_pool_cannot_be_told_from_it(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    make_pool(lake, "pool", [f"{i:04}" for i in range(600)], rng.normal(size=(600, 5)), fragments=2)
    make_pool(lake, "query", [f"q{i:03}" for i in range(200)], rng.normal(size=(200, 5)))
    report = DomainClassifier(column="vec", size=10).select(lake, "pool", query="query").lineage()["report"]
    assert report["held_out_auc"] == pytest.approx(0.5, abs=0.1)
    assert report["mean_weight"] == pytest.approx(1, abs=0.15)


def test_drawing_adds_noise_to_the_same_ratios(blobs) -> None:
    lake, _, _ = blobs
    best = DomainClassifier(column="vec", size=100).select(lake, "pool", query="query").to_arrow()
    drawn = DomainClassifier(column="vec", size=100, sample=True).select(lake, "pool", query="query").to_arrow()
    assert best.column("log_ratio").equals(drawn.column("log_ratio"))
    assert not best.column("keep").equals(drawn.column("keep"))
    small = np.array([int(name) >= 800 for name in drawn.column("id").to_pylist()])
    assert drawn.column("keep").to_numpy(zero_copy_only=False)[small].sum() > 80


def test_training_is_bounded_and_the_same_for_any_partitions(lake, make_pool, blobs) -> None:
    _, vectors, _ = blobs
    make_pool(lake, "other", [f"{i:04}" for i in range(1000)][::-1], vectors[::-1], fragments=7)
    selector = DomainClassifier(column="vec", size=100, pool_rows=150)
    one, two = (selector.select(lake, table, query="query") for table in ("pool", "other"))
    assert one.lineage()["report"]["trained_on"] == two.lineage()["report"]["trained_on"] == 150
    assert sorted(one.ids().to_pylist()) == sorted(two.ids().to_pylist())
    assert one.to_arrow().sort_by("id").column("score").equals(two.to_arrow().sort_by("id").column("score"))


@pytest.mark.parametrize(("rows", "queries"), [(1, 1), (2, 3), (30, 1), (3, 30)])
def test_tiny_tables(lake, make_pool, rows, queries) -> None:
    rng = np.random.default_rng(rows)
    make_pool(lake, "pool", [f"{i}" for i in range(rows)], rng.normal(size=(rows, 3)))
    make_pool(lake, "query", [f"q{i}" for i in range(queries)], rng.normal(size=(queries, 3)))
    assert len(DomainClassifier(column="vec", size=1).select(lake, "pool", query="query")) == 1
