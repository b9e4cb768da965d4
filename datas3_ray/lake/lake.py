"""A lake: a LanceDB database of image tables, selections and results."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake.schemas import ID, KINDS, MADE, RESULTS, with_kind
from datas3_ray.lake.storage import (
    Mode,
    StorageOptions,
    TableExists,
    commit,
    dataset_uri,
    is_local,
    open_dataset,
    take_back,
    write_fragments,
)
from datas3_ray.lake.table import Table

if TYPE_CHECKING:
    from datas3_ray.ingest import IngestSummary
    from datas3_ray.lake.selection import Selection

RESULTS_TABLE = "results"
OPENED_AT_ONCE = 16
"""Tables of an object store that are opened at a time when a lake is listed."""
_ENDINGS = (".ledger", ".quarantine", ".embed")
"""Of the tables that the project keeps beside one of the user's."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class Lake:
    """A folder or object-store prefix of Lance tables that also opens in plain ``lancedb.connect(uri)``.

    Parameters
    ----------
    uri : str or Path
        A folder (made when the first table is written) or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.
    storage_options : mapping, optional
        Credentials and endpoints for an object store, as LanceDB takes them. Never printed.

    Examples
    --------
    >>> import tempfile, pyarrow as pa
    >>> lake = Lake(tempfile.mkdtemp())
    >>> vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0, 0.0, 1.0], pa.float32()), 2)
    >>> lake.add("pool", pa.table({"id": ["a", "b"], "clip": vectors})).count_rows()
    2
    >>> lake.names()
    ['pool']
    """

    def __init__(self, uri: str | Path, storage_options: Mapping[str, str] | None = None) -> None:
        text = str(uri)
        if not text:
            raise UsageError("a lake needs a folder or an object-store uri, got an empty name.")
        self.uri = os.path.abspath(os.path.expanduser(text)) if is_local(text) else text.rstrip("/")
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise UsageError("storage_options must be keys and values, such as {aws_region: eu-west-1}.")
        # Lance takes texts only, and YAML has numbers and truths of its own.
        texts = {str(key): _option(value) for key, value in (storage_options or {}).items()}
        self.options: StorageOptions | None = texts or None

    # -- looking around ------------------------------------------------------------------------------------------

    def names(self, kind: str | None = None) -> list[str]:
        """Names of the tables, sorted; of one kind only when asked."""
        return [table.name for table in self.tables(kind)]

    def tables(self, kind: str | None = None) -> list[Table]:
        """The tables, each at its latest version, sorted by name; of one kind only when asked."""
        if is_local(self.uri):
            names = sorted(path.name[: -len(".lance")] for path in Path(self.uri).glob("*.lance"))
        else:
            import lancedb

            from datas3_ray.retry import with_backoff

            def listed() -> list[str]:
                return sorted(lancedb.connect(self.uri, storage_options=self.options).list_tables().tables)

            names = with_backoff(listed, f"listing the tables of {self.uri}")

        def opened(name: str) -> Table | None:
            dataset = open_dataset(dataset_uri(self.uri, name), options=self.options)
            return Table(name, dataset, self.options) if dataset is not None else None

        # A store takes a while to answer, but answers many at once.
        with ThreadPoolExecutor(1 if is_local(self.uri) else OPENED_AT_ONCE) as threads:
            tables = [table for table in threads.map(opened, names) if table is not None]
        return [table for table in tables if kind is None or table.kind == kind]

    def exists(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return open_dataset(dataset_uri(self.uri, name), options=self.options) is not None

    def kind(self, name: str) -> str:
        """What the table ``name`` is: image, selection, results, ..."""
        return self.table(name).kind

    def table(self, name: str, version: int | None = None) -> Table:
        """The table ``name``, pinned to its latest version or to ``version``.

        Raises
        ------
        UsageError
            When there is no such table; the sentence lists those there are.
        """
        dataset = open_dataset(dataset_uri(self.uri, name), version, self.options)
        if dataset is None:
            names = self.names()
            has = f"it has: {', '.join(names)}." if names else "it is empty."
            raise UsageError(f"no table '{name}' in lake {self.uri}; {has}{did_you_mean(name, names)}")
        return Table(name, dataset, self.options)

    def image_table(self, name: str) -> Table:
        """The table ``name``, which must hold images or vectors, not a selection or results."""
        table = self.table(name)
        if table.kind != "image":
            raise UsageError(f"'{name}' is a table of kind {table.kind}; an image table is needed here.")
        return table

    def selection(self, name: str) -> Selection:
        """The selection ``name``."""
        from datas3_ray.lake.selection import Selection

        table = self.table(name)
        if table.kind != "selection":
            selections = self.names("selection")
            raise UsageError(
                f"'{name}' is a table of kind {table.kind}, not a selection; selections here: "
                f"{', '.join(selections) or 'none'}.{did_you_mean(name, selections)}"
            )
        return Selection(self, table)

    def results(self, name: str = RESULTS_TABLE) -> pa.Table:
        """Every trial of every sweep, oldest first; empty before the first sweep."""
        if not self.exists(name):
            return RESULTS.empty_table()
        return with_missing_columns(self.table(name).to_arrow(), RESULTS)

    def append_results(self, rows: pa.Table, name: str = RESULTS_TABLE) -> None:
        """Add trials in one commit; a table made by an earlier version gets the columns that are new."""
        if self.exists(name):
            table = self.table(name)
            new = [field for field in rows.schema if field.name not in table.schema.names]
            if new:
                table.dataset.add_columns(pa.schema(new))
        self.write(name, rows, kind="results", mode="append")

    # -- writing -------------------------------------------------------------------------------------------------

    def add(self, name: str, rows: pa.Table) -> Table:
        """Append rows that already have vectors, making the table when it is new.

        ``rows`` needs a string column ``id``; list columns of equal length become searchable vectors of float32.
        Columns that were made from the table's rows (scores, published selections) may be left out.

        Raises
        ------
        UsageError
            When ids are missing, repeated or already in the table, or the columns are not those of the table.
            Nothing is written then.
        """
        check_own_name(name)
        rows = _with_id(name, _with_vectors(name, rows))
        existing = self.table(name) if self.exists(name) else None
        if existing is not None:
            rows = _like(existing, rows)
            _check_new_ids(existing, rows)
        schema = existing.schema if existing is not None else with_kind(rows.schema, "image")
        try:
            version = self._commit(name, rows, schema, "create" if existing is None else "append")
        except TableExists:
            return self.add(name, rows)  # another program made the table meanwhile: the rows have to fit that one
        if existing is not None and version > existing.version + 1:
            self._check_still_new(self.table(name, version - 1), rows)
        return self.table(name)

    def _check_still_new(self, before: Table, rows: pa.Table) -> None:
        """Of two programs that add the same ids at once, the one that came later takes its rows back."""
        try:
            _check_new_ids(before, rows)
        except UsageError:
            take_back(before.uri, before.version + 1, self.options)
            raise

    def ingest(
        self,
        name: str,
        *,
        source: dict[str, Any],
        encoders: dict[str, dict[str, Any]],
        progress: bool = True,
        **options: Any,
    ) -> IngestSummary:
        """Bring images into the table ``name``, each shard exactly once; see :class:`datas3_ray.ingest.IngestConfig`.

        ``source`` and ``encoders`` are written as in a recipe, ``options`` are the other fields of the configuration.
        """
        # The one short cut upwards: users hold a lake, and the room above does the work.
        from datas3_ray.ingest import ingest, parse_config

        config = parse_config({"source": source, "encoders": encoders, **options})
        return ingest(self, name, config, progress=progress)

    def write(
        self,
        name: str,
        rows: pa.Table,
        *,
        kind: str,
        lineage: dict[str, Any] | None = None,
        mode: Mode = "overwrite",
    ) -> Table:
        """Write a small table from this process in one commit; ``append`` makes the table where there is none.

        Raises TableExists where the table is there that was to be ``create``d.
        """
        check_name(name)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        existing = self.table(name) if self.exists(name) else None
        schema = with_kind(rows.schema, kind, lineage, existing.born if existing is not None else None)
        if mode == "append" and existing is None:
            with suppress(TableExists):  # another program made it meanwhile: the rows come to what it wrote
                self._commit(name, rows, schema, "create")
                return self.table(name)
        self._commit(name, rows, schema, mode)
        return self.table(name)

    def _commit(self, name: str, rows: pa.Table, schema: pa.Schema, mode: Mode) -> int:
        uri = dataset_uri(self.uri, name)
        fragments = write_fragments(rows, uri, append=mode == "append", options=self.options)
        return commit(uri, fragments, schema, mode=mode, commit_id=uuid.uuid4().hex, options=self.options)

    def __repr__(self) -> str:
        return f"Lake({self.uri!r})"


def _option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_missing_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with every column of the schema, null where they had none, in its order; others follow."""
    for field in schema:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows.select([*schema.names, *(name for name in rows.schema.names if name not in schema.names)])


def check_name(name: str) -> None:
    """Raise a UsageError unless ``name`` can name a table."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{str(name)!r} cannot name a table: use letters, digits, '_', '-' and '.', not starting with '.'."
        )


