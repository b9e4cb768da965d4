"""Whole numbers that add up: share a total among cells by real targets, within bounds.

The real solution is x_j = clip(t_j + s, lower_j, upper_j) in the additive form, the projection of the targets on the
bounds (arXiv 2401.04578, equation 3, with s in place of a solver), and x_j = clip(s t_j, lower_j, upper_j) in the
multiplicative form. It is rounded down and what is missing goes to the largest fractions, ties to the smaller index.
Every comparison that decides a unit is made on targets and whole numbers, so floating point never breaks the sum.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Form = Literal["additive", "multiplicative"]

_Real = npt.NDArray[np.float64]
_Count = npt.NDArray[np.int64]
_FRACTION_DECIMALS = 9


def allocate(
    target: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike, total: int, form: Form = "additive"
) -> _Count:
    """Share ``total`` units among k cells.

    Args:
        target: (k,) finite reals; not negative in the multiplicative form.
        lower: whole numbers, (k,) or one for all.
        upper: whole numbers, (k,) or one for all, nowhere below ``lower``.
        total: the units to share.
        form: "additive" misses every target by the same amount and is optimal among whole numbers for the sum of
            squared differences; "multiplicative" scales every target by the same factor, and cells with target 0
            get units, equally, only when all others are at their upper bounds.

    Returns:
        int64 of shape (k,) with ``lower <= x <= upper`` and ``x.sum() == total``, exactly.

    Raises:
        ValueError: the bounds cannot hold the total, or an argument is malformed.

    >>> allocate([5, 3, 2], 0, [3, 10, 10], total=10).tolist()
    [3, 4, 3]
    >>> allocate([0.5, 0.5], 0, [2, 10], total=8, form="multiplicative").tolist()
    [2, 6]
    """
    if form not in ("additive", "multiplicative"):
        raise ValueError(f"form must be 'additive' or 'multiplicative', not {form!r}")
    targets = _targets(target, form)
    low, high = _bounds(lower, "lower", len(targets)), _bounds(upper, "upper", len(targets))
    _require_feasible(low, high, total)
    if form == "additive":
        return _nearest_whole(targets, low, high, total)
    positive = targets > 0
    reachable = int(high[positive].sum() + low[~positive].sum())
    if total <= reachable:
        scaled = np.where(positive, _scaled(targets, low, high, total), low)
        return _round_to_total(scaled, low, high, total)
    result = np.where(positive, high, low)
    rest = total - int(high[positive].sum())
    result[~positive] = _nearest_whole(targets[~positive], low[~positive], high[~positive], rest)
    return result


def _nearest_whole(targets: _Real, low: _Count, high: _Count, total: int) -> _Count:
    """The whole numbers with the given sum that are nearest to the targets.

    Unit v of cell j is worth t_j - v, so the best answer holds the most valuable units. The real solution gives a
    start that is off by a unit here and there; then units are added, removed and exchanged until none is misplaced.
    """
    if len(targets) == 0:
        return np.zeros(0, np.int64)
    shift = _solve(targets, np.ones_like(targets), low, high, total)
    x = np.clip(np.floor(targets + shift), low, high).astype(np.int64)
    x = _adjusted(x, targets, low, high, total)
    while True:
        gain, loss = _next_unit(x, targets, high), _last_unit(x, targets, low)
        best, worst = int(np.argmax(gain)), _last_argmin(loss)
        # A unit is before another if it is worth more, or the same and of a smaller cell.
        if gain[best] < loss[worst] or (gain[best] == loss[worst] and best >= worst) or np.isinf(gain[best]):
            return x
        x[best] += 1
        x[worst] -= 1


def _round_to_total(real: _Real, low: _Count, high: _Count, total: int) -> _Count:
    """Round down, then give the missing units to the largest fractions; fractions count to nine decimals."""
    real = np.round(real, _FRACTION_DECIMALS)
    x = np.clip(np.floor(real), low, high).astype(np.int64)
    return _adjusted(x, real, low, high, total, _FRACTION_DECIMALS)


def _adjusted(x: _Count, targets: _Real, low: _Count, high: _Count, total: int, decimals: int | None = None) -> _Count:
    """Add or remove single units, the most or least valuable first, until the sum is right.

    With ``decimals``, values that are the same to so many are equal: 4/3 - 1 and 1/3 are not the same float64.
    """

    def valued(units: _Real) -> _Real:
        return units if decimals is None else np.round(units, decimals)

    x = x.copy()
    while (missing := total - int(x.sum())) > 0:
        gain = valued(_next_unit(x, targets, high))
        order = np.argsort(-gain, kind="stable")[:missing]
        x[order[np.isfinite(gain[order])]] += 1
    while (excess := int(x.sum()) - total) > 0:
        loss = valued(_last_unit(x, targets, low))
        order = (len(x) - 1 - np.argsort(loss[::-1], kind="stable"))[:excess]
        x[order[np.isfinite(loss[order])]] -= 1
    return x


def _next_unit(x: _Count, targets: _Real, high: _Count) -> _Real:
    """The value of one more unit in each cell, -inf where the cell is full."""
    return np.where(x < high, targets - x, -np.inf)


def _last_unit(x: _Count, targets: _Real, low: _Count) -> _Real:
    """The value of the last unit in each cell, +inf where none may be taken."""
    return np.where(x > low, targets - (x - 1), np.inf)


def _last_argmin(values: _Real) -> int:
    return len(values) - 1 - int(np.argmin(values[::-1]))


def _scaled(targets: _Real, low: _Count, high: _Count, total: int) -> _Real:
    """clip(s t, low, high) with the s that gives the total, before rounding; zero targets stay out of it."""
    positive = targets > 0
    rest = total - int(low[~positive].sum())
    if not positive.any():
        return targets
    # Relative targets keep s near 1 whatever the unit of the targets.
    relative = targets / targets.max()
    t, lo, hi = relative[positive], low[positive], high[positive]
    factor = _solve(np.zeros_like(t), t, lo, hi, rest)
    return np.clip(factor * relative, low, high)


def _solve(base: _Real, slope: _Real, low: _Count, high: _Count, total: int) -> float:
    """An s with sum(clip(base + slope s, low, high)) = total, up to floating point; slope > 0.

    The sum is piecewise linear in s: a binary search over the sorted corners finds the piece, one division the s.
    """
    corners = np.sort(np.concatenate([(low - base) / slope, (high - base) / slope]))
    corners = corners[np.isfinite(corners)]

    def amount(s: float) -> float:
        return float(np.clip(base + slope * s, low, high).sum())

    left, right = 0, len(corners) - 1
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (middle, right) if amount(corners[middle]) <= total else (left, middle)
    start, end = float(corners[left]), float(corners[right])
    below, above = amount(start), amount(end)
    return start if above <= below else start + (end - start) * min(1.0, max(0.0, (total - below) / (above - below)))


def _targets(target: npt.ArrayLike, form: Form) -> _Real:
    targets = np.asarray(target, np.float64)
    if targets.ndim != 1:
        raise ValueError(f"target must have one dimension, not shape {targets.shape}")
    if not np.isfinite(targets).all():
        raise ValueError(f"target must be finite, and cell {int(np.argmin(np.isfinite(targets)))} is not")
    if form == "multiplicative" and (targets < 0).any():
        raise ValueError(f"a multiplicative target must not be negative, and cell {int(np.argmax(targets < 0))} is")
    return targets


def _bounds(bound: npt.ArrayLike, name: str, k: int) -> _Count:
    values = np.asarray(bound)
    if values.dtype.kind not in "iu" and not (values.size == 0 or (values == np.floor(values)).all()):
        raise ValueError(f"{name} bounds must be whole numbers, and are {values.dtype}")
    if values.shape not in ((), (k,)):
        raise ValueError(f"{name} bounds have shape {values.shape} and the target has {k} cells")
    return np.broadcast_to(values, (k,)).astype(np.int64)


def _require_feasible(low: _Count, high: _Count, total: int) -> None:
    if isinstance(total, bool) or not isinstance(total, (int, np.integer)):
        raise ValueError(f"total must be a whole number, not {total!r}")
    if (low > high).any():
        cell = int(np.argmax(low > high))
        raise ValueError(f"the lower bound of cell {cell}, {low[cell]}, is above its upper bound, {high[cell]}")
    least, most = int(low.sum()), int(high.sum())
    if not least <= total <= most:
        raise ValueError(f"{total} units cannot be shared: the bounds allow from {least} to {most}")
