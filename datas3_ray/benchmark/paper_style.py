"""Scores as the DataS3 paper counts them, and what scores over seeds come to. A score may be no number (NaN)."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datas3_ray.training.metrics import METRICS


@dataclass(frozen=True)
class PaperStyle:
    """A score as the DataS3 paper counts it: the grid point that is best on test, test rows of unknown classes dropped.

    ``score`` is the mean over ``seeds`` seeds of the metric over the test rows of classes that the training rows have,
    ``std`` their sample standard deviation; ``dropped`` is how many test rows that leaves out (None where it was not
    counted). ``best`` marks the deployment's best such score of that model.
    """

    score: float
    std: float | None
    seeds: int
    best: bool
    dropped: int | None
    hyperparameters: dict[str, Any]
    trials: tuple[str, ...]


def paper_style(trials: list[dict[str, Any]]) -> PaperStyle | None:
    """The grid point that is best on test by the rows of known classes, of all trials of a set; one trial a seed."""
    points: dict[str, dict[int, tuple[float, dict[str, Any]]]] = defaultdict(dict)
    for trial in sorted(trials, key=lambda trial: (trial["created"], trial["trial"])):
        score = _seen(trial)
        if score is not None:
            points[json.dumps(json.loads(trial["hyperparameters"]), sort_keys=True)][trial["seed"]] = score, trial
    if not points:
        return None
    sign = 1 if trials[0]["higher_is_better"] else -1
    most = max(len(point) for point in points.values())
    whole = [[point[seed] for seed in sorted(point)] for point in points.values() if len(point) == most]
    # Among equals the first of the grid, as a sweep's own choice has it.
    whole.sort(key=lambda point: point[0][1]["trial"])
    chosen = max(whole, key=lambda point: rank(sign * mean([score for score, _ in point])))
    scores, found = [score for score, _ in chosen], [trial for _, trial in chosen]
    return PaperStyle(
        score=mean(scores),
        std=deviation(scores),
        seeds=len(scores),
        best=False,
        dropped=_dropped(found[-1]),
        hyperparameters=json.loads(found[-1]["hyperparameters"]),
        trials=tuple(trial["trial"] for trial in found),
    )


def _seen(trial: Mapping[str, Any]) -> float | None:
    """The test score over rows of known classes; of an earlier version's trial where it must be the score itself."""
    score = trial.get("test_seen")
    if score is not None or trial["test"] is None or trial.get("test_dropped") is not None:
        return score
    metric = METRICS.get(trial["metric"])
    same = not trial["missing_classes"] or metric is None or metric.task != "classification"
    return trial["test"] if same else None


def _dropped(trial: Mapping[str, Any]) -> int | None:
    dropped = trial.get("test_dropped")
    return 0 if dropped is None and not trial["missing_classes"] else dropped


def rank(worth: float) -> float:
    """A worth to compare with others: what is no number is the worst there is."""
    return worth if math.isfinite(worth) else -math.inf


def mean(values: Sequence[float]) -> float:
    """The mean, of whatever numbers."""
    # math.fsum has no answer for infinities of both signs.
    return (math.fsum(values) if all(map(math.isfinite, values)) else sum(values)) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, None of one value; of what is no number it is none either."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
