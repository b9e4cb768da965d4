"""Importance weights of nested cells: how much more often a query falls into a cell than the pool does.

The image analogue of hashed n-grams (DSIR, arXiv 2302.03169, section 3): the tokens of an image are its cells at the
levels of a nested clustering. The pool's shares are counted; the query's are backed off towards them with a Dirichlet
prior of ``pseudo_count`` observations; and by the chain rule the levels multiply without counting anything twice:

    w(leaf) = product over levels of p_query(cell | parent) / p_pool(cell | parent)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def nested_log_weights(
    parents: Sequence[npt.ArrayLike],
    pool_counts: Sequence[npt.ArrayLike],
    query_counts: Sequence[npt.ArrayLike],
    pseudo_count: float,
) -> Float64:
    """log w of every leaf cell.

    Args:
        parents: for each level but the first, an int array (cells of the level,) with each cell's parent in the
            level above; the first level's may be given too, as zeros.
        pool_counts: for each level, the pool rows in each cell.
        query_counts: for each level, the query rows in each cell.
        pseudo_count: observations that the pool's shares count for; 0 for none, infinity for w = 1 everywhere.

    Returns:
        float64 (leaves,). The mean of exp(log w) over the pool is 1. A cell that no pool row is in has -inf, and
        query rows in such cells say nothing; children of a cell without query rows have their parent's weight.

    Raises:
        ValueError: the arrays do not fit together, children do not add up to their parents, or a count is negative.

    >>> nested_log_weights([], [[1, 3]], [[3, 1]], pseudo_count=0).round(4).tolist()
    [1.0986, -1.0986]
    """
    if not pseudo_count >= 0:
        raise ValueError(f"pseudo_count must be 0 or more, not {pseudo_count}")
    pool = [_counts(level, "pool") for level in pool_counts]
    query = [_counts(level, "query") for level in query_counts]
    above = _parents(parents, pool, query)
    if pool[0].sum() <= 0:
        raise ValueError("the pool is empty")
    log_weights = np.zeros(1)
    for level, parent in enumerate(above):
        _require_children_add_up(parent, pool, level, "pool")
        _require_children_add_up(parent, query, level, "query")
        ratios = _log_ratios(parent, len(log_weights), pool[level], query[level], float(pseudo_count))
        log_weights = np.where(pool[level] > 0, log_weights[parent] + ratios, -np.inf)
    return log_weights


def effective_sample_size(w: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted rows are worth as much.

    Args:
        w: (k,) weights, not negative, not all zero.
        counts: (k,) rows that have each weight; one each by default.

    >>> effective_sample_size([1.0, 1.0, 0.0]), effective_sample_size([2.0, 0.0], [3, 5])
    (2.0, 3.0)
    """
    weights = _counts(w, "weight")
    rows = np.ones(len(weights)) if counts is None else _counts(counts, "row")
    if rows.shape != weights.shape:
        raise ValueError(f"there are {len(weights)} weights and {len(rows)} counts")
    if not (rows * weights).sum() > 0:
        raise ValueError("an effective sample size needs at least one row with a weight above 0")
    scaled = weights / weights.max()
    return float((rows * scaled).sum() ** 2 / (rows * scaled**2).sum())


def kl_reduction(p_target: npt.ArrayLike, q_raw: npt.ArrayLike, p_selected: npt.ArrayLike) -> float:
    """KL(target || raw) - KL(target || selected), in nats: how much nearer to the target the selection is.

    Args:
        p_target: (k,) shares or counts of the target's cells; each argument is divided by its sum.
        q_raw: (k,) of the pool; above 0 wherever the target is.
        p_selected: (k,) of the selection.

    Returns:
        The reduction, -inf where the selection lacks a cell that the target has.

    Raises:
        ValueError: the lengths differ, a share is negative or NaN, a sum is 0, or the pool lacks a target's cell.

    >>> round(kl_reduction([3, 1], [1, 3], [3, 1]), 6)
    0.549306
    """
    target, raw, selected = (
        _shares(values, name) for values, name in ((p_target, "p_target"), (q_raw, "q_raw"), (p_selected, "p_selected"))
    )
    if not target.shape == raw.shape == selected.shape:
        raise ValueError(f"shares of {len(target)}, {len(raw)} and {len(selected)} cells cannot be compared")
    there = target > 0
    if (raw[there] == 0).any():
        cell = int(np.flatnonzero(there & (raw == 0))[0])
        raise ValueError(f"the target has cell {cell} and the pool does not; compare cells that the pool has")
    with np.errstate(divide="ignore"):
        return float((target[there] * (np.log(selected[there]) - np.log(raw[there]))).sum())


