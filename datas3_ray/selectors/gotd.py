"""GOTD: rows whose greater weight would bring the pool nearer to the query (arXiv 2405.02774)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels.similarity import normalize
from datas3_ray.kernels.sinkhorn import LEAST_EPSILON, calibrated_gradient, next_potential, shard_step
from datas3_ray.lake.view import Fragment, View
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector, Size, score_table
from datas3_ray.selectors.neighbour_lists import ordered_queries


class GOTD(Selector):
    """Keep the ``size`` rows along which the optimal-transport distance from pool to query falls fastest.

    The gradient of the (entropic) transport cost in the weight of row i is its calibrated dual potential,
    f_i - mean of f_j over all other rows; the most negative ones are kept. One Sinkhorn problem is solved for the whole
    pool, with cost 1 - cosine and uniform weights on both sides.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    size : int or float
        Rows to keep: a count, or a share of the eligible rows.
    epsilon : float
        Entropic regularisation in units of the cost, at least 0.01. Smaller is nearer to unregularised transport and
        takes more iterations.
    tolerance : float
        Sinkhorn ends when the mass that reaches the queries differs from uniform by no more than this, as a share of
        all mass.
    iterations : int
        At most this many.

    Notes
    -----
    An iteration is one pass over the table: each fragment sends back one number a query (n m d multiply-adds in
    float64, memory of one block), so the method fits queries of up to some thousands of images. The score is minus the
    gradient, rounded to 9 decimals; the gradients of all rows add up to 0.

    >>> GOTD(column="clip", size=0.1).epsilon
    0.05
    """

    method: ClassVar[str] = "gotd"
    needs_query: ClassVar[bool] = True

    column: str
    size: Size
    epsilon: float = Field(default=0.05, ge=LEAST_EPSILON, allow_inf_nan=False)
    tolerance: float = Field(default=1e-3, gt=0)
    iterations: int = Field(default=100, ge=1)

    def choose(self, inputs: Inputs) -> Outcome:
        """Solve for the queries' potentials, then score every row by its own."""
        import ray

        assert inputs.query is not None
        _, queries, unusable = ordered_queries(inputs.query, self.column)
        shared = ray.put(queries)
        potential, figures = self._solve(inputs.view, shared, len(queries))
        mapped = inputs.view.map(_potentials, shared, potential, self.epsilon, resources=matrix_task())
        n = mapped.counts().eligible
        mean = sum(gather(remote(_sum).remote(part) for part in mapped.parts)) / n
        mapped.parts = [remote(_score).remote(part, mean, n) for part in mapped.parts]
        # The mean of both potentials is the dual value, whose maximum is the cost of transport.
        report = {"queries": len(queries), "unusable_queries": unusable, **figures, "cost": mean + potential.mean()}
        return Outcome(mapped, size=self.size, resizable=True, report=report)

    def _solve(self, view: View, queries: Any, m: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The queries' potentials float64 (m,), and how the iteration went."""
        potential = np.zeros(m)
        error, step = np.inf, 0
        while step < self.iterations:
            mapped = view.map(_mass, queries, potential, self.epsilon, resources=matrix_task())
            n = mapped.counts().eligible
            if n == 0:
                raise UsageError(
                    f"table '{view.table.name}' has no eligible row with a usable vector in column '{self.column}'."
                )
            updated, error = next_potential(potential, np.sum(mapped.results(), axis=0), n, self.epsilon)
            step += 1
            if error <= self.tolerance:
                break
            potential = updated
        return potential, {"iterations": step, "marginal_error": error, "converged": error <= self.tolerance}


def _mass(fragment: Fragment, queries: np.ndarray, g: np.ndarray, epsilon: float) -> np.ndarray:
    mass = np.zeros(len(g))
    for _, vectors in fragment.vectors():
        mass += shard_step(normalize(vectors)[0], queries, g, epsilon, device()).mass
    return mass


def _potentials(fragment: Fragment, queries: np.ndarray, g: np.ndarray, epsilon: float) -> pa.Table:
    ids, found = [], [np.empty(0)]
    for batch_ids, vectors in fragment.vectors():
        ids.append(batch_ids)
        found.append(shard_step(normalize(vectors)[0], queries, g, epsilon, device()).potential)
    return score_table(pa.chunked_array(ids, pa.string()), np.concatenate(found))


def _sum(part: pa.Table) -> float:
    return float(part.column("score").to_numpy().sum())


def _score(part: pa.Table, mean: float, n: int) -> pa.Table:
    gradient = calibrated_gradient(part.column("score").to_numpy(), mean, n)
    # Rounded so that the order in which shards were added up decides nothing.
    return score_table(part.column("id"), -np.round(gradient, 9))
