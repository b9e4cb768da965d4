"""GOTD: the scores of a dense transport problem, and what the gradient must be like."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import GOTD


def dense_scores(X: np.ndarray, Q: np.ndarray, epsilon: float) -> np.ndarray:
    cost = 1 - X @ Q.T
    f, g = np.zeros(len(X)), np.zeros(len(Q))
    for _ in range(3000):
        f = -epsilon * np.log(np.exp((g[None, :] - cost) / epsilon).mean(axis=1))
        g = -epsilon * np.log(np.exp((f[:, None] - cost) / epsilon).mean(axis=0))
    f = -epsilon * np.log(np.exp((g[None, :] - cost) / epsilon).mean(axis=1))
    return np.array([np.delete(f, i).mean() - f[i] for i in range(len(f))])


@pytest.mark.parametrize("fragments", [1, 4])
def test_scores_equal_a_dense_sinkhorn(lake, make_pool, fragments) -> None:
    rng = np.random.default_rng(0)
    X, Q = rng.normal(size=(80, 5)), rng.normal(size=(6, 5))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Q /= np.linalg.norm(Q, axis=1, keepdims=True)
    make_pool(lake, "pool", [f"{i:02}" for i in range(80)], X, fragments=fragments)
    make_pool(lake, "query", [f"q{i}" for i in range(6)], Q)
    selector = GOTD(column="vec", size=20, epsilon=0.2, tolerance=1e-7)
    selection = selector.select(lake, "pool", query="query")
    score = selection.to_arrow().column("score").to_numpy()
    expected = dense_scores(X, Q, 0.2)
    np.testing.assert_allclose(score, expected, atol=1e-5)
    assert score.sum() == pytest.approx(0, abs=1e-6)
    assert {int(name) for name in selection.ids().to_pylist()} == set(np.argsort(-expected)[:20])
    report = selection.lineage()["report"]
    assert report["converged"] and report["marginal_error"] <= 1e-7


def test_a_row_that_equals_a_query_scores_above_a_far_one(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    queries = np.eye(6)[:3] + 0.1 * rng.normal(size=(3, 6))
    far = -np.eye(6)[:3] + 0.1 * rng.normal(size=(3, 6))
    make_pool(lake, "pool", ["a", "b", "c", "x", "y", "z"], np.vstack([queries, far]), fragments=2)
    make_pool(lake, "query", ["q1", "q2", "q3"], queries)
    selection = GOTD(column="vec", size=3).select(lake, "pool", query="query")
    assert selection.ids().to_pylist() == ["a", "b", "c"]


def test_a_mode_that_the_pool_covers_already_is_worth_less(lake, make_pool) -> None:
    """Half the query is at each of two axes, most of the pool at the first: the few rows at the second rank first."""
    rng = np.random.default_rng(2)
    rows = np.repeat(np.eye(5)[:2], [90, 10], axis=0) + 0.05 * rng.normal(size=(100, 5))
    make_pool(lake, "pool", [f"{i:03}" for i in range(100)], rows, fragments=2)
    make_pool(
        lake,
        "query",
        [f"q{i}" for i in range(20)],
        np.repeat(np.eye(5)[:2], 10, axis=0) + 0.05 * rng.normal(size=(20, 5)),
    )
    selection = GOTD(column="vec", size=10).select(lake, "pool", query="query")
    assert {int(name) for name in selection.ids().to_pylist()} == set(range(90, 100))


def test_it_says_when_it_has_not_converged(lake, make_pool) -> None:
    rng = np.random.default_rng(3)
    make_pool(lake, "pool", [f"{i}" for i in range(9)], rng.normal(size=(9, 3)))
    make_pool(lake, "query", ["a", "b"], rng.normal(size=(2, 3)))
    selection = GOTD(column="vec", size=3, iterations=1, tolerance=1e-12).select(lake, "pool", query="query")
    report = selection.lineage()["report"]
    assert report["iterations"] == 1 and not report["converged"]


def test_a_pool_without_a_usable_vector_is_one_sentence(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a"], np.zeros((1, 3)))
    make_pool(lake, "query", ["q"], np.eye(3)[:1])
    with pytest.raises(UsageError, match="no eligible row with a usable vector"):
        GOTD(column="vec", size=1).select(lake, "pool", query="query")
    with pytest.raises(UsageError, match="gotd: epsilon = 0.001 is not allowed"):
        GOTD(column="vec", size=1, epsilon=0.001)
