"""Floors of kernels: k-means beside faiss, SemDeDup's comparison beside plain float32 triangles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.measuring import DIMENSIONS, Figure, Sizes, best_of, clustered, seconds_of
from datas3_ray.kernels.kmeans import spherical_kmeans
from datas3_ray.kernels.pairwise import prior_max
from datas3_ray.kernels.similarity import nearest

BLOCK = 1024
THRESHOLD = 0.97
PASSES = (2, 6)
OBJECTIVE_ITERATIONS = 10


def kmeans(sizes: Sizes) -> Iterator[Figure]:
    """Seconds of one Lloyd pass over the rows, and the mean cosine after ten."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    torch.set_num_threads(os.cpu_count() or 1)
    x, k = clustered(sizes.kmeans_rows), sizes.clusters

    def ours(iterations: int) -> np.ndarray:
        return spherical_kmeans(x, k, seed=0, iterations=iterations, tolerance=0).centroids

    def theirs(iterations: int) -> np.ndarray:
        found = faiss.Kmeans(
            DIMENSIONS, k, niter=iterations, spherical=True, seed=1, max_points_per_centroid=len(x), verbose=False
        )
        found.train(x)
        return found.centroids

    few, many = PASSES
    passes = {}
    for name, work in (("ours", ours), ("faiss", theirs)):
        # The difference is passes alone: both make copies and starts that do not repeat.
        lower, upper = best_of(2, lambda w=work: w(few))[0], best_of(2, lambda w=work: w(many))[0]
        passes[name] = (upper - lower) / (many - few)
    note = f"ours {passes['ours']:.2f} s, faiss {passes['faiss']:.2f} s a pass, {len(x)} x {DIMENSIONS}, k = {k}"
    yield Figure.of("kmeans_pass", passes["ours"] / passes["faiss"], note=note)
    cosine = {
        name: float(nearest(x, work(OBJECTIVE_ITERATIONS))[1].mean(dtype=np.float64))
        for name, work in (("ours", ours), ("faiss", theirs))
    }
    note = f"mean cosine: ours {cosine['ours']:.5f}, faiss {cosine['faiss']:.5f}"
    yield Figure.of("kmeans_objective", 1 - cosine["ours"] / cosine["faiss"], "below faiss", note)


def triangles(x: np.ndarray) -> np.ndarray:
    """The plain way: each row's largest product with an earlier row, in float32, a block of rows at a time."""
    rows = torch.from_numpy(x)
    best = torch.zeros(len(rows))
    later = torch.triu(torch.ones(BLOCK, BLOCK, dtype=torch.bool))
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        cosines = rows[start:stop] @ rows[:stop].T
        size = stop - start
        cosines[:, start:].masked_fill_(later[:size, :size], -1.0)
        torch.maximum(best[start:stop], cosines.amax(1), out=best[start:stop])
    return best.numpy()


def semdedup_kernel(sizes: Sizes) -> Iterator[Figure]:
    """One cluster: the kernel against the plain way, and whether both keep the same rows."""
    torch.set_num_threads(os.cpu_count() or 1)
    x = clustered(sizes.one_cluster, centres=1)
    plain, expected = best_of(2, lambda: triangles(x))
    fast, found = best_of(2, lambda: prior_max(x))
    note = f"plain {plain:.2f} s, ours {fast:.2f} s, {len(x)} x {DIMENSIONS}"
    yield Figure.of("semdedup_kernel", fast / plain, note=note)
    # Where the plain way's own rounding decides, ours is the float64 answer; such rows are told apart from mistakes.
    certain = np.abs(expected - THRESHOLD) > 1e-6
    differ = int(((found[0] > THRESHOLD) != (expected > THRESHOLD))[certain].sum())
    yield Figure.of("semdedup_kernel_differing", differ, "rows", f"{int((expected <= THRESHOLD).sum())} kept")


def seconds_of_triangles(rows: int, sample: int) -> float:
    """What the plain way takes for one cluster of ``rows``, from a smaller one."""
    x = clustered(min(rows, sample), centres=1)
    return seconds_of(lambda: triangles(x))[0] * (rows / len(x)) ** 2
