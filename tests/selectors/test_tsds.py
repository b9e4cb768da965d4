"""TSDS: probabilities against dense arithmetic, the borders of alpha, copies, and what happens beyond the support."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.tsds import spread_mass
from datas3_ray.selectors import TSDS, tsds


def unit(vectors: np.ndarray) -> np.ndarray:
    stored = vectors.astype(np.float32).astype(np.float64)
    return (stored / np.linalg.norm(stored, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


def dense(vectors: np.ndarray, queries: np.ndarray, k: int, sigma: float, alpha: float, scale: float) -> np.ndarray:
    """Probabilities from full matrices of distances."""
    X, Q = unit(vectors), unit(queries)
    keys = np.round(X @ Q.T * 1e6) / 1e6
    square = 2 - 2 * np.round(X @ X.T * 1e6) / 1e6
    density = np.maximum(0, 1 - square / sigma**2).sum(axis=1) if sigma else np.ones(len(X))
    rows = np.argsort(-keys, axis=0, kind="stable")[:k].T
    distance = np.sqrt(2 - 2 * np.take_along_axis(keys.T, rows, axis=1))
    mass = spread_mass(distance, density[rows], alpha, scale).mass
    return np.bincount(rows.reshape(-1), weights=mass.reshape(-1), minlength=len(X))


@pytest.fixture
def cloud(lake, make_pool):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(600, 4)), rng.normal(size=(12, 4))
    vectors[100:130] = vectors[:30]
    make_pool(lake, "pool", [f"{i:03}" for i in range(600)], vectors, fragments=3)
    make_pool(lake, "query", [f"q{i:02}" for i in range(12)], queries)
    return lake, vectors, queries


def probabilities(selection) -> np.ndarray:
    return selection.to_arrow().column("probability").to_numpy()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_probabilities_equal_dense_arithmetic(cloud, monkeypatch, alpha, sigma) -> None:
    monkeypatch.setattr(tsds, "FIRST_NEIGHBOURS", 4)
    lake, vectors, queries = cloud
    selector = TSDS(column="vec", size=10, alpha=alpha, sigma=sigma, scale=0.05)
    found = probabilities(selector.select(lake, "pool", query="query"))
    expected = dense(vectors, queries, 60, sigma, alpha, 0.05)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found >= 0).all() and found.sum() == pytest.approx(1, abs=1e-9)


def test_alpha_one_reaches_the_nearest_rows_alone(cloud) -> None:
    lake, vectors, queries = cloud
    selection = TSDS(column="vec", size=100, alpha=1.0).select(lake, "pool", query="query")
    keys = np.round(unit(vectors) @ unit(queries).T * 1e6)
    nearest = set(np.flatnonzero((keys == keys.max(axis=0)).any(axis=1)))
    assert set(np.flatnonzero(probabilities(selection))) == nearest
    assert {int(name) for name in selection.ids().to_pylist()} == nearest
    report = selection.lineage()["report"]
    assert report["support"] == len(selection) == len(nearest)
    assert report["support_shortfall"] == 100 - len(nearest)


def test_beyond_the_support_others_fill_up_at_random_when_asked(cloud) -> None:
    lake, _, _ = cloud
    stop = TSDS(column="vec", size=100, alpha=1.0).select(lake, "pool", query="query")
    fill = TSDS(column="vec", size=100, alpha=1.0, beyond="random").select(lake, "pool", query="query", name="fill")
    assert len(fill) == 100
    assert set(stop.ids().to_pylist()) < set(fill.ids().to_pylist())
    assert set(fill.resize(3).ids().to_pylist()) < set(stop.ids().to_pylist())


def test_an_exact_copy_leaves_the_mass_of_the_pair_nearly_unchanged(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = rng.normal(size=(400, 3)), rng.normal(size=(10, 3))
    make_pool(lake, "query", [f"q{i}" for i in range(10)], queries)
    make_pool(lake, "once", [f"{i:03}" for i in range(400)], vectors)
    settings = {"column": "vec", "size": 10, "sigma": 0.02, "scale": 0.02, "max_neighbours": 40}
    once = probabilities(TSDS(**settings).select(lake, "once", query="query"))
    row = int(np.argsort(once)[-3])
    make_pool(lake, "twice", [f"{i:03}" for i in range(401)], np.vstack([vectors, vectors[row]]))
    twice = probabilities(TSDS(**settings).select(lake, "twice", query="query"))
    assert twice[row] + twice[400] == pytest.approx(once[row], rel=0.15)


def test_the_draw_is_gumbel_noise_on_the_log_probability(cloud) -> None:
    lake, _, _ = cloud
    selection = TSDS(column="vec", size=20, alpha=0.9, sigma=0.3, seed=4).select(lake, "pool", query="query")
    table = selection.to_arrow()
    probability = probabilities(selection)
    noise = gumbel(hash64(id_words(table.column("id")), seed=4, stream="tsds"))
    there = probability > 0
    score = table.column("score").to_numpy()
    np.testing.assert_allclose(score[there], np.log(probability[there]) + noise[there], atol=1e-8)
    assert score[~there].max() < score[there].min()
    other = TSDS(column="vec", size=20, alpha=0.9, sigma=0.3, seed=5).select(lake, "pool", query="query")
    assert set(other.ids().to_pylist()) != set(selection.ids().to_pylist())
    assert probabilities(other).tolist() == probability.tolist()


def test_all_copies_of_the_nearest_row_share_the_mass(lake, make_pool) -> None:
    vectors = np.random.default_rng(2).normal(size=(40, 4))
    vectors[:8] = vectors[0]
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], vectors, fragments=2)
    make_pool(lake, "query", ["q"], vectors[:1])
    selection = TSDS(column="vec", size=8, alpha=1.0).select(lake, "pool", query="query")
    assert probabilities(selection).tolist() == [0.125] * 8 + [0.0] * 32
    assert selection.lineage()["report"]["support"] == len(selection) == 8
    limited = TSDS(column="vec", size=8, alpha=1.0, max_neighbours=3).select(lake, "pool", query="query")
    assert len(limited) == 3


@pytest.mark.parametrize("sigma", [1e-8, 1e-200])
def test_the_smallest_radius_counts_copies_alone(cloud, sigma) -> None:
    lake, *_ = cloud
    tiny, small = (
        TSDS(column="vec", size=9, sigma=each, scale=0.05).select(lake, "pool", query="query") for each in (sigma, 1e-6)
    )
    np.testing.assert_allclose(probabilities(tiny), probabilities(small), rtol=1e-9)


def test_a_radius_that_is_given_and_a_pool_without_rows(cloud) -> None:
    lake, *_ = cloud
    lake.table("pool").dataset.delete("id is not null")
    with pytest.raises(UsageError, match="no eligible row"):
        TSDS(column="vec", size=9, sigma=0.1).select(lake, "pool", query="query")


@pytest.mark.parametrize("rows", [1, 2, 15])
def test_tiny_pools(lake, make_pool, rows) -> None:
    rng = np.random.default_rng(rows)
    make_pool(lake, "pool", [f"{i:02}" for i in range(rows)], rng.normal(size=(rows, 3)))
    make_pool(lake, "query", ["a", "b"], rng.normal(size=(2, 3)))
    found = probabilities(TSDS(column="vec", size=1).select(lake, "pool", query="query"))
    assert found.sum() == pytest.approx(1)


def test_the_default_radius_is_the_median_distance_to_the_tenth_nearest(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(120, 4))
    make_pool(lake, "pool", [f"{i:03}" for i in range(120)], vectors, fragments=2)
    make_pool(lake, "query", ["a"], rng.normal(size=(1, 4)))
    selection = TSDS(column="vec", size=1).select(lake, "pool", query="query")
    distance = np.sort(np.sqrt(np.maximum(0, 2 - 2 * unit(vectors) @ unit(vectors).T)), axis=1)[:, 10]
    assert selection.lineage()["report"]["sigma"] == pytest.approx(float(np.median(distance)), abs=1e-5)
