"""A sweep's trials as rows of the results table: one a trial and deployment, the winner marked.

The winner of a grid is chosen on validation rows of the selection itself, or on the deployment's labelled query rows.
Test scores are written down and not looked at, unless the sweep asks for the published, optimistic way and says so.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray import __version__
from datas3_ray.lake.schemas import RESULTS, fingerprint
from datas3_ray.training.metrics import metric as find_metric

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection
    from datas3_ray.training.config import SweepConfig
    from datas3_ray.training.contract import Prepared
    from datas3_ray.training.sweep import Deployment
    from datas3_ray.training.tuning import Trial


@dataclass(frozen=True)
class Sweep:
    """What one call of :func:`datas3_ray.training.sweep.run_sweep` asks for, its tables opened."""

    name: str
    config: SweepConfig
    deployments: Mapping[str, Deployment]
    selections: Mapping[str, Selection]
    scored_versions: Mapping[str, int]
    """Of the test tables, and of the query tables where they choose the winners."""
    scored_contents: Mapping[str, int | str]
    """Of each the version in which its rows last changed."""

    def scored(self, deployment: Deployment) -> list[str]:
        """The tables that a deployment's trials are scored on."""
        return scored_tables(self.config, deployment)

    @property
    def fingerprint(self) -> str:
        """Changes when a trial's result could: the settings, what the selections keep, the test tables' versions."""
        return fingerprint(
            {
                "run": self.name,
                "settings": self.config.settings(),
                "deployments": {
                    name: {
                        "test": [[table, self.scored_contents[table]] for table in self.scored(deployment)],
                        "query": deployment.query,
                        "selections": {
                            label: [chosen, self.selections[chosen].fingerprint]
                            for label, chosen in deployment.selections.items()
                        },
                    }
                    for name, deployment in self.deployments.items()
                },
            }
        )


def scored_tables(config: SweepConfig, deployment: Deployment) -> list[str]:
    """The test table, and the query table where it chooses the winner."""
    query = [deployment.query] if config.validation_on == "query" and deployment.query is not None else []
    return [deployment.test, *query]


@dataclass(frozen=True)
class Candidate:
    """A trial in the contest for its selection's best grid point.

    ``worth`` is what the point is chosen by and ``loss`` the validation loss, both None where the trial did not finish.
    """

    index: int
    selection: str
    hyperparameters: tuple[tuple[str, float], ...]
    worth: float | None
    loss: float | None


def best_points(trials: Sequence[Trial], metric: str, table: str | None = None) -> set[int]:
    """Indexes of the trials at each selection's best grid point, as :func:`winners` finds them.

    A trial's worth is its validation score, or its score on ``table``.
    """
    candidates = [
        Candidate(
            index=trial.point.index,
            selection=trial.point.selection,
            hyperparameters=tuple(trial.point.hyperparameters.items()),
            worth=None if trial.outcome is None else _worth(trial, table),
            loss=None if trial.outcome is None else trial.outcome.validation_loss,
        )
        for trial in trials
    ]
    return winners(candidates, find_metric(metric).higher_is_better)


