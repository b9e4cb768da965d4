"""Cosines of rows with queries and with centroids, streamed, and the same however the rows are batched.

Every cosine that is returned is a float64 dot product of the two unit float32 vectors, rounded to
``STATED_PRECISION``; float32 arithmetic only skips what cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import (
    NOTHING,
    SCALE,
    UNIT_TOLERANCE,
    Pairs,
    Tile,
    decode,
    full_precision,
    improve,
    matrix,
    require_same_width,
    rounded,
    unit_rows,
)
from datas3_ray.kernels.closest import Closest
from datas3_ray.kernels.order_statistic import OrderStatistic
from datas3_ray.kernels.screen import fast_units

if TYPE_CHECKING:
    import torch

STATED_PRECISION = 1 / SCALE
"""What a returned cosine is rounded to, 1e-6, and below which two cosines are the same."""

SCREENED = 256
"""Rows from which looking at coarse numbers first pays off."""
ROW_BLOCK = 1024
COLUMN_BLOCK = 4096
_PADDING = 64
_ROWS_AT_A_TIME = 4096

Float32 = npt.NDArray[np.float32]


def normalize(X: npt.ArrayLike) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Unit vectors, and which rows have one.

    Args:
        X: (n, d) float32 or float16.

    Returns:
        unit: float32 (n, d), each row divided by its float64 norm where that is not 1 but for rounding; a row of zeros
            where there is no direction.
        valid: bool (n,), False for rows that hold NaN or infinity, or are zero.

    >>> unit, valid = normalize(np.array([[3, 4], [0, 0], [np.nan, 1]], np.float32))
    >>> [round(float(x), 6) for x in unit[0]], valid.tolist()
    ([0.6, 0.8], [True, False, False])
    """
    vectors = matrix(X, "X")
    unit = np.empty(vectors.shape, np.float32)
    valid = np.empty(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        part = unit[start : start + _ROWS_AT_A_TIME]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so not valid
            part[:] = vectors[start : start + len(part)]
        norms = _norms(part)
        good = np.isfinite(norms) & (norms > 0)
        valid[start : start + len(part)] = good
        off = np.flatnonzero(good & (np.abs(norms - 1) > UNIT_TOLERANCE))
        if len(off):
            part[off] = part[off].astype(np.float64) / norms[off, None]
        if not good.all():
            part[~good] = 0
    return unit, valid


def valid_rows(X: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which rows have a direction: finite and not zero.

    Args:
        X: (n, d) float32 or float16.

    Returns:
        bool (n,).

    >>> valid_rows(np.array([[1, 0], [0, 0], [np.inf, 1]], np.float16)).tolist()
    [True, False, False]
    """
    vectors = matrix(X, "X")
    valid = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        norms = _norms(vectors[start : start + _ROWS_AT_A_TIME])
        valid[start : start + len(norms)] = np.isfinite(norms) & (norms > 0)
    return valid


def nearest(X: npt.ArrayLike, C: npt.ArrayLike, device: str = "cpu") -> tuple[npt.NDArray[np.int32], Float32]:
    """The centroid of largest cosine for each row: a function of the row and the centroids and of nothing else.

    Args:
        X: (n, d) float32 or float16; rows that are not unit are normalised.
        C: (k, d) centroids, k >= 1, likewise.
        device: where the matrices are multiplied.

    Returns:
        index: int32 (n,); among centroids whose cosines agree to STATED_PRECISION, the smallest.
        similarity: float32 (n,), the cosine with it, rounded to STATED_PRECISION.

    Raises:
        ValueError: a row or centroid is zero, NaN or infinite, there is no centroid, or the dimensions differ.

    >>> index, similarity = nearest(np.eye(2, dtype=np.float32), np.array([[0.6, 0.8], [1, 0]], np.float32))
    >>> index.tolist(), [round(float(s), 6) for s in similarity]
    ([1, 0], [1.0, 0.8])
    """
    import torch

    vectors, centres = matrix(X, "X"), matrix(C, "C")
    require_same_width(vectors, centres, "X and C")
    if len(centres) == 0:
        raise ValueError("there must be at least one centroid")
    index, similarity = np.empty(len(vectors), np.int32), np.empty(len(vectors), np.float32)
    right = unit_rows(centres, "C", device)
    if _screened(vectors, right):
        for start, rows, found in _closest(vectors, right):
            index[start : start + len(rows)] = found.numpy()
            similarity[start : start + len(rows)] = _keys(rows, right, found) / SCALE
        return index, similarity
    with full_precision():
        for start, rows, cosines in _blocks(vectors, right, ROW_BLOCK, min(len(right), COLUMN_BLOCK)):
            best = torch.full((len(rows),), NOTHING, dtype=torch.int64, device=right.device)
            pairs = Pairs(rows, right)
            for first in range(0, len(right), COLUMN_BLOCK):
                improve(best, _tile(rows, right, cosines, first), pairs)
            block_similarity, block_index = decode(best)
            similarity[start : start + len(rows)] = block_similarity
            index[start : start + len(rows)] = block_index
    return index, similarity


def top_order_statistic(X: npt.ArrayLike, Q: npt.ArrayLike, x: int, device: str = "cpu") -> Float32:
    """The x-th largest cosine of each row with the queries.

    It exceeds a threshold exactly when the row's cosine does so for at least x queries (Image-Align).

    Args:
        X: (n, d) float32 or float16; rows that are not unit are normalised.
        Q: (m, d) queries, likewise.
        x: from 1 to m.
        device: where the matrices are multiplied.

    Returns:
        float32 (n,), rounded to STATED_PRECISION.

    Raises:
        ValueError: x is out of range, a row or query is zero, NaN or infinite, or the dimensions differ.

    >>> queries = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    >>> [round(float(s), 6) for s in top_order_statistic(np.array([[1, 0]], np.float32), queries, x=2)]
    [0.8]
    """
    vectors, queries = matrix(X, "X"), matrix(Q, "Q")
    require_same_width(vectors, queries, "X and Q")
    m = len(queries)
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or not 1 <= x <= m:
        raise ValueError(f"x must be a whole number from 1 to the number of queries, {m}, not {x}")
    result = np.empty(len(vectors), np.float32)
    right = unit_rows(queries, "Q", device)
    if x == 1 and _screened(vectors, right):
        for start, rows, found in _closest(vectors, right):
            result[start : start + len(rows)] = _keys(rows, right, found) / SCALE
        return result
    block = max(_PADDING, min(ROW_BLOCK, ROW_BLOCK * COLUMN_BLOCK // m))
    with full_precision():
        kth = OrderStatistic(right, int(x), block, screened=_screened(vectors, right) and fast_units() == "bfloat16")
        for start in range(0, len(vectors), block):
            rows = unit_rows(vectors, "X", device, start, start + block)
            result[start : start + len(rows)] = kth.of(rows) / SCALE
    return result


def mean_cosine(X: npt.ArrayLike, Q: npt.ArrayLike) -> Float32:
    """The mean cosine of each row over the queries, as one dot product with the mean of the unit queries.

    Args:
        X: (n, d) float32 or float16; rows that are not unit are normalised.
        Q: (m, d) queries, m >= 1, likewise.

    Returns:
        float32 (n,), rounded to STATED_PRECISION.

    >>> [round(float(s), 6) for s in mean_cosine(np.eye(2, dtype=np.float32), np.array([[1, 0]], np.float32))]
    [1.0, 0.0]
    """
    vectors, queries = matrix(X, "X"), matrix(Q, "Q")
    require_same_width(vectors, queries, "X and Q")
    if len(queries) == 0:
        raise ValueError("there must be at least one query")
    mean = unit_rows(queries, "Q", "cpu").double().mean(0)
    result = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        rows = unit_rows(vectors, "X", "cpu", start, start + _ROWS_AT_A_TIME)
        result[start : start + len(rows)] = rounded(rows.double() @ mean).numpy() / SCALE
    return result


def _norms(block: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))


def _screened(X: npt.NDArray[Any], right: torch.Tensor) -> bool:
    """Whether there are coarse numbers to look at first, and enough to look at."""
    enough = len(X) >= SCREENED and 1 < len(right) <= ROW_BLOCK * COLUMN_BLOCK // _PADDING
    return enough and right.device.type == "cpu" and fast_units() is not None


def _closest(X: npt.NDArray[Any], right: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Blocks of unit rows with the nearest of the right ones."""
    units = fast_units()
    assert units is not None
    size = min(ROW_BLOCK, ROW_BLOCK * COLUMN_BLOCK // len(right))
    with full_precision():
        closest = Closest(right, [units], size)
        for start in range(0, len(X), size):
            rows = unit_rows(X, "X", "cpu", start, start + size)
            yield start, rows, closest.of(rows)


def _keys(rows: torch.Tensor, right: torch.Tensor, index: torch.Tensor) -> npt.NDArray[np.int64]:
    """Each row's cosine with one right row, in whole millionths."""
    import torch

    return Pairs(rows, right).keys(torch.arange(len(rows)), index).numpy()


class _Cosines:
    """Products of one padded block of rows with runs of the right matrix, in one buffer that is used again."""

    def __init__(self, padded: torch.Tensor, rows: int, right: torch.Tensor, buffer: torch.Tensor) -> None:
        self.padded, self.rows, self.right, self.buffer = padded, rows, right, buffer

    def __call__(self, first: int, last: int) -> torch.Tensor:
        """float32 (rows, last - first), overwritten by the next call."""
        import torch

        shape = (len(self.padded), min(last, len(self.right)) - first)
        out = self.buffer[: shape[0] * shape[1]].view(shape)
        return torch.mm(self.padded, self.right[first:last].T, out=out)[: self.rows]


def _blocks(
    X: npt.NDArray[Any], right: torch.Tensor, size: int, widest: int
) -> Iterator[tuple[int, torch.Tensor, _Cosines]]:
    """Blocks of unit rows with their products; a short last block is padded, as shapes change float32 rounding."""
    import torch

    buffer = torch.empty(size * widest, device=right.device)
    for start in range(0, len(X), size):
        rows = unit_rows(X, "X", str(right.device), start, start + size)
        short = min(size, -(-len(rows) // _PADDING) * _PADDING) - len(rows)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, short)) if short else rows
        yield start, rows, _Cosines(padded, len(rows), right, buffer)


def _tile(rows: torch.Tensor, right: torch.Tensor, cosines: _Cosines, first: int) -> Tile:
    import torch

    last = first + COLUMN_BLOCK

    def exact(lines: torch.Tensor) -> torch.Tensor:
        return rows[lines].double() @ right[first:last].double().T

    left = torch.arange(len(rows), device=rows.device)
    return Tile(cosines(first, last), left, torch.full_like(left, first), exact)
