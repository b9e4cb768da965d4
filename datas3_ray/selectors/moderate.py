"""Moderate: rows at a middling distance from their class (Xia et al., "Moderate Coreset", ICLR 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.errors import UsageError
from datas3_ray.kernels.group_median import (
    MedianSearch,
    finish_medians,
    median_histogram,
    median_neighbours,
    next_medians,
    start_medians,
)
from datas3_ray.kernels.paired import distance_to
from datas3_ray.kernels.ranking import Cut, rank_words, resolve_size
from datas3_ray.lake.cut import find_cut
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment, Mapped
from datas3_ray.runtime import cluster_cpus, gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.group_cut import group_sizes
from datas3_ray.selectors.labels import class_numbers, labelled, require_labels

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class Moderate(Selector):
    """Keep ``size`` rows whose distance to their class is nearest to the median distance.

    The prototype of a class is the median of its rows in every dimension, and a row's distance is the Euclidean one to
    the prototype of its own class; rows that are nearly the prototype are redundant, and those far away are noise.

    Parameters
    ----------
    column : str
        Vector column; its vectors are taken as they are.
    size : int or float
        Rows to keep: a count, or a share of the eligible rows.
    label : str, optional
        Column of the classes: texts or whole numbers.
    clusters : int, optional
        In its place, clusters of a spherical k-means. One of ``label`` and ``clusters`` is needed.
    around : {"distance", "rank"}
        ``distance``: the rows whose distance differs least from the median of all distances (the paper's text).
        ``rank``: the middle of the rows sorted by distance, as many left out below as above, or one less below (the
        released code).
    seed, iterations : int
        Of the k-means.

    Notes
    -----
    The score is -|distance - median|, in float32; a size cuts it (``distance`` is resizable, ``rank`` is not). Columns:
    ``distance``, and ``cluster`` where rows were clustered. A row without a label is invalid. Medians are exact and
    found by counting, in passes over the vectors: about 32 / log2(4 million / (classes x dimensions)) of them.

    >>> Moderate(column="clip", label="label", size=0.3).around
    'distance'
    """

    method: ClassVar[str] = "moderate"

    column: str
    size: Size
    label: str | None = None
    clusters: int | None = Field(default=None, ge=1)
    around: Literal["distance", "rank"] = "distance"
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _one_grouping(self) -> Moderate:
        if (self.label is None) == (self.clusters is None):
            raise ValueError("give either label or clusters")
        return self

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The vectors must be there, and the labels where they are asked for."""
        super().check(lake, table, query)
        if self.label is not None:
            require_labels(table, self.label)

    def choose(self, inputs: Inputs) -> Outcome:
        """Prototypes by passes over the vectors, distances, and what is in the middle."""
        import ray

        grouped, groups, report = self._grouped(inputs)
        counts = grouped.counts()
        if counts.eligible == 0:
            raise UsageError(f"moderate: table '{inputs.table.name}' has no eligible row with a vector and a label.")
        grouped = Mapped(grouped.parts, [ray.put(counts)])
        prototypes = ray.put(_medians(inputs, grouped.parts, groups, self.label))
        measured = inputs.view.zip(_measured, grouped.parts, prototypes, self.label).parts
        # One number a row on the driver; a distance is a float32.
        distances = gather(remote(_distances).remote(part) for part in measured)
        median = float(np.median(np.concatenate(distances).astype(np.float64)))
        asked = resolve_size(self.size, counts.eligible)
        finish = remote(_finish)
        report |= {"groups": groups, "median_distance": median}
        if self.around == "distance":
            grouped.parts = [finish.remote(part, median, self.clusters is not None) for part in measured]
            return Outcome(grouped, size=self.size, resizable=True, report=report)
        middle = _middle(measured, counts.eligible, min(asked, counts.eligible))
        grouped.parts = [finish.remote(part, median, self.clusters is not None, middle) for part in measured]
        return Outcome(grouped, asked=asked, report=report)

    def _grouped(self, inputs: Inputs) -> tuple[Mapped, int, dict[str, Any]]:
        """Aligned parts with ``id`` and ``group`` of the rows that have one, and how many groups there are."""
        import ray

        if self.clusters is not None:
            config = KMeansConfig(clusters=self.clusters, seed=self.seed, iterations=self.iterations)
            clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config)
            clustering.mapped.parts = [remote(_as_group).remote(part) for part in clustering.mapped.parts]
            return clustering.mapped, len(clustering.sizes), {"clusters": clustering.name}
        found = inputs.view.map(_labels, self.label)
        seen = gather(remote(_names).remote(part) for part in found.parts)
        names = sorted(set().union(*seen))
        classes = ray.put(pa.array(names, pa.string()))
        found.parts = [remote(_numbered).remote(part, classes) for part in found.parts]
        return found, len(names), {}


def _as_group(part: pa.Table) -> pa.Table:
    return pa.table({"id": part.column("id"), "group": part.column("cluster")})


