"""Measures of row i of one matrix against row i of another: one number a row, the same however rows are batched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.similarity import normalize

DECIMALS = 6
_ROWS_AT_A_TIME = 4096

Float64 = npt.NDArray[np.float64]


def paired_cosine(X: npt.ArrayLike, Y: npt.ArrayLike) -> Float64:
    """The cosine of row i of X with row i of Y.

    Args:
        X: (n, d) float32 or float16, every row with a direction.
        Y: (n, d), likewise.

    Returns:
        float64 (n,), from -1 to 1: the float64 dot product of the unit float32 vectors, rounded to 6 decimals.

    Raises:
        ValueError: the shapes differ, or a row is zero, NaN or infinite.

    >>> paired_cosine(np.array([[3, 4], [1, 0]], np.float32), np.array([[6, 8], [0, 2]], np.float32)).tolist()
    [1.0, 0.0]
    """
    left, right = np.asarray(X), np.asarray(Y)
    if left.shape != right.shape:
        raise ValueError(f"X and Y must have one shape, not {left.shape} and {right.shape}")
    out = np.empty(len(left))
    for start in range(0, len(left), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        a, b = (_unit(side[rows], name) for side, name in ((left, "X"), (right, "Y")))
        out[rows] = (a.astype(np.float64) * b).sum(axis=1)
    return np.clip(np.round(out, DECIMALS), -1.0, 1.0) + 0.0


def distance_to(X: npt.ArrayLike, centres: npt.ArrayLike, group: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The Euclidean distance of each row to the centre of its group.

    Args:
        X: (n, d) float32 or float16.
        centres: (k, d).
        group: int (n,), from 0 to k - 1.

    Returns:
        float32 (n,), computed in float64; multiplying X and the centres by 2 multiplies it by 2.

    >>> distance_to(np.array([[3, 4], [1, 1]], np.float32), np.array([[0, 0], [1, 2]], np.float32), [0, 1]).tolist()
    [5.0, 1.0]
    """
    rows, middle, groups = np.asarray(X), np.asarray(centres), np.asarray(group)
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        apart = rows[block].astype(np.float64) - middle[groups[block]]
        out[block] = np.sqrt((apart * apart).sum(axis=1))
    return out


def _unit(rows: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    unit, valid = normalize(rows)
    if not valid.all():
        raise ValueError(f"{int((~valid).sum())} rows of {name} have no direction: they are zero, NaN or infinite")
    return unit
