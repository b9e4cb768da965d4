"""For each row, the most similar of the rows before it (SemDeDup, arXiv 2303.09540, section 3).

Rows come in keep order. M_j = max(0, max over i < j of cos(x_i, x_j)): a row is a duplicate at eps when M_j > 1 - eps,
whether or not the earlier row is kept itself. No matrix larger than a tile is ever made. A cosine is the float64 dot
product rounded to six decimals, and of equally similar rows the first counts, so the answer is the same for every
tile size, and when a cluster is split into pieces whose pairs are separate tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import (
    NO_EARLIER,
    SCALE,
    Pairs,
    Tile,
    decode,
    full_precision,
    improve,
    matrix,
    require_same_width,
    unit_rows,
)
from datas3_ray.kernels.screen import Screen, Search, Workspace, fast_units

if TYPE_CHECKING:
    import torch

SMALL_BLOCK = 256
LARGE_BLOCK = 1024
SCREEN_BLOCK = 512
SCREENED = 768
"""Rows from which looking at coarse numbers first pays off."""
_LARGE = 2048
_BATCHED = 256
_BATCH_ELEMENTS = 1 << 22


class PriorMax(NamedTuple):
    """The largest cosine of each row to an earlier row, and which row that is.

    Attributes:
        similarity: float32 (n,), rounded to six decimals, 0 where no earlier row has a positive cosine.
        argmax: int64 (n,), the earlier row, -1 where there is none.
    """

    similarity: npt.NDArray[np.float32]
    argmax: npt.NDArray[np.int64]


def largest_kept(eps: float) -> int:
    """The largest cosine, in whole millionths, that is not above 1 - eps.

    >>> largest_kept(0.03), largest_kept(0.9)
    (970000, 100000)
    """
    return math.floor((1.0 - eps) * SCALE + 1e-6)


def prior_max(X: npt.ArrayLike, block: int | None = None, device: str = "cpu") -> PriorMax:
    """The largest cosine of each row to the rows before it.

    Args:
        X: (n, d) float32 or float16 in keep order; rows that are not unit are normalised.
        block: rows of a tile, whose memory is 4 * block^2 bytes; by default 256, or 1024 from 2048 rows on.
        device: where the tiles are multiplied.

    Returns:
        The maximum and the index in X of the first row that has it, for every row.

    Raises:
        ValueError: a row is zero, NaN or infinite, or the block is not positive.

    >>> circle = np.radians([0, 10, 20])
    >>> found = prior_max(np.stack([np.cos(circle), np.sin(circle)], 1))
    >>> [round(float(s), 4) for s in found.similarity], found.argmax.tolist()
    ([0.0, 0.9848, 0.9848], [-1, 0, 1])
    """
    vectors = matrix(X, "X")
    size = _block(block, len(vectors))
    rows = unit_rows(vectors, "X", device)
    with full_precision():
        return PriorMax(*decode(_prior(rows, size)))


def prior_max_groups(
    X: npt.ArrayLike, group_offsets: npt.ArrayLike, block: int | None = None, device: str = "cpu"
) -> PriorMax:
    """:func:`prior_max` inside each of many groups of consecutive rows.

    Groups of up to 256 rows are multiplied many at a time; a group of one costs nothing.

    Args:
        X: (n, d) float32 or float16, groups one after another, each in keep order.
        group_offsets: int (g + 1,), rising from 0 to n: group i is the rows from its i-th to its next number.
        block: rows of a tile in the larger groups.
        device: where the tiles are multiplied.

    Returns:
        The maxima, and the indices *in X* of the rows that have them.

    Raises:
        ValueError: as for :func:`prior_max`, or the offsets do not cover the rows.

    >>> prior_max_groups(np.ones((4, 2), np.float32), [0, 1, 1, 4]).argmax.tolist()
    [-1, -1, 1, 1]
    """
    import torch

    vectors = matrix(X, "X")
    offsets = _offsets(group_offsets, len(vectors))
    rows = unit_rows(vectors, "X", device)
    best = torch.full((len(rows),), NO_EARLIER, dtype=torch.int64, device=rows.device)
    pairs = Pairs(rows, rows)
    sizes = np.diff(offsets)
    with full_precision():
        for group in np.flatnonzero(sizes > _BATCHED):
            start, stop = int(offsets[group]), int(offsets[group + 1])
            found = _prior(rows[start:stop], _block(block, stop - start))
            # Codes hold the column reversed, so that columns move up as codes go down.
            best[start:stop] = found - start * (found != NO_EARLIER)
        for starts, lengths, padded in _batches(offsets[:-1], sizes):
            _batch(best, rows, pairs, torch.from_numpy(starts), torch.from_numpy(lengths), padded)
    return PriorMax(*decode(best))


def cross_max(X: npt.ArrayLike, Y: npt.ArrayLike, block: int | None = None, device: str = "cpu") -> PriorMax:
    """The largest cosine of each row of one piece to the rows of another piece that is earlier as a whole.

    Args:
        X: (n, d) float32 or float16.
        Y: (m, d), every row of which comes before every row of X.
        block: rows of a tile.
        device: where the tiles are multiplied.

    Returns:
        The maximum, and the index in Y of the first row that has it, for every row of X.

    Raises:
        ValueError: as for :func:`prior_max`.

    >>> cross_max(np.array([[1, 0]], np.float32), np.array([[0, 1], [0.6, 0.8]], np.float32)).argmax.tolist()
    [1]
    """
    import torch

    left, right = matrix(X, "X"), matrix(Y, "Y")
    require_same_width(left, right, "X and Y")
    size = _block(block, max(len(left), len(right)))
    a, b = unit_rows(left, "X", device), unit_rows(right, "Y", device)
    best = torch.full((len(a),), NO_EARLIER, dtype=torch.int64, device=a.device)
    with full_precision():
        if _screens(min(len(a), len(b)), a.device):
            _screened_cross(best, Screen(a), Screen(b), min(size, SCREEN_BLOCK))
        else:
            _cross(best, a, b, size)
    return PriorMax(*decode(best))


def cross_prior_max(
    Xa: npt.ArrayLike,
    rank_a: npt.ArrayLike,
    Xb: npt.ArrayLike,
    rank_b: npt.ArrayLike,
    block: int | None = None,
    device: str = "cpu",
) -> tuple[PriorMax, PriorMax]:
    """What two pieces of one cluster mean for each other.

    The maxima of a cluster that was cut into pieces are, by :func:`merge_max`, those of each piece with itself and
    those of each pair of pieces, in any order. The pieces may interleave.

    Args:
        Xa: (n, d) float32 or float16, rows of one piece.
        rank_a: int (n,), the place of each row in the whole cluster's keep order; ranks are distinct.
        Xb: (m, d), rows of the other piece.
        rank_b: int (m,), likewise.
        block: rows of a tile.
        device: where the tiles are multiplied.

    Returns:
        For the rows of Xa, the maximum over earlier rows of Xb and that row's rank, and the same for Xb.

    Raises:
        ValueError: as for :func:`prior_max`, or there is not one rank a row.

    >>> a, b = np.array([[1, 0]], np.float32), np.array([[0.8, 0.6], [1, 0]], np.float32)
    >>> for_a, for_b = cross_prior_max(a, [1], b, [0, 2])
    >>> for_a.argmax.tolist(), for_b.argmax.tolist()
    ([0], [-1, 1])
    """
    import torch

    left, right = matrix(Xa, "Xa"), matrix(Xb, "Xb")
    require_same_width(left, right, "Xa and Xb")
    order_a, ranks_a = _by_rank(rank_a, left, "a")
    order_b, ranks_b = _by_rank(rank_b, right, "b")
    size = _block(block, max(len(left), len(right)))
    a = unit_rows(left, "Xa", device)[torch.from_numpy(order_a).to(device)]
    b = unit_rows(right, "Xb", device)[torch.from_numpy(order_b).to(device)]
    with full_precision():
        best_a, best_b = _rectangle(a, torch.from_numpy(ranks_a), b, torch.from_numpy(ranks_b), size)
    return _restored(best_a, order_a, ranks_b), _restored(best_b, order_b, ranks_a)


def merge_max(
    first: tuple[npt.NDArray[Any], npt.NDArray[Any]], second: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> PriorMax:
    """The larger maximum of each row, at equal maxima the smaller rank; the same in whatever order parts are merged.

    Args:
        first: similarity float32 (n,) and argmax int64 (n,) as ranks in the whole cluster, -1 for none.
        second: likewise, for the same rows.

    >>> one, two = np.array([0.9, 0.5], np.float32), np.array([0.9, 0.7], np.float32)
    >>> merge_max((one, np.array([4, 1])), (two, np.array([2, 3]))).argmax.tolist()
    [2, 3]
    """
    similarity, rank = first
    other, other_rank = second
    if not len(similarity) == len(rank) == len(other) == len(other_rank):
        raise ValueError(f"maxima of {len(similarity)} rows cannot be merged with maxima of {len(other)} rows")
    earlier = (other_rank >= 0) & ((rank < 0) | (other_rank < rank))
    takes = (other > similarity) | ((other == similarity) & earlier)
    merged = np.where(takes, other, similarity).astype(np.float32)
    return PriorMax(merged, np.where(takes, other_rank, rank).astype(np.int64))


def _prior(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Codes int64 (n,) of the rows among themselves, tile by tile of the strict triangle."""
    import torch

    best = torch.full((len(rows),), NO_EARLIER, dtype=torch.int64, device=rows.device)
    pairs = Pairs(rows, rows)
    done = 0
    if _screens(len(rows), rows.device):
        done = _screened_triangle(best, Screen(rows), pairs, min(block, SCREEN_BLOCK))
    _triangle(best, rows, pairs, done, block)
    return best


