"""The q_j best rows of every group j, by (score descending, id ascending), wherever the rows are.

What :mod:`datas3_ray.kernels.ranking` does for one cut, for a cut in each of k groups at once. Rows are words (order
key, then id, see :func:`~datas3_ray.kernels.ranking.rank_words`) with the number of their group. In each round every
partition counts its undecided rows by group and next bits; the driver adds the counts and fixes those bits for every
group that is still open. The fewer groups are open, the more bits a round fixes; no row travels.

>>> from datas3_ray.kernels.ranking import rank_words
>>> words = rank_words([0.9, 0.5, 0.5, 0.1], ["a", "c", "b", "d"])
>>> group = np.array([0, 1, 1, 0])
>>> search = start_group_search(quota=[1, 1], sizes=[2, 2], width=words.shape[1])
>>> while search.cuts is None:
...     search = next_group_search(search, group_histogram(words, group, search))
>>> search.cuts.keep(words, group).tolist()
[True, False, True, False]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.hashing import Words, as_words

MAX_CELLS = 1 << 18
"""Counters of one partition's answer at most, unless there are more groups."""
MAX_DIGIT = 16
_WORD = 64
_ALL_ONES = np.uint64(2**64 - 1)

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupCuts:
    """The last row that each group keeps.

    Attributes:
        words: uint64 (k, w).
        some: bool (k,), False for a group that keeps nothing.
    """

    words: Words
    some: Mask

    def keep(self, words: npt.ArrayLike, group: npt.ArrayLike) -> Mask:
        """Which rows are at or before the cut of their group; rows of a negative group are not.

        Args:
            words: uint64 (n, v), v at most w; missing words count as zero.
            group: int (n,).

        Returns:
            bool (n,).
        """
        rows, groups = as_words(words), np.asarray(group)
        if rows.shape[1] > self.words.shape[1]:
            raise ValueError(f"rows have {rows.shape[1]} words and the cuts were made from {self.words.shape[1]}")
        kept = np.zeros(len(rows), bool)
        inside = np.flatnonzero(groups >= 0)
        inside = inside[self.some[groups[inside]]]
        before, equal = np.zeros(len(inside), bool), np.ones(len(inside), bool)
        for column in range(self.words.shape[1]):
            mine = rows[inside, column] if column < rows.shape[1] else np.zeros(len(inside), np.uint64)
            limit = self.words[groups[inside], column]
            before |= equal & (mine < limit)
            equal &= mine == limit
        kept[inside] = before | equal
        return kept


