"""Columns that are put beside the rows of an image table, by id, without touching what it holds.

One task a fragment writes only the new columns' data file, and one commit makes them visible. New columns make no
selection of the table stale. Columns that are there get other values in place, which counts as a change of the table,
but not for :func:`inputs_version`: numbers that were made from a table's rows do not make themselves stale.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import Datas3Error
from datas3_ray.lake.orphans import lake_filesystem
from datas3_ray.lake.schemas import MADE
from datas3_ray.lake.staged import Finished, commit_columns, field_ids, schema_text, with_file
from datas3_ray.lake.storage import StorageOptions, open_dataset
from datas3_ray.lake.table import Table
from datas3_ray.runtime import gather, remote

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake

ATTEMPTS = 5
OFFSET = 0xFFFFFFFF


def inputs_version(table: Table) -> int:
    """The newest version in which a row or a value changed that was not written by :func:`write_numbers`."""
    return table.last_change(but_for=MADE)


def made_from(table: Table, column: str) -> dict[str, Any] | None:
    """What :func:`write_numbers` keeps about a column; None where it did not make the column, or there is none."""
    if column not in table.schema.names:
        return None
    text = (table.schema.field(column).metadata or {}).get(MADE.encode())
    return json.loads(text) if text else None


def write_numbers(lake: Lake, name: str, version: int, numbers: pa.Table, made: Mapping[str, Mapping[str, Any]]) -> int:
    """Write the columns of ``numbers`` to the rows of the image table ``name`` that have its ids.

    Parameters
    ----------
    lake : Lake
    name : str
        The image table.
    version : int
        :func:`inputs_version` of the table that the numbers were made from.
    numbers : pyarrow.Table
        ``id`` (string, unique) and columns of numbers. Rows of the table that are not in it get null.
    made : mapping
        For each column what its field keeps: anything JSON can hold.

    Returns
    -------
    int
        The table's version afterwards. New columns come in one commit. Where columns are there already, their values
        are replaced in one commit after it, and then what their fields keep: a run that is killed in between leaves
        fields that say what they said, so that the next run writes them again.

    Raises
    ------
    Datas3Error
        When rows or values of the table were changed by another program meanwhile; nothing is written then.
    """
    import ray

    columns = [column for column in numbers.schema.names if column != "id"]
    return write_columns(lake, name, version, ray.put(numbers), {column: made[column] for column in columns})


def write_columns(lake: Lake, name: str, version: int, values: Any, made: Mapping[str, Mapping[str, Any]]) -> int:
    """As :func:`write_numbers`, for columns of any type that need not all be in one process.

    ``values`` is a reference to a table of ``id`` and the columns of ``made``, or a callable that every fragment's task
    asks for that of its own rows: ``values(fragment, ids)``.
    """
    there = lake.table(name).schema.names
    new = {column: about for column, about in made.items() if column not in there}
    old = {column: about for column, about in made.items() if column in there}
    if new:
        _commit(lake, name, version, values, new, add=True)
    if old:
        _commit(lake, name, version, values, old, add=False)
        dataset = lake.table(name).dataset
        dataset.update_field_metadata({column: {MADE: _text(about)} for column, about in old.items()})
    return lake.table(name).version


def _commit(
    lake: Lake, name: str, version: int, values: Any, made: Mapping[str, Mapping[str, Any]], *, add: bool
) -> None:
    """Write the columns' data files and commit them, again where only the fragments changed meanwhile."""
    work = remote(_add if add else _replace).options(num_cpus=1)
    commit_id = uuid.uuid4().hex
    for _ in range(ATTEMPTS):
        table = lake.table(name)
        if inputs_version(table) != version:
            raise Datas3Error(
                f"table '{name}' was changed by another program while numbers for its rows were made; nothing was "
                "written, run the same command again."
            )
        texts = {column: _text(about) for column, about in made.items()}
        finished = gather(
            work.remote(table.uri, table.version, table.options, fragment, values, texts)
            for fragment in table.fragment_ids()
        )
        try:
            commit_columns(table, finished, commit_id, {"columns": list(made)}, MADE)
            return
        except OSError as error:
            if "conflict" not in str(error).lower():
                raise
    raise Datas3Error(
        f"table '{name}' was changed by another program each of the {ATTEMPTS} times that {', '.join(made)} were to be "
        "committed; run the same command again when that has ended."
    )


def _text(about: Mapping[str, Any]) -> str:
    return json.dumps(dict(about), sort_keys=True)


def _add(
    uri: str, version: int, options: StorageOptions | None, fragment: int, values: Any, made: dict[str, str]
) -> Finished:
    """The columns are new to the table: Lance itself adds them to the fragment."""
    dataset = open_dataset(uri, version, options)
    rows = dataset.get_fragment(fragment).to_table(columns=["id"])
    numbers = _of_fragment(values, fragment, rows)
    fields = [pa.field(name, numbers.schema.field(name).type, metadata={MADE: text}) for name, text in made.items()]
    batch = _beside(rows.column("id"), numbers, pa.schema(fields))
    reader = pa.RecordBatchReader.from_batches(batch.schema, [batch] if batch.num_rows else [])
    metadata, schema = open_dataset(uri, version, options).get_fragment(fragment).merge_columns(reader)
    return Finished(fragment, json.dumps(metadata.to_json()), schema_text(schema), {})


def _replace(
    uri: str, version: int, options: StorageOptions | None, fragment: int, values: Any, made: dict[str, str]
) -> Finished:
    """The columns are there: a new data file takes the place of the one that holds their values."""
    from lance.file import LanceFileWriter

    table = Table("", open_dataset(uri, version, options), options)
    piece = table.dataset.get_fragment(fragment)
    rows = piece.to_table(columns=["id"], with_row_address=True)
    schema = pa.schema([table.schema.field(name) for name in made])
    live = _beside(rows.column("id"), _of_fragment(values, fragment, rows), schema)
    # The file has a place for each deleted row too.
    at = np.full(piece.metadata.physical_rows, -1, np.int64)
    at[rows.column("_rowaddr").to_numpy().astype(np.int64) & OFFSET] = np.arange(rows.num_rows)
    first = piece.metadata.files[0]
    file = f"{uuid.uuid4().hex}.lance"
    writer = LanceFileWriter(
        f"{uri}/data/{file}",
        schema,
        version=f"{first.file_major_version}.{first.file_minor_version}",
        storage_options=options,
    )
    writer.write_batch(live.take(pa.array(at, mask=at < 0)))
    writer.close()
    filesystem, root = lake_filesystem(uri, options)
    size = int(filesystem.size(f"{root}/data/{file}"))
    ids = field_ids(table)
    return Finished(fragment, with_file(piece.metadata, [ids[name] for name in made], file, size), None, {})


def _of_fragment(values: Any, fragment: int, rows: pa.Table) -> pa.Table:
    return values(fragment, rows.column("id").combine_chunks()) if callable(values) else values


def _beside(ids: pa.ChunkedArray, numbers: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """The numbers of these rows in their order, null where there are none."""
    places = pc.index_in(ids.combine_chunks().cast(pa.string()), value_set=numbers.column("id").combine_chunks())
    arrays = [numbers.column(name).combine_chunks().take(places).cast(schema.field(name).type) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
