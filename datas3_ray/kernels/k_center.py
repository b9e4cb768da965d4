"""Farthest-first traversal (k-center, Gonzalez 1985): each centre is the row farthest from those before it.

Distances are squared Euclidean, computed in float64 and stated in float32, so that each is a function of its two
vectors alone; a float32 product only skips pairs that are safely away. Rows rank by (distance descending, id
ascending).

The traversal is sequential, and yet needs few passes over the rows. Distances only ever fall, so a row's last known
distance is a bound: the driver gathers the first few rows of every shard, picks among them for as long as the
best of them ranks before every row that was left out, and only then sends the new centres to the shards. That gives the
same centres as one pass a centre would.

>>> shard = Rows.of(np.array([[0], [1], [5], [10]], np.float32))
>>> least = start(len(shard))
>>> lower(least, shard, shard.take([0]))
>>> least.tolist()
[0.0, 1.0, 25.0, 100.0]
>>> picks, distance = pick(shard, least, order=np.arange(4), fence=None, count=2)
>>> picks.tolist(), distance.tolist()
([3, 2], [100.0, 25.0])
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import WINDOW, at_least, full_precision, matrix, positions, require_same_width

if TYPE_CHECKING:
    import torch

TAKEN = -1.0
"""The distance of a row that is a centre already."""

_TILE_ELEMENTS = 1 << 22
_MOST_ROWS = 4096
_CHUNK = 1024
_LONGEST = 1e18

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Vectors on a device, with their squared lengths.

    Attributes:
        vectors: float32 (n, d).
        squares: float32 (n,).
    """

    vectors: torch.Tensor
    squares: torch.Tensor

    @staticmethod
    def of(X: npt.ArrayLike, device: str = "cpu") -> Rows:
        """Rows of a (n, d) matrix of float32 or float16.

        Raises:
            ValueError: a row is not finite, or longer than 1e18, whose square float32 cannot hold.
        """
        import torch

        array = matrix(X, "X")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # arrays out of Arrow are read-only, and only read here
            vectors = torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=torch.float32)
        squares = torch.cat([(part.double() ** 2).sum(1) for part in vectors.split(_CHUNK)] or [vectors.new_empty(0)])
        good = squares <= _LONGEST**2
        if not bool(good.all()):
            row = int(torch.nonzero(~good)[0])
            raise ValueError(f"row {row} of X is not finite or longer than {_LONGEST:g}; leave such rows out")
        return Rows(vectors, squares.float())

    def take(self, index: npt.ArrayLike) -> Rows:
        """Some of the rows, in the order given."""
        import torch

        chosen = torch.as_tensor(np.asarray(index, np.int64), device=self.vectors.device)
        return Rows(self.vectors[chosen], self.squares[chosen])

    def __len__(self) -> int:
        return len(self.vectors)


def start(n: int) -> Float32:
    """Distances before the first centre: infinite.

    >>> start(2).tolist()
    [inf, inf]
    """
    return np.full(n, np.inf, np.float32)


