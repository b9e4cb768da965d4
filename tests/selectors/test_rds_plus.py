"""RDSPlus: the turns of the paper, exactly, however few pairs a pass may return."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.selectors import RDSPlus, rds_plus


def brute(
    vectors: np.ndarray, queries: np.ndarray, ids: list[str], names: list[str], size: int
) -> list[tuple[str, str]]:
    """Every turn looked up in full rankings: (row, query) in the order in which they were taken."""
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    asked = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    keys = np.round(unit @ asked.T * 1e6)
    turns = sorted(range(len(names)), key=lambda q: names[q].encode())
    orders = {q: sorted(range(len(ids)), key=lambda row: (-keys[row, q], ids[row].encode())) for q in turns}
    taken: list[tuple[str, str]] = []
    gone: set[int] = set()
    while len(taken) < size:
        query = turns[len(taken) % len(turns)]
        row = next(row for row in orders[query] if row not in gone)
        gone.add(row)
        taken.append((ids[row], names[query]))
    return taken


def order(selection) -> list[tuple[str, str]]:
    table = selection.to_arrow(kept=True).sort_by([("score", "descending")])
    return list(zip(table.column("id").to_pylist(), table.column("taken_by").to_pylist(), strict=True))


def test_known_answer_of_the_skip_rule(lake, make_pool) -> None:
    """Cosines q1: A .9 B .8 C .1 and q2: A .95 C .3 B .2: two rows are A and C."""
    wanted = np.array([[0.9, 0.95], [0.8, 0.2], [0.1, 0.3]])
    cosine = 0.8
    queries = np.array([[1, 0, 0], [cosine, np.sqrt(1 - cosine**2), 0]])
    second = (wanted[:, 1] - cosine * wanted[:, 0]) / np.sqrt(1 - cosine**2)
    third = np.sqrt(np.maximum(0, 1 - wanted[:, 0] ** 2 - second**2))
    make_pool(lake, "pool", ["A", "B", "C"], np.column_stack([wanted[:, 0], second, third]), fragments=2)
    make_pool(lake, "query", ["q1", "q2"], queries)
    selection = RDSPlus(column="vec", size=2).select(lake, "pool", query="query")
    assert order(selection) == [("A", "q1"), ("C", "q2")]
    similarity = selection.to_arrow().column("similarity").to_pylist()
    assert similarity[1] is None
    assert [similarity[0], similarity[2]] == pytest.approx([0.9, 0.3], abs=1e-5)


@pytest.mark.parametrize("fragments", [1, 3, 7])
@pytest.mark.parametrize("size", [1, 50, 300])
def test_equals_full_rankings(lake, make_pool, fragments, size) -> None:
    rng = np.random.default_rng(size)
    vectors, queries = rng.normal(size=(300, 5)), rng.normal(size=(11, 5))
    vectors[50:80] = vectors[:30]
    queries[5:] = queries[0] + 0.01 * rng.normal(size=(6, 5))
    ids = [f"{rng.integers(10**6):06}-{i}" for i in range(300)]
    names = [f"q{i}" for i in rng.permutation(11)]
    make_pool(lake, "pool", ids, vectors, fragments=fragments)
    make_pool(lake, "query", names, queries)
    selection = RDSPlus(column="vec", size=size).select(lake, "pool", query="query")
    expected = brute(vectors, queries, ids, names, size)
    assert order(selection) == expected
    assert selection.lineage()["report"]["passes"] == 1


def test_short_lists_take_more_passes_and_give_the_same(lake, make_pool, monkeypatch) -> None:
    monkeypatch.setattr(rds_plus, "ENTRIES", 40)
    monkeypatch.setattr(rds_plus, "_LEAST_LIST", 5)
    monkeypatch.setattr("datas3_ray.selectors.neighbour_lists.SAMPLE_ROWS", 40)
    rng = np.random.default_rng(8)
    vectors, queries = rng.normal(size=(400, 4)), rng.normal(size=(8, 4))
    queries[3:] = queries[0] + 0.01 * rng.normal(size=(5, 4))
    ids, names = [f"{i:03}" for i in range(400)], [f"q{i}" for i in range(8)]
    make_pool(lake, "pool", ids, vectors, fragments=4)
    make_pool(lake, "query", names, queries)
    selection = RDSPlus(column="vec", size=150).select(lake, "pool", query="query")
    assert order(selection) == brute(vectors, queries, ids, names, 150)
    assert selection.lineage()["report"]["passes"] > 2


def test_every_query_takes_the_same_number(lake, make_pool) -> None:
    rng = np.random.default_rng(9)
    make_pool(lake, "pool", [f"{i:03}" for i in range(200)], rng.normal(size=(200, 6)), fragments=2)
    make_pool(lake, "query", [f"q{i}" for i in range(7)], rng.normal(size=(7, 6)))
    selection = RDSPlus(column="vec", size=30).select(lake, "pool", query="query")
    _, counts = np.unique([query for _, query in order(selection)], return_counts=True)
    assert sorted(counts.tolist()) == [4, 4, 4, 4, 4, 5, 5]
    smaller = RDSPlus(column="vec", size=12).select(lake, "pool", query="query")
    assert order(smaller) == order(selection)[:12]
