from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from datas3_ray.kernels import kmeans, screen
from datas3_ray.kernels.kmeans import KMeansResult, centroid_statistics, spherical_kmeans
from datas3_ray.kernels.similarity import nearest, normalize


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small products on few cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(n: int, d: int, centres: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d))
    return normalize((middle[rng.integers(0, centres, n)] + spread * rng.normal(size=(n, d))).astype(np.float32))[0]


def mean_similarity(x: np.ndarray, centroids: np.ndarray) -> float:
    return float(nearest(x, centroids)[1].mean(dtype=np.float64))


def equal(a: KMeansResult, b: KMeansResult) -> None:
    assert np.array_equal(a.centroids, b.centroids) and np.array_equal(a.sizes, b.sizes)
    assert a.iterations == b.iterations


@pytest.mark.parametrize("init", ["random", "plusplus"])
def test_what_is_returned_is_consistent(init: Any) -> None:
    x = blobs(3000, 24, 30, 0)
    result = spherical_kmeans(x, 40, seed=1, init=init)
    assert result.centroids.dtype == np.float32 and result.centroids.shape == (40, 24)
    assert np.allclose(np.linalg.norm(result.centroids.astype(np.float64), axis=1), 1, atol=1e-6)
    index, similarity = nearest(x, result.centroids)
    assert np.array_equal(np.bincount(index, minlength=40), result.sizes)
    assert abs(result.objective[-1] - similarity.mean(dtype=np.float64)) < 1e-6
    assert (np.diff(result.objective) > -1e-9).all()
    assert len(result.objective) == result.iterations + 1
    assert (result.k, result.empty, result.requested) == (40, 0, 40)


def test_well_separated_groups_are_found() -> None:
    x = blobs(2000, 16, 8, 3, spread=0.05)
    result = spherical_kmeans(x, 8, seed=0, init="plusplus")
    assert result.objective[-1] > 0.99
    expected = nearest(x, x[:200])[0]
    assert len(np.unique(expected)) >= 8


def test_converged_centroids_are_the_means_of_their_members() -> None:
    x = blobs(1500, 12, 10, 4)
    result = spherical_kmeans(x, 15, seed=2, iterations=200, tolerance=0)
    assert result.iterations < 200
    index, _ = nearest(x, result.centroids)
    for cluster in range(15):
        mean = x[index == cluster].astype(np.float64).sum(0)
        assert np.allclose(mean / np.linalg.norm(mean), result.centroids[cluster], atol=1e-6)


def test_the_same_for_a_seed_whatever_the_threads() -> None:
    x = blobs(4000, 48, 30, 5)
    first = spherical_kmeans(x, 40, seed=7, iterations=5)
    equal(first, spherical_kmeans(x, 40, seed=7, iterations=5))
    equal(first, spherical_kmeans(x * np.float32(2), 40, seed=7, iterations=5))
    torch.set_num_threads(2)
    equal(first, spherical_kmeans(x, 40, seed=7, iterations=5))
    assert not np.array_equal(first.centroids, spherical_kmeans(x, 40, seed=8, iterations=5).centroids)


def test_as_good_as_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    x = blobs(3000, 24, 40, 6)
    theirs = []
    for seed in range(3):
        model = faiss.Kmeans(24, 30, niter=20, spherical=True, max_points_per_centroid=10**6, seed=seed)
        model.train(x)
        theirs.append(mean_similarity(x, model.centroids))
    ours = [spherical_kmeans(x, 30, seed=seed).objective[-1] for seed in range(3)]
    assert np.mean(ours) > 0.99 * np.mean(theirs)


