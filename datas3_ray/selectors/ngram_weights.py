"""The text side of ImportanceResampling: log-weights of captions from hashed n-grams, one task a fragment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.ngrams import NgramHasher, bucket_log_ratio
from datas3_ray.lake.view import Fragment, Mapped, View
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import score_table

if TYPE_CHECKING:
    from datas3_ray.lake import Table


@dataclass(frozen=True)
class NgramFeatures:
    """How captions become counts: the column they are in, the longest n-gram, the buckets, the query's smoothing."""

    column: str
    n: int
    buckets: int
    smoothing: float


def require_text(table: Table, column: str) -> None:
    """Raise a UsageError when the table has no such column, or it holds no text."""
    table.require_column(column)
    kind = table.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(f"column '{column}' of table '{table.name}' holds {kind} and n-grams need text.")


def ngram_scores(view: View, query: Table, features: NgramFeatures, seed: int) -> tuple[Mapped, dict[str, Any]]:
    """Parts with ``score`` (log-weight + Gumbel noise) and ``log_weight``, and figures for the report.

    A row whose caption holds no word is invalid, and counted so. The pool's n-grams are counted over all its eligible
    rows.
    """
    import ray

    captions = _captions(query.to_arrow([features.column]), features.column)
    hasher = NgramHasher(features.n, features.buckets)
    asked = hasher.count(captions)
    if not asked.any():
        raise UsageError(f"query table '{query.name}' has no word in column '{features.column}'.")
    counts = gather(view.map(_count, features).parts)
    pool = np.sum(counts, axis=0) if counts else np.zeros(features.buckets, np.int64)
    if not pool.any():
        raise UsageError(f"table '{view.table.name}' has no eligible row with a word in column '{features.column}'.")
    ratio = bucket_log_ratio(asked, pool, features.smoothing)
    mapped = view.map(_score, features, ray.put(ratio), seed)
    moments = gather(remote(_moments).remote(part) for part in mapped.parts)
    return mapped, {
        "queries": query.count_rows(),
        "query_ngrams": int(asked.sum()),
        "pool_ngrams": int(pool.sum()),
        "buckets_only_in_query": int(((asked > 0) & (pool == 0)).sum()),
        "effective_sample_size": _effective(moments),
    }


def _captions(rows: pa.Table, column: str) -> list[str]:
    return [text or "" for text in rows.column(column).to_pylist()]


def _count(fragment: Fragment, features: NgramFeatures) -> np.ndarray:
    hasher = NgramHasher(features.n, features.buckets)
    counts = np.zeros(features.buckets, np.int64)
    for rows in fragment.batches((features.column,)):
        counts += hasher.count(_captions(rows, features.column))
    return counts


def _score(fragment: Fragment, features: NgramFeatures, ratio: np.ndarray, seed: int) -> pa.Table:
    hasher = NgramHasher(features.n, features.buckets)
    parts = []
    for rows in fragment.batches((features.column,)):
        captions = _captions(rows, features.column)
        worded = np.array([any(not character.isspace() for character in text) for text in captions])
        fragment.counts.invalid += int((~worded).sum())
        ids = rows.column("id").filter(pa.array(worded))
        weight = hasher.log_weights((text for text, there in zip(captions, worded, strict=True) if there), ratio)
        noise = gumbel(hash64(id_words(ids), seed=seed, stream="importance"))
        parts.append(score_table(ids, weight + noise, log_weight=weight))
    return pa.concat_tables(parts) if parts else score_table(pa.array([], pa.string()), [], log_weight=np.empty(0))


def _moments(part: pa.Table) -> tuple[float, float, float]:
    """The largest log-weight, and the sums of the weights and of their squares in units of it."""
    weight = part.column("log_weight").to_numpy()
    if not len(weight):
        return -np.inf, 0.0, 0.0
    scaled = np.exp(weight - weight.max())
    return float(weight.max()), float(scaled.sum()), float((scaled**2).sum())


def _effective(moments: list[tuple[float, float, float]]) -> float:
    """(sum w)^2 / sum w^2 over all parts."""
    peak = max(moment[0] for moment in moments)
    total = sum(moment[1] * np.exp(moment[0] - peak) for moment in moments)
    squares = sum(moment[2] * np.exp(2 * (moment[0] - peak)) for moment in moments)
    return float(total**2 / squares)
