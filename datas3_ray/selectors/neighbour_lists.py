"""For each query the rows of a view nearest to it, found by one task a fragment and merged: for RDSPlus and TSDS.

A small sample of the pool says how near a row must be to matter, so that a pass over the table returns few pairs. The
sample decides how much is looked at and never what is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.hashing import id_words
from datas3_ray.kernels.neighbours import LOWEST, Collector, Lists, merge_lists, no_lists
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment, Mapped, View
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.grouping import lexicographic

if TYPE_CHECKING:
    from datas3_ray.lake import Table

SAMPLE_ROWS = 16_384
_SAMPLE_ELEMENTS = 1 << 24
_FAN_IN = 8


def ordered_queries(query: Table, column: str) -> tuple[list[str], np.ndarray, int]:
    """Ids and unit vectors float32 (m, d) of a query table's usable rows in the order of their ids; the others' count.

    Raises
    ------
    UsageError
        When no row of the query has a usable vector.
    """
    query.require_column("id")
    rows = query.to_arrow(["id", column])
    unit, valid = normalize(matrix(rows.column(column)))
    if not valid.any():
        raise UsageError(f"query table '{query.name}' has no usable vector in column '{column}'.")
    places = np.flatnonzero(valid)
    ids = rows.column("id").take(pa.array(places)).cast(pa.string())
    order = lexicographic(id_words(ids))
    names = ids.to_pylist()
    return [names[i] for i in order], np.ascontiguousarray(unit[places[order]]), int((~valid).sum())


class NeighbourSearch:
    """Searches a view for the rows nearest to fixed queries.

    Rows are numbered: the eligible rows of a fragment from the number of rows before the fragment on.

    Parameters
    ----------
    view : View
        With a vector column.
    queries : ndarray (m, d), float32
        Unit vectors.

    Attributes
    ----------
    numbers : int
        Rows are numbered below this.
    rows : Mapped or None
        After a search: one part a fragment with the ``id`` of each eligible row.
    """

    def __init__(self, view: View, queries: np.ndarray) -> None:
        import ray

        self.view = view
        self.queries = queries
        self._ref = ray.put(queries)
        counts = {f.fragment_id: f.count_rows() for f in view.table.dataset.get_fragments()}
        sizes = [counts[fragment] for fragment in view.fragment_ids]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.numbers = int(self.starts[-1])
        self.rows: Mapped | None = None

    def sample(self) -> np.ndarray:
        """Keys (m, s) of the first eligible rows of every fragment, int32: a guess at how the pool lies."""
        wanted = min(SAMPLE_ROWS, max(256, _SAMPLE_ELEMENTS // len(self.queries)))
        share = min(1.0, wanted / max(1, self.numbers))
        heads = [max(16, int(np.ceil(share * size))) for size in np.diff(self.starts)]
        parts = self.view.zip(_head, heads, self._ref, resources=matrix_task()).results()
        return np.concatenate([np.empty((len(self.queries), 0), np.int32), *parts], axis=1)

    def search(self, which: np.ndarray, floor: np.ndarray, limit: int, taken: np.ndarray | None = None) -> Lists:
        """Lists of the queries ``which``: rows whose key reaches ``floor`` (m,), the best ``limit`` of them.

        Rows that are marked in ``taken`` (a byte for each number) are left out.
        """

        if not len(self.view.fragment_ids):
            self.rows = Mapped([], [])
            return no_lists(len(which))
        spans = zip(self.starts[:-1], self.starts[1:], strict=True)
        shares: list[Any] = [(int(a), None if taken is None else taken[a:b]) for a, b in spans]
        mapped = self.view.zip(
            _search,
            shares,
            self._ref,
            which,
            floor[which],
            limit,
            self.rows is None,
            resources=matrix_task(),
            returns=2,
        )
        if self.rows is None:
            self.rows = Mapped([rows for _, rows in mapped.parts], mapped._counts)
        return self._merge([lists for lists, _ in mapped.parts], limit)

    def _merge(self, lists: list[Any], limit: int) -> Lists:
        merge = remote(_merge)
        while len(lists) > 1:
            lists = [merge.remote(limit, *lists[i : i + _FAN_IN]) for i in range(0, len(lists), _FAN_IN)]
        return gather(lists)[0]

    def vectors(self, numbers: np.ndarray) -> list[Any]:
        """References to the unit vectors of rows, fragment by fragment, for numbers that rise."""
        bounds = np.searchsorted(numbers, self.starts)
        places = [numbers[a:b] - start for a, b, start in zip(bounds[:-1], bounds[1:], self.starts[:-1], strict=True)]
        return self.view.zip(_take, places).parts


def sample_floor(ordered: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The key at a rank (from 0) of each query's sample, the lowest of all where the sample has no such rank.

    ``ordered`` is int (m, s), falling in each line.

    >>> sample_floor(np.array([[9, 7, 5], [3, 2, 1]]), np.array([1, 3])).tolist()
    [7, -1000000]
    """
    m, s = ordered.shape
    inside = rank < s
    floor = np.full(m, LOWEST, np.int64)
    floor[inside] = ordered[np.flatnonzero(inside), rank[inside]]
    return floor


def _head(fragment: Fragment, wanted: int, queries: np.ndarray) -> np.ndarray:
    found, rows = [], 0
    for _, vectors in fragment.vectors(batch_rows=min(8192, wanted)):
        unit = normalize(vectors[: wanted - rows])[0]
        found.append(np.round(queries @ unit.T * SCALE).astype(np.int32))
        rows += len(unit)
        if rows >= wanted:
            break
    return np.concatenate([np.empty((len(queries), 0), np.int32), *found], axis=1)


def _search(
    fragment: Fragment,
    share: tuple[int, np.ndarray | None],
    queries: np.ndarray,
    which: np.ndarray,
    floor: np.ndarray,
    limit: int,
    keep_ids: bool,
) -> tuple[Lists, pa.Table]:
    first, taken = share
    collector = Collector(queries[which], floor, limit, device())
    ids, at = [], 0
    for batch_ids, vectors in fragment.vectors():
        if keep_ids:
            ids.append(batch_ids)
        numbers = np.arange(at, at + len(batch_ids), dtype=np.int64)
        at += len(batch_ids)
        words = id_words(batch_ids)
        if taken is not None:
            free = taken[numbers] == 0
            vectors, numbers, words = vectors[free], numbers[free], words[free]
        collector.add(vectors, first + numbers, words)
    return collector.finish(), pa.table({"id": pa.chunked_array(ids, pa.string())})


def _merge(limit: int, *lists: Lists) -> Lists:
    return merge_lists(lists, limit)


def _take(fragment: Fragment, places: np.ndarray) -> np.ndarray:
    found, at = [], 0
    for ids, vectors in fragment.vectors():
        mine = places[np.searchsorted(places, at) : np.searchsorted(places, at + len(ids))] - at
        at += len(ids)
        found.append(normalize(vectors[mine])[0])
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)
