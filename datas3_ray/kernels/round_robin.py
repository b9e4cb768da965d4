"""Queries take turns: each takes the best row that nobody has taken yet (RDS+, arXiv 2503.01807, section 3).

>>> turns = RoundRobin(queries=2, rows=3, wanted=2)
>>> turns.give(0, np.array([0, 1, 2]), np.array([9, 8, 1]))        # the first query's rows, best first
>>> turns.give(1, np.array([0, 2, 1]), np.array([9, 3, 2]))
>>> turns.run(), turns.picks().tolist()
(None, [0, 2])
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

_STEPS = 32
_STRIDE = 4096


class RoundRobin:
    """The state of the turns; lists may be shorter than needed and are given again when one has run out.

    A turn is never lost: a query skips the rows that are taken and takes the next one.

    Args:
        queries: how many take turns, in the order of their numbers.
        rows: rows are numbers below this.
        wanted: picks to be made in all, at most the rows that the lists will offer.
    """

    def __init__(self, queries: int, rows: int, wanted: int) -> None:
        if queries < 1 or not 0 <= wanted <= rows:
            raise ValueError(f"{wanted} picks by {queries} queries out of {rows} rows cannot be made")
        self.wanted = wanted
        self.taken = np.zeros(rows, np.uint8)
        self._lists = [np.empty(0, np.int64) for _ in range(queries)]
        self._keys = [np.empty(0, np.int64) for _ in range(queries)]
        self._at = [0] * queries
        self._turn = 0
        self._picks, self._pick_keys = array("q"), array("q")

    def give(self, query: int, rows: npt.ArrayLike, keys: npt.ArrayLike) -> None:
        """Replace a query's list: rows, best first, and their keys; rows that are taken may be in it or left out."""
        self._lists[query] = np.ascontiguousarray(rows, np.int64)
        self._keys[query] = np.ascontiguousarray(keys, np.int64)
        self._at[query] = 0

    def run(self) -> int | None:
        """Take turns until enough is picked (None), or the query that is returned finds no free row in its list."""
        views = [rows.data for rows in self._lists]
        taken, picks, at = self.taken.data, self._picks, self._at
        queries, query = len(views), self._turn
        while len(picks) < self.wanted:
            rows, place = views[query], at[query]
            last = min(len(rows), place + _STEPS)
            while place < last and taken[rows[place]]:
                place += 1
            if place == last and last < len(rows):
                place = self._skip(query, place)
            if place == len(rows):
                at[query], self._turn = place, query
                return query
            row = rows[place]
            taken[row] = 1
            picks.append(row)
            self._pick_keys.append(int(self._keys[query][place]))
            at[query] = place + 1
            query = query + 1 if query + 1 < queries else 0
        self._turn = query
        return None

    def picks(self) -> Int64:
        """int64 (picks so far,): the rows in the order in which they were taken; pick i was made by query i mod m."""
        return np.array(self._picks, np.int64)

    def keys(self) -> Int64:
        """int64 (picks so far,): the key with which each row stood in the list of the query that took it."""
        return np.array(self._pick_keys, np.int64)

    def depth(self) -> Int64:
        """int64 (queries,): how far down its present list each query has looked."""
        return np.array(self._at, np.int64)

    def free(self, query: int) -> int:
        """How many rows of a query's list are still to be had."""
        rest = self._lists[query][self._at[query] :]
        return len(rest) - int(self.taken[rest].sum())

    def _skip(self, query: int, place: int) -> int:
        """The next free place of a list, or its end, in long strides."""
        rows = self._lists[query]
        while place < len(rows):
            free = np.flatnonzero(self.taken[rows[place : place + _STRIDE]] == 0)
            if len(free):
                return place + int(free[0])
            place += _STRIDE
        return len(rows)
