"""Sharded steps equal a dense Sinkhorn, and the gradient is what a small change of weight does to the cost."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.sinkhorn import calibrated_gradient, next_potential, shard_step


def unit(rng: np.random.Generator, n: int, d: int = 5) -> np.ndarray:
    vectors = rng.normal(size=(n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def solve(
    X: np.ndarray, Q: np.ndarray, epsilon: float, shards: int = 1, steps: int = 3000
) -> tuple[np.ndarray, np.ndarray]:
    g = np.zeros(len(Q))
    for _ in range(steps):
        mass = sum(shard_step(part, Q, g, epsilon).mass for part in np.array_split(X, shards))
        g, error = next_potential(g, mass, len(X), epsilon)
        if error < 1e-13:
            break
    return np.concatenate([shard_step(part, Q, g, epsilon).potential for part in np.array_split(X, shards)]), g


def dense_cost(C: np.ndarray, a: np.ndarray, epsilon: float) -> float:
    """The regularised cost <P, C> + eps KL(P | a b) by plain Sinkhorn scaling."""
    b = np.full(C.shape[1], 1 / C.shape[1])
    K = np.exp(-C / epsilon)
    v = np.ones(C.shape[1])
    for _ in range(5000):
        u = a / (K @ v)
        v = b / (K.T @ u)
    P = u[:, None] * K * v[None, :]
    return float((P * C).sum() + epsilon * (P * np.log(P / np.outer(a, b))).sum())


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_the_gradient_is_the_change_of_the_cost(epsilon) -> None:
    rng = np.random.default_rng(0)
    X, Q = unit(rng, 9), unit(rng, 4)
    C = 1 - X @ Q.T
    f, g = solve(X, Q, epsilon)
    gradient = calibrated_gradient(f, float(f.mean()), 9)
    a = np.full(9, 1 / 9)
    assert f.mean() + g.mean() == pytest.approx(dense_cost(C, a, epsilon), abs=1e-6)
    for row in range(9):
        step = np.full(9, -1 / 8)
        step[row] = 1.0
        change = (dense_cost(C, a + 1e-5 * step, epsilon) - dense_cost(C, a - 1e-5 * step, epsilon)) / 2e-5
        assert gradient[row] == pytest.approx(change, abs=1e-4)
    assert gradient.sum() == pytest.approx(0, abs=1e-12)


def test_shards_add_up(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    X, Q = unit(rng, 200), unit(rng, 7)
    whole, g = solve(X, Q, 0.1)
    monkeypatch.setattr("datas3_ray.kernels.sinkhorn._TILE_ELEMENTS", 1)
    for shards in (2, 5):
        parts, h = solve(X, Q, 0.1, shards)
        np.testing.assert_allclose(parts, whole, atol=1e-12)
        np.testing.assert_allclose(h, g, atol=1e-12)


def test_the_sharpest_allowed_transport_stays_finite() -> None:
    X = np.array([[1.0, 0.0]] * 3 + [[-1.0, 0.0]])
    f, g = solve(X, np.array([[1.0, 0.0], [-1.0, 0.0]]), 0.01, steps=200)
    assert np.isfinite(f).all() and np.isfinite(g).all()


def test_too_little_regularisation_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon must be at least 0.01"):
        shard_step(np.eye(2), np.eye(2), np.zeros(2), 0.001)
