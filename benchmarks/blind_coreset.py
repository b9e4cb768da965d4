"""BlindCoreset's draws per second beside the published way, and how a large pool extrapolates.

    python benchmarks/blind_coreset.py [--rows 100000] [--dimensions 1280] [--draws 12000] [--processes 2]
    python benchmarks/blind_coreset.py --large [--large-rows 1000000] [--large-draws 6000] [--large-dimensions 1280]

*published*: the pool row by row; for each draw the distances of all rows, their argmin, the distances to that row and a
full argsort, in numpy. *ours*: ``kernels.blind_coreset.score_draws`` on a slice of the plan of 1,000,000 draws, so that
each sorted column serves as many draws as in a whole run, sorting included. Both run in as many processes at once as
there are cores to use, one way after the other, on the same data. Rates are by the processes' own processor time, so
that other programs on the machine do not count. The floor (``blind_coreset: ratio`` in floors.yaml) is ours over
published. Some draws are replayed in both ways: the scores must agree to 1e-6 of a vote a draw.

``--large`` measures the same kernel on a pool of a million rows and says what 1,000,000 draws take at that rate on as
many free cores, and the peak memory of everything together; ``largest_hours`` and ``largest_gigabytes`` are the limits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from datas3_ray.kernels.blind_coreset import (
    UNIT,
    Ranges,
    choose_strips,
    make_draws,
    score_draws,
    sketch,
)
from datas3_ray.kernels.subspace_search import Columns, Draws

PLAN = 1_000_000
ALPHA, BETA = 1000, 4.0
# Set before the processes are forked, so that they share one copy.
POOL: dict[str, Any] = {}


def pool(rows: int, dimensions: int) -> Columns:
    """Rows around 1,000 centres, column by column."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 1000, rows)
    blocks = []
    for first in range(0, dimensions, 64):
        block = rng.standard_normal((min(64, dimensions - first), rows), dtype=np.float32)
        block += 2 * rng.standard_normal((len(block), 1000), dtype=np.float32)[:, cluster]
        blocks.append(block)
    return Columns(blocks)


def published(z: np.ndarray, draws: Draws) -> np.ndarray:
    """Full distances and a full argsort for each draw."""
    score = np.zeros(len(z))
    for dimensions, point in zip(draws.dimensions, draws.point, strict=True):
        plane = z[:, dimensions]
        winner = np.argmin(np.abs(plane - point).sum(axis=1))
        distance = np.abs(plane - plane[winner]).sum(axis=1)
        near = np.argsort(distance)[1 : ALPHA + 1]
        penalty = distance[near].astype(np.float64) ** -BETA
        score[winner] += 1
        score[near] -= penalty / penalty.sum()
    return score


def ours(bounds: tuple[int, int]) -> tuple[float, np.ndarray]:
    return timed(lambda: score_draws(POOL["columns"], POOL["draws"][bounds[0] : bounds[1]], ALPHA, BETA))


def theirs(bounds: tuple[int, int]) -> tuple[float, np.ndarray]:
    return timed(lambda: published(POOL["z"], POOL["draws"][bounds[0] : bounds[1]]))


def timed(work: Any) -> tuple[float, np.ndarray]:
    """Processor seconds, and the answer."""
    started = time.process_time()
    answer = work()
    return time.process_time() - started, answer


def rate(work: Any, draws: int, processes: int, first: int) -> tuple[float, np.ndarray]:
    """Draws per second of all processes together, each with draws of its own, and the sum of their scores."""
    each = draws // processes
    bounds = [(first + i * each, first + (i + 1) * each) for i in range(processes)]
    with multiprocessing.get_context("fork").Pool(processes) as workers:
        answers = workers.map(work, bounds, chunksize=1)
    return each * processes / max(seconds for seconds, _ in answers), np.sum([score for _, score in answers], axis=0)


class PeakMemory:
    """Largest memory of this process and its children, shared pages counted once, watched from a thread."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def prepare(rows: int, dimensions: int) -> None:
    columns = pool(rows, dimensions)
    draws = choose_strips(make_draws(0, 0, PLAN, Ranges.of(columns)), sketch(columns))[0]
    POOL.update(columns=columns, draws=draws)


def compare(options: argparse.Namespace, floors: dict[str, float]) -> bool:
    """Both ways on one pool; whether the floor was reached."""
    prepare(options.rows, options.dimensions)
    POOL["z"] = np.ascontiguousarray(np.concatenate(POOL["columns"].blocks).T)
    middle = PLAN // 2
    slow, score = rate(theirs, options.published_draws, options.processes, middle)
    again = rate(ours, options.published_draws, options.processes, middle)[1] / UNIT
    difference = float(np.abs(score - again).max()) / options.published_draws
    fast = max(rate(ours, options.draws, options.processes, middle)[0] for _ in range(2))
    ratio = fast / slow
    failed = ratio < floors["ratio"] or difference > 1e-6
    print(f"{options.rows} x {options.dimensions}, alpha {ALPHA}, {options.processes} processes")
    print(f"published {slow:10.0f} draws/s")
    print(
        f"ours      {fast:10.0f} draws/s   {ratio:.1f} x (floor {floors['ratio']:.0f}){'  TOO LOW' if failed else ''}"
    )
    print(f"largest difference of a score, per draw: {difference:.1e}")
    return not failed


def large(options: argparse.Namespace, floors: dict[str, float]) -> bool:
    """Rate and memory on a large pool; whether a million draws stay inside the limits."""
    rows, dimensions = options.large_rows, options.large_dimensions
    with PeakMemory() as memory:
        seconds = timed(lambda: prepare(rows, dimensions))[0]
        fast, _ = rate(ours, options.large_draws, options.processes, PLAN // 2)
    hours = PLAN / fast / 3600
    gigabytes = memory.bytes / 1e9
    failed = hours > floors["largest_hours"] or gigabytes > floors["largest_gigabytes"]
    print(f"{rows} x {dimensions}, alpha {ALPHA}, {options.processes} processes: {fast:.0f} draws/s")
    print(
        f"1,000,000 draws at that rate: {hours * 60:.1f} minutes (limit {floors['largest_hours'] * 60:.0f}), and "
        f"{seconds:.0f} s of one core to draw the pool and find its ranges; peak memory {gigabytes:.1f} GB "
        f"(limit {floors['largest_gigabytes']:.0f}){'  TOO MUCH' if failed else ''}"
    )
    return not failed


def main() -> int:
    """Measure, print, compare with the floors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=1280)
    parser.add_argument("--draws", type=int, default=24_000)
    parser.add_argument("--published-draws", type=int, default=200)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--large-rows", type=int, default=1_000_000)
    parser.add_argument("--large-dimensions", type=int, default=1280)
    parser.add_argument("--large-draws", type=int, default=24_000)
    options = parser.parse_args()
    floors = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["blind_coreset"]
    return int(not (large if options.large else compare)(options, floors))


if __name__ == "__main__":
    sys.exit(main())
