"""What the matrix kernels share: tiles of cosines in float32, decided in float64 where they are close.

A float32 product of unit vectors is off by a few 1e-7, by how much depends on the shape of the tile, the number of
threads and the device. So it only skips what is safely away from the answer: whatever is within ``WINDOW`` of a
row's best is computed again in float64 and rounded to six decimals, and equal values go to the smaller index. That
makes every answer a function of the two vectors alone.

A row's best so far is one integer, its *code*: the rounded cosine in the high bits and the reversed column index in
the low 32, so that the larger code is the larger cosine or, at the same cosine, the smaller column.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SCALE = 10**6
"""Cosines are stated in whole millionths."""
WINDOW = 1e-5
DENSE = 32
"""Close candidates per row above which a float64 product of the tile is cheaper than one dot product each."""
NOTHING = 0
"""A code below that of every cosine."""
NO_EARLIER = ((SCALE + 1) << 32) | 0xFFFFFFFF
"""The code of cosine 0 with no column: only a positive cosine beats it."""

_LOW = 0xFFFFFFFF
UNIT_TOLERANCE = 1.5e-7
"""What rounding a unit vector to float32 leaves of its norm's distance from 1."""
_CHUNK = 1024


@dataclass(frozen=True)
class Tile:
    """Float32 cosines of some left rows with a run of right rows each.

    Attributes:
        cosines: float32 (b, c); -inf where the pair does not count.
        left: int64 (b,), the left row of each line.
        origin: int64 (b,), the right row of column 0 in each line.
        exact: given int64 lines (m,), their cosines as float64 (m, c).
    """

    cosines: torch.Tensor
    left: torch.Tensor
    origin: torch.Tensor
    exact: Callable[[torch.Tensor], torch.Tensor]


