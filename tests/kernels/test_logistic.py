"""The fit is the minimum, both classes weigh a half, and a known ratio is found."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.logistic import area_under_curve, fit_logistic


def objective(weight, bias, positive, negative, l2) -> float:
    loss = np.log1p(np.exp(-(positive @ weight + bias))).mean() + np.log1p(np.exp(negative @ weight + bias)).mean()
    return loss / 2 + l2 / 2 * (weight**2).sum()


def test_no_step_away_from_the_fit_is_better() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.5, 1, (40, 6)), rng.normal(0, 1, (300, 6))
    fit = fit_logistic(positive, negative, 0.01)
    best = objective(fit.weight, fit.bias, positive, negative, 0.01)
    assert fit.gradient < 1e-7
    for _ in range(100):
        step = 1e-3 * rng.normal(size=7)
        assert objective(fit.weight + step[:6], fit.bias + step[6], positive, negative, 0.01) > best


def test_equals_newtons_method() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.3, 1, (50, 3)), rng.normal(0, 1, (90, 3))
    X = np.c_[np.r_[positive, negative], np.ones(140)]
    y, share = np.r_[np.ones(50), np.zeros(90)], np.r_[np.full(50, 0.5 / 50), np.full(90, 0.5 / 90)]
    penalty = 0.05 * np.diag([1, 1, 1, 0])
    w = np.zeros(4)
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ w))
        w -= np.linalg.solve((X.T * (share * p * (1 - p))) @ X + penalty, X.T @ (share * (p - y)) + penalty @ w)
    fit = fit_logistic(positive, negative, 0.05)
    np.testing.assert_allclose([*fit.weight, fit.bias], w, atol=1e-6)


def test_the_log_odds_are_the_log_ratio_of_two_normals() -> None:
    """log N(x; 1, 1) - log N(x; 0, 1) = x - 1/2, whatever the sizes of the classes."""
    rng = np.random.default_rng(2)
    fit = fit_logistic(rng.normal(1, 1, (5_000, 1)), rng.normal(0, 1, (40_000, 1)), 1e-6)
    np.testing.assert_allclose(fit.log_odds([[0.0], [2.0]]), [-0.5, 1.5], atol=0.1)


def test_area_under_curve_counts_pairs() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 9, 30), rng.integers(0, 9, 50)
    pairs = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert area_under_curve(a, b) == pytest.approx(pairs)


def test_an_empty_class_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes need vectors"):
        fit_logistic(np.empty((0, 2)), np.eye(2), 1.0)
    with pytest.raises(ValueError, match="l2 must be above 0"):
        fit_logistic(np.eye(2), np.eye(2), 0.0)
