"""One fragment at a time inside an actor: fetch the images' bytes, decode, encode, write the new columns' data file."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.encoders import EncoderConfig
from datas3_ray.encoders.bank import EncoderBank, Inputs
from datas3_ray.lake.orphans import lake_filesystem
from datas3_ray.lake.schemas import matrix, vector_field
from datas3_ray.lake.staged import Finished, field_ids, schema_text, with_file
from datas3_ray.lake.storage import StorageOptions, open_dataset
from datas3_ray.lake.table import Table
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.decode import decode_image
from datas3_ray.sources.fetch import fetch_images
from datas3_ray.sources.watchdog import DecodePool, TimedOut

READ_ROWS = 512
SPARSE = 32
"""Read batches that may wait for their few rows to fill an encoder's batch."""

PLACE = ("uri", "offset", "length", "image")
NO_CAPTION = "no_caption"
OFFSET = 0xFFFFFFFF


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know besides its encoders: the table, how to reach it and the images, and limits."""

    name: str
    uri: str
    options: StorageOptions | None
    storage_options: Mapping[str, Any] | None
    max_pixels: int
    decode_seconds: float
    threads: int


@dataclass(frozen=True)
class Task:
    """One fragment of a version, and which of its columns to make: all anew (``add``), or where vectors are missing."""

    version: int
    fragment: int
    columns: tuple[str, ...]
    add: bool


@dataclass
class _Row:
    """A row that some column wants: its image's bytes, or why there are none, or None where none are needed."""

    wants: frozenset[str]
    found: bytes | SampleError | None
    caption: str | None


@dataclass
class _Ready:
    inputs: Inputs
    reason: str | None = None


@dataclass
class _End:
    """The end of a read batch, sent along behind its rows."""

    rows: pa.Table
    wanted: np.ndarray
    """Positions of the rows that were sent."""


@dataclass
class _Account:
    """What became of a fragment's rows."""

    rows: int = 0
    vectors: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "vectors": dict(self.vectors),
            "nulls": dict(self.nulls),
            "reasons": dict(self.reasons),
        }