def check_own_name(name: str) -> None:
    """Raise a UsageError unless ``name`` can name a table of the user's: some are those of the project's own tables."""
    check_name(name)
    if name == RESULTS_TABLE or name.endswith(_ENDINGS):
        raise UsageError(f"'{name}' is a name that the lake keeps for a table of its own; choose another name.")


def _with_vectors(name: str, rows: pa.Table) -> pa.Table:
    """List columns of floats with one length everywhere become fixed-size lists, so that LanceDB can search them.

    Vectors of doubles become such of floats; so large a number that none holds it makes its row's vector unusable.
    """
    for position, field in enumerate(rows.schema):
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_float64(field.type.value_type):
            vector = pa.list_(pa.float32(), field.type.list_size)
            column = rows.column(position).cast(vector)
            rows = rows.set_column(position, pa.field(field.name, vector, metadata=field.metadata), column)
            continue
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        if not is_list or not pa.types.is_floating(field.type.value_type):
            continue
        column = rows.column(position)
        lengths = pc.unique(pc.list_value_length(column.drop_null())).to_pylist()
        if len(lengths) != 1 or lengths[0] == 0:
            raise UsageError(
                f"column '{field.name}' of the rows for table '{name}' holds lists of lengths {sorted(lengths)[:5]}; "
                "a vector column needs one length for every row."
            )
        vector = pa.list_(pa.float32(), lengths[0])
        rows = rows.set_column(position, pa.field(field.name, vector, metadata=field.metadata), column.cast(vector))
    return rows


