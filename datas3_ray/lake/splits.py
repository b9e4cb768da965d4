"""Splits: rows of a pool set aside as a query or a test set, and never part of the pool's selections."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from datas3_ray.errors import UsageError, engine_reason
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.kernels.strata import match_counts
from datas3_ray.lake.lake import check_own_name
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.storage import TableExists

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table


class Split(BaseModel):
    """Which rows of a pool to set aside.

    ``where`` is a SQL predicate. ``hash`` names a column and ``share`` is a range in [0, 1): a row belongs to the
    split when the hash of its value in that column, as a number in [0, 1), falls in the range. Equal values fall on
    the same side of every split with the same seed, so hashing by site, patient or emoji keeps them together.

    ``rows`` takes only so many of those, drawn by a hash of (seed, id); where there are fewer, all of them, and the
    lineage says how many are missing. ``stratify`` names a column whose values they then have in the same shares as the
    table ``like`` (as the rows drawn from, where no table is named); rows without a value are not drawn.

    >>> Split(where="region = 'north'", hash="site", share=(0.8, 0.9)).share
    (0.8, 0.9)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str | None = None
    hash: str | None = None
    share: tuple[float, float] | None = None
    seed: int = Field(default=0, ge=0)
    rows: int | None = Field(default=None, ge=1)
    stratify: str | None = None
    like: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Split:
        if self.where is None and self.hash is None and self.rows is None:
            raise ValueError("a split needs 'where', or 'hash' with 'share', or 'rows'")
        if self.stratify is not None and self.rows is None:
            raise ValueError("'stratify' shares 'rows' out; say how many")
        if self.like is not None and self.stratify is None:
            raise ValueError("'like' needs 'stratify': the column whose values are to be distributed as in that table")
        if (self.hash is None) != (self.share is None):
            raise ValueError("'hash' and 'share' belong together")
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share must be [low, high] with 0 <= low < high <= 1, got {list(self.share)}")
        return self


