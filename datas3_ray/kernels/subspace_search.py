"""Exact nearest rows in low-dimensional subspaces of a column-major matrix, many subspaces at a time.

Searches that share a dimension are worked off together: its column is sorted once, and only rows in a strip of it
around the point can be near. How wide the strip must be is known exactly as soon as enough rows were found in it: a row
outside is no nearer than its distance along the strip. Distances are float32 L1, added up in the order of the
subspace's dimensions, which every processor rounds alike; sums of such numbers never fall below their parts, so no row
is lost to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]

_SAMPLED = 32  # rows of a strip's sample that should be as near as the farthest neighbour
_MARGIN = np.float32(1.15)
_STRIPS_BYTES = 256 << 20  # sorted columns held at once
_INFINITY = np.float32(np.inf)


class Columns:
    """A column-major matrix in blocks, so that no array need be as large as the whole.

    Args:
        blocks: float32 arrays of shape (columns of the block, n), C-contiguous, all of one n. Every block but the
            last has as many columns as the first.

    >>> columns = Columns([np.zeros((2, 5), np.float32), np.ones((1, 5), np.float32)])
    >>> columns.rows, columns.width, columns[2][0]
    (5, 3, np.float32(1.0))
    """

    def __init__(self, blocks: Sequence[Float32]) -> None:
        self.blocks = list(blocks)
        if not self.blocks:
            raise ValueError("a matrix needs at least one block of columns")
        self.rows = self.blocks[0].shape[1]
        self.step = max(1, len(self.blocks[0]))
        for block in self.blocks:
            if block.dtype != np.float32 or not block.flags.c_contiguous or block.shape[1] != self.rows:
                raise ValueError(
                    f"blocks must be C-contiguous float32 of {self.rows} rows, not {block.dtype} of shape {block.shape}"
                )
        self.width = sum(len(block) for block in self.blocks)

    def __getitem__(self, column: int) -> Float32:
        return self.blocks[column // self.step][column % self.step]


@dataclass(frozen=True)
class Draws:
    """Points in random subspaces.

    Attributes:
        dimensions: (t, m) int32, distinct columns, in the order in which distances are added up.
        point: (t, m) float32.
        strip: (t,) int8, which of the m dimensions is searched along; it changes the speed and nothing else.
    """

    dimensions: npt.NDArray[np.int32]
    point: Float32
    strip: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.dimensions)

    def __getitem__(self, rows: Any) -> Draws:
        return Draws(self.dimensions[rows], self.point[rows], self.strip[rows])

    def along(self) -> npt.NDArray[np.int32]:
        """(t,) column of each draw's strip."""
        return np.take_along_axis(self.dimensions, self.strip[:, None].astype(np.int64), axis=1)[:, 0]


@dataclass(frozen=True)
class Subspace:
    """The dimensions of one draw, and the place of the strip's among them."""

    dimensions: list[int]
    strip: int


