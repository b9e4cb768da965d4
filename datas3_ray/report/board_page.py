"""The leaderboard as one HTML page that needs nothing else: tables that sort, and score against subset size."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
from markupsafe import Markup

from datas3_ray import __version__
from datas3_ray.benchmark.leaderboard import Cell, Leaderboard, leaderboard
from datas3_ray.benchmark.paper_rows import PaperCell
from datas3_ray.benchmark.tables import Scoring, scorings
from datas3_ray.errors import require_file_name
from datas3_ray.report.board import Board, boards, by_model, reference_of
from datas3_ray.report.page import TEMPLATES, environment, write_page
from datas3_ray.report.versus import Key, Mark, legend, versus


@dataclass(frozen=True)
class Plots:
    """The panels of one board and their legend."""

    panels: list[tuple[str, Markup]]
    legend: list[Key]


@dataclass(frozen=True)
class BoardPage:
    """What the template prints."""

    title: str
    created: str
    code_version: str
    style: Markup
    style_hash: str
    script: Markup
    script_hash: str
    boards: list[tuple[Board, Plots]]


def write_leaderboard(
    results: pa.Table,
    path: str | Path,
    *,
    model: str | None = None,
    paper: Iterable[PaperCell] = (),
    scoring: Scoring = "both",
    title: str = "Leaderboard",
    now: datetime | None = None,
) -> Path:
    """Write the leaderboard of a results table as one self-contained page: nothing is asked of the network.

    Headings sort their table when clicked. Each deployment has a panel of the metric against subset size.

    Parameters
    ----------
    results : pyarrow.Table
        As ``Lake.results()`` gives them.
    path : str or Path
        Where to write; missing folders are made and an earlier page is replaced in one step.
    model : str, optional
        Only this model.
    paper : iterable of PaperCell
        Published rows (:func:`datas3_ray.benchmark.read_paper`); those of the lake's deployments are shown.
    scoring : {"both", "honest", "paper"}
    title : str
    now : datetime, optional
        The time to print; the present by default.

    Raises
    ------
    UsageError
        When ``model`` has no results, ``scoring`` is another word, or ``path`` is a folder.

    Examples
    --------
    >>> import tempfile
    >>> from datas3_ray.lake.schemas import RESULTS
    >>> page = write_leaderboard(RESULTS.empty_table(), Path(tempfile.mkdtemp()) / "board.html")
    >>> "no results yet" in page.read_text()
    True
    """
    require_file_name(Path(path))
    paper = list(paper)
    whole = leaderboard(results, model=model, paper=paper)
    shown = scorings(whole, scoring)
    tables = boards(results, paper=paper, scoring=scoring, model=model)
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "leaderboard.css"))
    script = (TEMPLATES / "leaderboard.js").read_text(encoding="utf-8")
    page = BoardPage(
        title=title,
        created=(now or datetime.now(timezone.utc)).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        code_version=__version__,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        boards=[(table, _plots(part, shown)) for table, part in zip(tables, by_model(whole), strict=True)],
    )
    return write_page(environment().get_template("leaderboard.html.j2").render(page=page), Path(path))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plots(board: Leaderboard, shown: tuple[str, ...]) -> Plots:
    names = list(dict.fromkeys(row.method for row in board.rows))
    panels, bars, lines, published = [], set(), False, False
    for deployment in board.deployments:
        cells = {row.method: row.cells[deployment] for row in board.rows if deployment in row.cells}
        cells = {name: cell for name, cell in cells.items() if not cell.outdated and math.isfinite(cell.score)}
        if not cells:
            continue
        metric = next(iter(cells.values())).metric
        unit = 100.0 if all("accuracy" in cell.metric for cell in cells.values()) else 1.0
        marks = [_mark(name, names.index(name), cell, unit, shown) for name, cell in cells.items()]
        bars |= {
            "± deviation over seeds" if cell.std is not None else "95% interval"
            for cell in cells.values()
            if _ends(cell)
        }
        for row in board.paper:
            found = row.cells.get(deployment)
            if found is not None and found.score is not None and found.subset_size and found.metric == metric:
                marks.append(Mark(row.method, None, found.subset_size, found.score * unit))
                published = True
        marks = [mark for mark in marks if mark.score is not None or mark.paper_style is not None]
        if not marks:
            continue
        whole = reference_of(board.rows, deployment) if "honest" in shown else None
        lines = lines or whole is not None
        label = metric.replace("_", " ") + (" (%)" if unit > 1 else "")
        line = whole.score * unit if whole is not None else None
        panels.append((deployment, versus(marks, reference=line, metric=label, deployment=deployment)))
    keys = legend(
        names,
        both=len(shown) > 1,
        published=published,
        bars=f"bar: {' or '.join(sorted(bars))}" if bars and "honest" in shown else "",
        reference=lines,
    )
    return Plots(panels, keys if panels else [])


def _mark(name: str, look: int, cell: Cell, unit: float, shown: tuple[str, ...]) -> Mark:
    style = cell.paper_style
    other = style.score * unit if style is not None and math.isfinite(style.score) and "paper" in shown else None
    if "honest" not in shown:
        return Mark(name, look, cell.subset_size, None, other, best=style is not None and style.best)
    low, high = _ends(cell) or (None, None)
    return Mark(
        name,
        look,
        cell.subset_size,
        cell.score * unit,
        other,
        low * unit if low is not None else None,
        high * unit if high is not None else None,
        cell.best,
    )


def _ends(cell: Cell) -> tuple[float, float] | None:
    """Of the bar through a score: one deviation over seeds each way, or the interval of a single seed."""
    if cell.std is not None:
        return cell.score - cell.std, cell.score + cell.std
    return cell.interval
