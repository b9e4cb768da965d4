"""Results as the DataS3 paper's Table 1: a row a method, and for each deployment a score and a subset size.

A score is the test score of the grid point that was best *on validation*, and test rows of classes that the subset
lacks count as errors. Beside it stands the score as published results count it (:class:`PaperStyle`). The subset size
is the number of rows the selection kept, before any were held out to validate on.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.benchmark.paper_rows import PaperCell, PaperRow, paper_rows
from datas3_ray.benchmark.paper_style import PaperStyle, deviation, mean, paper_style, rank
from datas3_ray.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from datas3_ray.benchmark.tables import Scoring


@dataclass(frozen=True)
class Cell:
    """One method in one deployment.

    ``score`` is the mean over ``seeds`` seeds and ``std`` their sample standard deviation (None for one seed);
    ``best`` marks the deployment's best score of that model, ties included. ``outdated`` says that the deployment's
    newest score was measured on other test rows or with another metric, so that this one cannot be compared with it
    (and is never the best); ``test_content`` changes when the rows of the test table do. ``interval`` holds 95% of the
    scores of resampled test tables, for one seed. ``chosen_on`` is what the grid point was chosen on: validation, query
    or test. ``created`` is an ISO time. ``paper_style`` is None where the results were written before such scores were.
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
    test_content: str
    test_rows: int
    missing_classes: int
    selection: str
    selection_fingerprint: str
    hyperparameters: dict[str, Any]
    run: str
    trials: tuple[str, ...]
    created: str
    paper_style: PaperStyle | None


@dataclass(frozen=True)
class Row:
    """One method with one model (and one vector column): a cell for each deployment it was scored on.

    ``mean`` averages the scores that are not outdated; None where there are none, or their metrics differ.
    ``paper_style_mean`` does so with the paper-style ones; None also where one of them is not known.
    ``reference`` says that the method kept the whole of the largest pool everywhere (a query set is a smaller one).
    """

    method: str
    model: str
    vector: str
    cells: Mapping[str, Cell]
    mean: float | None
    paper_style_mean: float | None
    reference: bool

    @property
    def comparable(self) -> tuple[Cell, ...]:
        """The cells that are not outdated."""
        return tuple(cell for cell in self.cells.values() if not cell.outdated)


@dataclass(frozen=True)
class Leaderboard:
    """Methods against deployments. References come first in each model, then the methods from best to worst.

    ``paper`` has the published rows for these deployments, which take no part in the best marks.
    """

    deployments: tuple[str, ...]
    rows: tuple[Row, ...]
    paper: tuple[PaperRow, ...] = ()

    @property
    def scorings_differ(self) -> bool:
        """Whether any paper-style score is another than the honest one beside it."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        return any(cell.paper_style is not None and cell.paper_style.score != cell.score for cell in cells)

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dictionary a row, for JSON; ``deployments`` maps each deployment to its cell, None when missing.

        ``source`` is ``lake``, or ``paper`` for the published rows, which come last and whose cells have less.
        """
        ours = [
            {
                "source": "lake",
                "method": row.method,
                "model": row.model,
                "vector": row.vector,
                "reference": row.reference,
                "mean": row.mean,
                "paper_style_mean": row.paper_style_mean,
                "deployments": {
                    name: plain_cell(row.cells[name]) if name in row.cells else None for name in self.deployments
                },
            }
            for row in self.rows
        ]
        published = [
            {
                "source": "paper",
                "method": row.method,
                "mean": row.mean(self.deployments),
                "deployments": {
                    name: asdict(row.cells[name]) if name in row.cells else None for name in self.deployments
                },
            }
            for row in self.paper
        ]
        return [*ours, *published]

    def render(self, scoring: Scoring | None = None) -> RichTable:
        """A table for people: scores of 0 to 1 as percentages, the best of each deployment in bold with a star.

        ``scoring`` is ``honest``, ``paper`` or ``both``; by default ``both`` where the two differ.
        """
        from datas3_ray.benchmark.tables import rich_table

        return rich_table(self, scoring)


def leaderboard(results: pa.Table, model: str | None = None, paper: Iterable[PaperCell] = ()) -> Leaderboard:
    """The leaderboard of a results table (``Lake.results()``).

    For each deployment, method, model and vector column the latest trials count: those of the latest sweep, and of
    earlier ones that differ from it in nothing but the seed. Scores are means over seeds.

    Within a model the references (methods that kept the whole pool in every deployment) come first, then methods scored
    on every deployment by their mean, then the others by theirs; ties go by name. Published rows (``paper``, see
    :func:`datas3_ray.benchmark.paper_rows.read_paper`) are kept where they are of one of the results' deployments.

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
        sets[set_key(trial)][trial["deployment"]].append(trial)
    cells = {
        key: {name: _cell(members) for name, members in by_deployment.items() if any(t["best"] for t in members)}
        for key, by_deployment in sets.items()
    }
    rows = _sorted(_marked({key: found for key, found in cells.items() if found}), deployments)
    return Leaderboard(deployments, tuple(rows), paper_rows(paper, deployments))


def set_key(trial: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row of the leaderboard is of: model, vector column and method."""
    return trial["model"], trial["vector"] or "", trial["method"]


