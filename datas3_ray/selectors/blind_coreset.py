"""BlindCoreset: rows that stand alone in many random subspaces, and few of those that crowd (arXiv 2411.15349)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.errors import UsageError
from datas3_ray.kernels.blind_coreset import (
    UNIT,
    Ranges,
    block_ranges,
    choose_strips,
    make_draws,
    nearest_rows,
    rows_around,
    score_draws,
    settle,
    sketch,
)
from datas3_ray.kernels.subspace_search import Columns, Draws
from datas3_ray.runtime import cluster_cpus, gather, remote, settled
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table
from datas3_ray.selectors.column_major import BLOCK_BYTES, ColumnMajor, column_major

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

PLANNED_DRAWS = 4_000_000
ROUND_DRAWS = 1024
FEWEST_DRAWS = 2000


class BlindCoreset(Selector):
    """Keep the rows that stand for regions of their own: zero-shot coreset selection (BlindCS, ZCore).

    No labels, no query, no training. Each of ``draws`` draws picks ``subspace`` dimensions and a point s in them, each
    coordinate from the triangular distribution over the dimension's range with its mode at the median. The row k
    nearest to s (L1) gets a vote, and the ``alpha`` rows nearest to k share a penalty of one vote:

        score[k] += 1,    score[i] -= |z_i - z_k|^-beta / sum over neighbours

    so the scores of all rows add up to 0. The rows of highest score are kept.

    Parameters
    ----------
    column : str
        Vector column. Vectors are taken as they are, not normalised.
    columns : list of str
        In place of ``column``: two or more vector columns, concatenated as they are (the paper: ResNet18 and CLIP).
    size : int or float
        A count, or a share of the eligible rows.
    draws : int
        T; the paper draws 1,000,000 times. It should grow with the pool: draws / rows votes fall on a row.
    alpha : int
        Rows that share a penalty; all others, where there are fewer.
    beta : float
        Exponent of the distance. Whole numbers give the same bits on every machine.
    subspace : int
        m, dimensions of a draw.
    seed : int
        A draw is a hash of the seed and its number.
    memory : float, optional
        GiB that a node may hold of the vectors; by default four fifths of the smallest node's object store. A larger
        pool is searched in shards of its rows instead of as a whole, with the same answer.

    Notes
    -----
    ``score`` is in votes; ``weight`` is the score scaled to 0..1 over the eligible rows (1 where all are equal), the
    weight of a row's loss in training. Rows that are the same in a draw's dimensions as its winner share the penalty
    among themselves alone. Copies lose score together, but it is not certain that only one is kept: run SemDeDup first.

    >>> BlindCoreset(columns=["resnet", "clip"], size=0.3).draws
    1000000
    """

    method: ClassVar[str] = "blind_coreset"

    column: str | None = None
    columns: tuple[str, ...] | None = Field(default=None, min_length=2)
    size: Size
    draws: int = Field(default=1_000_000, ge=1, lt=1 << 30)
    alpha: int = Field(default=1000, ge=1, lt=1 << 23)
    beta: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    subspace: int = Field(default=2, ge=1, le=64)
    seed: Seed = 0
    # Excluded from what makes a selection the same: it decides how the answer is found, not what it is.
    memory: float | None = Field(default=None, gt=0, allow_inf_nan=False, exclude=True)

    @model_validator(mode="after")
    def _one_way(self) -> BlindCoreset:
        if (self.column is None) == (self.columns is None):
            raise ValueError("give either column or columns")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns must be different ones")
        return self

    def _all_columns(self) -> tuple[str, ...]:
        return self.columns or (self.column or "",)

    def vector(self) -> str | None:
        """The first column; rows must be usable in the others too."""
        return self._all_columns()[0]

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """Every column must be a vector column, and all together at least ``subspace`` wide."""
        width = sum(table.require_vector(column) for column in self._all_columns())
        if width < self.subspace:
            raise UsageError(
                f"blind_coreset: draws of subspace = {self.subspace} dimensions need as many, and the vectors of "
                f"'{table.name}' have {width}."
            )

    def choose(self, inputs: Inputs) -> Outcome:
        """Lay out the columns, draw, score, and bring each row's score back to its fragment."""
        columns = self._all_columns()
        width = sum(inputs.table.require_vector(column) for column in columns)
        whole, shard = _limits(self.memory)
        laid = column_major(inputs.view, columns, width, whole, shard)
        scores, report = self._scores(laid, " + ".join(columns))
        extremes = gather(remote(_extremes).remote(score) for score in scores)
        low, high = (min(pair[0] for pair in extremes), max(pair[1] for pair in extremes)) if extremes else (0, 0)
        finish = remote(_finish)
        mapped = laid.identified
        mapped.parts = [
            finish.remote(part, rank, (low, high), *scores) for part, rank in zip(mapped.parts, laid.ranks, strict=True)
        ]
        return Outcome(mapped, size=self.size, resizable=True, report=report)

    def _scores(self, laid: ColumnMajor, name: str) -> tuple[list[Any], dict[str, Any]]:
        """References to each shard's scores (int64, in units of a vote), and the report."""
        import ray

        shards = len(laid.shards)
        if laid.rows < 2:
            zeros = [ray.put(np.zeros(laid.rows, np.int64)) for _ in range(shards)]
            return zeros, {"draws": 0, "dimensions": laid.width, "shards": shards}
        ranges = _pool_ranges(laid)
        if len(ranges.column) < self.subspace:
            raise UsageError(
                f"blind_coreset: draws of subspace = {self.subspace} dimensions need as many that vary, and "
                f"{len(ranges.column)} of the {laid.width} dimensions of '{name}' do over the eligible rows."
            )
        sketches = np.concatenate(gather(remote(_sketch).remote(block) for block in laid.shards[0]))
        planning = ray.put((ranges, sketches))
        scores: list[Any] = [None] * shards
        for first in range(0, self.draws, PLANNED_DRAWS):
            count = min(PLANNED_DRAWS, self.draws - first)
            draws = settled([remote(_plan).remote(planning, self.seed, first, count, self.subspace)])[0]
            if shards == 1:
                scores[0] = _by_draws(laid.shards[0], draws, count, self.alpha, self.beta, scores[0])
            else:
                scores = _by_rows(laid, draws, count, self.alpha, self.beta, scores)
            ray.wait(scores, num_returns=shards, fetch_local=False)
        report = {
            "draws": self.draws,
            "dimensions": laid.width,
            "constant_dimensions": laid.width - len(ranges.column),
            "shards": shards,
        }
        return scores, report


