"""ImportanceResampling (DSIR, arXiv 2302.03169): nested cluster histograms of images, or hashed n-grams of captions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.cells import Cells, nested_cells
from datas3_ray.clustering import KMeansConfig
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.importance import effective_sample_size, kl_reduction, nested_log_weights
from datas3_ray.runtime import gather, matrix_task, remote
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
    The cells depend on the pool alone and are kept in the lake, so that the next query needs no pass over the vectors.

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
        """Count pool and query in the pool's cells, weigh the cells, and score the rows."""
        assert inputs.query is not None
        queries, unusable = query_vectors(inputs.query, self.column)
        clusters = self.clusters or max(1, round(math.sqrt(inputs.table.count_rows()) / 4))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        nested = nested_cells(inputs.lake, inputs.view, inputs.fingerprint(), config, self.children)
        cells, pool = nested.cells, nested.sizes
        locate = remote(_locate).options(**matrix_task())
        asked = np.bincount(gather([locate.remote(queries, cells)])[0], minlength=len(pool))
        log_weight = _cell_weights(cells, pool, asked, self.pseudo_count)
        score = remote(_score)
        mapped = nested.mapped
        mapped.parts = [score.remote(part, log_weight, self.seed) for part in mapped.parts]
        report = {
            "clusters": nested.name,
            "cells": int((pool > 0).sum()),
            "queries": len(queries),
            "unusable_queries": unusable,
            **_quality(log_weight, pool, asked),
        }
        return Outcome(mapped, size=self.size, resizable=True, report=report)


def _locate(queries: np.ndarray, cells: Cells) -> np.ndarray:
    return cells.locate_anywhere(queries)


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
