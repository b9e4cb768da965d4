from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels.allocate import allocate


@pytest.mark.parametrize(
    ("share", "lower", "upper", "expected"),
    [
        ((0.5, 0.3, 0.2), 0, (3, 10, 10), [3, 4, 3]),
        ((0.96, 0.03, 0.01), 1, (20, 20, 20), [8, 1, 1]),
        ((1 / 3, 1 / 3, 1 / 3), 0, (10, 10, 10), [4, 3, 3]),
        ((0.2, 0.3, 0.5), 0, (2, 3, 5), [2, 3, 5]),
    ],
)
def test_known_answers(share: Any, lower: int, upper: Any, expected: list[int]) -> None:
    assert allocate(np.multiply(share, 10), lower, upper, 10).tolist() == expected


@pytest.mark.parametrize(
    ("target", "upper", "total", "expected"),
    [
        ((0.5, 0.5), (2, 10), 8, [2, 6]),
        ((3.0, 1.0), (100, 100), 8, [6, 2]),
        ((1.0, 1.0, 1.0), 10, 10, [4, 3, 3]),
        ((0.7, 0.2, 0.1, 0.0), (1, 5, 5, 9), 7, [1, 4, 2, 0]),
        ((0.5, 0.0, 0.0), (2, 10, 10), 7, [2, 3, 2]),
        ((0.0, 0.0), (5, 5), 3, [2, 1]),
        ((1e-300, 2e-300), (50, 50), 9, [3, 6]),
        # 4/3 and 1/3 have one fraction, though not to a float64.
        ((4.0, 1.0, 4.0), (7, 3, 11), 3, [2, 0, 1]),
        ((4.0, 1.0, 1.0), (11, 7, 5), 16, [11, 3, 2]),
    ],
)
def test_known_multiplicative_answers(target: Any, upper: Any, total: int, expected: list[int]) -> None:
    assert allocate(target, 0, upper, total, form="multiplicative").tolist() == expected


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[float], list[int], list[int], int]:
    k = draw(st.integers(1, 4))
    low = draw(st.lists(st.integers(-2, 3), min_size=k, max_size=k))
    high = [a + draw(st.integers(0, 4)) for a in low]
    value = st.one_of(st.floats(-6, 9), st.sampled_from([0.5, 1.5, 2.0, 1 / 3]))
    target = draw(st.lists(value, min_size=k, max_size=k))
    return target, low, high, draw(st.integers(sum(low), sum(high)))


@given(cells())
@settings(max_examples=300, deadline=None)
def test_additive_is_the_best_of_all_whole_numbers(problem: tuple[list[float], list[int], list[int], int]) -> None:
    target, low, high, total = problem
    x = allocate(target, low, high, total)
    assert x.dtype == np.int64
    ranges = [range(a, b + 1) for a, b in zip(low, high, strict=True)]
    feasible = np.array([c for c in itertools.product(*ranges) if sum(c) == total])
    costs = ((feasible - np.asarray(target)) ** 2).sum(1)
    assert any((x == c).all() for c in feasible)
    assert ((x - np.asarray(target)) ** 2).sum() <= costs.min() + 1e-9


@given(cells(), st.floats(1e-6, 1e6))
@settings(max_examples=200, deadline=None)
def test_multiplicative_is_within_a_unit_of_the_scaled_targets(problem: Any, unit: float) -> None:
    target, low, high, total = problem
    t, lo, hi = np.abs(target) + 0.01, np.asarray(low), np.asarray(high)
    x = allocate(t * unit, lo, hi, total, form="multiplicative")
    assert x.sum() == total and (x >= lo).all() and (x <= hi).all()
    left, right = -2000.0, 2000.0
    for _ in range(200):
        middle = (left + right) / 2
        left, right = (middle, right) if np.clip(middle * t, lo, hi).sum() < total else (left, middle)
    assert np.abs(x - np.clip(right * t, lo, hi)).max() < 1 + 1e-6


def test_ties_go_to_the_smaller_cell() -> None:
    assert allocate([0.5] * 6, 0, 1, 2).tolist() == [1, 1, 0, 0, 0, 0]
    assert allocate([2.5] * 6, 0, 9, 14).tolist() == [3, 3, 2, 2, 2, 2]
    assert allocate([0.5] * 6, 0, 9, 14, form="multiplicative").tolist() == [3, 3, 2, 2, 2, 2]


@pytest.mark.parametrize("form", ["additive", "multiplicative"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_for_fifty_thousand_cells(form: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = 50_000
    upper = np.floor(rng.lognormal(6, 2, k)).astype(np.int64)
    lower = np.minimum(1, upper)
    weight = rng.dirichlet(np.full(k, 0.1))
    for total in (int(lower.sum()), int(upper.sum()), k + 12_345, int(upper.sum()) // 3, int(upper.sum()) - 1):
        x = allocate(weight * total, lower, upper, total, form=form)
        assert x.sum() == total and (x >= lower).all() and (x <= upper).all()


def test_additive_is_optimal_for_many_cells() -> None:
    rng = np.random.default_rng(5)
    upper = rng.integers(0, 4000, 5000)
    lower = np.minimum(1, upper)
    total = int(upper.sum()) // 2
    target = rng.dirichlet(np.ones(5000)) * total
    x = allocate(target, lower, upper, total)
    # No exchange of one unit between two cells can help; for a convex separable cost that is optimality.
    assert (target - x)[x < upper].max() <= (target - x + 1)[x > lower].min()


def test_huge_totals_stay_exact() -> None:
    upper = np.full(7, 10**12)
    total = 3 * 10**12 + 1
    for form in ("additive", "multiplicative"):
        x = allocate(np.arange(1, 8) * 1e11, 0, upper, total, form=form)
        assert int(x.sum()) == total


def test_no_cells() -> None:
    assert allocate([], 0, 0, 0).tolist() == []
    assert allocate([], [], [], 0, form="multiplicative").tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], 1, 3, 7), "7 units cannot be shared: the bounds allow from 2 to 6"),
        (([1.0, 1.0], 1, 3, 1), "from 2 to 6"),
        (([1.0, np.nan], 0, 3, 1), "finite, and cell 1"),
        (([1.0, 1.0], [0, 5], [3, 4], 1), "cell 1, 5, is above its upper bound, 4"),
        (([1.0, 1.0], 0, [1, 2, 3], 1), "shape"),
        (([1.0, 1.0], 0.5, 2, 1), "whole"),
        (([1.0, 1.0], 0, 2, 1.5), "total"),
        (([[1.0]], 0, 2, 1), "one dimension"),
        (([-1.0], 0, 2, 1, "multiplicative"), "negative"),
        (([1.0], 0, 2, 1, "other"), "form"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(*arguments)
