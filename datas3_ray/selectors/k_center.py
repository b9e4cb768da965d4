"""KCenter: farthest-first traversal, so that no row is far from a kept one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.k_center import TAKEN, Float32, Int64, Rows, farthest, lower, pick, start
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.view import Counts, Fragment, Mapped, View
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table
from datas3_ray.selectors.grouping import lexicographic

_FEWEST, _MOST, _LEAST_EACH = 32, 2048, 4
"""How many rows are gathered in a round, over all fragments and from each."""


class KCenter(Selector):
    """Keep ``size`` rows, each the farthest from those kept before it (k-center greedy, farthest-first).

    Starting from one row, the row of largest min over kept c of distance(row, c) is kept next, ties by id. The radius,
    the largest distance of any row to its nearest kept one, is at most twice the smallest that as many rows can have
    (Gonzalez 1985). Sensitive to outliers, which are far from everything: run it on what a quality filter kept.

    Parameters
    ----------
    column : str
        Vector column.
    size : int or float
        A count, or a share of the eligible rows.
    metric : {"cosine", "euclidean"}
        1 - cosine, or the Euclidean distance of the vectors as they are.
    start : str, optional
        Id of the first row; the row with the smallest hash of (seed, id) by default.
    seed : int

    Notes
    -----
    The score is the distance to the rows kept before (for a row that is not kept, to all kept ones), so the order of
    the scores is the order of the traversal and a smaller size is its beginning; the first row's score is twice the
    largest other one. The traversal is exact: in each round every fragment sends its farthest rows, and the driver
    takes from these only those that no other row can precede, so that a round settles many of them.

    >>> KCenter(column="clip", size=1000).metric
    'cosine'
    """

    method: ClassVar[str] = "k_center"
    held_share: ClassVar[float] = 0.5
    """Of Ray's object store, for the vectors; where they need more, each round reads the table again."""

    column: str
    size: Size
    metric: Literal["cosine", "euclidean"] = "cosine"
    start: str | None = Field(default=None, min_length=1)
    seed: Seed = 0

    def choose(self, inputs: Inputs) -> Outcome:
        """Run the rounds; the score is the distance at which a row was kept, or has been left."""
        traversal = _Traversal(inputs.view, self.metric, self._hold(inputs))
        eligible = traversal.loaded.counts().eligible
        wanted = min(eligible, resolve_size(self.size, eligible))
        first, radius = None, 0.0
        if wanted:
            offers = [offer for offer in traversal.openings(self.seed, self.start) if offer is not None]
            if not offers:
                raise UsageError(f"k_center: start = '{self.start}' is no eligible row of table '{inputs.table.name}'.")
            first = min(offers)[2]
            radius = _traverse(traversal, first, wanted)
        report = {
            "start": first.ids[0] if first else None,
            "radius": float(_distance(np.array(radius), self.metric)),
            "ranked": wanted,
        }
        mapped = Mapped(traversal.parts(), traversal.loaded._counts)
        return Outcome(mapped, size=self.size, resizable=wanted > 0, report=report)

    def _hold(self, inputs: Inputs) -> bool:
        """Whether the vectors of the table have room in the object store."""
        import ray

        needed = 4 * inputs.table.count_rows() * inputs.table.vector_columns()[self.column]
        return bool(needed <= self.held_share * ray.cluster_resources().get("object_store_memory", 0))


@dataclass(frozen=True)
class _Picked:
    """Rows that fragments offer, or that became centres: where they are, what they are, how far they are."""

    vectors: np.ndarray
    ids: list[str]
    least: Float32
    place: Int64
    row: Int64
    more: bool = False
    """Whether the fragment has rows that rank after these."""

    def take(self, index: Int64, least: Float32) -> _Picked:
        """Some of the rows, with other distances."""
        ids = [self.ids[place] for place in index]
        return _Picked(self.vectors[index], ids, least, self.place[index], self.row[index])


