"""NearestCluster: rows in the clusters that the query's images fall into."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.kernels.similarity import nearest
from datas3_ray.lake.view import Mapped
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector
from datas3_ray.selectors.query import query_vectors


class NearestCluster(Selector):
    """Keep rows whose nearest centroid is also the nearest one of a query image (DataComp's image-based filtering).

    The pool is clustered by spherical k-means; a row is kept when some query image falls into its cluster. DataComp
    (arXiv 2304.14108) takes ImageNet-1k as the query and 100,000 clusters of the pool.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    clusters : int, optional
        Clusters of the k-means; one for each 1,000 rows of the table by default.
    metric : {"cosine"}
        Of both the k-means and the assignment of rows and queries. DataComp's code trains by Euclidean distance and
        assigns by raw dot product, which puts one row in ten into another cluster than its nearest; it is not offered.
    seed, iterations : int
        Of the k-means.

    Notes
    -----
    The number of rows kept is what it turns out to be: choose N of them with another method ``within`` this selection.
    The score is the number of query images in the row's cluster. Columns: ``cluster``, ``similarity``.

    >>> NearestCluster(column="clip", clusters=100_000).metric
    'cosine'
    """

    method: ClassVar[str] = "nearest_cluster"
    needs_query: ClassVar[bool] = True

    column: str
    clusters: int | None = Field(default=None, ge=1)
    metric: Literal["cosine"] = "cosine"
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster the pool, see where the queries fall, keep those clusters."""
        assert inputs.query is not None
        queries, unusable = query_vectors(inputs.query, self.column)
        clusters = self.clusters or max(1, round(inputs.table.count_rows() / 1000))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        place = remote(_hits).options(**matrix_task())
        hits = gather([place.remote(queries, clustering.centroids)])[0]
        finish = remote(_finish)
        parts: list[Any] = [finish.remote(part, hits) for part in clustering.mapped.parts]
        report = {
            "clusters": clustering.name,
            "clusters_hit": int((hits > 0).sum()),
            "queries": len(queries),
            "unusable_queries": unusable,
        }
        return Outcome(Mapped(parts, clustering.mapped._counts), report=report)


def _hits(queries: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """How many queries are nearest to each centroid."""
    return np.bincount(nearest(queries, centroids, device=device())[0], minlength=len(centroids))


def _finish(part: pa.Table, hits: np.ndarray) -> pa.Table:
    mine = hits[part.column("cluster").to_numpy()]
    return pa.table(
        {
            "id": part.column("id"),
            "keep": mine > 0,
            "score": mine.astype(np.float64),
            "cluster": part.column("cluster"),
            "similarity": part.column("similarity"),
        }
    )
