"""Running a sweep's trials with Ray Tune: reused actors, quiet, a folder that TensorBoard opens.

A trial is a plain function in a reused actor: a new actor a trial, or a trainer inside it, costs seconds where a probe
costs tenths of one. A model that several workers train together starts them itself. Arrays are in the object store
before the first trial starts; a trial is told only where.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Outcome, Point
from datas3_ray.training.gang import standing
from datas3_ray.training.gang import use as use_workers
from datas3_ray.training.halving import Halving, check_scored
from datas3_ray.training.keeper import Work, keeping
from datas3_ray.training.metrics import metric as find_metric
from datas3_ray.training.models import model as find_model
from datas3_ray.training.progress import SHOWN, Listener, SweepProgress, TrialState
from datas3_ray.training.records import checkpoint_uri, keep_trial, read_trial

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig

TRIALS_A_GPU = 4
LONGEST_ERROR = 2000


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: what it found and where its checkpoint is, or why it failed.

    ``status`` is ``done``; ``stopped``, where the search gave up on it (``validation`` is then its last score); or
    ``failed``.
    """

    point: Point
    outcome: Outcome | None
    checkpoint: str = ""
    status: str = "done"
    error: str = ""
    validation: float | None = None

    @property
    def found(self) -> Outcome:
        """The outcome of a trial that is done."""
        if self.outcome is None:
            raise ValueError(f"trial {self.point} has no outcome: it {self.status}")
        return self.outcome


def run_trials(
    name: str,
    points: Sequence[Point],
    config: SweepConfig,
    work: Work,
    *,
    storage: str,
    listener: Listener,
) -> list[Trial]:
    """Train every point that has no record yet, and return the trials in the order of ``points``.

    Tune's folder is ``storage/name``: one folder a trial with its event files, and ``trials`` with the checkpoints and
    records. A trial that fails is tried again ``config.retries`` times; then it counts as failed, and the others go on.

    Raises
    ------
    Datas3Error
        When every trial fails (the sentence names the first and its cause), a selection is left without a score, or
        the run is interrupted.
    """
    root = f"{storage.rstrip('/')}/{name}"
    file = find_model(config.model).checkpoint
    recorded = {point.index: read_trial(root, point.index) for point in points}
    trials = {
        point.index: Trial(point, outcome, checkpoint_uri(root, point.index, file))
        for point in points
        if (outcome := recorded[point.index]) is not None
    }
    left = [point for point in points if point.index not in trials]
    watch = _Watch(len(points), config.metric, listener, trials.values())
    if left:
        halving = Halving(config.metric, work.epochs) if config.search == "asha" else None
        results = _tune(name, left, config, work, storage, root, watch, halving)
        for point in left:
            given_up = halving is not None and point.index in halving.stopped
            trials[point.index] = _ended(point, results.get(point.index), root, file, config.metric, given_up)
    ended = [trials[point.index] for point in points]
    check_scored(ended)
    failed = [trial for trial in ended if trial.status == "failed"]
    if failed and not any(trial.outcome for trial in ended):
        raise Datas3Error(
            f"trial {failed[0].point} failed, as all {len(ended)} did, so no results were written: {failed[0].error}"
        )
    return ended


def folder_name(name: str, fingerprint: str) -> str:
    """A folder for one sweep with its settings: the same sweep started again goes on in it."""
    return f"{_safe(name)}-{fingerprint}"


def _tune(
    name: str,
    points: Sequence[Point],
    config: SweepConfig,
    work: Work,
    storage: str,
    root: str,
    watch: _Watch,
    halving: Halving | None,
) -> dict[int, Any]:
    """Tune's result of each point, by the point's index."""
    at_once = _at_once(config)
    with keeping(work, name), _quiet_tune(), _same_signals(), _workers(config, min(at_once or 1, len(points))) as posts:
        grid = _tuner(name, points, config, storage, root, watch, halving, posts, at_once).fit()
    return {
        result.config["point"]["index"]: result for result in map(grid.__getitem__, range(len(grid))) if result.config
    }


def _workers(config: SweepConfig, runs: int) -> AbstractContextManager[list[Any]]:
    """Runs of workers for the trials that are trained at once, where a trial has several."""
    return standing(config, runs) if config.workers > 1 else nullcontext([])


def _tuner(
    name: str,
    points: Sequence[Point],
    config: SweepConfig,
    storage: str,
    root: str,
    watch: _Watch,
    halving: Halving | None,
    posts: list[Any],
    at_once: int | None,
) -> tune.Tuner:
    settings = config.model_dump(mode="json")
    trainable: Any = tune.with_parameters(_run_trial, settings=settings, keeper_name=name, root=root, posts=posts)
    return tune.Tuner(
        tune.with_resources(trainable, _resources(config)),
        param_space={"point": tune.grid_search([_plain(point) for point in points])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=at_once,
            scheduler=halving,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.retries),
            callbacks=[watch],
        ),
    )


def _run_trial(
    config: dict[str, Any], *, settings: dict[str, Any], keeper_name: str, root: str, posts: list[Any]
) -> None:
    """One trial, in a Tune actor."""
    from datas3_ray.training.config import SweepConfig

    use_workers(posts)

    sweep = SweepConfig.model_validate(settings)
    point = Point(**config["point"])
    model = find_model(sweep.model)
    keeper: Any = ray.get_actor(keeper_name)
    training, tests = ray.get(keeper.fetch.remote(point.selection, point.seed))
    with tempfile.TemporaryDirectory() as folder:
        outcome = model.train(point, sweep, training, tests, tune.report, folder)
        keep_trial(root, point.index, folder, outcome)
    tune.report(
        {
            "best": {sweep.metric: outcome.validation},
            "test": {name: {sweep.metric: test.score} for name, test in outcome.tests.items()},
            # Text, so that TensorBoard's logger leaves the many recalls out.
            "outcome": json.dumps(asdict(outcome)),
        }
    )


