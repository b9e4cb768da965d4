"""The leaderboard as a table on a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from datas3_ray.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

    from datas3_ray.benchmark.leaderboard import Cell, Leaderboard, Row
    from datas3_ray.benchmark.paper_rows import PaperCell

MISSING, BEST, OUTDATED, PARTIAL, ON_TEST = "-", "★", "†", "*", "‡"

Scoring = Literal["honest", "paper", "both"]
SCORINGS = ("honest", "paper", "both")
TITLES = {"honest": "honest", "paper": "paper-style"}

CSV_COLUMNS = (
    "source",
    "model",
    "vector",
    "method",
    "reference",
    "deployment",
    "metric",
    "higher_is_better",
    "honest",
    "honest_std",
    "honest_low",
    "honest_high",
    "honest_best",
    "seeds",
    "validation",
    "chosen_on",
    "hyperparameters",
    "paper_style",
    "paper_style_std",
    "paper_style_best",
    "paper_style_hyperparameters",
    "subset_size",
    "pool_size",
    "train_rows",
    "test_rows",
    "dropped_test_rows",
    "missing_classes",
    "outdated",
    "start",
    "selection",
    "run",
    "created",
    "note",
)

_AS_THEY_ARE = (
    "metric",
    "higher_is_better",
    "seeds",
    "validation",
    "chosen_on",
    "subset_size",
    "pool_size",
    "train_rows",
    "test_rows",
    "missing_classes",
    "outdated",
    "start",
    "selection",
    "run",
    "created",
)


@dataclass(frozen=True)
class _Score:
    """One figure as every form prints it; ``interval`` is empty where there is none.

    The text of a score ends in its mark, or in a space instead, so that figures stand below each other.
    """

    text: str
    interval: str = ""
    style: str = ""


def scorings(board: Leaderboard, scoring: Scoring | None = None) -> tuple[str, ...]:
    """Which scores to show: those asked for, by default both where they differ and else the honest ones.

    Raises
    ------
    UsageError
        For another word.
    """
    if scoring_of(scoring) is None:
        scoring = "both" if board.scorings_differ else "honest"
    return ("honest", "paper") if scoring == "both" else (str(scoring),)


def scoring_of(word: str | None) -> Scoring | None:
    """The scoring that a user's word names; None stays None. A UsageError says which there are."""
    if word is not None and word not in SCORINGS:
        raise UsageError(f"no scoring '{word}'; there are: {', '.join(SCORINGS)}.{did_you_mean(word, SCORINGS)}")
    return cast("Scoring | None", word)


def figure(value: float | None, metric: str) -> str:
    """Accuracies in per cent, as the paper prints them; other metrics as they are.

    >>> figure(0.8125, "accuracy"), figure(0.8125, "mse"), figure(None, "mse")
    ('81.2', '0.8125', '-')
    """
    if value is None:
        return MISSING
    return f"{100 * value:.1f}" if "accuracy" in metric else f"{value:.4g}"


def span(low: str, high: str) -> str:
    """An interval's ends as one word; with a word between where a sign could be taken for the dash.

    >>> span("55.0", "65.0"), span("-0.1", "0.2")
    ('55.0–65.0', '-0.1 to 0.2')
    """
    return f"{low} to {high}" if low.startswith("-") else f"{low}–{high}"


def rich_table(board: Leaderboard, scoring: Scoring | None = None) -> RichTable:
    """A table for people; intervals stand below their scores."""
    from rich.table import Table
    from rich.text import Text

    shown = scorings(board, scoring)
    table = Table(title=_title(board), title_justify="left", caption_justify="left")
    table.caption = "\n".join(notes(board, shown)) or None
    table.add_column("method", overflow="fold")
    if _several(board):
        table.add_column("model")
    for name in board.deployments:
        for place, each in enumerate(shown):
            heading = f"{name if place == 0 else ''}\n{TITLES[each]}" if len(shown) > 1 else name
            table.add_column(Text(heading), justify="right")
        table.add_column(Text("\nsize" if len(shown) > 1 else "size"), justify="right", style="dim")
    for each in shown:
        table.add_column(Text(f"mean\n{TITLES[each]}" if len(shown) > 1 else "mean"), justify="right")
    lines = _lines(board, shown)
    for place, (head, cells, ends) in enumerate(lines):
        texts = [Text(head[0], style="italic" if head[2] else "")]
        if _several(board):
            texts.append(Text(head[1]))
        texts += [_rich(cell) for cell in cells]
        table.add_row(*texts, end_section=ends and place + 1 < len(lines))
    return table


