"""Work on all rows of a cluster together, whatever fragments they are in, and bring the answers back in row order.

Each fragment's rows are dealt into buckets of whole clusters; a task a bucket does the work; then each fragment
collects its own rows' answers. A bucket is bounded, and what goes back is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.view import Fragment, Mapped, View

BUCKET_ROWS = 100_000


@dataclass
class Group:
    """Rows of one bucket, sorted by (cluster, order key, id), so that every cluster is one run of rows.

    Attributes
    ----------
    ids : ndarray of object, cluster : ndarray of int32, similarity : ndarray of float32
    offsets : ndarray of int64
        Where each cluster begins, and the end.
    vectors : ndarray of shape (n, d) or None
        Unit vectors, when they were asked for.
    """

    ids: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray
    offsets: np.ndarray
    vectors: np.ndarray | None
    part: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def matrix(self) -> np.ndarray:
        """The unit vectors, which must have been asked for."""
        if self.vectors is None:
            raise ValueError("this group was dealt without vectors")
        return self.vectors


@dataclass(frozen=True)
class Dealing:
    """Which bucket each cluster goes to; a cluster too big for one bucket is dealt over ``pieces`` of them by id."""

    bucket: np.ndarray
    pieces: np.ndarray
    buckets: int

    @staticmethod
    def plan(sizes: np.ndarray, bucket_rows: int, splittable: bool) -> Dealing:
        """Clusters in order of their id fill buckets up to ``bucket_rows`` rows each."""
        pieces = np.maximum(1, -(-sizes // bucket_rows)) if splittable else np.ones(len(sizes), np.int64)
        bucket = np.zeros(len(sizes), np.int64)
        at, filled = 0, 0
        for cluster, size in enumerate(sizes):
            if pieces[cluster] > 1:
                at += filled > 0
                bucket[cluster], at, filled = at, at + int(pieces[cluster]), 0
                continue
            if filled and filled + size > bucket_rows:
                at, filled = at + 1, 0
            bucket[cluster] = at
            filled += int(size)
        return Dealing(bucket, pieces, at + (filled > 0))

    def of(self, clusters: np.ndarray, ids: pa.Array) -> np.ndarray:
        """Bucket of each row."""
        bucket = self.bucket[clusters]
        pieces = self.pieces[clusters]
        if (pieces > 1).any():
            bucket = bucket + (hash64(id_words(ids), seed=0, stream="pieces") % pieces.astype(np.uint64)).astype(int)
        return bucket

    def big(self) -> list[list[int]]:
        """Buckets of each cluster that was split."""
        split = np.flatnonzero(self.pieces > 1)
        return [list(range(self.bucket[c], self.bucket[c] + self.pieces[c])) for c in split]


@dataclass(frozen=True)
class Order:
    """How rows rank inside their cluster: by distance to the centroid, by its reverse, or at random."""

    keep: str
    seed: int = 0

    def key(self, similarity: np.ndarray, ids: pa.Array) -> np.ndarray:
        """Smaller comes first; ties go to the smaller id."""
        if self.keep == "hard":
            return similarity.astype(np.float64)
        if self.keep == "easy":
            return -similarity.astype(np.float64)
        return hash64(id_words(ids), seed=self.seed, stream="order").astype(np.float64)

    def words(self, similarity: np.ndarray, ids: pa.Array) -> np.ndarray:
        """Key and id as words (n, 1 + w) uint64 whose lexicographic order is the order of the rows."""
        return rank_words(-self.key(similarity, ids), ids)


def lexicographic(words: np.ndarray) -> np.ndarray:
    """Permutation that sorts rows of words, first column first."""
    return np.lexsort([words[:, column] for column in range(words.shape[1] - 1, -1, -1)])


def stack_words(pieces: list[np.ndarray]) -> np.ndarray:
    """Words of different widths as one array; a missing word is zero, as in a shorter id."""
    width = max(piece.shape[1] for piece in pieces)
    return np.concatenate([np.pad(piece, ((0, 0), (0, width - piece.shape[1]))) for piece in pieces])


def deal(view: View, assigned: list[Any], dealing: Dealing, *, vectors: bool) -> list[list[Any]]:
    """References to the dealt rows: one list a bucket, one reference a fragment."""
    import ray

    task = ray.remote(_deal).options(num_returns=dealing.buckets, num_cpus=1)
    dealt: list[Any] = [
        task.remote(fragment if vectors else None, part, fragment.position, dealing)
        for fragment, part in zip(view.fragments(), assigned, strict=True)
    ]
    if dealing.buckets == 1:
        return [dealt]
    return [[row[bucket] for row in dealt] for bucket in range(dealing.buckets)]


def collect(view: View, assigned: Mapped, answers: list[Any], finish: Callable[..., pa.Table], *args: Any) -> Mapped:
    """Each fragment's answers in its own row order: ``finish(part, answers, *args)`` makes the aligned part."""
    import ray

    task = ray.remote(_collect).options(num_cpus=1)
    parts = [task.remote(finish, part, position, args, *answers) for position, part in enumerate(assigned.parts)]
    return Mapped(parts, assigned._counts)


