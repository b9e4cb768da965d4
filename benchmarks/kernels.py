"""Speed of the kernels against the matrix-multiply peak of the same machine, measured in the same run.

    python benchmarks/kernels.py [--device cuda] [--rows 100000] [--json FILE]

Each kernel has to reach its floor in floors.yaml, a share of that peak; exit status 1 otherwise. A figure is the best
of three. On a GPU the answers are compared with the CPU's, which they must equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from datas3_ray.kernels.kmeans import spherical_kmeans
from datas3_ray.kernels.pairwise import prior_max, prior_max_groups
from datas3_ray.kernels.similarity import nearest, normalize, top_order_statistic

DIMENSIONS = 512


def best_of_three(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of the quickest of three runs, and the last answer."""
    seconds, answer = [], None
    for _ in range(3):
        started = time.perf_counter()
        answer = work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds), answer


def peak(device: str) -> float:
    """GFLOP/s of a large float32 matrix product."""
    n = 4096 if device == "cpu" else 16384
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    torch.mm(a, b)
    return 2 * n**3 / best_of_three(lambda: torch.mm(a, b), device)[0] / 1e9


def clustered(rows: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around 1,000 centres, one in ten a near-duplicate of another."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(1000, DIMENSIONS)).astype(np.float32)
    vectors = centres[rng.integers(0, 1000, rows)] + rng.normal(size=(rows, DIMENSIONS)).astype(np.float32)
    copies = rng.choice(rows, rows // 10, replace=False)
    vectors[copies] = vectors[rng.integers(0, rows, len(copies))] + np.float32(0.05) * rng.normal(
        size=(len(copies), DIMENSIONS)
    ).astype(np.float32)
    return normalize(vectors)[0]


def measure(device: str, rows: int) -> dict[str, dict[str, float]]:
    """GFLOP/s and share of the peak of each kernel; ``flops`` counts multiply-adds that the answer needs as two."""
    x = clustered(rows)
    k = 1000
    centroids = x[:k]
    queries = x[-500:]
    cluster = np.sort(np.random.default_rng(1).integers(0, rows // 500, rows))
    offsets = np.r_[0, np.flatnonzero(np.diff(cluster)) + 1, rows]
    sizes = np.diff(offsets)
    one = x[: min(rows, 20_000)]
    top = peak(device)
    iterations = 5
    jobs: dict[str, tuple[float, Callable[[], Any]]] = {
        "nearest": (2.0 * rows * k * DIMENSIONS, lambda: nearest(x, centroids, device=device)),
        "top_order_statistic": (
            2.0 * rows * len(queries) * DIMENSIONS,
            lambda: top_order_statistic(x, queries, 10, device=device),
        ),
        "spherical_kmeans": (
            2.0 * rows * k * DIMENSIONS * iterations,
            lambda: spherical_kmeans(x, k, seed=0, iterations=iterations, device=device, tolerance=0.0),
        ),
        "prior_max one cluster": (1.0 * len(one) ** 2 * DIMENSIONS, lambda: prior_max(one, device=device)),
        "prior_max_groups": (
            float((sizes.astype(float) ** 2).sum()) * DIMENSIONS,
            lambda: prior_max_groups(x, offsets, device=device),
        ),
    }
    figures: dict[str, dict[str, float]] = {"matrix product": {"gflops": top, "share": 1.0}}
    for name, (flops, work) in jobs.items():
        seconds, answer = best_of_three(work, device)
        rate = flops / seconds / 1e9
        figures[name] = {"seconds": seconds, "gflops": rate, "share": rate / top}
        if device != "cpu" and name != "spherical_kmeans":
            figures[name]["equal_to_cpu"] = float(same_on_cpu(name, x, centroids, queries, one, offsets, answer))
    return figures


def same_on_cpu(name: str, x: Any, centroids: Any, queries: Any, one: Any, offsets: Any, answer: Any) -> bool:
    """Whether the CPU gives the same answer, to the last bit."""
    again: Any = {
        "nearest": lambda: nearest(x, centroids),
        "top_order_statistic": lambda: top_order_statistic(x, queries, 10),
        "prior_max one cluster": lambda: prior_max(one),
        "prior_max_groups": lambda: prior_max_groups(x, offsets),
    }[name]()
    pairs = zip(again, answer, strict=True) if isinstance(answer, tuple) else [(again, answer)]
    return all(np.array_equal(a, b) for a, b in pairs)


def main() -> int:
    """Measure, print, compare with the floors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = measure(options.device, options.rows)
    floors = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["kernels"][options.device]
    machine = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.rows} x {DIMENSIONS}")
    failed = False
    for name, figure in figures.items():
        floor = floors.get(name, 0.0)
        low = figure["share"] < floor or figure.get("equal_to_cpu", 1.0) < 1.0
        failed |= low
        equal = "" if "equal_to_cpu" not in figure else f"  equal to CPU: {bool(figure['equal_to_cpu'])}"
        print(
            f"{name:<24}{figure['gflops']:>10.0f} GFLOP/s {figure['share']:>7.2f} of peak (floor {floor:.2f})"
            f"{equal}{'  TOO LOW' if low else ''}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": options.rows, "figures": figures}, indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
