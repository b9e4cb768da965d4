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
"""Vectors of old rows that are best compared at a time: the more, the more of them share a cluster."""
TILE_BYTES = 1 << 19
"""Vectors of old rows that stay in the cache while they are compared."""
RUN_PAIRS = 1 << 20
"""Cosines that are looked at a time."""


def block_rows(dimensions: int) -> int:
    """Old rows that are best compared at a time."""
    return max(1, BLOCK_BYTES // (4 * dimensions))


class Raised:
    """Pairs of an old and a new row of one cluster, found block by block of a fragment's old rows.

    A float32 cosine only rules pairs out that are safely below what a row has already; the others are computed exactly.

    Args:
        part: the old rows, with ``id``, ``cluster``, ``key`` and ``max_similarity``.
        new: the new rows of all fragments.
        least: float32 (len(new),), cosines that each new row is known to have at least to an earlier row; 0 by default.
    """

    def __init__(self, part: pa.Table, new: Group, least: np.ndarray | None = None) -> None:
        self.part, self.new = part, new
        self.cluster = part.column("cluster").to_numpy()
        self.key = part.column("key").to_numpy()
        self.most = part.column("max_similarity").to_numpy().astype(np.float32)
        # A new row has at least this to an earlier row, less what float32 may be off.
        self.least = np.zeros(len(new), np.float32) if least is None else least.copy()
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._added = 0
        dimensions = new.matrix().shape[1]
        self._tile = np.empty((max(1, TILE_BYTES // (4 * dimensions)), dimensions), np.float32)
        # An old row is compared with all new rows of its cluster at once.
        self._flat = np.empty(max(RUN_PAIRS, int(np.diff(new.offsets).max(initial=0))), np.float32)

    def add(self, vectors: np.ndarray) -> None:
        """The next old rows, float32 (n, d), none of them zero; it is fastest with :func:`block_rows` at a time."""
        first = self._added
        self._added += len(vectors)
        order = _by_cluster(self.cluster[first : self._added])
        pairs = self._pairs(vectors, order, first)
        if pairs is None:  # lengths whose squares float32 cannot hold
            vectors = normalize(vectors)[0]
            pairs = self._pairs(vectors, order, first)
        assert pairs is not None
        old, new = pairs
        if len(old):
            self.found.append((first + old, new, self._exact(vectors, old, new)))

    def _pairs(self, vectors: np.ndarray, order: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Old rows (of ``vectors``) and new rows that may be each other's most similar earlier row."""
        rows = first + order
        key, most = self.key[rows], self.most[rows]
        found = [(order[:0], order[:0])]
        for tiles in _runs(self._tiles(self.cluster[rows]), len(self._tile)):
            cosines = self._cosines(tiles, vectors, order)
            if cosines is None:
                return None
            found.append(self._close(tiles, cosines, key, most))
        old, new = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
        return order[old], new

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

    def _cosines(self, tiles: np.ndarray, vectors: np.ndarray, order: np.ndarray) -> np.ndarray | None:
        """Tile after tile, a line for each new row with its cosines to the tile's old rows: float32 (p,).

        None where float32 cannot hold the square of a length.
        """
        right = self.new.matrix()
        length = np.ones(int((tiles[:, 1] - tiles[:, 0]).sum()), np.float32)
        row = pair = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for start, stop, first, last in tiles.tolist():
                tile, rows = self._tile[: stop - start], row + stop - start
                np.take(vectors, order[start:stop], axis=0, out=tile, mode="clip")
                np.vecdot(tile, tile, out=length[row:rows])
                pairs = pair + (last - first) * (stop - start)
                np.matmul(right[first:last], tile.T, out=self._flat[pair:pairs].reshape(last - first, stop - start))
                row, pair = rows, pairs
        if not (np.isfinite(length).all() and (length > np.finfo(np.float32).tiny * 1e9).all()):
            return None
        width, lines = tiles[:, 1] - tiles[:, 0], tiles[:, 3] - tiles[:, 2]
        begin = np.cumsum(width) - width
        cosines = self._flat[:pair]
        cosines *= (1 / np.sqrt(length))[_counted(np.repeat(begin, lines), np.repeat(width, lines))]
        return cosines

    def _close(
        self, tiles: np.ndarray, cosines: np.ndarray, key: np.ndarray, most: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of the old rows, and the new rows, of the cosines that are within float32's error of what counts."""
        start, stop, first, last = tiles.T
        new = _counted(first, last - first)
        length = np.repeat(stop - start, last - first)
        old = _counted(np.repeat(start, last - first), length)
        before, after = key[old], np.repeat(self.new.key[new], length)
        earlier = before < after
        np.maximum.at(self.least, new, np.maximum.reduceat(cosines * earlier, np.cumsum(length) - length))
        # Rows with the same key are ordered by their ids, which is looked at only where the pair matters.
        least, most = np.repeat(self.least[new], length), most[old]
        needed = np.where(earlier, least, np.where(before > after, most, np.minimum(least, most)))
        chosen = np.flatnonzero(cosines >= np.maximum(needed, 0) - np.float32(WINDOW))
        return old[chosen], np.repeat(new, length)[chosen]

    def _exact(self, vectors: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Cosines of pairs in whole millionths."""
        import torch

        rows, place = np.unique(old, return_inverse=True)
        pairs = Pairs(torch.from_numpy(normalize(vectors[rows])[0]), torch.from_numpy(self.new.matrix()))
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


def _by_cluster(cluster: np.ndarray) -> np.ndarray:
    """The order that puts rows of a cluster side by side; 16 bits a number are sorted without comparisons."""
    few = len(cluster) and cluster.max() < 1 << 16
    return np.argsort(cluster.astype(np.uint16) if few else cluster, kind="stable")


def _runs(tiles: np.ndarray, most: int) -> list[np.ndarray]:
    """The tiles (t, 4), cut to ``most`` old rows or fewer, in runs of up to ``RUN_PAIRS`` pairs."""
    cut: list[tuple[int, int, int, int]] = []
    for start, stop, first, last in tiles.tolist():
        height = max(1, min(most, RUN_PAIRS // (last - first)))
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


def _first(row: np.ndarray, keys: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Of the entries of each row the one with the largest key, then of the smallest rank (n, w): their places."""
    sort = np.lexsort([*rank.T[::-1], -keys, row])
    ordered = row[sort]
    return sort[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])] if len(sort) else sort