def table_for(board: Leaderboard, width: int, scoring: Scoring | None = None) -> RichTable:
    """A table for a terminal of so many columns: where none is asked for, both scorings only if they fit."""
    from rich.console import Console
    from rich.measure import Measurement

    table = rich_table(board, scoring)
    if scoring is not None or not board.scorings_differ:
        return table
    console = Console(width=10_000)
    if Measurement.get(console, console.options, table).maximum <= width:
        return table
    table = rich_table(board, "honest")
    table.caption = (
        f"{table.caption}\npaper-style scores are other ones, and fit no more: datas3 leaderboard --scoring both"
    )
    return table


def markdown(board: Leaderboard, scoring: Scoring = "both") -> str:
    """A table of GitHub's Markdown, with the notes below it. Names are text in it and never markup."""
    shown = scorings(board, scoring)
    heads, rights = ["method"], [False]
    if _several(board):
        heads.append("model")
        rights.append(False)
    for name in board.deployments:
        heads += [f"{_escaped(name)} {TITLES[each]}" if len(shown) > 1 else _escaped(name) for each in shown]
        heads.append("size")
        rights += [True] * (len(shown) + 1)
    heads += [f"mean {TITLES[each]}" if len(shown) > 1 else "mean" for each in shown]
    rights += [True] * len(shown)
    lines = [heads, ["---:" if right else "---" for right in rights]]
    for head, cells, _ in _lines(board, shown):
        names = [_escaped(head[0]), *([_escaped(head[1])] if _several(board) else [])]
        figures = []
        for cell in cells:
            text = cell.text.strip().replace(PARTIAL, f"\\{PARTIAL}")
            text = f"**{text}**" if cell.style == "bold" else text
            figures.append(f"{text} ({cell.interval})" if cell.interval else text)
        lines.append([*names, *figures])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = "\n".join(f"- {note.replace(PARTIAL, f'{chr(92)}{PARTIAL}')}" for note in notes(board, shown))
    return f"**{_escaped(_title(board))}**\n\n{table}\n\n{said}\n"


