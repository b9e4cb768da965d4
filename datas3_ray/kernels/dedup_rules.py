"""Which near-duplicates stay when a removed row may remove nobody, or when chains count as one.

:mod:`datas3_ray.kernels.pairwise` gives SemDeDup's own rule. Here are two others, on rows in keep order. *Leader*: a
row is removed by an earlier row that is kept. *Components*: rows that are linked, directly or through others, are one
group, and its first row stays. Cosines are float64 dot products rounded to six decimals, as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import SCALE, WINDOW, Pairs, full_precision, matrix, require_same_width, unit_rows
from datas3_ray.kernels.pairwise import PriorMax, cross_max, merge_max

if TYPE_CHECKING:
    import torch

BLOCK = 512


class Leaders(NamedTuple):
    """What the leader rule finds.

    Attributes:
        similarity: float32 (n,), the largest cosine to an earlier leader, 0 where none is positive.
        argmax: int64 (n,), that leader, -1 where there is none.
        leads: bool (n,), whether the row is kept, and so a leader itself.
    """

    similarity: npt.NDArray[np.float32]
    argmax: npt.NDArray[np.int64]
    leads: npt.NDArray[np.bool_]


def leaders(
    X: npt.ArrayLike, largest: int, *, known: PriorMax | None = None, base: int = 0, device: str = "cpu"
) -> Leaders:
    """Keep a row unless an earlier kept row is more similar than ``largest`` millionths.

    Args:
        X: (n, d) float32 or float16 in keep order.
        largest: the largest cosine of two kept rows, in whole millionths.
        known: what is known of these rows from leaders that are all earlier than the first of them.
        base: the number of the first row, in ``argmax``.
        device: where tiles are multiplied.

    Raises:
        ValueError: a row is zero, NaN or infinite.

    >>> circle = np.radians([0, 10, 20])
    >>> rows = np.stack([np.cos(circle), np.sin(circle)], 1)
    >>> leaders(rows, 980_000).leads.tolist()  # the second is removed by the first, and removes nobody
    [True, False, True]
    """
    rows = unit_rows(matrix(X, "X"), "X", device).cpu().numpy()
    n = len(rows)
    found = known if known is not None else PriorMax(np.zeros(n, np.float32), np.full(n, -1, np.int64))
    keys = np.round(found.similarity.astype(np.float64) * SCALE).astype(np.int64)
    argmax = found.argmax.copy()
    leads = np.zeros(n, bool)
    for top in range(0, n, BLOCK):
        bottom = min(top + BLOCK, n)
        before = np.flatnonzero(leads[:top])
        if len(before):
            seen = cross_max(rows[top:bottom], rows[before], device=device)
            places = np.where(seen.argmax >= 0, before[seen.argmax] + base, -1)
            similarity = (keys[top:bottom] / SCALE).astype(np.float32)
            merged = merge_max((similarity, argmax[top:bottom]), (seen.similarity, places))
            keys[top:bottom] = np.round(merged.similarity.astype(np.float64) * SCALE)
            argmax[top:bottom] = merged.argmax
        _settle(rows[top:bottom], keys[top:bottom], argmax[top:bottom], leads[top:bottom], largest, base + top)
    return Leaders((keys / SCALE).astype(np.float32), argmax, leads)


def _settle(
    rows: npt.NDArray[np.float32],
    keys: npt.NDArray[np.int64],
    argmax: npt.NDArray[np.int64],
    leads: npt.NDArray[np.bool_],
    largest: int,
    base: int,
) -> None:
    """One block, row by row; the arrays are changed in place."""
    double = rows.astype(np.float64)
    cosines = np.clip(np.round(double @ double.T * SCALE), -SCALE, SCALE).astype(np.int64)
    for row in range(len(rows)):
        if keys[row] > largest:
            continue
        leads[row] = True
        later = np.flatnonzero(cosines[row, row + 1 :] > keys[row + 1 :]) + row + 1
        keys[later] = cosines[row, later]
        argmax[later] = base + row


def components(X: npt.ArrayLike, largest: int, device: str = "cpu") -> npt.NDArray[np.int64]:
    """The first row of each row's component, int64 (n,); rows more similar than ``largest`` millionths are linked.

    >>> circle = np.radians([0, 10, 20, 90])
    >>> components(np.stack([np.cos(circle), np.sin(circle)], 1), 980_000).tolist()
    [0, 0, 0, 3]
    """
    rows = unit_rows(matrix(X, "X"), "X", device)
    first = np.arange(len(rows))
    with full_precision():
        for top in range(0, len(rows), BLOCK):
            for start in range(0, top + BLOCK, BLOCK):
                i, j = _linked(rows, top, rows, start, largest, first, first)
                first = join(first, i, j)
    return first


def links(
    Xa: npt.ArrayLike, Xb: npt.ArrayLike, largest: int, device: str = "cpu"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of a row of one piece and a row of another that link the same rows as all linked pairs do.

    Returns:
        Rows of Xa and rows of Xb, int64 of the same length, fewer than there are rows.
    """
    left, right = matrix(Xa, "Xa"), matrix(Xb, "Xb")
    require_same_width(left, right, "Xa and Xb")
    a, b = unit_rows(left, "Xa", device), unit_rows(right, "Xb", device)
    first = np.arange(len(a) + len(b))
    kept: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    with full_precision():
        for top in range(0, len(a), BLOCK):
            for start in range(0, len(b), BLOCK):
                i, j = _linked(a, top, b, start, largest, first[: len(a)], first[len(a) :])
                if len(i):
                    first, used = _forest(first, i, j + len(a))
                    kept.append((i[used], j[used]))
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([i for i, _ in kept]), np.concatenate([j for _, j in kept])


