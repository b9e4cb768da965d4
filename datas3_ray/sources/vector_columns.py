"""The columns of a recipe over whole tables: casts in Arrow where they mean the same, row by row where not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.sources.arrow_rows import is_binary, is_text, records
from datas3_ray.sources.base import Sample, SampleError
from datas3_ray.sources.columns import TYPES, Column, Columns

BadRows = dict[int, SampleError]
"""What is wrong with the rows of a batch that cannot be kept."""


class TableColumns:
    """The columns of tables of metadata. With ``meta``, what they leave is kept as JSON text, row by row.

    >>> columns = TableColumns(Columns.parse({"cm": {"from": "json.w", "type": "int"}}), meta=False)
    >>> made, bad = columns.make(pa.array(["a", "b"]), pa.table({"w": pa.array([5, None], pa.int16())}), "s")
    >>> made["cm"].to_pylist(), made["caption"].to_pylist(), bad
    ([5, None], [None, None], {})
    """

    def __init__(self, columns: Columns, meta: bool) -> None:
        self._columns, self._meta = columns, meta and "meta" not in columns.dropped
        mapped = {column.name: column for column in columns.mapped}
        self._places: dict[str, Column | None] = {}
        for field in columns.fields():
            usual = field.name in ("caption", "label") and field.name not in columns.dropped
            default = Column(field.name, f"json.{field.name}") if usual else None
            self._places[field.name] = mapped.get(field.name, default)

    def needed(self, schema: pa.Schema, vectors: Sequence[str]) -> list[str]:
        """The columns of a table that have to be read; those in ``vectors`` are no metadata."""
        if self._meta:
            return [field.name for field in schema if field.name not in vectors and not is_binary(field.type)]
        tops = dict.fromkeys(path[0] for place in self._places.values() if (path := _path(place)))
        return [name for name in tops if name in schema.names and name not in vectors]

    def make(self, ids: pa.Array, table: pa.Table | None, prefix: str) -> tuple[dict[str, pa.Array], BadRows]:
        """The columns' arrays by name, as long as ``ids``, and the rows that have a value of the wrong type."""
        made: dict[str, pa.Array] = {}
        bad: BadRows = {}
        slow: list[Column] = []
        for field in self._columns.fields():
            place = self._places[field.name]
            array = self._array(place, field.type, ids, table, prefix) if place else pa.nulls(len(ids), field.type)
            if array is None:
                assert place is not None
                slow.append(place)
            else:
                made[field.name] = array
        if table is not None:
            made.update(self._one_by_one(slow, table, ids, bad))
        return made, bad

    def _array(
        self, place: Column, kind: pa.DataType, ids: pa.Array, table: pa.Table | None, prefix: str
    ) -> pa.Array | None:
        """A column's values by casts alone; None where Python has to look at them."""
        if place.source == "key" and kind == pa.string():
            return ids
        if place.source == "shard" and kind == pa.string():
            return pa.repeat(pa.scalar(prefix, pa.string()), len(ids))
        path = _path(place)
        if table is None or not path or path[0] not in table.column_names:
            return pa.nulls(len(ids), kind)
        values = _one_chunk(table.column(path[0]))
        for part in path[1:]:
            if not pa.types.is_struct(values.type):
                return None
            if values.type.get_field_index(part) < 0:
                return pa.nulls(len(ids), kind)
            values = pc.struct_field(values, part)
        return cast(values, kind)

    def _one_by_one(self, slow: list[Column], table: pa.Table, ids: pa.Array, bad: BadRows) -> dict[str, pa.Array]:
        """What casts cannot do, through the recipe's own conversion of values."""
        columns = Columns(tuple(slow))
        names = list(dict.fromkeys(path[0] for place in slow if (path := _path(place))))
        if self._meta:
            columns, names = self._columns, table.column_names
        elif not slow:
            return {}
        wanted = [*(column.name for column in slow), *(["meta"] if self._meta else [])]
        values: dict[str, list[Any]] = {name: [] for name in wanted}
        for row, record in enumerate(_records(table, names)):
            found: dict[str, Any] = {}
            try:
                if isinstance(record, SampleError):
                    raise record
                key = str(ids[row])
                found = columns.extract(Sample(key, key, "", 0, 0, b"", {"json": record}))
            except SampleError as error:
                bad[row] = error
            for name in wanted:
                values[name].append(found.get(name))
        kinds = self._columns.fields_by_name()
        return {name: pa.array(values[name], kinds[name].type) for name in wanted}


def _records(table: pa.Table, names: list[str]) -> Iterator[dict[str, Any] | SampleError]:
    for batch in table.to_batches(max_chunksize=4096):
        yield from records(batch, names)


def _path(place: Column | None) -> list[str]:
    """The names that lead to a column's value in the record; empty for another place."""
    if place is None:
        return []
    start, _, rest = place.source.partition(".")
    return rest.split(".") if start in ("json", "row") and rest else []


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(column, pa.ChunkedArray):  # what does not fit into one array
        column = pa.concat_arrays(column.chunks)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column


def cast(values: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The values as the recipe's type where a cast gives what its conversion would; else None.

    >>> cast(pa.array([1.5, float("nan")]), TYPES["float"]).to_pylist(), cast(pa.array(["1"]), TYPES["int"])
    ([1.5, None], None)
    """
    given, types = values.type, pa.types
    if types.is_null(given):
        return pa.nulls(len(values), kind)
    number = types.is_integer(given) or types.is_floating(given)
    same = (
        (kind == TYPES["string"] and (is_text(given) or types.is_integer(given) or types.is_boolean(given)))
        or (kind == TYPES["int"] and types.is_integer(given))
        or (kind == TYPES["float"] and number)
        or (kind == TYPES["bool"] and types.is_boolean(given))
        or (kind == TYPES["timestamp"] and (types.is_timestamp(given) or types.is_date(given)))
    )
    if not same:
        return None
    try:
        if types.is_timestamp(given):
            values = values.cast(pa.timestamp("us", given.tz), safe=False)
        elif types.is_date(given):
            values = values.cast(pa.timestamp("us"))
        made = values.cast(kind)
    except pa.ArrowException:  # a value that does not fit: find the rows that have it
        return None
    if types.is_floating(given):
        made = pc.if_else(pc.is_finite(made), made, pa.scalar(None, kind))
    return made
