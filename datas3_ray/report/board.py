"""The leaderboard as tables and plots: one table and one row of panels for each model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
from markupsafe import Markup

from datas3_ray.benchmark.leaderboard import Cell, Row, leaderboard
from datas3_ray.report import formats
from datas3_ray.report.scatter import MAX_LABELS, Point, scatter

DETAIL_COLUMNS = [
    "Method",
    "Deployment",
    "Selection",
    "Run",
    "Test",
    "Validation",
    "Seeds",
    "Subset",
    "Pool",
    "Trained on",
    "Missing classes",
    "Hyper-parameters",
]


@dataclass(frozen=True)
class BoardCell:
    """One method in one deployment, ready to print."""

    score: str
    spread: str
    mark: str
    css: str
    title: str
    size: str
    size_title: str


@dataclass(frozen=True)
class BoardRow:
    """One method: a cell for each deployment, None where it was not scored."""

    method: str
    reference: bool
    cells: list[BoardCell | None]
    mean: str


@dataclass(frozen=True)
class Board:
    """The leaderboard of one model on one vector column."""

    title: str
    hints: list[str]
    metric: str
    deployments: list[str]
    rows: list[BoardRow]
    detail_columns: list[str]
    details: list[list[str]]
    panels: list[tuple[str, Markup]]
    panel_hint: str


def boards(results: pa.Table) -> list[Board]:
    """One board for each model and vector column in the results; none before the first sweep."""
    found = leaderboard(results)
    return [
        _board(model, vector, [name for name in found.deployments if any(name in row.cells for row in rows)], rows)
        for (model, vector), members in groupby(found.rows, key=lambda row: (row.model, row.vector))
        if (rows := list(members))
    ]


def figure(value: float | None, metric: str) -> str:
    """A score as it is printed: accuracies in per cent, other metrics as they are.

    >>> figure(0.8125, "accuracy"), figure(0.8125, "mse"), figure(None, "accuracy")
    ('81.2', '0.8125', '—')
    """
    if value is None or not math.isfinite(value):
        return formats.score(value)
    return f"{100 * value:.1f}" if "accuracy" in metric else formats.score(value)


def _board(model: str, vector: str, deployments: list[str], rows: list[Row]) -> Board:
    cells = [cell for row in rows for cell in row.cells.values()]
    metrics = sorted({cell.metric for cell in cells})
    metric = metrics[0] if len(metrics) == 1 else "score"
    return Board(
        title=f"{model} on {vector}" if vector else model,
        hints=_hints(rows, cells, deployments, metrics),
        metric=metric.replace("_", " "),
        deployments=deployments,
        rows=[_row(row, deployments) for row in rows],
        detail_columns=DETAIL_COLUMNS,
        details=[
            _detail(row.method, name, row.cells[name]) for row in rows for name in deployments if name in row.cells
        ],
        panels=[(name, panel) for name in deployments if (panel := _panel(name, rows)) is not None],
        panel_hint=_panel_hint(rows, deployments),
    )


def _hints(rows: list[Row], cells: list[Cell], deployments: list[str], metrics: list[str]) -> list[str]:
    ways = {cell.higher_is_better for cell in cells}
    way = " (higher is better)" if ways == {True} else " (lower is better)" if ways == {False} else ""
    unit = ", in per cent" if any("accuracy" in metric for metric in metrics) else ""
    hints = [
        f"Test {' and '.join(metrics).replace('_', ' ')}{unit}{way} and the rows each selection kept. ★ marks the best "
        f"of a deployment. Hyper-parameters were chosen on {_chosen_on(cells)}; hover over a score for them, or open "
        "the details."
    ]
    if any(cell.chosen_on == "test" for cell in cells):
        hints.append("‡ was chosen by its score on the test table itself, and is too good.")
    if any(cell.std is not None for cell in cells):
        hints.append("± is the standard deviation over seeds.")
    if any(cell.outdated for cell in cells):
        hints.append("† was measured on another test table, or with another metric, than the newest scores.")
    if any(len(row.cells) < len(deployments) for row in rows):
        hints.append("* is the mean of the deployments that the method was scored on.")
    return hints


def _chosen_on(cells: list[Cell]) -> str:
    rows = {"validation": "validation rows", "query": "the query's rows", "test": "the test table"}
    return " or ".join(said for name, said in rows.items() if any(cell.chosen_on == name for cell in cells))


def _row(row: Row, deployments: list[str]) -> BoardRow:
    metric = next(iter(row.cells.values())).metric
    partial = "" if len(row.cells) == len(deployments) or row.mean is None else "*"
    return BoardRow(
        method=row.method,
        reference=row.reference,
        cells=[_cell(row.cells[name]) if name in row.cells else None for name in deployments],
        mean=figure(row.mean, metric) + partial,
    )


def _cell(cell: Cell) -> BoardCell:
    title = [
        f"test {cell.metric.replace('_', ' ')} {formats.score(cell.score)}",
        _interval(cell),
        f"{'validation' if cell.chosen_on == 'validation' else cell.chosen_on} score that chose it "
        f"{formats.score(cell.validation)}",
        _settings(cell),
        "" if cell.start == "scratch" else f"from {cell.start}",
        f"selection {cell.selection}",
        f"{cell.test_rows:,} test rows",
    ]
    if cell.missing_classes:
        title.append(f"{cell.missing_classes:,} test classes missing in the subset")
    return BoardCell(
        score=figure(cell.score, cell.metric),
        spread=" ".join(
            part
            for part in (
                f"± {figure(cell.std, cell.metric)}" if cell.std is not None else "",
                "‡" if cell.chosen_on == "test" else "",
            )
            if part
        ),
        mark="★" if cell.best else "†" if cell.outdated else "",
        css="best" if cell.best else "outdated" if cell.outdated else "",
        title="; ".join(part for part in title if part),
        size=formats.count(cell.subset_size),
        size_title=f"{formats.share(cell.subset_size, cell.pool_size)} of {cell.pool_size:,} pool rows",
    )


def _detail(method: str, deployment: str, cell: Cell) -> list[str]:
    return [
        method,
        deployment,
        cell.selection,
        cell.run,
        formats.score(cell.score),
        formats.score(cell.validation),
        formats.count(cell.seeds),
        formats.count(cell.subset_size),
        formats.count(cell.pool_size),
        formats.count(cell.train_rows),
        formats.count(cell.missing_classes),
        _settings(cell),
    ]


def _interval(cell: Cell) -> str:
    if cell.interval is None:
        return ""
    low, high = cell.interval
    return f"95% of resampled test tables {formats.score(low)} to {formats.score(high)}"


def _settings(cell: Cell) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {formats.plain(value)}" for key, value in cell.hyperparameters.items())


def _panel(deployment: str, rows: list[Row]) -> Markup | None:
    """Score against subset size of one deployment; None where no score can be drawn. Outdated scores are left out."""
    shown = [
        (row, cell)
        for row in rows
        if (cell := row.cells.get(deployment)) is not None and not cell.outdated and math.isfinite(cell.score)
    ]
    if not shown:
        return None
    percent = all("accuracy" in cell.metric for _, cell in shown)
    points = [
        Point(row.method, cell.subset_size, cell.score * (100 if percent else 1), cell.best) for row, cell in shown
    ]
    reference = next((point for point, (row, _) in zip(points, shown, strict=True) if row.reference), None)
    metric = shown[0][1].metric.replace("_", " ") + (" (%)" if percent else "")
    return scatter(points, reference=reference, metric=metric, deployment=deployment)


def _panel_hint(rows: list[Row], deployments: list[str]) -> str:
    text = "Score against the rows kept; a diamond marks the best. "
    if any(row.reference for row in rows):
        ways = {cell.higher_is_better for row in rows for cell in row.cells.values()}
        side = "above it" if ways == {True} else "below it" if ways == {False} else "on its better side"
        text += f"The dashed line is the whole pool: a method {side} did more with fewer rows. "
    if any(sum(name in row.cells for row in rows) > MAX_LABELS for name in deployments):
        text += f"The {MAX_LABELS} best methods are named; the others show their name when pointed at. "
    return text
