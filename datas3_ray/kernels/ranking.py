"""Exactly the N best rows, by (score descending, id ascending), wherever the rows are.

Each partition holds its rows as *words*: the order key of the score, then the words of the id, so that rows compare
as rows of unsigned integers, smallest first. A driver finds the N-th row by radix: in each round every partition
counts its undecided rows by their next 16 bits, the driver adds the 65,536 counts and fixes those bits. What comes
out is a :class:`Cut`, and every partition keeps its own rows up to it; no row travels.

>>> partitions = [rank_words([0.9, 0.5], ["a", "b"]), rank_words([0.5, 0.1], ["c", "d"])]
>>> state = start_search(2, width=max(words.shape[1] for words in partitions))
>>> while state.cut is None:
...     state = next_state(state, sum(digit_histogram(words, state) for words in partitions))
>>> [state.cut.keep(words).tolist() for words in partitions]
[[True, True], [False, False]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.hashing import Words, as_words, id_words

if TYPE_CHECKING:
    import pyarrow as pa

DIGIT_BITS = 16
BINS = 1 << DIGIT_BITS
_DIGITS_PER_WORD = 64 // DIGIT_BITS
_SIGN = np.uint64(1 << 63)
_ALL_ONES = 2**64 - 1

Mask = npt.NDArray[np.bool_]


def resolve_size(size: int | float, n: int) -> int:
    """The number of rows that ``size`` asks for out of ``n``.

    Args:
        size: a count (``int``, may exceed ``n``: the caller reports the shortfall), or a share (``float`` in (0, 1]).
        n: eligible rows.

    Returns:
        The count; for a share, ``size * n`` rounded half up, reading the share as the decimal that it prints as.

    Raises:
        ValueError: the size is negative, NaN, a bool, or a share outside (0, 1].

    >>> resolve_size(10, 1000), resolve_size(0.25, 1000), resolve_size(0.285, 100)
    (10, 250, 29)
    """
    if isinstance(size, (bool, np.bool_)) or not isinstance(size, (int, float, np.integer, np.floating)):
        raise ValueError(f"size must be a count (int) or a share (float), not {size!r}")
    if isinstance(size, (int, np.integer)):
        if size < 0:
            raise ValueError(f"size must not be negative, and {size} is")
        return int(size)
    share = float(size)
    if math.isnan(share) or not 0 < share <= 1:
        raise ValueError(f"a size given as a share must be above 0 and at most 1, not {share}; a count is an int")
    return int((Decimal(repr(share)) * n).quantize(Decimal(1), ROUND_HALF_UP))


def read_size(size: Any) -> int | float:
    """A size as people write it: a count, a share, or a text such as ``25%``.

    Raises:
        ValueError: it is none that :func:`resolve_size` takes.

    >>> read_size("25%"), read_size(0.25), read_size(np.int64(7))
    (0.25, 0.25, 7)
    """
    if isinstance(size, str):
        try:
            size = float(Decimal(size.removesuffix("%").strip()) / 100) if size.endswith("%") else size
        except ArithmeticError:
            raise ValueError("a size in percent is a number and %, such as 25%") from None
    resolve_size(size, 1)
    return int(size) if isinstance(size, np.integer) else size


def order_key(score: npt.ArrayLike) -> Words:
    """Unsigned integers that sort ascending as the scores sort descending: the higher score has the smaller key.

    Args:
        score: (n,) real numbers; infinities are allowed and -0.0 equals 0.0.

    Returns:
        uint64 of shape (n,), the first of a row's words.

    Raises:
        ValueError: a score is NaN; invalid rows are set aside before ranking.

    >>> np.argsort(order_key([0.1, 0.9, -np.inf, -0.5])).tolist()
    [1, 0, 3, 2]
    """
    scores = np.asarray(score, np.float64).reshape(-1)
    missing = np.isnan(scores)
    if missing.any():
        raise ValueError(f"{int(missing.sum())} scores are NaN, the first in row {int(missing.argmax())}")
    bits = (scores + 0.0).view(np.uint64)  # adding zero turns -0.0 into 0.0
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ~ascending


def rank_words(scores: npt.ArrayLike, ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> Words:
    """The words of each row: the order key of its score, then the words of its id.

    Args:
        scores: (n,) real numbers, none NaN.
        ids: n strings, see :func:`datas3_ray.kernels.hashing.id_words`.

    Returns:
        uint64 of shape (n, 1 + w).

    >>> rank_words([0.5], ["a"]).shape
    (1, 2)
    """
    keys, names = order_key(scores), id_words(ids)
    if len(keys) != len(names):
        raise ValueError(f"there are {len(keys)} scores for {len(names)} ids")
    return np.concatenate([keys[:, None], names], axis=1)


@dataclass(frozen=True)
class Cut:
    """The last row that is kept, as words; None keeps nothing.

    >>> Cut((5,)).keep(np.array([[4], [5], [6]], np.uint64)).tolist()
    [True, True, False]
    """

    words: tuple[int, ...] | None

    def keep(self, words: npt.ArrayLike) -> Mask:
        """Which rows of (n, w) words are at or before the cut; missing words count as zero.

        Returns:
            bool of shape (n,).

        Raises:
            ValueError: the rows have more words than the cut, so the cut was not made from them.
        """
        rows = as_words(words)
        if self.words is None:
            return np.zeros(len(rows), bool)
        _require_width(rows, len(self.words))
        before = np.zeros(len(rows), bool)
        equal = np.ones(len(rows), bool)
        for column, limit in zip(rows.T, self.words, strict=False):
            before |= equal & (column < np.uint64(limit))
            equal &= column == np.uint64(limit)
        return before | equal


@dataclass(frozen=True)
class PrefixState:
    """How far the search for the cut has come.

    Attributes:
        remaining: rows still to be found among those that start with ``prefix``; all rows below it are kept.
        width: words of the widest partition.
        prefix: the 16-bit digits of the cut that are fixed so far.
        undecided: rows that start with ``prefix`` (unknown, None, before the first round).
        cut: the result, once it is known.
    """

    remaining: int
    width: int
    prefix: tuple[int, ...] = ()
    undecided: int | None = None
    cut: Cut | None = None


def start_search(n: int, width: int) -> PrefixState:
    """The state before the first round of a search for the cut that keeps ``n`` rows.

    Args:
        n: rows to keep, at most as many as there are.
        width: the largest number of words in any partition (``words.shape[1]``).

    >>> start_search(0, width=2).cut
    Cut(words=None)
    """
    if n < 0 or width < 1:
        raise ValueError(f"a search needs a count of at least 0 and a width of at least 1, not {n} and {width}")
    return PrefixState(remaining=n, width=width, cut=Cut(None) if n == 0 else None)


def digit_histogram(words: npt.ArrayLike, prefix_state: PrefixState) -> npt.NDArray[np.int64]:
    """How many rows of this partition start with the state's prefix, by their next 16-bit digit.

    Args:
        words: uint64 of shape (n, w), w at most the state's width.
        prefix_state: the state that the driver sent.

    Returns:
        int64 of shape (65536,); the driver adds those of all partitions.
    """
    rows = matching_rows(words, prefix_state)
    position = len(prefix_state.prefix)
    counts = np.bincount(_digit(rows, position), minlength=BINS)
    return counts.astype(np.int64, copy=False)


def matching_rows(words: npt.ArrayLike, prefix_state: PrefixState) -> Words:
    """The rows that start with the state's prefix: few enough of them are cheaper to gather than to count.

    Args:
        words: uint64 of shape (n, w).
        prefix_state: the state that the driver sent; ``prefix_state.undecided`` says how many will match in all.

    Returns:
        uint64 of shape (m, w), input for :func:`settle`.
    """
    rows = as_words(words)
    _require_width(rows, prefix_state.width)
    whole, part = divmod(len(prefix_state.prefix), _DIGITS_PER_WORD)
    limits = _words_of(prefix_state.prefix, fill=0)
    for column in range(whole):
        rows = rows[_column(rows, column) == np.uint64(limits[column])]
    if part:
        shift = np.uint64(64 - DIGIT_BITS * part)
        rows = rows[_column(rows, whole) >> shift == np.uint64(limits[whole]) >> shift]
    return rows


def next_state(prefix_state: PrefixState, counts: npt.ArrayLike) -> PrefixState:
    """One round on the driver: fix the digit of the cut, or finish.

    Args:
        prefix_state: the state that was sent out.
        counts: int64 of shape (65536,), the sum of the partitions' histograms.

    Returns:
        The next state; its ``cut`` is set when the search is over.

    Raises:
        ValueError: fewer rows exist than are wanted, or ids are not unique so that no cut keeps exactly N.
    """
    counts = np.asarray(counts)
    if prefix_state.cut is not None:
        return prefix_state
    if counts.shape != (BINS,):
        raise ValueError(f"counts must have shape ({BINS},), not {counts.shape}")
    cumulative = np.cumsum(counts)
    if cumulative[-1] < prefix_state.remaining:
        raise ValueError(f"{prefix_state.remaining} rows are wanted and there are only {int(cumulative[-1])}")
    digit = int(np.searchsorted(cumulative, prefix_state.remaining))
    undecided = int(counts[digit])
    prefix = (*prefix_state.prefix, digit)
    remaining = prefix_state.remaining - int(cumulative[digit]) + undecided
    state = replace(prefix_state, prefix=prefix, remaining=remaining, undecided=undecided)
    if remaining == undecided:  # every row that starts so is kept
        return replace(state, cut=Cut(_padded(_words_of(prefix, fill=_ALL_ONES), state.width)))
    if len(prefix) == prefix_state.width * _DIGITS_PER_WORD:
        raise ValueError(
            f"ids are not unique: {undecided} rows are equal at the cut and {remaining} of them are wanted"
        )
    return state


def settle(prefix_state: PrefixState, rows: Sequence[Words]) -> Cut:
    """The cut, from the undecided rows themselves: the quick end of a search with few left.

    Args:
        prefix_state: the state that was sent out.
        rows: what :func:`matching_rows` returned on each partition.

    Returns:
        The same cut that further rounds of :func:`next_state` would keep rows by.

    Raises:
        ValueError: as for :func:`next_state`.

    >>> settle(start_search(1, width=1), [np.array([[7], [5]], np.uint64)])
    Cut(words=(5,))
    """
    if prefix_state.cut is not None:
        return prefix_state.cut
    wanted, width = prefix_state.remaining, prefix_state.width
    gathered = np.concatenate([_widened(as_words(part), width) for part in rows] or [np.zeros((0, width), np.uint64)])
    if len(gathered) < wanted:
        raise ValueError(f"{wanted} rows are wanted and there are only {len(gathered)}")
    gathered = gathered[np.lexsort(gathered.T[::-1])]
    last = gathered[wanted - 1]
    if wanted < len(gathered) and np.array_equal(last, gathered[wanted]):
        raise ValueError("ids are not unique: several rows are equal at the cut and not all of them are wanted")
    return Cut(tuple(int(word) for word in last))


def top_n(scores: npt.ArrayLike, ids: pa.Array | pa.ChunkedArray | Sequence[str], n: int) -> Mask:
    """The ``n`` rows with the highest scores, ties to the smaller id in byte order.

    Args:
        scores: (rows,) real numbers, none NaN.
        ids: unique strings.
        n: how many to keep, at most the number of rows.

    Returns:
        bool of shape (rows,), exactly ``n`` of them true.

    >>> top_n([0.5, 0.9, 0.5], ["b", "c", "a"], 2).tolist()
    [False, True, True]
    """
    words = rank_words(scores, ids)
    state = start_search(n, words.shape[1])
    while state.cut is None:
        state = next_state(state, digit_histogram(words, state))
    return state.cut.keep(words)


def _require_width(rows: Words, width: int) -> None:
    if rows.shape[1] > width:
        raise ValueError(f"rows have {rows.shape[1]} words and the search was started with a width of {width}")


def _column(rows: Words, index: int) -> Words:
    return rows[:, index] if index < rows.shape[1] else np.zeros(len(rows), np.uint64)


def _digit(rows: Words, position: int) -> npt.NDArray[np.intp]:
    word, place = divmod(position, _DIGITS_PER_WORD)
    shift = np.uint64(64 - DIGIT_BITS * (place + 1))
    return ((_column(rows, word) >> shift) & np.uint64(BINS - 1)).astype(np.intp)


def _words_of(prefix: tuple[int, ...], fill: int) -> tuple[int, ...]:
    """Digits as words, the unfinished word filled up with the low bits of ``fill``."""
    words = []
    for first in range(0, len(prefix), _DIGITS_PER_WORD):
        word = fill
        for place, digit in enumerate(prefix[first : first + _DIGITS_PER_WORD]):
            shift = 64 - DIGIT_BITS * (place + 1)
            word = word & ~((BINS - 1) << shift) | digit << shift
        words.append(word)
    return tuple(words)


def _padded(words: tuple[int, ...], width: int) -> tuple[int, ...]:
    return words + (_ALL_ONES,) * (width - len(words))


def _widened(rows: Words, width: int) -> Words:
    _require_width(rows, width)
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