def load_group(order: Order, pieces: Sequence[Any]) -> Group:
    """The dealt pieces of a bucket (or references to them) as one sorted group."""
    import ray

    loaded = [ray.get(piece) if isinstance(piece, ray.ObjectRef) else piece for piece in pieces]
    pieces = [piece for piece in loaded if len(piece["ids"])]
    ids = pa.concat_arrays([piece["ids"] for piece in pieces])
    cluster = np.concatenate([piece["cluster"] for piece in pieces])
    similarity = np.concatenate([piece["similarity"] for piece in pieces])
    names = np.array(ids.to_pylist(), dtype=object)
    sort = lexicographic(np.column_stack([cluster.astype(np.uint64), order.words(similarity, ids)]))
    cluster = cluster[sort]
    starts = np.flatnonzero(np.r_[True, cluster[1:] != cluster[:-1]])
    have_vectors = pieces[0]["vectors"] is not None
    return Group(
        names[sort],
        cluster,
        similarity[sort],
        np.r_[starts, len(cluster)],
        np.concatenate([piece["vectors"] for piece in pieces])[sort] if have_vectors else None,
        np.concatenate([np.full(len(piece["ids"]), piece["part"]) for piece in pieces])[sort],
        np.concatenate([piece["position"] for piece in pieces])[sort],
    )


def answer(group: Group, **columns: Any) -> pa.Table:
    """What a bucket's work found, to be brought back: one value a row of the group in each column."""
    return pa.table({"part": group.part, "position": group.position, **columns})


def _deal(fragment: Fragment | None, part: pa.Table, position: int, dealing: Dealing) -> Any:
    ids = part.column("id").combine_chunks()
    ids = ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)
    cluster = part.column("cluster").to_numpy()
    similarity = part.column("similarity").to_numpy()
    vectors = None
    if fragment is not None and len(ids):
        vectors = np.concatenate([normalize(batch)[0] for _, batch in fragment.vectors()])
    bucket = dealing.of(cluster, ids) if len(ids) else np.empty(0, np.int64)
    out = []
    for number in range(dealing.buckets):
        rows = np.flatnonzero(bucket == number)
        out.append(
            {
                "ids": ids.take(pa.array(rows)),
                "cluster": cluster[rows],
                "similarity": similarity[rows],
                "vectors": vectors[rows] if vectors is not None else None,
                "part": position,
                "position": rows,
            }
        )
    return out[0] if dealing.buckets == 1 else tuple(out)


def _collect(
    finish: Callable[..., pa.Table], part: pa.Table, position: int, args: tuple[Any, ...], *answers: pa.Table
) -> pa.Table:
    import pyarrow.compute as pc

    mine = pa.concat_tables([table.filter(pc.equal(table.column("part"), position)) for table in answers])
    mine = mine.sort_by("position").drop_columns(["part", "position"])
    return finish(part, mine, *args)
