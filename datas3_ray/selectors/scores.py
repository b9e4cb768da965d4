"""Numbers that rows have already, as the methods that cut by a score read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.lake.view import Fragment

if TYPE_CHECKING:
    from datas3_ray.lake import Table


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be ranked as numbers."""
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def require_number(table: Table, column: str) -> None:
    """Raise a UsageError unless ``column`` of the table holds numbers."""
    table.require_column(column)
    kind = table.schema.field(column).type
    if not is_number(kind):
        raise UsageError(f"column '{column}' of table '{table.name}' is {kind}; a column of numbers is needed.")


def as_stored(threshold: float, kind: pa.DataType) -> float:
    """A threshold as a column of this type would hold it, which SQL compares it as too.

    >>> as_stored(0.7, pa.float32()) < 0.7
    True
    """
    if not pa.types.is_floating(kind):
        return threshold
    with np.errstate(over="ignore"):
        return float(kind.to_pandas_dtype()(threshold))


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as float64, NaN where there is no value."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def scored(fragment: Fragment, column: str, *, finite: bool = False) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Eligible rows as (ids, float64 values of ``column``); rows without a number are left out and counted invalid.

    ``finite`` leaves infinities out too.
    """
    for rows in fragment.batches((column,)):
        values = numbers(rows.column(column))
        good = np.isfinite(values) if finite else ~np.isnan(values)
        fragment.counts.invalid += int((~good).sum())
        ids = rows.column("id").combine_chunks()
        yield (ids, values) if good.all() else (ids.filter(pa.array(good)), values[good])


def joined(batches: Iterator[tuple[pa.Array, np.ndarray]]) -> tuple[pa.Array, np.ndarray]:
    """Batches of ids and values as one; empty where there is none."""
    pieces = list(batches)
    if not pieces:
        return pa.array([], pa.string()), np.empty(0)
    return pa.concat_arrays([ids for ids, _ in pieces]), np.concatenate([values for _, values in pieces])


def taken(values: np.ndarray, places: pa.Array) -> np.ndarray:
    """Values at the places, NaN where a place is null."""
    at = pc.fill_null(places, -1).to_numpy(zero_copy_only=False)
    return np.where(at >= 0, values[at], np.nan) if len(values) else np.full(len(at), np.nan)
