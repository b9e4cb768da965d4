"""The query's vectors, as every query-driven method wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datas3_ray.errors import UsageError
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.schemas import matrix

if TYPE_CHECKING:
    from datas3_ray.lake import Table


def query_vectors(query: Table, column: str) -> tuple[np.ndarray, int]:
    """Unit vectors of a query table, float32 (m, d), and how many of its rows have none that can be used.

    Raises
    ------
    UsageError
        When no row of the query has a usable vector.
    """
    rows = query.to_arrow([column])
    unit, valid = normalize(matrix(rows.column(column)))
    if not valid.any():
        raise UsageError(f"query table '{query.name}' has no usable vector in column '{column}'.")
    return np.ascontiguousarray(unit[valid]), int((~valid).sum())