def _limits(memory: float | None) -> tuple[int, int]:
    """Bytes that a node may hold of the vectors, and that a shard may have if every CPU of a node works on another."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    store = min((node.get("object_store_memory", 0) for node in nodes), default=0)
    whole = round(memory * (1 << 30)) if memory is not None else int(0.8 * store)
    return whole, whole // max(1, int(max((node["CPU"] for node in nodes), default=1)))


def _pool_ranges(laid: ColumnMajor) -> Ranges:
    """Ranges over all rows: a task takes as many whole columns of the pool as a block is large, at least one."""
    cut, measure = remote(_cut), remote(_ranges)
    together = max(1, BLOCK_BYTES // (4 * laid.rows))
    found = []
    for blocks in zip(*laid.shards, strict=True):
        if len(blocks) == 1:
            found.append(measure.remote(*blocks))
            continue
        for first in range(0, laid.step, together):
            found.append(measure.remote(*(cut.remote(block, first, first + together) for block in blocks)))
    return Ranges.varying(*np.concatenate(gather(found), axis=1))


def _by_draws(blocks: list[Any], draws: Any, count: int, alpha: int, beta: float, total: Any) -> Any:
    """Scores of one matrix: the draws are shared out among tasks that all see the whole of it."""
    tasks = max(1, min(4 * cluster_cpus(), count // FEWEST_DRAWS))
    edges = [count * i // tasks for i in range(tasks + 1)]
    score, add = remote(_score).options(num_cpus=1), remote(_add)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = score.remote(blocks, [draws], start, stop, alpha, beta)
        total = part if total is None else add.remote(total, part)
    return total


def _by_rows(laid: ColumnMajor, draws: Any, count: int, alpha: int, beta: float, scores: list[Any]) -> list[Any]:
    """Scores of a matrix in shards: for each round of draws the shards answer with their nearest rows, twice."""
    import ray

    find, decide = remote(_nearest).options(num_cpus=1), remote(_winners)
    apply = remote(_apply)
    shards = len(laid.shards)
    everything = alpha + 1
    # Rows are spread evenly, so a shard rarely holds many more of the nearest than its share.
    share = min(everything, 3 * everything // (2 * shards) + 64)
    edges = [*range(0, count, ROUND_DRAWS), count]
    rounds = list(zip(edges[:-1], edges[1:], strict=True))
    window = max(1, 2 * cluster_cpus() // shards)
    for some in (rounds[i : i + window] for i in range(0, len(rounds), window)):
        winners = [decide.remote(*(find.remote(blocks, [draws], *bounds) for blocks in laid.shards)) for bounds in some]
        asked = list(zip(some, winners, strict=True))
        found = [_around(laid, draws, bounds, winner, share, alpha, beta) for bounds, winner in asked]
        enough = gather(answer[0] for answer in found)
        for i, (bounds, winner) in enumerate(asked):
            if not enough[i]:
                found[i] = _around(laid, draws, bounds, winner, everything, alpha, beta)
            scores = [
                apply.remote(score, laid.shard_rows(shard), found[i][1 + shard]) for shard, score in enumerate(scores)
            ]
        ray.wait(scores, num_returns=shards, fetch_local=False)
    return scores


def _around(
    laid: ColumnMajor, draws: Any, bounds: tuple[int, int], winner: Any, most: int, alpha: int, beta: float
) -> list[Any]:
    """Whether ``most`` rows of each shard were enough, and what is to be added to each shard's scores."""
    around, settle = remote(_rows_around).options(num_cpus=1), remote(_settle)
    near = [around.remote(blocks, [draws], *bounds, winner, most) for blocks in laid.shards]
    return settle.options(num_returns=1 + len(near)).remote(winner, alpha, beta, laid.rows, *near)