def _triangle(best: torch.Tensor, rows: torch.Tensor, pairs: Pairs, done: int, block: int) -> None:
    """Raise the codes of the rows from ``done`` on, by float32 products."""
    import torch

    n = len(rows)
    size = min(block, n - done)
    buffer = torch.empty(size * min(block, n), device=rows.device)
    hidden = _not_earlier(size, rows.device)
    for top in range(done, n, block):
        bottom = min(top + block, n)
        mine = best[top:bottom]
        for first in [*range(0, top, block), top]:
            last = min(first + block, top) if first < top else bottom
            tile = _product(rows[top:bottom], rows[first:last], buffer)
            if first == top:
                tile.masked_fill_(hidden[: bottom - top, : bottom - top], -torch.inf)
            improve(mine, _tile(tile, rows, top, rows, first), pairs)
            if _saturated(mine):
                break


def _screened_triangle(best: torch.Tensor, screen: Screen, pairs: Pairs, block: int) -> int:
    """Raise the codes from the first row on; returns how many rows were done before screening proved useless."""
    n = len(best)
    space = Workspace(min(block, n), min(block, n))
    hidden = _not_earlier(min(block, n), best.device)
    for top in range(0, n, block):
        if screen.useless:
            return top
        bottom = min(top + block, n)
        search = Search(screen, top, bottom, screen, best[top:bottom], pairs, space)
        for first in range(0, top + 1, block):
            last = min(first + block, bottom)
            search.tile(first, last, hidden[: bottom - top, : bottom - top] if first == top else None)
            if _saturated(best[top:bottom]):
                break
        search.finish()
    return n


