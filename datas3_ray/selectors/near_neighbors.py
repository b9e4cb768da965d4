"""NearNeighbors: the clusters of the pool that the deployment's examples fall into (DataS3, Near-Nbors)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.clustering import Clustering, KMeansConfig, cluster
from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.kmeans import spherical_kmeans
from datas3_ray.kernels.similarity import nearest, top_order_statistic
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table
from datas3_ray.selectors.neighbour_lists import ordered_queries

if TYPE_CHECKING:
    from datas3_ray.lake.view import Mapped


class NearNeighbors(Selector):
    """Keep the clusters of the pool that are nearest to the query's images.

    The paper's wording leaves three readings, and ``reading`` names the one that is meant:

    - ``union``: every row of every cluster that is the nearest one of some query image (as DataComp's image-based
      filter and DataS3's code do).
    - ``ranked``: exactly ``size`` rows. Clusters are ordered by how many query images fall into them, then by the
      largest cosine of their centroid to a query image, then by their number; whole clusters are taken while they fit,
      and of the last one the rows nearest to a query image.
    - ``query_clusters``: the query is clustered too, and each of its centroids takes the pool's nearest cluster.

    Nearest is by cosine, as in the clustering itself; empty clusters are nobody's.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    reading : {"union", "ranked", "query_clusters"}
    size : int or float, optional
        For ``ranked``, and only there: a count, or a share of the eligible rows.
    clusters : int
        Clusters of the pool; the paper's 1,000 by default.
    query_clusters : int
        Clusters of the query, for the reading of that name; fewer where the query has fewer rows.
    seed, iterations : int
        Of the k-means.

    Notes
    -----
    Columns: ``cluster``; with ``ranked``, ``query_similarity`` (cosine with the nearest query image). The score is the
    number of query images (or centroids) that hit the row's cluster; with ``ranked`` it is the ranking, and resizable.

    >>> NearNeighbors(column="clip", reading="ranked", size=0.25).clusters
    1000
    """

    method: ClassVar[str] = "near_neighbors"
    needs_query: ClassVar[bool] = True

    column: str
    reading: Literal["union", "ranked", "query_clusters"] = "union"
    size: Size | None = None
    clusters: int = Field(default=1000, ge=1)
    query_clusters: int = Field(default=50, ge=1)
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _size_where_ranked(self) -> NearNeighbors:
        if (self.size is not None) != (self.reading == "ranked"):
            raise ValueError("give size with reading='ranked', and only there; the other readings decide it themselves")
        return self

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster the pool, see where the query falls, and keep or rank by that."""
        import ray

        assert inputs.query is not None
        _, queries, unusable = ordered_queries(inputs.query, self.column)
        config = KMeansConfig(clusters=self.clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        place = remote(_place_query).options(**matrix_task())
        hits, similarity = gather([place.remote(queries, clustering.centroids, clustering.sizes, self._parts())])[0]
        report: dict[str, Any] = {
            "clusters": clustering.name,
            "clusters_hit": int((hits > 0).sum()),
            "queries": len(queries),
            "unusable_queries": unusable,
        }
        if self.reading != "ranked":
            return Outcome(_keep_hit(clustering, hits), report=report)
        order = np.lexsort((np.arange(len(hits)), -similarity.astype(np.float64), -hits))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        mapped = inputs.view.zip(_rank_rows, clustering.mapped.parts, ray.put(queries), rank, resources=matrix_task())
        return Outcome(mapped, size=self.size, resizable=True, report=report)

    def _parts(self) -> KMeansConfig | None:
        """How the query itself is clustered; None where each of its rows counts."""
        if self.reading != "query_clusters":
            return None
        return KMeansConfig(clusters=self.query_clusters, seed=self.seed, iterations=self.iterations)


def _place_query(
    queries: np.ndarray, centroids: np.ndarray, sizes: np.ndarray, config: KMeansConfig | None
) -> tuple[np.ndarray, np.ndarray]:
    """How many queries fall into each cluster, int64 (k,), and its largest cosine to one, float32 (k,)."""
    if config is not None:
        k = min(config.clusters, len(queries))
        queries = spherical_kmeans(queries, k, seed=config.seed, iterations=config.iterations).centroids
    there = np.flatnonzero(sizes > 0)
    nearest_there, _ = nearest(queries, centroids[there], device=device())
    hits = np.bincount(there[nearest_there], minlength=len(centroids))
    return hits, top_order_statistic(centroids, queries, 1, device=device())


def _keep_hit(clustering: Clustering, hits: np.ndarray) -> Mapped:
    keep = remote(_keep)
    clustering.mapped.parts = [keep.remote(part, hits) for part in clustering.mapped.parts]
    return clustering.mapped


def _keep(part: pa.Table, hits: np.ndarray) -> pa.Table:
    mine = hits[part.column("cluster").to_numpy()]
    return score_table(part.column("id"), mine, keep=mine > 0, cluster=part.column("cluster"))


def _rank_rows(fragment: Fragment, part: pa.Table, queries: np.ndarray, rank: np.ndarray) -> pa.Table:
    """Score = a fraction that rises with the row's cosine to a query, minus the rank of its cluster."""
    found = [top_order_statistic(vectors, queries, 1, device=device()) for _, vectors in fragment.vectors()]
    similarity = np.concatenate([np.empty(0, np.float32), *found])
    fraction = (np.round(similarity.astype(np.float64) * SCALE) + SCALE) / (2 * SCALE + 1)
    cluster = part.column("cluster")
    return score_table(
        part.column("id"), fraction - rank[cluster.to_numpy()], cluster=cluster, query_similarity=similarity
    )
