"""The three readings of Near-Nbors, against rules written out on the clustering they used."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import NearNeighbors


def axes(rng: np.random.Generator, sizes: dict[int, int], d: int = 8) -> np.ndarray:
    """Tight clusters of the given sizes around the axes."""
    rows = np.repeat(np.eye(d)[list(sizes)], list(sizes.values()), axis=0)
    return rows + 0.02 * rng.normal(size=rows.shape)


@pytest.fixture
def islands(lake, make_pool):
    """Clusters of 10, 12, 14 and 16 rows around four axes; all queries fall into the first, leaning to the second."""
    rng = np.random.default_rng(0)
    ids = [f"{i:03}" for i in range(52)]
    make_pool(lake, "pool", ids, axes(rng, {0: 10, 1: 12, 2: 14, 3: 16}), fragments=3)
    make_pool(
        lake, "query", [f"q{i}" for i in range(6)], np.eye(8)[:1] + 0.2 * np.eye(8)[1] + 0.001 * rng.normal(size=(6, 8))
    )
    return lake


def kept(selection) -> list[int]:
    return sorted(int(name) for name in selection.ids().to_pylist())


def test_union_keeps_the_whole_cluster_that_was_hit(islands) -> None:
    selection = NearNeighbors(column="vec", clusters=4, seed=2).select(islands, "pool", query="query")
    assert kept(selection) == list(range(10))
    report = selection.lineage()["report"]
    assert (report["clusters_hit"], report["queries"]) == (1, 6)
    assert set(selection.to_arrow().filter(selection.to_arrow().column("keep")).column("score").to_pylist()) == {6.0}


def test_ranked_takes_whole_clusters_and_part_of_the_last(islands) -> None:
    """4 rows out of the cluster that was hit; 12 are its 10 and the 2 of the next that are nearest to a query."""
    few = NearNeighbors(column="vec", reading="ranked", size=4, clusters=4, seed=2)
    assert set(kept(few.select(islands, "pool", query="query"))) < set(range(10))
    more = NearNeighbors(column="vec", reading="ranked", size=12, clusters=4, seed=2)
    selection = more.select(islands, "pool", query="query", name="more")
    assert kept(selection)[:10] == list(range(10))
    assert set(kept(selection)[10:]) < set(range(10, 22))
    table = selection.to_arrow().to_pydict()
    second = sorted(zip(table["query_similarity"][10:22], range(10, 22), strict=True), reverse=True)[:2]
    assert kept(selection)[10:] == sorted(row for _, row in second)
    assert kept(selection.resize(4)) == kept(few.select(islands, "pool", query="query"))


def test_query_clusters_hit_once_each(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    make_pool(lake, "pool", [f"{i:03}" for i in range(60)], axes(rng, {0: 15, 1: 15, 2: 15, 3: 15}), fragments=2)
    make_pool(lake, "query", [f"q{i:02}" for i in range(20)], axes(rng, {0: 12, 2: 8}))
    selector = NearNeighbors(column="vec", reading="query_clusters", query_clusters=2, clusters=4, seed=2)
    selection = selector.select(lake, "pool", query="query")
    assert kept(selection) == [*range(15), *range(30, 45)]
    one = selector.model_copy(update={"query_clusters": 1}).select(lake, "pool", query="query")
    assert kept(one) == list(range(15))


@pytest.mark.parametrize("fragments", [1, 4])
def test_readings_equal_the_rules_written_out(lake, make_pool, fragments) -> None:
    rng = np.random.default_rng(3)
    vectors, queries = rng.normal(size=(200, 6)), rng.normal(size=(15, 6))
    make_pool(lake, "pool", [f"{i:03}" for i in range(200)], vectors, fragments=fragments)
    make_pool(lake, "query", [f"q{i}" for i in range(15)], queries)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    union = NearNeighbors(column="vec", clusters=12).select(lake, "pool", query="query")
    table = lake.table(union.lineage()["report"]["clusters"]).to_arrow()
    centroids = np.array(table.column("vector").to_pylist())
    cluster = np.argmax(vectors @ centroids.T, axis=1)
    hits = np.bincount(np.argmax(queries @ centroids.T, axis=1), minlength=12)
    assert kept(union) == np.flatnonzero(hits[cluster] > 0).tolist()
    nearest = (queries @ centroids.T).max(axis=0)
    place = {c: i for i, c in enumerate(sorted(range(12), key=lambda c: (-hits[c], -nearest[c], c)))}
    near = np.round((vectors @ queries.T).max(axis=1), 6)
    ranking = sorted(range(200), key=lambda row: (place[cluster[row]], -near[row], row))
    for size in (1, 37, 120):
        selector = NearNeighbors(column="vec", reading="ranked", size=size, clusters=12)
        assert kept(selector.select(lake, "pool", query="query")) == sorted(ranking[:size])


def test_size_belongs_to_ranked_alone() -> None:
    for parameters in ({"reading": "ranked"}, {"reading": "union", "size": 5}, {"size": 5}):
        with pytest.raises(UsageError, match="give size with reading='ranked'"):
            NearNeighbors(column="vec", **parameters)
    with pytest.raises(UsageError, match="near_neighbors: reading = 'nearest' is not allowed"):
        NearNeighbors(column="vec", reading="nearest")
