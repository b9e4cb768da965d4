"""The rows nearest to each query, in bounded lists that merge: exact for any partition of the rows.

A float32 product only says which pairs cannot matter. The cosine of the others is a float64 dot product rounded to
whole millionths, its *key*, and equal keys go to the smaller id, so that a list is a function of its vectors and ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import (
    DENSE,
    SCALE,
    WINDOW,
    Pairs,
    full_precision,
    matrix,
    positions,
    require_same_width,
    rounded,
    unit_rows,
)
from datas3_ray.kernels.hashing import Words, as_words

if TYPE_CHECKING:
    import torch

Int64 = npt.NDArray[np.int64]

LOWEST = -SCALE
"""The key of cosine -1: a floor that every row reaches."""
_TILE_ELEMENTS = 1 << 20
_LEAST_ROWS, _MOST_ROWS = 64, 1024
_PRUNE_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Lists:
    """Lists of the rows nearest to each of m queries.

    Attributes:
        offsets: int64 (m + 1,), where the list of each query begins and ends.
        row: int64 (p,), the rows of all lists, nearest first, ties by id.
        key: int32 (p,), their cosines in millionths.
        cut: bool (m,), whether a list was cut at the limit: there are more rows that reach the floor.
        rows: int64 (r,), the distinct rows, ascending.
        words: uint64 (r, w), the words of their ids.
    """

    offsets: Int64
    row: Int64
    key: npt.NDArray[np.int32]
    cut: npt.NDArray[np.bool_]
    rows: Int64
    words: Words

    def of(self, query: int) -> slice:
        """Where the list of one query is.

        >>> no_lists(2).of(1)
        slice(0, 0, None)
        """
        return slice(int(self.offsets[query]), int(self.offsets[query + 1]))

    def queries(self) -> Int64:
        """int64 (p,): the query of each entry."""
        return np.repeat(np.arange(len(self.cut)), np.diff(self.offsets))


def make_lists(query: Int64, row: Int64, key: npt.NDArray[Any], rows: Int64, words: Words, m: int, limit: int) -> Lists:
    """Lists out of entries in any order, each cut at its ``limit`` best.

    Args:
        query, row, key: int (p,), one entry a pair; a pair comes once.
        rows: int64 (r,) ascending, at least every row of the entries.
        words: uint64 (r, w), the words of the rows' ids.
        m: queries.
        limit: the longest list, at least 1.

    >>> from datas3_ray.kernels.hashing import id_words
    >>> none, rows, keys = np.zeros(2, int), np.array([5, 8]), np.array([7, 9])
    >>> make_lists(none, rows, keys, rows, id_words(["a", "b"]), m=1, limit=1).row.tolist()
    [8]
    """
    if limit < 1:
        raise ValueError(f"a list must have room for at least 1 row, not {limit}")
    names = as_words(words)
    rank = np.empty(len(rows), np.int64)
    rank[np.lexsort(names.T[::-1])] = np.arange(len(rows))
    place = np.searchsorted(rows, row)
    order = np.lexsort((rank[place], (query.astype(np.int64) << 32) - key))
    counts = np.bincount(query, minlength=m)
    starts = np.cumsum(counts) - counts
    within = np.arange(len(order)) - starts[query[order]]
    order = order[within < limit]
    kept = np.minimum(counts, limit)
    used = np.unique(place[order])
    return Lists(
        np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        row[order].astype(np.int64),
        key[order].astype(np.int32),
        counts > limit,
        rows[used],
        names[used],
    )


def merge_lists(parts: Sequence[Lists], limit: int) -> Lists:
    """One list a query out of those of several partitions, cut at ``limit``; the same in whatever order.

    Args:
        parts: lists for the same queries over rows that no two of them share.
        limit: the longest list, at most the limit that the parts were made with.

    >>> from datas3_ray.kernels.hashing import id_words
    >>> one = make_lists(np.array([0]), np.array([4]), np.array([9]), np.array([4]), id_words(["b"]), 1, 2)
    >>> two = make_lists(np.array([0]), np.array([7]), np.array([9]), np.array([7]), id_words(["a"]), 1, 2)
    >>> merge_lists([one, two], 2).row.tolist()
    [7, 4]
    """
    width = max(part.words.shape[1] for part in parts)
    rows = np.concatenate([part.rows for part in parts])
    words = np.concatenate([np.pad(part.words, ((0, 0), (0, width - part.words.shape[1]))) for part in parts])
    rows, first = np.unique(rows, return_index=True)
    merged = make_lists(
        np.concatenate([part.queries() for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.key for part in parts]),
        rows,
        words[first],
        len(parts[0].cut),
        limit,
    )
    merged.cut[:] |= np.logical_or.reduce([part.cut for part in parts])
    return merged


def no_lists(m: int) -> Lists:
    """Empty lists for m queries.

    >>> no_lists(3).offsets.tolist()
    [0, 0, 0, 0]
    """
    none = np.empty(0, np.int64)
    return Lists(
        np.zeros(m + 1, np.int64), none, none.astype(np.int32), np.zeros(m, bool), none, np.zeros((0, 1), np.uint64)
    )


class Collector:
    """Lists over batches of rows, in bounded memory: once a list is full, only rows that reach its last one count.

    Args:
        Q: (m, d) unit queries.
        floor: int (m,), the key that a row must reach to be listed.
        limit: the longest list.
        device: where the matrices are multiplied.

    >>> from datas3_ray.kernels.hashing import id_words
    >>> found = Collector(np.eye(2, dtype=np.float32), np.array([0, 900_000]), limit=5)
    >>> found.add(np.array([[1, 0], [0.6, 0.8]], np.float32), np.arange(2), id_words(["a", "b"]))
    >>> found.finish().row.tolist(), found.finish().offsets.tolist()
    ([0, 1], [0, 2, 2])
    """

    def __init__(self, Q: npt.ArrayLike, floor: npt.ArrayLike, limit: int, device: str = "cpu") -> None:
        self._queries = matrix(Q, "Q")
        self._floor = np.array(floor, np.int64)
        self._limit, self._device = limit, device
        self._lists = no_lists(len(self._queries))
        self._pending: list[tuple[Int64, Int64, Int64]] = []
        self._names: list[tuple[Int64, Words]] = []
        self._entries = 0

    def add(self, X: npt.ArrayLike, row: Int64, words: Words) -> None:
        """List the rows of a batch: vectors (b, d), their numbers int64 (b,), never used before, and ids' words."""
        vectors = matrix(X, "X")
        seen = []
        for start in range(0, len(vectors), _MOST_ROWS):
            part = slice(start, start + _MOST_ROWS)
            for r, q, key in pairs_above(vectors[part], self._queries, self._floor, self._device):
                self._pending.append((q, row[part][r], key))
                seen.append(start + np.unique(r))
                self._entries += len(r)
            if self._entries > _PRUNE_ENTRIES:
                self._name(row, words, seen)
                seen = []
                self._prune()
        self._name(row, words, seen)

    def finish(self) -> Lists:
        """The lists over everything that was added."""
        self._prune()
        return self._lists

    def _name(self, row: Int64, words: Words, seen: list[npt.NDArray[np.intp]]) -> None:
        if seen:
            there = np.unique(np.concatenate(seen))
            self._names.append((row[there], words[there]))

    def _prune(self) -> None:
        if not self._pending:
            return
        m = len(self._floor)
        width = max(words.shape[1] for _, words in self._names)
        rows = np.concatenate([row for row, _ in self._names])
        words = np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for _, part in self._names])
        rows, first = np.unique(rows, return_index=True)
        entries = [np.concatenate(column) for column in zip(*self._pending, strict=True)]
        new = make_lists(entries[0], entries[1], entries[2], rows, words[first], m, self._limit)
        self._lists = merge_lists([self._lists, new], self._limit)
        self._pending, self._names, self._entries = [], [], 0
        full = np.diff(self._lists.offsets) >= self._limit
        last = self._lists.key[self._lists.offsets[1:][full] - 1]
        self._floor[full] = np.maximum(self._floor[full], last)


