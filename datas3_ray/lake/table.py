"""One table of a lake at one version."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake.schemas import BORN, ENCODER, KIND, LINEAGE, vector_columns
from datas3_ray.lake.storage import StorageOptions

CONTENT = "datas3:content"
"""Key of a table's configuration: which change was the last one, kept when the versions that tell are pruned."""


class Table:
    """A table of a lake, pinned to a version; ``dataset`` is the plain Lance dataset beneath it."""

    def __init__(self, name: str, dataset: Any, options: StorageOptions | None = None) -> None:
        self.name = name
        self.dataset = dataset
        self.options = options

    @property
    def uri(self) -> str:
        """Where the table's Lance dataset is."""
        return str(self.dataset.uri)

    @property
    def version(self) -> int:
        """The version this handle reads."""
        return int(self.dataset.version)

    @cached_property
    def content_version(self) -> int:
        """The newest version in which a row or a value changed: what came after only moved rows or added columns.

        So an index, a compaction or another vector column makes no step stale that does not read it. Where a version
        between has been pruned, the one after it counts as a change.
        """
        return self.last_change()

    @property
    def content_mark(self) -> int | str:
        """What fingerprints know a table's rows by: :attr:`content_version`, and which table of this name it is."""
        return self.content_version if self.born is None else f"{self.born}:{self.content_version}"

    @property
    def born(self) -> str | None:
        """Tells it from a table that is made under its name once it is deleted; None where another program made it."""
        mark = (self.schema.metadata or {}).get(BORN)
        return mark.decode() if mark is not None else None

    def last_change(self, but_for: str | None = None) -> int:
        """As :attr:`content_version`; commits whose transaction has the property ``but_for`` count as no change."""
        import lance

        operations = lance.LanceOperation
        same = (operations.Rewrite, operations.CreateIndex, operations.UpdateConfig, operations.Merge)
        version, rewritten = self.version, False
        known = json.loads(self.dataset.config().get(CONTENT, "{}"))
        while version > 1:
            if version <= known.get("version", 0):
                return int(known["changed"][but_for or ""])
            try:
                transaction = self.dataset.read_transaction(version)
            except Exception:  # the engine has no one kind of error for a transaction that was pruned
                break
            operation = transaction.operation if transaction is not None else None
            # A compaction first reserves ids for its fragments, an operation that has no class of its own.
            reserved = rewritten and type(operation) is operations.BaseOperation
            passed = but_for is not None and but_for in (getattr(transaction, "transaction_properties", None) or {})
            if not isinstance(operation, same) and not reserved and not passed:
                break
            rewritten = isinstance(operation, operations.Rewrite)
            version -= 1
        return version

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the kind, lineage and encoders in its metadata."""
        return self.dataset.schema

    @property
    def kind(self) -> str:
        """What the table is: image, selection, results, ...; tables made by other programs count as image tables."""
        return (self.schema.metadata or {}).get(KIND, b"image").decode()

    def lineage(self) -> dict[str, Any]:
        """What made the table: method, parameters, the tables and versions it read."""
        return json.loads((self.schema.metadata or {}).get(LINEAGE, b"{}"))

    def count_rows(self, filter: str | None = None) -> int:
        """Rows, or rows that match a SQL predicate."""
        return int(self.dataset.count_rows(filter=filter))

    def fragment_ids(self) -> list[int]:
        """Ids of the table's fragments in row order."""
        return [fragment.fragment_id for fragment in self.dataset.get_fragments()]

    def vector_columns(self) -> dict[str, int]:
        """Vector columns and their dimensions."""
        return vector_columns(self.schema)

    def encoder(self, column: str) -> dict[str, Any]:
        """Identity of the encoder that made a vector column; empty where the vectors came from elsewhere."""
        return json.loads((self.schema.field(column).metadata or {}).get(ENCODER, b"{}"))

    def to_arrow(
        self, columns: list[str] | None = None, filter: str | None = None, limit: int | None = None
    ) -> pa.Table:
        """Rows as an Arrow table, in row order."""
        return self.dataset.to_table(columns=columns, filter=filter, limit=limit)

    def require_column(self, column: str) -> None:
        """Raise a UsageError when the table has no such column."""
        if column not in self.schema.names:
            raise UsageError(
                f"table '{self.name}' has no column '{column}'; it has: {', '.join(self.schema.names)}."
                + did_you_mean(column, self.schema.names)
            )

    def require_ids(self) -> None:
        """Raise a UsageError unless the rows have ids that are strings: tables that other programs made may not."""
        self.require_column("id")
        kind = self.schema.field("id").type
        if kind != pa.string():
            raise UsageError(
                f"column 'id' of table '{self.name}' is {kind}, and ids are strings; make the table anew with "
                "Lake.add, which casts them."
            )

    def require_vector(self, column: str) -> int:
        """Dimensions of a vector column; a UsageError says which vector columns there are when it is not one."""
        vectors = self.vector_columns()
        if column not in vectors:
            what = "is not a vector column" if column in self.schema.names else "is not there"
            known = ", ".join(f"{name} ({size})" for name, size in vectors.items()) or "none"
            raise UsageError(
                f"column '{column}' of table '{self.name}' {what}; its vector columns are: {known}."
                + did_you_mean(column, vectors)
            )
        return vectors[column]

    def __repr__(self) -> str:
        return f"Table({self.name!r}, version={self.version}, kind={self.kind!r})"
