"""Contrastive training of an image-text model: a trial from its references to its outcome.

However many workers :mod:`datas3_ray.training.gang` starts, the global batches, their loss and their order are the
same, and so are the results, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from datas3_ray.training.clip_data import Captioned, TestImages
from datas3_ray.training.clip_trainer import Trainer
from datas3_ray.training.contract import Outcome, Point, Report
from datas3_ray.training.gang import Gang, run_trial
from datas3_ray.training.image_data import ImageSplit
from datas3_ray.training.randomness import seeded

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to train one trial; ``model`` is None where it starts from scratch."""

    point: Point
    config: SweepConfig
    images: Captioned
    split: ImageSplit
    tests: Mapping[str, TestImages]
    model: Any = None


def train_clip(
    point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, path: str
) -> Outcome:
    """Train one trial, save its best epoch's network to ``path`` and score it on each test table.

    Parameters
    ----------
    point, config
        The trial and its sweep; ``config.workers`` processes train it.
    training, tests
        References as :mod:`datas3_ray.training.clip_data` makes them.
    report : callable
        Called after each epoch with its figures.
    path : str
        A checkpoint of open_clip's: ``state_dict``, and what is needed to use it.

    Raises
    ------
    Datas3Error
        When the loss becomes infinite or not a number, or the training images cannot be read.
    """
    return run_trial(partial(_work, point, config, list(training), dict(tests)), config, report, path)


def _work(
    point: Point, config: SweepConfig, training: list[Any], tests: dict[str, Any], gang: Gang, report: Report
) -> tuple[Outcome, dict[str, Any]]:
    return train(open_job(point, config, training, tests), gang, report)


def open_job(point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any]) -> Job:
    """The trial's data out of the object store; arrays stay in its shared memory."""
    import ray

    images, split, model = ray.get(list(training))
    return Job(point, config, images, split, {name: ray.get(ref) for name, ref in tests.items()}, model)


def train(job: Job, gang: Gang, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """One worker's part of a trial; what it returns, and reports, is the same in all workers.

    Returns
    -------
    Outcome
        Without its seconds.
    dict
        The checkpoint: tensors on the CPU and plain values.
    """
    torch.set_num_threads(job.config.own().threads)
    with seeded(job.point.seed):
        trainer = Trainer(job, gang)
        best, epochs = trainer.run(report)
        scores = {name: trainer.score(test) for name, test in job.tests.items()}
    outcome = Outcome(best.number, epochs, trainer.worth(best), best.validation_loss, 0.0, scores)
    return outcome, trainer.checkpoint(best)
