"""A selection as a file that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError, require_file_name

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake

FORMATS = (".parquet", ".csv", ".jsonl", ".txt")


def export_selection(lake: Lake, name: str, path: Path) -> int:
    """Write a selection's kept rows with the pool's columns (no vectors, no image bytes); returns how many.

    The suffix decides: ``.parquet``, ``.csv``, ``.jsonl``, or ``.txt`` with one id a line. The file appears whole or
    not at all.

    Raises
    ------
    UsageError
        For another suffix, a folder that does not exist, or a folder in place of a file.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"cannot export to {path}: the name must end in one of {', '.join(FORMATS)}.")
    require_file_name(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot export to {path}: there is no folder {path.parent}.")
    selection = lake.selection(name)
    lineage = selection.lineage()
    pool = lake.table(lineage["table"], lineage["inputs"][lineage["table"]])
    narrow = [column for column in pool.schema.names if column not in pool.vector_columns() and column != "image"]
    ids = selection.ids()
    partial = path.with_name(path.name + ".part")
    count = 0
    with partial.open("wb") as file:
        writer = None
        for batch in pool.dataset.scanner(columns=["id"] if suffix == ".txt" else narrow).to_batches():
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(pc.is_in(rows.column("id"), value_set=ids))
            count += rows.num_rows
            if suffix == ".parquet":
                import pyarrow.parquet as pq

                writer = writer or pq.ParquetWriter(file, rows.schema)
                writer.write_table(rows)
            elif suffix == ".csv":
                import pyarrow.csv as csv

                writer = writer or csv.CSVWriter(file, rows.schema)
                writer.write_table(rows)
            elif suffix == ".jsonl":
                for row in rows.to_pylist():
                    file.write(json.dumps(row, default=str).encode() + b"\n")
            else:
                file.writelines(f"{value}\n".encode() for value in rows.column("id").to_pylist())
        if writer is not None:
            writer.close()
    partial.replace(path)
    return count
