"""Density-based pruning: more rows from clusters that are wide and far from others (arXiv 2401.04578)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.kernels.density import dbp_counts
from datas3_ray.kernels.kmeans import centroid_statistics
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.grouping import BUCKET_ROWS, Dealing, Order, answer, collect, deal, load_group


class DensityPruning(Selector):
    """Keep ``size`` rows, shared out among clusters by their complexity, the farthest from the centroid in each.

    With d_intra(j) the mean cosine distance of cluster j's members to its centroid and d_inter(j) the mean distance of
    its centroid to the ``neighbours`` nearest others, P = softmax(d_inter * d_intra / tau), and the counts x minimise
    sum (x_j^2 - 2 P_j N x_j) with sum x = N and 1 <= x_j <= M_j (equation 3), in integers, exactly. Run it on what
    SemDeDup kept (``within``): density means nothing among duplicates.

    Parameters
    ----------
    column : str
        Vector column.
    size : int or float
        Rows to keep: a count, or a share of the eligible rows.
    clusters : int
        500 in the paper for 280 million images, 100 for 96 million.
    tau : float
        Temperature of the softmax.
    neighbours : int
        Other centroids that d_inter looks at.
    seed, iterations : int
        Of the k-means.

    Notes
    -----
    The score is (quota - rank) / members inside the cluster, above 0 for what is kept. It cannot be cut at another
    size, since the quotas depend on the size. Columns: ``cluster``, ``similarity`` (to the centroid).

    >>> DensityPruning(column="dino", clusters=500, size=0.4).tau
    0.1
    """

    method: ClassVar[str] = "density_pruning"
    bucket_rows: ClassVar[int] = 10 * BUCKET_ROWS

    column: str
    size: Size
    clusters: int = Field(default=100, ge=1)
    tau: float = Field(default=0.1, ge=1e-9, allow_inf_nan=False)
    neighbours: int = Field(default=20, ge=1)
    seed: Seed = 0
    iterations: int = Field(default=100, ge=1)

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster, allocate, and keep each cluster's farthest rows."""
        config = KMeansConfig(clusters=self.clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        eligible = int(clustering.sizes.sum())
        total = min(eligible, resolve_size(self.size, eligible))
        distance = np.nan_to_num(clustering.mean_distance) * clustering.sizes
        intra, inter = centroid_statistics(clustering.centroids, clustering.sizes, distance, self.neighbours)
        quota = dbp_counts(intra, inter, clustering.sizes, total, self.tau)
        dealing = Dealing.plan(clustering.sizes, self.bucket_rows)
        keyed = Order("hard").keyed(inputs.view, clustering.mapped.parts)
        buckets = deal(inputs.view, keyed, dealing, vectors=False)
        farthest = remote(_farthest)
        answers = [farthest.remote(quota, *pieces) for pieces in buckets]
        mapped = collect(inputs.view, clustering.mapped, answers, _finish)
        report: dict[str, Any] = {
            "clusters": clustering.name,
            "quota_min": int(quota[clustering.sizes > 0].min()),
            "quota_max": int(quota.max()),
            "clusters_kept_whole": int(((quota == clustering.sizes) & (quota > 0)).sum()),
        }
        return Outcome(mapped, asked=resolve_size(self.size, eligible), report=report)


def _farthest(quota: np.ndarray, *pieces: dict[str, Any]) -> pa.Table:
    group = load_group(pieces)
    sizes = np.diff(group.offsets)
    rank = np.arange(len(group)) - np.repeat(group.offsets[:-1], sizes)
    allowed = quota[group.cluster]
    return answer(group, keep=rank < allowed, score=(allowed - rank) / np.repeat(sizes, sizes))


def _finish(part: pa.Table, answers: pa.Table) -> pa.Table:
    return pa.table(
        {
            "id": part.column("id"),
            "keep": answers.column("keep"),
            "score": answers.column("score"),
            "cluster": part.column("cluster"),
            "similarity": part.column("similarity"),
        }
    )