def _with_id(name: str, rows: pa.Table) -> pa.Table:
    if "id" not in rows.schema.names:
        raise UsageError(f"the rows for table '{name}' need a string column 'id'; they have: {rows.schema.names}.")
    ids = rows.column("id").cast(pa.string())
    if ids.null_count:
        raise UsageError(f"the rows for table '{name}' have {ids.null_count} missing ids; every row needs one.")
    broken = pc.filter(ids, pc.match_substring(ids, "\0"))
    if len(broken):
        raise UsageError(f"the rows for table '{name}' have an id with a NUL byte: {broken[0].as_py()!r}.")
    counts = pc.value_counts(ids)
    repeated = pc.filter(counts.field(0), pc.greater(counts.field(1), 1))
    if len(repeated):
        raise UsageError(f"the rows for table '{name}' repeat {len(repeated)} ids, '{repeated[0]}' for one.")
    return rows.set_column(rows.schema.get_field_index("id"), ID, ids)


def _like(existing: Table, rows: pa.Table) -> pa.Table:
    """The rows in the table's own column order and types, or a sentence that says where they differ."""
    for field in existing.schema:
        if field.name not in rows.schema.names and MADE.encode() in (field.metadata or {}):
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))  # made from rows, later than these
    want, have = set(existing.schema.names), set(rows.schema.names)
    if want != have:
        raise UsageError(
            f"the rows do not fit table '{existing.name}': missing columns {sorted(want - have) or 'none'}, "
            f"unknown columns {sorted(have - want) or 'none'}."
        )
    for column, size in existing.vector_columns().items():
        got = rows.schema.field(column).type
        if pa.types.is_fixed_size_list(got) and got.list_size != size:
            raise UsageError(
                f"column '{column}' of table '{existing.name}' has {size} dimensions and the rows have {got.list_size}."
            )
    try:
        return rows.select(existing.schema.names).cast(existing.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"the rows do not fit the types of table '{existing.name}': {error}") from error


def _check_new_ids(existing: Table, rows: pa.Table) -> None:
    ids = rows.column("id").combine_chunks()
    for batch in existing.dataset.scanner(columns=["id"]).to_batches():
        there = pc.filter(batch.column("id"), pc.is_in(batch.column("id"), value_set=ids))
        if len(there):
            raise UsageError(f"id '{there[0]}' is already in table '{existing.name}'; nothing was added.")
