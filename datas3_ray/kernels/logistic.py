"""Logistic regression on vectors, full batch and convex: one answer whatever the machine.

Both classes weigh a half, so that the fitted log-odds estimate log p(x | class 1) - log p(x | class 0), the density
ratio that importance weighting needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_GRADIENT = 1e-9
_MOST_STEPS = 1000


class Logistic(NamedTuple):
    """A fitted model: log-odds = X @ weight + bias. ``gradient`` is the largest component left of the objective's."""

    weight: Float64
    bias: float
    gradient: float

    def log_odds(self, X: npt.ArrayLike) -> Float64:
        """float64 (n,) for vectors (n, d).

        >>> Logistic(np.array([2.0]), 1.0, 0.0).log_odds([[3.0]]).tolist()
        [7.0]
        """
        return np.asarray(X, np.float64) @ self.weight + self.bias


def fit_logistic(positive: npt.ArrayLike, negative: npt.ArrayLike, l2: float) -> Logistic:
    """Minimise (mean loss of the positives + mean loss of the negatives) / 2 + l2 / 2 |weight|^2.

    Args:
        positive: (p, d), p >= 1.
        negative: (n, d), n >= 1.
        l2: above 0; the bias is not penalised.

    Raises:
        ValueError: a class is empty, or l2 is not positive.

    >>> fit = fit_logistic([[1.0], [0.5]], [[-1.0], [-0.5]], l2=0.1)
    >>> bool(fit.weight[0] > 0), round(fit.bias, 6) + 0.0
    (True, 0.0)
    """
    import torch

    ones, zeros = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if ones.ndim != 2 or zeros.ndim != 2 or not len(ones) or not len(zeros):
        raise ValueError(f"both classes need vectors, and they have the shapes {ones.shape} and {zeros.shape}")
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, not {l2}")
    X = torch.from_numpy(np.concatenate([ones, zeros]))
    sign = torch.cat([-torch.ones(len(ones)), torch.ones(len(zeros))]).double()
    share = torch.cat([torch.full((len(ones),), 0.5 / len(ones)), torch.full((len(zeros),), 0.5 / len(zeros))]).double()
    share /= share.sum()
    unknown = torch.zeros(X.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [unknown],
        max_iter=_MOST_STEPS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.softplus(sign * (X @ unknown[:-1] + unknown[-1])) @ share
        total = loss + l2 / 2 * unknown[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(objective)
    objective()
    gradient = float(unknown.grad.abs().max()) if unknown.grad is not None else 0.0
    found = unknown.detach().numpy()
    return Logistic(found[:-1].copy(), float(found[-1]), gradient)


def area_under_curve(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties counting a half.

    >>> area_under_curve([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    ones, zeros = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    below = np.searchsorted(zeros, ones, side="left") + np.searchsorted(zeros, ones, side="right")
    return float(below.sum() / (2 * len(ones) * len(zeros)))
