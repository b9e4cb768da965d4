"""Indexes of an image table: which kind a column gets and why, built once and kept up to date.

LanceDB builds them, since both libraries read what it builds (pylance writes B-trees of a version that LanceDB passes
over on tables with stable row ids). Bringing one up to date adds the rows that came since, without training anew.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import Datas3Error, UsageError, did_you_mean
from datas3_ray.retry import failure

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table

# Statistics with every centroid are large, and Lance warns that it is about to leave them out.
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")

Kind = Literal["auto", "ivf_sq", "ivf_pq", "ivf_flat", "ivf_rq", "btree", "bitmap", "fts"]
KINDS: tuple[str, ...] = get_args(Kind)
VECTOR_KINDS = ("ivf_sq", "ivf_pq", "ivf_flat", "ivf_rq")

ROWS_WORTH_AN_INDEX = 100_000
"""Below this an exact search takes well under 150 ms and finds every neighbour."""

FEW_VALUES = 1000
PQ_ROWS = 256
_WHERE_AND_WHAT = ("uri", "offset", "length", "width", "height", "meta", "image", "sha256", "phash", "boxes")
_LANCE_KINDS = {"btree": "btree", "bitmap": "bitmap", "inverted": "fts", "fts": "fts"}


@dataclass(frozen=True)
class IndexReport:
    """What :func:`build_index` did to a column, and why.

    ``action`` is ``built``, ``updated`` (rows that came since were added), ``up to date`` or ``none`` (no index is
    wanted); with ``dry_run`` it is what would be done.
    """

    table: str
    column: str
    kind: str | None
    action: Literal["built", "updated", "up to date", "none"]
    why: str
    seconds: float = 0.0
    dry_run: bool = False

    def sentence(self) -> str:
        """The report for a person."""
        if self.action == "none":
            return f"no index on {self.column}: {self.why}."
        done: str = self.action
        if self.dry_run and self.action != "up to date":
            done = f"would be {self.action}"
        return f"{str(self.kind).upper()} on {self.column} {done}: {self.why}."


@dataclass(frozen=True)
class _Existing:
    name: str
    kind: str
    missing_rows: int


@dataclass(frozen=True)
class _Choice:
    kind: str | None
    why: str
    partitions: int = 0


def build_index(lake: Lake, name: str, column: str, kind: str = "auto", *, dry_run: bool = False) -> IndexReport:
    """Give a column an index, or bring the one it has up to date.

    ``auto`` gives vectors IVF_SQ with cosine distance, and none below 100,000 rows; ids, numbers and times a BTREE;
    columns of at most 1,000 different values a BITMAP; and ``caption`` a full-text index. An index that is there keeps
    its kind, unless another is named.

    Raises
    ------
    UsageError
        For an unknown table, column or kind, or a kind that the column's type cannot have.
    Datas3Error
        When Lance cannot build it; the sentence says why.
    """
    started = time.perf_counter()
    table = lake.image_table(name)
    table.require_column(column)
    if kind not in KINDS:
        raise UsageError(f"'{kind}' is no kind of index; it is one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    existing = _existing(table, column)
    if existing and kind in ("auto", existing.kind):
        return _refresh(lake, table, column, existing, dry_run, started)
    choice = _choose(table, column, kind)
    if choice.kind is None:
        return IndexReport(name, column, None, "none", choice.why, dry_run=dry_run)
    if not dry_run:
        _build(lake, table, column, choice)
    seconds = time.perf_counter() - started
    return IndexReport(name, column, choice.kind, "built", choice.why, seconds, dry_run)


def build_indexes(
    lake: Lake,
    name: str,
    columns: list[str] | None = None,
    kind: str = "auto",
    *,
    every: bool = False,
    dry_run: bool = False,
) -> list[IndexReport]:
    """:func:`build_index` for the named columns; by default the vectors, ``id`` and ``caption``, with ``every`` all
    columns that a filter is likely to name."""
    table = lake.image_table(name)
    if columns is None:
        columns = usual_columns(table, every=every)
    return [build_index(lake, name, column, kind, dry_run=dry_run) for column in columns]


def usual_columns(table: Table, *, every: bool = False) -> list[str]:
    """Columns of a table that get an index when none are named."""
    vectors = table.vector_columns()
    usual = [field.name for field in table.schema if field.name in ("id", "caption") or field.name in vectors]
    if not every:
        return usual
    others = (field.name for field in table.schema if field.name not in _WHERE_AND_WHAT and _orderable(field.type))
    return list(dict.fromkeys([*usual, *others]))


def partitions_for(rows: int) -> int:
    """How many partitions a vector index has: the power of two at or below the square root of the rows.

    >>> [partitions_for(rows) for rows in (1_000, 100_000, 200_000, 1_000_000, 50_000_000)]
    [16, 256, 256, 512, 4096]
    """
    return 1 << max(0, int(math.log2(max(1.0, math.sqrt(rows)))))


def _choose(table: Table, column: str, kind: str) -> _Choice:
    if column in table.vector_columns():
        return _choose_vector(table, column, kind)
    field = table.schema.field(column)
    if kind in VECTOR_KINDS:
        vectors = ", ".join(table.vector_columns()) or "none"
        raise UsageError(f"{kind} indexes vectors, and column '{column}' is {field.type}; vector columns: {vectors}.")
    if kind == "auto":
        return _choose_scalar(table, field)
    fits = _is_text(field.type) if kind == "fts" else _orderable(field.type)
    if not fits:
        raise UsageError(f"column '{column}' is {field.type} and cannot have an index of kind {kind}.")
    return _Choice(kind, "as asked")


def _choose_vector(table: Table, column: str, kind: str) -> _Choice:
    rows = table.count_rows()
    if kind not in ("auto", *VECTOR_KINDS):
        raise UsageError(f"column '{column}' holds vectors; its index is one of {', '.join(VECTOR_KINDS)}, not {kind}.")
    if kind == "auto" and rows < ROWS_WORTH_AN_INDEX:
        return _Choice(
            None, f"{rows} rows are searched exactly and fast; it pays from {ROWS_WORTH_AN_INDEX} rows (or name a kind)"
        )
    dimensions = table.vector_columns()[column]
    if kind in ("ivf_pq", "ivf_rq") and dimensions % 8:
        raise UsageError(f"{kind} needs a multiple of 8 dimensions, and '{column}' has {dimensions}; use ivf_sq.")
    # Streamed over, so that rows without a vector count for nothing.
    usable = table.count_rows(f"`{column}` IS NOT NULL")
    least = PQ_ROWS if kind == "ivf_pq" else 1
    if usable < least:
        raise UsageError(f"{kind} on '{column}' needs at least {least} vectors, and table '{table.name}' has {usable}.")
    partitions = partitions_for(usable)
    chosen = "ivf_sq" if kind == "auto" else kind
    reason = {
        "ivf_sq": "a quarter of the vectors' size, and all neighbours found with 20 probes and refine_factor 5",
        "ivf_pq": "a twenty-fifth of the vectors' size, and some neighbours lost",
        "ivf_rq": "a twenty-fifth of the vectors' size, built fast, and some neighbours lost",
        "ivf_flat": "the vectors as they are, the same size again",
    }[chosen]
    return _Choice(chosen, f"{usable} vectors, cosine, {partitions} partitions; {reason}", partitions)


def _choose_scalar(table: Table, field: pa.Field) -> _Choice:
    if field.name == "caption" and _is_text(field.type):
        return _Choice("fts", "captions are searched by their words")
    if not _orderable(field.type):
        raise UsageError(f"column '{field.name}' is {field.type}, for which there is no index.")
    if field.name == "id":
        return _Choice("btree", "ids are all different")
    if pa.types.is_boolean(field.type):
        return _Choice("bitmap", "a column of two values")
    if not (_is_text(field.type) or pa.types.is_integer(field.type)):
        return _Choice("btree", f"{field.type} values are asked for in ranges")
    values = _distinct(table, field.name)
    if values is not None:
        return _Choice("bitmap", f"{values} different values")
    return _Choice("btree", f"more than {FEW_VALUES} different values")


def _distinct(table: Table, column: str) -> int | None:
    """How many different values a column has; None where there are more than a few, without reading on."""
    seen: pa.Array = pa.array([], table.schema.field(column).type)
    for batch in table.dataset.scanner(columns=[column]).to_batches():
        seen = pc.unique(pa.concat_arrays([seen, batch.column(0)]))
        if len(seen) > FEW_VALUES:
            return None
    return len(seen)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _orderable(kind: pa.DataType) -> bool:
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or _is_text(kind) or pa.types.is_temporal(kind)


def _existing(table: Table, column: str) -> _Existing | None:
    """The column's index. Rows are missing from it when their fragment is in none of its segments."""
    for index in table.dataset.describe_indices():
        if list(index.field_names) == [column]:
            covered = {number for segment in index.segments for number in segment.fragment_ids}
            fragments = table.dataset.get_fragments()
            missing = sum(f.count_rows() for f in fragments if f.fragment_id not in covered)
            lance_kind = str(index.index_type).lower()
            return _Existing(index.name, _LANCE_KINDS.get(lance_kind, lance_kind), missing)
    return None


