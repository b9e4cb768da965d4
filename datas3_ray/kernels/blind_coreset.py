"""BlindCoreset: votes for rows that stand alone in random subspaces (ZCore, arXiv 2411.15349).

A draw picks a few dimensions and a point s in them, each coordinate from a triangular distribution over the
dimension's range with its mode at the median. The row nearest to s by L1 distance gets a vote; the rows around that
row share a penalty of as much, in proportion to distance^-beta:

    score[k] += 1,  k = argmin_i |z_i - s|;    score[i] -= v_i / sum v,  v_i = |z_i - z_k|^-beta, i among the nearest

Everything is decided in a fixed way, so that the answer is the same to the last bit for any division of draws and rows:
draws are hashes of (seed, number); distances are float32 sums in the order of the draw's dimensions, which every
processor rounds alike; equal distances go to the smaller row; votes are whole numbers of :data:`UNIT`-ths, and what a
vote gives is just what its penalties take, so all scores together are exactly 0.

How the rows are found is :mod:`datas3_ray.kernels.subspace_search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.hashing import hash64, uniform
from datas3_ray.kernels.subspace_search import Columns, Draws, equal_keys, smallest_rows, strip_searches

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]

UNIT = 1 << 32
"""Parts that one vote is made of; scores are counted in them, as int64."""

_INFINITY = np.float32(np.inf)


@dataclass(frozen=True)
class Ranges:
    """Where the values of each column that varies lie.

    Attributes:
        column: (c,) int64, ascending, the columns with more than one value.
        low, median, high: (c,) float64.
    """

    column: Int64
    low: Float64
    median: Float64
    high: Float64

    @staticmethod
    def of(columns: Columns) -> Ranges:
        """The ranges of a whole matrix in memory.

        >>> Ranges.of(Columns([np.array([[3, 0, 1], [7, 7, 7]], np.float32)]))
        Ranges(column=array([0]), low=array([0.]), median=array([1.]), high=array([3.]))
        """
        parts = [block_ranges(block) for block in columns.blocks]
        return Ranges.varying(*np.concatenate(parts, axis=1))

    @staticmethod
    def varying(low: npt.ArrayLike, median: npt.ArrayLike, high: npt.ArrayLike) -> Ranges:
        """Leave out the columns that have one value only."""
        least, middle, most = (np.asarray(values, np.float64) + 0.0 for values in (low, median, high))
        column = np.flatnonzero(least < most)
        return Ranges(column, least[column], middle[column], most[column])


def block_ranges(block: Float32) -> Float64:
    """Least value, median and greatest value of each of a block's columns, as float64 of shape (3, columns).

    >>> block_ranges(np.array([[3, 0, 1, 7]], np.float32)).tolist()
    [[0.0], [2.0], [7.0]]
    """
    lower, upper = (block.shape[1] - 1) // 2, block.shape[1] // 2
    found = np.empty((3, len(block)))
    for j, column in enumerate(block):
        part = np.partition(column, [lower, upper])
        found[:, j] = part[: lower + 1].min(), (float(part[lower]) + float(part[upper])) / 2, part[upper:].max()
    return found


def triangular(u: npt.ArrayLike, low: npt.ArrayLike, mode: npt.ArrayLike, high: npt.ArrayLike) -> Float64:
    """Quantiles of the triangular distribution.

    Args:
        u: numbers strictly between 0 and 1; all arguments are broadcast.
        low, mode, high: low <= mode <= high, low < high.

    >>> triangular([1 / 12, 1 / 3, 5 / 6], 0.0, 1.0, 3.0).round(12).tolist()
    [0.5, 1.0, 2.0]
    """
    share, least, middle, most = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (u, low, mode, high)))
    if not (least < most).all():
        raise ValueError("a triangular distribution needs low < high; leave out columns with one value only")
    span = most - least
    rising = least + np.sqrt(share * span * (middle - least))
    falling = most - np.sqrt((1.0 - share) * span * (most - middle))
    return np.clip(np.where(share < (middle - least) / span, rising, falling), least, most)


def make_draws(seed: int, first: int, count: int, ranges: Ranges, subspace: int = 2) -> Draws:
    """Draws number ``first`` to ``first + count - 1``: each depends on the seed, its number and the ranges only.

    Args:
        seed: 0 <= seed < 2**64.
        ranges: of the whole pool.
        subspace: m, dimensions of each draw.

    Returns:
        Draws with ``strip`` 0 throughout; see :func:`choose_strips`.

    Raises:
        ValueError: fewer columns vary than a draw has dimensions.

    >>> ranges = Ranges.varying([0.0] * 4, [1.0] * 4, [3.0] * 4)
    >>> both = make_draws(1, 0, 20, ranges)
    >>> bool((both.dimensions[:, 0] != both.dimensions[:, 1]).all())
    True
    >>> np.array_equal(make_draws(1, 15, 5, ranges).point, both.point[15:])
    True
    """
    available = len(ranges.column)
    if available < subspace:
        raise ValueError(f"draws of {subspace} dimensions need as many columns that vary, and {available} do")
    numbers = np.arange(first, first + count, dtype=np.uint64)[:, None]
    picks = np.empty((count, subspace), np.int64)
    point = np.empty((count, subspace), np.float32)
    for i in range(subspace):
        hashes = hash64(numbers, seed=seed, stream=f"blind-coreset-dimension-{i}")
        pick = (((hashes >> np.uint64(32)) * np.uint64(available - i)) >> np.uint64(32)).astype(np.int64)
        # A pick counts among the columns that are left: step over the earlier picks in ascending order.
        for earlier in np.sort(picks[:, :i], axis=1).T:
            pick += pick >= earlier
        picks[:, i] = pick
        u = uniform(hash64(numbers, seed=seed, stream=f"blind-coreset-point-{i}"))
        point[:, i] = triangular(u, ranges.low[pick], ranges.median[pick], ranges.high[pick])
    return Draws(ranges.column[picks].astype(np.int32), point, np.zeros(count, np.int8))


def choose_strips(draws: Draws, sketches: Float32) -> tuple[Draws, Int64]:
    """Search each draw along the dimension in which rows are sparsest around its point, draws of one strip together.

    Args:
        sketches: (columns, q) float32, a sample of each column's values, sorted.

    Returns:
        The draws in their new order, and their old places.
    """
    density = np.empty(draws.point.shape)
    size = sketches.shape[1]
    for i in range(draws.point.shape[1]):
        for rows in equal_keys(draws.dimensions[:, i]):
            sketch = sketches[draws.dimensions[rows[0], i]]
            at = np.searchsorted(sketch, draws.point[rows, i])
            low, high = np.maximum(at - size // 16 - 1, 0), np.minimum(at + size // 16, size - 1)
            width = sketch[high].astype(np.float64) - sketch[low]
            density[rows, i] = np.divide(high - low, width, out=np.full(len(rows), np.inf), where=width > 0)
    chosen = Draws(draws.dimensions, draws.point, density.argmin(axis=1).astype(np.int8))
    order = np.argsort(chosen.along(), kind="stable")
    return chosen[order], order


def sketch(columns: Columns, size: int = 256) -> Float32:
    """(columns, at most size) float32: sorted values of evenly spaced rows, for :func:`choose_strips`."""
    step = max(1, columns.rows // size)
    return np.concatenate([np.sort(block[:, ::step][:, :size], axis=1) for block in columns.blocks])


def score_draws(columns: Columns, draws: Draws, neighbours: int, beta: float) -> Int64:
    """What the draws add to each row, in :data:`UNIT`-ths of a vote.

    Args:
        columns: the pool; rows in the order that breaks ties.
        draws: in any order; quick when draws of one strip are together.
        neighbours: alpha, rows that share a penalty; all other rows where there are fewer.
        beta: exponent of the distance.

    Returns:
        int64 of shape (n,), with sum 0. Neighbours at distance 0 share a penalty equally and leave nothing to others.

    >>> line = Columns([np.array([[0.0, 1.0, 3.0]], np.float32)])
    >>> draw = Draws(np.array([[0]], np.int32), np.array([[0.9]], np.float32), np.zeros(1, np.int8))
    >>> (score_draws(line, draw, neighbours=2, beta=4) / UNIT).round(6).tolist()
    [-0.941176, 1.0, -0.058824]
    """
    score = np.zeros(columns.rows, np.int64)
    if columns.rows < 2:
        return score
    most = min(neighbours, columns.rows - 1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for search, t in strip_searches(columns, draws, most + 1):
            draw = search.draw(draws, t)
            winner = search.nearest(draw, draws.point[t])[1]
            centre = np.array([columns[j][winner] for j in draw.dimensions], np.float32)
            distance, near = search.around(draw, centre, most + 1)
            # The winner is a neighbour of its own at distance 0, and has no share.
            distance[near == winner] = _INFINITY
            units = penalties(distance, beta)
            score[near] -= units
            score[winner] += units.sum()
    return score


def nearest_rows(columns: Columns, draws: Draws) -> tuple[Float32, Int64, Float32]:
    """The nearest row to each draw's point.

    Returns:
        distance (t,) float32, row (t,) int64 and the row's coordinates (t, m) float32.

    >>> line = Columns([np.array([[0.0, 1.0, 3.0]], np.float32)])
    >>> draw = Draws(np.array([[0]], np.int32), np.array([[2.0]], np.float32), np.zeros(1, np.int8))
    >>> nearest_rows(line, draw)
    (array([1.], dtype=float32), array([1]), array([[1.]], dtype=float32))
    """
    distance = np.full(len(draws), np.inf, np.float32)
    row = np.full(len(draws), -1, np.int64)
    centre = np.zeros(draws.point.shape, np.float32)
    if columns.rows:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for search, t in strip_searches(columns, draws, 1):
                draw = search.draw(draws, t)
                distance[t], row[t] = search.nearest(draw, draws.point[t])
                centre[t] = [columns[j][row[t]] for j in draw.dimensions]
    return distance, row, centre


def rows_around(columns: Columns, draws: Draws, centre: Float32, most: int) -> tuple[Float32, Int64]:
    """The ``most`` nearest rows to a point in each draw's subspace, by (distance, row), nearest first.

    Args:
        centre: (t, m) float32.

    Returns:
        distance (t, k) float32 and row (t, k) int64, with k = min(most, n).
    """
    k = min(most, columns.rows)
    distance = np.empty((len(draws), k), np.float32)
    row = np.empty((len(draws), k), np.int64)
    if k:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for search, t in strip_searches(columns, draws, k):
                found, near = search.around(search.draw(draws, t), centre[t], k)
                order = np.lexsort((near, found))
                distance[t], row[t] = found[order], near[order]
    return distance, row


def settle(distance: Float32, row: Int64, winner: Int64, neighbours: int, beta: float) -> tuple[Float32, Int64, Int64]:
    """Votes and penalties of draws whose nearest rows were found in parts: what :func:`score_draws` does with them.

    Args:
        distance, row: (t, k) from :func:`rows_around` of all parts side by side, rows numbered over all parts.
        winner: (t,) the row that each draw's vote goes to.

    Returns:
        limit (t,) float32, the distance of the farthest row that counts: a part that has rows it did not show must
        have shown one beyond it; then rows and units, flat, to be added to the scores.

    >>> limit, rows, units = settle(np.array([[0, 1, 2]], np.float32), np.array([[1, 0, 2]]), np.array([1]), 1, 4.0)
    >>> limit.tolist(), rows.tolist(), (units / UNIT).tolist()
    ([1.0], [1, 0, 1], [0.0, -1.0, 1.0])
    """
    most = min(neighbours + 1, distance.shape[1])
    limit = np.partition(distance, most - 1, axis=1)[:, most - 1]
    rows: list[Int64] = []
    units: list[Int64] = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for t in range(len(distance)):
            found, near = smallest_rows(distance[t], row[t], limit[t], most)
            found[near == winner[t]] = _INFINITY
            paid = penalties(found, beta)
            rows += [near, winner[t : t + 1]]
            units += [-paid, paid.sum(keepdims=True)]
    if not rows:
        return limit, np.empty(0, np.int64), np.empty(0, np.int64)
    return limit, np.concatenate(rows), np.concatenate(units)


def penalties(distance: Float32, beta: float) -> Int64:
    """The share of one vote that each neighbour pays, in :data:`UNIT`-ths, whatever their order.

    Weights are (smallest distance / distance)^beta, which cannot overflow. Rows at distance 0 share equally.

    Args:
        distance: (k,) float32, at least 0; an infinite distance has no share.

    Returns:
        int64 (k,), adding up to one vote but for rounding, or 0 where no distance is finite.

    >>> (penalties(np.array([1, 2], np.float32), 4.0) / UNIT).round(6).tolist()
    [0.941176, 0.058824]
    >>> (penalties(np.array([0, 3, 0], np.float32), 4.0) / UNIT).tolist()
    [0.5, 0.0, 0.5]
    """
    least = distance.min() if len(distance) else _INFINITY
    if not least < _INFINITY:
        return np.zeros(len(distance), np.int64)
    weights = _weights(distance, least, beta)
    weights *= UNIT / weights.sum()
    return np.rint(weights, out=weights).astype(np.int64)


def _weights(distance: Float32, least: np.float32, beta: float) -> Float64:
    """Weights as whole numbers of 2^-30, so that their sum is exact in any order (up to 2^23 neighbours)."""
    if least == 0:
        return (distance == 0).astype(np.float64) * 2.0**30
    ratio = np.divide(float(least), distance, dtype=np.float64)
    weights = _power(ratio, beta)
    weights *= 2.0**30
    return np.rint(weights, out=weights)


def _power(base: Float64, exponent: float) -> Float64:
    """Powers by multiplication where the exponent is a small whole number, which every processor rounds alike."""
    if exponent != int(exponent) or exponent > 64:
        return np.power(base, exponent)
    result, bits = None, int(exponent)
    while bits:
        if bits & 1:
            result = base.copy() if result is None else np.multiply(result, base, out=result)
        bits >>= 1
        if bits:
            base = base * base
    return np.ones_like(base) if result is None else result