def _cross(best: torch.Tensor, a: torch.Tensor, b: torch.Tensor, block: int) -> None:
    """Raise the codes of all rows of a by all rows of b."""
    import torch

    buffer = torch.empty(min(block, len(a)) * min(block, len(b)), device=a.device)
    pairs = Pairs(a, b)
    for top in range(0, len(a), block):
        mine = best[top : top + block]
        for first in range(0, len(b), block):
            product = _product(a[top : top + block], b[first : first + block], buffer)
            improve(mine, _tile(product, a, top, b, first), pairs)
            if _saturated(mine):
                break


def _screened_cross(best: torch.Tensor, a: Screen, b: Screen, block: int) -> None:
    pairs = Pairs(a.rows, b.rows)
    space = Workspace(min(block, len(a)), min(block, len(b)))
    for top in range(0, len(a), block):
        bottom = min(top + block, len(a))
        mine = best[top:bottom]
        if a.useless:
            _cross(mine, a.rows[top:bottom], b.rows, block)
            continue
        search = Search(a, top, bottom, b, mine, pairs, space)
        for first in range(0, len(b), block):
            search.tile(first, min(first + block, len(b)))
            if _saturated(mine):
                break
        search.finish()


def _screens(rows: int, device: torch.device) -> bool:
    return rows >= SCREENED and device.type == "cpu" and fast_units() is not None