def _refresh(lake: Lake, table: Table, column: str, existing: _Existing, dry_run: bool, started: float) -> IndexReport:
    if not existing.missing_rows:
        return IndexReport(table.name, column, existing.kind, "up to date", "it covers every row", dry_run=dry_run)
    why = f"{existing.missing_rows} rows came since it was built"
    if not dry_run:
        _update(lake, table, column, existing)
    seconds = time.perf_counter() - started
    return IndexReport(table.name, column, existing.kind, "updated", why, seconds, dry_run)


def _update(lake: Lake, table: Table, column: str, existing: _Existing) -> None:
    rebuilt = existing.kind == "btree" and bool(table.dataset.has_stable_row_ids)
    if not rebuilt:
        try:
            table.dataset.optimize.optimize_indices(index_names=[existing.name])
            return
        except OSError:
            pass  # Lance cannot add rows of which not one has a vector to IVF_FLAT: it is built anew
    _build(lake, table, column, _choose(table, column, existing.kind))


def _build(lake: Lake, table: Table, column: str, choice: _Choice) -> None:
    import lancedb

    opened = lancedb.connect(lake.uri, storage_options=lake.options).open_table(table.name)
    try:
        opened.create_index(column, config=_config(table, column, choice), replace=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise Datas3Error(failure(f"{choice.kind} on column '{column}' of table '{table.name}'", error)) from error


def _config(table: Table, column: str, choice: _Choice) -> Any:
    from lancedb import index

    if choice.kind in ("btree", "bitmap", "fts"):
        return {"btree": index.BTree, "bitmap": index.Bitmap, "fts": index.FTS}[choice.kind]()
    common: dict[str, Any] = {"distance_type": "cosine", "num_partitions": choice.partitions}
    if choice.kind == "ivf_pq":
        return index.IvfPq(num_sub_vectors=table.vector_columns()[column] // 8, **common)
    return {"ivf_sq": index.IvfSq, "ivf_flat": index.IvfFlat, "ivf_rq": index.IvfRq}[str(choice.kind)](**common)
