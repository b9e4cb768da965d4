"""One shard of ready vectors: its arrays or columns, its ids and its metadata, side by side in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import did_you_mean
from datas3_ray.sources.arrays import StoredArray, read_arrays
from datas3_ray.sources.arrow_rows import KEY_DIGITS, is_text
from datas3_ray.sources.arrow_tables import ParquetTable, TableError
from datas3_ray.sources.base import SampleError, Shard
from datas3_ray.sources.storage import StorageOptions, read_file
from datas3_ray.sources.vector_columns import BadRows, TableColumns

ID_COLUMNS = ("id", "uid", "key")
"""Columns of a Parquet file whose values are the ids where no other is named."""

_PARQUET_ROWS = 8192  # rows that are taken out of a Parquet file at once


@dataclass(frozen=True)
class VectorColumn:
    """A vector column: its name in the lake, that in the file, and its dimensions."""

    name: str
    there: str
    dim: int


@dataclass(frozen=True)
class ShardSpec:
    """What a source says about each of its shards; ``beside`` is the file of ids or metadata."""

    embeddings: Mapping[str, str] | None
    beside: str | None
    id: str | None
    need_ids: bool
    id_prefix: str
    columns: TableColumns
    fields: tuple[pa.Field, ...]
    options: StorageOptions
    max_bytes: int


@dataclass
class Batch:
    """Rows of a shard from its row ``first`` on; those in ``bad`` are not in the table."""

    first: int
    ids: pa.Array
    columns: dict[str, pa.Array]
    vectors: dict[str, pa.Array]
    fields: tuple[pa.Field, ...]
    bad: BadRows = field(default_factory=dict)

    def table(self) -> pa.Table:
        """The good rows; ``offset`` is a row's number in the shard."""
        fields = [pa.field("id", pa.string()), pa.field("offset", pa.int64()), *self.fields]
        offsets = pa.array(np.arange(self.first, self.first + len(self.ids)))
        arrays = [self.ids, offsets, *(self.columns[field.name] for field in self.fields), *self.vectors.values()]
        fields += [pa.field(name, array.type) for name, array in self.vectors.items()]
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        if self.bad:
            kept = np.ones(len(table), bool)
            kept[list(self.bad)] = False
            table = table.filter(pa.array(kept))
        return table


