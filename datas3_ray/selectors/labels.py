"""Labels of a pool and of a query, as the methods that look at classes read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.lake.view import Fragment

if TYPE_CHECKING:
    from datas3_ray.lake import Table


def require_labels(table: Table, column: str) -> None:
    """Raise a UsageError unless ``column`` of the table holds names or whole numbers."""
    table.require_column(column)
    kind = table.schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    texts = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    if not (texts or types.is_integer(value) or types.is_boolean(value)):
        raise UsageError(f"column '{column}' of table '{table.name}' is {kind}; labels are texts or whole numbers.")


def label_counts(table: Table, column: str) -> tuple[dict[str, int], int]:
    """How often each label occurs in a table, sorted by label, and how many rows have none. Streams the column."""
    counts: Counter[str] = Counter()
    missing = 0
    for batch in table.dataset.scanner(columns=[column]).to_batches():
        labels = as_texts(batch.column(column))
        missing += labels.null_count
        tally = pc.value_counts(labels.drop_null())
        counts.update(dict(zip(tally.field(0).to_pylist(), tally.field(1).to_pylist(), strict=True)))
    return dict(sorted(counts.items())), missing


def query_labels(query: Table, column: str) -> tuple[dict[str, int], int]:
    """As :func:`label_counts`; a UsageError where no row of the query has a label."""
    counts, missing = label_counts(query, column)
    if not counts:
        raise UsageError(f"query table '{query.name}' has no row with a label in column '{column}'.")
    return counts, missing


def labelled(fragment: Fragment, column: str) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Eligible rows with a label, and their labels as texts; rows without one are left out and counted invalid."""
    for rows in fragment.batches((column,)):
        labels = as_texts(rows.column(column))
        if labels.null_count:
            fragment.counts.invalid += labels.null_count
            there = labels.is_valid()
            rows, labels = rows.filter(there), labels.filter(there)
        yield rows, labels


def classed(fragment: Fragment, column: str, classes: pa.Array) -> pa.Table:
    """Eligible rows with a label: ``id``, and ``group``, the place of the label in ``classes`` or -1 (int32)."""
    ids, groups = [], []
    for rows, labels in labelled(fragment, column):
        ids.append(rows.column("id").combine_chunks())
        groups.append(class_numbers(labels, classes))
    return pa.table({"id": pa.chunked_array(ids, pa.string()), "group": pa.chunked_array(groups, pa.int32())})


def class_numbers(labels: pa.Array, classes: pa.Array) -> pa.Array:
    """The place of each label in ``classes``, int32; -1 for one that is not there."""
    return pc.fill_null(pc.index_in(labels, value_set=classes), pa.scalar(-1, pa.int32()))


def absent(classes: list[str], sizes: np.ndarray) -> dict[str, object]:
    """For a report: how many of the query's classes the pool has no row of, and the first twenty of them by name."""
    missing = [name for name, size in zip(classes, sizes, strict=True) if not size]
    return {"missing_classes": len(missing), "missing": missing[:20]}


def as_texts(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Labels of any type as texts, in one piece."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.cast(pa.string())
