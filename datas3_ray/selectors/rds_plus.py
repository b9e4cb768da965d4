"""RDSPlus: the query's images take turns choosing from the pool (arXiv 2503.01807)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.neighbours import Lists
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.kernels.round_robin import RoundRobin
from datas3_ray.lake.view import Mapped
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector, Size, score_table
from datas3_ray.selectors.neighbour_lists import NeighbourSearch, ordered_queries, sample_floor

ENTRIES = 1 << 23
"""Pairs of a query and a row that one pass over the table may return to the driver."""
_LEAST_LIST = 256
_SPARE_RANKS = 6


class RDSPlus(Selector):
    """Round robin: each query image in turn takes the most similar row that is not taken yet, until ``size`` are.

    A query whose best row was taken by another skips to its next one and does not lose its turn. Queries take turns
    in the order of their ids; of equally similar rows the smaller id is taken. Every query is so represented by the
    same number of rows, give or take one, whereas a ranking by the largest cosine may serve a few queries alone.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    size : int or float
        Rows to take: a count, or a share of the eligible rows.

    Notes
    -----
    The score is ``size`` for the first row taken, falling by one from row to row, and 0 for rows that were not taken.
    Columns: ``taken_by`` (the query's id) and ``similarity`` (cosine with it), null for the others. Each query's list
    of nearest rows grows until the turns are done; a pass over the table costs n m d, and ``passes`` in the report
    says how many there were. The driver holds a byte for each row, the picks, and at most 8 million pairs a pass.

    >>> RDSPlus(column="clip", size=10_000).method
    'rds_plus'
    """

    method: ClassVar[str] = "rds_plus"
    needs_query: ClassVar[bool] = True

    column: str
    size: Size

    def choose(self, inputs: Inputs) -> Outcome:
        """Fill the lists, let the queries take turns, and fill them again where they ran out."""
        assert inputs.query is not None
        names, queries, unusable = ordered_queries(inputs.query, self.column)
        search = NeighbourSearch(inputs.view, queries)
        turns, passes = _take_turns(search, self.size)
        assert search.rows is not None
        mapped = _parts(search, turns, names)
        report = {
            "queries": len(queries),
            "unusable_queries": unusable,
            "passes": passes,
            "deepest_list": int(turns.depth().max()),
        }
        return Outcome(mapped, size=self.size, report=report)


@dataclass
class _Depths:
    """How far down each query's list goes, as a rank in a sample of the pool."""

    ordered: np.ndarray
    rank: np.ndarray
    cut: np.ndarray

    @staticmethod
    def guess(keys: np.ndarray, share: float) -> _Depths:
        """Take the turns in the sample ``keys`` (m, s): how far each query looks there, with some to spare."""
        m, s = keys.shape
        order = np.argsort(-keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, axis=1)
        turns = RoundRobin(m, s, min(s, max(m, round(share * s))))
        for query in range(m):
            turns.give(query, order[query], ordered[query])
        turns.run()
        return _Depths(ordered, (1.5 * turns.depth()).astype(np.int64) + _SPARE_RANKS, np.zeros(m, bool))

    def deepen(self, which: np.ndarray) -> None:
        """Reach farther down, but not where a list was cut: it goes on at the same floor, as its rows are taken."""
        reached = which[~self.cut[which]]
        self.rank[reached] = 2 * self.rank[reached] + _SPARE_RANKS


def _take_turns(search: NeighbourSearch, size: int | float) -> tuple[RoundRobin, int]:
    """The finished turns, and how many passes over the table they took."""
    m = len(search.queries)
    depths = _Depths.guess(search.sample(), resolve_size(size, search.numbers) / max(1, search.numbers))
    which = np.arange(m)
    lists = _fill(search, depths, which, None)
    assert search.rows is not None
    eligible = search.rows.counts().eligible
    turns = RoundRobin(m, search.numbers, min(resolve_size(size, eligible), eligible))
    passes = 1
    while True:
        for place, query in enumerate(which):
            span = lists.of(place)
            turns.give(int(query), lists.row[span], lists.key[span])
        depths.cut[which] = lists.cut
        stuck = turns.run()
        if stuck is None:
            return turns, passes
        which = _running_short(turns, stuck)
        depths.deepen(which)
        lists = _fill(search, depths, which, turns.taken)
        passes += 1


def _fill(search: NeighbourSearch, depths: _Depths, which: np.ndarray, taken: np.ndarray | None) -> Lists:
    limit = max(_LEAST_LIST, ENTRIES // len(which))
    rank = depths.rank
    if taken is None:
        # No deeper than the limit: what is cut off would be computed in vain.
        rank = np.minimum(rank, int(1.2 * limit * depths.ordered.shape[1] / max(1, search.numbers)) + _SPARE_RANKS)
    return search.search(which, sample_floor(depths.ordered, rank), limit, taken)


def _running_short(turns: RoundRobin, stuck: int) -> np.ndarray:
    """The queries whose lists cannot last, among them the one that is stuck."""
    m = len(turns.depth())
    needed = -(-(turns.wanted - len(turns.picks())) // m)
    return np.array([query for query in range(m) if query == stuck or turns.free(query) < needed], np.int64)


def _parts(search: NeighbourSearch, turns: RoundRobin, names: list[str]) -> Mapped:
    """One part a fragment: which of its rows were taken, when, by whom and how similar they are."""
    import ray

    assert search.rows is not None
    picks, keys = turns.picks(), turns.keys()
    order = np.argsort(picks)
    bounds = np.searchsorted(picks[order], search.starts)
    finish, shared = remote(_finish), ray.put(names)
    parts = []
    for position, ids in enumerate(search.rows.parts):
        mine = order[bounds[position] : bounds[position + 1]]
        places = picks[mine] - search.starts[position]
        parts.append(finish.remote(ids, places, mine, keys[mine], turns.wanted, shared))
    return Mapped(parts, search.rows._counts)


def _finish(
    rows: pa.Table, places: np.ndarray, turn: np.ndarray, keys: np.ndarray, wanted: int, names: list[str]
) -> pa.Table:
    score = np.zeros(rows.num_rows)
    score[places] = wanted - turn
    by = np.zeros(rows.num_rows, np.int32)
    by[places] = turn % len(names)
    similarity = np.zeros(rows.num_rows, np.float32)
    similarity[places] = keys / SCALE
    free = score == 0
    taken_by = pa.array(names, pa.string()).take(pa.array(by, mask=free))
    return score_table(rows.column("id"), score, taken_by=taken_by, similarity=pa.array(similarity, mask=free))
