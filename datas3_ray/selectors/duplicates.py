"""Which row of several with one key stays: what both ways of removing duplicates by content share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.kernels.ranking import rank_words
from datas3_ray.selectors.scores import numbers, require_number

if TYPE_CHECKING:
    from datas3_ray.lake import Table


@dataclass(frozen=True)
class Preference:
    """Of rows that are duplicates, the one with the best value in a column stays, ties to the smaller id.

    ``resolution`` is width times height.
    """

    column: str | None
    higher_is_better: bool = True

    def check(self, table: Table) -> None:
        """The column, where there is one, must hold numbers."""
        for column in self.columns():
            require_number(table, column)

    def columns(self) -> tuple[str, ...]:
        """What to read."""
        if self.column == "resolution":
            return ("width", "height")
        return (self.column,) if self.column is not None else ()

    def of(self, rows: pa.Table) -> np.ndarray:
        """Larger is preferred: float64, -inf where there is no value."""
        if self.column is None:
            return np.zeros(rows.num_rows)
        values = np.prod([numbers(rows.column(column)) for column in self.columns()], axis=0)
        values = values if self.higher_is_better else -values
        return np.where(np.isnan(values), -np.inf, values)


def first_of_each(keys: list[np.ndarray], prefer: np.ndarray, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The preferred row of each distinct key.

    Returns
    -------
    first : ndarray of int64
        Position of the preferred row of each key, keys ascending.
    slot : ndarray of int64, shape (n,)
        The place of each row's key among those.
    """
    n = len(prefer)
    if n == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.lexsort(keys[::-1])
    different = np.zeros(n, bool)
    different[0] = True
    for key in keys:
        different[1:] |= key[order[1:]] != key[order[:-1]]
    slot = np.empty(n, np.int64)
    slot[order] = np.cumsum(different) - 1
    starts = np.flatnonzero(different)
    first = order[starts]
    # Only keys with several rows need the ids compared.
    repeated = np.flatnonzero(np.diff(np.r_[starts, n])[slot] > 1)
    if len(repeated):
        words = rank_words(prefer[repeated], ids.take(pa.array(repeated)))
        order = np.lexsort([*words.T[::-1], slot[repeated]])
        mine = slot[repeated][order]
        begins = np.r_[True, mine[1:] != mine[:-1]]
        first[mine[begins]] = repeated[order[begins]]
    return first, slot


def keep_column(ids: pa.ChunkedArray, first: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """``keep`` and ``duplicate_of`` of rows, given the id of the row that stays for each of them."""
    same = pc.equal(ids, first)
    return same, pc.if_else(same, pa.scalar(None, pa.string()), first)
