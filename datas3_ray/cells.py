"""Nested spherical k-means: each cluster of a clustering divided into cells, for methods that count rows in cells.

Like a clustering itself the result is two tables of the lake, made once for all queries: ``CLUSTERING.cellsM`` (one row
a cell) and the same name with ``.rows`` (one row an eligible row). Cells depend on the pool alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datas3_ray import __version__
from datas3_ray.clustering import Clustering, KMeansConfig, cluster, is_aligned
from datas3_ray.kernels.kmeans import spherical_kmeans
from datas3_ray.kernels.similarity import nearest, normalize
from datas3_ray.lake.aligned import aligned_refs, write_aligned
from datas3_ray.lake.schemas import fingerprint, matrix, vector_field
from datas3_ray.lake.view import Counts, Fragment, Mapped, View
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.sampling import sample_ref

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

FEWEST_ROWS = 8
"""A cell stands for at least so many rows of the sample; with fewer its counts would be noise."""
_CLUSTERS_A_TASK = 32
_BATCH_ROWS = 65_536  # many rows of a cluster at a time, so that few small products are taken


@dataclass(frozen=True)
class Cells:
    """Centroids of the clusters and of the cells of each.

    Attributes
    ----------
    first : ndarray (k, d), float32
        Unit centroids of the clusters.
    second : ndarray (c, d), float32
        Unit centroids of the cells, one cluster's after another's.
    parent : ndarray (c,), int64
        Cluster of each cell, ascending.
    """

    first: np.ndarray
    second: np.ndarray
    parent: np.ndarray

    def locate(self, unit: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """The nearest cell of each row's cluster, int32 (n,).

        >>> cells = Cells(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.array([0, 0]))
        >>> cells.locate(np.array([[0.6, 0.8], [1.0, 0.0]], np.float32), np.array([0, 0]))
        array([1, 0], dtype=int32)
        """
        order = np.argsort(cluster, kind="stable")
        ends = np.searchsorted(cluster[order], np.arange(len(self.first)), side="right")
        spans = np.searchsorted(self.parent, np.arange(len(self.first) + 1))
        found = np.empty(len(unit), np.int32)
        start = 0
        for end, low, high in zip(ends, spans[:-1], spans[1:], strict=True):
            rows = order[start:end]
            start = end
            if len(rows):
                found[rows] = low + nearest(unit[rows], self.second[low:high], device=device())[0]
        return found

    def locate_anywhere(self, unit: np.ndarray) -> np.ndarray:
        """The same for rows whose cluster is not known: first the nearest cluster, then its nearest cell."""
        return self.locate(unit, nearest(unit, self.first, device=device())[0])


@dataclass(frozen=True)
class Nested:
    """A clustering's cells and where a view's rows are.

    Attributes
    ----------
    cells : Cells
    sizes : ndarray (c,), int64
        Rows in each cell.
    mapped : Mapped
        One part a fragment: ``id``, ``cluster`` (int32) and ``cell`` (int32) of each eligible row.
    name : str
        Name of the cells' table.
    """

    cells: Cells
    sizes: np.ndarray
    mapped: Mapped
    name: str


def nested_cells(lake: Lake, view: View, source: str, config: KMeansConfig, children: int) -> Nested:
    """Divide each cluster into up to ``children`` cells, or read back what was made before.

    Parameters
    ----------
    source : str
        Fingerprint of the view's eligible rows.
    config : KMeansConfig
        Of the clustering; its seed, iterations and sample are those of the cells too.

    Raises
    ------
    UsageError
        When there is no eligible row.
    """
    clustering = cluster(lake, view, source, config)
    name = f"{clustering.name}.cells{children}"
    mark = fingerprint({"clustering": lake.table(clustering.name).lineage()["fingerprint"], "children": children})
    # The cells are written last, so their presence means that both tables are whole.
    there = lake.exists(name) and lake.table(name).lineage().get("fingerprint") == mark
    if not there or not is_aligned(lake, f"{name}.rows", view):
        _make(lake, view, clustering, config, children, name, mark)
    return _read(lake, name)


def _make(
    lake: Lake, view: View, clustering: Clustering, config: KMeansConfig, children: int, name: str, mark: str
) -> None:
    import ray

    started = time.perf_counter()
    cells = _trained(view, clustering.centroids, config, children)
    located = view.zip(_locate, clustering.mapped.parts, ray.put(cells), resources=matrix_task())
    count = remote(_count)
    sizes = np.sum(gather(count.remote(part, len(cells.parent)) for part in located.parts), axis=0)
    lineage: dict[str, Any] = {
        "method": "nested_kmeans",
        "table": view.table.name,
        "column": view.column,
        "parameters": {**config.model_dump(), "children": children},
        "fingerprint": mark,
        "inputs": {view.table.name: view.table.version},
        "counts": vars(located.counts()),
        "code_version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_aligned(
        lake,
        f"{name}.rows",
        located.parts,
        kind="assignments",
        fragment_ids=view.fragment_ids,
        lineage=lambda tallies: lineage,
    )
    table = pa.table(
        {
            "id": pa.array([str(j) for j in range(len(cells.parent))]),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(cells.second.reshape(-1)), type=vector_field("vector", cells.second.shape[1]).type
            ),
            "cluster": pa.array(cells.parent, pa.int32()),
            "size": sizes,
        }
    )
    lineage["seconds"] = round(time.perf_counter() - started, 3)
    lineage["clusters"] = clustering.name
    lake.write(name, table, kind="centroids", lineage=lineage)


def _read(lake: Lake, name: str) -> Nested:
    import ray

    table, assignments = lake.table(name), lake.table(f"{name}.rows")
    rows = table.to_arrow()
    first = matrix(lake.table(str(table.lineage()["clusters"])).to_arrow(["vector"]).column("vector")).copy()
    cells = Cells(first, matrix(rows.column("vector")).copy(), rows.column("cluster").to_numpy().astype(np.int64))
    _, parts = aligned_refs(assignments)
    counts = Counts(**assignments.lineage()["counts"])
    return Nested(cells, rows.column("size").to_numpy(), Mapped(parts, [ray.put(counts)]), name)


def _trained(view: View, first: np.ndarray, config: KMeansConfig, children: int) -> Cells:
    """Cells from the clustering's own sample, some clusters a task."""
    import ray

    sample = sample_ref(view, config.sample_rows, config.seed)
    centroids = ray.put(first)
    cluster = remote(_nearest).options(**matrix_task()).remote(sample, centroids)
    train = remote(_train).options(**matrix_task())
    starts = range(0, len(first), _CLUSTERS_A_TASK)
    spans = [(start, min(start + _CLUSTERS_A_TASK, len(first))) for start in starts]
    groups = gather(train.remote(sample, centroids, cluster, span, children, config) for span in spans)
    found = [centroids for group in groups for centroids in group]
    parent = np.repeat(np.arange(len(first)), [len(centroids) for centroids in found])
    return Cells(first, np.concatenate(found), parent)


