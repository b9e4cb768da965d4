"""Clustering over a table: the same centroids and assignments however the table is laid out."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray import Lake
from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.errors import UsageError
from datas3_ray.lake.view import View


def run(lake, config, source="s"):
    view = View(lake.table("pool"), "vec")
    return cluster(lake, view, source, config)


def test_assignments_are_the_nearest_centroids(lake, make_pool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 5)).astype(np.float32)
    make_pool(lake, "pool", [f"{i:03}" for i in range(200)], vectors, fragments=3)
    found = run(lake, KMeansConfig(clusters=8))
    assert np.linalg.norm(found.centroids, axis=1) == pytest.approx(np.ones(len(found.centroids)), abs=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ found.centroids.T
    parts = found.mapped.results()
    cluster_of = np.concatenate([part.column("cluster").to_numpy() for part in parts])
    similarity = np.concatenate([part.column("similarity").to_numpy() for part in parts])
    assert cluster_of.tolist() == cosines.argmax(axis=1).tolist()
    assert similarity == pytest.approx(cosines.max(axis=1), abs=2e-6)
    assert found.sizes.tolist() == np.bincount(cluster_of, minlength=len(found.sizes)).tolist()
    for j in range(len(found.sizes)):
        assert found.mean_distance[j] == pytest.approx(1 - similarity[cluster_of == j].mean(), abs=1e-6)


def test_same_clusters_for_any_layout_and_a_bounded_sample(tmp_path, ray_session, make_pool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 5))
    ids = [f"{i:03}" for i in range(300)]
    order = rng.permutation(300)
    answers = []
    for number, (fragments, rows) in enumerate([(1, np.arange(300)), (4, order)]):
        lake = Lake(tmp_path / str(number))
        make_pool(lake, "pool", [ids[i] for i in rows], vectors[rows], fragments=fragments)
        found = run(lake, KMeansConfig(clusters=5, sample=100, seed=2))
        members = {}
        for part in found.mapped.results():
            members.update(zip(part.column("id").to_pylist(), part.column("cluster").to_pylist(), strict=True))
        answers.append((found.centroids, members))
    assert np.array_equal(answers[0][0], answers[1][0])
    assert answers[0][1] == answers[1][1]


def test_is_made_once(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b", "c"], np.eye(3))
    first = run(lake, KMeansConfig(clusters=2))
    version = lake.table(first.name).version
    assert run(lake, KMeansConfig(clusters=2)).name == first.name
    assert lake.table(first.name).version == version
    assert run(lake, KMeansConfig(clusters=2, seed=1)).name != first.name


def test_more_clusters_than_rows_and_no_rows(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b", "c"], np.eye(3))
    found = run(lake, KMeansConfig(clusters=50))
    assert found.sizes.sum() == 3
    make_pool(lake, "empty", ["a"], np.zeros((1, 3)))
    with pytest.raises(UsageError, match="table 'empty' has no eligible row"):
        cluster(lake, View(lake.table("empty"), "vec"), "s", KMeansConfig(clusters=2))
