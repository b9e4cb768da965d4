"""SemDeDup against brute force, and the known answers of points on a circle."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import SemDeDup


def circle(degrees: list[float]) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def brute_force(ids, vectors, cluster, similarity, eps) -> tuple[set[str], dict[str, float]]:
    """Every pair of every cluster in float64, rows ordered by (similarity to the centroid, id)."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    kept, largest = set(), {}
    for number in np.unique(cluster):
        rows = sorted(np.flatnonzero(cluster == number), key=lambda i: (similarity[i], ids[i].encode()))
        for place, row in enumerate(rows):
            earlier = [float(unit[row] @ unit[other]) for other in rows[:place]]
            largest[ids[row]] = round(max([0.0, *earlier]), 6)
            if not largest[ids[row]] > 1 - eps:
                kept.add(ids[row])
    return kept, largest


@pytest.mark.parametrize("bucket_rows", [100_000, 40, 7])
def test_equals_brute_force_whole_and_split_over_tasks(lake, make_pool, monkeypatch, bucket_rows) -> None:
    monkeypatch.setattr(SemDeDup, "bucket_rows", bucket_rows)
    rng = np.random.default_rng(5)
    base = rng.normal(size=(60, 16))
    vectors = np.concatenate([base, base + 0.05 * rng.normal(size=base.shape), base[:30], rng.normal(size=(50, 16))])
    vectors = vectors.astype(np.float32)
    ids = [f"id{i:03}" for i in rng.permutation(len(vectors))]
    make_pool(lake, "pool", ids, vectors, fragments=4)
    selection = SemDeDup(column="vec", clusters=5, eps=0.03).select(lake, "pool", name="dedup")
    table = selection.to_arrow()
    at = {name: i for i, name in enumerate(ids)}
    cluster, similarity = np.zeros(len(ids), int), np.zeros(len(ids))
    for row in table.to_pylist():
        cluster[at[row["id"]]], similarity[at[row["id"]]] = row["cluster"], row["similarity"]
    kept, largest = brute_force(ids, vectors, cluster, similarity, 0.03)
    assert set(selection.ids().to_pylist()) == kept
    assert 0 < len(kept) < len(ids)
    for row in table.to_pylist():
        assert row["max_similarity"] == pytest.approx(largest[row["id"]], abs=1.5e-6)
        assert row["keep"] == (row["id"] in kept)
        assert row["score"] == pytest.approx(1 - largest[row["id"]], abs=1.5e-6)
        if not row["keep"]:
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            cosine = unit[at[row["id"]]] @ unit[at[row["duplicate_of"]]]
            assert cosine == pytest.approx(row["max_similarity"], abs=1e-5)


def test_copies_of_one_vector_leave_the_smallest_id(lake, make_pool) -> None:
    vectors = np.concatenate([np.tile(circle([10]), (5, 1)), circle([100, 200])])
    make_pool(lake, "pool", ["e", "c", "d", "b", "f", "x", "y"], vectors, fragments=3)
    selection = SemDeDup(column="vec", clusters=3, eps=1e-5).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {"b", "x", "y"}


def test_no_two_kept_rows_are_within_eps_and_smaller_eps_keeps_more(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(150, 3)).astype(np.float32)
    ids = [f"{i:03}" for i in range(150)]
    make_pool(lake, "pool", ids, vectors, fragments=2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    before: set[str] = set()
    for eps in (0.2, 0.05, 0.01):
        selection = SemDeDup(column="vec", clusters=1, eps=eps).select(lake, "pool")
        kept = set(selection.ids().to_pylist())
        assert before <= kept
        before = kept
        rows = [int(name) for name in kept]
        cosines = unit[rows] @ unit[rows].T - np.eye(len(rows))
        assert cosines.max() <= 1 - eps + 1e-5


def test_a_finished_selection_answers_every_eps(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    make_pool(lake, "pool", [f"{i:03}" for i in range(80)], rng.normal(size=(80, 3)))
    first = SemDeDup(column="vec", clusters=4, eps=0.2).select(lake, "pool").to_arrow()
    scores = dict(zip(first.column("id").to_pylist(), first.column("score").to_pylist(), strict=True))
    second = SemDeDup(column="vec", clusters=4, eps=0.05).select(lake, "pool")
    assert set(second.ids().to_pylist()) == {name for name, score in scores.items() if score >= 0.05 - 1e-9}


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_orders_differ_only_in_which_duplicate_stays(lake, make_pool, keep) -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(size=(20, 8))
    vectors = np.repeat(base, 2, axis=0) + 1e-3 * rng.normal(size=(40, 8))
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], vectors)
    selection = SemDeDup(column="vec", clusters=3, eps=0.01, keep=keep).select(lake, "pool")
    pairs = {int(name) // 2 for name in selection.ids().to_pylist()}
    assert len(selection) == 20
    assert pairs == set(range(20))


def test_the_clustering_is_shared_and_can_be_read(lake, make_pool) -> None:
    rng = np.random.default_rng(4)
    make_pool(lake, "pool", [f"{i:02}" for i in range(60)], rng.normal(size=(60, 8)), fragments=2)
    one = SemDeDup(column="vec", clusters=4, eps=0.1).select(lake, "pool")
    two = SemDeDup(column="vec", clusters=4, eps=0.2).select(lake, "pool")
    name = one.lineage()["report"]["clusters"]
    assert two.lineage()["report"]["clusters"] == name
    centroids = lake.table(name).to_arrow()
    assert sum(centroids.column("size").to_pylist()) == 60
    rows = lake.table(name + ".rows").to_arrow()
    assert rows.num_rows == 60
    assert lake.kind(name) == "centroids"
    assert lake.kind(name + ".rows") == "assignments"


def test_eps_and_size_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="semdedup: give either eps or size, not both"):
        SemDeDup(column="vec", eps=0.1, size=5)
    with pytest.raises(UsageError, match="semdedup: eps = 0"):
        SemDeDup(column="vec", eps=0)
