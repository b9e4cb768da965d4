"""The table that a selection was made from, as it was then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datas3_ray.errors import UsageError

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.selection import Selection
    from datas3_ray.lake.table import Table


def pool_then(lake: Lake, selection: Selection) -> Table:
    """The pool of a selection at the version that it read; the newest where the lineage does not say which.

    Raises
    ------
    UsageError
        When the version is no longer there, or the table was deleted and made anew: versions count from 1 again, so one
        of that number holds other rows.
    """
    lineage = selection.lineage()
    name = str(lineage["table"])
    newest = lake.table(name)
    version = lineage.get("inputs", {}).get(name)
    try:
        then = newest if version in (None, newest.version) else lake.table(name, int(version))
    except UsageError:
        then = None
    check_of(selection, then or newest)
    if then is None:
        raise UsageError(
            f"selection '{selection.name}' was made from version {version} of table '{name}', which is no "
            "longer there; make the selection again."
        )
    return then


def check_of(selection: Selection, table: Table) -> None:
    """Raise a UsageError for a table that took the name of the selection's pool."""
    if not may_be_of(selection, table):
        raise UsageError(
            f"table '{table.name}' was deleted and made anew since selection '{selection.name}' was made from it; make "
            "the selection again."
        )


def may_be_of(selection: Selection, table: Table) -> bool:
    """False for a table that took the name of the selection's pool; those made by hand do not say what they are of."""
    return "born" not in selection.lineage() or selection.is_of(table)
