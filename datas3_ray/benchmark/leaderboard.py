"""Results as the DataS3 paper's Table 1: a row a method, and for each deployment a score and a subset size.

A score is the test score of the grid point that was best *on validation*; the best test score of a grid is never
looked up. The subset size is the number of rows the selection kept, before any were held out to validate on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING, BEST, OUTDATED, PARTIAL, ON_TEST = "-", "★", "†", "*", "‡"


@dataclass(frozen=True)
class Cell:
    """One method in one deployment.

    ``score`` is the mean over ``seeds`` seeds and ``std`` their sample standard deviation (None for one seed);
    ``best`` marks the deployment's best score of that model, ties included. ``outdated`` says that the deployment's
    newest score was measured on another test table or with another metric, so that this one cannot be compared with it
    (and is never the best). ``interval`` holds 95% of the scores of resampled test tables, for one seed. ``chosen_on``
    is what the grid point was chosen on: validation, query or test. ``created`` is an ISO time.
    """

    score: float
    std: float | None
    seeds: int
    best: bool
    outdated: bool
    validation: float
    interval: tuple[float, float] | None
    chosen_on: str
    start: str
    metric: str
    higher_is_better: bool
    subset_size: int
    pool_size: int
    train_rows: int
    test: str
    test_rows: int
    missing_classes: int
    selection: str
    selection_fingerprint: str
    hyperparameters: dict[str, Any]
    run: str
    trials: tuple[str, ...]
    created: str


@dataclass(frozen=True)
class Row:
    """One method with one model (and one vector column): a cell for each deployment it was scored on.

    ``mean`` averages the scores that are not outdated; None where there are none, or their metrics differ.
    ``reference`` says that the method kept the whole pool everywhere.
    """

    method: str
    model: str
    vector: str
    cells: Mapping[str, Cell]
    mean: float | None
    reference: bool

    @property
    def comparable(self) -> tuple[Cell, ...]:
        """The cells that are not outdated."""
        return tuple(cell for cell in self.cells.values() if not cell.outdated)


@dataclass(frozen=True)
class Leaderboard:
    """Methods against deployments. References come first in each model, then the methods from best to worst."""

    deployments: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dictionary a row, for JSON; ``deployments`` maps each deployment to its cell, None when missing."""
        return [
            {
                "method": row.method,
                "model": row.model,
                "vector": row.vector,
                "reference": row.reference,
                "mean": row.mean,
                "deployments": {
                    name: _plain(row.cells[name]) if name in row.cells else None for name in self.deployments
                },
            }
            for row in self.rows
        ]

    def render(self) -> RichTable:
        """A table for people: scores of 0 to 1 as percentages, the best of each deployment in bold with a star."""
        from rich.table import Table
        from rich.text import Text

        several = len({(row.model, row.vector) for row in self.rows}) > 1
        table = Table(title=self._title(), title_justify="left", caption=self._caption(), caption_justify="left")
        table.add_column("method")
        if several:
            table.add_column("model")
        for name in self.deployments:
            table.add_column(Text(name), justify="right")
            table.add_column("size", justify="right", style="dim")
        table.add_column("mean", justify="right")
        for place, row in enumerate(self.rows):
            texts = [Text(row.method, style="italic" if row.reference else "")]
            if several:
                texts.append(Text(f"{row.model} ({row.vector})" if row.vector else row.model))
            for name in self.deployments:
                texts.extend(_cell_texts(row.cells.get(name)))
            partial = "" if len(row.comparable) == len(self.deployments) else PARTIAL
            metric = next(iter(row.cells.values())).metric
            texts.append(Text(MISSING if row.mean is None else _figure(row.mean, metric) + partial))
            following = self.rows[place + 1] if place + 1 < len(self.rows) else None
            ends = following is not None and (
                row.reference != following.reference or (row.model, row.vector) != (following.model, following.vector)
            )
            table.add_row(*texts, end_section=ends)
        return table

    def _title(self) -> str:
        metrics = sorted({cell.metric for row in self.rows for cell in row.cells.values()})
        models = list(dict.fromkeys((row.model, row.vector) for row in self.rows))
        if not self.rows:
            return "no results yet"
        what = " and ".join(metrics)
        if len(models) > 1:
            return f"test {what}"
        model, vector = models[0]
        return f"test {what}, {model} on {vector}" if vector else f"test {what}, {model}"

    def _caption(self) -> str | None:
        if not self.rows:
            return None
        cells = [cell for row in self.rows for cell in row.cells.values()]
        others = sorted({cell.chosen_on for cell in cells} - {"test"}) or ["test"]
        notes = [f"{BEST} best of its deployment; grid point chosen on {' or '.join(others)}"]
        if any(cell.chosen_on == "test" for cell in cells):
            notes.append(f"{ON_TEST} grid point chosen on the test table itself: too good")
        if any(cell.std is not None for cell in cells):
            notes.append("± standard deviation over seeds")
        if any(len(row.comparable) < len(self.deployments) for row in self.rows):
            notes.append(f"{PARTIAL} mean of the deployments it has")
        if any(cell.outdated for cell in cells):
            notes.append(f"{OUTDATED} measured on another test table than the newest scores")
        return "\n".join(notes)