class EmbedWorker:
    """Holds the encoders; :meth:`work` makes the new data file of one fragment."""

    def __init__(self, encoders: Mapping[str, EncoderConfig], settings: Settings) -> None:
        self.settings = settings
        self.bank = EncoderBank(encoders)
        self.pool = DecodePool(settings.threads, settings.decode_seconds)

    def identities(self) -> dict[str, dict[str, Any]]:
        """Alias -> what the vectors' field keeps about the encoder."""
        return {alias: encoder.identity for alias, encoder in self.bank.encoders.items()}

    def work(self, task: Task) -> Finished:
        """Encode what the fragment lacks. Memory is bounded whatever its size: rows are streamed."""
        settings = self.settings
        table = Table(settings.name, open_dataset(settings.uri, task.version, settings.options), settings.options)
        account = _Account()
        if task.add:
            metadata, schema = self._add(table, task, account)
            return Finished(task.fragment, metadata, schema, account.as_dict())
        return Finished(task.fragment, self._fill(table, task, account), None, account.as_dict())

    # -- writing -----------------------------------------------------------------------------------------------------

    def _add(self, table: Table, task: Task, account: _Account) -> tuple[str, str]:
        """The columns are new to the table: Lance itself adds them to the fragment."""
        import json

        encoders = self.bank.encoders
        fields = [vector_field(name, encoders[name].dim, encoders[name].identity) for name in task.columns]
        schema = pa.schema(fields)
        failed: list[BaseException] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for _, vectors in self._vectors(table, task, schema, account):
                    yield pa.RecordBatch.from_arrays([vectors[name] for name in schema.names], schema=schema)
            except BaseException as error:
                failed.append(error)
                raise

        # A handle of its own: Lance holds the one that columns are merged into while it draws the batches.
        fragment = table.dataset.get_fragment(task.fragment)
        try:
            metadata, merged = fragment.merge_columns(pa.RecordBatchReader.from_batches(schema, batches()))
        except Exception:
            if failed:  # Lance wraps what the batches raised in an error of its own
                raise failed[0] from None
            raise
        return json.dumps(metadata.to_json()), schema_text(merged)

    def _fill(self, table: Table, task: Task, account: _Account) -> str | None:
        """The columns are there and rows lack vectors: a new data file takes their place. None where nothing came."""
        from lance.file import LanceFileWriter

        metadata = table.dataset.get_fragment(task.fragment).metadata
        schema = pa.schema([table.schema.field(name) for name in task.columns])
        first = metadata.files[0]
        name = f"{uuid.uuid4().hex}.lance"
        writer = None
        written = 0
        for offsets, vectors in self._vectors(table, task, schema, account):
            if writer is None:
                writer = LanceFileWriter(
                    f"{table.uri}/data/{name}",
                    schema,
                    version=f"{first.file_major_version}.{first.file_minor_version}",
                    storage_options=self.settings.options,
                )
            written = _write_at(writer, schema, vectors, offsets, written)
        if writer is not None:
            gap = {column: pa.nulls(0, schema.field(column).type) for column in schema.names}
            _write_at(writer, schema, gap, np.array([], np.int64), written, upto=metadata.physical_rows)
            writer.close()
        filesystem, root = lake_filesystem(table.uri, self.settings.options)
        path = f"{root}/data/{name}"
        if not sum(account.vectors.values()):
            if writer is not None:
                filesystem.rm(path)
            return None
        ids = field_ids(table)
        return with_file(metadata, [ids[column] for column in schema.names], name, int(filesystem.size(path)))

    # -- encoding ----------------------------------------------------------------------------------------------------

    def _vectors(
        self, table: Table, task: Task, schema: pa.Schema, account: _Account
    ) -> Iterator[tuple[np.ndarray, dict[str, pa.Array]]]:
        """For each read batch the rows' offsets in the fragment and their columns, in order.

        Nothing comes where no row of the fragment wants a vector.
        """
        if not task.add and not self._lacks(table, task, account):
            return
        made: list[dict[str, np.ndarray | None]] = []
        window = 2 * self.bank.batch_size
        for item in self._encoded(self.pool.map(self._prepare, self._read(table, task), window=window), account):
            if not isinstance(item, _End):
                made.append(item)
                continue
            account.rows += item.rows.num_rows
            columns = {}
            for column in schema.names:
                kind = schema.field(column).type
                before = None if task.add else item.rows.column(column)
                array, new = _joined(before, item, [one[column] for one in made], kind)
                account.vectors[column] += new
                account.nulls[column] += array.null_count
                columns[column] = array
            made = []
            yield item.rows.column("_rowaddr").to_numpy().astype(np.int64) & OFFSET, columns

    def _lacks(self, table: Table, task: Task, account: _Account) -> bool:
        """Whether some row has a vector missing that could be made; counts the missing ones where none could."""
        lacks = False
        captions = self._captions(table, task)
        nulls: Counter[str] = Counter()
        rows = 0
        fragment = table.dataset.get_fragment(task.fragment)
        for batch in fragment.to_batches(columns=[*captions, *task.columns]):
            rows += batch.num_rows
            for column in task.columns:
                missing = pc.is_null(batch.column(column))
                nulls[column] += pc.sum(missing).as_py() or 0
                if self.bank.encoders[column].input == "caption":
                    missing = pc.and_(missing, pc.is_valid(batch.column("caption")))
                lacks = lacks or bool(pc.any(missing).as_py())
        if not lacks:
            account.rows, account.nulls = rows, nulls
        return lacks

    def _read(self, table: Table, task: Task) -> Iterator[_Row | _End]:
        """Rows that want a vector with their images' bytes, and an end behind those of each read batch."""
        takes_image = [name for name in task.columns if self.bank.encoders[name].input == "image"]
        places = [name for name in PLACE if takes_image and name in table.schema.names]
        columns = [*places, *self._captions(table, task), *(() if task.add else task.columns)]
        rows_at_once = max(READ_ROWS, self.bank.batch_size)
        fragment = table.dataset.get_fragment(task.fragment)
        for batch in fragment.to_batches(columns=columns, batch_size=rows_at_once, with_row_address=True):
            rows = pa.Table.from_batches([batch])
            wants = self._wants(rows, task)
            wanted = np.flatnonzero([bool(want) for want in wants])
            for_image = [position for position in wanted if wants[position] & set(takes_image)]
            at = rows.select(places).take(pa.array(for_image, pa.int64())) if for_image else None
            images = fetch_images(at, self.settings.storage_options) if at is not None else iter(())
            imaged = set(for_image)
            captions = rows.column("caption").to_pylist() if "caption" in rows.schema.names else [None] * rows.num_rows
            for position in wanted:
                found = next(images) if position in imaged else None
                yield _Row(wants[position], found, captions[position])
            kept = ["_rowaddr", *(() if task.add else task.columns)]
            yield _End(rows.select(kept), wanted)

    def _captions(self, table: Table, task: Task) -> list[str]:
        takes = any(self.bank.encoders[name].input == "caption" for name in task.columns)
        return ["caption"] if takes and "caption" in table.schema.names else []

    def _wants(self, rows: pa.Table, task: Task) -> list[frozenset[str]]:
        """For each row the columns that want a vector of it; a row without a caption is wanted once, to be counted."""
        if task.add:
            return [frozenset(task.columns)] * rows.num_rows
        masks = {}
        for column in task.columns:
            mask = pc.is_null(rows.column(column))
            if self.bank.encoders[column].input == "caption":
                mask = pc.and_(mask, pc.is_valid(rows.column("caption")))
            masks[column] = mask.to_pylist()
        return [
            frozenset(column for column, mask in masks.items() if mask[position]) for position in range(rows.num_rows)
        ]

    def _prepare(self, row: _Row | _End) -> _Ready | _End:
        if isinstance(row, _End):
            return row
        reason = None
        image = None
        if isinstance(row.found, SampleError):
            reason = row.found.reason
        elif row.found is not None:
            try:
                image = decode_image(row.found, max_pixels=self.settings.max_pixels).image
            except SampleError as error:
                reason = error.reason
        inputs = self.bank.prepare(image, row.caption)
        if reason is None and any(self.bank.encoders[name].input == "caption" for name in row.wants):
            reason = None if row.caption is not None else NO_CAPTION
        return _Ready({name: value if name in row.wants else None for name, value in inputs.items()}, reason)

    def _encoded(
        self, items: Iterator[_Ready | _End | TimedOut[Any]], account: _Account
    ) -> Iterator[dict[str, np.ndarray | None] | _End]:
        """Vectors in the order of their rows, encoded in full batches across the ends of read batches."""
        waiting: list[_Ready | _End] = []
        rows = ends = 0
        for item in items:
            if isinstance(item, TimedOut):
                item = _Ready(dict.fromkeys(self.bank.encoders), "decode_timeout")
            waiting.append(item)
            if isinstance(item, _End):
                ends += 1
            else:
                rows += 1
            if rows == self.bank.batch_size or ends == SPARSE:
                yield from self._encode(waiting, account)
                waiting, rows, ends = [], 0, 0
        yield from self._encode(waiting, account)

    def _encode(
        self, items: Sequence[_Ready | _End], account: _Account
    ) -> Iterator[dict[str, np.ndarray | None] | _End]:
        ready = [item for item in items if isinstance(item, _Ready)]
        vectors = iter(self.bank.encode([item.inputs for item in ready]))
        for item in items:
            if isinstance(item, _End):
                yield item
                continue
            mine = next(vectors)
            reason = item.reason
            for name, vector in mine.items():
                if vector is not None and not np.isfinite(vector).all():
                    mine[name], reason = None, "nan_vector"
            if reason:
                account.reasons[reason] += 1
            yield mine


