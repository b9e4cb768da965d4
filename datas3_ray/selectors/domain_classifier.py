"""DomainClassifier: how much likelier a row is under the query than under the pool."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import gumbel, hash64, id_words, uniform
from datas3_ray.kernels.importance import effective_sample_size
from datas3_ray.kernels.logistic import Logistic, area_under_curve, fit_logistic
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.view import Fragment, View
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table
from datas3_ray.selectors.neighbour_lists import ordered_queries


class DomainClassifier(Selector):
    """Score rows by the log density ratio of query to pool that a logistic regression on their vectors estimates.

    The regression tells query rows from pool rows, both classes weighing a half, so its log-odds estimate
    log p_query(x) - log p_pool(x), the importance weight that DSIR (arXiv 2302.03169) takes from n-grams. It is
    cross-fitted: ids are dealt into folds by a hash, and a row is scored by the model that saw nothing of its fold, so
    that a model that learns its pool rows by heart does not mark them down.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    size : int or float
        Rows to keep: a count, or a share of the eligible rows.
    sample : bool
        Draw the rows without replacement with weights exp(log ratio) (Gumbel top-k) in place of keeping the best.
    l2 : float
        Penalty on the weights: l2 / 2 |w|^2 beside the mean loss.
    folds : int
        At most the number of query rows; with a query of one row, all rows are scored by the one model.
    pool_rows : int
        The models are trained on this many rows of the pool at most, those with the smallest seeded hash; all rows are
        scored.
    seed : int
        Of the folds, the sample and the draw.

    Notes
    -----
    Column: ``log_ratio``. The report has the area under the curve of the held-out scores (0.5: the query cannot be told
    from the pool; 1: it is apart, and the ratio says little about how much), the mean weight over the training sample
    (near 1 when the ratio is calibrated) and the effective share of it. Training holds ``pool_rows`` vectors in float64
    in one task a fold; scoring streams.

    >>> DomainClassifier(column="clip", size=0.25).pool_rows
    50000
    """

    method: ClassVar[str] = "domain_classifier"
    needs_query: ClassVar[bool] = True

    column: str
    size: Size
    sample: bool = False
    l2: float = Field(default=1e-3, gt=0, le=1e6)
    folds: int = Field(default=5, ge=2)
    pool_rows: int = Field(default=50_000, ge=1)
    seed: Seed = 0

    def choose(self, inputs: Inputs) -> Outcome:
        """Train a model a fold, then score every row by the model of its fold."""
        import ray

        assert inputs.query is not None
        names, queries, unusable = ordered_queries(inputs.query, self.column)
        words, pool = sample_rows(inputs.view, self.pool_rows, self.seed, "domain-sample")
        if not len(pool):
            raise UsageError(
                f"table '{inputs.table.name}' has no eligible row with a usable vector in column '{self.column}'."
            )
        folds = min(self.folds, len(queries))
        hashes = hash64(id_words(names), seed=self.seed, stream="domain-folds")
        # By rank, so that no fold is without queries.
        query_fold = np.argsort(np.argsort(hashes, kind="stable"), kind="stable") % folds
        pool_fold = _folds(words, self.seed, folds)
        positives, negatives = ray.put(queries), ray.put(pool)
        train = remote(_train).options(num_cpus=1)
        models = gather(
            train.remote(positives, query_fold, negatives, pool_fold, fold if folds > 1 else -1, self.l2)
            for fold in range(folds)
        )
        mapped = inputs.view.map(_score, ray.put(models), self.seed, self.sample)
        report = {
            "queries": len(queries),
            "unusable_queries": unusable,
            "folds": folds,
            "trained_on": len(pool),
            **_quality(models, queries, query_fold, pool, pool_fold),
        }
        return Outcome(mapped, size=self.size, resizable=True, report=report)


def sample_rows(view: View, wanted: int, seed: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Words uint64 (s, w) and unit vectors float32 (s, d) of the rows with the smallest seeded hash, by hash.

    The same rows in the same order whatever the partitions; s is ``wanted``, or all eligible rows.
    """
    rows = max(1, view.table.count_rows())
    share = min(1.0, 1.1 * wanted / rows + 1e-3)
    while True:
        mapped = view.map(_sampled, share, seed, stream)
        needed = min(wanted, mapped.counts().eligible)
        parts = [part for part in mapped.results() if part is not None]
        if sum(len(part[0]) for part in parts) >= needed:
            break
        share = min(1.0, 4 * share)
    if not parts:
        return np.empty((0, 1), np.uint64), np.empty((0, 0), np.float32)
    width = max(part[0].shape[1] for part in parts)
    words = np.concatenate([np.pad(part[0], ((0, 0), (0, width - part[0].shape[1]))) for part in parts])
    vectors = np.concatenate([part[1] for part in parts])
    hashes = hash64(words, seed=seed, stream=stream)
    order = np.lexsort((*words.T[::-1], hashes))[:needed]
    return words[order], vectors[order]


def _sampled(fragment: Fragment, share: float, seed: int, stream: str) -> tuple[np.ndarray, np.ndarray] | None:
    words, vectors = [], []
    for ids, batch in fragment.vectors():
        names = id_words(ids)
        mine = uniform(hash64(names, seed=seed, stream=stream)) < share if share < 1 else np.ones(len(ids), bool)
        words.append(names[mine])
        vectors.append(normalize(batch[mine])[0])
    if not words:
        return None
    width = max(part.shape[1] for part in words)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in words]), np.concatenate(vectors)


def _folds(words: np.ndarray, seed: int, folds: int) -> np.ndarray:
    return (hash64(words, seed=seed, stream="domain-folds") % np.uint64(folds)).astype(np.int64)


def _train(
    queries: np.ndarray, query_fold: np.ndarray, pool: np.ndarray, pool_fold: np.ndarray, fold: int, l2: float
) -> Logistic:
    """The model that saw nothing of ``fold``, or that saw all (fold -1, or nothing else is there)."""
    others = pool_fold != fold
    return fit_logistic(queries[query_fold != fold], pool[others] if others.any() else pool, l2)


def _log_ratio(models: list[Logistic], vectors: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The log-odds of each row by the model of its fold, rounded so that how rows are batched decides nothing."""
    found = np.empty(len(vectors))
    for number, model in enumerate(models):
        mine = fold == number
        found[mine] = model.log_odds(vectors[mine])
    return np.round(found, 9)


def _score(fragment: Fragment, models: list[Logistic], seed: int, draw: bool) -> pa.Table:
    ids, ratios, scores = [], [np.empty(0)], [np.empty(0)]
    for batch_ids, vectors in fragment.vectors():
        words = id_words(batch_ids)
        ratio = _log_ratio(models, normalize(vectors)[0], _folds(words, seed, len(models)))
        ids.append(batch_ids)
        ratios.append(ratio)
        scores.append(ratio + gumbel(hash64(words, seed=seed, stream="domain-draw")) if draw else ratio)
    return score_table(pa.chunked_array(ids, pa.string()), np.concatenate(scores), log_ratio=np.concatenate(ratios))


def _quality(
    models: list[Logistic], queries: np.ndarray, query_fold: np.ndarray, pool: np.ndarray, pool_fold: np.ndarray
) -> dict[str, Any]:
    asked, there = _log_ratio(models, queries, query_fold), _log_ratio(models, pool, pool_fold)
    return {
        "held_out_auc": area_under_curve(asked, there),
        "mean_weight": float(np.exp(there).mean()),
        "effective_share": effective_sample_size(np.exp(there - there.max())) / len(there),
        "largest_gradient": max(model.gradient for model in models),
    }