@dataclass(frozen=True)
class _Held:
    """What does not change of a fragment: its ids, their ranks, and its unit vectors where there is room for them."""

    fragment: Fragment
    metric: str
    ids: pa.Array
    order: Int64
    blocks: list[tuple[np.ndarray, np.ndarray]] | None

    def rows(self) -> Iterator[Rows]:
        """Blocks of rows: those held, or read again."""
        import torch

        if self.blocks is None:
            for _, vectors in replace(self.fragment, counts=Counts()).vectors():
                yield _block(vectors, self.metric)
            return
        for vectors, squares in self.blocks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what lies in the object store is read-only
                yield Rows(torch.from_numpy(vectors).to(device()), torch.from_numpy(squares).to(device()))

    def take(self, index: Int64) -> np.ndarray:
        """Vectors of some rows, float32, in the order given."""
        taken: list[tuple[np.ndarray, np.ndarray]] = []
        begin = 0
        for rows in self.rows():
            inside = np.flatnonzero((index >= begin) & (index < begin + len(rows)))
            if len(inside):
                taken.append((inside, rows.take(index[inside] - begin).vectors.cpu().numpy()))
            begin += len(rows)
        if not taken:
            return np.empty((0, 0), np.float32)
        back = np.argsort(np.concatenate([places for places, _ in taken]))
        return np.concatenate([vectors for _, vectors in taken])[back]

    def offer(self, index: Int64, least: Float32, more: bool = False) -> _Picked:
        """These rows, to be sent to the driver."""
        places = np.full(len(index), self.fragment.position)
        return _Picked(self.take(index), self.ids.take(pa.array(index)).to_pylist(), least, places, index, more)


@dataclass(frozen=True)
class _State:
    """What a fragment's rows know: squared distance to the nearest centre, and that at which a centre was kept."""

    least: Float32
    kept_at: Float32

    def distances(self, metric: str) -> np.ndarray:
        """The distance at which each row was kept (infinite for the first), or has been left."""
        return _distance(np.where(np.isnan(self.kept_at), self.least, self.kept_at).astype(np.float64), metric)