def pairs_above(
    X: npt.ArrayLike, Q: npt.ArrayLike, floor: npt.ArrayLike, device: str = "cpu"
) -> Iterator[tuple[Int64, Int64, Int64]]:
    """Pairs of a row and a query whose rounded cosine reaches the query's floor, block by block of the rows.

    Args:
        X: (n, d) float32 or float16; rows that are not unit are normalised.
        Q: (m, d) queries, likewise.
        floor: int (m,), in millionths.
        device: where the matrices are multiplied.

    Yields:
        row, query and key, int64 (p,) each, p >= 1.

    Raises:
        ValueError: a row or query is zero, NaN or infinite, or the shapes do not fit together.

    >>> [(r.tolist(), q.tolist(), key.tolist()) for r, q, key in pairs_above(np.eye(2), np.eye(2), [1, 1])]
    [([0, 1], [0, 1], [1000000, 1000000])]
    """
    import torch

    vectors, queries = matrix(X, "X"), matrix(Q, "Q")
    require_same_width(vectors, queries, "X and Q")
    floors = np.asarray(floor, np.int64)
    if floors.shape != (len(queries),):
        raise ValueError(f"there are floors of shape {floors.shape} for {len(queries)} queries")
    right = unit_rows(queries, "Q", device)
    limit = torch.from_numpy((floors / SCALE - WINDOW).astype(np.float32)).to(device)
    lowest = torch.from_numpy(floors).to(device)
    size = max(_LEAST_ROWS, min(_MOST_ROWS, _TILE_ELEMENTS // max(1, len(queries))))
    buffer = torch.empty(size * len(queries), device=right.device)
    with full_precision():
        for start in range(0, len(vectors), size):
            rows = unit_rows(vectors, "X", device, start, start + size)
            out = buffer[: len(rows) * len(right)].view(len(rows), len(right))
            r, q = _reaching(torch.mm(rows, right.T, out=out), limit)
            if len(r) > DENSE * len(rows):
                keys = rounded(rows.double() @ right.double().T)
                r, q = positions(keys >= lowest)
                key = keys[r, q]
            else:
                key = Pairs(rows, right).keys(r, q)
                there = key >= lowest[q]
                r, q, key = r[there], q[there], key[there]
            if len(r):
                yield start + r.cpu().numpy(), q.cpu().numpy(), key.cpu().numpy()


def _reaching(cosines: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines and columns where a tile reaches its columns' limits; through numpy on the CPU, where that is faster."""
    import torch

    if cosines.device.type != "cpu":
        return positions(cosines >= limit)
    return positions(torch.from_numpy(np.greater_equal(cosines.numpy(), limit.numpy())))