def counted(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of one method's trials in one deployment those that its cell comes from: the latest set, every grid point."""
    newest = max((trial for trial in trials if trial["best"]), key=lambda trial: trial["created"])
    return [trial for trial in trials if _identity(trial) == _identity(newest)]


def _latest(winners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a set's winning trials the latest of each seed; seeds may have been run at other times.

    Seeds of one sweep share a grid point; those added from other sweeps may have chosen their own.
    """
    by_seed = {trial["seed"]: trial for trial in sorted(winners, key=lambda trial: trial["created"])}
    return sorted(by_seed.values(), key=lambda trial: trial["seed"])


def _identity(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    lineage = json.loads(trial["lineage"] or "{}")
    return (
        trial["selection_fingerprint"],
        trial["metric"],
        trial["test_rows"],
        lineage.get("test"),
        lineage.get("settings"),
        json.dumps({**(lineage.get("inputs") or {}), **(lineage.get("contents") or {})}, sort_keys=True),
    )


def _test_content(lineage: Mapping[str, Any]) -> str:
    """What tells the test rows from others of that table's name; rows of earlier versions know a version alone."""
    test = lineage.get("test")
    versions = lineage.get("inputs") or {}
    return str((lineage.get("contents") or {}).get(test, versions.get(test, "")))


def _cell(every: list[dict[str, Any]]) -> Cell:
    same = counted(every)
    trials = _latest([trial for trial in same if trial["best"]])
    scores = [trial["test"] for trial in trials]
    newest = max(trials, key=lambda trial: trial["created"])
    lineage = json.loads(newest["lineage"] or "{}")
    return Cell(
        score=mean(scores),
        std=deviation(scores),
        seeds=len(scores),
        best=False,
        outdated=False,
        validation=mean([trial["validation"] for trial in trials]),
        interval=_interval(newest) if len(trials) == 1 else None,
        chosen_on=newest.get("chosen_on") or "validation",
        start=newest.get("start") or "scratch",
        metric=newest["metric"],
        higher_is_better=newest["higher_is_better"],
        subset_size=newest["subset_size"],
        pool_size=newest["pool_size"],
        train_rows=newest["train_rows"],
        test=lineage.get("test", ""),
        test_content=_test_content(lineage),
        test_rows=newest["test_rows"],
        missing_classes=newest["missing_classes"],
        selection=newest["selection"],
        selection_fingerprint=newest["selection_fingerprint"],
        hyperparameters=json.loads(newest["hyperparameters"]),
        run=newest["run"],
        trials=tuple(trial["trial"] for trial in trials),
        created=newest["created"].isoformat(),
        paper_style=paper_style(same),
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
        if _yardstick(cell) != _yardstick(newest):
            return replace(cell, outdated=True)
        top = max(_worth(other) for other in current)
        marked = replace(cell, best=_worth(cell) == top > -math.inf)
        if cell.paper_style is None:
            return marked
        sign = 1 if cell.higher_is_better else -1
        found = max(rank(sign * other.paper_style.score) for other in current if other.paper_style is not None)
        best = rank(sign * cell.paper_style.score) == found > -math.inf
        return replace(marked, paper_style=replace(cell.paper_style, best=best))

    largest = {key: max(cell.pool_size for cell in others) for key, others in rivals.items()}
    rows = []
    for (model, vector, method), by_deployment in cells.items():
        marked = {name: mark(cell, rivals[model, vector, name]) for name, cell in by_deployment.items()}
        whole = all(cell.subset_size >= largest[model, vector, name] for name, cell in marked.items())
        rows.append(_row(method, model, vector, marked, whole))
    return rows


def _yardstick(cell: Cell) -> tuple[str, str, str, int]:
    return cell.metric, cell.test, cell.test_content, cell.test_rows


def _row(method: str, model: str, vector: str, cells: dict[str, Cell], reference: bool) -> Row:
    current = [cell for cell in cells.values() if not cell.outdated]
    one_metric = len({cell.metric for cell in current}) == 1
    styled = [cell.paper_style.score for cell in current if cell.paper_style is not None]
    return Row(
        method=method,
        model=model,
        vector=vector,
        cells=cells,
        mean=mean([cell.score for cell in current]) if one_metric else None,
        paper_style_mean=mean(styled) if one_metric and len(styled) == len(current) else None,
        reference=reference,
    )


def _sorted(rows: Iterable[Row], deployments: tuple[str, ...]) -> list[Row]:
    def key(row: Row) -> tuple[Any, ...]:
        cells = row.comparable
        worth = mean([_worth(cell) for cell in cells]) if cells else -math.inf
        return row.model, row.vector, not row.reference, len(cells) < len(deployments), -worth, row.method

    return sorted(rows, key=key)


def _worth(cell: Cell) -> float:
    return rank(cell.score if cell.higher_is_better else -cell.score)


def plain_cell(cell: Cell) -> dict[str, Any]:
    """A cell as plain values that JSON can hold and gives back the same."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(cell)))
    return plain
