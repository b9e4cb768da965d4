"""One shard at a time inside an actor: read, decode, encode, write fragments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.encoders import EncoderConfig
from datas3_ray.encoders.bank import EncoderBank, Inputs, broken
from datas3_ray.ingest_output import ShardOutput, ShardUnread, StopAtReject, Target
from datas3_ray.lake.schemas import IMAGE_FIELDS, vector_columns, vector_field, with_kind
from datas3_ray.retry import DELAYS
from datas3_ray.sources import Reject, Sample, SampleError, Shard, Source, VectorSource, decode_image
from datas3_ray.sources.features import THUMBNAIL, compute, feature_fields, thumbnail
from datas3_ray.sources.watchdog import DecodePool, TimedOut

if TYPE_CHECKING:
    from datas3_ray.ingest import IngestConfig

ATTEMPTS = 3
"""How often a shard that cannot be read is begun anew before it is left for the next run."""


@dataclass
class Prepared:
    """A row without its vectors, and what each encoder needs to make them."""

    row: dict[str, Any]
    inputs: Inputs


class ShardWorker:
    """Holds the encoders; :meth:`work` turns one shard into fragments and an account of them."""

    def __init__(
        self,
        source: Source,
        encoders: dict[str, EncoderConfig],
        config: IngestConfig,
        target: Target,
        stores_bytes: bool,
        threads: int,
    ) -> None:
        self.source = source
        self.config = config
        self.target = target
        self.stores_bytes = stores_bytes
        self.bank = EncoderBank(encoders)
        self.schema = self._schema()
        self.pool = None if isinstance(source, VectorSource) else DecodePool(threads, config.decode_seconds)

    def _schema(self) -> pa.Schema:
        fields = [*IMAGE_FIELDS, *self.source.columns.fields(), *self.source.own_fields()]
        fields += feature_fields(self.config.features)
        if self.config.thumbnail:
            fields.append(THUMBNAIL)
        if self.stores_bytes:
            fields.append(pa.field("image", pa.large_binary()))
        fields += [vector_field(name, encoder.dim, encoder.identity) for name, encoder in self.bank.encoders.items()]
        if isinstance(self.source, VectorSource):
            fields += self.source.vector_fields()
        return with_kind(pa.schema(fields), "image")

    def work(self, shard: Shard) -> dict[str, Any]:
        """Everything the driver needs to commit this shard.

        ``error`` is set where a reject must end the run, ``unread`` where the shard could not be read: nothing of it
        is to be committed then.
        """
        for attempt in range(ATTEMPTS):
            output = ShardOutput(shard, self.schema, self.target, self.config.on_error == "fail")
            try:
                if isinstance(self.source, VectorSource):
                    output.add_batches(self._vector_batches(self.source, shard, output))
                else:
                    self._encode_shard(shard, output)
                entry = output.finish()
                break
            except StopAtReject as stop:
                return _result(error=_stopped(stop.reject))
            except ShardUnread as error:
                unread = str(error)
                if attempt + 1 < ATTEMPTS:
                    time.sleep(DELAYS[attempt])
        else:
            return _result(unread=f"{shard.uri}: {unread}")
        schema = self.schema.serialize().to_pybytes().hex()
        return _result(entry=asdict(entry), reasons=dict(output.reasons), schema=schema)

    def _encode_shard(self, shard: Shard, output: ShardOutput) -> None:
        batch: list[Prepared] = []
        for item in self._prepared(shard):
            if isinstance(item, Reject):
                output.add_reject(item)
                continue
            batch.append(item)
            if len(batch) == self.bank.batch_size:
                self._encode(batch, output)
                batch = []
        self._encode(batch, output)

    def _prepared(self, shard: Shard) -> Iterator[Prepared | Reject]:
        """Decoded and preprocessed rows in shard order; decoding runs ahead in threads of its own."""
        assert self.pool is not None
        samples = self.source.read(shard)
        for item in self.pool.map(self._prepare, samples, window=2 * self.bank.batch_size):
            if isinstance(item, TimedOut):
                sample = item.item
                error = f"not decoded within {item.seconds:g} s"
                yield Reject(sample.uri, sample.offset, "decode_timeout", error, sample.key, sample.id)
            else:
                yield item

    def _prepare(self, item: Sample | Reject) -> Prepared | Reject:
        if isinstance(item, Reject):
            return item
        try:
            values = self.source.columns.extract(item)
            decoded = decode_image(item.image, max_pixels=self.config.max_pixels, fit=self.config.decode_to)
        except SampleError as error:
            return Reject(item.uri, item.offset, error.reason, str(error), item.key, item.id)
        row = {
            "id": item.id,
            "uri": item.uri,
            "offset": item.offset,
            "length": item.length,
            "width": decoded.width,
            "height": decoded.height,
            **values,
            **item.extra,
            **compute(self.config.features, item.image, decoded.image),
        }
        if self.config.thumbnail:
            row["thumbnail"] = thumbnail(decoded.image, self.config.thumbnail)
        if self.stores_bytes:
            row["image"] = item.image
        return Prepared(row, self.bank.prepare(decoded.image, values["caption"]))

    def _encode(self, batch: list[Prepared], output: ShardOutput) -> None:
        for item, vectors in zip(batch, self.bank.encode([item.inputs for item in batch]), strict=True):
            bad = broken(vectors)
            if bad is None:
                output.add_row(item.row, vectors)
            else:
                error = f"encoder '{bad}' gave a vector with NaN or infinite values"
                row = item.row
                output.add_reject(Reject(row["uri"], row["offset"], "nan_vector", error, row["id"], row["id"]))

    def _vector_batches(self, source: VectorSource, shard: Shard, output: ShardOutput) -> Iterator[pa.RecordBatch]:
        """Ready vectors as batches of the table's schema, without the rows that cannot be in it."""
        seen = _Seen()
        start = 0
        bad: list[int] = []  # rows among or before those of the next table
        for rows in source.read_rows(shard):
            if isinstance(rows, Reject):
                output.add_reject(rows)
                bad.append(rows.offset)
                continue
            end = start + rows.num_rows + len(bad)
            offsets = pa.array(np.setdiff1d(np.arange(start, end), bad))
            start, bad = end, []
            good = _sound(rows, offsets, shard, seen, output)
            yield from self._completed(good, shard).to_batches()

    def _completed(self, rows: pa.Table, shard: Shard) -> pa.Table:
        arrays = []
        for column in self.schema:
            if column.name in rows.schema.names:
                arrays.append(rows.column(column.name).cast(column.type))
            elif column.name == "uri":
                arrays.append(pa.repeat(pa.scalar(shard.uri), rows.num_rows))
            else:
                arrays.append(pa.nulls(rows.num_rows, column.type))
        return pa.Table.from_arrays(arrays, schema=self.schema)


