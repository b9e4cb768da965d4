"""Captions as the table filters read them: texts, their language, and columns that must hold either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError

if TYPE_CHECKING:
    from datas3_ray.lake import Table


def require_text(table: Table, column: str) -> None:
    """Raise a UsageError unless ``column`` of the table holds texts."""
    table.require_column(column)
    kind = table.schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise UsageError(f"column '{column}' of table '{table.name}' is {kind}; texts are needed.")


def texts(rows: pa.Table, column: str) -> list[str | None]:
    """The texts of a column, None where there is none."""
    return rows.column(column).cast(pa.string()).to_pylist()


def in_language(rows: pa.Table, column: str | None, language: str) -> np.ndarray:
    """Mask of the rows whose language column says ``language``, in upper or lower case; of all where there is none."""
    if column is None:
        return np.ones(rows.num_rows, bool)
    wanted = language.casefold()
    return np.array([text is not None and text.casefold() == wanted for text in texts(rows, column)], bool)
