"""Contrastive training of an image-text model: a trial from its references to its outcome.

However many workers :mod:`datas3_ray.training.gang` starts, the global batches, their loss and their order are the
same, and so are the results, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datas3_ray.training.clip_trainer import Trainer
from datas3_ray.training.contract import Outcome, Point, Report
from datas3_ray.training.gang import Gang
from datas3_ray.training.job import Job, run_job

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig


def train_clip(
    point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, path: str
) -> Outcome:
    """Train one trial on images and captions; see :func:`datas3_ray.training.job.run_job`.

    The references are those that :mod:`datas3_ray.training.clip_data` makes, and the checkpoint is one of open_clip's.
    """
    return run_job(_train, point, config, training, tests, report, path)


def _train(job: Job, gang: Gang, report: Report) -> tuple[Outcome, dict[str, Any]]:
    trainer = Trainer(job, gang)
    best, epochs = trainer.run(report)
    scores = {name: trainer.score(test) for name, test in job.tests.items()}
    return Outcome(best.number, epochs, trainer.worth(best), best.validation_loss, 0.0, scores), trainer.checkpoint(
        best
    )
