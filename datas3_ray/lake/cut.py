"""Exactly N rows of highest score out of parts that stay where they are.

The cut is found by radix: in each round every part answers with a histogram of one 16-bit digit of its keys (score,
then id), and the driver narrows down to the key of the N-th row; when few rows are left undecided it gathers those.
Memory on the driver is bounded whatever the number of rows, and the answer is that of one global sort.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from datas3_ray.kernels.ranking import (
    BINS,
    Cut,
    PrefixState,
    digit_histogram,
    matching_rows,
    next_state,
    rank_words,
    settle,
    start_search,
)
from datas3_ray.runtime import gather, remote

FEW = 100_000


def find_cut(parts: list[Any], count: int) -> Cut:
    """The cut above which exactly ``count`` rows of the parts lie; parts are tables with ``id`` and ``score``.

    Raises
    ------
    ValueError
        When there are fewer rows than ``count``, a score is NaN, or ids repeat.
    """
    pairs: list[Any] = [remote(_words).options(num_returns=2).remote(part) for part in parts]
    words = [pair[0] for pair in pairs]
    shapes = gather(pair[1] for pair in pairs)
    state = start_search(count, max((width for _, width in shapes), default=1))
    undecided = sum(rows for rows, _ in shapes)
    while state.cut is None:
        if undecided <= FEW:
            return settle(state, gather(remote(_matching).remote(part, state) for part in words))
        counts = gather(remote(_histogram).remote(part, state) for part in words)
        state = next_state(state, np.sum(counts, axis=0) if counts else np.zeros(BINS, np.int64))
        undecided = state.undecided or 0
    return state.cut


def apply_cut(part: pa.Table, cut: Cut | None) -> pa.Table:
    """The part with its column ``keep`` after id: decided by the cut, or the part's own where there is none."""
    if cut is not None:
        keep = cut.keep(rank_words(part.column("score").to_numpy(), part.column("id")))
        part = part.append_column("keep", pa.array(keep))
    rest = [name for name in part.schema.names if name not in ("id", "keep")]
    return part.select(["id", "keep", *rest])


def _words(part: pa.Table) -> tuple[np.ndarray, tuple[int, int]]:
    words = rank_words(part.column("score").to_numpy(), part.column("id"))
    return words, words.shape


def _matching(words: np.ndarray, state: PrefixState) -> np.ndarray:
    return matching_rows(words, state)


def _histogram(words: np.ndarray, state: PrefixState) -> np.ndarray:
    return digit_histogram(words, state)
