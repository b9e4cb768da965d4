"""Work on all rows of a cluster together, whatever fragments they are in, and bring the answers back in row order.

Each fragment's rows are dealt into buckets of whole clusters; a task a bucket does the work; then each fragment
collects its own rows' answers. A bucket is bounded: a cluster too large for one is cut, in the order of its rows, into
pieces that have a bucket each. What goes back is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import Datas3Error
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.view import Fragment, Mapped, View
from datas3_ray.runtime import gather, remote, settled
from datas3_ray.selectors.duplicates import Preference
from datas3_ray.selectors.scores import joined, taken

BUCKET_ROWS = 100_000
BUCKET_BYTES = 1 << 28
"""Of the vectors that one task holds at most, and a task may hold two buckets."""
SAMPLED = 2_000
"""Rows a piece that are looked at to see where a cluster is cut."""
_NATURAL = ("hard", "easy", "random")


@dataclass
class Group:
    """Rows of one bucket, sorted by (cluster, order key, id), so that every cluster is one run of rows.

    Attributes
    ----------
    ids : pyarrow.Array of string, cluster : ndarray of int32, key : ndarray of float64
    offsets : ndarray of int64
        Where each cluster begins, and the end.
    vectors : ndarray of shape (n, d) or None
        Unit vectors, when they were asked for.
    part, position : ndarray
        The fragment that each row came from, and its place there.
    """

    ids: pa.Array
    cluster: np.ndarray
    key: np.ndarray
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
class Order:
    """How rows rank inside their cluster.

    ``keep`` is "hard" (farthest from the centroid first), "easy" (nearest first), "random" (by a hash of seed and
    id), or a numeric column: its best value first, rows without a value last. Ties go to the smaller id.
    """

    keep: str
    seed: int = 0
    higher_is_better: bool = True

    def preference(self) -> Preference:
        """The column to rank by; without one, rows have no preference."""
        return Preference(None if self.keep in _NATURAL else self.keep, self.higher_is_better)

    def keyed(self, view: View, assigned: list[Any]) -> list[Any]:
        """References to the parts with a column ``key`` (float64): smaller comes first."""
        return view.zip(with_key, assigned, self).parts


def with_key(fragment: Fragment, part: pa.Table, order: Order) -> pa.Table:
    """A fragment's part with its rows' ``key``; a row of the part that is not eligible any more has the last one."""
    if order.preference().columns():
        preference = order.preference()
        batches = fragment.batches(preference.columns())
        ids, values = joined((rows.column("id").combine_chunks(), preference.of(rows)) for rows in batches)
        mine = taken(values, pc.index_in(part.column("id").combine_chunks(), value_set=ids))
        key = np.where(np.isnan(mine), np.inf, -mine)
    elif order.keep == "random":
        key = hash64(id_words(part.column("id")), seed=order.seed, stream="order").astype(np.float64)
    else:
        similarity = part.column("similarity").to_numpy().astype(np.float64)
        key = similarity if order.keep == "hard" else -similarity
    return part.append_column("key", pa.array(key, pa.float64()))


@dataclass(frozen=True)
class Dealing:
    """Which bucket each row goes to: its cluster's, or that of its piece of the cluster.

    ``edges`` has, for each cluster that was cut, where its second piece and those after it begin.
    """

    bucket: np.ndarray
    buckets: int
    edges: dict[int, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def plan(sizes: np.ndarray, bucket_rows: int, keyed: list[Any] | None = None) -> Dealing:
        """Clusters in order of their number fill buckets up to ``bucket_rows`` rows each.

        ``keyed`` are the parts (id, cluster, key) by which larger clusters are cut; without them they stay whole.
        """
        big = {int(cluster): int(-(-sizes[cluster] // bucket_rows)) for cluster in np.flatnonzero(sizes > bucket_rows)}
        edges = _edges(keyed, big, sizes) if keyed is not None and big else {}
        bucket = np.zeros(len(sizes), np.int64)
        at, filled = 0, 0
        for cluster, size in enumerate(sizes):
            if cluster in edges:
                at += filled > 0
                bucket[cluster], at, filled = at, at + len(edges[cluster]) + 1, 0
                continue
            if filled and filled + size > bucket_rows:
                at, filled = at + 1, 0
            bucket[cluster] = at
            filled += int(size)
        return Dealing(bucket, at + (filled > 0), edges)

    def of(self, part: pa.Table) -> np.ndarray:
        """Bucket of each row of a part."""
        clusters = part.column("cluster").to_numpy()
        bucket = self.bucket[clusters]
        for cluster, edges in self.edges.items():
            rows = np.flatnonzero(clusters == cluster)
            if len(rows):
                bucket[rows] += np.searchsorted(edges, _places(part.take(pa.array(rows))), side="right")
        return bucket

    def cut(self) -> list[list[int]]:
        """Buckets of each cluster that was cut, in the order of its rows."""
        return [list(range(self.bucket[c], self.bucket[c] + len(edges) + 1)) for c, edges in self.edges.items()]


def bucket_rows_for(dimensions: int, at_most: int = BUCKET_ROWS) -> int:
    """Rows of a bucket, so that wide vectors take no more memory than narrow ones."""
    return max(1, min(at_most, BUCKET_BYTES // (4 * dimensions)))


def lexicographic(words: np.ndarray) -> np.ndarray:
    """Permutation that sorts rows of words, first column first."""
    return np.lexsort([words[:, column] for column in range(words.shape[1] - 1, -1, -1)])


def deal(view: View, keyed: list[Any], dealing: Dealing, *, vectors: bool) -> list[list[Any]]:
    """References to the dealt rows: one list a bucket, one reference a fragment."""
    task = remote(_deal).options(num_returns=dealing.buckets, num_cpus=1)
    dealt: list[Any] = [
        task.remote(fragment if vectors else None, part, fragment.position, dealing)
        for fragment, part in zip(view.fragments(), keyed, strict=True)
    ]
    if dealing.buckets == 1:
        return [dealt]
    return [[row[bucket] for row in dealt] for bucket in range(dealing.buckets)]


def collect(view: View, assigned: Mapped, answers: list[Any], finish: Callable[..., pa.Table], *args: Any) -> Mapped:
    """Each fragment's answers in its own row order: ``finish(part, answers, *args)`` makes the aligned part."""
    task = remote(_collect).options(num_cpus=1)
    answers = settled(answers)
    parts = [task.remote(finish, part, position, args, answers) for position, part in enumerate(assigned.parts)]
    return Mapped(parts, assigned._counts)