def _log_ratios(parent: Int64, parents: int, pool: Float64, query: Float64, pseudo_count: float) -> Float64:
    """log of p_query(cell | parent) / p_pool(cell | parent), p_query backed off to p_pool; 0 where nothing is known.

    With m_c query rows in cell c out of m in its parent, and p_c the pool's share, the ratio is
    (m_c + a p_c) / (m + a) / p_c = (m_c / p_c + a) / (m + a).
    """
    if np.isinf(pseudo_count):
        return np.zeros(len(pool))
    # Queries where the pool has nothing would take their share of the weight away from every row.
    heard = np.where(pool > 0, query, 0.0)
    pool_above = np.bincount(parent, pool, parents)[parent]
    heard_above = np.bincount(parent, heard, parents)[parent]
    share = np.divide(pool, pool_above, out=np.ones(len(pool)), where=pool > 0)
    known = (heard_above + pseudo_count > 0) & (pool > 0)
    ratio = np.divide(heard / share + pseudo_count, heard_above + pseudo_count, out=np.ones(len(pool)), where=known)
    with np.errstate(divide="ignore"):
        return np.log(ratio)


def _counts(values: npt.ArrayLike, name: str) -> Float64:
    counts = np.asarray(values, np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"{name} counts must be a vector of finite numbers that are not negative")
    return counts


def _shares(values: npt.ArrayLike, name: str) -> Float64:
    shares = _counts(values, name)
    if not shares.sum() > 0:
        raise ValueError(f"{name} must have a positive sum")
    return shares / shares.sum()


def _parents(parents: Sequence[npt.ArrayLike], pool: list[Float64], query: list[Float64]) -> list[Int64]:
    """Each level's parents, the first level's being one root."""
    levels = len(pool)
    if levels == 0 or len(query) != levels or len(parents) not in (levels, levels - 1):
        raise ValueError(
            f"{levels} levels of pool counts need as many of query counts and the parents of all levels but the first, "
            f"not {len(query)} and {len(parents)}"
        )
    given: list[Any] = list(parents)
    if len(given) < levels:
        given = [np.zeros(len(pool[0]), np.int64), *given]
    above = []
    for level, parent in enumerate(given):
        cells = np.asarray(parent)
        limit = len(pool[level - 1]) if level else 1
        if not cells.shape == pool[level].shape == query[level].shape:
            raise ValueError(
                f"level {level} has {len(cells)} parents, {len(pool[level])} pool counts and {len(query[level])} "
                f"query counts"
            )
        if cells.size and (cells.dtype.kind not in "iu" or cells.min() < 0 or cells.max() >= limit):
            raise ValueError(f"parents of level {level} must be whole numbers from 0 to {limit - 1}")
        above.append(cells.astype(np.int64))
    return above


def _require_children_add_up(parent: Int64, counts: list[Float64], level: int, name: str) -> None:
    if level == 0:
        return
    sums = np.bincount(parent, counts[level], len(counts[level - 1]))
    wrong = ~np.isclose(sums, counts[level - 1], rtol=1e-9, atol=1e-9)
    if wrong.any():
        cell = int(np.argmax(wrong))
        raise ValueError(
            f"the children of cell {cell} of level {level - 1} have {sums[cell]:g} {name} rows and the cell has "
            f"{counts[level - 1][cell]:g}"
        )