class ShardReader:
    """An open shard: ``columns`` and ``rows`` are known from the headers. Raises TableError, as its methods do."""

    def __init__(self, shard: Shard, spec: ShardSpec) -> None:
        self._shard, self._spec = shard, spec
        self._stack = ExitStack()
        self._table: ParquetTable | None = None  # the file with the metadata
        self._id: str | None = None  # its column with the ids
        self._ids: pa.Array | None = None  # or all ids at once
        self._arrays: dict[str, StoredArray] = {}
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def metadata_names(self) -> list[str] | None:
        """The columns of the metadata; None where there are none."""
        return None if self._table is None else list(self._table.schema.names)

    def _open(self) -> None:
        uri, options = self._shard.uri, self._spec.options
        if uri.lower().endswith(".parquet"):
            self._table = self._stack.enter_context(ParquetTable(uri, options))
            self.rows = self._table.rows
            self.columns = self._parquet_columns(self._table)
        else:
            self._arrays = read_arrays(uri, options)
            self.columns = self._array_columns()
            self.rows = self._arrays[self.columns[0].there].shape[0]
            self._check_rows((self._arrays[column.there].shape[0], column.there) for column in self.columns)
            self._open_beside()
        if self._table is not None and self._ids is None:
            self._id = self._id_column(self._table.schema)

    def _open_beside(self) -> None:
        spec = self._spec
        if spec.beside is not None and spec.beside.lower().endswith(".parquet"):
            self._table = self._stack.enter_context(ParquetTable(spec.beside, spec.options))
            self._check_rows([(self._table.rows, spec.beside)])
        elif spec.beside is not None:
            self._ids = self._read_ids(spec.beside)
            self._check_rows([(len(self._ids), spec.beside)])
        elif spec.id is not None:
            if spec.id not in self._arrays:
                raise self._unknown("id", spec.id, self._arrays)
            array = self._arrays[spec.id]
            self._check_rows([(array.shape[0] if array.shape else 0, spec.id)])
            self._ids = array.ids(spec.options)

    def _read_ids(self, uri: str) -> pa.Array:
        if uri.lower().endswith(".npy"):
            array = read_arrays(uri, self._spec.options)[""]
            self._check_rows([(array.shape[0] if array.shape else 0, uri)])
            return array.ids(self._spec.options)
        try:
            lines = read_file(uri, self._spec.options, self._spec.max_bytes).decode("utf-8-sig").splitlines()
        except SampleError as error:
            raise TableError("unreadable_shard", error.message) from None
        except UnicodeDecodeError as error:
            raise TableError("not_a_table", f"{uri!r} is not UTF-8: {error}") from None
        return pa.array([line.strip() or None for line in lines], pa.string())

    def _check_rows(self, counts: Iterable[tuple[int, str]]) -> None:
        for count, what in counts:
            if count != self.rows:
                raise TableError(
                    "not_a_table", f"{self._shard.uri!r} has {self.rows} vectors, and {what!r} has {count} rows"
                )

    def _array_columns(self) -> list[VectorColumn]:
        wanted = self._spec.embeddings
        if wanted is None:
            wanted = {name: name for name, array in self._arrays.items() if array.is_vectors}
            if not wanted:
                shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in self._arrays.items())
                raise TableError(
                    "not_a_table", f"{self._shard.uri!r} has no matrix of floats but {shapes or 'nothing'}"
                )
        columns = []
        for name, there in wanted.items():
            if there not in self._arrays:
                raise self._unknown("embeddings", there, self._arrays)
            array = self._arrays[there]
            if not array.is_vectors:
                what = f"{there!r} in {self._shard.uri!r}" if there else repr(self._shard.uri)
                raise TableError(
                    "not_a_table",
                    f"{what} is {array.dtype} of shape {array.shape}, not a matrix of floats (16, 32, 64)",
                )
            columns.append(VectorColumn(name, there, array.shape[1]))
        return columns

    def _parquet_columns(self, table: ParquetTable) -> list[VectorColumn]:
        schema = table.schema
        wanted = self._spec.embeddings
        if wanted is None:
            wanted = {field.name: field.name for field in schema if _is_vector(field.type)}
            if not wanted:
                raise TableError("not_a_table", f"{self._shard.uri!r} has no column of lists of floats")
        for there in wanted.values():
            if there not in schema.names:
                raise self._unknown("embeddings", there, schema.names)
            if not _is_vector(schema.field(there).type):
                kind = schema.field(there).type
                raise TableError("not_a_table", f"{there!r} in {self._shard.uri!r} is {kind}, not lists of floats")
        dims = self._dims(table, list(wanted.values()))
        return [VectorColumn(name, there, dims[there]) for name, there in wanted.items()]

    def _dims(self, table: ParquetTable, names: list[str]) -> dict[str, int]:
        """The dimensions of each column: from its type, else from its first value."""
        dims = {name: kind.list_size for name in names if _is_fixed(kind := table.schema.field(name).type)}
        waiting = [name for name in names if name not in dims]
        if waiting:
            for batch in table.batches(waiting, 64):
                for name in waiting:
                    length = next((len(value) for value in batch.column(name) if value.is_valid), None)
                    if name not in dims and length is not None:
                        dims[name] = length
                if len(dims) == len(names):
                    break
        empty = [name for name in names if not dims.get(name)]
        if empty:
            raise TableError("not_a_table", f"{empty[0]!r} in {self._shard.uri!r} has no vector")
        return dims

    def _id_column(self, schema: pa.Schema) -> str | None:
        name = self._spec.id
        if name is None:
            usual = (name for name in ID_COLUMNS if name in schema.names)
            name = next((name for name in usual if _is_id(schema.field(name).type)), None)
            if name is None and self._spec.need_ids:
                words = ", ".join(ID_COLUMNS)
                raise TableError("not_a_table", f"{self._spec.beside!r} has no column {words}; name one with `id:`")
            return name
        if name not in schema.names:
            raise self._unknown("id", name, schema.names)
        if not _is_id(schema.field(name).type):
            kind = schema.field(name).type
            raise TableError("not_a_table", f"the ids in column {name!r} are {kind}, not text or whole numbers")
        return name

    def _unknown(self, option: str, name: str, names: Iterable[str]) -> TableError:
        known = list(names)
        beside = option == "id" and self._table is not None and self._spec.beside
        where = beside or self._shard.uri
        message = f"{option}: {where!r} has no {name!r}; it has {', '.join(known)}"
        hint = did_you_mean(name, known)
        return TableError("not_a_table", f"{message}.{hint}" if hint else message)

    @property
    def has_ids(self) -> bool:
        """Whether the ids are the rows' own; they are made of the shard's prefix and the rows' numbers else."""
        return self._ids is not None or self._id is not None

    def ids(self, rows: int) -> Iterator[pa.Array]:
        """The ids of all rows, at most ``rows`` at a time; nothing else is read."""
        for table, first, count in self._tables(rows, [self._id] if self._id else []):
            yield self._ids_of(table, first, count)

    def batches(self, rows: int) -> Iterator[Batch]:
        """All rows, at most ``rows`` at a time."""
        streams = {column: self._arrays[column.there].blocks(rows, self._spec.options) for column in self._in_arrays()}
        vectors_there = [] if self._arrays else [column.there for column in self.columns]
        wanted = [*filter(None, [self._id]), *vectors_there, *(self._metadata(self._table) if self._table else ())]
        for table, first, count in self._tables(rows, wanted):
            ids = self._ids_of(table, first, count)
            metadata = table.select(self._metadata(self._table)) if table is not None and self._table else None
            made, bad = self._spec.columns.make(ids, metadata, self._shard.prefix)
            vectors: dict[str, pa.Array] = {}
            for column in self.columns:
                if column in streams:
                    vectors[column.name] = from_matrix(next(streams[column])[:count])
                elif table is not None:
                    vectors[column.name] = from_lists(table.column(column.there), column, bad)
            yield Batch(first, ids, made, vectors, self._spec.fields, bad)

    def _metadata(self, table: ParquetTable) -> list[str]:
        """The columns of the metadata that are needed; vectors beside those that are read are none."""
        vectors = [] if self._arrays else [field.name for field in table.schema if _is_vector(field.type)]
        return self._spec.columns.needed(table.schema, vectors)

    def _in_arrays(self) -> list[VectorColumn]:
        return self.columns if self._arrays else []

    def _tables(self, rows: int, wanted: list[str]) -> Iterator[tuple[pa.Table | None, int, int]]:
        """Columns of the Parquet file, ``rows`` rows at a time, with the first row's number and how many they are.

        None in place of the columns where none are wanted.
        """
        if self._table is None or not wanted:
            for first in range(0, self.rows, rows):
                yield None, first, min(rows, self.rows - first)
            return
        first = 0
        batches = self._table.batches(list(dict.fromkeys(wanted)), min(rows, _PARQUET_ROWS))
        for table in _exactly(batches, rows):
            yield table, first, table.num_rows  # fewer before damage
            first += table.num_rows
        if first != self.rows:
            raise TableError("not_a_table", f"its header promises {self.rows} rows, and {first} are there")

    def _ids_of(self, table: pa.Table | None, first: int, count: int) -> pa.Array:
        prefix = self._spec.id_prefix
        if self._ids is not None:
            ids = _sound(self._ids.slice(first, count))
        elif self._id is not None and table is not None:
            ids = _as_text(table.column(self._id), self._id)
        else:
            numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
            ids, prefix = pc.utf8_lpad(numbers, KEY_DIGITS, "0"), self._shard.prefix
        return pc.binary_join_element_wise(prefix, ids, "/") if prefix else ids


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _is_vector(kind: pa.DataType) -> bool:
    listed = _is_fixed(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))