def load_group(pieces: Sequence[dict[str, Any]]) -> Group:
    """The dealt pieces of a bucket as one sorted group."""
    pieces = [piece for piece in pieces if piece["rows"].num_rows] or pieces[:1]
    rows = pa.concat_tables([piece["rows"] for piece in pieces])
    ids = rows.column("id").combine_chunks()
    cluster = rows.column("cluster").to_numpy()
    words = rank_words(-rows.column("key").to_numpy(), ids)
    sort = lexicographic(np.column_stack([cluster.astype(np.uint64), words]))
    cluster = cluster[sort]
    starts = np.flatnonzero(np.r_[True, cluster[1:] != cluster[:-1]]) if len(cluster) else np.empty(0, np.int64)
    return Group(
        ids.take(pa.array(sort)),
        cluster,
        rows.column("key").to_numpy()[sort],
        np.r_[starts, len(cluster)],
        _gathered([piece["vectors"] for piece in pieces], sort) if pieces[0]["vectors"] is not None else None,
        np.concatenate([np.full(piece["rows"].num_rows, piece["part"]) for piece in pieces])[sort],
        np.concatenate([piece["position"] for piece in pieces])[sort],
    )


def answer(group: Group, **columns: Any) -> pa.Table:
    """What a bucket's work found, to be brought back: one value a row of the group in each column, part by part."""
    rows = pa.table({"part": group.part, "position": group.position, **columns})
    return rows.take(pa.array(np.lexsort([group.position, group.part])))


def _gathered(pieces: list[np.ndarray], sort: np.ndarray) -> np.ndarray:
    """The rows of all pieces in another order, without another copy of them all."""
    out = np.empty((len(sort), pieces[0].shape[1]), np.float32)
    place = np.empty(len(sort), np.int64)
    place[sort] = np.arange(len(sort))
    at = 0
    for piece in pieces:
        out[place[at : at + len(piece)]] = piece
        at += len(piece)
    return out


def _places(part: pa.Table) -> np.ndarray:
    """Key and id of each row as bytes that sort as the rows do."""
    words = rank_words(-part.column("key").to_numpy(), part.column("id"))
    return np.ascontiguousarray(words.astype(">u8")).view(f"S{8 * words.shape[1]}")[:, 0]


