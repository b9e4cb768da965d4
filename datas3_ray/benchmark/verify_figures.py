"""Whether the figures of a submission's trials can be those of one sweep: each follows from others beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from datas3_ray.benchmark.archive import Fault
from datas3_ray.benchmark.submission_form import Submission
from datas3_ray.training.metrics import METRICS

_BOUNDS = {"mse": (0.0, math.inf), "mae": (0.0, math.inf), "r2": (-math.inf, 1.0)}
"""Of scores; all others are shares of 1."""
_MEANS_OF_ROWS = ("accuracy", "zero_shot_accuracy", "image_to_text_recall", "text_to_image_recall", "mse", "mae")
"""Metrics whose interval holds the score; resampling may move the others to one side."""
_SCORES = ("validation", "test", "test_low", "test_high", "test_seen")


def figures(submission: Submission) -> str:
    """Scores, counts and settings of every trial agree with each other."""
    for trial in submission.trials:
        for said in _wrong(trial, submission):
            raise Fault(f"trial {trial['trial']} in {trial['deployment']}: {said}")
    return f"the scores, counts and settings of {len(submission.trials)} trials agree with each other"


def _wrong(trial: Mapping[str, Any], submission: Submission) -> Iterator[str]:
    yield from _scores(trial)
    yield from _settings(trial)
    yield from _counts(trial, submission)


def _scores(trial: Mapping[str, Any]) -> Iterator[str]:
    name, test = trial["metric"], trial["test"]
    metric = METRICS.get(name)
    if metric is None:
        yield f"there is no metric '{name}'"
        return
    if trial["higher_is_better"] != metric.higher_is_better:
        yield f"higher_is_better is {trial['higher_is_better']}, which {name} is not"
    status = trial.get("status")
    if status is not None and (test is not None) != (status == "done"):
        yield f"its status is {status}, and its test score {test}"
    low, high = _BOUNDS.get(name, (0.0, 1.0))
    for column in _SCORES:
        value = trial.get(column)
        # What diverged is no number; a share of rows always is one.
        diverged = value is not None and name in _BOUNDS and not math.isfinite(value)
        if value is not None and not diverged and not low <= value <= high:
            yield f"{column} is {value}, which no {name} can be"
    yield from _interval(trial)
    if test is not None and trial.get("test_dropped") == 0 and _differ(trial.get("test_seen"), test):
        yield f"test is {test} and test_seen {trial.get('test_seen')}, and no test row was dropped"


def _interval(trial: Mapping[str, Any]) -> Iterator[str]:
    test, low, high = trial["test"], trial.get("test_low"), trial.get("test_high")
    if low is None or high is None:
        return
    if test is None or low > high:
        yield f"the interval of its score {test} is {low} to {high}"
        return
    slack = 1e-6 * max(1.0, abs(test))  # of sums in another order
    if trial["metric"] in _MEANS_OF_ROWS and (test < low - slack or test > high + slack):
        yield f"test is {test}, outside of its own interval {low} to {high}"


def _settings(trial: Mapping[str, Any]) -> Iterator[str]:
    config = trial["lineage"]["config"]
    chosen = trial.get("chosen_on") or "validation"
    wanted = "query" if config.get("validation_on") == "query" else "validation"
    wanted = "test" if config.get("report_best") == "test" else wanted
    if chosen != wanted:
        yield f"chosen_on is {chosen}, and by its settings it was chosen on {wanted}"
    for column, key in (("task", "task"), ("vector", "column")):
        said, asked = trial.get(column), config.get(key)
        if said is not None and asked is not None and said != asked:
            yield f"{column} is '{said}', and its settings say '{asked}'"


def _counts(trial: Mapping[str, Any], submission: Submission) -> Iterator[str]:
    lineage = trial["lineage"]
    counts, missing = lineage["counts"], lineage["missing_classes"]
    told = {"subset_size": counts["selected"], "train_rows": counts["train"], "test_rows": counts["test"]}
    for column, count in {**told, "missing_classes": len(missing)}.items():
        if trial[column] != count:
            yield f"{column} is {trial[column]:,}, and its lineage says {count:,}"
    if not missing and trial.get("test_dropped"):
        yield f"{trial['test_dropped']:,} test rows were dropped, and no class is missing"
    name = submission.lineages[trial["selection"]]["table"]
    pool = submission.manifest.tables.get(name)
    # A version that was pruned since is described by the rows of a later one.
    same = pool is not None and pool.version == lineage["inputs"].get(name)
    if pool is not None and same and trial["pool_size"] > pool.rows:
        yield f"pool_size is {trial['pool_size']:,}, and table '{name}' has {pool.rows:,} rows"


def _differ(one: float | None, other: float) -> bool:
    """NaN is the same as itself here."""
    return one is None or (one != other and not (math.isnan(one) and math.isnan(other)))