def leaderboard(results: pa.Table, model: str | None = None) -> Leaderboard:
    """The leaderboard of a results table (``Lake.results()``).

    For each deployment, method, model and vector column the latest trials count: those of the latest sweep, and of
    earlier ones that differ from it in nothing but the seed. Scores are means over seeds.

    Within a model the references (methods that kept the whole pool in every deployment) come first, then methods scored
    on every deployment by their mean, then the others by theirs; ties go by name.

    Raises
    ------
    UsageError
        When ``model`` has no results.

    Examples
    --------
    >>> from datas3_ray.lake.schemas import RESULTS
    >>> leaderboard(RESULTS.empty_table()).rows
    ()
    """
    trials = results.to_pylist()
    if model is not None:
        known = sorted({trial["model"] for trial in trials})
        if model not in known:
            raise UsageError(
                f"no results of model '{model}'; there are results of: {', '.join(known) or 'none'}."
                + did_you_mean(model, known)
            )
        trials = [trial for trial in trials if trial["model"] == model]
    deployments = tuple(dict.fromkeys(trial["deployment"] for trial in trials))
    sets: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if not trial["best"]:
            continue
        key = trial["model"], trial["vector"] or "", trial["method"]
        sets[key][trial["deployment"]].append(trial)
    cells = {
        key: {name: _cell(_latest(members)) for name, members in by_deployment.items()}
        for key, by_deployment in sets.items()
    }
    return Leaderboard(deployments, tuple(_sorted(_marked(cells), deployments)))


