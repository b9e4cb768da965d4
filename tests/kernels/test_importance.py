from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels.importance import effective_sample_size, kl_reduction, nested_log_weights

Levels = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]


def test_known_answers_of_one_level() -> None:
    plain = nested_log_weights([], [[1, 3]], [[3, 1]], 0)
    assert np.allclose(plain, [math.log(3), -math.log(3)])
    assert math.isclose(2 * plain[0], 2.1972, abs_tol=5e-5)
    smoothed = nested_log_weights([[0, 0]], [[1, 3]], [[3, 1]], 1)
    assert np.allclose(np.exp(smoothed) * [0.25, 0.75], [0.65, 0.35])


def test_two_levels_multiply() -> None:
    # Cells 0 = {a, b} and 1 = {c}; p_query(0) = (8 + 10 * .5) / 20 = .65, p_query(a | 0) = (6 + 10 * .2) / 18.
    w = np.exp(nested_log_weights([[0, 0, 1]], [[10, 10], [2, 8, 10]], [[8, 2], [6, 2, 2]], 10))
    assert np.allclose(w, [1.3 * (8 / 18) / 0.2, 1.3 * (10 / 18) / 0.8, 0.7])


@st.composite
def nested(draw: st.DrawFn) -> Levels:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    depth = draw(st.integers(1, 4))
    parents, cells = [], draw(st.integers(1, 5))
    for _ in range(depth - 1):
        children = rng.integers(1, 4, cells)
        parents.append(np.repeat(np.arange(cells), children))
        cells = int(children.sum())
    pool = [rng.integers(0, 6, cells)]
    pool[0][0] += 1
    query = [rng.integers(0, 6, cells) * rng.integers(0, 2, cells)]
    for parent in reversed(parents):
        pool.insert(0, np.bincount(parent, pool[0]))
        query.insert(0, np.bincount(parent, query[0]))
    return parents, pool, query


@given(nested(), st.one_of(st.just(0.0), st.floats(1e-3, 1e4), st.just(math.inf)))
@settings(max_examples=200, deadline=None)
def test_the_mean_weight_over_the_pool_is_one(levels: Levels, pseudo_count: float) -> None:
    parents, pool, query = levels
    w = np.exp(nested_log_weights(parents, pool, query, pseudo_count))
    assert (w >= 0).all() and np.isfinite(w).all()
    assert math.isclose((w * pool[-1]).sum() / pool[-1].sum(), 1.0, rel_tol=1e-12)
    assert (w[pool[-1] == 0] == 0).all()


@given(nested())
@settings(max_examples=50, deadline=None)
def test_a_large_pseudo_count_is_the_pool_itself(levels: Levels) -> None:
    parents, pool, query = levels
    there = pool[-1] > 0
    assert not nested_log_weights(parents, pool, query, math.inf)[there].any()
    assert np.abs(nested_log_weights(parents, pool, query, 1e12)[there]).max() < 1e-8


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
def test_a_cell_without_queries_does_not_tell_its_children_apart(pseudo_count: float) -> None:
    w = nested_log_weights([[0, 0, 1, 1]], [[4, 4], [1, 3, 2, 2]], [[0, 5], [0, 0, 4, 1]], pseudo_count)
    assert w[0] == w[1]
    assert w[2] > w[3]


def test_queries_where_the_pool_has_nothing_are_left_out() -> None:
    w = nested_log_weights([], [[2, 2, 0]], [[1, 3, 9]], 2)
    assert np.array_equal(w[:2], nested_log_weights([], [[2, 2]], [[1, 3]], 2)) and w[2] == -np.inf
    alone = nested_log_weights([], [[2, 2, 0]], [[0, 0, 9]], 2)
    assert alone[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [[1, 1]], [[1, 1]], -1), "pseudo_count"),
        (([], [[1, 1]], [[1, 1]], math.nan), "pseudo_count"),
        (([], [[0, 0]], [[1, 1]], 1), "empty"),
        (([], [], [], 1), "0 levels"),
        (([], [[1], [1]], [[1]], 1), "2 levels"),
        (([], [[1, 1]], [[1]], 1), "level 0 has 2 parents, 2 pool counts and 1"),
        (([[0, 2]], [[1, 1], [1, 1]], [[1, 1], [1, 1]], 1), "from 0 to 1"),
        (([[0, 1]], [[1, 2], [1, 1]], [[1, 1], [1, 1]], 1), "children of cell 1 of level 0 have 1 pool rows"),
        (([[0, 1]], [[1, 1], [1, 1]], [[3, 1], [1, 1]], 1), "1 query rows and the cell has 3"),
        (([], [[1, -1]], [[1, 1]], 1), "pool counts"),
    ],
)
def test_levels_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nested_log_weights(*arguments)


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.full(10, 0.3)) == pytest.approx(10)
    assert effective_sample_size([5.0, 0.0, 0.0]) == 1
    w, counts = np.array([0.5, 2.0, 1e-9]), np.array([3, 2, 4])
    each = np.repeat(w, counts)
    assert effective_sample_size(w, counts) == pytest.approx(each.sum() ** 2 / (each**2).sum())
    assert effective_sample_size(np.array([1e300, 1e300])) == pytest.approx(2)
    with pytest.raises(ValueError, match="above 0"):
        effective_sample_size([0.0, 0.0])
    with pytest.raises(ValueError, match="2 weights and 1 counts"):
        effective_sample_size([1.0, 1.0], [1])


def test_kl_reduction() -> None:
    assert kl_reduction([0.75, 0.25], [0.25, 0.75], [0.75, 0.25]) == pytest.approx(0.5 * math.log(3))
    assert kl_reduction([0.5, 0.5], [0.3, 0.7], [0.3, 0.7]) == 0
    assert kl_reduction([1, 1], [1, 1], [1, 3]) < 0
    assert kl_reduction([1, 1], [1, 1], [1, 0]) == -math.inf
    assert kl_reduction([1, 0], [1, 1], [1, 0]) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="cell 1"):
        kl_reduction([1, 1], [1, 0], [1, 1])
    with pytest.raises(ValueError, match="2, 2 and 3 cells"):
        kl_reduction([1, 1], [1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="p_selected must have a positive sum"):
        kl_reduction([1, 1], [1, 1], [0, 0])
