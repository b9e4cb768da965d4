"""Lists of nearest rows equal a full sort, however the rows are cut up and however short the lists are."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.hashing import id_words
from datas3_ray.kernels.neighbours import LOWEST, Collector, merge_lists, no_lists, pairs_above


def unit(rng: np.random.Generator, n: int, d: int = 6) -> np.ndarray:
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def keys_of(X: np.ndarray, Q: np.ndarray) -> np.ndarray:
    return np.round(X.astype(np.float64) @ Q.astype(np.float64).T * 1e6).astype(np.int64)


def brute(keys: np.ndarray, ids: list[str], query: int, floor: int, limit: int) -> list[int]:
    rows = [row for row in range(len(ids)) if keys[row, query] >= floor]
    return sorted(rows, key=lambda row: (-keys[row, query], ids[row].encode()))[:limit]


@pytest.mark.parametrize("limit", [1, 7, 500])
@pytest.mark.parametrize("pieces", [1, 4])
def test_lists_equal_a_full_sort(limit, pieces) -> None:
    rng = np.random.default_rng(limit + pieces)
    X, Q = unit(rng, 300), unit(rng, 9)
    X[100:140] = X[:40]  # ties
    ids = [f"id-{rng.integers(10**9):09}-{'x' * int(rng.integers(20))}" for _ in range(300)]
    keys = keys_of(X, Q)
    floor = np.array([LOWEST, 0, 300_000, 900_000, 10**6, LOWEST, -200_000, 500_000, 0])
    parts = []
    for rows in np.array_split(rng.permutation(300), pieces):
        collector = Collector(Q, floor, limit)
        for batch in np.array_split(rows, 3):
            collector.add(X[batch], batch.astype(np.int64), id_words([ids[i] for i in batch]))
        parts.append(collector.finish())
    lists = merge_lists(parts, limit)
    for query in range(9):
        span = lists.of(query)
        assert lists.row[span].tolist() == brute(keys, ids, query, floor[query], limit)
        assert lists.key[span].tolist() == keys[lists.row[span], query].tolist()
        assert lists.cut[query] == ((keys[:, query] >= floor[query]).sum() > limit)
    assert lists.rows.tolist() == sorted(set(lists.row.tolist()))
    names = id_words([ids[i] for i in lists.rows])
    assert (lists.words[:, : names.shape[1]] == names).all()


def test_pruning_between_batches_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr("datas3_ray.kernels.neighbours._PRUNE_ENTRIES", 50)
    monkeypatch.setattr("datas3_ray.kernels.neighbours._MOST_ROWS", 64)
    rng = np.random.default_rng(5)
    X, Q = unit(rng, 400), unit(rng, 4)
    X[200:] = X[:200]
    ids = [f"{i:05}" for i in rng.permutation(400)]
    collector = Collector(Q, np.full(4, LOWEST), 20)
    collector.add(X[:250], np.arange(250), id_words(ids[:250]))
    collector.add(X[250:], np.arange(250, 400), id_words(ids[250:]))
    lists = collector.finish()
    for query in range(4):
        assert lists.row[lists.of(query)].tolist() == brute(keys_of(X, Q), ids, query, LOWEST, 20)
    assert lists.cut.all()


@pytest.mark.parametrize("floor", [LOWEST, -100_000, 400_000, 999_999])
def test_pairs_equal_the_rounded_product(floor) -> None:
    rng = np.random.default_rng(1)
    X, Q = unit(rng, 1500, 16), unit(rng, 70, 16)
    found = {
        (int(r), int(q)): int(k)
        for rows in pairs_above(X, Q, np.full(70, floor))
        for r, q, k in zip(*rows, strict=True)
    }
    keys = keys_of(X, Q)
    assert found == {(int(r), int(q)): int(keys[r, q]) for r, q in zip(*np.nonzero(keys >= floor), strict=True)}


def test_a_pair_exactly_at_the_floor_counts() -> None:
    found = list(pairs_above([[1.0, 0.0]], [[0.6, 0.8], [0.8, 0.6]], [600_001, 800_000]))
    assert [(r.tolist(), q.tolist(), k.tolist()) for r, q, k in found] == [([0], [1], [800_000])]


def test_nothing_near_gives_empty_lists() -> None:
    collector = Collector(np.eye(2, dtype=np.float32), np.array([10**6, 10**6]), 3)
    collector.add(np.array([[0.6, 0.8]], np.float32), np.arange(1), id_words(["a"]))
    assert collector.finish().offsets.tolist() == [0, 0, 0]
    assert merge_lists([no_lists(2), no_lists(2)], 3).row.tolist() == []


def test_floors_must_be_one_a_query() -> None:
    with pytest.raises(ValueError, match="floors of shape"):
        list(pairs_above(np.eye(2), np.eye(2), [1]))
