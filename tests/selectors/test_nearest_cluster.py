"""NearestCluster: the clusters that the query falls into, whole."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.schemas import matrix
from datas3_ray.selectors import NearestCluster


@pytest.mark.parametrize("fragments", [1, 4])
def test_equals_brute_force(lake, make_pool, fragments) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(150, 6)) + 2 * np.eye(6)[rng.integers(0, 6, 150)]
    queries = rng.normal(size=(5, 6)) + 2 * np.eye(6)[[0, 0, 3, 3, 3]]
    ids = [f"{i:03}" for i in range(150)]
    make_pool(lake, "pool", ids, vectors, fragments)
    make_pool(lake, "query", [f"q{i}" for i in range(5)] + ["none"], np.vstack([queries, np.zeros(6)]))
    selection = NearestCluster(column="vec", clusters=12).select(lake, "pool", query="query")
    report = selection.lineage()["report"]
    centroids = matrix(lake.table(report["clusters"]).to_arrow().column("vector"))

    def nearest(rows: np.ndarray) -> np.ndarray:
        return (normalize(rows.astype(np.float32))[0].astype(np.float64) @ centroids.T.astype(np.float64)).argmax(1)

    hits = np.bincount(nearest(queries), minlength=len(centroids))
    table = selection.to_arrow()
    assert table.column("cluster").to_pylist() == nearest(vectors).tolist()
    assert table.column("score").to_pylist() == hits[nearest(vectors)].tolist()
    assert table.column("keep").to_pylist() == (hits[nearest(vectors)] > 0).tolist()
    assert report["clusters_hit"] == (hits > 0).sum()
    assert (report["queries"], report["unusable_queries"]) == (5, 1)


def test_queries_in_one_cluster_keep_it_whole(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(3), 10)
    make_pool(lake, "pool", [f"{i:02}" for i in range(30)], np.eye(3)[cluster] + 0.01 * rng.normal(size=(30, 3)), 2)
    make_pool(lake, "query", ["a", "b"], [[0.0, 1.0, 0.1], [0.1, 1.0, 0.0]])
    selection = NearestCluster(column="vec", clusters=3).select(lake, "pool", query="query")
    assert selection.ids().to_pylist() == [f"{i:02}" for i in range(10, 20)]
