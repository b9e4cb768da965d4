"""Old and new rows of one cluster that are each other's most similar earlier row: what an update of SemDeDup seeks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.kernels._tiles import WINDOW, Pairs
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.kernels.similarity import normalize
from datas3_ray.selectors.grouping import Group

BLOCK_BYTES = 1 << 27
"""Vectors of old rows that are compared at a time."""
RUN_PAIRS = 1 << 20
"""Cosines that are looked at a time."""


class Raised:
    """Pairs of an old and a new row of one cluster, found block by block of a fragment's old rows.

    A float32 cosine only rules pairs out that are safely below what a row has already; the others are computed exactly.

    Args:
        part: the old rows, with ``id``, ``cluster``, ``key`` and ``max_similarity``.
        new: the new rows of all fragments.
    """

    def __init__(self, part: pa.Table, new: Group) -> None:
        import torch

        self.part, self.new = part, new
        self.cluster = part.column("cluster").to_numpy()
        self.key = part.column("key").to_numpy()
        self.most = part.column("max_similarity").to_numpy().astype(np.float32)
        # A new row has at least this to an earlier old row, less what float32 may be off.
        self.least = np.zeros(len(new), np.float32)
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._right = torch.from_numpy(new.matrix().copy())
        dimensions = new.matrix().shape[1]
        self._block = np.empty((min(part.num_rows, max(1, BLOCK_BYTES // (4 * dimensions))), dimensions), np.float32)
        # An old row is compared with all new rows of its cluster at once.
        self._flat = np.empty(max(RUN_PAIRS, int(np.diff(new.offsets).max(initial=0))), np.float32)
        self._first = self._filled = 0
        self._begin()

    def add(self, vectors: np.ndarray) -> None:
        """The next old rows, (n, d) of any length."""
        while len(vectors):
            some = vectors[: len(self._order) - self._filled]
            self._block[self._place[self._filled : self._filled + len(some)]] = some
            self._filled += len(some)
            vectors = vectors[len(some) :]
            if self._filled == len(self._order):
                self._compare()
                self._first += self._filled
                self._filled = 0
                self._begin()

    def _begin(self) -> None:
        """Where the rows of the next block go, so that those of a cluster are side by side."""
        self._order = np.argsort(self.cluster[self._first : self._first + len(self._block)], kind="stable")
        self._place = np.empty(len(self._order), np.int64)
        self._place[self._order] = np.arange(len(self._order))

    def _compare(self) -> None:
        """Compare the old rows of the block with the new rows of their clusters."""
        vectors = self._block[: self._filled]
        scale = _inverse_lengths(vectors)
        if scale is None:
            vectors, scale = normalize(vectors)[0], np.ones(len(vectors), np.float32)
        rows = self._first + self._order
        pairs = [self._run(tiles, rows, vectors, scale) for tiles in _runs(self._tiles(self.cluster[rows]))]
        if not pairs:
            return
        old, new = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        self.found.append((rows[old], new, self._exact(vectors, old, new)))

    def _tiles(self, cluster: np.ndarray) -> np.ndarray:
        """Runs of old rows, by their sorted clusters, and the new rows of the same cluster: int64 (t, 4)."""
        of_new = self.new.cluster[self.new.offsets[:-1]]
        tiles = np.stack(
            [
                np.searchsorted(cluster, of_new, side="left"),
                np.searchsorted(cluster, of_new, side="right"),
                self.new.offsets[:-1],
                self.new.offsets[1:],
            ],
            axis=1,
        )
        return tiles[tiles[:, 0] < tiles[:, 1]]

    def _run(
        self, tiles: np.ndarray, rows: np.ndarray, vectors: np.ndarray, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Old rows (in the block) and new rows that may be each other's most similar earlier row."""
        start, stop, first, last = tiles.T
        ends = np.cumsum((stop - start) * (last - first))
        right = self.new.matrix()
        for (a, b, c, d), end in zip(tiles.tolist(), ends.tolist(), strict=True):
            out = self._flat[end - (b - a) * (d - c) : end].reshape(d - c, b - a)
            np.matmul(right[c:d], vectors[a:b].T, out=out)
        # Each new row has a line of cosines, with the old rows of its cluster.
        new = _counted(first, last - first)
        length = np.repeat(stop - start, last - first)
        begin = np.cumsum(length) - length
        old = _counted(np.repeat(start, last - first), length)
        cosines = self._flat[: ends[-1]] * scale[old]
        before, after = self.key[rows[old]], np.repeat(self.new.key[new], length)
        earlier = np.maximum.reduceat(np.where(before < after, cosines, 0), begin)
        np.maximum.at(self.least, new, earlier)
        # Rows with the same key are ordered by their ids, which is looked at only where the pair matters.
        matters = (before <= after) & (cosines >= np.repeat(self.least[new] - np.float32(WINDOW), length))
        matters |= (before >= after) & (cosines >= self.most[rows[old]] - np.float32(WINDOW))
        chosen = np.flatnonzero(matters & (cosines > -WINDOW))
        return old[chosen], np.repeat(new, length)[chosen]

    def _exact(self, vectors: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Cosines of pairs in whole millionths."""
        import torch

        rows, place = np.unique(old, return_inverse=True)
        pairs = Pairs(torch.from_numpy(normalize(vectors[rows])[0]), self._right)
        return pairs.keys(torch.from_numpy(place), torch.from_numpy(new)).numpy()

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """What the pairs mean for both sides.

        First: ``position`` of an old row, the cosine's ``millionths`` and the ``new`` row, the best earlier one.
        Second: the ``new`` row, ``millionths``, and ``key`` and ``id`` of the old row, the best earlier one.
        """
        none = np.empty(0, np.int64)
        old, new, keys = (np.concatenate([none, *(found[side] for found in self.found)]) for side in (0, 1, 2))
        positive = keys > 0
        old, new, keys = old[positive], new[positive], keys[positive]
        ids = self.part.column("id").take(pa.array(old)).combine_chunks()
        earlier = self.key[old] < self.new.key[new]
        same = np.flatnonzero(self.key[old] == self.new.key[new])
        if len(same):
            names = self.new.ids.take(pa.array(new[same]))
            earlier[same] = pc.less(ids.take(pa.array(same)).cast(pa.binary()), names.cast(pa.binary())).to_numpy(
                zero_copy_only=False
            )
        raised = _first(old[~earlier], keys[~earlier], new[~earlier][:, None])
        mine = pa.table({"position": old[~earlier], "millionths": keys[~earlier], "new": new[~earlier]})
        theirs = pa.table(
            {
                "new": new[earlier],
                "millionths": keys[earlier],
                "key": self.key[old[earlier]],
                "id": ids.filter(pa.array(earlier)),
            }
        )
        return mine.take(pa.array(raised)), best_earlier(theirs)


def best_earlier(theirs: pa.Table) -> pa.Table:
    """Of the candidates of each new row the most similar, then the first in rank."""
    words = rank_words(-theirs.column("key").to_numpy(), theirs.column("id"))
    return theirs.take(pa.array(_first(theirs.column("new").to_numpy(), theirs.column("millionths").to_numpy(), words)))


def _runs(tiles: np.ndarray) -> list[np.ndarray]:
    """The tiles (t, 4), those with too many pairs cut, in runs of up to ``RUN_PAIRS`` pairs."""
    cut: list[tuple[int, int, int, int]] = []
    for start, stop, first, last in tiles.tolist():
        height = max(1, RUN_PAIRS // (last - first))
        cut += [(top, min(top + height, stop), first, last) for top in range(start, stop, height)]
    runs: list[list[tuple[int, int, int, int]]] = []
    pairs = 0
    for tile in cut:
        size = (tile[1] - tile[0]) * (tile[3] - tile[2])
        if not runs or pairs + size > RUN_PAIRS:
            runs.append([tile])
            pairs = size
        else:
            runs[-1].append(tile)
            pairs += size
    return [np.array(run, np.int64) for run in runs]


def _counted(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... for length[0] numbers, then the same of the next."""
    begin = np.cumsum(length) - length
    return np.repeat(start - begin, length) + np.arange(int(length.sum()))


def _inverse_lengths(vectors: np.ndarray) -> np.ndarray | None:
    """1 over each row's length (n,), float32 and off by less than WINDOW; None where float32 cannot hold a square."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    tiny = np.finfo(np.float32).tiny * 1e9
    return 1 / np.sqrt(squares) if np.isfinite(squares).all() and (squares > tiny).all() else None


def _first(row: np.ndarray, keys: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Of the entries of each row the one with the largest key, then of the smallest rank (n, w): their places."""
    sort = np.lexsort([*rank.T[::-1], -keys, row])
    ordered = row[sort]
    return sort[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])] if len(sort) else sort
