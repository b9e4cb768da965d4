"""TSDS: the query's mass transported to the pool, near rows first, spread where rows repeat each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.neighbours import LOWEST, Lists, pairs_above
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.kernels.tsds import Spread, spread_mass
from datas3_ray.lake.cut import apply_cut, find_cut
from datas3_ray.lake.view import Fragment, Mapped
from datas3_ray.runtime import device, matrix_task, remote, settled
from datas3_ray.sampling import sample_vectors
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table
from datas3_ray.selectors.neighbour_lists import NeighbourSearch, ordered_queries, sample_floor

FIRST_NEIGHBOURS = 64
"""Neighbours a query that are looked at first; four times as many until they settle where the mass goes."""
NEVER = -1000.0
"""Score of a row without probability, plus its noise: below that of any row with some."""
_LEAST_SIGMA = 0.01
"""Of the default, for pools of many copies; cosines are known to a millionth, distances to about a thousandth."""
_SIGMA_ROWS, _SIGMA_NEIGHBOUR = 256, 10
_BLOCK = 16_384


class TSDS(Selector):
    """Draw ``size`` rows from the distribution that transports the query onto the pool (arXiv 2410.11303).

    Every query has the mass 1/m. It goes to the nearest rows first, where row k takes at most 1 / (m s rho_k) of it,
    rho being the density of the pool around the row: the sum of max(0, 1 - d^2 / sigma^2) over all eligible rows,
    itself among them, so that copies of a row share what the row alone would have had. ``s`` grows, and the mass
    spreads, until alpha / C times the extra distance outweighs (1 - alpha) m. Distances are Euclidean, between unit
    vectors.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    size : int or float
        Rows to draw: a count, or a share of the eligible rows.
    alpha : float
        0 spreads the mass over all ``max_neighbours`` rows of a query, 1 gives it to the nearest one alone, in equal
        parts where several are equally near.
    scale : float
        C: the mean extra distance at which nearness and spreading weigh the same at alpha = 0.5.
    sigma : float, optional
        Radius of the density, as a distance; by default the median distance of 256 rows of the pool to their tenth
        nearest. 0 gives every row the density 1.
    max_neighbours : int
        Rows that a query's mass may reach, at most; nor more than a tenth of the eligible rows, or 2 where that is
        less, but with ``alpha: 1`` all that are equally near.
    beyond : {"stop", "random"}
        What happens when ``size`` exceeds the rows with a probability: keep those alone, which the report calls a
        shortfall, or fill up with others at random.
    seed : int
        Of the draw (Gumbel top-k, without replacement) and of the rows that set ``sigma``.

    Notes
    -----
    Column: ``probability``; they add up to 1. The report has ``support``, the rows with a probability, ``spread`` (s)
    and ``sigma``. Cost: a pass n m d for the neighbours, and n d for each row whose density is needed; neighbours are
    looked at 64 a query at first, then 256 and so on, only until more would change nothing. With ``beyond: random``
    resizable.

    >>> TSDS(column="clip", size=0.1).alpha
    0.5
    """

    method: ClassVar[str] = "tsds"
    needs_query: ClassVar[bool] = True

    column: str
    size: Size
    alpha: float = Field(default=0.5, ge=0, le=1)
    scale: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    sigma: float | None = Field(default=None, ge=0, le=2)
    max_neighbours: int = Field(default=5000, ge=1)
    beyond: Literal["stop", "random"] = "stop"
    seed: Seed = 0

    def choose(self, inputs: Inputs) -> Outcome:
        """Spread the queries' mass, then draw by it."""
        assert inputs.query is not None
        _, queries, unusable = ordered_queries(inputs.query, self.column)
        search = NeighbourSearch(inputs.view, queries)
        sigma = self._sigma(inputs)
        rows, spread = self._transport(search, sigma)
        probability = Probabilities.add_up(rows, spread.mass)
        assert search.rows is not None
        mapped = _parts(search, probability, self.seed)
        eligible = mapped.counts().eligible
        asked = resolve_size(self.size, eligible)
        support = len(probability.rows)
        report: dict[str, Any] = {
            "queries": len(queries),
            "unusable_queries": unusable,
            "sigma": sigma,
            "spread": spread.s,
            "neighbours": rows.shape[1],
            "support": support,
            "support_shortfall": max(0, min(asked, eligible) - support),
        }
        if self.beyond == "random":
            return Outcome(mapped, size=self.size, resizable=True, report=report)
        cut = find_cut(mapped.parts, min(asked, support))
        mapped.parts = [remote(apply_cut).remote(part, cut) for part in mapped.parts]
        return Outcome(mapped, asked=asked, report=report)

    def _sigma(self, inputs: Inputs) -> float:
        """The radius asked for, or the median distance to the tenth nearest row."""
        if self.sigma is not None:
            return self.sigma
        search = NeighbourSearch(inputs.view, sample_vectors(inputs.view, _SIGMA_ROWS, self.seed))
        # One more, as each row is its own nearest.
        lists = nearest_lists(search, _SIGMA_NEIGHBOUR + 1)
        key = lists.key[lists.offsets[1:] - 1]
        return max(_LEAST_SIGMA, float(np.median(_distance(key))))

    def _transport(self, search: NeighbourSearch, sigma: float) -> tuple[np.ndarray, Spread]:
        """Row numbers int64 (m, K) of the neighbours that matter, and how the mass is spread over them."""
        density = Density(search, sigma)
        neighbours = FIRST_NEIGHBOURS
        while True:
            lists = nearest_lists(search, min(neighbours, self.max_neighbours))
            assert search.rows is not None
            eligible = search.rows.counts().eligible
            # Where all mass goes to the nearest rows, it goes to all that are equally near.
            most = min(self.max_neighbours, max(2, eligible // 10) if self.alpha < 1 else eligible, eligible)
            rows, keys = _matrix(lists, min(neighbours, most))
            spread = spread_mass(_distance(keys), density.of(rows), self.alpha, self.scale)
            if spread.settled or rows.shape[1] >= most:
                return rows, spread
            # The mass is spread over all neighbours at alpha = 0, so a few will never do.
            neighbours = 4 * neighbours if self.alpha > 0 else most


class Density:
    """The density of the pool around rows, computed once for each."""

    def __init__(self, search: NeighbourSearch, sigma: float) -> None:
        self._search, self._sigma = search, sigma
        self._rows = np.empty(0, np.int64)
        self._density = np.empty(0)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """float64 of the shape of ``rows``."""
        if self._sigma == 0:
            return np.ones(rows.shape)
        new = np.setdiff1d(rows, self._rows)
        if len(new):
            known = np.concatenate([self._rows, new])
            order = np.argsort(known)
            self._density = np.concatenate([self._density, self._compute(new)])[order]
            self._rows = known[order]
        return self._density[np.searchsorted(self._rows, rows)]

    def _compute(self, rows: np.ndarray) -> np.ndarray:
        """Sum over the pool of max(0, 1 - d^2 / sigma^2) = max(0, 2 (cos - c) / sigma^2), with c = 1 - sigma^2 / 2."""
        floor = max(LOWEST, math.ceil((1 - self._sigma**2 / 2) * SCALE))
        vectors = settled(self._search.vectors(rows))
        # In whole numbers, so that the order of adding up decides nothing.
        mapped = self._search.view.map(_kernel_sums, vectors, floor, resources=matrix_task())
        counts, keys = np.sum(mapped.results(), axis=0)
        # 2 (cos - c) / sigma^2 is 1 - 2 (1 - cos) / sigma^2, which holds for a sigma whose square is nothing beside 1.
        apart = np.asarray(counts * SCALE - keys, np.float64)
        return counts - np.divide(2 * apart, SCALE * self._sigma**2, out=np.zeros(len(apart)), where=apart > 0)


class Probabilities(NamedTuple):
    """Rows with a probability, ascending int64 (r,), and what it is, float64 (r,)."""

    rows: np.ndarray
    value: np.ndarray

    @staticmethod
    def add_up(rows: np.ndarray, mass: np.ndarray) -> Probabilities:
        """The mass that all queries give to each row; rows that get none are left out."""
        there, place = np.unique(rows, return_inverse=True)
        value = np.bincount(place.reshape(-1), weights=mass.reshape(-1), minlength=len(there))
        return Probabilities(there[value > 0], value[value > 0])


def nearest_lists(search: NeighbourSearch, k: int) -> Lists:
    """Lists of exactly the ``k`` nearest rows of every query, or of all rows where there are fewer."""
    m = len(search.queries)
    ordered = -np.sort(-search.sample(), axis=1)
    everyone = np.arange(m)
    rank = np.full(m, int(1.5 * k * ordered.shape[1] / max(1, search.numbers)) + 8)
    while True:
        floor = sample_floor(ordered, rank)
        lists = search.search(everyone, floor, k)
        short = (np.diff(lists.offsets) < k) & (floor > LOWEST)
        if not short.any():
            return lists
        rank[short] = 4 * rank[short]


def _distance(keys: np.ndarray) -> np.ndarray:
    """Euclidean distances of unit vectors with these cosines."""
    return np.sqrt(2 * (1 - keys.astype(np.float64) / SCALE))


def _matrix(lists: Lists, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k rows of every list and their keys, (m, k) each."""
    m = len(lists.cut)
    if len(lists.row) == 0:
        raise UsageError("tsds: there is no eligible row with a usable vector.")
    places = lists.offsets[:-1, None] + np.arange(k)[None, :]
    return lists.row[places].reshape(m, k), lists.key[places].reshape(m, k)


def _kernel_sums(fragment: Fragment, vectors: list[Any], floor: int) -> np.ndarray:
    """int64 (2, r): for each of the rows given, how many of the fragment's reach the floor, and their keys' sum."""
    # A block at a time of those rows, which may be many: the fragment is read once for each.
    sums = [_block_sums(fragment, rows, floor) for rows in _blocks(vectors)]
    return np.concatenate([np.zeros((2, 0), np.int64), *sums], axis=1)


def _blocks(vectors: list[Any]) -> Iterator[np.ndarray]:
    """The matrices behind the references, joined into blocks of about the same size."""
    import ray

    waiting: list[np.ndarray] = []
    for reference in vectors:
        rows = ray.get(reference)
        for start in range(0, len(rows), _BLOCK):
            waiting.append(rows[start : start + _BLOCK])
            if sum(len(piece) for piece in waiting) >= _BLOCK:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _block_sums(fragment: Fragment, rows: np.ndarray, floor: int) -> np.ndarray:
    total = np.zeros((2, len(rows)), np.int64)
    floors = np.full(len(rows), floor)
    for _, batch in fragment.vectors():
        for _, place, key in pairs_above(batch, rows, floors, device()):
            total[0] += np.bincount(place, minlength=len(rows))
            # Exact: sums of whole numbers far below 2^53.
            total[1] += np.bincount(place, weights=key, minlength=len(rows)).astype(np.int64)
    return total


def _parts(search: NeighbourSearch, probability: Probabilities, seed: int) -> Mapped:
    assert search.rows is not None
    bounds = np.searchsorted(probability.rows, search.starts)
    finish = remote(_finish)
    parts = []
    for position, ids in enumerate(search.rows.parts):
        span = slice(bounds[position], bounds[position + 1])
        places = probability.rows[span] - search.starts[position]
        parts.append(finish.remote(ids, places, probability.value[span], seed))
    return Mapped(parts, search.rows._counts)


def _finish(rows: pa.Table, places: np.ndarray, value: np.ndarray, seed: int) -> pa.Table:
    ids = rows.column("id")
    probability = np.zeros(rows.num_rows)
    probability[places] = value
    weight = np.full(rows.num_rows, NEVER)
    weight[places] = np.log(value)
    noise = gumbel(hash64(id_words(ids), seed=seed, stream="tsds"))
    return score_table(ids, np.round(weight, 9) + noise, probability=probability)
