"""The overlap between selections as heat-map cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datas3_ray.lake import Selection
from datas3_ray.report import formats
from datas3_ray.report.figures import heat_class
from datas3_ray.report.overlap import Overlap, overlap


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, how it is coloured, and the counts behind it."""

    text: str
    css: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """The selections of one table against each other."""

    table: str
    names: list[str]
    views: list[tuple[str, list[list[Cell]]]]


def matrices(selections: list[Selection]) -> list[Matrix]:
    """One matrix for each table with two or more selections, in the order given."""
    groups: dict[str, list[Selection]] = {}
    for selection in selections:
        groups.setdefault(str(selection.lineage().get("table")), []).append(selection)
    return [_matrix(overlap(table, members)) for table, members in groups.items() if len(members) > 1]


def _matrix(found: Overlap) -> Matrix:
    places = range(len(found.names))
    jaccard = [[_cell(found, i, j, found.jaccard(i, j), "of either") for j in places] for i in places]
    inside = [[_cell(found, i, j, found.containment(i, j), f"of {found.names[i]}") for j in places] for i in places]
    return Matrix(found.table, found.names, [("Jaccard", jaccard), ("Containment", inside)])


def _cell(found: Overlap, i: int, j: int, value: float, of: str) -> Cell:
    both = int(found.both[i, j])
    if i == j:
        return Cell(formats.compact(both), "self", f"{found.names[i]}: {both:,} rows kept")
    if math.isnan(value):
        return Cell("—", "self", f"{found.names[i]} keeps no rows")
    # Two digits must not claim that nearly all is all, or that little is nothing.
    text = f"{min(value, 0.99) if value < 1 else 1:.2f}" if value >= 0.005 or both == 0 else "<.01"
    title = f"{found.names[i]} and {found.names[j]}: {both:,} rows in both, {100 * value:.2f}% {of}"
    return Cell(text, heat_class(value), title)