def split_table(lake: Lake, pool_name: str, name: str, split: Split, *, replace: bool = False) -> Table:
    """Set rows of a pool aside as the image table ``name``.

    The rows are copied with their vectors (query and test sets are small), so that the new table opens in plain
    LanceDB like any other; the pool itself is not changed. A split that is there and was made in just this way gets
    the vector columns that the pool got since.

    Raises
    ------
    UsageError
        For an unknown column or table, a predicate that does not parse, a split with no rows, or a name that is taken.
    """
    started = time.perf_counter()
    check_own_name(name)
    pool = lake.image_table(pool_name)
    like = lake.image_table(split.like) if split.like is not None else None
    for table, column in ((pool, split.hash), (pool, split.stratify), (like, split.stratify)):
        if table is not None and column is not None:
            table.require_column(column)
    identity = _identity(pool_name, split)
    mark = _mark(pool, like, split)
    there = lake.exists(name)
    if there:
        existing = lake.table(name)
        if existing.lineage().get("fingerprint") == mark:
            lacking = lacking_vectors(pool, existing)
            if lacking:
                _add_vectors(pool, existing, lacking)
            return lake.table(name) if lacking else existing
        if existing.lineage().get("method") != "split":
            raise UsageError(f"table '{name}' exists and is not a split; choose another name.")
        if not replace:
            raise UsageError(f"split '{name}' exists and was made otherwise; choose another name or pass replace=True.")
    rows = _rows(pool, split, _drawn(pool, like, split) if split.rows is not None else None)
    if rows.num_rows == 0:
        raise UsageError(f"split '{name}' of table '{pool_name}' has no rows: {_describe(split)} matches nothing.")
    lineage: dict[str, Any] = {
        **identity,
        "fingerprint": mark,
        "inputs": {table.name: table.version for table in (pool, like) if table is not None},
        "counts": {
            "rows": pool.count_rows(),
            "kept": rows.num_rows,
            "shortfall": max(0, (split.rows or 0) - rows.num_rows),
        },
        "seconds": round(time.perf_counter() - started, 3),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        return lake.write(name, rows, kind="image", lineage=lineage, mode="overwrite" if there else "create")
    except TableExists:  # another program took the name meanwhile: it is judged as any that is taken
        return split_table(lake, pool_name, name, split, replace=replace)


def split_is_current(lake: Lake, pool_name: str, name: str, split: Split) -> bool:
    """Whether :func:`split_table` with the same arguments would do nothing."""
    if not has_its_rows(lake, pool_name, name, split):
        return False
    return not lacking_vectors(lake.table(pool_name), lake.table(name))


def has_its_rows(lake: Lake, pool_name: str, name: str, split: Split) -> bool:
    """Whether :func:`split_table` would leave the rows of ``name`` as they are: all that it might do is add columns."""
    if not all(lake.exists(each) for each in (name, pool_name, split.like) if each is not None):
        return False
    like = lake.table(split.like) if split.like is not None else None
    return lake.table(name).lineage().get("fingerprint") == _mark(lake.table(pool_name), like, split)


def lacking_vectors(pool: Table, split: Table) -> list[str]:
    """Vector columns of the pool that one of its splits has not, since it was made before them."""
    return [column for column in pool.vector_columns() if column not in split.schema.names]


def splits_of(lake: Lake, pool: str) -> list[Table]:
    """Every table that was split off ``pool``."""
    tables = lake.tables("image")
    return [table for table in tables if table.lineage().get("method") == "split" and table.lineage()["table"] == pool]


def content_marks(tables: list[Table]) -> dict[str, int | str]:
    """Names of tables, and what changes when their rows do."""
    return {table.name: table.content_mark for table in tables}


def held_out_ids(splits: list[Table]) -> pa.Array | None:
    """Ids that no selection of the pool of these splits may contain, or None where nothing was set aside."""
    columns = [table.to_arrow(["id"]).column("id") for table in splits]
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.concat_arrays(chunks).unique() if chunks else None


def _identity(pool_name: str, split: Split) -> dict[str, Any]:
    return {"method": "split", "parameters": split.model_dump(mode="json"), "table": pool_name}


def _mark(pool: Table, like: Table | None, split: Split) -> str:
    versions = {"version": pool.content_mark, **({"like": like.content_mark} if like is not None else {})}
    return fingerprint({**_identity(pool.name, split), **versions})


def _add_vectors(pool: Table, split: Table, columns: list[str]) -> None:
    """Copy vector columns by id, each field with what it says of its encoder. To a table's content that is no change.

    The pool is streamed, and only the split's rows are held in memory.
    """
    ids = split.to_arrow(["id"]).column("id").combine_chunks()
    wanted = ["id", *columns]
    batches = pool.dataset.scanner(columns=wanted).to_batches()
    chosen = [batch.filter(pc.is_in(batch.column("id"), value_set=ids)) for batch in batches]
    schema = pa.schema([pool.schema.field(name) for name in wanted])
    split.dataset.merge(pa.Table.from_batches(chosen, schema), "id")


def _rows(pool: Table, split: Split, ids: pa.Array | None = None, columns: list[str] | None = None) -> pa.Table:
    """The split's rows, or those of ``ids`` among them; the pool is streamed, and only they are held in memory."""
    chosen = []
    try:
        for batch in pool.dataset.scanner(columns=columns, filter=split.where).to_batches():
            rows = pa.Table.from_batches([batch])
            if ids is not None:
                rows = rows.filter(pc.is_in(rows.column("id"), value_set=ids))
            chosen.append(rows if split.hash is None else rows.filter(_inside(rows.column(split.hash), split)))
    except (ValueError, OSError) as error:
        reason = engine_reason(error)
        raise UsageError(f"where = {split.where!r} does not work on table '{pool.name}': {reason}") from error
    return pa.concat_tables(chosen) if chosen else pool.schema.empty_table()


def _drawn(pool: Table, like: Table | None, split: Split) -> pa.Array:
    """Ids of the rows to take: of each value of ``stratify`` those of smallest hash."""
    columns = {"id", *(column for column in (split.hash, split.stratify) if column is not None)}
    rows = _rows(pool, split, columns=sorted(columns))
    ids = rows.column("id").combine_chunks()
    if split.stratify is None:
        values, names = np.zeros(len(ids), np.int64), pa.array([""])
    else:
        text = rows.column(split.stratify).cast(pa.string()).combine_chunks()
        ids, text = ids.filter(text.is_valid()), text.drop_null()
        names = pa.array(sorted(text.unique().to_pylist()), pa.string())
        values = pc.index_in(text, value_set=names).to_numpy().astype(np.int64)
    sizes = np.bincount(values, minlength=len(names))
    target = sizes if like is None else _counts(like, str(split.stratify), names)
    if not len(ids) or not target.sum():
        return ids[:0]
    quotas = match_counts(target, sizes, int(split.rows or 0), "redistribute").rows
    draw = uniform(hash64(id_words(ids), seed=split.seed, stream="split:rows"))
    order = np.array(
        pc.sort_indices(
            pa.table({"value": values, "draw": draw, "id": ids}),
            [("value", "ascending"), ("draw", "ascending"), ("id", "ascending")],
        )
    )
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ids.take(pa.array(order[place < np.repeat(quotas, sizes)]))


def _counts(table: Table, column: str, names: pa.Array) -> np.ndarray:
    """How often each of the names occurs in a column."""
    found = pc.index_in(table.to_arrow([column]).column(column).cast(pa.string()), value_set=names).drop_null()
    return np.bincount(found.to_numpy(), minlength=len(names))


def _inside(values: pa.ChunkedArray, split: Split) -> pa.Array:
    """Mask of the values whose hash falls in the share; a row without a value has no side and stays in the pool."""
    text = values.cast(pa.string()).combine_chunks()
    present = text.is_valid().to_numpy(zero_copy_only=False)
    u = uniform(hash64(id_words(text.drop_null()), seed=split.seed, stream=f"split:{split.hash}"))
    low, high = split.share or (0.0, 1.0)
    inside = np.zeros(len(text), bool)
    inside[present] = (u >= low) & (u < high)
    return pa.array(inside)


def _describe(split: Split) -> str:
    parts = [f"where {split.where}"] if split.where else []
    if split.share:
        parts.append(f"hash of {split.hash} in [{split.share[0]}, {split.share[1]})")
    if split.stratify:
        parts.append(f"{split.stratify} as in {split.like}" if split.like else f"with {split.stratify}")
    return " and ".join(parts) or f"{split.rows} rows"
