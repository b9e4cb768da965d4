"""One trial of a model that several workers can train: from references in Ray's object store to its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datas3_ray.training.contract import Outcome, Point, Report
from datas3_ray.training.gang import Gang, run_trial
from datas3_ray.training.image_data import ImageSplit
from datas3_ray.training.randomness import seeded

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to train one trial.

    Attributes
    ----------
    images, tests
        The pool's images, and those of each test table, as the model's ``prepare`` put them into the store.
    split : ImageSplit
        Which of the pool's images to learn from.
    start
        Weights or a network to start from; None for scratch.
    """

    point: Point
    config: SweepConfig
    images: Any
    split: ImageSplit
    tests: Mapping[str, Any]
    start: Any = None


Train = Callable[[Job, Gang, Report], tuple[Outcome, dict[str, Any]]]
"""One worker's part: the outcome without its seconds and the checkpoint, tensors on the CPU and plain values."""


def run_job(
    train: Train,
    point: Point,
    config: SweepConfig,
    training: Any,
    tests: Mapping[str, Any],
    report: Report,
    path: str,
) -> Outcome:
    """Train one trial, save its best epoch's network to ``path`` and score it on each test table.

    Parameters
    ----------
    train : callable
        A function of a module, which each of the ``config.workers`` workers calls.
    point, config
        The trial and its sweep.
    training
        References to the images, the split and the start.
    tests
        A reference for each test table.
    report : callable
        Called after each epoch with its figures.
    path : str
        A file that ``torch.load(path, weights_only=True)`` opens: ``state_dict``, and what is needed to use it.

    Raises
    ------
    Datas3Error
        When the loss becomes infinite or not a number, or no training image can be read.
    """
    return run_trial(partial(_work, train, point, config, list(training), dict(tests)), config, report, path)


def open_job(point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any]) -> Job:
    """The trial's data out of the object store; arrays stay in its shared memory."""
    import ray

    images, split, start = ray.get(list(training))
    return Job(point, config, images, split, {name: ray.get(ref) for name, ref in tests.items()}, start)


def _work(
    train: Train,
    point: Point,
    config: SweepConfig,
    training: list[Any],
    tests: dict[str, Any],
    gang: Gang,
    report: Report,
) -> tuple[Outcome, dict[str, Any]]:
    import torch

    torch.set_num_threads(config.own().threads)
    with seeded(point.seed):
        return train(open_job(point, config, training, tests), gang, report)
