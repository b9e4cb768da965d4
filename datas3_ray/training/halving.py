"""Early stopping of the worse trials, each compared only with those that were validated on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from datas3_ray.errors import Datas3Error
from datas3_ray.training.metrics import metric

if TYPE_CHECKING:
    from datas3_ray.training.tuning import Trial

Group = tuple[str, int]
"""A selection and a seed."""


class Halving(FIFOScheduler):
    """Asynchronous successive halving of the epochs within each selection and seed.

    Scores of two selections are on rows of their own, and so are those of two seeds: a rung that they shared would stop
    all trials of the harder one. The first trial to reach a rung passes it, so one of each group goes all the way. A
    trial whose epochs are used up is not stopped: all that is left is to score it.

    Parameters
    ----------
    name : str
        The metric that trials are compared by.
    epochs : mapping of (str, int) to int
        Of a trial of each group.
    """

    def __init__(self, name: str, epochs: Mapping[Group, int]) -> None:
        super().__init__()
        self.stopped: set[int] = set()  # indexes of trials; one that an interrupt has ended is not among them
        self._epochs = dict(epochs)
        self._rungs = {group: _within(name, count) for group, count in epochs.items()}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial beside the others of its group."""
        self._rungs[_group(trial)].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on."""
        group = _group(trial)
        if result.get("epoch", 0) >= self._epochs[group]:
            return TrialScheduler.CONTINUE
        decision = str(self._rungs[group].on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.config["point"]["index"])
        return decision

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that has not run."""
        self._rungs[_group(trial)].on_trial_remove(tune_controller, trial)


def check_scored(trials: list[Trial]) -> None:
    """Raise a Datas3Error where trials of a selection were stopped early in favour of others that then failed."""
    by_selection: dict[str, list[Trial]] = {}
    for trial in trials:
        by_selection.setdefault(trial.point.selection, []).append(trial)
    for selection, members in by_selection.items():
        stopped = sum(trial.status == "stopped" for trial in members)
        if not stopped or any(trial.outcome for trial in members):
            continue
        failed = [trial for trial in members if trial.status == "failed"]
        why = f", {len(failed)} failed (trial {failed[0].point}: {failed[0].error.rstrip('.')})" if failed else ""
        raise Datas3Error(
            f"no trial of selection '{selection}' ended with a score ({stopped} stopped early{why}), so no results "
            "were written; leave out the points that fail, or use search: grid."
        )


def _within(name: str, epochs: int) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr="epoch",
        metric=f"validation/{name}",
        mode="max" if metric(name).higher_is_better else "min",
        max_t=max(1, epochs),
        grace_period=1,
        reduction_factor=3,
        stop_last_trials=False,
    )


def _group(trial: Any) -> Group:
    point = trial.config["point"]
    return point["selection"], point["seed"]
