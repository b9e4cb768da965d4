from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels.ranking import (
    BINS,
    Cut,
    digit_histogram,
    matching_rows,
    next_state,
    order_key,
    rank_words,
    resolve_size,
    settle,
    start_search,
    top_n,
)

SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, 5e-324]), st.floats(allow_nan=False))
ID = st.one_of(st.text("ab/é", max_size=20), st.integers(0, 10**6).map(lambda i: f"train/part-0001/{i:08d}.jpg"))


def sorted_mask(scores: list[float], ids: list[str], n: int) -> list[bool]:
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i].encode()))
    kept = set(order[:n])
    return [i in kept for i in range(len(ids))]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[float], list[str], int, list[int]]:
    ids = draw(st.lists(ID, unique=True, max_size=40))
    pool = draw(st.lists(SCORES, min_size=1, max_size=draw(st.sampled_from([1, 2, 40]))))
    scores = [draw(st.sampled_from(pool)) for _ in ids]
    n = draw(st.sampled_from(sorted({0, len(ids), draw(st.integers(0, len(ids)))})))
    parts = draw(st.integers(1, 7))
    return scores, ids, n, [draw(st.integers(0, parts - 1)) for _ in ids]


@given(tables())
@settings(max_examples=300, deadline=None)
def test_distributed_search_equals_a_full_sort(table: tuple[list[float], list[str], int, list[int]]) -> None:
    scores, ids, n, where = table
    expected = sorted_mask(scores, ids, n)
    assert top_n(scores, ids, n).tolist() == expected
    members = [[i for i in range(len(ids)) if where[i] == part] for part in range(7)]
    partitions = [rank_words([scores[i] for i in rows], [ids[i] for i in rows]) for rows in members]
    state = start_search(n, max(words.shape[1] for words in partitions))
    states = [state]
    while state.cut is None:
        state = next_state(state, sum(digit_histogram(words, state) for words in partitions))
        states.append(state)
    for step in states:
        cut = settle(step, [matching_rows(words, step) for words in partitions])
        for rows, words in zip(members, partitions, strict=True):
            assert cut.keep(words).tolist() == [expected[i] for i in rows]
    for step in states[1:]:
        assert step.undecided == sum(len(matching_rows(words, step)) for words in partitions)


@given(st.lists(SCORES, min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_order_key_reverses_the_order_of_scores(scores: list[float]) -> None:
    keys = order_key(scores).tolist()
    for a, key_a in zip(scores, keys, strict=True):
        for b, key_b in zip(scores, keys, strict=True):
            assert (a > b) == (key_a < key_b) and (a == b) == (key_a == key_b)


def test_order_key_refuses_nan() -> None:
    with pytest.raises(ValueError, match="1 scores are NaN, the first in row 2"):
        order_key([0.0, math.inf, math.nan])


@pytest.mark.parametrize(
    ("size", "n", "count"),
    [
        (0, 10, 0),
        (7, 10, 7),
        (12, 10, 12),
        (np.int64(3), 10, 3),
        (1.0, 10, 10),
        (1, 10, 1),
        (0.5, 3, 2),
        (0.25, 10, 3),
        (0.285, 100, 29),
        (0.1, 4, 0),
        (0.5, 0, 0),
        (np.float64(0.3), 10, 3),
        (0.9999999, 10**9, 999_999_900),
    ],
)
def test_sizes(size: Any, n: int, count: int) -> None:
    assert resolve_size(size, n) == count


@pytest.mark.parametrize("size", [-1, -0.5, 0.0, 1.5, 100.0, math.nan, math.inf, True, False, np.True_, "10", None])
def test_bad_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        resolve_size(size, 100)


def test_all_tied_keeps_the_smallest_ids() -> None:
    ids = [f"row-{i:05d}" for i in np.random.default_rng(0).permutation(1000)]
    mask = top_n(np.zeros(1000), ids, 10)
    assert sorted(name for name, keep in zip(ids, mask, strict=True) if keep) == [f"row-{i:05d}" for i in range(10)]


def test_large_random_table_matches_lexsort() -> None:
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=50_000), 3)
    ids = np.array([f"{i:06d}" for i in rng.permutation(50_000)])
    expected = np.zeros(50_000, bool)
    expected[np.lexsort((ids, -scores))[:12_345]] = True
    assert np.array_equal(top_n(scores, ids.tolist(), 12_345), expected)


def test_only_small_messages_are_exchanged() -> None:
    words = rank_words(np.random.default_rng(0).random(1000), [str(i) for i in range(1000)])
    state = start_search(500, words.shape[1])
    counts = digit_histogram(words, state)
    assert counts.shape == (BINS,) and counts.dtype == np.int64 and counts.sum() == 1000


def test_what_cannot_be_exact_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows are wanted and there are only 2"):
        top_n([1.0, 2.0], ["a", "b"], 3)
    with pytest.raises(ValueError, match="not unique"):
        top_n([1.0, 1.0, 0.0], ["a", "a", "b"], 1)
    assert top_n([1.0, 1.0, 0.0], ["a", "a", "b"], 2).tolist() == [True, True, False]
    duplicated = rank_words([1.0, 1.0], ["a", "a"])
    with pytest.raises(ValueError, match="not unique"):
        settle(start_search(1, 2), [duplicated])
    with pytest.raises(ValueError, match="only 2"):
        settle(start_search(3, 2), [duplicated])
    with pytest.raises(ValueError, match="1 scores for 2 ids"):
        rank_words([1.0], ["a", "b"])
    with pytest.raises(ValueError, match="width"):
        digit_histogram(rank_words([1.0], ["a" * 9]), start_search(1, 2))
    with pytest.raises(ValueError, match="width"):
        Cut((1, 2)).keep(np.zeros((1, 3), np.uint64))
    with pytest.raises(ValueError, match="shape"):
        next_state(start_search(1, 2), np.zeros(10))
    with pytest.raises(ValueError, match="at least 0"):
        start_search(-1, 2)


def test_narrow_partitions_compare_as_if_padded() -> None:
    wide, narrow = rank_words([1.0], ["abcdefgh1"]), rank_words([1.0, 1.0], ["abcdefgh", "b"])
    cut = settle(start_search(2, 3), [wide, narrow])
    assert cut.keep(wide).tolist() == [True]
    assert cut.keep(narrow).tolist() == [True, False]
