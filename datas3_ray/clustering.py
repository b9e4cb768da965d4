"""Spherical k-means over a table: centroids from a bounded sample, assignment one task a fragment, statistics.

The result is two tables of the lake, so that every method with the same settings shares them and a person can look:
``TABLE.COLUMN.kK-FINGERPRINT`` (one row a centroid) and the same name with ``.rows`` (one row an eligible row).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from datas3_ray import __version__
from datas3_ray.kernels.kmeans import centroid_statistics, spherical_kmeans
from datas3_ray.kernels.similarity import nearest
from datas3_ray.lake.aligned import aligned_refs, part_positions, write_aligned
from datas3_ray.lake.schemas import fingerprint, matrix, vector_field
from datas3_ray.lake.view import Counts, Fragment, Mapped, View
from datas3_ray.runtime import device, gather, idle_cpus, matrix_task, remote, settled
from datas3_ray.sampling import require_rows, sample_ref

if TYPE_CHECKING:
    from datas3_ray.lake import Lake


class KMeansConfig(BaseModel):
    """Settings of spherical k-means. ``sample`` bounds the rows it trains on (``256 * clusters`` at most)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clusters: int = Field(ge=1)
    iterations: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    sample: int = Field(default=1_000_000, ge=1)

    @property
    def sample_rows(self) -> int:
        """Rows to train on, at most."""
        return min(self.sample, 256 * self.clusters)


@dataclass(frozen=True)
class Clustering:
    """Centroids, their statistics, and the aligned assignments of a view's rows.

    Attributes
    ----------
    centroids : ndarray of shape (k, d), float32
        Unit vectors.
    sizes : ndarray of shape (k,), int64
        Members of each cluster.
    mean_distance : ndarray of shape (k,), float64
        Mean cosine distance of the members to their centroid; NaN for an empty cluster.
    mapped : Mapped
        One part a fragment: ``id``, ``cluster`` (int32) and ``similarity`` (float32) of each eligible row.
    name : str
        Name of the centroids' table.
    """

    centroids: np.ndarray
    sizes: np.ndarray
    mean_distance: np.ndarray
    mapped: Mapped
    name: str


def cluster(lake: Lake, view: View, source: str, config: KMeansConfig, *, centroids: str | None = None) -> Clustering:
    """Cluster a view's rows, or read the clustering back when the same one was made before.

    Parameters
    ----------
    source : str
        Fingerprint of the view's eligible rows (:meth:`datas3_ray.selectors.base.Inputs.fingerprint`).
    centroids : str, optional
        A table of centroids that are used as they are; the rows are only assigned to them.

    Raises
    ------
    UsageError
        When there is no eligible row.
    """
    if view.column is None:
        raise ValueError("clustering needs a view with a vector column")
    given = None
    settings: dict[str, Any] = config.model_dump()
    if centroids is not None:
        given = centroids_of(lake, centroids)
        settings = {"clusters": len(given), "centroids": lake.table(centroids).lineage().get("fingerprint")}
    mark = fingerprint({"source": source, "column": view.column, **settings})
    name = f"{view.table.name}.{view.column}.k{settings['clusters']}-{mark[:8]}"
    rows = f"{name}.rows"
    # The centroids are written last, so their presence means that both are whole.
    there = lake.exists(name) and lake.table(name).lineage().get("fingerprint") == mark
    if not there or not is_aligned(lake, rows, view):
        lineage = {"parameters": settings, "fingerprint": mark}
        _assign_and_write(lake, view, name, lineage, given if given is not None else _trained(view, config, lineage))
    return _read(lake, view, name, rows)


def is_aligned(lake: Lake, rows: str, view: View) -> bool:
    """Whether the assignments' parts are the fragments that the table has now: a compaction makes others."""
    return list(part_positions(lake.table(rows).lineage())) == view.fragment_ids


def centroids_of(lake: Lake, name: str) -> np.ndarray:
    """The centroids of a table of the lake, float32 (k, d)."""
    return matrix(lake.table(name).to_arrow(["vector"]).column("vector")).copy()


