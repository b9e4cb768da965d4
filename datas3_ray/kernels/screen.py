"""A quick look at many cosines in coarse numbers, which only ever skips what cannot matter.

A unit vector is rounded, to bfloat16 numbers or to whole multiples q of a step s of its own, and how far it moved, its
*error* e, is known. For rows a and b the Cauchy-Schwarz inequality gives |cos(a, b) - (rounded a) . (rounded b)| <=
e_a + (1 + e_a) e_b. A product of integers has no rounding of its own, and that of bfloat16 numbers a known one, so
this bound holds for every tile. What it cannot rule out is computed exactly (:mod:`datas3_ray.kernels._tiles`), so the
answer is that of the exact computation.

bfloat16 numbers rule out far more and are used where the processor multiplies them in units of its own. Before rounding
to integers, coordinates are mixed by Hadamard matrices, which changes no cosine and evens out the few large coordinates
that trained encoders have, so that the step is small.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import SCALE, WINDOW, Pairs, Tile, code, improve

if TYPE_CHECKING:
    import torch

SLACK = 4e-5
"""More than what float32 adds to the mixing, the sums, the errors and the comparisons."""
ROUNDED = 2.0**-8
"""What rounding a cosine to bfloat16 adds, as a share of it."""
CROWDED = 32
"""Candidates a row above which the whole tile in float32 is cheaper than one dot product each."""
PATIENCE = 8
"""Tiles that are looked at before the rows may be taken to be too much alike to screen."""

WAITING = 512
"""Pairs a row that may be set aside before they are settled."""

_MIXED = 64
_ROWS = 4096


Units = Literal["bfloat16", "int8"]


@cache
def fast_units() -> Units | None:
    """The coarse numbers that this CPU multiplies in units of its own, several times as fast as float32 numbers."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        bfloat16 = any(found.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
        int8 = any(found.get(unit) for unit in ("avx512_vnni", "avx_vnni", "amx_int8"))
    else:
        asked = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("avx512_bf16", "amx_tile", "vnni"))
        bfloat16, amx, int8 = (bool(ask()) if ask is not None else False for ask in asked)
        bfloat16 |= amx
    return "bfloat16" if bfloat16 else "int8" if int8 and hasattr(torch, "_int_mm") else None