def csv_text(board: Leaderboard) -> str:
    """One line a method and deployment with everything known about it; figures are not rounded.

    >>> from datas3_ray.benchmark.leaderboard import Leaderboard
    >>> csv_text(Leaderboard((), ())).split(",")[:4]
    ['source', 'model', 'vector', 'method']
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in board.rows:
        for name in board.deployments:
            if name in row.cells:
                writer.writerow(_csv_row(row, name, row.cells[name]))
    for published in board.paper:
        for name in board.deployments:
            cell = published.cells.get(name)
            if cell is not None:
                known = {"source": "paper", "method": cell.method, "deployment": name, "metric": cell.metric}
                known |= {"paper_style": _blank(cell.score), "subset_size": _blank(cell.subset_size)}
                writer.writerow({**known, "note": cell.note})
    return out.getvalue()


def notes(board: Leaderboard, shown: tuple[str, ...]) -> list[str]:
    """What the marks and columns of the forms mean, a sentence each."""
    cells = [cell for row in board.rows for cell in row.cells.values()]
    said: list[str] = []
    if cells and "honest" in shown:
        others = sorted({cell.chosen_on for cell in cells} - {"test"}) or ["test"]
        what = "honest: grid point" if len(shown) > 1 else "grid point"
        also = "; test rows of unknown classes are errors" if len(shown) > 1 else ""
        said.append(f"{BEST} best of its deployment; {what} chosen on {' or '.join(others)}{also}")
        if any(cell.chosen_on == "test" for cell in cells):
            said.append(f"{ON_TEST} grid point chosen on the test table itself: too good")
    if cells and "paper" in shown:
        mark = "" if "honest" in shown else f"{BEST} best of its deployment; "
        said.append(f"{mark}paper-style: grid point chosen on the test table, test rows of unknown classes dropped")
    if any(cell.std is not None for cell in cells):
        said.append("± standard deviation over seeds")
    if "honest" in shown and any(cell.interval is not None for cell in cells):
        said.append("below a score, or after it: 95% of the scores of resampled test tables")
    if any(len(row.comparable) < len(board.deployments) for row in board.rows):
        said.append(f"{PARTIAL} mean of the deployments it has")
    if any(cell.outdated for cell in cells):
        said.append(f"{OUTDATED} measured on another test table than the newest scores")
    if board.paper:
        said.append("(paper) published rows, counted paper-style; a score that is not known is '-'")
    return said


def _lines(board: Leaderboard, shown: tuple[str, ...]) -> list[tuple[tuple[str, str, bool], list[_Score], bool]]:
    """For every row (method, model, whether it is a reference), its figures, and whether a section ends after it."""
    lines: list[tuple[tuple[str, str, bool], list[_Score], bool]] = []
    for place, published in enumerate(board.paper):
        metric = next(iter(published.cells.values())).metric
        cells: list[_Score] = []
        for name in board.deployments:
            cells += _paper_figures(published.cells.get(name), board, name, shown)
        mean = _Score(figure(published.mean(board.deployments), metric))
        cells += [_Score(MISSING)] * (len(shown) - 1) + [mean]
        lines.append(((f"{published.method} (paper)", "paper", True), cells, place + 1 == len(board.paper)))
    for place, row in enumerate(board.rows):
        following = board.rows[place + 1] if place + 1 < len(board.rows) else None
        ends = following is not None and (
            row.reference != following.reference or (row.model, row.vector) != (following.model, following.vector)
        )
        cells = [text for name in board.deployments for text in _figures(row.cells.get(name), shown)]
        cells += [_mean(row, board, each) for each in shown]
        model = f"{row.model} ({row.vector})" if row.vector else row.model
        lines.append(((row.method, model, row.reference), cells, ends))
    return lines


def _figures(cell: Cell | None, shown: tuple[str, ...]) -> list[_Score]:
    if cell is None:
        return [_Score(MISSING)] * (len(shown) + 1)
    dim = "dim" if cell.outdated else ""
    found = []
    for each in shown:
        if each == "honest":
            text = f"{figure(cell.score, cell.metric)}{_spread(cell.std, cell.metric)}"
            text += f" {ON_TEST}" if cell.chosen_on == "test" else ""
            mark = BEST if cell.best else OUTDATED if cell.outdated else " "
            found.append(_Score(f"{text} {mark}", _interval(cell), "bold" if cell.best else dim))
        elif cell.paper_style is None:
            found.append(_Score(MISSING))
        else:
            style = cell.paper_style
            text = f"{figure(style.score, cell.metric)}{_spread(style.std, cell.metric)}"
            mark = BEST if style.best else OUTDATED if cell.outdated else " "
            found.append(_Score(f"{text} {mark}", "", "bold" if style.best else dim))
    return [*found, _Score(f"{cell.subset_size:,}")]


def _paper_figures(cell: PaperCell | None, board: Leaderboard, name: str, shown: tuple[str, ...]) -> list[_Score]:
    """The paper counts its own way, so that its scores stand in that column where there is one."""
    if cell is None:
        return [_Score(MISSING)] * (len(shown) + 1)
    ours = {row.cells[name].metric for row in board.rows if name in row.cells}
    unit = "" if cell.score is None or ours <= {cell.metric} else f" {cell.metric}"
    size = MISSING if cell.subset_size is None else f"{cell.subset_size:,}"
    score = _Score(f"{figure(cell.score, cell.metric)}{unit}")
    return [*[_Score(MISSING)] * (len(shown) - 1), score, _Score(size)]


def _mean(row: Row, board: Leaderboard, each: str) -> _Score:
    metric = next(iter(row.cells.values())).metric
    value = row.mean if each == "honest" else row.paper_style_mean
    if value is None:
        return _Score(MISSING)
    return _Score(figure(value, metric) + ("" if len(row.comparable) == len(board.deployments) else PARTIAL))


def _spread(std: float | None, metric: str) -> str:
    return "" if std is None else f" ± {figure(std, metric)}"


def _interval(cell: Cell) -> str:
    if cell.interval is None:
        return ""
    return span(*(figure(end, cell.metric) for end in cell.interval))


def _rich(cell: _Score) -> Text:
    from rich.text import Text

    return Text.assemble((cell.text, cell.style), (f"\n{cell.interval}  " if cell.interval else "", "dim"))


def _several(board: Leaderboard) -> bool:
    return len({(row.model, row.vector) for row in board.rows}) > 1


def _title(board: Leaderboard) -> str:
    metrics = sorted({cell.metric for row in board.rows for cell in row.cells.values()})
    models = list(dict.fromkeys((row.model, row.vector) for row in board.rows))
    if not board.rows:
        return "no results yet"
    what = " and ".join(metrics)
    if len(models) > 1:
        return f"test {what}"
    model, vector = models[0]
    return f"test {what}, {model} on {vector}" if vector else f"test {what}, {model}"


def _csv_row(row: Row, name: str, cell: Cell) -> dict[str, Any]:
    style = cell.paper_style
    low, high = cell.interval or (None, None)
    values: dict[str, Any] = {
        "source": "lake",
        "model": row.model,
        "vector": row.vector,
        "method": row.method,
        "reference": row.reference,
        "deployment": name,
        "honest": cell.score,
        "honest_std": cell.std,
        "honest_low": low,
        "honest_high": high,
        "honest_best": cell.best,
        **{key: getattr(cell, key) for key in _AS_THEY_ARE},
        "hyperparameters": json.dumps(cell.hyperparameters),
    }
    if style is not None:
        values |= {
            "paper_style": style.score,
            "paper_style_std": style.std,
            "paper_style_best": style.best,
            "paper_style_hyperparameters": json.dumps(style.hyperparameters),
            "dropped_test_rows": style.dropped,
        }
    return {key: _blank(value) for key, value in values.items()}


def _blank(value: Any) -> Any:
    """Truths as JSON writes them, and nothing for what is not there."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))
