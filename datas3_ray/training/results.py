"""A sweep's trials as rows of the results table: one a trial and deployment, the winner marked.

The winner of a grid is chosen on validation rows of the selection itself. Test scores are written down and never
looked at.
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
    test_versions: Mapping[str, int]
    test_contents: Mapping[str, int]
    """Of each test table the version in which its rows last changed."""

    @property
    def fingerprint(self) -> str:
        """Changes when a trial's result could: the settings, what the selections keep, the test tables' versions."""
        return fingerprint(
            {
                "run": self.name,
                "settings": self.config.settings(),
                "deployments": {
                    name: {
                        "test": [deployment.test, self.test_contents[deployment.test]],
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


def best_points(trials: Sequence[Trial], metric: str) -> set[int]:
    """Indexes of the trials at each selection's best grid point.

    A point's worth is its validation score, averaged over seeds; among equals (a few validation rows give few
    different scores) the lowest validation loss wins, then the earliest point. With several seeds the point's trial of
    every seed is in the set.
    """
    sign = 1 if find_metric(metric).higher_is_better else -1
    grouped: dict[str, dict[tuple[Any, ...], list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in sorted(trials, key=lambda trial: trial.point.index):
        grouped[trial.point.selection][tuple(trial.point.hyperparameters.items())].append(trial)
    best: set[int] = set()
    for points in grouped.values():
        winner = max(
            points.values(),
            key=lambda members: (
                sign * _mean([t.outcome.validation for t in members]),
                -_mean([t.outcome.validation_loss for t in members]),
            ),
        )
        best.update(trial.point.index for trial in winner)
    return best


def result_rows(lake: Lake, sweep: Sweep, prepared: Prepared, trials: Sequence[Trial], folder: str) -> pa.Table:
    """Rows in the order of deployments, their selections, and trials."""
    best = best_points(trials, sweep.config.metric)
    pool_sizes = {name: _pool_size(lake, str(chosen.lineage()["table"])) for name, chosen in sweep.selections.items()}
    created = datetime.now(timezone.utc)
    mark = sweep.fingerprint
    common = {
        "run": sweep.name,
        "model": sweep.config.model,
        "vector": prepared.vector,
        "metric": sweep.config.metric,
        "higher_is_better": find_metric(sweep.config.metric).higher_is_better,
        "created": created,
    }
    by_selection: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_selection[trial.point.selection].append(trial)
    rows = []
    for deployment_name, deployment in sweep.deployments.items():
        test = prepared.tests[deployment.test]
        for label, chosen in deployment.selections.items():
            selection = sweep.selections[chosen]
            for trial in by_selection[chosen]:
                trained = prepared.training[chosen, trial.point.seed]
                missing = sorted(set(test.classes) - set(trained.classes))
                scored = trial.outcome.tests[deployment.test]
                won = trial.point.index in best
                lineage = {
                    "sweep": mark,
                    "settings": fingerprint({k: v for k, v in sweep.config.settings().items() if k != "seed"}),
                    "config": sweep.config.settings(),
                    "inputs": {**trained.inputs, deployment.test: test.version},
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
                    "epoch": trial.outcome.epoch,
                    "validation_loss": trial.outcome.validation_loss,
                    "epochs": trial.outcome.epochs,
                    "macro_accuracy": scored.macro_accuracy,
                    # Hundreds of classes times every trial would make the table large; the winner's are enough.
                    **({"recall": scored.recall} if won else {}),
                    "tune": folder,
                    "code_version": __version__,
                }
                rows.append(
                    {
                        **common,
                        "trial": f"{mark[:8]}-{trial.point.index:04d}",
                        "deployment": deployment_name,
                        "method": label,
                        "selection": chosen,
                        "selection_fingerprint": selection.fingerprint,
                        "hyperparameters": json.dumps(dict(trial.point.hyperparameters)),
                        "seed": trial.point.seed,
                        "validation": trial.outcome.validation,
                        "test": scored.score,
                        "best": won,
                        "subset_size": len(selection),
                        "pool_size": pool_sizes[chosen],
                        "train_rows": trained.train_rows,
                        "missing_classes": len(missing),
                        "test_rows": test.rows,
                        "seconds": trial.outcome.seconds,
                        "checkpoint": trial.checkpoint,
                        "lineage": json.dumps(lineage, sort_keys=True),
                    }
                )
    return pa.Table.from_pylist(rows, schema=RESULTS)


def finished_rows(lake: Lake, sweep: Sweep) -> pa.Table | None:
    """The rows of this very sweep where it has been run before, or None."""
    results = lake.results()
    results = results.filter(pc.equal(results.column("run"), sweep.name))
    mark = sweep.fingerprint
    mine = [json.loads(text or "{}").get("sweep") == mark for text in results.column("lineage").to_pylist()]
    return results.filter(pa.array(mine)) if any(mine) else None


def _pool_size(lake: Lake, table: str) -> int:
    """Rows a selection of the table could keep at most: all but those that splits set aside."""
    from datas3_ray.lake.splits import held_out_ids

    held_out = held_out_ids(lake, table)
    return lake.table(table).count_rows() - (len(held_out) if held_out is not None else 0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
