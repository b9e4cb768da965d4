"""Vector columns that are being added to a table: what is finished is written down, and becomes visible in one commit.

Each finished fragment is a row of the table ``NAME.embed`` with the metadata of the fragment as it will be. Its new
data file lies in the image table's folder already, where no version refers to it yet. After the commit the rows are
cleared; what stays, in the lineage, is how many rows of each data file have no vector, so that a later run need not
look again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray import __version__
from datas3_ray.lake.references import EMBED_SUFFIX
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.storage import COMMIT_ID

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table

STAGED = pa.schema(
    [
        pa.field("fragment", pa.int64()),
        pa.field("mark", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("schema", pa.string()),
        pa.field("account", pa.string()),
        pa.field("created", pa.timestamp("us", tz="UTC")),
    ]
)

GONE = -2
"""What Lance has in place of a field's id in a data file whose values of it no longer count."""


@dataclass(frozen=True)
class Finished:
    """One fragment with its new column: ``metadata`` is None where it stays as it is.

    ``schema`` is the table's schema with the new columns (:func:`schema_text`), None where there are none. ``account``
    has ``rows``, ``vectors`` and ``nulls`` (alias -> count) and ``reasons`` (reason -> rows).
    """

    fragment: int
    metadata: str | None
    schema: str | None
    account: dict[str, Any]


class Stage:
    """The table ``NAME.embed`` of an image table."""

    def __init__(self, lake: Lake, table: str) -> None:
        self.lake = lake
        self.name = f"{table}{EMBED_SUFFIX}"

    def finished(self) -> dict[str, Finished]:
        """What a run that was cut short had finished, by mark."""
        if not self.lake.exists(self.name):
            return {}
        rows = self.lake.table(self.name).to_arrow().to_pylist()
        return {
            row["mark"]: Finished(row["fragment"], row["metadata"], row["schema"], json.loads(row["account"]))
            for row in rows
        }

    def record(self, finished: Mapping[str, Finished]) -> None:
        """Write fragments down, by mark."""
        now = datetime.now(timezone.utc)
        rows = [
            {
                "fragment": one.fragment,
                "mark": mark,
                "metadata": one.metadata,
                "schema": one.schema,
                "account": json.dumps(one.account),
                "created": now,
            }
            for mark, one in finished.items()
        ]
        if rows:
            self.lake.write(self.name, pa.Table.from_pylist(rows, STAGED), kind="ledger", mode="append")

    def known(self) -> dict[str, Any]:
        """What the last finished run left: ``encoders`` (alias -> fingerprint) and ``missing`` (alias -> data file ->
        rows without a vector)."""
        lineage = self.lake.table(self.name).lineage() if self.lake.exists(self.name) else {}
        return {"encoders": lineage.get("encoders", {}), "missing": lineage.get("missing", {})}

    def clear(
        self, table: str, encoders: Mapping[str, str], missing: Mapping[str, Any], report: Mapping[str, Any]
    ) -> None:
        """Forget the finished fragments, which are committed, and keep what is known of the columns."""
        lineage = {
            "method": "embed",
            "table": table,
            "encoders": dict(encoders),
            "missing": dict(missing),
            "report": dict(report),
            "code_version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.lake.write(self.name, STAGED.empty_table(), kind="ledger", lineage=lineage)


def mark_of(table: Table, metadata: Any, made: Mapping[str, Any]) -> str:
    """Changes when the fragment's rows, the table's columns or what is made of them change; deletions aside."""
    files = [[file.path, list(file.fields)] for file in metadata.files]
    columns = [[field.name(), field.id()] for field in table.dataset.lance_schema.fields()]
    return fingerprint({"fragment": metadata.id, "files": files, "columns": columns, "made": dict(made)})


def field_ids(table: Table) -> dict[str, int]:
    """Lance's ids of the table's columns."""
    return {field.name(): field.id() for field in table.dataset.lance_schema.fields()}


def file_of(metadata: Any, field: int) -> str | None:
    """The data file that holds a field of a fragment; None where the fragment came without that column."""
    return next((str(file.path) for file in metadata.files if field in file.fields), None)


def with_file(metadata: Any, fields: list[int], path: str, size: int) -> str:
    """A fragment's metadata (JSON) in which a new data file holds these fields, instead of whichever did."""
    value: dict[str, Any] = metadata.to_json()
    version = {key: value["files"][0][key] for key in ("file_major_version", "file_minor_version")}
    for file in value["files"]:
        file["fields"] = [GONE if field in fields else field for field in file["fields"]]
    kept = [file for file in value["files"] if any(field != GONE for field in file["fields"])]
    new = {"path": path, "fields": fields, "column_indices": list(range(len(fields))), "base_id": None}
    value["files"] = [*kept, {**new, **version, "file_size_bytes": size}]
    return json.dumps(value)


def commit_columns(
    table: Table, finished: Iterable[Finished], commit_id: str, report: Mapping[str, Any], what: str = "datas3:embed"
) -> bool:
    """Make finished columns visible in one transaction; False where there was nothing to commit.

    The transaction keeps the report as its property ``what``.

    Raises
    ------
    OSError
        "conflict", when another program changed the table meanwhile. Nothing is committed then.
    """
    import lance

    ready = {one.fragment: one for one in finished if one.metadata is not None}
    if not ready:
        return False
    schema = next((one.schema for one in ready.values() if one.schema), None)
    current = {fragment.fragment_id: fragment.metadata for fragment in table.dataset.get_fragments()}
    changed = {number: _as_it_will_be(current[number], one) for number, one in ready.items()}
    operation: Any
    if schema is not None:
        everything = [changed.get(number, metadata) for number, metadata in current.items()]
        operation = lance.LanceOperation.Merge(everything, schema_of(schema))
    else:
        fields = sorted({field for one in ready.values() for field in _new_fields(str(one.metadata))})
        operation = lance.LanceOperation.Update(
            updated_fragments=list(changed.values()), fields_modified=fields, update_mode="rewrite_columns"
        )
    transaction = lance.Transaction(
        read_version=table.version,
        operation=operation,
        transaction_properties={COMMIT_ID: commit_id, what: json.dumps(dict(report), sort_keys=True)},
    )
    lance.LanceDataset.commit(table.uri, transaction, storage_options=table.options)
    return True


def schema_text(schema: Any) -> str:
    """A Lance schema, with its field ids, as text."""
    metadata, *fields = schema.__reduce__()[1]
    return json.dumps([metadata, *(field.hex() for field in fields)])


def schema_of(text: str) -> Any:
    """The Lance schema of :func:`schema_text`."""
    from lance.schema import LanceSchema

    metadata, *fields = json.loads(text)
    return LanceSchema._from_protos(metadata, *(bytes.fromhex(field) for field in fields))


def _as_it_will_be(current: Any, one: Finished) -> Any:
    """Today's fragment with the finished files: rows deleted since the work was done stay deleted."""
    import lance

    value = current.to_json()
    value["files"] = json.loads(str(one.metadata))["files"]
    return lance.FragmentMetadata.from_json(json.dumps(value))


def _new_fields(metadata: str) -> list[int]:
    return list(json.loads(metadata)["files"][-1]["fields"])
