"""Nearest neighbours of a row, by exact search in Lance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from datas3_ray.errors import UsageError, engine_reason
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.storage import sql_string
from datas3_ray.lake.view import usable

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake

_SHOWN = ("id", "label", "caption")


def nearest_rows(
    lake: Lake, table: str, like: str, *, column: str | None = None, where: str | None = None, limit: int = 10
) -> pa.Table:
    """The rows nearest to the row ``like`` by cosine distance; columns id, label, caption, _distance.

    Itself is first, where ``where`` allows it, then the others by their distance; those of one distance by id, though
    which of them are the last of ``limit`` rows is left to the search.

    Raises
    ------
    UsageError
        When there is no such row or vector column, its vector has no direction, or ``where`` does not parse.
    """
    opened = lake.image_table(table)
    vectors = opened.vector_columns()
    if column is None:
        if len(vectors) != 1:
            raise UsageError(f"table '{table}' has the vector columns {', '.join(vectors) or 'none'}; name one.")
        column = next(iter(vectors))
    opened.require_vector(column)
    row = opened.to_arrow([column], filter=f"id = {sql_string(like)}", limit=1)
    if row.num_rows == 0 or row.column(column).null_count:
        raise UsageError(f"table '{table}' has no row '{like}' with a vector in column '{column}'.")
    vector = matrix(row.column(column))[0]
    if not usable(vector[None])[0]:
        raise UsageError(f"the vector of row '{like}' in column '{column}' has no direction: it is 0, or no number.")
    shown = [name for name in _SHOWN if name in opened.schema.names]
    query = {"column": column, "q": vector, "metric": "cosine", "use_index": False}

    def search(rows: str, count: int) -> pa.Table:
        wanted = rows if where is None else f"({where}\n) AND {rows}"
        nearest = {**query, "k": count}
        return opened.dataset.to_table(columns=[*shown, "_distance"], nearest=nearest, filter=wanted, prefilter=True)

    try:
        itself = search(f"id = {sql_string(like)}", 1)
        others = search(f"id != {sql_string(like)}", limit)
        by_distance = [("_distance", "ascending"), ("id", "ascending")]
        return pa.concat_tables([itself, others.sort_by(by_distance)]).slice(0, limit)
    except (ValueError, OSError) as error:
        raise UsageError(f"where = {where!r} does not work on table '{table}': {engine_reason(error)}") from error
