"""Cuts in every group at once, against sorting each group."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels import group_ranking
from datas3_ray.kernels.group_ranking import (
    group_histogram,
    matching_group_rows,
    next_group_search,
    settle_groups,
    start_group_search,
)
from datas3_ray.kernels.ranking import rank_words


def brute_force(scores, ids, group, quota) -> np.ndarray:
    keep = np.zeros(len(ids), bool)
    for number, wanted in enumerate(quota):
        rows = sorted(np.flatnonzero(group == number), key=lambda i: (-scores[i], ids[i].encode()))
        keep[rows[:wanted]] = True
    return keep


def search_cuts(parts, quota, sizes, settle_at: int = 0):
    search = start_group_search(quota, sizes, max(words.shape[1] for words, _ in parts))
    while search.cuts is None:
        if search.undecided[search.open].sum() <= settle_at:
            return settle_groups(search, [matching_group_rows(words, group, search) for words, group in parts])
        search = next_group_search(search, sum(group_histogram(words, group, search) for words, group in parts))
    return search.cuts


@pytest.mark.parametrize("cells", [1 << 18, 64, 2])
@pytest.mark.parametrize("settle_at", [0, 30, 10_000])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_equals_sorting_each_group(monkeypatch, cells, settle_at, levels) -> None:
    monkeypatch.setattr(group_ranking, "MAX_CELLS", cells)
    rng = np.random.default_rng(levels)
    n, k = 300, 7
    ids = [f"{'x' * rng.integers(0, 12)}{i:03}" for i in rng.permutation(n)]
    scores = rng.integers(0, levels, n) / 7 - 3.0
    group = rng.integers(-1, k - 1, n)  # the last group is empty
    sizes = np.bincount(group[group >= 0], minlength=k)
    quota = np.array([0, sizes[1], 1, sizes[3] - 1, sizes[4] // 2, 5, 0])
    parts = [
        (rank_words(scores[rows], [ids[i] for i in rows]), group[rows]) for rows in np.array_split(np.arange(n), 3)
    ]
    cuts = search_cuts(parts, quota, sizes, settle_at)
    kept = np.concatenate([cuts.keep(*part) for part in parts])
    assert np.array_equal(kept, brute_force(scores, ids, group, quota))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="group 1 has 2 rows and a quota of 3"):
        start_group_search([0, 3], [5, 2], 1)
    words = rank_words([0.5, 0.5, 0.5], ["a", "a", "b"])
    for settle_at in (0, 100):
        with pytest.raises(ValueError, match="ids are not unique"):
            search_cuts([(words, np.zeros(3, int))], [1], [3], settle_at)
    with pytest.raises(ValueError, match="fewer rows than were said"):
        search_cuts([(words, np.zeros(3, int))], [4], [5])
    with pytest.raises(ValueError, match="fewer rows than were said"):
        search_cuts([(words, np.zeros(3, int))], [4], [5], 100)


def test_no_groups_and_no_rows() -> None:
    assert start_group_search([], [], 1).cuts is not None
    empty = start_group_search([0], [0], 2).cuts
    assert empty is not None
    assert empty.keep(np.zeros((0, 2), np.uint64), np.zeros(0, int)).tolist() == []