def _plan(planning: tuple[Ranges, np.ndarray], seed: int, first: int, count: int, subspace: int) -> Draws:
    ranges, sketches = planning
    return choose_strips(make_draws(seed, first, count, ranges, subspace), sketches)[0]


def _sketch(block: np.ndarray) -> np.ndarray:
    return sketch(Columns([block]))


def _cut(block: np.ndarray, first: int, last: int) -> np.ndarray:
    return block[first:last]


def _ranges(*pieces: np.ndarray) -> np.ndarray:
    return block_ranges(pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1))


def _open(blocks: list[Any], draws: list[Any], start: int, stop: int) -> tuple[Columns, Draws]:
    """The matrix, in place where it is on this node, and some of the draws."""
    import ray

    return Columns(ray.get(blocks)), ray.get(draws[0])[start:stop]


def _score(blocks: list[Any], draws: list[Any], start: int, stop: int, alpha: int, beta: float) -> np.ndarray:
    return score_draws(*_open(blocks, draws, start, stop), alpha, beta)


def _add(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    return total + part


def _nearest(blocks: list[Any], draws: list[Any], start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return nearest_rows(*_open(blocks, draws, start, stop))


def _winners(*found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each draw's winner among the shards, as a row of the pool, and its coordinates."""
    distance = np.stack([part[0] for part in found])
    row = np.stack([part[1] * len(found) + shard for shard, part in enumerate(found)])
    best = np.lexsort([row, distance], axis=0)[0]
    at = np.arange(len(best))
    return row[best, at], np.stack([part[2] for part in found])[best, at]


def _rows_around(
    blocks: list[Any], draws: list[Any], start: int, stop: int, winner: tuple[np.ndarray, np.ndarray], most: int
) -> tuple[np.ndarray, np.ndarray]:
    return rows_around(*_open(blocks, draws, start, stop), winner[1], most)


def _settle(
    winner: tuple[np.ndarray, np.ndarray], alpha: int, beta: float, rows: int, *near: tuple[np.ndarray, np.ndarray]
) -> tuple[Any, ...]:
    shards = len(near)
    distance = np.concatenate([part[0] for part in near], axis=1)
    row = np.concatenate([part[1] * shards + shard for shard, part in enumerate(near)], axis=1)
    limit, changed, units = settle(distance, row, winner[0], min(alpha, rows - 1), beta)
    enough = all(
        part[0].shape[1] == len(range(shard, rows, shards)) or bool((part[0][:, -1] > limit).all())
        for shard, part in enumerate(near)
    )
    of = changed % shards
    return (enough, *((changed[of == shard] // shards, units[of == shard]) for shard in range(shards)))


def _apply(score: np.ndarray | None, rows: int, change: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    score = np.zeros(rows, np.int64) if score is None else score.copy()
    np.add.at(score, change[0], change[1])
    return score


def _extremes(score: np.ndarray) -> tuple[int, int]:
    return (int(score.min()), int(score.max())) if len(score) else (0, 0)


def _finish(part: pa.Table, rank: np.ndarray, extremes: tuple[int, int], *scores: np.ndarray) -> pa.Table:
    low, high = extremes
    mine = np.empty(len(rank), np.int64)
    for shard, score in enumerate(scores):
        rows = np.flatnonzero(rank % len(scores) == shard)
        mine[rows] = score[rank[rows] // len(scores)]
    weight = (mine - low) / (high - low) if high > low else np.ones(len(mine))
    return score_table(part.column("id"), mine / UNIT, weight=pa.array(weight, pa.float64()))