def _latest(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of winning trials those of the latest set, one a seed; seeds run at other times count when all else is equal.

    Seeds of one sweep share a grid point; those added from other sweeps may have chosen their own.
    """
    newest = max(trials, key=lambda trial: trial["created"])
    by_seed: dict[int, dict[str, Any]] = {}
    for trial in sorted(trials, key=lambda trial: trial["created"]):
        if _identity(trial) == _identity(newest):
            by_seed[trial["seed"]] = trial
    return sorted(by_seed.values(), key=lambda trial: trial["seed"])


def _identity(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    lineage = json.loads(trial["lineage"] or "{}")
    return (
        trial["selection_fingerprint"],
        trial["metric"],
        trial["test_rows"],
        lineage.get("test"),
        lineage.get("settings"),
        json.dumps(lineage.get("inputs"), sort_keys=True),
    )


def _cell(trials: list[dict[str, Any]]) -> Cell:
    scores = [trial["test"] for trial in trials]
    newest = max(trials, key=lambda trial: trial["created"])
    return Cell(
        score=math.fsum(scores) / len(scores),
        std=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(scores),
        best=False,
        outdated=False,
        validation=math.fsum(trial["validation"] for trial in trials) / len(trials),
        interval=_interval(newest) if len(trials) == 1 else None,
        chosen_on=newest.get("chosen_on") or "validation",
        start=newest.get("start") or "scratch",
        metric=newest["metric"],
        higher_is_better=newest["higher_is_better"],
        subset_size=newest["subset_size"],
        pool_size=newest["pool_size"],
        train_rows=newest["train_rows"],
        test=json.loads(newest["lineage"] or "{}").get("test", ""),
        test_rows=newest["test_rows"],
        missing_classes=newest["missing_classes"],
        selection=newest["selection"],
        selection_fingerprint=newest["selection_fingerprint"],
        hyperparameters=json.loads(newest["hyperparameters"]),
        run=newest["run"],
        trials=tuple(trial["trial"] for trial in trials),
        created=newest["created"].isoformat(),
    )


def _interval(trial: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = trial.get("test_low"), trial.get("test_high")
    return None if low is None or high is None else (low, high)


def _marked(cells: Mapping[tuple[str, str, str], Mapping[str, Cell]]) -> list[Row]:
    """Rows, with the best cell of each model and deployment marked, and those that cannot be compared with it."""
    rivals: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for (model, vector, _), by_deployment in cells.items():
        for name, cell in by_deployment.items():
            rivals[model, vector, name].append(cell)

    def mark(cell: Cell, others: list[Cell]) -> Cell:
        newest = max(others, key=lambda other: other.created)
        current = [other for other in others if _yardstick(other) == _yardstick(newest)]
        top = max(_worth(other) for other in current)
        return replace(cell, best=cell in current and _worth(cell) == top, outdated=cell not in current)

    return [
        _row(method, model, vector, {n: mark(cell, rivals[model, vector, n]) for n, cell in by_deployment.items()})
        for (model, vector, method), by_deployment in cells.items()
    ]


def _yardstick(cell: Cell) -> tuple[str, str, int]:
    return cell.metric, cell.test, cell.test_rows


def _row(method: str, model: str, vector: str, cells: dict[str, Cell]) -> Row:
    current = [cell for cell in cells.values() if not cell.outdated]
    one_metric = len({cell.metric for cell in current}) == 1
    return Row(
        method=method,
        model=model,
        vector=vector,
        cells=cells,
        mean=math.fsum(cell.score for cell in current) / len(current) if one_metric else None,
        reference=all(cell.subset_size >= cell.pool_size for cell in cells.values()),
    )


def _sorted(rows: Iterable[Row], deployments: tuple[str, ...]) -> list[Row]:
    def key(row: Row) -> tuple[Any, ...]:
        cells = row.comparable
        worth = math.fsum(_worth(cell) for cell in cells) / len(cells) if cells else -math.inf
        return row.model, row.vector, not row.reference, len(cells) < len(deployments), -worth, row.method

    return sorted(rows, key=key)


def _worth(cell: Cell) -> float:
    return cell.score if cell.higher_is_better else -cell.score


def _plain(cell: Cell) -> dict[str, Any]:
    return {**asdict(cell), "trials": list(cell.trials)}


def _cell_texts(cell: Cell | None) -> list[Any]:
    from rich.text import Text

    if cell is None:
        return [Text(MISSING), Text(MISSING)]
    score = _figure(cell.score, cell.metric)
    if cell.std is not None:
        score += f" ± {_figure(cell.std, cell.metric)}"
    if cell.chosen_on == "test":
        score += f" {ON_TEST}"
    mark = BEST if cell.best else OUTDATED if cell.outdated else " "
    return [
        Text(f"{score} {mark}", style="bold" if cell.best else "dim" if cell.outdated else ""),
        Text(f"{cell.subset_size:,}"),
    ]


def _figure(value: float, metric: str) -> str:
    """Accuracies in percent, as the paper prints them; other metrics as they are."""
    return f"{100 * value:.1f}" if "accuracy" in metric else f"{value:.4g}"
