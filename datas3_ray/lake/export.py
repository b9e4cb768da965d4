"""A selection as a file that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError, require_file_name
from datas3_ray.lake.pool import pool_then
from datas3_ray.texts import json_text

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table

FORMATS = (".parquet", ".csv", ".jsonl", ".txt")


def export_selection(lake: Lake, name: str, path: Path) -> int:
    """Write a selection's kept rows with the pool's columns (no vectors, no image bytes); returns how many.

    The suffix decides: ``.parquet``, ``.csv``, ``.jsonl``, or ``.txt`` with one id a line. Other bytes, such as
    thumbnails, are in Parquet only; lists and structs are JSON in a CSV's cells. The file appears whole or not at all.

    Raises
    ------
    UsageError
        For another suffix, a folder that does not exist, a folder in place of a file, ids that no line holds, or a pool
        that is not there as it was when the selection was made.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"cannot export to {path}: the name must end in one of {', '.join(FORMATS)}.")
    require_file_name(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot export to {path}: there is no folder {path.parent}.")
    selection = lake.selection(name)
    pool = pool_then(lake, selection)
    ids = selection.ids()
    if suffix == ".txt" and pc.any(pc.match_substring_regex(ids, r"[\r\n]")).as_py():
        raise UsageError(f"cannot export to {path}: an id has a line break in it, and a .txt file is one id a line.")
    columns = _columns(pool, suffix)
    partial = path.with_name(path.name + ".part")
    count = 0
    try:
        with partial.open("wb") as file, ExitStack() as closed:
            write = _writer(suffix, file, closed)
            write(pool.schema.empty_table().select(columns))
            for rows in _rows(pool, columns, ids):
                count += rows.num_rows
                write(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _columns(pool: Table, suffix: str) -> list[str]:
    if suffix == ".txt":
        return ["id"]
    left_out = {*pool.vector_columns(), "image"}
    return [
        field.name
        for field in pool.schema
        if field.name not in left_out and (suffix == ".parquet" or not _has_bytes(field.type))
    ]


def _has_bytes(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return binary or any(_has_bytes(kind.field(place).type) for place in range(kind.num_fields))


def _rows(pool: Table, columns: list[str], ids: pa.Array) -> Iterator[pa.Table]:
    for batch in pool.dataset.scanner(columns=columns).to_batches():
        rows = pa.Table.from_batches([batch])
        yield rows.filter(pc.is_in(rows.column("id"), value_set=ids))


def _writer(suffix: str, file: IO[bytes], closed: ExitStack) -> Callable[[pa.Table], None]:
    """What writes some rows; what is to be closed before the file goes to ``closed``."""
    if suffix == ".txt":
        return lambda rows: file.writelines(f"{value}\n".encode() for value in rows.column("id").to_pylist())
    if suffix == ".jsonl":
        return lambda rows: file.writelines(json_text(row).encode() + b"\n" for row in rows.to_pylist())
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    kind: Any = pq.ParquetWriter if suffix == ".parquet" else csv.CSVWriter
    made: list[Any] = []

    def write(rows: pa.Table) -> None:
        shown = rows if suffix == ".parquet" else _flat(rows)
        if not made:
            made.append(closed.enter_context(kind(file, shown.schema)))
        made[0].write_table(shown)

    return write


def _flat(rows: pa.Table) -> pa.Table:
    """Rows with lists and structs as JSON text, which a cell can hold."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):
            texts = [None if value is None else json_text(value) for value in rows.column(place).to_pylist()]
            rows = rows.set_column(place, field.name, pa.array(texts, pa.string()))
    return rows
