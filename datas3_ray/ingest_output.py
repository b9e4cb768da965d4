"""What one shard becomes: its rows in Lance fragments, its rejects in others, and an account of both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datas3_ray.lake.ledger import ShardEntry
from datas3_ray.lake.schemas import QUARANTINE, with_kind
from datas3_ray.lake.storage import StorageOptions, write_fragments
from datas3_ray.sources import Reject, Shard

FLUSH_ROWS = 1 << 17
FLUSH_BYTES = 256 << 20
_ROW_BYTES = 512  # what a row weighs besides its vectors and pixels, about


class Target(NamedTuple):
    """Where a worker's fragments go; ``append`` when the table is there already."""

    uri: str
    quarantine_uri: str
    append: bool
    options: StorageOptions | None


class StopAtReject(Exception):
    """A reject came and the run is to end at the first."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject)
        self.reject = reject


class ShardUnread(Exception):
    """The shard could not be opened or read to its end, for a reason that may go away: nothing of it is committed."""


@dataclass
class ShardOutput:
    """Takes a shard's rows and rejects in any mixture and writes them in large pieces."""

    shard: Shard
    schema: pa.Schema
    target: Target
    stop_at_reject: bool = False
    rows: int = 0
    rejects: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    fragments: list[str] = field(default_factory=list)
    quarantine_fragments: list[str] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _vectors: list[dict[str, np.ndarray | None]] = field(default_factory=list)
    _bytes: int = 0
    _rejects: list[dict[str, Any]] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)

    def add_row(self, row: dict[str, Any], vectors: dict[str, np.ndarray | None]) -> None:
        """One row, its vectors apart."""
        self._rows.append(row)
        self._vectors.append(vectors)
        self._bytes += _ROW_BYTES + len(row.get("image") or b"") + len(row.get("thumbnail") or b"")
        self._bytes += sum(vector.nbytes for vector in vectors.values() if vector is not None)
        if len(self._rows) >= FLUSH_ROWS or self._bytes >= FLUSH_BYTES:
            self._flush_rows()

    def add_batches(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Rows that are Arrow batches of the table's schema, streamed through without being gathered."""
        counted = _Counted(batches)
        reader = pa.RecordBatchReader.from_batches(self.schema, iter(counted))
        self.fragments += write_fragments(
            reader, self.target.uri, append=self.target.append, options=self.target.options
        )
        self.rows += counted.rows

    def add_reject(self, reject: Reject) -> None:
        """One sample that is no row, or a shard that breaks off.

        Raises StopAtReject where the run is to end at the first, and ShardUnread for a shard that could not be read.
        """
        if reject.reason == "unreadable_shard":
            raise ShardUnread(reject.error)
        if self.stop_at_reject:
            raise StopAtReject(reject)
        self.rejects += 1
        self.reasons[reject.reason] += 1
        self._rejects.append({**asdict(reject), "shard": self.shard.uri})
        if len(self._rejects) >= FLUSH_ROWS:
            self._flush_rejects()

    def finish(self) -> ShardEntry:
        """Write what is left; the account that the driver needs to commit the shard."""
        self._flush_rows()
        self._flush_rejects()
        return ShardEntry(
            shard=self.shard.uri,
            fingerprint=self.shard.fingerprint,
            size=self.shard.size,
            samples=self.rows + self.rejects,
            rows=self.rows,
            rejects=self.rejects,
            fragments=self.fragments,
            quarantine_fragments=self.quarantine_fragments,
            seconds=time.perf_counter() - self._started,
        )

    def _flush_rows(self) -> None:
        if not self._rows:
            return
        arrays = []
        for column in self.schema:
            if self._vectors and column.name in self._vectors[0]:
                arrays.append(_vector_array([row[column.name] for row in self._vectors], column.type))
            else:
                arrays.append(pa.array([row.get(column.name) for row in self._rows], column.type))
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        target = self.target
        self.fragments += write_fragments(table, target.uri, append=target.append, options=target.options)
        self.rows += len(self._rows)
        self._rows, self._vectors, self._bytes = [], [], 0

    def _flush_rejects(self) -> None:
        if self._rejects:
            table = pa.Table.from_pylist(self._rejects, with_kind(QUARANTINE, "quarantine"))
            self.quarantine_fragments += write_fragments(
                table, self.target.quarantine_uri, append=False, options=self.target.options
            )
            self._rejects = []


class _Counted:
    """Batches, and how many rows went by."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self.batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.batches:
            self.rows += batch.num_rows
            yield batch


def _vector_array(vectors: list[np.ndarray | None], kind: pa.DataType) -> pa.Array:
    missing = np.array([vector is None for vector in vectors])
    matrix = np.zeros((len(vectors), kind.list_size), np.float32)
    for position, vector in enumerate(vectors):
        if vector is not None:
            matrix[position] = vector
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=mask)
