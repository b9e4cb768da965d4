"""Exactly q_j rows of highest score out of every group j, in parts that stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from datas3_ray.kernels.group_ranking import (
    GroupCuts,
    GroupSearch,
    group_histogram,
    matching_group_rows,
    next_group_search,
    settle_groups,
    start_group_search,
)
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.runtime import gather, remote

FEW = 100_000


def group_sizes(parts: list[Any], groups: int) -> np.ndarray:
    """Rows of each group, int64 (groups,), over all parts; a part's column ``group`` is negative for no group."""
    count = remote(_count)
    return add_up([count.remote(part, groups) for part in parts], np.zeros(groups, np.int64))


def find_group_cuts(parts: list[Any], quota: np.ndarray, sizes: np.ndarray) -> GroupCuts:
    """The cuts above which exactly ``quota[j]`` rows of each group lie; parts have ``id``, ``score`` and ``group``.

    Raises
    ------
    ValueError
        When a quota is more than the group has, a score is NaN, or ids repeat.
    """
    import ray

    pairs: list[Any] = [remote(_words).options(num_returns=2).remote(part) for part in parts]
    words = [pair[0] for pair in pairs]
    search = start_group_search(quota, sizes, max(gather(pair[1] for pair in pairs), default=1))
    while (cuts := search.cuts) is None:
        state = ray.put(search)
        if int(search.undecided[search.open].sum()) <= FEW:
            return settle_groups(search, gather(remote(_matching).remote(part, state) for part in words))
        empty = np.zeros((int(search.open.sum()), 1 << search.digit), np.int64)
        search = next_group_search(search, add_up([remote(_histogram).remote(p, state) for p in words], empty))
    return cuts


def group_keep(part: pa.Table, cuts: GroupCuts) -> np.ndarray:
    """Which rows of a part its groups keep."""
    return cuts.keep(rank_words(part.column("score").to_numpy(), part.column("id")), part.column("group").to_numpy())


def add_up(refs: list[Any], total: np.ndarray) -> np.ndarray:
    """The sum of arrays that tasks return, one of them in this process at a time."""
    for ref in refs:
        total = total + gather([ref])[0]
    return total


def _count(part: pa.Table, groups: int) -> np.ndarray:
    group = part.column("group").to_numpy()
    return np.bincount(group[group >= 0], minlength=groups)


def _words(part: pa.Table) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    words = rank_words(part.column("score").to_numpy(), part.column("id"))
    return (words, part.column("group").to_numpy()), words.shape[1]


def _matching(part: tuple[np.ndarray, np.ndarray], search: GroupSearch) -> tuple[np.ndarray, np.ndarray]:
    return matching_group_rows(*part, search)


def _histogram(part: tuple[np.ndarray, np.ndarray], search: GroupSearch) -> np.ndarray:
    return group_histogram(*part, search)