def join(first: npt.NDArray[np.int64], i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first rows of the components after the rows ``i`` and ``j`` are linked; the smaller number comes first.

    >>> join(np.arange(4), np.array([3]), np.array([1])).tolist()
    [0, 1, 2, 1]
    """
    return _forest(first, i, j)[0]


def _forest(
    first: npt.NDArray[np.int64], i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first rows after linking, and which of the pairs are enough for that."""
    first = first.copy()
    left = np.arange(len(i))
    used = [left[:0]]
    while True:
        a, b = first[i[left]], first[j[left]]
        apart = a != b
        left, low, high = left[apart], np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        if not len(left):
            return first, np.sort(np.concatenate(used))
        # Each component is put under one that comes before it, by one pair, so no pair closes a circle.
        roots, which = np.unique(high, return_index=True)
        first[roots] = low[which]
        used.append(left[which])
        while True:
            further = first[first]
            if (further == first).all():
                break
            first = further


def _linked(
    left: torch.Tensor,
    top: int,
    right: torch.Tensor,
    start: int,
    largest: int,
    first_left: npt.NDArray[np.int64],
    first_right: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Linked pairs of one tile whose rows are not in one component yet, one for each two components."""
    import torch

    cosines = (left[top : top + BLOCK] @ right[start : start + BLOCK].T).cpu().numpy()
    limit = (largest + 0.5) / SCALE
    near = cosines > np.float32(limit - WINDOW)
    if not near.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    i, j = (found.astype(np.int64) for found in np.nonzero(near))
    a, b = first_left[i + top], first_right[j + start]
    apart = a != b
    i, j, a, b = i[apart], j[apart], a[apart], b[apart]
    certain = cosines[i, j] > limit + WINDOW
    doubtful = np.flatnonzero(~certain)
    if len(doubtful):
        lines, columns = (torch.from_numpy(n[doubtful]).to(left.device) for n in (i + top, j + start))
        certain[doubtful] = Pairs(left, right).keys(lines, columns).cpu().numpy() > largest
    i, j, a, b = i[certain] + top, j[certain] + start, a[certain], b[certain]
    _, once = np.unique(np.stack([a, b], 1), axis=0, return_index=True) if len(a) else (None, np.empty(0, np.int64))
    return i[once], j[once]