def _is_id(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _sound(ids: pa.Array) -> pa.Array:
    """Ids of which an empty one is null, and so is one with a NUL byte, by which no row can be ranked."""
    no_id = pc.or_(pc.equal(ids, ""), pc.match_substring(ids, "\0"))
    return pc.if_else(no_id, pa.scalar(None, pa.string()), ids)


def _as_text(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Ids as text."""
    try:
        if pa.types.is_floating(column.type):
            column = column.cast(pa.int64())  # what pandas makes of whole numbers beside missing ones
        return _sound(_one(column).cast(pa.string()))
    except pa.ArrowException as error:
        raise TableError("not_a_table", f"the ids in column {name!r} cannot be read: {error}") from None


def _exactly(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` rows, the last of fewer; those before damage come before its TableError."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    damage = None
    try:
        for batch in batches:
            while count + len(batch) >= rows:
                taken = rows - count
                yield pa.Table.from_batches([*waiting, batch.slice(0, taken)])
                batch, waiting, count = batch.slice(taken), [], 0
            if len(batch):
                waiting.append(batch)
                count += len(batch)
    except TableError as error:
        damage = error
    if waiting:
        yield pa.Table.from_batches(waiting)
    if damage is not None:
        raise damage


def from_matrix(matrix: np.ndarray) -> pa.Array:
    """A C-ordered float32 matrix as vectors, without a copy.

    >>> from_matrix(np.zeros((2, 3), np.float32)).type
    FixedSizeListType(fixed_size_list<item: float>[3])
    """
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=pa.list_(pa.float32(), matrix.shape[1]))


def from_lists(column: pa.ChunkedArray, wanted: VectorColumn, bad: BadRows) -> pa.Array:
    """A column of lists as vectors of float32; rows of another length are told in ``bad``.

    A missing vector stays missing, a missing value in one becomes NaN.

    >>> bad: BadRows = {}
    >>> lists = pa.chunked_array([pa.array([[1.0, 2.0], None, [3.0]])])
    >>> from_lists(lists, VectorColumn("clip", "emb", 2), bad).to_pylist()
    [[1.0, 2.0], None, None]
    >>> bad
    {2: SampleError('bad_record', "the vector 'clip' has 1 dimensions here, and 2 in the rows before")}
    """
    array = _one(column)
    kind = pa.list_(pa.float32(), wanted.dim)
    lengths = pc.list_value_length(array)
    fits = pc.fill_null(pc.equal(lengths, wanted.dim), False).to_numpy(zero_copy_only=False)
    if fits.all():
        return pa.FixedSizeListArray.from_arrays(_values(pc.list_flatten(array)), type=kind)
    for row in np.flatnonzero(~fits):
        length = lengths[int(row)].as_py()
        if length is not None:
            words = f"the vector {wanted.name!r} has {length} dimensions here, and {wanted.dim} in the rows before"
            bad[int(row)] = SampleError("bad_record", words)
    matrix = np.zeros((len(array), wanted.dim), np.float32)
    kept = pc.list_flatten(array.filter(pa.array(fits)))
    matrix[fits] = _values(kept).to_numpy(zero_copy_only=False).reshape(-1, wanted.dim)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=pa.array(~fits))


def _values(values: pa.Array) -> pa.Array:
    if values.type != pa.float32():
        values = values.cast(pa.float32(), safe=False)
    return pc.fill_null(values, float("nan")) if values.null_count else values