@dataclass(frozen=True)
class GroupSearch:
    """How far the search for the cuts has come.

    Attributes:
        open: bool (k,), groups whose cut is not known yet.
        remaining: int64 (k,), rows still to be found among the group's undecided ones.
        undecided: int64 (k,), rows of an open group that start with its prefix.
        prefix: uint64 (k, w), the bits of each cut that are fixed so far, the others zero; whole cuts of closed groups.
        some: bool (k,), groups that keep anything.
        bits: how many bits are fixed in the open groups.
    """

    open: Mask
    remaining: Counts
    undecided: Counts
    prefix: Words
    some: Mask
    bits: int = 0

    @property
    def digit(self) -> int:
        """How many bits the next round fixes; they never reach over the end of a word."""
        per_group = max(1, MAX_CELLS // max(1, int(self.open.sum())))
        return max(1, min(MAX_DIGIT, per_group.bit_length() - 1, _WORD - self.bits % _WORD))

    @property
    def cuts(self) -> GroupCuts | None:
        """The result, once no group is open."""
        return None if self.open.any() else GroupCuts(self.prefix, self.some)


def start_group_search(quota: npt.ArrayLike, sizes: npt.ArrayLike, width: int) -> GroupSearch:
    """The state before the first round.

    Args:
        quota: (k,) whole numbers, the rows that each group keeps.
        sizes: (k,) whole numbers, the rows that each group has.
        width: the largest number of words in any partition.

    Raises:
        ValueError: a quota is negative or more than the group has.
    """
    wanted, there = np.asarray(quota, np.int64).reshape(-1), np.asarray(sizes, np.int64).reshape(-1)
    if wanted.shape != there.shape or width < 1:
        raise ValueError(f"{len(wanted)} quotas and {len(there)} sizes at width {width} do not make a search")
    wrong = (wanted < 0) | (wanted > there)
    if wrong.any():
        group = int(np.argmax(wrong))
        raise ValueError(f"group {group} has {there[group]} rows and a quota of {wanted[group]}")
    prefix = np.zeros((len(wanted), width), np.uint64)
    prefix[wanted == there] = _ALL_ONES
    return GroupSearch((wanted > 0) & (wanted < there), wanted, there, prefix, wanted > 0)


def group_histogram(words: npt.ArrayLike, group: npt.ArrayLike, search: GroupSearch) -> Counts:
    """How many undecided rows of this partition there are, by open group and by their next bits.

    Args:
        words: uint64 (n, v), v at most the search's width.
        group: int (n,), negative for rows of no group.
        search: the state that the driver sent.

    Returns:
        int64 (open groups, 2 ** search.digit); the driver adds those of all partitions.
    """
    rows, groups = matching_group_rows(words, group, search)
    digit = search.digit
    word, place = divmod(search.bits, _WORD)
    column = rows[:, word] if word < rows.shape[1] else np.zeros(len(rows), np.uint64)
    value = (column >> np.uint64(_WORD - place - digit)) & np.uint64((1 << digit) - 1)
    slot = np.cumsum(search.open) - 1
    cells = int(search.open.sum()) << digit
    counts = np.bincount((slot[groups] << digit) + value.astype(np.int64), minlength=cells)
    return counts.reshape(-1, 1 << digit).astype(np.int64, copy=False)


def matching_group_rows(
    words: npt.ArrayLike, group: npt.ArrayLike, search: GroupSearch
) -> tuple[Words, npt.NDArray[np.int64]]:
    """The undecided rows and their groups: few enough of them are cheaper to gather than to count.

    Args:
        words: uint64 (n, v).
        group: int (n,).
        search: the state that the driver sent; ``search.undecided[search.open].sum()`` of all rows will match.
    """
    rows, groups = as_words(words), np.asarray(group).astype(np.int64, copy=False)
    width = search.prefix.shape[1]
    if rows.shape[1] > width:
        raise ValueError(f"rows have {rows.shape[1]} words and the search was started with a width of {width}")
    inside = np.flatnonzero(groups >= 0)
    inside = inside[search.open[groups[inside]]]
    rows, groups = rows[inside], groups[inside]
    whole, part = divmod(search.bits, _WORD)
    for column in range(whole + (part > 0)):
        shift = np.uint64(_WORD - part if column == whole else 0)
        mine = rows[:, column] if column < rows.shape[1] else np.zeros(len(rows), np.uint64)
        same = mine >> shift == search.prefix[groups, column] >> shift
        rows, groups = rows[same], groups[same]
    return rows, groups


def next_group_search(search: GroupSearch, counts: npt.ArrayLike) -> GroupSearch:
    """One round on the driver: fix the next bits of every open cut, and close the groups that need no more.

    Args:
        search: the state that was sent out.
        counts: int64 (open groups, 2 ** search.digit), the sum of the partitions' histograms.

    Raises:
        ValueError: a group has fewer rows than were said, or ids are not unique so that no cut keeps its quota.
    """
    tally = np.asarray(counts)
    opened = np.flatnonzero(search.open)
    if tally.shape != (len(opened), 1 << search.digit):
        raise ValueError(f"counts must have shape ({len(opened)}, {1 << search.digit}), not {tally.shape}")
    if len(opened) == 0:
        return search
    cumulative = np.cumsum(tally, axis=1)
    wanted = search.remaining[opened]
    if (cumulative[:, -1] < wanted).any():
        group = int(opened[np.argmax(cumulative[:, -1] < wanted)])
        raise ValueError(f"group {group} has fewer rows than were said")
    chosen = (cumulative < wanted[:, None]).sum(axis=1)
    at = np.arange(len(opened))
    inside = tally[at, chosen]
    left = wanted - cumulative[at, chosen] + inside
    bits = search.bits + search.digit
    word = search.bits // _WORD
    prefix, undecided, remaining = search.prefix.copy(), search.undecided.copy(), search.remaining.copy()
    shift = np.uint64(_WORD - 1 - (bits - 1) % _WORD)
    prefix[opened, word] |= chosen.astype(np.uint64) << shift
    undecided[opened], remaining[opened] = inside, left
    done = opened[left == inside]  # every row that starts so is kept
    prefix[done, word] |= (np.uint64(1) << shift) - np.uint64(1)
    prefix[done, word + 1 :] = _ALL_ONES
    still = search.open.copy()
    still[done] = False
    if still.any() and bits == prefix.shape[1] * _WORD:
        raise ValueError(f"ids are not unique: several rows of group {int(np.argmax(still))} are equal at its cut")
    return replace(search, open=still, remaining=remaining, undecided=undecided, prefix=prefix, bits=bits)


def settle_groups(search: GroupSearch, rows: Sequence[tuple[Words, npt.NDArray[np.int64]]]) -> GroupCuts:
    """The cuts, from the undecided rows themselves: the quick end of a search with few left.

    Args:
        search: the state that was sent out.
        rows: what :func:`matching_group_rows` returned on each partition.

    Raises:
        ValueError: as for :func:`next_group_search`.
    """
    width = search.prefix.shape[1]
    words = np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part, _ in rows] or [search.prefix])
    groups = np.concatenate([group for _, group in rows] or [np.full(len(words), -1)])
    order = np.lexsort([*words.T[::-1], groups])
    words, groups = words[order], groups[order]
    prefix = search.prefix.copy()
    opened = np.flatnonzero(search.open)
    first, end = np.searchsorted(groups, opened, "left"), np.searchsorted(groups, opened, "right")
    last = first + search.remaining[opened] - 1
    if (last >= end).any():
        raise ValueError(f"group {int(opened[np.argmax(last >= end)])} has fewer rows than were said")
    follows = np.minimum(last + 1, max(0, len(words) - 1))
    tied = (last + 1 < end) & (words[last] == words[follows]).all(axis=1)
    if tied.any():
        raise ValueError(f"ids are not unique: several rows of group {int(opened[np.argmax(tied)])} equal its cut")
    prefix[opened] = words[last]
    return GroupCuts(prefix, search.some)