class Pairs:
    """Cosines of chosen pairs of rows of two unit matrices, in whole millionths.

    Args:
        left: float32 (n, d).
        right: float32 (m, d), on the same device.
    """

    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        import torch

        self.left, self.right = left, right
        shape = (_CHUNK, left.shape[1])
        if left.device.type != "cpu":
            self._single = torch.empty(shape, dtype=torch.float32, device=left.device)
            self._double = torch.empty(shape, dtype=torch.float64, device=left.device)

    def keys(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """int64 (p,): the rounded cosine of left row ``i[p]`` and right row ``j[p]``."""
        import torch

        if self.left.device.type == "cpu":
            return rounded(torch.from_numpy(self._on_cpu(i.numpy(), j.numpy())))
        dots = torch.empty(len(i), dtype=torch.float64, device=self.left.device)
        for start in range(0, len(i), _CHUNK):
            span = slice(start, min(start + _CHUNK, len(i)))
            single, double = self._single[: span.stop - start], self._double[: span.stop - start]
            torch.index_select(self.left, 0, i[span], out=single)
            double.copy_(single)
            torch.index_select(self.right, 0, j[span], out=single)
            torch.sum(double.mul_(single), 1, out=dots[span])
        return rounded(dots)

    def _on_cpu(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 dot products, converted piece by piece while in the cache."""
        left, right = self.left.numpy(), self.right.numpy()
        dots = np.empty(len(i))
        a, b = (np.empty((min(_CHUNK, len(i)), side.shape[1]), np.float32) for side in (left, right))
        for start in range(0, len(i), _CHUNK):
            span = slice(start, min(start + _CHUNK, len(i)))
            n = span.stop - start
            # Clipping changes no place that is there, and lets take() write without a copy in between.
            np.take(left, i[span], axis=0, out=a[:n], mode="clip")
            np.take(right, j[span], axis=0, out=b[:n], mode="clip")
            np.einsum("ij,ij->i", a[:n], b[:n], dtype=np.float64, out=dots[span])
        return dots


def rounded(cosines: torch.Tensor) -> torch.Tensor:
    """float64 cosines in whole millionths, within [-SCALE, SCALE], as int64."""
    import torch

    return torch.round(cosines * SCALE).clamp_(-SCALE, SCALE).to(torch.int64)


def code(keys: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The codes of rounded cosines and their columns, both int64 of the same shape."""
    return ((keys + (SCALE + 1)) << 32) | (_LOW - 1 - columns)


def decode(codes: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The cosines, float32, and columns, int64 (-1 for none), of codes of shape (n,)."""
    array = codes.cpu().numpy()
    cosines = ((array >> 32) - (SCALE + 1)) / SCALE
    return cosines.astype(np.float32), _LOW - 1 - (array & _LOW)


def improve(best: torch.Tensor, tile: Tile, pairs: Pairs) -> None:
    """Raise the codes ``best`` (b,), in place, by what the tile holds."""
    import torch

    peak = tile.cosines.amax(1)
    key = (best >> 32) - (SCALE + 1)
    floor = (key.double() + 0.5) / SCALE - WINDOW
    floor[key == SCALE] = torch.inf  # nothing is more similar than 1, and later columns lose ties
    limit = torch.maximum(peak - WINDOW, floor.float())
    lines = torch.nonzero(peak >= limit).view(-1)
    if len(lines) == 0:
        return
    cosines = tile.cosines
    if 2 * len(lines) < len(best):
        cosines, limit = cosines.index_select(0, lines), limit[lines]
    else:
        lines = torch.arange(len(best), device=best.device)
    mask, r, c = _at_least(cosines, limit)
    if len(r) <= DENSE * len(lines):
        line = lines[r]
        columns = tile.origin[line] + c
        best.scatter_reduce_(0, line, code(pairs.keys(tile.left[line], columns), columns), "amax")
        return
    columns = tile.origin[lines][:, None] + torch.arange(cosines.shape[1], device=best.device)
    codes = code(rounded(tile.exact(lines)), columns)
    best[lines] = torch.maximum(best[lines], codes.masked_fill_(~mask, NOTHING).amax(1))


def _at_least(cosines: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each line reaches its limit: as a mask, and as lines and columns."""
    mask = at_least(cosines, limit)
    r, c = positions(mask)
    return mask, r, c


def at_least(cosines: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """bool (b, c): cosines (b, c) >= limit (b,), through numpy on the CPU, where that is twice as fast."""
    import torch

    if cosines.device.type != "cpu":
        return cosines >= limit[:, None]
    return torch.from_numpy(np.greater_equal(cosines.numpy(), limit.numpy()[:, None]))


def positions(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lines and columns, int64, of the true entries of a (b, c) mask, line by line."""
    import torch

    if mask.device.type != "cpu":
        lines, columns = torch.nonzero(mask, as_tuple=True)
        return lines, columns
    r, c = np.divmod(np.flatnonzero(mask.numpy()), mask.shape[1])
    return torch.from_numpy(r), torch.from_numpy(c)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32, whatever the process has set: neither TF32 on a GPU nor bfloat16 on a CPU."""
    import torch

    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def matrix(X: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    """``X`` checked to be a matrix of floating-point numbers; ``name`` is for the error."""
    array = np.asarray(X)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{name} must be a matrix of float32 or float16, not {array.dtype} of shape {array.shape}")
    return array


def require_same_width(X: npt.NDArray[Any], Y: npt.NDArray[Any], names: str) -> None:
    """Raise unless the vectors of both matrices have the same number of dimensions."""
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"{names} have vectors of different dimensions, {X.shape[1]} and {Y.shape[1]}")


def unit_rows(X: npt.NDArray[Any], name: str, device: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows start to stop of a matrix as unit float32 vectors on the device; copied only where it has to be.

    Raises:
        ValueError: a row is zero, NaN or infinite, so it has no direction.
    """
    import torch

    stop = len(X) if stop is None else min(stop, len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # arrays out of Arrow are read-only, and only read here
        rows = torch.from_numpy(np.ascontiguousarray(X[start:stop])).to(device=device, dtype=torch.float32)
    norms = _norms(rows)
    off = ~((norms - 1.0).abs() <= UNIT_TOLERANCE)
    if not bool(off.any()):
        return rows
    bad = ~(torch.isfinite(norms) & (norms > 0))
    if bool(bad.any()):
        row = start + int(torch.nonzero(bad)[0])
        raise ValueError(f"row {row} of {name} is zero, NaN or infinite, so it has no direction; leave such rows out")
    # Row by row, so that what happens to one row does not depend on its neighbours.
    rows = rows.clone()
    for part in torch.nonzero(off).view(-1).split(_CHUNK):
        rows[part] = (rows[part].double() / norms[part, None]).float()
    return rows


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """float64 (n,), through one small buffer: fresh memory of this size costs more than the arithmetic."""
    import torch

    norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    buffer = torch.empty((min(_CHUNK, len(rows)), rows.shape[1]), dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        double = buffer[: len(part)]
        double.copy_(part)
        torch.sum(double.mul_(double), 1, out=norms[start : start + len(part)])
    return norms.sqrt_()
