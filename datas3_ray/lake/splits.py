"""Splits: rows of a pool set aside as a query or a test set, and never part of the pool's selections."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.lake.schemas import fingerprint

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table


class Split(BaseModel):
    """Which rows of a pool to set aside.

    ``where`` is a SQL predicate. ``hash`` names a column and ``share`` is a range in [0, 1): a row belongs to the
    split when the hash of its value in that column, as a number in [0, 1), falls in the range. Equal values fall on
    the same side of every split with the same seed, so hashing by site, patient or emoji keeps them together.

    >>> Split(where="region = 'north'", hash="site", share=(0.8, 0.9)).share
    (0.8, 0.9)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str | None = None
    hash: str | None = None
    share: tuple[float, float] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Split:
        if self.where is None and self.hash is None:
            raise ValueError("a split needs 'where', or 'hash' with 'share', or both")
        if (self.hash is None) != (self.share is None):
            raise ValueError("'hash' and 'share' belong together")
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share must be [low, high] with 0 <= low < high <= 1, got {list(self.share)}")
        return self


def split_table(lake: Lake, pool_name: str, name: str, split: Split, *, replace: bool = False) -> Table:
    """Set rows of a pool aside as the image table ``name``.

    The rows are copied with their vectors (query and test sets are small), so that the new table opens in plain
    LanceDB like any other; the pool itself is not changed.

    Raises
    ------
    UsageError
        For an unknown column, a predicate that does not parse, a split with no rows, or a name that is taken.
    """
    started = time.perf_counter()
    pool = lake.image_table(pool_name)
    if split.hash is not None:
        pool.require_column(split.hash)
    identity = _identity(pool_name, split)
    mark = _mark(pool, split)
    if lake.exists(name):
        existing = lake.table(name)
        if existing.lineage().get("fingerprint") == mark:
            return existing
        if existing.lineage().get("method") != "split":
            raise UsageError(f"table '{name}' exists and is not a split; choose another name.")
        if not replace:
            raise UsageError(f"split '{name}' exists and was made otherwise; choose another name or pass replace=True.")
    rows = _rows(pool, split)
    if rows.num_rows == 0:
        raise UsageError(f"split '{name}' of table '{pool_name}' has no rows: {_describe(split)} matches nothing.")
    lineage: dict[str, Any] = {
        **identity,
        "fingerprint": mark,
        "inputs": {pool_name: pool.version},
        "counts": {"rows": pool.count_rows(), "kept": rows.num_rows},
        "seconds": round(time.perf_counter() - started, 3),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return lake.write(name, rows, kind="image", lineage=lineage)


def split_is_current(lake: Lake, pool_name: str, name: str, split: Split) -> bool:
    """Whether :func:`split_table` with the same arguments would do nothing."""
    if not lake.exists(name) or not lake.exists(pool_name):
        return False
    return lake.table(name).lineage().get("fingerprint") == _mark(lake.table(pool_name), split)


def splits_of(lake: Lake, pool: str) -> list[Table]:
    """Every table that was split off ``pool``."""
    tables = [lake.table(name) for name in lake.names("image")]
    return [table for table in tables if table.lineage().get("method") == "split" and table.lineage()["table"] == pool]


def split_versions(lake: Lake, pool: str) -> dict[str, int]:
    """Names of the tables split off ``pool``, and the versions in which their rows last changed."""
    return {table.name: table.content_version for table in splits_of(lake, pool)}


def held_out_ids(lake: Lake, pool: str) -> pa.Array | None:
    """Ids that no selection of ``pool`` may contain, or None where nothing was set aside."""
    columns = [table.to_arrow(["id"]).column("id") for table in splits_of(lake, pool)]
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.concat_arrays(chunks).unique() if chunks else None


def _identity(pool_name: str, split: Split) -> dict[str, Any]:
    return {"method": "split", "parameters": split.model_dump(mode="json"), "table": pool_name}


def _mark(pool: Table, split: Split) -> str:
    return fingerprint({**_identity(pool.name, split), "version": pool.content_version})


def _rows(pool: Table, split: Split) -> pa.Table:
    """The split's rows; the pool is streamed, and only they are held in memory."""
    chosen = []
    try:
        for batch in pool.dataset.scanner(filter=split.where).to_batches():
            rows = pa.Table.from_batches([batch])
            chosen.append(rows if split.hash is None else rows.filter(_inside(rows.column(split.hash), split)))
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"where = {split.where!r} does not work on table '{pool.name}': {reason}") from error
    return pa.concat_tables(chosen) if chosen else pool.schema.empty_table()


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
    return " and ".join(parts)
