"""Work on all rows with one key together, whatever parts they are in, and bring the answers back in row order.

Parts are narrow tables with a column of 64-bit keys. Groups of parts are dealt into buckets by a hash of the key; a
task a bucket works on the rows of every part; its answers go back to the group that each row came from. What travels
is the parts' own columns and the answers', and the number of objects is bounded however many parts there are.

One key's rows are in one bucket, so parts should hold few rows of one key: reduce each part first where keys repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datas3_ray.runtime import remote

BUCKET_ROWS = 500_000
"""Rows that one task works on, about, as long as there are not too many buckets."""
MAX_BUCKETS = 256
MAX_OBJECTS = 16_384
"""Objects in the store for one exchange, about: parts are dealt in groups so that there are no more."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Deal:
    """How many buckets there are, and which column decides."""

    key: str
    buckets: int

    def bucket(self, rows: pa.Table) -> np.ndarray:
        """The bucket of each row: int64, the same for equal keys."""
        keys = rows.column(self.key).to_numpy().astype(np.uint64, copy=False)
        mixed = (keys ^ (keys >> np.uint64(32))) * _MIX
        return ((mixed >> np.uint64(32)) % np.uint64(self.buckets)).astype(np.int64)


def exchange(
    parts: list[Any],
    rows: int,
    work: Callable[..., pa.Table],
    *args: Any,
    key: str = "key",
    beside: list[Any] | None = None,
) -> list[Any]:
    """References to answers aligned to ``parts``: row i of an answer belongs to row i of its part.

    Parameters
    ----------
    parts : list of references to pyarrow.Table
    rows : int
        Rows of all parts, about.
    work : callable
        ``work(rows, *args)`` gets every row of a bucket and returns a table with one row for each, in that order;
        ``work(rows, others, *args)`` where there are parts ``beside``.
    key : str
        Column of unsigned integers; rows with one key meet in one call of ``work``.
    beside : list of references to pyarrow.Table, optional
        Rows that meet the parts' rows with the same key and get no answer.
    """
    deal = Deal(key, _buckets(rows, BUCKET_ROWS))
    groups = _groups(parts, deal.buckets)
    dealt = _dealt(groups, deal)
    others = _dealt(_groups(beside, deal.buckets), deal) if beside is not None else []
    run = remote(_work).options(num_returns=len(groups), num_cpus=1)
    answers = []
    for bucket in range(deal.buckets if groups else 0):
        mine = [pieces[bucket] for pieces in dealt]
        theirs = [pieces[bucket] for pieces in others]
        given = (len(args), len(mine), beside is not None)
        answers.append(_as_list(run.remote(work, given, *args, *mine, *theirs), len(groups)))
    aligned: list[Any] = []
    for number, group in enumerate(groups):
        collect = remote(_collect).options(num_returns=len(group), num_cpus=1)
        mine = [answer[number] for answer in answers]
        aligned += _as_list(collect.remote(deal, len(group), *group, *mine), len(group))
    return aligned


def reduce_buckets(
    parts: list[Any], rows: int, work: Callable[..., Any], *args: Any, key: str = "key", bucket_rows: int = BUCKET_ROWS
) -> list[Any]:
    """References to ``work(rows, *args)`` of every bucket, for work that answers nothing row by row."""
    if not parts:
        return []
    deal = Deal(key, _buckets(rows, bucket_rows))
    dealt = _dealt(_groups(parts, deal.buckets), deal)
    run = remote(_reduce).options(num_cpus=1)
    return [run.remote(work, len(args), *args, *(pieces[bucket] for pieces in dealt)) for bucket in range(deal.buckets)]


def _buckets(rows: int, bucket_rows: int) -> int:
    return max(1, min(MAX_BUCKETS, -(-rows // bucket_rows)))


def _groups(parts: list[Any], buckets: int) -> list[list[Any]]:
    """Parts in order, so many together that groups times buckets stays bounded."""
    count = max(1, min(len(parts), MAX_OBJECTS // buckets))
    size = -(-len(parts) // count)
    return [parts[start : start + size] for start in range(0, len(parts), size)] if parts else []


def _dealt(groups: list[list[Any]], deal: Deal) -> list[list[Any]]:
    task = remote(_deal).options(num_returns=deal.buckets, num_cpus=1)
    return [_as_list(task.remote(deal, *group), deal.buckets) for group in groups]


def _as_list(returned: Any, count: int) -> list[Any]:
    return [returned] if count == 1 else list(returned)


def _one(tables: list[Any]) -> Any:
    return tables[0] if len(tables) == 1 else tuple(tables)


def _deal(deal: Deal, *parts: pa.Table) -> Any:
    rows = pa.concat_tables(parts)
    if deal.buckets == 1:
        return rows
    bucket = deal.bucket(rows)
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(deal.buckets + 1))
    return tuple(rows.take(pa.array(order[ends[b] : ends[b + 1]])) for b in range(deal.buckets))


def _work(work: Callable[..., pa.Table], given: tuple[int, int, bool], *rest: Any) -> Any:
    arguments, own, has_others = given
    args, tables = rest[:arguments], rest[arguments:]
    mine = pa.concat_tables(tables[:own])
    others = (pa.concat_tables(tables[own:]),) if has_others else ()
    answer = work(mine, *others, *args)
    if answer.num_rows != mine.num_rows:
        raise ValueError(f"{mine.num_rows} rows got {answer.num_rows} answers")
    starts = np.cumsum([0, *(table.num_rows for table in tables[:own])])
    return _one([answer.slice(int(a), int(b - a)) for a, b in zip(starts[:-1], starts[1:], strict=True)])


def _reduce(work: Callable[..., Any], arguments: int, *rest: Any) -> Any:
    return work(pa.concat_tables(rest[arguments:]), *rest[:arguments])


def _collect(deal: Deal, count: int, *tables: pa.Table) -> Any:
    parts = tables[:count]
    # The types of an answer to no rows are whatever its columns were made of.
    answers = pa.concat_tables([table for table in tables[count:] if table.num_rows] or tables[count : count + 1])
    if deal.buckets > 1:
        # The answers come bucket by bucket, in each in the order of the rows: the order in which they were dealt.
        order = np.argsort(np.concatenate([deal.bucket(part) for part in parts]), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        answers = answers.take(pa.array(place))
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    return _one([answers.slice(int(a), int(b - a)) for a, b in zip(starts[:-1], starts[1:], strict=True)])