def _joined(
    before: pa.ChunkedArray | None, end: _End, vectors: Sequence[np.ndarray | None], kind: pa.DataType
) -> tuple[pa.Array, int]:
    """A column of a read batch, what was there kept bit for bit and new vectors put in; and how many were new."""
    dtype = kind.value_type.to_pandas_dtype()
    count = end.rows.num_rows
    if before is None:
        values, missing = np.zeros((count, kind.list_size), dtype), np.ones(count, bool)
    else:
        values = np.array(matrix(before))
        missing = ~before.is_valid().to_numpy(zero_copy_only=False)
    new = 0
    for position, vector in zip(end.wanted, vectors, strict=True):
        if vector is not None:
            values[position] = vector
            missing[position] = False
            new += 1
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind, mask=mask), new


def _write_at(
    writer: Any,
    schema: pa.Schema,
    vectors: Mapping[str, pa.Array],
    offsets: np.ndarray,
    written: int,
    upto: int | None = None,
) -> int:
    """Write rows at their offsets; the offsets of deleted rows get nulls. Returns the next offset."""
    end = upto if upto is not None else int(offsets[-1]) + 1
    if end == written:
        return end
    if end - written == len(offsets):
        arrays = [vectors[name] for name in schema.names]
    else:
        at = np.full(end - written, -1, np.int64)
        at[offsets - written] = np.arange(len(offsets))
        places = pa.array(at, mask=at < 0)
        arrays = [vectors[name].take(places) for name in schema.names]
    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return end