def _at_once(config: SweepConfig) -> int | None:
    """Trials side by side: as many as asked for, but never so many that their workers wait for each other."""
    from datas3_ray.runtime import cluster_cpus

    if config.workers == 1:
        return config.max_concurrent
    most = max(1, cluster_cpus() // config.workers)
    return min(most, config.max_concurrent or most)


def _resources(config: SweepConfig) -> dict[str, float]:
    """One CPU a trial and a share of a GPU where the cluster has any; where workers train, they hold what is needed."""
    from datas3_ray.runtime import cluster_gpus

    if config.workers > 1:
        return {"memory": 1}  # a byte: no CPU, and Ray takes no trial that needs nothing
    gpus = cluster_gpus()
    if not gpus or not config.gpus:
        return {"cpu": 1}
    most = config.max_concurrent or gpus * TRIALS_A_GPU
    return {"cpu": 1, "gpu": min(config.gpus, max(gpus / most, 1 / TRIALS_A_GPU))}


def _plain(point: Point) -> dict[str, Any]:
    return {**asdict(point), "hyperparameters": dict(point.hyperparameters)}


def _trial_name(trial: Any) -> str:
    point = Point(**trial.config["point"])
    grid = "-".join(f"{key}={value:g}" for key, value in point.hyperparameters.items())
    return _safe(f"{point.index:04d}-{point.selection}-{grid}-seed={point.seed}")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=\-]", "_", text)


def _ended(point: Point, result: Any, root: str, file: str, metric: str, given_up: bool) -> Trial:
    outcome = read_trial(root, point.index)
    if outcome is not None:
        return Trial(point, outcome, checkpoint_uri(root, point.index, file))
    if result is None:
        raise Datas3Error(
            f"the sweep was interrupted before trial {point} had run; start it again, and it goes on from there."
        )
    if result.error is not None:
        return Trial(point, None, status="failed", error=_cause(result.error)[:LONGEST_ERROR])
    last = ((result.metrics or {}).get("validation") or {}).get(metric)
    if not given_up or last is None:
        raise Datas3Error(
            f"the sweep was interrupted while trial {point} ran; start it again, and it goes on from there."
        )
    return Trial(point, None, status="stopped", validation=float(last))


def _cause(error: BaseException) -> str:
    """The trial's own exception: Ray wraps it, at times more than once."""
    while isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    return said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"


class _Watch(tune.Callback):
    """Tells the listener what every trial does."""

    def __init__(self, total: int, metric: str, listener: Listener, before: Any) -> None:
        self.total, self.metric, self.listener = total, metric, listener
        self.done = self.failed = 0
        self.best: float | None = None
        self.best_trial: str | None = None
        self.running: dict[str, TrialState] = {}
        self.ended: list[TrialState] = []
        for trial in before:
            self.done += 1
            self._consider(trial.found.validation, str(trial.point))
        if self.done:
            self._tell()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._runs(trial, TrialState(_name(trial), "running"))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" not in result:
            return
        loss, validation = (result.get(part) or {} for part in ("train", "validation"))
        figures = result["epoch"], loss.get("loss"), validation.get(self.metric)
        self._runs(trial, TrialState(_name(trial), "running", *figures))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        value = (trial.last_result.get("best") or {}).get(self.metric)
        self._consider(value, _name(trial))
        self._ends(trial, "done" if value is not None else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.status == "ERROR":  # a trial that will be tried again is pending
            self.failed += 1
            self._ends(trial, "failed")

    def _consider(self, value: float | None, name: str) -> None:
        if value is not None and (self.best is None or _better(self.metric, value, self.best)):
            self.best, self.best_trial = value, name

    def _runs(self, trial: Any, state: TrialState) -> None:
        self.running[trial.trial_id] = state
        self._tell()

    def _ends(self, trial: Any, how: str) -> None:
        state = self.running.pop(trial.trial_id, TrialState(_name(trial), how))
        self.ended = [TrialState(state.name, how, state.epoch, state.loss, state.validation), *self.ended][:SHOWN]
        self.done += 1
        self._tell()

    def _tell(self) -> None:
        shown = (*self.running.values(), *self.ended)
        progress = SweepProgress(self.done, self.total, self.metric, self.best, self.best_trial, self.failed, shown)
        self.listener(progress)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the trials, and a terminal's table cannot be pickled.
        return {**self.__dict__, "listener": _nobody}


def _name(trial: Any) -> str:
    return str(Point(**trial.config["point"]))


def _nobody(progress: SweepProgress) -> None:
    """Hears nothing."""


def _better(metric: str, value: float, than: float) -> bool:
    return value > than if find_metric(metric).higher_is_better else value < than


@contextmanager
def _same_signals() -> Iterator[None]:
    """Signals are handled afterwards as before: Tune leaves its own handlers behind, which swallow the next Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence Tune's tables and log lines: progress has one line of ours, and a failure is raised as one sentence."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # Tune's newer console writer prints a header at any verbosity; the older one is silent at 0. A trial's last report
    # has its scores and no epoch, which a scheduler need not see.
    changed = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