class _Seen:
    """Ids of a shard so far; which ones of the next rows came before."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def repeated(self, ids: pa.ChunkedArray) -> np.ndarray:
        names = ids.to_pylist()
        before = len(self.ids)
        repeated = np.zeros(len(names), bool)
        fresh = set(names)
        if len(fresh) < len(names) or not fresh.isdisjoint(self.ids):
            for position, name in enumerate(names):
                repeated[position] = name in self.ids
                self.ids.add(name)
        else:
            self.ids |= fresh
        assert len(self.ids) - before == len(names) - int(repeated.sum())
        return repeated


def _sound(rows: pa.Table, offsets: pa.Array, shard: Shard, seen: _Seen, output: ShardOutput) -> pa.Table:
    """The rows with an id of their own and finite vectors; the others become rejects."""
    ids = rows.column("id")
    missing = pc.is_null(ids).to_numpy()
    if missing.any():
        for offset in offsets.filter(pa.array(missing)).to_pylist():
            output.add_reject(Reject(shard.uri, offset, "no_id", f"row {offset} has no id", ""))
        rows, offsets = rows.filter(pa.array(~missing)), offsets.filter(pa.array(~missing))
    repeated = seen.repeated(rows.column("id"))
    bad = repeated.copy()
    for position in np.flatnonzero(repeated):
        name, offset = rows.column("id")[int(position)].as_py(), offsets[int(position)].as_py()
        output.add_reject(Reject(shard.uri, offset, "duplicate_id", f"the id '{name}' came before", name))
    for column in vector_columns(rows.schema):
        absent = pc.is_null(rows.column(column)).to_numpy() & ~bad
        for position in np.flatnonzero(absent):
            name, offset = rows.column("id")[int(position)].as_py(), offsets[int(position)].as_py()
            output.add_reject(Reject(shard.uri, offset, "no_vector", f"the vector '{column}' is missing", name))
        bad |= absent
        broken_rows = _not_finite(rows.column(column)) & ~bad
        for position in np.flatnonzero(broken_rows):
            name, offset = rows.column("id")[int(position)].as_py(), offsets[int(position)].as_py()
            error = f"the vector '{column}' has NaN or infinite values"
            output.add_reject(Reject(shard.uri, offset, "nan_vector", error, name))
        bad |= broken_rows
    return rows.filter(pa.array(~bad)) if bad.any() else rows


def _not_finite(column: pa.ChunkedArray) -> np.ndarray:
    """Rows of a vector column that hold a value that is no number; a missing vector is none of them."""
    from datas3_ray.lake.schemas import matrix

    there = column.is_valid().to_numpy()
    # A sum is not finite when one of its terms is not, and costs one pass over memory.
    sums = matrix(column).sum(axis=1, dtype=np.float64)
    return ~np.isfinite(sums) & there


def _result(**given: Any) -> dict[str, Any]:
    return {"error": "", "unread": "", "entry": None, "reasons": {}, "schema": "", **given}


def _stopped(reject: Reject) -> str:
    return (
        f"{reject.uri} at byte {reject.offset} (key '{reject.key}') was rejected as {reject.reason}: {reject.error}. "
        "The run ends here because on_error is 'fail'; use 'quarantine' to set such images aside."
    )
