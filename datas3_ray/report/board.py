"""The leaderboard as tables and plots: one table and one row of panels for each model.

Where the two scorings differ each deployment has a column of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa
from markupsafe import Markup

from datas3_ray.benchmark.leaderboard import Cell, Leaderboard, Row, leaderboard
from datas3_ray.benchmark.paper_rows import PaperCell, PaperRow
from datas3_ray.benchmark.tables import TITLES, Scoring, scorings, span
from datas3_ray.report import formats
from datas3_ray.report.scatter import MAX_LABELS, Point, scatter

DETAIL_COLUMNS = [
    "Method",
    "Deployment",
    "Selection",
    "Run",
    "Test",
    "Paper-style",
    "Validation",
    "Seeds",
    "Subset",
    "Pool",
    "Trained on",
    "Missing classes",
    "Hyper-parameters",
]


@dataclass(frozen=True)
class Figure:
    """One score, ready to print; ``value`` is what it is sorted by, None where there is none."""

    text: str
    value: float | None = None
    spread: str = ""
    interval: str = ""
    mark: str = ""
    css: str = ""
    title: str = ""


@dataclass(frozen=True)
class BoardCell:
    """One method in one deployment, ready to print: a figure for each scoring that is shown."""

    figures: list[Figure]
    size: str
    size_value: int | None
    size_title: str


@dataclass(frozen=True)
class BoardRow:
    """One method: a cell for each deployment, None where it was not scored; a mean for each scoring."""

    method: str
    reference: bool
    cells: list[BoardCell | None]
    means: list[Figure]
    paper: bool = False


@dataclass(frozen=True)
class Board:
    """The leaderboard of one model on one vector column."""

    title: str
    hints: list[str]
    headings: list[str]
    """Of the scores of each deployment: one for each scoring that is shown."""
    deployments: list[str]
    rows: list[BoardRow]
    detail_columns: list[str]
    details: list[list[str]]
    panels: list[tuple[str, Markup]]
    panel_hint: str


def boards(
    results: pa.Table, paper: Iterable[PaperCell] = (), scoring: Scoring | None = None, model: str | None = None
) -> list[Board]:
    """One board for each model and vector column in the results; none before the first sweep.

    ``paper`` are published rows to stand beside those of the results; ``scoring`` as in
    :meth:`datas3_ray.benchmark.Leaderboard.render`.
    """
    found = leaderboard(results, model=model, paper=paper)
    return [_board(part, scorings(found, scoring)) for part in by_model(found)]


def by_model(board: Leaderboard) -> list[Leaderboard]:
    """A leaderboard for each model and vector column, with the deployments that it was scored on."""
    parts = []
    for _, members in groupby(board.rows, key=lambda row: (row.model, row.vector)):
        rows = tuple(members)
        names = tuple(name for name in board.deployments if any(name in row.cells for row in rows))
        parts.append(replace(board, rows=rows, deployments=names))
    return parts


def figure(value: float | None, metric: str) -> str:
    """A score as it is printed: accuracies in per cent, other metrics as they are.

    >>> figure(0.8125, "accuracy"), figure(0.8125, "mse"), figure(None, "accuracy")
    ('81.2', '0.8125', '—')
    """
    if value is None or not math.isfinite(value):
        return formats.score(value)
    return f"{100 * value:.1f}" if "accuracy" in metric else formats.score(value)


def _board(board: Leaderboard, shown: tuple[str, ...]) -> Board:
    rows, deployments = list(board.rows), list(board.deployments)
    cells = [cell for row in rows for cell in row.cells.values()]
    metrics = sorted({cell.metric for cell in cells})
    metric = metrics[0].replace("_", " ") if len(metrics) == 1 else "score"
    published = [row for row in board.paper if set(row.cells) & set(deployments)]
    return Board(
        title=title_of(rows[0]),
        hints=_hints(board, cells, metrics, shown, bool(published)),
        headings=[TITLES[each] if len(shown) > 1 else metric for each in shown],
        deployments=deployments,
        rows=[
            *(_paper_row(row, board, shown) for row in published),
            *(_row(row, deployments, shown) for row in rows),
        ],
        detail_columns=DETAIL_COLUMNS,
        details=[
            _detail(row.method, name, row.cells[name]) for row in rows for name in deployments if name in row.cells
        ],
        panels=[(name, panel) for name in deployments if (panel := _panel(name, rows)) is not None],
        panel_hint=_panel_hint(rows, deployments),
    )


def reference_of(rows: Sequence[Row], name: str) -> Cell | None:
    """The cell of the whole pool in a deployment, where it was trained on and can be compared."""
    found = (row.cells[name] for row in rows if row.reference and name in row.cells)
    return next((cell for cell in found if not cell.outdated and math.isfinite(cell.score)), None)


def title_of(row: Row) -> str:
    """What a board is of: the model, and the vector column where it has one."""
    return f"{row.model} on {row.vector}" if row.vector else row.model


def _hints(
    board: Leaderboard, cells: list[Cell], metrics: list[str], shown: tuple[str, ...], published: bool
) -> list[str]:
    ways = {cell.higher_is_better for cell in cells}
    way = " (higher is better)" if ways == {True} else " (lower is better)" if ways == {False} else ""
    unit = ", in per cent" if any("accuracy" in metric for metric in metrics) else ""
    hints = [
        f"Test {' and '.join(metrics).replace('_', ' ')}{unit}{way} and the rows each selection kept. ★ marks the best "
        "of a deployment."
    ]
    if "honest" in shown:
        both = " Honest scores count test rows of classes that a subset lacks as errors." if len(shown) > 1 else ""
        hints.append(
            f"Hyper-parameters were chosen on {_chosen_on(cells)}; hover over a score for them, or open the details."
            + both
        )
    if "paper" in shown:
        hints.append(
            "Paper-style scores are those of the grid point that is best on the test table, over the test rows of "
            "classes that the subset has."
        )
    if "honest" in shown and any(cell.interval is not None for cell in cells):
        hints.append("The small figures hold 95% of the scores of resampled test tables.")
    if any(cell.chosen_on == "test" for cell in cells):
        hints.append("‡ was chosen by its score on the test table itself, and is too good.")
    if any(cell.std is not None for cell in cells):
        hints.append("± is the standard deviation over seeds.")
    if any(cell.outdated for cell in cells):
        hints.append("† was measured on another test table, or with another metric, than the newest scores.")
    if any(len(row.comparable) < len(board.deployments) for row in board.rows):
        hints.append("* is the mean of the deployments where the method has a score to compare.")
    if published:
        hints.append("Rows marked paper are published ones, and never the best; a score that is not known is a dash.")
    return hints


def _chosen_on(cells: list[Cell]) -> str:
    rows = {"validation": "validation rows", "query": "the query's rows", "test": "the test table"}
    return " or ".join(said for name, said in rows.items() if any(cell.chosen_on == name for cell in cells))


def _row(row: Row, deployments: list[str], shown: tuple[str, ...]) -> BoardRow:
    metric = next(iter(row.cells.values())).metric
    partial = "" if len(row.comparable) == len(deployments) else "*"
    means = [row.mean if each == "honest" else row.paper_style_mean for each in shown]
    return BoardRow(
        method=row.method,
        reference=row.reference,
        cells=[_cell(row.cells[name], shown) if name in row.cells else None for name in deployments],
        means=[Figure(figure(mean, metric) + (partial if mean is not None else ""), _sortable(mean)) for mean in means],
    )


def _paper_row(row: PaperRow, board: Leaderboard, shown: tuple[str, ...]) -> BoardRow:
    """The paper counts its own way, so that its scores stand in that column where there is one."""
    metric = next(iter(row.cells.values())).metric
    mean = row.mean(board.deployments)
    blank = [Figure("—")] * (len(shown) - 1)
    cells: list[BoardCell | None] = []
    for name in board.deployments:
        found = row.cells.get(name)
        if found is None:
            cells.append(None)
            continue
        ours = {each.cells[name].metric for each in board.rows if name in each.cells}
        other = "" if found.score is None or ours <= {found.metric} else found.metric.replace("_", " ")
        title = f"published {found.metric.replace('_', ' ')}; {found.note}".rstrip("; ")
        score = Figure(figure(found.score, found.metric), found.score, other, title=title)
        size = formats.count(found.subset_size)
        cells.append(BoardCell([*blank, score], size, found.subset_size, found.note))
    return BoardRow(row.method, True, cells, [*blank, Figure(figure(mean, metric), mean)], paper=True)


def _cell(cell: Cell, shown: tuple[str, ...]) -> BoardCell:
    return BoardCell(
        figures=[_honest(cell) if each == "honest" else _paper_style(cell) for each in shown],
        size=formats.count(cell.subset_size),
        size_value=cell.subset_size,
        size_title=f"{formats.share(cell.subset_size, cell.pool_size)} of {cell.pool_size:,} pool rows",
    )


def _honest(cell: Cell) -> Figure:
    title = [
        f"test {cell.metric.replace('_', ' ')} {formats.score(cell.score)}",
        _interval(cell),
        f"{'validation' if cell.chosen_on == 'validation' else cell.chosen_on} score that chose it "
        f"{formats.score(cell.validation)}",
        _settings(cell.hyperparameters),
        "" if cell.start == "scratch" else f"from {cell.start}",
        f"selection {cell.selection}",
        f"{cell.test_rows:,} test rows",
    ]
    if cell.missing_classes:
        title.append(f"{cell.missing_classes:,} test classes missing in the subset")
    spread = [f"± {figure(cell.std, cell.metric)}" if cell.std is not None else ""]
    spread.append("‡" if cell.chosen_on == "test" else "")
    low, high = cell.interval or (None, None)
    return Figure(
        text=figure(cell.score, cell.metric),
        value=_sortable(cell.score),
        spread=" ".join(part for part in spread if part),
        interval=span(figure(low, cell.metric), figure(high, cell.metric)) if cell.interval else "",
        mark="★" if cell.best else "†" if cell.outdated else "",
        css="best" if cell.best else "outdated" if cell.outdated else "",
        title="; ".join(part for part in title if part),
    )


def _paper_style(cell: Cell) -> Figure:
    style = cell.paper_style
    if style is None:
        return Figure("—", title="not known: the results were written by an earlier version, or no test row is left")
    dropped = "test rows left out are not counted" if style.dropped is None else f"{style.dropped:,} test rows left out"
    title = [f"{cell.metric.replace('_', ' ')} {formats.score(style.score)}", dropped, _settings(style.hyperparameters)]
    return Figure(
        text=figure(style.score, cell.metric),
        value=_sortable(style.score),
        spread=f"± {figure(style.std, cell.metric)}" if style.std is not None else "",
        mark="★" if style.best else "†" if cell.outdated else "",
        css="best" if style.best else "outdated" if cell.outdated else "",
        title="; ".join(part for part in title if part),
    )


def _sortable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _detail(method: str, deployment: str, cell: Cell) -> list[str]:
    return [
        method,
        deployment,
        cell.selection,
        cell.run,
        formats.score(cell.score),
        formats.score(cell.paper_style.score if cell.paper_style is not None else None),
        formats.score(cell.validation),
        formats.count(cell.seeds),
        formats.count(cell.subset_size),
        formats.count(cell.pool_size),
        formats.count(cell.train_rows),
        formats.count(cell.missing_classes),
        _settings(cell.hyperparameters),
    ]


def _interval(cell: Cell) -> str:
    if cell.interval is None:
        return ""
    low, high = cell.interval
    return f"95% of resampled test tables {formats.score(low)} to {formats.score(high)}"


def _settings(hyperparameters: dict[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {formats.plain(value)}" for key, value in hyperparameters.items())


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
