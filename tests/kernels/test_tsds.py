"""Spreading equals the rule played out step by step, and its borders behave."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from datas3_ray.kernels.tsds import spread_mass


def played_out(d: np.ndarray, rho: np.ndarray, alpha: float, scale: float) -> np.ndarray:
    """The rule with a heap of each query's next breakpoint, and the mass poured neighbour by neighbour."""
    m, k = d.shape
    heap = [(1 / rho[j, 0], j, 0) for j in range(m)]
    heapq.heapify(heap)
    poured = d[:, 0] / rho[:, 0]
    cost = np.zeros(m)
    s = 0.0
    while heap:
        s, j, at = heapq.heappop(heap)
        cost[j] = d[j, at + 1] * s - poured[j]
        if alpha / scale * cost.sum() >= (1 - alpha) * m:
            break
        if at + 2 < k:
            poured[j] += d[j, at + 1] / rho[j, at + 1]
            heapq.heappush(heap, (s + 1 / rho[j, at + 1], j, at + 1))
    mass = np.zeros_like(d)
    for j in range(m):
        left = 1 / m
        for at in range(k):
            give = left if at == k - 1 else min(left, 1 / (m * s * rho[j, at]))
            mass[j, at] = give
            left -= give
    return mass


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 0.9, 0.99])
def test_equals_the_rule_played_out(alpha) -> None:
    rng = np.random.default_rng(int(alpha * 100))
    d = np.sort(rng.random((12, 40)), axis=1)
    rho = 1 + 3 * rng.random((12, 40))
    found = spread_mass(d, rho, alpha, 1.0)
    np.testing.assert_allclose(found.mass, played_out(d, rho, alpha, 1.0), atol=1e-12)
    np.testing.assert_allclose(found.mass.sum(axis=1), 1 / 12, atol=1e-15)
    assert (found.mass >= 0).all()


def test_more_neighbours_change_nothing_once_settled() -> None:
    rng = np.random.default_rng(3)
    d = np.sort(rng.random((6, 300)), axis=1)
    rho = 1 + rng.random((6, 300))
    whole = spread_mass(d, rho, 0.7, 2.0)
    settled = [k for k in range(2, 300) if spread_mass(d[:, :k], rho[:, :k], 0.7, 2.0).settled]
    assert settled and settled[0] < 200
    few = spread_mass(d[:, : settled[0]], rho[:, : settled[0]], 0.7, 2.0)
    assert few.s == whole.s
    np.testing.assert_allclose(few.mass, whole.mass[:, : settled[0]], atol=1e-12)
    assert whole.mass[:, settled[0] :].sum() == pytest.approx(0, abs=1e-12)


def test_alpha_one_is_the_nearest_alone_shared_by_its_equals() -> None:
    d = [[0.1, 0.1, 0.5], [0.2, 0.3, 0.4]]
    found = spread_mass(d, [[5.0, 1.0, 1.0], [1.0, 9.0, 1.0]], 1.0, 5.0)
    assert found.mass.tolist() == [[0.25, 0.25, 0], [0.5, 0, 0]]
    assert found.settled
    assert not spread_mass([[0.1, 0.1]], [[1.0, 1.0]], 1.0, 5.0).settled


def test_near_alpha_one_a_sparse_nearest_neighbour_keeps_no_more_than_its_query_has() -> None:
    found = spread_mass([[0.1, 0.2, 0.9], [0.1, 0.2, 0.9]], [[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]], 0.999, 5.0)
    np.testing.assert_allclose(found.mass.sum(axis=1), 0.5, atol=1e-15)


def test_alpha_nought_spreads_over_all() -> None:
    found = spread_mass([[0.1, 0.2, 0.3, 0.9]], np.ones((1, 4)), 0.0, 5.0)
    np.testing.assert_allclose(found.mass, [[1 / 3, 1 / 3, 1 / 3, 0]], atol=1e-15)
    assert not found.settled


def test_a_copy_shares_what_the_row_alone_had() -> None:
    alone = spread_mass([[0.1, 0.2, 0.3, 0.4, 0.5]], np.ones((1, 5)), 0.5, 0.05).mass
    copied = spread_mass([[0.1, 0.1, 0.2, 0.3, 0.4, 0.5]], [[2.0, 2.0, 1, 1, 1, 1]], 0.5, 0.05).mass
    assert copied[0, :2].sum() == pytest.approx(alone[0, 0], abs=0.1)


def test_one_neighbour_takes_all() -> None:
    assert spread_mass([[0.3]], [[2.0]], 0.5, 5.0).mass.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("d", "rho", "alpha"),
    [([[0.2, 0.1]], [[1, 1]], 0.5), ([[0.1, 0.2]], [[1, 0]], 0.5), ([[0.1]], [[1, 1]], 0.5), ([[0.1]], [[1]], 1.5)],
)
def test_what_cannot_be_meant_is_refused(d, rho, alpha) -> None:
    with pytest.raises(ValueError):
        spread_mass(d, rho, alpha, 5.0)
