"""SSP: the rows that are least like their cluster's prototype (Sorscher et al., arXiv 2206.14486)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.kernels.group_ranking import GroupCuts
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.kernels.strata import floor_counts
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.group_cut import find_group_cuts, group_keep

BOUND = 4.0
"""What a row's score has on top where its cluster's balance keeps it: more than any cosine distance."""


class SSP(Selector):
    """Keep the ``size`` rows that are farthest from the centroid of their cluster, with a floor for every cluster.

    Self-supervised prototypes: rows are clustered by spherical k-means and ranked by their cosine distance to their own
    centroid. Each cluster first keeps its farthest rows up to its floor; what is left of the size goes to the farthest
    of all other rows, whatever their cluster.

    Parameters
    ----------
    column : str
        Vector column.
    size : int or float
        Rows to keep, N: a count, or a share of the eligible rows n.
    clusters : int, optional
        Clusters of the k-means (about 1,000 in the paper); one for each 1,000 rows of the table by default.
    balance : {"proportional", "equal"}
        What the floor of a cluster with M rows is, out of k that are not empty: floor(share M N / n), or
        min(M, floor(share N / k)).
    share : float
        How much of the size is bound by the floors, from 0 (one global ranking) to 1. The paper has 0.5; 1.0 is what
        density-based pruning was compared with.
    seed, iterations : int
        Of the k-means.

    Notes
    -----
    The score is the distance, plus 4 for what a floor keeps. It cannot be cut at another size, since the floors depend
    on the size. Columns: ``cluster``, ``similarity`` (to the centroid), ``bound`` (whether a floor keeps it).

    >>> SSP(column="clip", size=0.4, share=1.0).balance
    'proportional'
    """

    method: ClassVar[str] = "ssp"

    column: str
    size: Size
    clusters: int | None = Field(default=None, ge=1)
    balance: Literal["proportional", "equal"] = "proportional"
    share: float = Field(default=0.5, ge=0, le=1)
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster, find each cluster's floor, and rank what is left."""
        clusters = self.clusters or max(1, round(inputs.table.count_rows() / 1000))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        eligible = int(clustering.sizes.sum())
        total = min(eligible, resolve_size(self.size, eligible))
        floors = floor_counts(clustering.sizes, total, self.share, self.balance)
        mapped = clustering.mapped
        mapped.parts = with_floors(mapped.parts, clustering.sizes, floors)
        report = {"clusters": clustering.name, "bound_rows": int(floors.sum()), "largest_floor": int(floors.max())}
        return Outcome(mapped, size=self.size, report=report)


def with_floors(parts: list[Any], sizes: np.ndarray, floors: np.ndarray) -> list[Any]:
    """Parts with ``id``, ``cluster`` and ``similarity`` as parts that a size cuts: floors first, then distance."""
    ranked = [remote(_ranked).remote(part) for part in parts]
    cuts = find_group_cuts(ranked, floors, sizes)
    return [remote(_finish).remote(part, cuts) for part in ranked]


def _ranked(part: pa.Table) -> pa.Table:
    distance = 1.0 - part.column("similarity").to_numpy().astype(np.float64)
    return pa.table(
        {
            "id": part.column("id"),
            "group": part.column("cluster"),
            "score": distance,
            "similarity": part.column("similarity"),
        }
    )


def _finish(part: pa.Table, cuts: GroupCuts) -> pa.Table:
    bound = group_keep(part, cuts)
    return pa.table(
        {
            "id": part.column("id"),
            "score": part.column("score").to_numpy() + BOUND * bound,
            "cluster": part.column("group"),
            "similarity": part.column("similarity"),
            "bound": pa.array(bound),
        }
    )
