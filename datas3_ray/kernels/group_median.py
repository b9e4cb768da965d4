"""The exact median of every dimension in every group, of rows that are spread over partitions.

A partition holds float32 rows and the number of each one's group. Floats are read as 32-bit keys that sort as they do,
and each of the k x d medians is found by radix: in a round every partition counts, for each group and dimension, the
values that agree with the bits fixed so far, by their next bits. A round fixes as many bits as the counters allow;
memory is bounded by the counters, whatever the number of rows. The median of an even number of values is the mean of
the two in the middle.

>>> rows, group = np.array([[1, 5], [2, 7], [9, 6], [4, 4]], np.float32), np.array([0, 0, 0, 1])
>>> search = start_medians(sizes=[3, 1], dimensions=2)
>>> while not search.found:
...     search = next_medians(search, median_histogram(rows, group, search))
>>> finish_medians(search, *median_neighbours(rows, group, search)).tolist()
[[2.0, 6.0], [4.0, 4.0]]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

MAX_CELLS = 1 << 22
"""Counters of one partition's answer at most, unless there are more groups and dimensions."""
MAX_DIGIT = 16
_KEY = 32
_SIGN = np.uint32(1 << 31)
_LARGEST = np.uint32(2**32 - 1)

Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MedianSearch:
    """How far the search has come; all medians have as many bits fixed.

    Attributes:
        sizes: int64 (k,), rows of each group.
        prefix: uint32 (k, d), the bits of the lower median's key that are fixed so far, the others zero.
        remaining: int64 (k, d), the rank of the lower median among the values with that prefix, from 0.
        bits: how many are fixed.
    """

    sizes: Counts
    prefix: Keys
    remaining: Counts
    bits: int = 0

    @property
    def digit(self) -> int:
        """How many bits the next round fixes."""
        per_median = max(2, MAX_CELLS // max(1, self.prefix.size))
        return min(MAX_DIGIT, per_median.bit_length() - 1, _KEY - self.bits)

    @property
    def found(self) -> bool:
        """Whether every bit is fixed."""
        return self.bits == _KEY or self.prefix.size == 0


def float_keys(values: npt.ArrayLike) -> Keys:
    """Unsigned integers that sort as the float32 values do; -0.0 equals 0.0.

    >>> np.argsort(float_keys(np.array([0.5, -1.0, 2.0, -0.5], np.float32))).tolist()
    [1, 3, 0, 2]
    """
    bits = (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def key_floats(keys: Keys) -> npt.NDArray[np.float32]:
    """The float32 values of keys."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)


def start_medians(sizes: npt.ArrayLike, dimensions: int) -> MedianSearch:
    """The state before the first round; an empty group's medians come out as NaN."""
    rows = np.asarray(sizes, np.int64).reshape(-1)
    rank = np.repeat(np.maximum(0, rows - 1)[:, None] // 2, dimensions, axis=1)
    return MedianSearch(rows, np.zeros((len(rows), dimensions), np.uint32), rank)


def median_histogram(rows: npt.ArrayLike, group: npt.ArrayLike, search: MedianSearch) -> Counts:
    """Counts of this partition's values by group, dimension and next bits.

    Args:
        rows: float32 or float16 (n, d), finite.
        group: int (n,), from 0 to k - 1.
        search: the state that the driver sent.

    Returns:
        int64 (k, d, 2 ** search.digit); the driver adds those of all partitions.
    """
    keys, groups = float_keys(rows), np.asarray(group)
    k, d = search.prefix.shape
    digit = search.digit
    rest = np.uint32(_KEY - search.bits - digit)
    value = (keys >> rest & np.uint32((1 << digit) - 1)).astype(np.int64)
    cell = ((groups[:, None] * d + np.arange(d)) << digit) + value
    if search.bits:
        shift = np.uint32(_KEY - search.bits)
        cell = cell[keys >> shift == search.prefix[groups] >> shift]
    return np.bincount(cell.reshape(-1), minlength=k * d << digit).reshape(k, d, 1 << digit)


def next_medians(search: MedianSearch, counts: npt.ArrayLike) -> MedianSearch:
    """One round on the driver: fix the next bits of every median."""
    tally = np.asarray(counts)
    if tally.shape != (*search.prefix.shape, 1 << search.digit):
        raise ValueError(f"counts must have shape {(*search.prefix.shape, 1 << search.digit)}, not {tally.shape}")
    cumulative = np.cumsum(tally, axis=2)
    if (cumulative[..., -1] <= search.remaining)[search.sizes > 0].any():
        raise ValueError("a group has fewer rows than were said")
    chosen = np.minimum((cumulative <= search.remaining[..., None]).sum(axis=2), tally.shape[2] - 1)
    at = chosen[..., None]
    before = np.take_along_axis(cumulative, at, 2)[..., 0] - np.take_along_axis(tally, at, 2)[..., 0]
    bits = search.bits + search.digit
    prefix = search.prefix | (chosen.astype(np.uint32) << np.uint32(_KEY - bits))
    return replace(search, prefix=prefix, remaining=search.remaining - before, bits=bits)


def median_neighbours(rows: npt.ArrayLike, group: npt.ArrayLike, search: MedianSearch) -> tuple[Counts, Keys]:
    """What the upper of two middle values is found by, once the lower ones are.

    Returns:
        at_most: int64 (k, d), this partition's values that are not above the lower median; to be added.
        above: uint32 (k, d), the smallest key above it; of which the smallest is to be taken.
    """
    keys, groups = float_keys(rows), np.asarray(group)
    at_most = np.zeros(search.prefix.shape, np.int64)
    above = np.full(search.prefix.shape, _LARGEST)
    if len(keys) == 0:
        return at_most, above
    order = np.argsort(groups, kind="stable")
    keys, groups = keys[order], groups[order]
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    higher = keys > search.prefix[groups]
    at_most[groups[starts]] = np.add.reduceat((~higher).astype(np.int64), starts, axis=0)
    above[groups[starts]] = np.minimum.reduceat(np.where(higher, keys, _LARGEST), starts, axis=0)
    return at_most, above


def finish_medians(search: MedianSearch, at_most: npt.ArrayLike, above: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The medians: float32 (k, d), NaN for an empty group."""
    lower = key_floats(search.prefix).astype(np.float64)
    upper_rank = (search.sizes // 2)[:, None]
    upper = np.where(np.asarray(at_most) > upper_rank, search.prefix, np.asarray(above, np.uint32)).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        medians = (lower + np.where(search.sizes[:, None] % 2, lower, key_floats(upper).astype(np.float64))) / 2
    medians[search.sizes == 0] = np.nan
    return medians.astype(np.float32)
