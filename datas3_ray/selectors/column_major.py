"""A view's vectors as column-major blocks in Ray's object store, rows in the order of their ids.

For methods that look at whole columns. Rows get a *rank*, their place among the ids of all eligible rows, so that a
row's number does not depend on fragments, and the smaller number is the smaller id. Row r of the pool is row r // S of
shard r % S; with one shard that is the whole matrix. No task holds more than one block, one fragment's share of some
blocks, or a bounded range of the ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment, Mapped, View, as_float32, usable
from datas3_ray.runtime import gather, remote

BLOCK_BYTES = 256 << 20
DEAL_BYTES = 1 << 30
RANGE_ROWS = 4_000_000


@dataclass
class ColumnMajor:
    """The blocks, and where each eligible row is in them.

    Attributes
    ----------
    identified : Mapped
        One part a fragment: a table with the ids of its eligible rows.
    ranks : list of ObjectRef
        One int64 array a fragment: the rank of each of those rows.
    shards : list of list of ObjectRef
        For each shard its blocks, float32 (columns of the block, rows of the shard), all of one number of columns but
        the last. Empty where there is no eligible row.
    rows, width : int
        Of the whole matrix.
    step : int
        Columns of a block; the last one may have fewer.
    """

    identified: Mapped
    ranks: list[Any]
    shards: list[list[Any]]
    rows: int
    width: int
    step: int

    def shard_rows(self, shard: int) -> int:
        """Rows of one shard."""
        return len(range(shard, self.rows, len(self.shards)))


def column_major(view: View, columns: tuple[str, ...], width: int, whole_bytes: int, shard_bytes: int) -> ColumnMajor:
    """Lay out the vectors of one or more columns, one after another.

    Rows of which any of the columns' vectors is missing, not finite or all zero are not eligible.

    Parameters
    ----------
    view : View
        Made for the first of the columns.
    width : int
        Dimensions of all columns together.
    whole_bytes, shard_bytes : int
        A matrix of at most ``whole_bytes`` is one shard; a larger one is in shards of at most ``shard_bytes`` each.
    """
    identified = view.map(_identify, columns)
    rows = identified.counts().eligible
    ranks, sizes = id_ranks(identified.parts)
    if rows == 0:
        return ColumnMajor(identified, ranks, [], 0, width, width)
    size = 4 * rows * width
    shards = 1 if size <= whole_bytes else max(1, min(rows, math.ceil(size / max(1, shard_bytes))))
    step = max(1, min(width, BLOCK_BYTES // (4 * math.ceil(rows / shards))))
    edges = [*range(0, width, step), width]
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    dealt = [
        _deal_fragment(fragment, mine, rank, columns, spans, shards)
        for fragment, mine, rank in zip(view.fragments(), sizes, ranks, strict=True)
    ]
    build = remote(_build).options(num_cpus=1)
    blocks: list[list[Any]] = [[] for _ in range(shards)]
    for b, (first, last) in enumerate(spans):
        for shard in range(shards):
            # Popped, so that the pieces are freed as soon as their block is there.
            pieces = [pieces.pop((b, shard)) for pieces in dealt]
            shape = (last - first, len(range(shard, rows, shards)))
            blocks[shard].append(build.remote(shape, shard, shards, list(ranks), *pieces))
            del pieces
    return ColumnMajor(identified, ranks, blocks, rows, width, step)


def id_ranks(parts: list[Any], range_rows: int | None = None) -> tuple[list[Any], list[int]]:
    """The place of every row among the ids of all parts, ascending by bytes.

    Ids are sorted in ranges of about ``range_rows``, each by a task of its own.

    Parameters
    ----------
    parts : list of ObjectRef
        Tables with a column ``id``.

    Returns
    -------
    list of ObjectRef
        An int64 array a part, in the part's row order.
    list of int
        Rows of each part.
    """
    if not parts:
        return [], []
    sizes = gather(remote(_rows).remote(part) for part in parts)
    ranges = max(1, math.ceil(sum(sizes) / (range_rows or RANGE_ROWS)))
    samples = [remote(_some_ids).remote(part, 64 * ranges) for part in parts] if ranges > 1 else []
    drawn = sorted(name for names in gather(samples) for name in names)
    splitters = [drawn[len(drawn) * i // ranges] for i in range(1, ranges)] if drawn else []
    ranges = len(splitters) + 1
    split = remote(_split).options(num_returns=ranges + 1)
    pieces: list[Any] = [split.remote(part, splitters) for part in parts]
    counts = np.sum(gather(piece[0] for piece in pieces), axis=0)
    starts = np.concatenate([[0], np.cumsum(counts)])
    place = remote(_place).options(num_returns=len(parts))
    placed = [
        _as_list(place.remote(int(starts[number]), *(piece[number + 1] for piece in pieces)), len(parts))
        for number in range(ranges)
    ]
    join = remote(_join)
    ranks = [join.remote(part, splitters, *(mine[f] for mine in placed)) for f, part in enumerate(parts)]
    return ranks, sizes


def _as_list(refs: Any, count: int) -> list[Any]:
    return [refs] if count == 1 else list(refs)


def _identify(fragment: Fragment, columns: tuple[str, ...]) -> pa.Table:
    ids = [ids for ids, _ in _whole_rows(fragment, columns)]
    return pa.table({"id": pa.chunked_array(ids, pa.string())})


def _whole_rows(fragment: Fragment, columns: tuple[str, ...]) -> Any:
    """Batches of (ids, one matrix a column) of the rows that have a usable vector in every column."""
    for rows in fragment.batches(columns):
        vectors = [as_float32(matrix(rows.column(column))) for column in columns]
        valid = np.logical_and.reduce([usable(part) for part in vectors])
        ids = rows.column("id").combine_chunks()
        if not valid.all():
            fragment.counts.invalid += int((~valid).sum())
            ids, vectors = ids.filter(pa.array(valid)), [part[valid] for part in vectors]
        if len(ids):
            yield ids, vectors


def _deal_fragment(
    fragment: Fragment,
    size: int,
    rank: Any,
    columns: tuple[str, ...],
    spans: list[tuple[int, int]],
    shards: int,
) -> dict[tuple[int, int], Any]:
    """References to a fragment's pieces of (block, shard), a bounded number of blocks a task."""
    widest = max(last - first for first, last in spans)
    together = max(1, DEAL_BYTES // max(1, 4 * size * widest))
    pieces: dict[tuple[int, int], Any] = {}
    for first in range(0, len(spans), together):
        some = spans[first : first + together]
        task = remote(_deal).options(num_returns=len(some) * shards, num_cpus=1)
        refs = _as_list(task.remote(fragment, rank, columns, some, shards), len(some) * shards)
        keys = [(first + b, shard) for b in range(len(some)) for shard in range(shards)]
        pieces.update(zip(keys, refs, strict=True))
    return pieces


def _deal(
    fragment: Fragment, rank: np.ndarray, columns: tuple[str, ...], spans: list[tuple[int, int]], shards: int
) -> Any:
    """The fragment's columns ``spans`` by shard, each (columns, rows of the fragment in that shard)."""
    shard = rank % shards
    sizes = np.bincount(shard, minlength=shards)
    pieces = [[np.empty((last - first, size), np.float32) for size in sizes] for first, last in spans]
    filled = np.zeros(shards, np.int64)
    at = 0
    for ids, vectors in _whole_rows(fragment, columns):
        joined = vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=1)
        mine = shard[at : at + len(ids)]
        at += len(ids)
        for s in range(shards):
            rows = joined if shards == 1 else joined[mine == s]
            span = slice(filled[s], filled[s] + len(rows))
            filled[s] += len(rows)
            for (first, last), piece in zip(spans, pieces, strict=True):
                piece[s][:, span] = rows[:, first:last].T
    flat = [piece for block in pieces for piece in block]
    return flat[0] if len(flat) == 1 else tuple(flat)


