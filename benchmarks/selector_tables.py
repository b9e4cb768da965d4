"""Floors of whole selections: from a Lance table to a committed selection, beside the same arithmetic in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import (
    DIMENSIONS,
    Figure,
    PeakMemory,
    Sizes,
    as_table,
    best_of,
    clustered,
    fill,
    seconds_of,
)
from benchmarks.selector_kernels import seconds_of_triangles, triangles
from datas3_ray import Lake
from datas3_ray.lake.view import Fragment, View
from datas3_ray.runtime import ensure_ray
from datas3_ray.selectors import (
    DomainClassifier,
    ImageAlign,
    ImportanceResampling,
    KCenter,
    NearNeighbors,
    Random,
    RDSPlus,
    SemDeDup,
)

EPS = 0.03


@contextmanager
def temporary_lake() -> Iterator[Lake]:
    """A lake that is gone afterwards, and a Ray that has its workers up."""
    import ray

    ensure_ray()
    ray.get([ray.remote(_import).remote() for _ in range(os.cpu_count() or 1)])
    folder = tempfile.mkdtemp()
    try:
        yield Lake(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _import() -> None:
    """What this process has imported already, so that neither side of a ratio has an import in it."""
    import lance  # noqa: F401
    import torch

    import datas3_ray.selectors  # noqa: F401

    torch.eye(64) @ torch.eye(64)


def semdedup(sizes: Sizes) -> Iterator[Figure]:
    """A whole SemDeDup against faiss and float32 triangles on arrays that are in memory already."""
    with temporary_lake() as lake:
        small = Sizes.small()
        # Both sides once on a few rows, so that neither has its imports and first calls in its figure.
        _in_memory(fill(lake, "few", small), small)
        first = SemDeDup(column="vec", clusters=small.clusters).select(lake, "few")
        lake.add("few", as_table(clustered(10, seed=99), prefix="new-"))
        SemDeDup(column="vec").update(lake, "few", since=first)
        x = fill(lake, "pool", sizes)
        selector = SemDeDup(column="vec", clusters=sizes.clusters, eps=EPS, iterations=sizes.iterations)
        with PeakMemory() as memory:
            ours, selection = seconds_of(lambda: selector.select(lake, "pool", name="dedup"))
        # At once, as the table is then as likely to be in the system's cache as it was for the whole run.
        update = list(_update(lake, selector, sizes, ours))
        theirs, kept = seconds_of(lambda: _in_memory(x, sizes))
        note = f"ours {ours:.1f} s, in memory {theirs:.1f} s, {len(x)} rows, {len(selection)} and {kept} kept"
        yield Figure.of("semdedup_table", ours / theirs, note=note)
        yield Figure.of("semdedup_worker_gigabytes", memory.worker / 1e9, "GB")
        yield from update


def _in_memory(x: np.ndarray, sizes: Sizes) -> int:
    """Rows kept by faiss k-means and plain triangles."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    torch.set_num_threads(os.cpu_count() or 1)
    found = faiss.Kmeans(DIMENSIONS, sizes.clusters, niter=sizes.iterations, spherical=True, seed=1)
    found.train(x)
    similarity, cluster = found.index.search(x, 1)
    order = np.lexsort([similarity[:, 0], cluster[:, 0]])
    edges = np.flatnonzero(np.diff(cluster[order, 0], prepend=-1, append=-1))
    return sum(
        int((triangles(x[order[first:last]]) <= 1 - EPS).sum())
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    )


