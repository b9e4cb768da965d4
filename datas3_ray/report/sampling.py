"""Choosing a few rows of a stream: 64-bit hashes of ids, and the first rows in an order that no partition changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.kernels.hashing import hash64, id_words

_PIECE = 16_384


def hash_ids(ids: pa.Array | pa.ChunkedArray, seed: int = 0, stream: str = "report") -> np.ndarray:
    """A 64-bit hash of every id: what chooses the samples and joins the tables of a report.

    Args:
        ids: strings without nulls, shape (n,).
        seed: another seed gives unrelated hashes.
        stream: what the hash is for.

    Returns:
        uint64 array of shape (n,).

    >>> hash_ids(pa.array(["a", "b"])).dtype, len(set(hash_ids(pa.array(["a", "b", "a"])).tolist()))
    (dtype('uint64'), 2)
    """
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    # Ids are padded to the longest among them, so small pieces bound what one long id can cost.
    pieces = [chunk.slice(i, _PIECE) for chunk in chunks for i in range(0, len(chunk), _PIECE)]
    if not pieces:
        return np.empty(0, np.uint64)
    return np.concatenate([hash64(id_words(piece), seed, stream) for piece in pieces])


class First:
    """The first ``size`` rows of a stream in a total order, whatever the batches were.

    Args:
        size: how many rows to hold.
        order: (column, "ascending" or "descending") pairs; end with ``id`` so that ties break the same way always.

    >>> first = First(2, [("score", "descending"), ("id", "ascending")])
    >>> for part in ({"id": ["b", "a"], "score": [1.0, 1.0]}, {"id": ["c"], "score": [0.5]}):
    ...     first.add(pa.table(part))
    >>> first.rows().column("id").to_pylist()
    ['a', 'b']
    """

    def __init__(self, size: int, order: list[tuple[str, str]]) -> None:
        self.size = size
        self.order = order
        self._held: pa.Table | None = None

    def add(self, rows: pa.Table) -> None:
        """Look at some more rows; columns must be the same each time."""
        if rows.num_rows == 0 or self.size <= 0:
            self._held = rows.slice(0, 0) if self._held is None else self._held
            return
        best = rows.take(pc.select_k_unstable(rows, k=min(self.size, rows.num_rows), sort_keys=self.order))
        merged = best if self._held is None else pa.concat_tables([self._held, best])
        self._held = merged.sort_by(self.order).slice(0, self.size)

    def rows(self) -> pa.Table | None:
        """What is held, in order; None when nothing was ever added."""
        return self._held


def blocks(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches joined into tables of at least ``rows`` rows (the last may be smaller), to bound what a step holds."""
    waiting: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        waiting.append(batch)
        total += batch.num_rows
        if total >= rows:
            yield pa.Table.from_batches(waiting)
            waiting, total = [], 0
    if total:
        yield pa.Table.from_batches(waiting)
