"""One shard at a time inside an actor: read, decode, encode, write fragments."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datas3_ray.encoders import EncoderConfig
from datas3_ray.lake.ledger import ShardEntry
from datas3_ray.lake.schemas import IMAGE_FIELDS, QUARANTINE, vector_field, with_kind
from datas3_ray.lake.storage import StorageOptions, write_fragments
from datas3_ray.sources import Reject, Sample, SampleError, Shard, Source, decode_image

if TYPE_CHECKING:
    from datas3_ray.ingest import IngestConfig

FLUSH_ROWS = 1 << 16


@dataclass
class Prepared:
    """A row without its vectors, and what each encoder needs to make them."""

    row: dict[str, Any]
    inputs: dict[str, np.ndarray | None]


@dataclass
class Buffer:
    """Rows and rejects of the shard that are not yet in fragments."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    vectors: dict[str, list[np.ndarray | None]] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)


class ShardWorker:
    """Holds the encoders; :meth:`work` turns one shard into fragments and an account of them."""

    def __init__(
        self,
        source: Source,
        encoders: dict[str, EncoderConfig],
        config: IngestConfig,
        uri: str,
        quarantine_uri: str,
        append: bool,
        options: StorageOptions | None,
        threads: int,
    ) -> None:
        self.source = source
        self.config = config
        self.uri, self.quarantine_uri, self.append, self.options = uri, quarantine_uri, append, options
        self.encoders = {alias: encoder.build() for alias, encoder in encoders.items()}
        self.batch_size = max(encoder.batch_size for encoder in encoders.values())
        self.schema = self._schema()
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _schema(self) -> pa.Schema:
        fields = [*IMAGE_FIELDS, *self.source.columns.fields()]
        if self.config.store == "bytes":
            fields.append(pa.field("image", pa.large_binary()))
        fields += [vector_field(alias, encoder.dim, encoder.identity) for alias, encoder in self.encoders.items()]
        return with_kind(pa.schema(fields), "image")

    def work(self, shard: Shard) -> dict[str, Any]:
        """Everything the driver needs to commit this shard; ``error`` is set where a reject must end the run."""
        started = time.perf_counter()
        buffer = Buffer(vectors={alias: [] for alias in self.encoders})
        fragments: list[str] = []
        rejected: list[str] = []
        reasons: Counter[str] = Counter()
        samples = rows = 0
        batch: list[Prepared] = []
        for item in self._prepared(self.source.read(shard)):
            samples += 1
            if isinstance(item, Reject):
                if self.config.on_error == "fail":
                    return _stop(item)
                reasons[item.reason] += 1
                buffer.rejects.append({**asdict(item), "shard": shard.uri})
                continue
            batch.append(item)
            if len(batch) == self.batch_size:
                self._encode(batch, buffer, reasons, shard)
                batch = []
                if len(buffer.rows) >= FLUSH_ROWS:
                    rows += len(buffer.rows)
                    fragments += self._flush(buffer)
        if batch:
            self._encode(batch, buffer, reasons, shard)
        rows += len(buffer.rows)
        fragments += self._flush(buffer)
        if self.config.on_error == "fail" and buffer.rejects:
            return _stop(Reject(**_without_shard(buffer.rejects[0])))
        rejects = len(buffer.rejects)
        if buffer.rejects:
            table = pa.Table.from_pylist(buffer.rejects, with_kind(QUARANTINE, "quarantine"))
            rejected = write_fragments(table, self.quarantine_uri, append=False, options=self.options)
        entry = ShardEntry(
            shard=shard.uri,
            fingerprint=shard.fingerprint,
            size=shard.size,
            samples=samples,
            rows=rows,
            rejects=rejects,
            fragments=fragments,
            quarantine_fragments=rejected,
            seconds=time.perf_counter() - started,
        )
        schema = self.schema.serialize().to_pybytes().hex()
        return {"error": "", "entry": asdict(entry), "reasons": dict(reasons), "schema": schema}

    def _prepared(self, items: Iterable[Sample | Reject]) -> Iterator[Prepared | Reject]:
        """Decoded and preprocessed rows in shard order; decoding runs ahead in threads where there are any."""
        if self.pool is None:
            return map(self._prepare, items)
        return _ahead(self.pool, self._prepare, items, window=2 * self.batch_size)

    def _prepare(self, item: Sample | Reject) -> Prepared | Reject:
        if isinstance(item, Reject):
            return item

        try:
            values = self.source.columns.extract(item)
            decoded = decode_image(item.image, max_pixels=self.config.max_pixels)
        except SampleError as error:
            return Reject(item.uri, item.offset, error.reason, str(error), item.key)
        row = {
            "id": item.id,
            "uri": item.uri,
            "offset": item.offset,
            "length": item.length,
            "width": decoded.width,
            "height": decoded.height,
            **values,
        }
        if self.config.store == "bytes":
            row["image"] = item.image
        inputs: dict[str, np.ndarray | None] = {}
        for alias, encoder in self.encoders.items():
            thing = decoded.image if encoder.input == "image" else values["caption"]
            inputs[alias] = encoder.prepare(thing) if thing is not None else None
        return Prepared(row, inputs)

    def _encode(self, batch: list[Prepared], buffer: Buffer, reasons: Counter[str], shard: Shard) -> None:
        made: dict[str, list[np.ndarray | None]] = {}
        for alias, encoder in self.encoders.items():
            given = [(position, item.inputs[alias]) for position, item in enumerate(batch)]
            there = [(position, value) for position, value in given if value is not None]
            vectors = encoder.encode([value for _, value in there]) if there else np.empty((0, encoder.dim))
            column: list[np.ndarray | None] = [None] * len(batch)
            for (position, _), vector in zip(there, vectors, strict=True):
                column[position] = vector
            made[alias] = column
        for position, item in enumerate(batch):
            mine = {alias: column[position] for alias, column in made.items()}
            bad = [alias for alias, vector in mine.items() if vector is not None and not np.isfinite(vector).all()]
            if bad:
                row = item.row
                error = f"encoder '{bad[0]}' gave a vector with NaN or infinite values"
                reject = Reject(row["uri"], row["offset"], "nan_vector", error, row["id"])
                reasons["nan_vector"] += 1
                buffer.rejects.append({**asdict(reject), "shard": shard.uri})
                continue
            buffer.rows.append(item.row)
            for alias, vector in mine.items():
                buffer.vectors[alias].append(vector)

    def _flush(self, buffer: Buffer) -> list[str]:
        if not buffer.rows:
            return []
        arrays = []
        for column in self.schema:
            if column.name in buffer.vectors:
                arrays.append(_vector_array(buffer.vectors[column.name], column.type))
            else:
                arrays.append(pa.array([row.get(column.name) for row in buffer.rows], column.type))
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        buffer.rows = []
        buffer.vectors = {alias: [] for alias in buffer.vectors}
        return write_fragments(table, self.uri, append=self.append, options=self.options)


def _vector_array(vectors: list[np.ndarray | None], kind: pa.DataType) -> pa.Array:
    missing = np.array([vector is None for vector in vectors])
    matrix = np.zeros((len(vectors), kind.list_size), np.float32)
    for position, vector in enumerate(vectors):
        if vector is not None:
            matrix[position] = vector
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=mask)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], window: int) -> Iterator[Any]:
    """``map(work, items)`` with up to ``window`` results computed ahead, in order, and no more held in memory."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _without_shard(reject: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reject.items() if key != "shard"}


def _stop(reject: Reject) -> dict[str, Any]:
    sentence = (
        f"{reject.uri} at byte {reject.offset} (key '{reject.key}') was rejected as {reject.reason}: {reject.error}. "
        "The run ends here because on_error is 'fail'; use 'quarantine' to set such images aside."
    )
    return {"error": sentence, "entry": None, "reasons": {}, "schema": ""}
