"""A selection as columns of its image table, for searches with a condition in plain LanceDB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake.pool import check_of
from datas3_ray.lake.row_columns import inputs_version, made_from, write_columns
from datas3_ray.lake.storage import StorageOptions
from datas3_ray.lake.view import Within, rows_with
from datas3_ray.runtime import ensure_ray

if TYPE_CHECKING:
    from datas3_ray.lake.selection import Selection
    from datas3_ray.lake.table import Table

KEEP = "keep"
_OTHER_NAME = "choose another name with `--as` (in Python `name=`)."
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def publish(selection: Selection, columns: Sequence[str] = (KEEP,), name: str | None = None) -> list[str]:
    """Write columns of the selection beside the rows of its image table; see :meth:`Selection.publish`."""
    table = selection.lake.image_table(str(selection.lineage()["table"]))
    check_of(selection, table)
    names = _names(selection, columns, name)
    made = {
        published: {"selection": selection.name, "column": column, "fingerprint": selection.fingerprint}
        for column, published in names.items()
    }
    for column, published in names.items():
        _check_free(table, published, selection, column)
    if any(made_from(table, published) != about for published, about in made.items()):
        ensure_ray()
        values = _Values(selection.within(table), names, selection.lake.options)
        write_columns(selection.lake, table.name, inputs_version(table), values, made)
    return list(made)


@dataclass(frozen=True)
class _Values:
    """What the tasks write beside the rows of a fragment: the selection's columns, under their names in the table."""

    selection: Within
    names: dict[str, str]
    options: StorageOptions | None

    def __call__(self, fragment: int, ids: pa.Array) -> pa.Table:
        found = rows_with(self.selection, fragment, ids, self.options, ["id", *self.names])
        return found.rename_columns(["id", *self.names.values()])


def _names(selection: Selection, columns: Sequence[str], name: str | None) -> dict[str, str]:
    """The selection's columns, each with its name in the image table."""
    start = re.sub(r"\W", "_", selection.name, flags=re.ASCII) if name is None else name
    if not _NAME.fullmatch(start):
        raise UsageError(
            f"a column cannot be called {start!r}: letters, digits and _ are allowed, and no digit at the start; "
            f"{_OTHER_NAME}"
        )
    there = [field for field in selection.table.schema.names if field != "id"]
    if not columns:
        raise UsageError(f"no column of selection '{selection.name}' is named; it has {', '.join(there)}.")
    for column in columns:
        if column not in there:
            raise UsageError(
                f"selection '{selection.name}' has no column '{column}' to publish; it has {', '.join(there)}."
                + did_you_mean(column, there)
            )
    return {column: start if column == KEEP else f"{start}_{column}" for column in columns}


def _check_free(table: Table, published: str, selection: Selection, column: str) -> None:
    """Raise a UsageError where the table has a column of that name that is not this one of an earlier publication."""
    twin = next((field for field in table.schema if field.name.lower() == published.lower()), None)
    if twin is None:
        return
    before = made_from(table, twin.name) or {}
    if twin.name != published or (before.get("selection"), before.get("column")) != (selection.name, column):
        raise UsageError(
            f"table '{table.name}' has a column '{twin.name}' already, which is not '{column}' of selection "
            f"'{selection.name}'; {_OTHER_NAME}"
        )
    if twin.type != selection.table.schema.field(column).type:
        raise UsageError(
            f"column '{published}' of table '{table.name}' is {twin.type}, and '{column}' of selection "
            f"'{selection.name}' is {selection.table.schema.field(column).type} now; {_OTHER_NAME}"
        )
