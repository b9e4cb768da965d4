"""ImportanceResampling (DSIR, arXiv 2302.03169): nested cluster histograms of images, or hashed n-grams of captions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.clustering import KMeansConfig, cluster, sample_vectors
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.importance import effective_sample_size, kl_reduction, nested_log_weights
from datas3_ray.kernels.kmeans import spherical_kmeans
from datas3_ray.kernels.similarity import nearest, normalize
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import device, gather, matrix_task
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.ngram_weights import NgramFeatures, ngram_scores, require_text
from datas3_ray.selectors.query import query_vectors

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class ImportanceResampling(Selector):
    """Draw ``size`` rows without replacement so that they are distributed as the query is.

    With ``features="clusters"`` they are the cells of a nested k-means: ``clusters`` cells and up to ``children`` in
    each. A row's weight is
    w = product over levels of p_query(cell | parent) / p_pool(cell | parent); the pool's shares are counted, the
    query's are backed off towards the pool's by a Dirichlet prior of ``pseudo_count`` rows. The mean of w over the
    pool is 1.

    With ``features="ngrams"`` they are the paper's own: the words and word pairs of a caption, hashed into buckets, and
    log w = sum over them of log(p_query + 1e-8) - log(p_pool + 1e-8), whose mean over the pool is not 1 and which is
    larger in magnitude for longer captions.

    Either way the rows with the largest log w + Gumbel noise are kept (Gumbel top-k), the noise being a hash of
    (seed, id).

    Parameters
    ----------
    column : str
        Of both the table and the query: a vector column, or for n-grams the column with the captions.
    features : {"clusters", "ngrams"}
    size : int or float
        Rows to draw: a count, or a share of the eligible rows.
    clusters : int, optional
        Cells of the first level; sqrt(rows) / 4 by default.
    children : int
        Cells of the second level in each cell of the first; 1 for a single level.
    pseudo_count : float
        How many rows of evidence the pool's own distribution counts for; larger is nearer to Random.
    ngrams, buckets : int
        The longest n-gram, and the buckets it may fall into.
    smoothing : float
        Added to the query's count of every bucket. With 0, a bucket that the query lacks costs up to 18.4 nats.
    seed, iterations : int
        Of the k-means and of the draw.

    Notes
    -----
    Columns: ``cluster`` and ``cell`` (its second level), ``weight`` (w); with n-grams, ``log_weight``. Rows whose
    caption holds no word are invalid; captions are not filtered by length. The report has the effective sample size
    (sum w)^2 / sum w^2 of the pool: with a ``size`` above it the selection cannot follow the query.

    >>> ImportanceResampling(column="clip", size=0.25, seed=0).pseudo_count
    20.0
    >>> ImportanceResampling(column="caption", features="ngrams", size=0.25).buckets
    10000
    """

    method: ClassVar[str] = "importance_resampling"
    needs_query: ClassVar[bool] = True

    column: str
    size: Size
    features: Literal["clusters", "ngrams"] = "clusters"
    clusters: int | None = Field(default=None, ge=1)
    children: int = Field(default=30, ge=1)
    pseudo_count: float = Field(default=20.0, gt=0)
    ngrams: int = Field(default=2, ge=1)
    buckets: int = Field(default=10_000, ge=1)
    smoothing: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    def vector(self) -> str | None:
        """The vector column, which n-grams do without."""
        return self.column if self.features == "clusters" else None

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """N-grams need a column of text on both sides."""
        super().check(lake, table, query)
        if self.features == "ngrams":
            assert query is not None
            require_text(table, self.column)
            require_text(query, self.column)

    def choose(self, inputs: Inputs) -> Outcome:
        """Weigh the rows by their features, and add the noise that makes the largest scores a draw."""
        if self.features == "clusters":
            return self._by_clusters(inputs)
        assert inputs.query is not None
        features = NgramFeatures(self.column, self.ngrams, self.buckets, self.smoothing)
        mapped, report = ngram_scores(inputs.view, inputs.query, features, self.seed)
        return Outcome(mapped, size=self.size, resizable=True, report=report)

    def _by_clusters(self, inputs: Inputs) -> Outcome:
        """Build the cells, count pool and query in them, weigh the cells, and score the rows."""
        import ray

        assert inputs.query is not None
        queries, unusable = query_vectors(inputs.query, self.column)
        clusters = self.clusters or max(1, round(math.sqrt(inputs.table.count_rows()) / 4))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
        sample = ray.put(sample_vectors(inputs.view, config))
        train = ray.remote(_train_cells).options(**matrix_task())
        cells = gather([train.remote(sample, clustering.centroids, self.children, config)])[0]
        cells_ref = ray.put(cells)
        located = inputs.view.zip(_locate, clustering.mapped.parts, cells_ref, resources=matrix_task())
        count = ray.remote(_count)
        pool = np.sum(gather(count.remote(part, cells_ref) for part in located.parts), axis=0)
        query_cell = gather([ray.remote(_locate_query).options(**matrix_task()).remote(queries, cells_ref)])[0]
        asked = np.bincount(query_cell, minlength=len(cells.parent))
        log_weight = _cell_weights(cells, pool, asked, self.pseudo_count)
        score = ray.remote(_score)
        parts = [score.remote(part, log_weight, self.seed) for part in located.parts]
        located.parts = parts
        report = {
            "clusters": clustering.name,
            "cells": int((pool > 0).sum()),
            "queries": len(queries),
            "unusable_queries": unusable,
            **_quality(log_weight, pool, asked),
        }
        return Outcome(located, size=self.size, resizable=True, report=report)


@dataclass(frozen=True)
class Cells:
    """The second level: centroids of the children of every first-level cell, one after another.

    Attributes
    ----------
    first : ndarray (k, d), float32
        Unit centroids of the first level.
    second : ndarray (c, d), float32
        Unit centroids of all children.
    parent : ndarray (c,), int64
        First-level cell of each child, ascending.
    """

    first: np.ndarray
    second: np.ndarray
    parent: np.ndarray

    def children(self, cell: int) -> slice:
        """Where the children of a first-level cell are."""
        return slice(int(np.searchsorted(self.parent, cell)), int(np.searchsorted(self.parent, cell, side="right")))

    def locate(self, unit: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """Child of each row: the nearest among the children of its first-level cell."""
        found = np.zeros(len(unit), np.int64)
        for cell in np.unique(cluster):
            rows = np.flatnonzero(cluster == cell)
            span = self.children(int(cell))
            found[rows] = span.start + nearest(unit[rows], self.second[span], device=device())[0]
        return found


def _train_cells(sample: np.ndarray, first: np.ndarray, children: int, config: KMeansConfig) -> Cells:
    cluster = nearest(sample, first, device=device())[0]
    second, parent = [], []
    for cell in range(len(first)):
        rows = sample[cluster == cell]
        if len(rows) == 0 or children == 1:
            centroids = first[cell : cell + 1]
        else:
            # A child should stand for at least eight rows of the sample, or its counts are noise.
            k = max(1, min(children, len(rows) // 8))
            centroids = spherical_kmeans(
                rows, k, seed=config.seed, iterations=config.iterations, device=device()
            ).centroids
        second.append(centroids)
        parent.append(np.full(len(centroids), cell))
    return Cells(first, np.concatenate(second), np.concatenate(parent))


def _locate(fragment: Fragment, part: pa.Table, cells: Cells) -> pa.Table:
    cluster = part.column("cluster").to_numpy()
    found, at = [], 0
    for ids, vectors in fragment.vectors():
        found.append(cells.locate(normalize(vectors)[0], cluster[at : at + len(ids)]))
        at += len(ids)
    cell = np.concatenate(found) if found else np.empty(0, np.int64)
    return pa.table({"id": part.column("id"), "cluster": part.column("cluster"), "cell": pa.array(cell, pa.int32())})


def _locate_query(queries: np.ndarray, cells: Cells) -> np.ndarray:
    return cells.locate(queries, nearest(queries, cells.first, device=device())[0])


def _count(part: pa.Table, cells: Cells) -> np.ndarray:
    return np.bincount(part.column("cell").to_numpy(), minlength=len(cells.parent))


def _cell_weights(cells: Cells, pool: np.ndarray, asked: np.ndarray, pseudo_count: float) -> np.ndarray:
    k = len(cells.first)
    level1 = np.bincount(cells.parent, weights=pool, minlength=k)
    query1 = np.bincount(cells.parent, weights=asked, minlength=k)
    roots = np.zeros(k, np.int64)
    return nested_log_weights([roots, cells.parent], [level1, pool], [query1, asked], pseudo_count)


def _quality(log_weight: np.ndarray, pool: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Effective sample size, largest and mean weight, and how much nearer the weighted pool is to the query (nats)."""
    there = pool > 0
    weight = np.exp(log_weight[there])
    share = pool[there] / pool.sum()
    # The query's own cells are smoothed a little, so that one without pool rows does not make the distance infinite.
    smooth = (asked[there] + share) / (asked[there].sum() + 1)
    weighted = share * weight / (share * weight).sum()
    return {
        "effective_sample_size": float(effective_sample_size(weight, pool[there])),
        "largest_weight": float(weight.max()),
        "mean_weight": float((share * weight).sum()),
        "kl_reduction": float(kl_reduction(smooth, share, weighted)),
    }


def _score(part: pa.Table, log_weight: np.ndarray, seed: int) -> pa.Table:
    ids = part.column("id")
    mine = log_weight[part.column("cell").to_numpy()]
    noise = gumbel(hash64(id_words(ids), seed=seed, stream="importance"))
    return pa.table(
        {
            "id": ids,
            "score": mine + noise,
            "cluster": part.column("cluster"),
            "cell": part.column("cell"),
            "weight": np.exp(mine),
        }
    )