class StripSearch:
    """Exact nearest rows in subspaces that share one dimension, by strips of that dimension's sorted column."""

    def __init__(self, columns: Columns, along: int, most: int, scratch: tuple[Float32, Float32]) -> None:
        self.columns = columns
        self.rows = np.argsort(columns[along])
        self.values = columns[along][self.rows]
        self.n = len(self.rows)
        self.total, self.term = scratch
        self.stride = max(1, most // _SAMPLED)
        self.sampled_values = self.values[:: self.stride].copy()
        self.sampled_rows = self.rows[:: self.stride].copy()

    @staticmethod
    def draw(draws: Draws, t: int) -> Subspace:
        return Subspace(draws.dimensions[t].tolist(), int(draws.strip[t]))

    def nearest(self, draw: Subspace, point: Float32) -> tuple[np.float32, int]:
        """Smallest distance to the point, and the smallest row that has it."""
        centre = point[draw.strip]
        at = int(self.values.searchsorted(centre))
        reach = int(1.5 * self.n ** (1 - 1 / len(point))) + 32
        low, high = max(0, at - reach), min(self.n, at + reach)
        distance = self._distances(self.values, self.rows, low, high, draw, point)
        best = distance.min()
        if not best < self._edge(low, high, centre):
            # A row outside is no nearer than its distance along the strip, so this is as far as one can hide.
            low, high = self._span(centre, best)
            distance = self._distances(self.values, self.rows, low, high, draw, point)
            best = distance.min()
        return best, int(self.rows[low:high][distance == best].min())

    def around(self, draw: Subspace, centre: Float32, k: int) -> tuple[Float32, Int64]:
        """Distances and rows of the k <= n rows nearest to ``centre``, ties to the smaller row, in no order."""
        middle = centre[draw.strip]
        radius = self._guess(draw, centre, k)
        while True:
            low, high = self._span(middle, radius)
            distance = self._distances(self.values, self.rows, low, high, draw, centre)
            near = (distance <= radius).nonzero()[0]
            if len(near) >= k:
                break
            radius = self._wider(distance, low, high, middle, k)
        found = distance[near]
        if len(near) > k:
            limit = np.partition(found, k - 1)[k - 1]
            inside = (found <= limit).nonzero()[0]
            near, found = near[inside], found[inside]
        rows = self.rows[low:high][near]
        return smallest_rows(found, rows, limit, k) if len(near) > k else (found, rows)

    def _guess(self, draw: Subspace, centre: Float32, k: int) -> np.float32:
        """A radius that a sample of the strip says holds somewhat more than k rows; infinite where all are needed."""
        size = len(self.sampled_rows)
        wanted = -(-k // self.stride)
        if 2 * k >= self.n or size <= wanted:
            return _INFINITY
        at = int(self.sampled_values.searchsorted(centre[draw.strip]))
        reach = int(1.2 * size * (wanted / size) ** (1 / len(centre))) + wanted
        low, high = max(0, at - reach), min(size, at + reach)
        distance = self._distances(self.sampled_values, self.sampled_rows, low, high, draw, centre)
        if len(distance) <= wanted:
            return _INFINITY
        distance.sort()
        return distance[wanted] * _MARGIN

    def _wider(self, distance: Float32, low: int, high: int, middle: np.float32, k: int) -> np.float32:
        """A larger radius: one that is sure to hold k rows where that is known, else that of a strip of more rows."""
        if len(distance) >= k:
            return np.partition(distance, k - 1)[k - 1]
        more = high - low + k
        low, high = low - more, high + more
        if low < 0 or high > self.n:
            return _INFINITY
        return max(middle - self.values[low], self.values[high - 1] - middle)

    def _distances(self, values: Float32, rows: Int64, low: int, high: int, draw: Subspace, centre: Float32) -> Float32:
        """L1 distances of the strip's rows, added in the order of the draw's dimensions; valid until the next call."""
        total, term = self.total[: high - low], self.term[: high - low]
        for i, dimension in enumerate(draw.dimensions):
            out = term if i else total
            if i == draw.strip:
                np.subtract(values[low:high], centre[i], out=out)
            else:
                self.columns[dimension].take(rows[low:high], out=out, mode="clip")
                np.subtract(out, centre[i], out=out)
            np.abs(out, out=out)
            if i:
                np.add(total, term, out=total)
        return total

    def _span(self, middle: np.float32, radius: np.float32) -> tuple[int, int]:
        """The rows of the strip whose distance along it is at most the radius."""
        low = int(self.values.searchsorted(middle - radius))
        high = int(self.values.searchsorted(middle + radius, side="right"))
        # The bounds are rounded, and so are distances: rows just outside may be within the radius all the same.
        while low > 0 and middle - self.values[low - 1] <= radius:
            low = int(self.values.searchsorted(self.values[low - 1]))
        while high < self.n and self.values[high] - middle <= radius:
            high = int(self.values.searchsorted(self.values[high], side="right"))
        return low, high

    def _edge(self, low: int, high: int, middle: np.float32) -> np.float32:
        """How near a row outside the strip can be at most."""
        below = abs(middle - self.values[low - 1]) if low > 0 else _INFINITY
        above = abs(self.values[high] - middle) if high < self.n else _INFINITY
        return min(below, above)


def smallest_rows(found: Float32, rows: Int64, limit: np.float32, k: int) -> tuple[Float32, Int64]:
    """All rows nearer than the limit, and of those at the limit the smallest, k in all."""
    nearer = found < limit
    at = np.sort(rows[found == limit])[: k - int(nearer.sum())]
    return np.concatenate([found[nearer], np.full(len(at), limit)]), np.concatenate([rows[nearer], at])


def strip_searches(columns: Columns, draws: Draws, most: int) -> Iterator[tuple[StripSearch, int]]:
    """Every draw with the search that serves it.

    Several strips are worked off together, by the draws' other dimension, so that its column is still in the
    processor's cache when the next strip wants it.
    """
    scratch = np.empty(columns.rows, np.float32), np.empty(columns.rows, np.float32)
    along = draws.along()
    other = draws.dimensions[np.arange(len(draws)), (draws.strip + 1) % draws.dimensions.shape[1]]
    strips = equal_keys(along)
    together = int(np.clip(_STRIPS_BYTES // (16 * columns.rows + 1), 1, 16))
    for some in (strips[i : i + together] for i in range(0, len(strips), together)):
        searches = [StripSearch(columns, int(along[rows[0]]), most, scratch) for rows in some]
        rows = np.concatenate(some)
        which = np.repeat(np.arange(len(some)), [len(mine) for mine in some])
        for at in np.argsort(other[rows], kind="stable").tolist():
            yield searches[which[at]], int(rows[at])


def equal_keys(keys: npt.NDArray[Any]) -> list[Int64]:
    """Places of equal keys, in order of the key."""
    if len(keys) == 0:
        return []
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
