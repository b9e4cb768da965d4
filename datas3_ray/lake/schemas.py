"""What the tables of a lake look like, and the metadata that says what each of them is."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import pyarrow as pa

KIND = b"datas3:kind"
LINEAGE = b"datas3:lineage"
ENCODER = b"datas3:encoder"

BORN = b"datas3:born"
"""Tells a table from one that is made under its name after it was deleted: the versions of both begin at 1."""

MADE = "datas3:numbers"
"""Key of what a column's field keeps about values that were made from the table's rows, and property of the commits
that write such columns."""

KINDS = ("image", "quarantine", "ledger", "selection", "centroids", "assignments", "results")

# Non-null and an unenforced primary key: without both, concurrent merges of the same ids duplicate rows.
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
ID = pa.field("id", pa.string(), nullable=False, metadata=PRIMARY_KEY)

IMAGE_FIELDS = (
    ID,
    pa.field("uri", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("length", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
)

QUARANTINE = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("shard", pa.string()),
        # The row id that the image would have; null for a line of a whole shard, and in tables of earlier versions.
        pa.field("id", pa.string()),
    ]
)

LEDGER = pa.schema(
    [
        # Non-null and a primary key: of two runs that claim a shard at once, one gets it.
        pa.field("shard", pa.string(), nullable=False, metadata=PRIMARY_KEY),
        pa.field("config", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("samples", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("rejects", pa.int64()),
        pa.field("fragments", pa.string()),
        pa.field("quarantine_fragments", pa.string()),
        # Of a shard that is a list of files: each file's row id and content.
        pa.field("items", pa.list_(pa.struct([pa.field("id", pa.string()), pa.field("fingerprint", pa.string())]))),
        # SQL predicates on the image and quarantine tables: the rows of the shard's earlier content.
        pa.field("replaces", pa.string()),
        pa.field("replaces_rejects", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("commit", pa.string()),
        pa.field("state", pa.string()),
        pa.field("created", pa.timestamp("us", tz="UTC")),
    ]
)

RESULTS = pa.schema(
    [
        pa.field("trial", pa.string()),
        pa.field("run", pa.string()),
        pa.field("deployment", pa.string()),
        pa.field("method", pa.string()),
        pa.field("selection", pa.string()),
        pa.field("selection_fingerprint", pa.string()),
        pa.field("model", pa.string()),
        pa.field("vector", pa.string()),
        pa.field("hyperparameters", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("metric", pa.string()),
        pa.field("higher_is_better", pa.bool_()),
        pa.field("validation", pa.float64()),
        pa.field("test", pa.float64()),
        pa.field("best", pa.bool_()),
        pa.field("subset_size", pa.int64()),
        pa.field("pool_size", pa.int64()),
        pa.field("train_rows", pa.int64()),
        pa.field("missing_classes", pa.int64()),
        pa.field("test_rows", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("checkpoint", pa.string()),
        pa.field("lineage", pa.string()),
        pa.field("created", pa.timestamp("us", tz="UTC")),
        pa.field("task", pa.string()),
        # Where the weights come from: scratch, or a file or hub name.
        pa.field("start", pa.string()),
        # done, stopped (early, by the search) or failed, and then the error.
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        # 95% of the scores of resampled test tables lie between these.
        pa.field("test_low", pa.float64()),
        pa.field("test_high", pa.float64()),
        # What the winner was chosen on: validation, query or test.
        pa.field("chosen_on", pa.string()),
        # The test metric over the rows of classes that the training rows have, as published results count, and how many
        # rows that leaves out. The score is null where no row is left, both are in tables of earlier versions.
        pa.field("test_seen", pa.float64()),
        pa.field("test_dropped", pa.int64()),
    ]
)


def vector_field(name: str, dimensions: int, encoder: dict[str, Any] | None = None) -> pa.Field:
    """A searchable vector column: ``fixed_size_list<float32, dimensions>`` with its encoder's identity in the metadata.

    >>> vector_field("lite", 4).type
    FixedSizeListType(fixed_size_list<item: float>[4])
    """
    metadata = {ENCODER: json.dumps(encoder, sort_keys=True).encode()} if encoder else None
    return pa.field(name, pa.list_(pa.float32(), dimensions), metadata=metadata)


def vector_columns(schema: pa.Schema) -> dict[str, int]:
    """Vector columns of a schema and their dimensions, in schema order."""
    found = {}
    for field in schema:
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
            found[field.name] = field.type.list_size
    return found


def with_kind(
    schema: pa.Schema, kind: str, lineage: dict[str, Any] | None = None, born: str | None = None
) -> pa.Schema:
    """The schema with its kind and lineage written into its metadata, and which table of its name it is: a new one."""
    metadata = dict(schema.metadata or {})
    metadata[KIND] = kind.encode()
    metadata[BORN] = (born or uuid.uuid4().hex).encode()
    if lineage is not None:
        metadata[LINEAGE] = json.dumps(lineage, sort_keys=True).encode()
    return schema.with_metadata(metadata)


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that change when the value (anything JSON can hold) changes.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def matrix(column: pa.ChunkedArray | pa.Array) -> Any:
    """A vector column as a numpy matrix (rows, dimensions), zero-copy where the column is one chunk without nulls.

    Null vectors become rows of NaN, so that they are found invalid and never silently dropped.
    """
    import numpy as np

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    dimensions = column.type.list_size
    if column.null_count == 0:
        values = column.flatten()
        if values.null_count == 0:
            return values.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    out = np.full((len(column), dimensions), np.nan, dtype=column.type.value_type.to_pandas_dtype())
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    kept = column.drop_null()
    # A null inside a vector arrives as NaN from to_numpy: the row is then invalid, as it should be.
    out[valid] = kept.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return out