def _edges(keyed: list[Any], big: dict[int, int], sizes: np.ndarray) -> dict[int, np.ndarray]:
    """Where each big cluster is cut into about equal pieces, by a sample of its rows; any cut gives the same answer."""
    rates = {cluster: min(1.0, SAMPLED * pieces / float(sizes[cluster])) for cluster, pieces in big.items()}
    sample = remote(_sample)
    sampled = gather(sample.remote(part, rates) for part in keyed)
    edges = {}
    for cluster, pieces in big.items():
        found = np.sort(np.concatenate([part[cluster] for part in sampled]))
        at = np.arange(1, pieces) * len(found) // pieces
        # The smallest row that was seen cuts nothing off, so that no piece is empty.
        edges[cluster] = np.unique(found[at][found[at] > found[0]]) if len(found) else found
    return edges


def _sample(part: pa.Table, rates: dict[int, float]) -> dict[int, np.ndarray]:
    clusters = part.column("cluster").to_numpy()
    found = {}
    for cluster, rate in rates.items():
        rows = part.take(pa.array(np.flatnonzero(clusters == cluster)))
        drawn = uniform(hash64(id_words(rows.column("id")), seed=0, stream="edges")) <= rate
        found[cluster] = _places(rows.filter(pa.array(drawn)))
    return found


def _deal(fragment: Fragment | None, part: pa.Table, position: int, dealing: Dealing) -> Any:
    part = part.select(["id", "cluster", "key"]).combine_chunks()
    bucket = dealing.of(part)
    places = np.split(np.argsort(bucket, kind="stable"), np.cumsum(np.bincount(bucket, minlength=dealing.buckets))[:-1])
    ids = part.column("id")
    vectors = _dealt_vectors(fragment, ids, bucket, places) if fragment is not None else [None] * dealing.buckets
    out = [
        {"rows": part.take(pa.array(rows)), "vectors": mine, "part": position, "position": rows}
        for rows, mine in zip(places, vectors, strict=True)
    ]
    return out[0] if dealing.buckets == 1 else tuple(out)


def _dealt_vectors(
    fragment: Fragment, ids: pa.ChunkedArray, bucket: np.ndarray, places: list[np.ndarray]
) -> list[np.ndarray | None]:
    """Unit vectors of each bucket's rows, filled in batch by batch."""
    out: list[np.ndarray] = []
    filled = np.zeros(len(places), np.int64)
    at = 0
    for mine_ids, batch in fragment.vectors():
        _require_same(fragment, mine_ids, ids.slice(at, len(mine_ids)))
        if not out:
            out = [np.empty((len(rows), batch.shape[1]), np.float32) for rows in places]
        unit = normalize(batch)[0]
        mine = bucket[at : at + len(unit)]
        at += len(unit)
        sort = np.argsort(mine, kind="stable")
        counts = np.bincount(mine, minlength=len(places))
        ends = np.cumsum(counts)
        for number in np.flatnonzero(counts):
            rows = sort[ends[number] - counts[number] : ends[number]]
            out[number][filled[number] : filled[number] + len(rows)] = unit[rows]
        filled += counts
    _require_same(fragment, pa.array([], pa.string()), ids.slice(at))
    return [*out] if out else [None] * len(places)


def _require_same(fragment: Fragment, there: pa.Array, assigned: pa.ChunkedArray) -> None:
    """Rows that no cluster was found for, or the other way round, would be compared as if they were others."""
    if not there.equals(assigned.combine_chunks()):
        raise Datas3Error(
            f"fragment {fragment.fragment} of {fragment.uri} has other rows than its clustering; remove the tables of "
            "that clustering from the lake, and run the same command again."
        )


def _collect(
    finish: Callable[..., pa.Table], part: pa.Table, position: int, args: tuple[Any, ...], answers: list[Any]
) -> pa.Table:
    import ray

    found = []
    for reference in answers:  # one after the other, so that no task holds all answers
        table = ray.get(reference)
        first, last = np.searchsorted(table.column("part").to_numpy(), [position, position + 1])
        found.append(table.slice(first, last - first).take(pa.array(np.arange(last - first))))
        del table
    mine = pa.concat_tables(found).sort_by("position").drop_columns(["part", "position"])
    return finish(part, mine, *args)