def _labels(fragment: Fragment, label: str) -> pa.Table:
    pieces = [pa.table({"id": rows.column("id"), "label": labels}) for rows, labels in labelled(fragment, label)]
    return pa.concat_tables([pa.schema([("id", pa.string()), ("label", pa.string())]).empty_table(), *pieces])


def _names(part: pa.Table) -> list[str]:
    return part.column("label").unique().to_pylist()


def _numbered(part: pa.Table, classes: pa.Array) -> pa.Table:
    return pa.table({"id": part.column("id"), "group": class_numbers(part.column("label").combine_chunks(), classes)})


def _vectors(fragment: Fragment, part: pa.Table, label: str | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of the rows in a part: their groups, and their vectors."""
    group, at = part.column("group").to_numpy(), 0
    for rows in (rows for rows, _ in labelled(fragment, label)) if label is not None else fragment.batches():
        if rows.num_rows:
            yield group[at : at + rows.num_rows], matrix(rows.column(str(fragment.column)))
        at += rows.num_rows


def _medians(inputs: Inputs, parts: list[Any], groups: int, label: str | None) -> np.ndarray:
    """The prototypes, float32 (groups, d): each round is one pass over the vectors."""
    import ray

    column = str(inputs.view.column)
    search = start_medians(group_sizes(parts, groups), inputs.table.require_vector(column))
    while not search.found:
        counts = np.zeros((*search.prefix.shape, 1 << search.digit), np.int64)
        for part in _pass(inputs, parts, label, _histogram, ray.put(search)):
            counts += part
        search = next_medians(search, counts)
    at_most, above = np.zeros(search.prefix.shape, np.int64), np.full(search.prefix.shape, 2**32 - 1, np.uint32)
    for few, next_key in _pass(inputs, parts, label, _neighbours, ray.put(search)):
        at_most, above = at_most + few, np.minimum(above, next_key)
    return finish_medians(search, at_most, above)


def _pass(inputs: Inputs, parts: list[Any], label: str | None, work: Any, search: Any) -> Iterator[Any]:
    """Every fragment's answer, a few fragments at a time: the answers are large, and are added up as they come."""
    task = remote(work).options(num_cpus=1)
    pairs = list(zip(inputs.view.fragments(), parts, strict=True))
    wave = 2 * cluster_cpus()
    for start in range(0, len(pairs), wave):
        running = [task.remote(fragment, part, label, search) for fragment, part in pairs[start : start + wave]]
        while running:
            yield gather([running.pop(0)])[0]


def _histogram(fragment: Fragment, part: pa.Table, label: str | None, search: MedianSearch) -> np.ndarray:
    counts = np.zeros((*search.prefix.shape, 1 << search.digit), np.int64)
    for group, vectors in _vectors(fragment, part, label):
        counts += median_histogram(vectors, group, search)
    return counts


def _neighbours(
    fragment: Fragment, part: pa.Table, label: str | None, search: MedianSearch
) -> tuple[np.ndarray, np.ndarray]:
    at_most, above = np.zeros(search.prefix.shape, np.int64), np.full(search.prefix.shape, 2**32 - 1, np.uint32)
    for group, vectors in _vectors(fragment, part, label):
        few, next_key = median_neighbours(vectors, group, search)
        at_most, above = at_most + few, np.minimum(above, next_key)
    return at_most, above


def _measured(fragment: Fragment, part: pa.Table, prototypes: np.ndarray, label: str | None) -> pa.Table:
    distance = [distance_to(vectors, prototypes, group) for group, vectors in _vectors(fragment, part, label)]
    found = np.concatenate(distance) if distance else np.empty(0, np.float32)
    return part.append_column("distance", pa.array(found, pa.float32()))


def _distances(part: pa.Table) -> np.ndarray:
    return part.column("distance").to_numpy()


def _middle(parts: list[Any], rows: int, total: int) -> tuple[Cut, Cut]:
    """The cuts before and after the middle ``total`` of the rows, nearest first."""
    ranked = [remote(_nearest_first).remote(part) for part in parts]
    below = (rows - total) // 2
    return find_cut(ranked, below), find_cut(ranked, below + total)


def _nearest_first(part: pa.Table) -> pa.Table:
    return pa.table({"id": part.column("id"), "score": -part.column("distance").to_numpy().astype(np.float64)})


def _finish(part: pa.Table, median: float, clustered: bool, middle: tuple[Cut, Cut] | None = None) -> pa.Table:
    columns: dict[str, Any] = {"id": part.column("id")}
    if middle is not None:
        ranked = _nearest_first(part)
        words = rank_words(ranked.column("score").to_numpy(), ranked.column("id"))
        columns["keep"] = pa.array(middle[1].keep(words) & ~middle[0].keep(words))
    columns["score"] = -np.abs(part.column("distance").to_numpy().astype(np.float64) - median)
    columns["distance"] = part.column("distance")
    return pa.table(columns | ({"cluster": part.column("group")} if clustered else {}))