@dataclass
class _Traversal:
    """A view's fragments between rounds: references to what they hold and to what they know."""

    view: View
    metric: str
    hold: bool
    loaded: Mapped = field(init=False)
    states: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.loaded = self.view.map(_load, self.metric, self.hold)
        self.states = [None] * len(self.loaded.parts)

    def openings(self, seed: int, start: str | None) -> list[Any]:
        """Each fragment's offer for the first row: (hash, id, row), or None."""
        opening = remote(_opening)
        return gather(opening.remote(held, seed, start) for held in self.loaded.parts)

    def advance(self, centres: _Picked, ask: int) -> list[_Picked]:
        """Tell every fragment the new centres; their farthest rows, about ``ask`` in all, from those that have any."""
        import ray

        told = ray.put(centres)
        count = max(_LEAST_EACH, -(-ask // len(self.states)))
        task = remote(_advance).options(num_returns=2, **matrix_task())
        pairs: list[Any] = [
            task.remote(held, state, told, count) for held, state in zip(self.loaded.parts, self.states, strict=True)
        ]
        self.states = [pair[0] for pair in pairs]
        return [offer for offer in gather(pair[1] for pair in pairs) if len(offer.ids)]

    def parts(self) -> list[Any]:
        """References to one part a fragment."""
        largest = remote(_largest)
        opening = 2 * max(gather(largest.remote(state, self.metric) for state in self.states), default=0.0) or 1.0
        part = remote(_part)
        return [part.remote(held, state, opening) for held, state in zip(self.loaded.parts, self.states, strict=True)]


def _traverse(traversal: _Traversal, first: _Picked, wanted: int) -> float:
    """Make ``wanted`` rows centres; the squared radius that is left. Ends early when only copies are left."""
    found, ask = 1, _FEWEST
    offers = traversal.advance(first, ask)
    while found < wanted and _radius(offers) > 0:
        offered, order, fence = _joined(offers)
        picks, distance = pick(Rows.of(offered.vectors), offered.least, order, fence, wanted - found)
        found += len(picks)
        # Many candidates are worth sending only as long as most of them become centres.
        ask = min(_MOST, 2 * ask) if 2 * len(picks) >= len(order) else max(_FEWEST, ask // 2, 2 * len(picks))
        offers = traversal.advance(offered.take(picks, distance), ask)
    return _radius(offers)


def _radius(offers: list[_Picked]) -> float:
    return max((float(offer.least[0]) for offer in offers), default=0.0)


def _joined(offers: list[_Picked]) -> tuple[_Picked, Int64, int | None]:
    """All offers as one, the rank of each id, and which of them is the fence (see the kernel)."""
    ids = [name for offer in offers for name in offer.ids]
    order = _ranks(ids)
    least = np.concatenate([offer.least for offer in offers])
    last = np.cumsum([len(offer.ids) for offer in offers]) - 1
    fences = [place for place, offer in zip(last.tolist(), offers, strict=True) if offer.more]
    fence = min(fences, key=lambda place: (-least[place], order[place]), default=None)
    joined = _Picked(
        np.concatenate([offer.vectors for offer in offers]),
        ids,
        least,
        np.concatenate([offer.place for offer in offers]),
        np.concatenate([offer.row for offer in offers]),
    )
    return joined, order, fence


def _ranks(ids: Any) -> Int64:
    """The place of each id in the order of their bytes."""
    ranks = np.empty(len(ids), np.int64)
    ranks[lexicographic(id_words(ids))] = np.arange(len(ids))
    return ranks


def _load(fragment: Fragment, metric: str, hold: bool) -> _Held:
    ids, blocks = [pa.array([], pa.string())], []
    for batch, vectors in fragment.vectors():
        ids.append(batch)
        if hold:
            rows = _block(vectors, metric)
            blocks.append((rows.vectors.cpu().numpy(), rows.squares.cpu().numpy()))
    names = pa.concat_arrays(ids)
    return _Held(replace(fragment, counts=Counts()), metric, names, _ranks(names), blocks if hold else None)


def _block(vectors: np.ndarray, metric: str) -> Rows:
    if metric == "cosine":
        return Rows.of(normalize(vectors)[0], device())
    try:
        return Rows.of(vectors, device())
    except ValueError:
        raise UsageError(
            "k_center: a vector is longer than 1e18, whose square float32 cannot hold; scale the column down, or use "
            "metric: cosine."
        ) from None


def _opening(held: _Held, seed: int, start_id: str | None) -> tuple[int, str, _Picked] | None:
    """The row to begin with: the one asked for, or that of the smallest hash; None where there is none."""
    import pyarrow.compute as pc

    if len(held.ids) == 0:
        return None
    if start_id is not None:
        row = pc.index(held.ids, start_id).as_py()
        return (0, start_id, held.offer(np.array([row]), start(1))) if row >= 0 else None
    hashes = hash64(id_words(held.ids), seed=seed, stream="k-center")
    tied = np.flatnonzero(hashes == hashes.min())
    row = int(tied[np.argmin(held.order[tied])])
    return int(hashes[row]), held.ids[row].as_py(), held.offer(np.array([row]), start(1))


def _advance(held: _Held, state: _State | None, centres: _Picked, count: int) -> tuple[_State, _Picked]:
    """Lower the distances by the new centres; the ``count`` rows that are farthest now."""
    least = start(len(held.ids)) if state is None else state.least.copy()
    kept_at = np.full(len(held.ids), np.nan, np.float32) if state is None else state.kept_at.copy()
    new = Rows.of(centres.vectors, device())
    begin = 0
    for rows in held.rows():
        lower(least[begin : begin + len(rows)], rows, new)
        begin += len(rows)
    mine = centres.place == held.fragment.position
    kept_at[centres.row[mine]] = centres.least[mine]
    least[centres.row[mine]] = TAKEN
    index, more = farthest(least, held.order, count)
    return _State(least, kept_at), held.offer(index, least[index], more)


def _largest(state: _State | None, metric: str) -> float:
    """The largest distance of any row but the first."""
    if state is None:
        return 0.0
    distances = state.distances(metric)
    return float(distances[np.isfinite(distances)].max(initial=0.0))


def _part(held: _Held, state: _State | None, opening: float) -> pa.Table:
    """The scores of one fragment; ``opening`` is that of the first row."""
    if state is None:
        return score_table(held.ids, np.zeros(len(held.ids)))
    distances = state.distances(held.metric)
    return score_table(held.ids, np.where(np.isinf(distances), opening, distances))


def _distance(squared: np.ndarray, metric: str) -> np.ndarray:
    """1 - cosine or the Euclidean distance from squared distances (of unit vectors, for the cosine)."""
    return squared / 2 if metric == "cosine" else np.sqrt(squared)
