"""What the selectors' benchmarks share: data, clocks, memory, and figures that are held against floors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import yaml

from datas3_ray import Lake
from datas3_ray.encoders.torch_encoder import cpu_has_bf16
from datas3_ray.kernels.similarity import normalize

DIMENSIONS = 512
FLOORS = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["selectors"]


@dataclass
class Figure:
    """One number, and what it may be at most. ``holds`` is None where nothing is said."""

    name: str
    value: float
    unit: str = "x"
    note: str = ""
    floor: float | None = None

    @staticmethod
    def of(name: str, value: float, unit: str = "x", note: str = "") -> Figure:
        """The figure with the floor that floors.yaml has for its name."""
        given = FLOORS.get(name)
        if isinstance(given, dict):
            given = given["bf16" if cpu_has_bf16() else "other"]
        return Figure(name, value, unit, note, given)

    @property
    def holds(self) -> bool | None:
        return None if self.floor is None else self.value <= self.floor

    def sentence(self, judged: bool) -> str:
        text = f"{self.name:<28}{self.value:>10.3f} {self.unit}"
        if self.floor is not None:
            text += f"  (at most {self.floor:g})"
            text += "" if self.holds or not judged else "  MISSED"
        return text + (f"  {self.note}" if self.note else "")


@dataclass
class Sizes:
    """How large everything is; ``quick`` is for seeing that it all runs, and its figures are held against nothing."""

    quick: bool
    rows: int = 1_000_000
    clusters: int = 1_000
    queries: int = 1_000
    kmeans_rows: int = 500_000
    one_cluster: int = 50_000
    large_cluster: int = 300_000
    wanted: int = 100_000
    centres: int = 2_000
    fragments: int = 16
    iterations: int = 20

    @staticmethod
    def small() -> Sizes:
        """A few seconds each."""
        return Sizes(True, 20_000, 20, 100, 20_000, 4_000, 8_000, 2_000, 200, 4, 5)


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds and the answer."""
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def best_of(times: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the quickest run, and the last answer."""
    runs = [seconds_of(work) for _ in range(times)]
    return min(run[0] for run in runs), runs[-1][1]


def clustered(rows: int, seed: int = 0, centres: int = 1000) -> np.ndarray:
    """Unit vectors around centres, float32 (rows, 512), one in ten a near-duplicate of another."""
    centre = np.random.default_rng(0).standard_normal((centres, DIMENSIONS), dtype=np.float32)
    rng = np.random.default_rng([1, seed])
    vectors = centre[rng.integers(0, centres, rows)] + rng.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    copies = rng.choice(rows, rows // 10, replace=False)
    noise = np.float32(0.05) * rng.standard_normal((len(copies), DIMENSIONS), dtype=np.float32)
    vectors[copies] = vectors[rng.integers(0, rows, len(copies))] + noise
    return normalize(vectors)[0]


def as_table(vectors: np.ndarray, first: int = 0, prefix: str = "") -> pa.Table:
    """Rows of a lake's table with ids in order."""
    ids = pa.array([f"{prefix}{number:08}" for number in range(first, first + len(vectors))])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table({"id": ids, "vec": column})


def fill(lake: Lake, name: str, sizes: Sizes, rows: int | None = None, centres: int = 1000) -> np.ndarray:
    """A table of clustered rows in several fragments; also the vectors, for who works on arrays in memory."""
    pieces = np.array_split(np.arange(rows or sizes.rows), sizes.fragments)
    made = []
    for number, piece in enumerate(pieces):
        vectors = clustered(len(piece), number, centres)
        lake.add(name, as_table(vectors, int(piece[0])))
        made.append(vectors)
    return np.concatenate(made)


@dataclass
class PeakMemory:
    """Largest private memory of this process and of any of its children (Ray's workers), watched from a thread."""

    driver: int = 0
    worker: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            self.driver = max(self.driver, _private(me))
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ray::"):
                        self.worker = max(self.worker, _private(child))
                except psutil.Error:
                    continue


def _private(process: psutil.Process) -> int:
    """Resident bytes that are not shared: without what is mapped from Ray's object store."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)
