"""Which 64-bit hashes are near each other: exactly, by bands.

Two hashes that differ in at most r bits agree in at least one of r + 1 bands that the 64 bits are cut into, since r
differing bits touch at most r bands. So only hashes that share the value of a band are compared.

>>> near = np.array([0b0111, 0b0011, 2**63], np.uint64)
>>> linked(near, np.array([0, 3]), radius=1).tolist()
[0, 0, 2]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.phash import hamming

MAX_RADIUS = 32
_ROWS, _COLUMNS = 64, 4096
_MANY = 1 << 20

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


def band_values(hashes: npt.ArrayLike, radius: int) -> UInt64:
    """The value of each of the radius + 1 bands, every band's values apart from the others'.

    Args:
        hashes: uint64 (n,).
        radius: from 0 to 32; bands have 64 / (radius + 1) bits, the first ones one more where it does not divide.

    Returns:
        uint64 (n, radius + 1). For a radius above 0 the number of the band is in the upper bits, so that the values
        can be mixed; for radius 0 the one band is the hash.

    >>> [hex(value) for value in band_values(np.array([0xAAAA0000BBBB0001], np.uint64), radius=3)[0]]
    ['0xaaaa', '0x1000000000000', '0x200000000bbbb', '0x3000000000001']
    """
    values = _hashes(hashes)
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be from 0 to {MAX_RADIUS}, not {radius}")
    if radius == 0:
        return values[:, None].copy()
    bands = np.empty((len(values), radius + 1), np.uint64)
    below = 64
    for band in range(radius + 1):
        width = 64 // (radius + 1) + (band < 64 % (radius + 1))
        below -= width
        mask = np.uint64((1 << width) - 1)
        bands[:, band] = (values >> np.uint64(below)) & mask | np.uint64(band << 48)
    return bands


def linked(hashes: npt.ArrayLike, offsets: npt.ArrayLike, radius: int) -> Int64:
    """Within each run of hashes, which are joined by steps of at most ``radius`` bits.

    Args:
        hashes: uint64 (n,), run after run.
        offsets: int (runs + 1,), where each run begins, and the end; what lies after the end is alone.
        radius: bits.

    Returns:
        int64 (n,): the position of the first hash of the same component of the same run; its own for one alone.
    """
    values, ends = _hashes(hashes), np.asarray(offsets)
    first = np.arange(len(values))
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        if end - start > 1:
            first[start:end] = start + _components(values[start:end], radius)
    return first


def merge_links(left: npt.ArrayLike, right: npt.ArrayLike) -> tuple[UInt64, UInt64]:
    """The components of a graph that is given by its edges.

    Args:
        left, right: uint64 (e,), the two ends of each edge.

    Returns:
        nodes: uint64, every end once, ascending.
        label: uint64, the smallest node of each node's component.

    >>> nodes, label = merge_links(np.array([5, 9, 2], np.uint64), np.array([7, 5, 3], np.uint64))
    >>> nodes.tolist(), label.tolist()
    ([2, 3, 5, 7, 9], [2, 2, 5, 5, 5])
    """
    ends = np.concatenate([_hashes(left), _hashes(right)])
    nodes, places = np.unique(ends, return_inverse=True)
    a, b = places.reshape(2, -1)
    return nodes, nodes[_joined(np.arange(len(nodes)), a, b)]


def leaders(hashes: npt.ArrayLike, radius: int) -> Int64:
    """Greedy leaders: a hash is removed by the first earlier hash that was not removed itself and is near.

    So no two that stay are within the radius, and every one that goes is within it of one that stays.

    Args:
        hashes: uint64 (n,), in the order of preference.
        radius: bits.

    Returns:
        int64 (n,): the position of the hash that removes each; its own for one that stays.

    >>> leaders(np.array([0b0000, 0b0001, 0b0011, 0b0111], np.uint64), radius=1).tolist()
    [0, 0, 2, 2]
    """
    values = _hashes(hashes)
    leader = np.full(len(values), -1, np.int64)
    waiting = np.arange(len(values))
    while len(waiting):
        head = waiting[0]
        near = hamming(values[waiting], values[head]) <= radius
        leader[waiting[near]] = head
        waiting = waiting[~near]
    return leader


def _hashes(hashes: npt.ArrayLike) -> UInt64:
    values = np.asarray(hashes)
    if values.ndim != 1 or values.dtype != np.uint64:
        raise ValueError(f"hashes must be a vector of uint64, not {values.dtype} of shape {values.shape}")
    return values


def _components(values: UInt64, radius: int) -> Int64:
    """First position of each one's component: all pairs compared tile by tile, a tile small enough for the cache."""
    label = np.arange(len(values))
    pairs: list[tuple[Int64, Int64]] = []
    count = 0
    for top in range(0, len(values), _ROWS):
        rows = values[top : top + _ROWS, None]
        for left in range(top, len(values), _COLUMNS):
            near = hamming(rows, values[None, left : left + _COLUMNS]) <= radius
            a, b = np.divmod(np.flatnonzero(near), near.shape[1])
            a, b = a + top, b + left
            new = label[a] != label[b]
            pairs.append((a[new], b[new]))
            count += int(new.sum())
        if count > _MANY:
            label, pairs, count = _joined_all(label, pairs), [], 0
    return _joined_all(label, pairs)


def _joined_all(label: Int64, pairs: list[tuple[Int64, Int64]]) -> Int64:
    if not pairs:
        return label
    return _joined(label, np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))


def _joined(label: Int64, a: Int64, b: Int64) -> Int64:
    """Labels after the pairs (a, b) are joined: the smallest of each component, every label pointing at itself."""
    while True:
        low, high = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
        apart = low != high
        if not apart.any():
            return label
        label = label.copy()
        a, b = a[apart], b[apart]
        np.minimum.at(label, high[apart], low[apart])
        while not np.array_equal(shorter := label[label], label):
            label = shorter