class Screen:
    """Unit rows in coarse numbers, and how far each row is from them.

    Attributes:
        rows: float32 (n, d), unit, on the CPU.
        coarse: bfloat16 or int8 (n, d).
        step: float32 (n,), what one of its units is worth in each row.
        error: float32 (n,), the distance of each row from ``step * coarse``.

    With ``one_step`` integers of all rows are worth the same, so that products with them can be compared as they are.

    >>> import torch
    >>> screen = Screen(torch.eye(4), "int8")
    >>> tuple(screen.coarse.shape), bool((screen.error < 0.01).all())
    ((4, 4), True)
    """

    def __init__(self, rows: torch.Tensor, units: Units | None = None, *, one_step: bool = False) -> None:
        import torch

        n, d = rows.shape
        self.rows = rows
        self.units: Units = units or fast_units() or "int8"
        self.coarse = torch.empty((n, d), dtype=getattr(torch, self.units))
        self.step = np.ones(n, np.float32)
        self.error = np.empty(n, np.float32)
        self.tiles = self.crowded = 0
        step = None
        if one_step and self.units == "int8" and n:
            step = max(float(_mixed(part).abs().amax()) for part in rows.split(_ROWS)) / 127
        for start in range(0, n, _ROWS):
            stop = min(start + _ROWS, n)
            if self.units == "int8":
                self._to_integers(start, stop, step)
            else:
                part = rows[start:stop]
                self.coarse[start:stop] = part
                self.error[start:stop] = torch.linalg.vector_norm(part - self.coarse[start:stop].float(), dim=1)

    def _to_integers(self, start: int, stop: int, every: float | None) -> None:
        import torch

        mixed = _mixed(self.rows[start:stop])
        step = mixed.abs().amax(1, keepdim=True).div_(127) if every is None else torch.full((stop - start, 1), every)
        near = (mixed / step).round_()
        self.coarse[start:stop] = near
        self.step[start:stop] = step[:, 0]
        self.error[start:stop] = torch.linalg.vector_norm(mixed.sub_(near.mul_(step)), dim=1)

    def __len__(self) -> int:
        return len(self.coarse)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Screen:
        """Some of the rows, which count their tiles anew."""
        import torch

        part = object.__new__(Screen)
        part.units, part.tiles, part.crowded = self.units, 0, 0
        part.step, part.error = self.step[rows], self.error[rows]
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        part.rows, part.coarse = self.rows[index], self.coarse[index]
        return part

    def bound(self, top: int, bottom: int, other: Screen, first: int, last: int) -> npt.NDArray[np.float64]:
        """float64 (bottom - top,): how far cosines with the other's rows may be from the coarse products,
        but for the rounding of products to bfloat16 (:meth:`rounding`)."""
        error = self.error[top:bottom].astype(np.float64)
        return error + (1 + error) * float(other.error[first:last].max(initial=0)) + SLACK

    def rounding(self, peak: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64 (b,): how far a product of up to ``peak`` may be rounded."""
        return np.maximum(peak, 0) * ROUNDED if self.units == "bfloat16" else np.zeros_like(peak)

    @property
    def useless(self) -> bool:
        """Whether the rows turned out to be so much alike that little can be skipped."""
        return self.tiles >= PATIENCE and 2 * self.crowded > self.tiles


class Workspace:
    """Memory for tiles of up to ``lines`` by ``columns``, used over and over: fresh memory costs more than the sums."""

    def __init__(self, lines: int, columns: int) -> None:
        import torch

        self._integers = torch.empty(lines * columns, dtype=torch.int32)
        self._bfloat16 = torch.empty(lines * columns, dtype=torch.bfloat16)
        self._cosines = torch.empty(lines * columns, dtype=torch.float32)
        self._mask = np.empty(lines * columns, bool)

    def product(self, left: Screen, top: int, bottom: int, right: Screen, first: int, last: int) -> torch.Tensor:
        """float32 (bottom - top, last - first): cosines of left and right rows, in steps of the left row."""
        import torch

        shape = (bottom - top, last - first)
        size = shape[0] * shape[1]
        cosines = self._cosines[:size].view(shape)
        if left.units == "bfloat16":
            a, b = left.coarse[top:bottom], right.coarse[first:last].T
            return cosines.copy_(torch.mm(a, b, out=self._bfloat16[:size].view(shape)))
        integers = self.integers(left, top, bottom, right, first, last)
        return torch.mul(integers, torch.from_numpy(right.step[first:last]), out=cosines)

    def integers(self, left: Screen, top: int, bottom: int, right: Screen, first: int, last: int) -> torch.Tensor:
        """int32 (bottom - top, last - first): products of left and right integers."""
        import torch

        shape = (bottom - top, last - first)
        out = self._integers[: shape[0] * shape[1]].view(shape)
        return torch._int_mm(left.coarse[top:bottom], right.coarse[first:last].T, out=out)

    def at_least(
        self, product: torch.Tensor, peak: npt.NDArray[np.float32], limit: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lines and columns of the entries of a product (b, c) that reach their line's limit (b,), line by line.

        ``peak`` (b,) are the lines' largest entries: lines whose own does not reach the limit are not looked at.
        """
        least = limit.astype(np.float32)
        lines = np.flatnonzero(peak >= least)
        some = product.numpy()
        if 2 * len(lines) > len(peak):
            lines = np.arange(len(peak))
        else:
            some = some[lines]
        mask = self._mask[: some.size].reshape(some.shape)
        line, column = np.divmod(np.flatnonzero(np.greater_equal(some, least[lines, None], out=mask)), some.shape[1])
        return lines[line], column


class Search:
    """The most similar right row of each of some left rows, sought tile by tile.

    Each tile sets aside the pairs that may be their line's largest so far; only :meth:`finish` computes cosines, of the
    few that are still in question.

    Args:
        left, right: the two sides; may be the same.
        top, bottom: the left rows looked at.
        best: int64 (bottom - top,), their codes, raised in place.
        pairs: exact cosines of rows of left and right.
        space: memory for the tiles.
    """

    def __init__(
        self, left: Screen, top: int, bottom: int, right: Screen, best: torch.Tensor, pairs: Pairs, space: Workspace
    ) -> None:
        self.left, self.top, self.bottom, self.right = left, top, bottom, right
        self.best, self.pairs, self.space = best, pairs, space
        self._step = left.step[top:bottom].astype(np.float64)
        self._low = np.zeros(bottom - top)  # what each line has at least, from the products seen
        self._found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._waiting = 0

    def tile(self, first: int, last: int, hidden: torch.Tensor | None = None) -> None:
        """Look at the right rows ``first`` to ``last``, but for the pairs in the mask ``hidden``."""
        import torch

        product = self.space.product(self.left, self.top, self.bottom, self.right, first, last)
        if hidden is not None:
            product.masked_fill_(hidden, -torch.inf)
        self.left.tiles += 1
        largest = product.amax(1).numpy()
        peak = largest * self._step
        bound = self.left.bound(self.top, self.bottom, self.right, first, last) + self.left.rounding(peak)
        # Every line has a cosine of at least its largest product less the bound, so what is further below is out.
        np.maximum(self._low, peak - bound, out=self._low)
        limit = (np.maximum(self._low, _beats(self.best)) - bound) / self._step
        line, column = self.space.at_least(product, largest, limit)
        if len(line) == 0:
            return
        crowded = np.bincount(line, minlength=len(self._low)) > CROWDED
        if crowded.any():
            self.left.crowded += 2 * int(crowded.sum()) > len(crowded)
            self._dense(np.flatnonzero(crowded), first, last, hidden)
            sparse = ~crowded[line]
            line, column = line[sparse], column[sparse]
        upper = product.numpy()[line, column] * self._step[line] + bound[line]
        self._found.append((line, column + first, upper))
        self._waiting += len(line)
        if self._waiting > WAITING * len(self._low):
            self.finish()

    def finish(self) -> None:
        """Settle the pairs that were set aside."""
        if not self._found:
            return
        line, column, upper = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        self._found, self._waiting = [], 0
        kept = np.flatnonzero(upper >= self._least()[line])
        if len(kept) == 0:
            return
        order = kept[np.lexsort((-upper[kept], line[kept]))]
        line, column, upper = line[order], column[order], upper[order]
        # Each line's most promising pair first: its cosine usually rules out nearly all others.
        first = _starts(line)
        self._raise(line[first], column[first])
        rest = upper >= self._least()[line]
        rest[first] = False
        line, column = line[rest], column[rest]
        if len(line) == 0:
            return
        # float32 leaves out those that cannot be a line's largest.
        cosines = dots(self.left.rows[self.top : self.bottom], line, self.right.rows, column)
        starts = _starts(line)
        peak = np.repeat(np.maximum.reduceat(cosines, starts), np.diff(starts, append=len(line)))
        kept = np.flatnonzero(cosines >= np.maximum(self._least()[line], peak) - WINDOW)
        self._raise(line[kept], column[kept])

    def _raise(self, line: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> None:
        """Raise the codes by pairs."""
        import torch

        lines, columns = torch.from_numpy(line), torch.from_numpy(column)
        codes = code(self.pairs.keys(lines + self.top, columns), columns)
        self.best.scatter_reduce_(0, lines, codes, "amax")

    def _least(self) -> npt.NDArray[np.float64]:
        """Below this no pair that was set aside matters; as large as the best does, since its column may be earlier."""
        return np.maximum(self._low, ((self.best.numpy() >> 32) - (SCALE + 1) - 0.5) / SCALE)

    def _dense(self, lines: npt.NDArray[np.int64], first: int, last: int, hidden: torch.Tensor | None) -> None:
        """Lines with too many candidates in a tile, by a float32 product."""
        import torch

        chosen = torch.from_numpy(lines)
        left = self.left.rows[self.top : self.bottom].index_select(0, chosen)
        right = self.right.rows[first:last]
        cosines = left @ right.T
        if hidden is not None:
            cosines.masked_fill_(hidden.index_select(0, chosen), -torch.inf)

        def exact(asked: torch.Tensor) -> torch.Tensor:
            return left[asked].double() @ right.double().T

        mine = self.best[chosen]
        improve(mine, Tile(cosines, chosen + self.top, torch.full_like(chosen, first), exact), self.pairs)
        self.best[chosen] = mine


def dots(
    left: torch.Tensor, i: npt.NDArray[np.int64], right: torch.Tensor, j: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32 cosines of pairs of unit rows, ``i`` ascending; off by less than half of WINDOW.

    As the entries of a product that a sparse matrix asks for, which needs no copies of the rows.
    """
    import torch

    ends = torch.from_numpy(np.searchsorted(i, np.arange(len(left) + 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of sparse matrices, whose interface torch may change
        asked = torch.sparse_csr_tensor(
            ends, torch.from_numpy(j), torch.zeros(len(j)), (len(left), len(right)), check_invariants=False
        )
        found = torch.sparse.sampled_addmm(asked, left, right.T, beta=0.0)
    return np.asarray(found.values().numpy())


def _starts(lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.concatenate([[True], lines[1:] != lines[:-1]]))


def _beats(best: torch.Tensor) -> npt.NDArray[np.float64]:
    """The least cosines in later columns that would beat the codes; at cosine 1 none does."""
    key = (best.numpy() >> 32) - (SCALE + 1)
    return np.where(key == SCALE, np.inf, (key + 0.5) / SCALE)


def _mixed(rows: torch.Tensor) -> torch.Tensor:
    """float32 (n, d): the rows in a basis in which no coordinate stands out; the same for every batch."""
    n, d = rows.shape
    inner = _hadamard(_power(d, _MIXED))
    outer = _hadamard(_power(d // len(inner), _MIXED))
    mixed = rows.reshape(-1, len(inner)) @ inner
    if len(outer) > 1:
        mixed = mixed.view(n, -1, len(outer), len(inner)).transpose(2, 3).reshape(-1, len(outer)) @ outer
    return mixed.view(n, d)


def _power(d: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides d."""
    return min(most, d & -d) if d else 1


@cache
def _hadamard(size: int) -> torch.Tensor:
    """An orthogonal Hadamard matrix."""
    import torch

    matrix = torch.ones((1, 1))
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / len(matrix) ** 0.5