def _rectangle(
    a: torch.Tensor, rank_a: torch.Tensor, b: torch.Tensor, rank_b: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes for both sides; rows on both sides ascend by rank. Each tile is multiplied once and looked at twice."""
    import torch

    best_a = torch.full((len(a),), NO_EARLIER, dtype=torch.int64, device=a.device)
    best_b = torch.full((len(b),), NO_EARLIER, dtype=torch.int64, device=a.device)
    buffer = torch.empty(min(block, len(a)) * min(block, len(b)), device=a.device)
    ab, ba = Pairs(a, b), Pairs(b, a)
    for top in range(0, len(a), block):
        ranks = rank_a[top : top + block]
        mine = best_a[top : top + block]
        for first in range(0, len(b), block):
            others = rank_b[first : first + block]
            theirs = best_b[first : first + block]
            product = _product(a[top : top + block], b[first : first + block], buffer)
            before = (others[None, :] < ranks[:, None]).to(a.device)
            if others[0] < ranks[-1]:
                tile = product.masked_fill(~before, -torch.inf)
                improve(mine, _tile(tile, a, top, b, first), ab)
            if ranks[0] < others[-1]:
                tile = product.masked_fill(before, -torch.inf).T.contiguous()
                improve(theirs, _tile(tile, b, first, a, top), ba)
    return best_a, best_b


def _product(left: torch.Tensor, right: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    import torch

    shape = (len(left), len(right))
    return torch.mm(left, right.T, out=buffer[: shape[0] * shape[1]].view(shape))


def _tile(cosines: torch.Tensor, left: torch.Tensor, top: int, right: torch.Tensor, first: int) -> Tile:
    import torch

    lines = torch.arange(top, top + len(cosines), device=left.device)
    last = first + cosines.shape[1]

    def exact(chosen: torch.Tensor) -> torch.Tensor:
        return left[lines[chosen]].double() @ right[first:last].double().T

    return Tile(cosines, lines, torch.full_like(lines, first), exact)


def _saturated(best: torch.Tensor) -> bool:
    """Whether every row has an earlier one of cosine 1, so that no later column can matter."""
    return bool((best >> 32 == 2 * SCALE + 1).all())


def _not_earlier(size: int, device: torch.device) -> torch.Tensor:
    """bool (size, size), true on and above the diagonal: the columns that are no earlier than their line."""
    import torch

    return torch.ones((size, size), dtype=torch.bool, device=device).triu_()


def _batches(
    starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]]:
    """Groups of 2 to 256 rows in batches of about the same size: their starts, lengths and padded length."""
    padded = np.where(sizes <= 16, 1 << np.ceil(np.log2(np.maximum(sizes, 1))).astype(int), -(-sizes // 16) * 16)
    padded[(sizes < 2) | (sizes > _BATCHED)] = 0
    for length in np.unique(padded[padded > 0]):
        groups = np.flatnonzero(padded == length)
        step = max(1, _BATCH_ELEMENTS // (int(length) * max(int(length), 512)))
        for at in range(0, len(groups), step):
            chosen = groups[at : at + step]
            yield starts[chosen], sizes[chosen], int(length)


def _batch(
    best: torch.Tensor, rows: torch.Tensor, pairs: Pairs, starts: torch.Tensor, lengths: torch.Tensor, padded: int
) -> None:
    """Raise the codes of a batch of groups, each padded to the same length, with one batched product."""
    import torch

    starts, lengths = starts.to(rows.device), lengths.to(rows.device)
    place = torch.arange(padded, device=rows.device)
    inside = place[None, :] < lengths[:, None]
    # Padding repeats a group's first row, so that every index is valid; its lines are dropped below.
    index = (starts[:, None] + torch.where(inside, place[None, :], 0)).view(-1)
    batch = rows.index_select(0, index).view(len(starts), padded, -1)
    cosines = torch.bmm(batch, batch.transpose(1, 2))
    cosines.masked_fill_(_not_earlier(padded, rows.device), -torch.inf)
    lines = torch.nonzero(inside.view(-1)).view(-1)

    def exact(chosen: torch.Tensor) -> torch.Tensor:
        double = batch.double()
        return torch.bmm(double, double.transpose(1, 2)).view(-1, padded).index_select(0, lines[chosen])

    left = index[lines]
    origin = starts.repeat_interleave(lengths)
    mine = best[left]
    improve(mine, Tile(cosines.view(-1, padded).index_select(0, lines), left, origin, exact), pairs)
    best[left] = mine


def _restored(best: torch.Tensor, order: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]) -> PriorMax:
    """Codes of rows in rank order, back in the order in which the rows were given and with ranks for columns."""
    similarity, column = decode(best)
    found = PriorMax(np.empty_like(similarity), np.empty_like(column))
    found.similarity[order] = similarity
    found.argmax[order] = np.where(column >= 0, ranks[column] if len(ranks) else -1, -1)
    return found


def _by_rank(
    rank: npt.ArrayLike, X: npt.NDArray[Any], piece: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    ranks = np.asarray(rank)
    if ranks.shape != (len(X),) or (ranks.size and ranks.dtype.kind not in "iu"):
        raise ValueError(f"rank_{piece} must be {len(X)} whole numbers, one a row, not {ranks.dtype} {ranks.shape}")
    order = np.argsort(ranks, kind="stable").astype(np.int64)
    return order, ranks[order].astype(np.int64)


def _offsets(group_offsets: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    offsets = np.asarray(group_offsets)
    whole = offsets.ndim == 1 and len(offsets) > 0 and offsets.dtype.kind in "iu"
    if not whole or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets.astype(np.int64)) < 0).any():
        raise ValueError(f"group offsets must be whole numbers that rise from 0 to the number of rows, {n}")
    return offsets.astype(np.int64)


def _block(block: int | None, n: int) -> int:
    if block is None:
        return SMALL_BLOCK if n < _LARGE else LARGE_BLOCK
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    return int(block)
