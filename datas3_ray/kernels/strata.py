"""How many rows each class or stratum gives, in whole numbers that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.allocate import allocate

Shortage = Literal["stop", "redistribute", "oversample"]
Balance = Literal["proportional", "equal"]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """What each class gives.

    Attributes:
        rows: int64 (c,), distinct rows taken.
        copies: int64 (c,), how often rows of the class count in all: ``rows``, or more where they are oversampled.
    """

    rows: Int64
    copies: Int64


def match_counts(target: npt.ArrayLike, sizes: npt.ArrayLike, total: int, on_shortage: Shortage) -> Shares:
    """Rows of each class for a subset of ``total`` whose classes are distributed as the target's.

    Args:
        target: (c,) counts or shares of each class, not all zero.
        sizes: (c,) whole numbers, the rows that there are.
        total: rows wanted.
        on_shortage: what to do where a class has fewer rows than its share: "stop" at what it has, so that fewer than
            ``total`` come back; "redistribute" what is missing over the classes that have more, in proportion to the
            target; "oversample", that is, count its rows several times. What a class without any row would have had
            is always the others' where there are others, but for "stop".

    Returns:
        The shares. Nothing is taken of a class that the target does not have.

    Raises:
        ValueError: the lengths differ, or the target has no positive share.

    >>> for policy in ("stop", "redistribute", "oversample"):
    ...     shares = match_counts([0.5, 0.5], [2, 10], 8, policy)
    ...     print(shares.rows.tolist(), shares.copies.tolist())
    [2, 4] [2, 4]
    [2, 6] [2, 6]
    [2, 4] [4, 4]
    """
    wanted, there = np.asarray(target, np.float64), np.asarray(sizes, np.int64)
    if wanted.shape != there.shape or not wanted.sum() > 0:
        raise ValueError(f"a target of {len(wanted)} classes with sum {wanted.sum()} does not fit {len(there)} sizes")
    asked = wanted > 0
    if on_shortage == "redistribute":
        there = np.where(asked, there, 0)
        rows = allocate(wanted, 0, there, min(total, int(there.sum())), form="multiplicative")
        return Shares(rows, rows)
    if on_shortage == "oversample":
        asked = asked & (there > 0)
        if not asked.any():
            nothing = np.zeros(len(there), np.int64)
            return Shares(nothing, nothing)
    ideal = allocate(np.where(asked, wanted, 0), 0, np.where(asked, total, 0), total, form="multiplicative")
    rows = np.minimum(ideal, there)
    return Shares(rows, ideal if on_shortage == "oversample" else rows)


def total_variation(target: npt.ArrayLike, realised: npt.ArrayLike) -> float:
    """Half the sum of absolute differences of two distributions over the same classes, from 0 to 1.

    Args:
        target, realised: (c,) counts or shares, each divided by its sum.

    Returns:
        The distance; NaN where one of them is all zero.

    >>> total_variation([1, 1], [2, 6])
    0.25
    """
    a, b = np.asarray(target, np.float64), np.asarray(realised, np.float64)
    if not a.sum() > 0 or not b.sum() > 0:
        return float("nan")
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def equal_width_bins(scores: npt.ArrayLike, low: float, high: float, bins: int) -> npt.NDArray[np.int32]:
    """The bin of each score when [low, high] is cut into ``bins`` of equal width; the highest score is in the last.

    >>> equal_width_bins([0.0, 0.4, 0.5, 1.0], 0.0, 1.0, 2).tolist()
    [0, 0, 1, 1]
    """
    values = np.asarray(scores, np.float64)
    if not high > low:
        return np.zeros(len(values), np.int32)
    # Halves, so that the width of a range from one end of the floats to the other does not overflow.
    place = (values / 2 - low / 2) / (high / 2 - low / 2) * bins
    return np.clip(np.floor(place), 0, bins - 1).astype(np.int32)


def stratum_counts(sizes: npt.ArrayLike, total: int) -> Int64:
    """An equal budget for every stratum that has rows; what one cannot fill is spread over the others (CCS).

    Args:
        sizes: (k,) whole numbers, the rows of each stratum.
        total: at most their sum.

    >>> stratum_counts([1, 0, 5, 9], total=9).tolist()
    [1, 0, 4, 4]
    """
    there = np.asarray(sizes, np.int64)
    filled = max(1, int((there > 0).sum()))
    return allocate(np.where(there > 0, total / filled, 0.0), 0, there, total, form="additive")


def floor_counts(sizes: npt.ArrayLike, total: int, share: float, balance: Balance) -> Int64:
    """Rows that each cluster keeps whatever the other clusters have (SSP's balance).

    Args:
        sizes: (k,) whole numbers M_j; empty clusters do not count.
        total: N, at most n, the sum of the sizes.
        share: b from 0 to 1, how much of the total is bound.
        balance: "proportional" floors are floor(b M_j N / n); "equal" ones min(M_j, floor(b N / k)).

    Returns:
        int64 (k,), adding up to ``total`` at most.

    >>> floor_counts([4, 2], 4, 1.0, "proportional").tolist(), floor_counts([4, 2], 4, 1.0, "equal").tolist()
    ([2, 1], [2, 2])
    """
    there = np.asarray(sizes, np.int64)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, not {share}")
    rows, clusters = int(there.sum()), int((there > 0).sum())
    if rows == 0:
        return np.zeros(len(there), np.int64)
    if balance == "proportional":
        return np.floor(np.round(share * total / rows * there, 9)).astype(np.int64)
    return np.minimum(there, int(np.floor(round(share * total / clusters, 9))))
