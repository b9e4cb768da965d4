"""SemDeDup: remove rows that are nearly the same as another row of their cluster (arXiv 2303.09540)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.clustering import Clustering, KMeansConfig, cluster
from datas3_ray.kernels.pairwise import cross_prior_max, merge_max, prior_max, prior_max_groups
from datas3_ray.runtime import device, gather, matrix_task
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.grouping import (
    BUCKET_ROWS,
    Dealing,
    Group,
    Order,
    answer,
    collect,
    deal,
    lexicographic,
    load_group,
    stack_words,
)


class SemDeDup(Selector):
    """Keep a row unless an earlier row of its cluster is more similar than ``1 - eps``.

    Rows are clustered by spherical k-means. In each cluster they are ordered (``keep``), and M_j is the largest
    cosine of row j to any *earlier* row, kept or not, and 0 for the first. Row j is removed when M_j > 1 - eps. So no
    two kept rows of a cluster are more similar than 1 - eps. Cosines are rounded to 6 decimals.

    Parameters
    ----------
    column : str
        Vector column.
    clusters : int, optional
        Clusters of the k-means; one for each 1,000 rows of the table by default.
    eps : float, optional
        Radius in cosine distance, in (0, 1]; larger removes more. 0.03 unless ``size`` is given.
    size : int or float, optional
        Keep exactly this many rows instead, those of smallest M.
    keep : {"hard", "easy", "random"}
        Order inside a cluster: farthest from the centroid first (the paper's), nearest first, or by a seeded hash.
    seed, iterations : int
        Of the k-means, and of the random order.

    Notes
    -----
    The score is 1 - M, so another ``eps`` or size is a filter on the finished selection: :meth:`Selection.resize`.
    Columns: ``cluster``, ``similarity`` (to the centroid), ``max_similarity`` (M) and ``duplicate_of`` (the earlier
    row that gives M; a duplicate when M > 1 - eps).

    >>> SemDeDup(column="clip", clusters=100, eps=0.03).keep
    'hard'
    """

    method: ClassVar[str] = "semdedup"
    bucket_rows: ClassVar[int] = BUCKET_ROWS
    """Rows that one task compares at most; a cluster with more is split over several tasks, with the same answer."""

    column: str
    clusters: int | None = Field(default=None, ge=1)
    eps: float | None = Field(default=None, gt=0, le=1)
    size: Size | None = None
    keep: Literal["hard", "easy", "random"] = "hard"
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _one_cut(self) -> SemDeDup:
        if self.eps is not None and self.size is not None:
            raise ValueError("give either eps or size, not both")
        return self

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster, deal the rows of each cluster together, and find each row's nearest earlier row."""
        clusters = self.clusters or max(1, round(inputs.table.count_rows() / 1000))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        order = Order(self.keep, self.seed)
        answers = nearest_earlier(inputs, clustering, order, self.bucket_rows)
        eps = None if self.size is not None else self.eps if self.eps is not None else 0.03
        scored = collect(inputs.view, clustering.mapped, answers, _finish, eps)
        report = {"clusters": clustering.name, "largest_cluster": int(clustering.sizes.max()), "eps": eps}
        return Outcome(scored, size=self.size, resizable=True, report=report)


def nearest_earlier(inputs: Inputs, clustering: Clustering, order: Order, bucket_rows: int = BUCKET_ROWS) -> list[Any]:
    """References to one answer a bucket: each row's largest cosine to an earlier row of its cluster, and that row."""
    import ray

    dealing = Dealing.plan(clustering.sizes, bucket_rows, splittable=True)
    buckets = deal(inputs.view, clustering.mapped.parts, dealing, vectors=True)
    split = {bucket for cluster_buckets in dealing.big() for bucket in cluster_buckets}
    whole = ray.remote(_whole_clusters).options(**matrix_task())
    answers = [whole.remote(order, *pieces) for number, pieces in enumerate(buckets) if number not in split]
    for cluster_buckets in dealing.big():
        answers += _split_cluster(order, [buckets[number] for number in cluster_buckets])
    return answers


def _whole_clusters(order: Order, *pieces: dict[str, Any]) -> pa.Table:
    group = load_group(order, pieces)
    similarity, earlier = prior_max_groups(group.matrix(), group.offsets, device=device())
    return _answer(group, similarity, earlier, group.ids)


def _split_cluster(order: Order, buckets: list[list[Any]]) -> list[Any]:
    """A cluster too big for one task: one task a pair of its pieces, merged by maximum."""
    import ray

    load = ray.remote(load_group).options(num_cpus=1)
    groups = [load.remote(order, pieces) for pieces in buckets]
    ranks, ids = _ranks(order, groups)
    tile = ray.remote(_tile).options(**matrix_task())
    pair = ray.remote(_tile).options(num_returns=2, **matrix_task())
    merge = ray.remote(_merge).options(num_cpus=1)
    found: list[list[Any]] = [[] for _ in groups]
    for a in range(len(groups)):
        found[a].append(tile.remote(groups[a], ranks[a]))
        for b in range(a):
            left, right = pair.remote(groups[a], ranks[a], groups[b], ranks[b])
            found[a].append(left)
            found[b].append(right)
    names = ray.put(ids)
    return [merge.remote(groups[a], names, *found[a]) for a in range(len(groups))]


def _ranks(order: Order, groups: list[Any]) -> tuple[list[np.ndarray], np.ndarray]:
    """Each row's place in its whole cluster, and the ids in that order; only keys and ids come to the driver."""
    import ray

    keys = gather(ray.remote(_rank_keys).remote(order, group) for group in groups)
    words = stack_words([key[0] for key in keys])
    sort = lexicographic(words)
    rank = np.empty(len(sort), np.int64)
    rank[sort] = np.arange(len(sort))
    ids = np.concatenate([key[1] for key in keys])[sort]
    return np.split(rank, np.cumsum([len(key[1]) for key in keys])[:-1]), ids


def _rank_keys(order: Order, group: Group) -> tuple[np.ndarray, np.ndarray]:
    return order.words(group.similarity, pa.array(group.ids, pa.string())), group.ids


def _tile(a: Group, rank_a: np.ndarray, b: Group | None = None, rank_b: np.ndarray | None = None) -> Any:
    """(cosine, rank of the earlier row) for the rows of one piece against itself, or of two against each other."""
    if b is None or rank_b is None:
        similarity, earlier = prior_max(a.matrix(), device=device())
        return similarity, np.where(earlier >= 0, rank_a[earlier], -1)
    return cross_prior_max(a.matrix(), rank_a, b.matrix(), rank_b, device=device())


def _merge(group: Group, ids: np.ndarray, *found: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    similarity, earlier = found[0]
    for other in found[1:]:
        similarity, earlier = merge_max((similarity, earlier), other)
    return _answer(group, similarity, earlier, ids)


def _answer(group: Group, similarity: np.ndarray, earlier: np.ndarray, ids: np.ndarray) -> pa.Table:
    """The answers of a group's rows; ``earlier`` are places in ``ids``, -1 where there is no earlier row."""
    names = pa.array(ids[earlier], pa.string(), mask=earlier < 0)
    return answer(group, max_similarity=pa.array(similarity, pa.float32()), duplicate_of=names)


def _finish(part: pa.Table, answers: pa.Table, eps: float | None) -> pa.Table:
    similarity = np.round(answers.column("max_similarity").to_numpy().astype(np.float64), 6)
    columns = {
        "id": part.column("id"),
        "score": 1.0 - similarity,
        "cluster": part.column("cluster"),
        "similarity": part.column("similarity"),
        "max_similarity": answers.column("max_similarity"),
        "duplicate_of": answers.column("duplicate_of"),
    }
    if eps is not None:
        columns["keep"] = ~(similarity > 1.0 - eps)
    return pa.table(columns)