@pytest.mark.parametrize("units", ["bfloat16", "int8"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_looking_at_coarse_numbers_first_changes_nothing(
    units: screen.Units, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    x = (rng.normal(size=(40, 32))[rng.integers(0, 40, 3000)] + spread * rng.normal(size=(3000, 32))).astype(np.float32)
    x[1500:1700] = x[:200]
    found = []
    for each in (None, units):
        for module in (kmeans, screen):
            monkeypatch.setattr(module, "fast_units", lambda each=each: each)
        found.append(spherical_kmeans(x, 30, seed=0))
    plain, screened = found
    assert (plain.centroids == screened.centroids).all()
    assert plain.objective == screened.objective
    assert plain.sizes.tolist() == screened.sizes.tolist()


@pytest.mark.parametrize("init", ["random", "plusplus"])
def test_fewer_distinct_rows_than_clusters(init: Any) -> None:
    x = np.repeat(blobs(5, 8, 5, 8), 20, axis=0)
    result = spherical_kmeans(x, 12, seed=0, init=init)
    assert (result.k, result.empty) == (5, 7)
    assert result.sizes.tolist() == [20] * 5 and result.objective[-1] > 1 - 1e-6
    single = spherical_kmeans(x[:1], 3, seed=0, init=init)
    assert (single.k, single.empty, single.iterations) == (1, 2, 1)


def test_copies_do_not_leave_clusters_empty() -> None:
    rng = np.random.default_rng(9)
    x = np.concatenate([np.repeat(blobs(1, 8, 1, 1), 900, axis=0), blobs(100, 8, 100, 2)])[rng.permutation(1000)]
    for seed in range(5):
        assert spherical_kmeans(x, 40, seed=seed).empty == 0


def test_empty_clusters_are_refilled_from_the_largest_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(600, 6, 20, 10)
    far = int(np.argmin(x @ x[0]))
    # Two centroids that no row is nearest to.
    lost = [0, far, far, far]
    monkeypatch.setattr(kmeans, "_starts", lambda rows, k, seed, init: np.array(lost))
    result = spherical_kmeans(x, 4, seed=0)
    assert result.empty == 0 and (result.sizes > 0).all()
    assert result.objective[-1] > spherical_kmeans(x, 4, seed=0, iterations=0).objective[0] + 0.05


def test_half_precision_and_one_cluster() -> None:
    x = blobs(500, 16, 5, 11)
    half = x.astype(np.float16)
    expected = spherical_kmeans(normalize(half)[0], 5, seed=0)
    assert np.allclose(spherical_kmeans(half, 5, seed=0).centroids, expected.centroids, atol=1e-6)
    mean = x.astype(np.float64).sum(0)
    one = spherical_kmeans(x, 1, seed=0)
    assert np.allclose(one.centroids[0], mean / np.linalg.norm(mean), atol=1e-6) and one.sizes.tolist() == [500]


def test_opposite_rows_do_not_make_nan() -> None:
    x = np.array([[1, 0], [-1, 0]], np.float32)
    assert np.isfinite(spherical_kmeans(x, 1, seed=0).centroids).all()


def test_small_and_large_blocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(3000, 16, 20, 12)
    expected = spherical_kmeans(x, 25, seed=0, iterations=5)
    monkeypatch.setattr(kmeans, "_MOST_ROWS", 700)
    monkeypatch.setattr(kmeans, "_LEAST_ROWS", 100)
    again = spherical_kmeans(x, 25, seed=0, iterations=5)
    assert np.allclose(again.centroids, expected.centroids, atol=1e-6)


def test_sums_by_product_equal_sums_by_index() -> None:
    x = torch.from_numpy(blobs(300, 8, 5, 13))
    index = torch.from_numpy(np.random.default_rng(0).integers(0, 7, 300))
    one, two = torch.ones((7, 8)), torch.ones((7, 8))
    kmeans._add(one, index, x)
    kmeans._add_by_product(two, index, x)
    assert torch.allclose(one, two, atol=1e-5)


def brute_inter(centroids: np.ndarray, sizes: np.ndarray, neighbours: int) -> np.ndarray:
    inter = np.full(len(centroids), np.nan)
    c = centroids.astype(np.float64)
    for j in np.flatnonzero(sizes > 0):
        others = sorted(1 - c[j] @ c[i] for i in np.flatnonzero(sizes > 0) if i != j)[:neighbours]
        if others:
            inter[j] = np.mean(others)
    return inter


@pytest.mark.parametrize("neighbours", [1, 5, 20, 1000])
def test_centroid_statistics(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_STATISTICS_BLOCK", 16)
    rng = np.random.default_rng(14)
    centroids = blobs(70, 9, 70, 15)
    centroids[3] = centroids[60]  # a copy is another cluster, at distance 0
    sizes = rng.integers(0, 4, 70)
    sizes[[3, 60]] = 2
    sums = rng.random(70) * sizes
    intra, inter = centroid_statistics(centroids, sizes, sums, neighbours)
    assert np.array_equal(np.isnan(intra), sizes == 0) and np.array_equal(np.isnan(inter), sizes == 0)
    assert np.allclose(intra[sizes > 0], (sums / np.maximum(sizes, 1))[sizes > 0])
    assert np.allclose(inter, brute_inter(centroids, sizes, neighbours), atol=1e-6, equal_nan=True)
    if neighbours == 1:
        assert abs(inter[3]) < 1e-6 and abs(inter[60]) < 1e-6


def test_statistics_of_one_cluster() -> None:
    intra, inter = centroid_statistics(np.eye(3, dtype=np.float32), [0, 4, 0], [0.0, 1.0, 0.0], 20)
    assert intra[1] == 0.25 and np.isnan(intra[[0, 2]]).all() and np.isnan(inter).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, not 0"),
        ({"k": 2.0}, "k must"),
        ({"iterations": -1}, "iterations"),
        ({"init": "pca"}, "init"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"seed": -1}, "seed"),
        ({"X": np.zeros((0, 3), np.float32)}, "at least one row"),
        ({"X": np.zeros((2, 3), np.float32)}, "row 0 of X is zero"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(**{"X": np.eye(3, dtype=np.float32), "k": 2, "seed": 0, **change})


def test_bad_statistics_are_refused() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="l must be"):
        centroid_statistics(eye, [1, 1, 1], [0, 0, 0], 0)
    with pytest.raises(ValueError, match="as many sizes"):
        centroid_statistics(eye, [1, 1], [0, 0, 0], 1)
