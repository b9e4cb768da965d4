"""The nearest centroid in coarse numbers: that of exact cosines, whatever was skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datas3_ray.kernels import screen, similarity
from datas3_ray.kernels.closest import Closest
from datas3_ray.kernels.similarity import nearest, top_order_statistic


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def crowd(kind: str, k: int, d: int) -> np.ndarray:
    """Centroids: apart, in groups that only float32 or float64 tells apart, with copies, or some along an axis."""
    centroids = unit(k, d, 1)
    if kind == "axes":
        centroids[::4] = np.eye(d)[np.arange(len(centroids[::4])) % d]
    if kind == "copies":
        centroids[k // 2 :] = centroids[: k - k // 2]
    if kind in ("close", "closer"):
        off = 1e-3 if kind == "close" else 1e-7
        centroids = centroids[np.arange(k) % 3] + off * unit(k, d, 2)
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids.astype(np.float32)


def brute(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = np.round(rows.astype(np.float64) @ centroids.astype(np.float64).T * 1e6)
    return keys.argmax(1), keys.max(1) / 1e6


@pytest.mark.parametrize("kind", ["apart", "copies", "close", "closer", "axes"])
@pytest.mark.parametrize("units", [(), ("bfloat16",), ("int8",), ("int8", "bfloat16")])
@pytest.mark.parametrize("d", [3, 64, 100])
def test_is_the_first_of_the_largest_exact_cosines(kind: str, units: tuple, d: int) -> None:
    rows, centroids = unit(200, d, 0), crowd(kind, 40, d)
    closest = Closest(torch.from_numpy(centroids), units, 64)
    found = torch.cat([closest.of(torch.from_numpy(rows[start : start + 64])) for start in range(0, 200, 64)])
    assert found.tolist() == brute(rows, centroids)[0].tolist()


@pytest.mark.parametrize("units", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["apart", "copies", "closer"])
def test_nearest_and_the_largest_cosine_are_the_same_with_and_without(
    units: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, centroids = 3 * unit(150, 24, 5), crowd(kind, 30, 24)
    monkeypatch.setattr(similarity, "SCREENED", 10**9)
    plain = nearest(rows, centroids), top_order_statistic(rows, centroids, 1)
    monkeypatch.setattr(similarity, "SCREENED", 1)
    for module in (similarity, screen):
        monkeypatch.setattr(module, "fast_units", lambda: units)
    index, cosine = nearest(rows, centroids)
    assert (index == plain[0][0]).all() and (cosine == plain[0][1]).all()
    assert (top_order_statistic(rows, centroids, 1) == plain[1]).all()
    # Whatever the rows are batched with.
    assert (nearest(rows[40:51], centroids)[0] == index[40:51]).all()