def _build(shape: tuple[int, int], shard: int, shards: int, ranks: list[Any], *pieces: np.ndarray) -> np.ndarray:
    import ray

    block = np.empty(shape, np.float32)
    for rank, piece in zip(ray.get(ranks), pieces, strict=True):
        places = rank[rank % shards == shard] // shards
        for column, values in zip(block, piece, strict=True):
            column[places] = values
    return block


def _rows(part: pa.Table) -> int:
    return part.num_rows


def _some_ids(part: pa.Table, count: int) -> list[str]:
    step = max(1, part.num_rows // count)
    return part.column("id").take(pa.array(np.arange(0, part.num_rows, step))).to_pylist()


def _range_of(part: pa.Table, splitters: list[str]) -> np.ndarray:
    """The range that each id falls into."""
    found = np.zeros(part.num_rows, np.int64)
    for splitter in splitters:
        found += pc.greater_equal(part.column("id"), splitter).to_numpy()
    return found


def _split(part: pa.Table, splitters: list[str]) -> tuple[Any, ...]:
    """Rows in each range, and the ids of each."""
    where = _range_of(part, splitters)
    ids = part.column("id").cast(pa.large_string()).combine_chunks()
    pieces = [ids.filter(pa.array(where == number)) for number in range(len(splitters) + 1)]
    return (np.bincount(where, minlength=len(pieces)), *pieces)


def _place(start: int, *pieces: Any) -> Any:
    """The rank of each id of one range."""
    sizes = [len(piece) for piece in pieces]
    ids = pa.chunked_array([chunk for piece in pieces for chunk in _chunks(piece)], pa.large_string())
    rank = np.empty(len(ids), np.int64)
    rank[pc.sort_indices(ids).to_numpy()] = np.arange(start, start + len(ids))
    parts = np.split(rank, np.cumsum(sizes)[:-1])
    return parts[0] if len(parts) == 1 else tuple(parts)


def _chunks(array: Any) -> list[Any]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def _join(part: pa.Table, splitters: list[str], *pieces: np.ndarray) -> np.ndarray:
    where = _range_of(part, splitters)
    rank = np.empty(len(where), np.int64)
    for number, piece in enumerate(pieces):
        rank[where == number] = piece
    return rank