def winners(candidates: Sequence[Candidate], higher_is_better: bool) -> set[int]:
    """Indexes of the trials at each selection's best grid point.

    A point's worth is that of its trials averaged over seeds; among equals (a few validation rows give few different
    scores) the lowest validation loss wins, then the earliest point. With several seeds the point's trial of every seed
    is in the set. A point whose trials did not all finish cannot win, unless there is no other.

    >>> def candidate(index, worth):
    ...     return Candidate(index, "near", (("lr", index),), worth, 0.5)
    >>> winners([candidate(0, 0.7), candidate(1, 0.9), candidate(2, None)], higher_is_better=True)
    {1}
    """
    sign = 1 if higher_is_better else -1
    grouped: dict[str, dict[tuple[Any, ...], list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for candidate in sorted(candidates, key=lambda candidate: candidate.index):
        grouped[candidate.selection][candidate.hyperparameters].append(candidate)
    best: set[int] = set()
    for points in grouped.values():
        finished = [[one for one in members if one.worth is not None] for members in points.values()]
        whole = [done for done, members in zip(finished, points.values(), strict=True) if len(done) == len(members)]
        contest = whole or [done for done in finished if done]
        if not contest:
            continue
        winner = max(
            contest,
            key=lambda members: (
                sign * _mean([one.worth for one in members if one.worth is not None]),
                -_mean([one.loss for one in members if one.loss is not None]),
            ),
        )
        best.update(one.index for one in winner)
    return best


def _worth(trial: Trial, table: str | None) -> float:
    return trial.found.validation if table is None else trial.found.tests[table].score


def result_rows(lake: Lake, sweep: Sweep, prepared: Prepared, trials: Sequence[Trial], folder: str) -> pa.Table:
    """Rows in the order of deployments, their selections, and trials."""
    pools = {name: str(chosen.lineage()["table"]) for name, chosen in sweep.selections.items()}
    pool_sizes = {table: _pool_size(lake, table) for table in set(pools.values())}
    config = sweep.config
    common = {
        "run": sweep.name,
        "model": config.model,
        "task": config.task,
        "vector": prepared.vector,
        "start": prepared.start,
        "metric": config.metric,
        "higher_is_better": find_metric(config.metric).higher_is_better,
        "created": datetime.now(timezone.utc),
        "chosen_on": _chosen_on(config),
    }
    rows = []
    for name, deployment in sweep.deployments.items():
        table = {"test": deployment.test, "query": deployment.query}.get(_chosen_on(config))
        best = best_points(trials, config.metric, table)
        for label, chosen in deployment.selections.items():
            for trial in trials:
                if trial.point.selection != chosen:
                    continue
                found = {"deployment": name, "method": label, "pool_size": pool_sizes[pools[chosen]]}
                won = trial.point.index in best
                rows.append({**common, **found, **_row(sweep, prepared, deployment, trial, won, folder)})
    return pa.Table.from_pylist(rows, schema=RESULTS)


def _chosen_on(config: SweepConfig) -> str:
    if config.report_best == "test":
        return "test"
    return "query" if config.validation_on == "query" else "validation"


def _row(
    sweep: Sweep, prepared: Prepared, deployment: Deployment, trial: Trial, won: bool, folder: str
) -> dict[str, Any]:
    """What is particular to one trial on one deployment."""
    selection = sweep.selections[trial.point.selection]
    trained = prepared.training[trial.point.selection, trial.point.seed]
    test = prepared.tests[deployment.test]
    missing = sorted(set(test.classes) - set(trained.classes))
    mark = sweep.fingerprint
    lineage = {
        "sweep": mark,
        "settings": fingerprint({k: v for k, v in sweep.config.settings().items() if k != "seed"}),
        "config": sweep.config.settings(),
        "inputs": {**trained.inputs, **{table: prepared.tests[table].version for table in sweep.scored(deployment)}},
        # Versions tell no table from one that was made under its name since; these do.
        "contents": {table: sweep.scored_contents[table] for table in sweep.scored(deployment)},
        "test": deployment.test,
        "query": deployment.query,
        "counts": {
            "selected": len(selection),
            "train": trained.train_rows,
            "validation": trained.validation_rows,
            "unlabelled": trained.unlabelled,
            "unusable": trained.unusable,
            "test": test.rows,
            "test_unlabelled": test.unlabelled,
            "test_unusable": test.unusable,
        },
        "classes": len(trained.classes),
        "missing_classes": missing,
        "validation_on": trained.validation_on,
        "tune": folder,
        "code_version": __version__,
    }
    row = {
        "trial": f"{mark[:8]}-{trial.point.index:04d}",
        "selection": trial.point.selection,
        "selection_fingerprint": selection.fingerprint,
        "hyperparameters": json.dumps(dict(trial.point.hyperparameters)),
        "seed": trial.point.seed,
        "status": trial.status,
        "error": trial.error or None,
        "validation": trial.validation,
        "best": won,
        "subset_size": len(selection),
        "train_rows": trained.train_rows,
        "missing_classes": len(missing),
        "test_rows": test.rows,
        "checkpoint": trial.checkpoint or None,
    }
    if trial.outcome is not None:
        row |= _scores(trial, deployment, won, lineage)
    return {**row, "lineage": json.dumps(lineage, sort_keys=True)}


def _scores(trial: Trial, deployment: Deployment, won: bool, lineage: dict[str, Any]) -> dict[str, Any]:
    """The columns of a trial that is done; its details go to the lineage."""
    outcome, scored = trial.found, trial.found.tests[deployment.test]
    lineage |= {
        "epoch": outcome.epoch,
        "validation_loss": outcome.validation_loss,
        "epochs": outcome.epochs,
        "figures": scored.figures,
        **({"macro_accuracy": scored.macro_accuracy} if scored.macro_accuracy is not None else {}),
        # Hundreds of classes times every trial would make the table large; the winner's are enough.
        **({"recall": scored.recall} if won and scored.recall else {}),
    }
    if deployment.query in outcome.tests:
        lineage["query_score"] = outcome.tests[deployment.query].score
    low, high = scored.interval or (None, None)
    return {
        "validation": outcome.validation,
        "test": scored.score,
        "test_low": low,
        "test_high": high,
        "test_seen": scored.seen if scored.dropped != 0 else scored.score,
        "test_dropped": scored.dropped,
        "seconds": outcome.seconds,
    }


def finished_rows(lake: Lake, sweep: Sweep, table: str) -> pa.Table | None:
    """The rows of this very sweep in a results table where it has been run before, or None."""
    results = lake.results(table)
    results = results.filter(pc.equal(results.column("run"), sweep.name))
    mark = sweep.fingerprint
    mine = [json.loads(text or "{}").get("sweep") == mark for text in results.column("lineage").to_pylist()]
    return results.filter(pa.array(mine)) if any(mine) else None


def _pool_size(lake: Lake, table: str) -> int:
    """Rows a selection of the table could keep at most: all but those that splits set aside."""
    from datas3_ray.lake.splits import held_out_ids, splits_of

    held_out = held_out_ids(splits_of(lake, table))
    return lake.table(table).count_rows() - (len(held_out) if held_out is not None else 0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