def _update(lake: Lake, selector: SemDeDup, sizes: Sizes, whole: float) -> Iterator[Figure]:
    """One row in a hundred is new; only these are compared."""
    new = clustered(sizes.rows // 100, seed=99)
    lake.add("pool", as_table(new, prefix="new-"))
    seconds, _ = seconds_of(lambda: selector.update(lake, "pool", since="dedup", name="updated"))
    note = f"{seconds:.2f} s for {len(new)} new rows, {whole:.1f} s for all"
    yield Figure.of("semdedup_update", seconds / whole, note=note)


def semdedup_large_cluster(sizes: Sizes) -> Iterator[Figure]:
    """One cluster that no worker could hold at once: its comparison (the clustering is there) and its memory."""
    with temporary_lake() as lake:
        fill(lake, "pool", sizes, rows=sizes.large_cluster, centres=1)
        SemDeDup(column="vec", clusters=1, eps=EPS).select(lake, "pool", name="first")
        with PeakMemory() as memory:
            # Another eps reads the same clustering, and compares all rows again.
            again = SemDeDup(column="vec", clusters=1, eps=2 * EPS)
            seconds, _ = seconds_of(lambda: again.select(lake, "pool", name="second"))
        plain = seconds_of_triangles(sizes.large_cluster, sizes.one_cluster)
        note = f"ours {seconds:.1f} s, float32 arithmetic {plain:.1f} s, {sizes.large_cluster} rows"
        yield Figure.of("semdedup_large_cluster", seconds / plain, note=note)
        yield Figure.of("semdedup_worker_gigabytes", memory.worker / 1e9, "GB")


def query(sizes: Sizes) -> Iterator[Figure]:
    """Each query method against reading the table and multiplying it with the query, in the same tasks."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with temporary_lake() as lake:
        fill(lake, "pool", sizes)
        names = ["query", "other-query"]
        for seed, name in enumerate(names):
            lake.add(name, as_table(clustered(sizes.queries, seed=1000 + seed), prefix="q"))
        q = ray.put(clustered(sizes.queries, seed=1000))
        view = View(lake.table("pool"), "vec")
        bare, _ = best_of(2, lambda: view.map(_bare, q).results())
        for selector in (
            ImageAlign(column="vec", x=10, size=0.25),
            NearNeighbors(column="vec", reading="ranked", clusters=sizes.clusters, size=0.25),
            ImportanceResampling(column="vec", size=0.25),
            DomainClassifier(column="vec", size=0.25),
        ):
            # The first run clusters the pool, where a method looks at clusters; the second one is timed.
            selector.select(lake, "pool", query=names[1], name=f"{selector.method}-first")
            with PeakMemory() as memory:
                seconds, _ = seconds_of(
                    lambda s=selector: s.select(lake, "pool", query=names[0], name=f"{s.method}-timed")
                )
            note = f"{seconds:.2f} s, bare {bare:.2f} s; driver {memory.driver / 1e9:.2f} GB"
            yield Figure.of(f"query_{selector.method}", seconds / bare, note=note)


def _bare(fragment: Fragment, queries: np.ndarray) -> float:
    """Read, multiply, and look at each product once."""
    right = torch.from_numpy(queries.copy()).T
    return sum(float(torch.from_numpy(np.array(rows)).mm(right).amax(1).sum()) for _, rows in fragment.vectors())


def rds_plus(sizes: Sizes) -> Iterator[Figure]:
    """Round robin of all queries."""
    with temporary_lake() as lake:
        fill(lake, "pool", sizes)
        lake.add("query", as_table(clustered(sizes.queries, seed=1000), prefix="q"))
        with PeakMemory() as memory:
            selector = RDSPlus(column="vec", size=sizes.wanted)
            seconds, _ = seconds_of(lambda: selector.select(lake, "pool", query="query", name="near"))
        note = f"{sizes.rows} x {sizes.queries}, N = {sizes.wanted}; driver {memory.driver / 1e9:.2f} GB"
        yield Figure.of("rds_plus_seconds", seconds, "s", note)


def resize(sizes: Sizes) -> Iterator[Figure]:
    """A finished selection at another size."""
    with temporary_lake() as lake:
        fill(lake, "pool", sizes)
        selection = Random(size=0.5).select(lake, "pool", name="half")
        share = iter(range(1, 4))
        seconds, _ = best_of(3, lambda: selection.resize(sizes.rows // 5 + next(share)))
        yield Figure.of("resize_seconds", seconds, "s", f"{sizes.rows} rows")


def k_center(sizes: Sizes) -> Iterator[Figure]:
    """Farthest-first against one pass a centre over arrays in memory."""
    rows = min(sizes.rows, 100_000)
    with temporary_lake() as lake:
        x = fill(lake, "pool", sizes, rows=rows)
        selector = KCenter(column="vec", size=sizes.centres)
        seconds, _ = seconds_of(lambda: selector.select(lake, "pool", name="spread"))
        tried = 20
        plain = seconds_of(lambda: _farthest_first(x, tried))[0] * sizes.centres / tried
        note = f"ours {seconds:.1f} s, one pass a centre {plain:.1f} s, {rows} rows, N = {sizes.centres}"
        yield Figure.of("k_center", seconds / plain, note=note)


def _farthest_first(x: np.ndarray, count: int) -> list[int]:
    torch.set_num_threads(os.cpu_count() or 1)
    rows = torch.from_numpy(x)
    picks, nearest = [0], rows @ rows[0]
    while len(picks) < count:
        picks.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, rows @ rows[picks[-1]])
    return picks


def blind_coreset(sizes: Sizes) -> Iterator[Figure]:
    """Draws per second, in the benchmark of its own (blind_coreset.py), with the floors there."""
    small = ["--rows", "5000", "--dimensions", "64", "--draws", "2000", "--published-draws", "20"]
    yield from _script("blind_coreset", small if sizes.quick else [])


def blind_coreset_large(sizes: Sizes) -> Iterator[Figure]:
    """Hours and memory of a million draws on a million rows, likewise."""
    small = ["--large-rows", "20000", "--large-draws", "2000", "--large-dimensions", "64"]
    yield from _script("blind_coreset_large", ["--large", *(small if sizes.quick else [])])


def _script(name: str, options: list[str]) -> Iterator[Figure]:
    file = Path(__file__).parent / "blind_coreset.py"
    done: Any = subprocess.run([sys.executable, str(file), *options], capture_output=True, text=True)
    print(done.stdout + done.stderr, end="")
    yield Figure.of(f"{name}_missed", float(done.returncode), "floors of its own", "")