def _nearest(sample: np.ndarray, first: np.ndarray) -> np.ndarray:
    return nearest(sample, first, device=device())[0]


def _train(
    sample: np.ndarray,
    first: np.ndarray,
    cluster: np.ndarray,
    span: tuple[int, int],
    children: int,
    config: KMeansConfig,
) -> list[np.ndarray]:
    """Centroids of the cells of each cluster of a span."""
    found = []
    for each in range(*span):
        rows = np.flatnonzero(cluster == each)
        cells = max(1, min(children, len(rows) // FEWEST_ROWS))
        if cells == 1:
            found.append(first[each : each + 1])
            continue
        trained = spherical_kmeans(sample[rows], cells, seed=config.seed, iterations=config.iterations, device=device())
        found.append(trained.centroids)
    return found


def _locate(fragment: Fragment, part: pa.Table, cells: Cells) -> pa.Table:
    cluster = part.column("cluster").to_numpy()
    found, at = [np.empty(0, np.int32)], 0
    for ids, vectors in fragment.vectors(_BATCH_ROWS):
        found.append(cells.locate(normalize(vectors)[0], cluster[at : at + len(ids)]))
        at += len(ids)
    return pa.table({"id": part.column("id"), "cluster": part.column("cluster"), "cell": np.concatenate(found)})


def _count(part: pa.Table, cells: int) -> np.ndarray:
    return np.bincount(part.column("cell").to_numpy(), minlength=cells)