def _trained(view: View, config: KMeansConfig, lineage: dict[str, Any]) -> np.ndarray:
    """New centroids; the lineage gets the objective of each iteration."""
    sample = settled([sample_ref(view, config.sample_rows, config.seed)])[0]
    resources = matrix_task()
    if "num_gpus" not in resources:
        resources = {"num_cpus": idle_cpus()}
    trained = gather([remote(_train).options(**resources).remote(sample, config, resources["num_cpus"])])[0]
    lineage["objective"] = [round(float(value), 6) for value in trained.objective]
    return np.asarray(trained.centroids)


def _assign_and_write(lake: Lake, view: View, name: str, lineage: dict[str, Any], centroids: np.ndarray) -> None:
    import ray

    started = time.perf_counter()
    rows, k = f"{name}.rows", len(centroids)
    centroids_ref = ray.put(centroids)
    assigned = view.map(assign_fragment, centroids_ref, resources=matrix_task())
    counts = assigned.counts()
    require_rows(view, counts.eligible)
    lineage |= {
        "method": "kmeans",
        "table": view.table.name,
        "column": view.column,
        "inputs": {view.table.name: view.table.version},
        "counts": vars(counts),
        "code_version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    sums = remote(_sums)
    tallies = gather([sums.remote(part, k) for part in assigned.parts])
    sizes = np.sum([tally[0] for tally in tallies], axis=0)
    distance = np.sum([tally[1] for tally in tallies], axis=0)
    intra, inter = centroid_statistics(centroids, sizes, distance, 20)
    write_aligned(
        lake,
        rows,
        assigned.parts,
        kind="assignments",
        fragment_ids=view.fragment_ids,
        lineage=lambda tallies: lineage,
    )
    table = pa.table(
        {
            "id": pa.array([str(j) for j in range(k)]),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(centroids.reshape(-1)), type=vector_field("vector", centroids.shape[1]).type
            ),
            "size": sizes,
            "mean_distance": intra,
            "mean_distance_to_nearest_20": inter,
        }
    )
    lineage["seconds"] = round(time.perf_counter() - started, 3)
    lake.write(name, table, kind="centroids", lineage=lineage)


def _read(lake: Lake, view: View, name: str, rows: str) -> Clustering:
    import ray

    centroids = lake.table(name)
    table = centroids.to_arrow()
    assignments = lake.table(rows)
    _, parts = aligned_refs(assignments)
    counts = Counts(**assignments.lineage()["counts"])
    return Clustering(
        matrix(table.column("vector")).copy(),
        table.column("size").to_numpy(),
        table.column("mean_distance").to_numpy(),
        Mapped(parts, [ray.put(counts)]),
        name,
    )


def _train(sample: np.ndarray, config: KMeansConfig, threads: float) -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(int(threads))  # the answer does not depend on it
    try:
        return spherical_kmeans(
            sample, config.clusters, seed=config.seed, iterations=config.iterations, device=device()
        )
    finally:
        torch.set_num_threads(before)


def assign_fragment(fragment: Fragment, centroids: np.ndarray) -> pa.Table:
    """Nearest centroid of each eligible row by cosine: ``id``, ``cluster`` int32, ``similarity`` float32."""
    ids, clusters, similarities = [], [], []
    for batch_ids, vectors in fragment.vectors():
        index, similarity = nearest(vectors, centroids, device=device())
        ids.append(batch_ids)
        clusters.append(index)
        similarities.append(similarity)
    return pa.table(
        {
            "id": pa.chunked_array(ids, pa.string()),
            "cluster": np.concatenate(clusters) if clusters else pa.array([], pa.int32()),
            "similarity": np.concatenate(similarities) if similarities else pa.array([], pa.float32()),
        }
    )


def _sums(part: pa.Table, k: int) -> tuple[np.ndarray, np.ndarray]:
    clusters = part.column("cluster").to_numpy()
    distance = 1.0 - part.column("similarity").to_numpy().astype(np.float64)
    return np.bincount(clusters, minlength=k), np.bincount(clusters, weights=distance, minlength=k)