def lower(least: Float32, rows: Rows, centres: Rows) -> None:
    """Lower each row's squared distance to its nearest centre, in place, by some new centres.

    Args:
        least: float32 (n,), changed in place; rows at 0 or marked ``TAKEN`` are passed over.
        rows: n vectors.
        centres: any number of vectors, on the same device.

    Raises:
        ValueError: the vectors differ in their dimensions, or ``least`` is not a float32 of their number.
    """
    import torch

    if len(centres) == 0 or len(rows) == 0:
        return
    if rows.vectors.shape[1] != centres.vectors.shape[1]:
        require_same_width(rows.vectors.cpu().numpy(), centres.vectors.cpu().numpy(), "rows and centres")
    if least.dtype != np.float32 or least.shape != (len(rows),):
        raise ValueError(f"least must be float32 of shape ({len(rows)},), not {least.dtype} of shape {least.shape}")
    known = torch.from_numpy(least)
    size = max(1, min(_MOST_ROWS, _TILE_ELEMENTS // len(centres)))
    with full_precision():
        for first in range(0, len(rows), size):
            span = slice(first, first + size)
            block = Rows(rows.vectors[span], rows.squares[span])
            known[span] = _lowered(known[span].to(rows.vectors.device), block, centres).cpu()


def farthest(least: Float32, order: npt.ArrayLike, count: int) -> tuple[Int64, bool]:
    """The rows that rank first, by (distance descending, order ascending), and whether others are left.

    Args:
        least: float32 (n,), ``TAKEN`` for centres, which are passed over.
        order: whole numbers (n,), all different: the rank of each row's id.
        count: how many rows are wanted, at least 1.

    Returns:
        int64 (min(count, rows left),), first row first, and whether rows were left out.

    >>> farthest(np.array([3, 9, 9, -1], np.float32), [0, 2, 1, 3], 2)
    (array([2, 1]), True)
    """
    ranks = np.asarray(order)
    free = int((least != TAKEN).sum())
    wanted = min(count, free)
    if wanted == 0:
        return np.empty(0, np.int64), False
    last = np.partition(least, len(least) - wanted)[len(least) - wanted]
    above = np.flatnonzero(least > last)
    tied = np.flatnonzero(least == last)
    missing = wanted - len(above)
    if missing < len(tied):
        tied = tied[np.argpartition(ranks[tied], missing - 1)[:missing]]
    chosen = np.concatenate([above, tied])
    return chosen[np.lexsort([ranks[chosen], -least[chosen]])], wanted < free


def pick(
    candidates: Rows, least: npt.ArrayLike, order: npt.ArrayLike, fence: int | None, count: int
) -> tuple[Int64, Float32]:
    """Centres that are certain to be the next ones, given the rows that ranked first.

    Args:
        candidates: b vectors.
        least: float32 (b,), their squared distances to the centres so far; ``TAKEN`` for none.
        order: whole numbers (b,), all different, the rank of each one's id.
        fence: the candidate that ranked last before the rows that were left out; None where none was.
        count: how many centres are wanted at most.

    Returns:
        picks: int64 (p,), candidates in the order in which they become centres. At least one, unless ``count`` is 0,
            there is no candidate, or every one is at distance 0.
        distance: float32 (p,), each one's squared distance to the centres before it, never rising.
    """
    known = np.array(least, np.float32)
    ranks = np.asarray(order)
    limit = (known[fence], ranks[fence]) if fence is not None else None
    picks: list[int] = []
    distances: list[float] = []
    while len(picks) < count and len(known):
        peak = known.max()
        if peak <= 0:
            break
        tied = np.flatnonzero(known == peak)
        best = int(tied[np.argmin(ranks[tied])])
        if limit is not None and (peak < limit[0] or (peak == limit[0] and ranks[best] > limit[1])):
            break
        picks.append(best)
        distances.append(float(peak))
        known[best] = TAKEN
        lower(known, candidates, candidates.take([best]))
    return np.array(picks, np.int64), np.array(distances, np.float32)


def _lowered(least: torch.Tensor, rows: Rows, centres: Rows) -> torch.Tensor:
    """float32 (n,): what ``least`` falls to; only pairs that may lower it are computed exactly.

    The float32 product is off by less than WINDOW of the two squared lengths, so that taking this share off both makes
    the sum a lower bound of the distance.
    """
    import torch

    own = rows.squares * (1 - WINDOW)
    bound = torch.addmm(centres.squares * (1 - WINDOW), rows.vectors, centres.vectors.T, alpha=-2)
    floor = bound.amin(1) + own
    lines = torch.nonzero((floor < least) & (least > 0)).view(-1)
    if len(lines) == 0:
        return least
    # Above the nearest centre's upper bound, a pair cannot be the row's least.
    slack = 2.1 * WINDOW * (rows.squares[lines] + centres.squares.max())
    limit = torch.minimum(least[lines], floor[lines] + slack) - own[lines] + WINDOW * rows.squares[lines]
    r, c = positions(at_least(-bound[lines], -limit))
    found = _squared_distances(rows.vectors, lines[r], centres.vectors, c)
    return least.scatter_reduce(0, lines[r], found, "amin")


def _squared_distances(left: Any, i: torch.Tensor, right: Any, j: torch.Tensor) -> torch.Tensor:
    """float32 (p,) of pairs of rows, from float64, a chunk at a time."""
    import torch

    found = torch.empty(len(i), dtype=torch.float32, device=left.device)
    for first in range(0, len(i), _CHUNK):
        span = slice(first, first + _CHUNK)
        off = left[i[span]].double() - right[j[span]].double()
        found[span] = (off * off).sum(1).float()
    return found
