"""Columns that a source fills by itself, and that a recipe therefore cannot map."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.sources.columns import Columns


def check_not_mapped(columns: Columns, own: Iterable[pa.Field]) -> None:
    """Raises UsageError where a recipe maps something to a name that is the source's own, in any case of letters.

    >>> check_not_mapped(Columns.parse({"Speed": "row.speed"}), [pa.field("speed", pa.float64())])
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: columns: 'Speed' is a column that this source fills itself; choose another name.
    """
    names = {field.name.lower() for field in own}
    for column in columns.mapped:
        if column.name.lower() in names:
            raise UsageError(
                f"columns: {column.name!r} is a column that this source fills itself; choose another name."
            )
