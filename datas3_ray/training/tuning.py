"""Running a sweep's trials with Ray Tune: reused actors, quiet, a folder that TensorBoard opens.

A trial is a plain function in a reused actor: a new actor a trial, or a trainer inside it, costs seconds where a probe
costs tenths of one. Arrays are in the object store before the first trial starts; a trial is told only where.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Outcome, Point, TestScore
from datas3_ray.training.keeper import Work, keeping
from datas3_ray.training.metrics import metric as find_metric
from datas3_ray.training.models import model as find_model
from datas3_ray.training.progress import Listener, SweepProgress

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig

TRIALS_A_GPU = 4


@dataclass(frozen=True)
class Trial:
    """A finished trial: what it found and where its checkpoint is."""

    point: Point
    outcome: Outcome
    checkpoint: str


def run_trials(
    name: str,
    points: Sequence[Point],
    config: SweepConfig,
    work: Work,
    *,
    storage: str,
    listener: Listener,
) -> list[Trial]:
    """Train every point and return the trials in the order of ``points``.

    Tune's folder is ``storage/name``: one folder a trial with its event files and checkpoint.

    Raises
    ------
    Datas3Error
        When a trial fails (the sentence names it and the cause) or the run is interrupted.
    """
    settings = config.model_dump(mode="json")
    trainable: Any = tune.with_parameters(_run_trial, settings=settings, keeper_name=name)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(config)),
        param_space={"point": tune.grid_search([_plain(point) for point in points])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=config.max_concurrent,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=True),
            callbacks=[_Listening(len(points), config.metric, listener)],
        ),
    )
    with keeping(work, name), _quiet_tune():
        grid = tuner.fit()
    results = {
        result.config["point"]["index"]: result for result in map(grid.__getitem__, range(len(grid))) if result.config
    }
    _raise_failures(points, results)
    return [_finished(point, results[point.index], storage, name, config.model) for point in points]


def folder_name(name: str, fingerprint: str) -> str:
    """A folder for one run of a sweep: runs never share one, or a broken run's curves would mix with the next one's."""
    return f"{_safe(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{fingerprint[:6]}"


def _run_trial(config: dict[str, Any], *, settings: dict[str, Any], keeper_name: str) -> None:
    """One trial, in a Tune actor."""
    from datas3_ray.training.config import SweepConfig

    sweep = SweepConfig.model_validate(settings)
    point = Point(**config["point"])
    model = find_model(sweep.model)
    keeper: Any = ray.get_actor(keeper_name)
    training, tests = ray.get(keeper.fetch.remote(point.selection, point.seed))
    with tempfile.TemporaryDirectory() as folder:
        outcome = model.train(point, sweep, training, tests, tune.report, folder)
        figures = {
            "best": {sweep.metric: outcome.validation},
            "test": {name: {sweep.metric: test.score} for name, test in outcome.tests.items()},
            # Text, so that TensorBoard's logger leaves the many recalls out.
            "outcome": json.dumps(asdict(outcome)),
        }
        tune.report(figures, checkpoint=tune.Checkpoint.from_directory(folder))


def _resources(config: SweepConfig) -> dict[str, float]:
    """One CPU a trial, and a share of a GPU where the cluster has any."""
    from datas3_ray.runtime import cluster_gpus

    gpus = cluster_gpus()
    if not gpus:
        return {"cpu": 1}
    most = config.max_concurrent or gpus * TRIALS_A_GPU
    return {"cpu": 1, "gpu": min(1.0, max(gpus / most, 1 / TRIALS_A_GPU))}


def _plain(point: Point) -> dict[str, Any]:
    return {**asdict(point), "hyperparameters": dict(point.hyperparameters)}


def _trial_name(trial: Any) -> str:
    point = Point(**trial.config["point"])
    grid = "-".join(f"{key}={value:g}" for key, value in point.hyperparameters.items())
    return _safe(f"{point.index:04d}-{point.selection}-{grid}-seed={point.seed}")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=\-]", "_", text)


def _finished(point: Point, result: Any, storage: str, name: str, model: str) -> Trial:
    found = json.loads(result.metrics["outcome"])
    outcome = Outcome(
        epoch=found["epoch"],
        epochs=found["epochs"],
        validation=found["validation"],
        validation_loss=found["validation_loss"],
        seconds=found["seconds"],
        tests={table: TestScore(**score) for table, score in found["tests"].items()},
    )
    # Ray gives the path inside the store's file system; the uri that opens from anywhere starts with the storage.
    inside = Path(result.checkpoint.path)
    checkpoint = "/".join((storage.rstrip("/"), name, *inside.parts[-2:], find_model(model).checkpoint))
    return Trial(point, outcome, checkpoint)


def _raise_failures(points: Sequence[Point], results: Mapping[int, Any]) -> None:
    for point in points:
        error = results[point.index].error if point.index in results else None
        if error is not None:
            raise Datas3Error(
                f"trial {point} failed, so the sweep stopped and no results were written: {_cause(error)}"
            )
    done = sum(1 for r in results.values() if r.metrics and "outcome" in r.metrics)
    if done < len(points):
        raise Datas3Error(f"the sweep was interrupted after {done} of {len(points)} trials; no results were written.")


def _cause(error: BaseException) -> str:
    """The trial's own exception: Ray wraps it, at times more than once."""
    while isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    return said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"


class _Listening(tune.Callback):
    """Tells the listener after every trial."""

    def __init__(self, total: int, metric: str, listener: Listener) -> None:
        self.total, self.metric, self.listener = total, metric, listener
        self.done = 0
        self.best: float | None = None
        self.best_trial: str | None = None

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        value = (trial.last_result.get("best") or {}).get(self.metric)
        if value is not None and (self.best is None or _better(self.metric, value, self.best)):
            self.best, self.best_trial = value, str(Point(**trial.config["point"]))
        self.listener(SweepProgress(self.done, self.total, self.metric, self.best, self.best_trial))

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the trials, and a terminal's line cannot be pickled.
        return {**self.__dict__, "listener": _nobody}


def _nobody(progress: SweepProgress) -> None:
    """Hears nothing."""


def _better(metric: str, value: float, than: float) -> bool:
    return value > than if find_metric(metric).higher_is_better else value < than


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence Tune's tables and log lines: progress has one line of ours, and a failure is raised as one sentence."""
    logger = logging.getLogger("ray.tune")
    level, output = logger.level, os.environ.get("RAY_AIR_NEW_OUTPUT")
    logger.setLevel(logging.CRITICAL)
    # Tune's newer console writer prints a header at any verbosity; the older one is silent at 0.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    try:
        yield
    finally:
        logger.setLevel(level)
        if output is None:
            del os.environ["RAY_AIR_NEW_OUTPUT"]
        else:
            os.environ["RAY_AIR_NEW_OUTPUT"] = output
