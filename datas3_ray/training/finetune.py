"""Fine-tuning a network on images: the loop that every model of images shares.

However many workers :mod:`datas3_ray.training.gang` starts, the global batches, their order and their augmentation are
the same, and so are the results, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from datas3_ray.training.contract import HyperParameter, Options, Outcome, Point, Report
from datas3_ray.training.gang import Gang
from datas3_ray.training.image_trainer import Trainer
from datas3_ray.training.job import Job, run_job

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.config import SweepConfig

HYPERPARAMETERS: Mapping[str, HyperParameter] = {
    "batch_size": HyperParameter(int, 1),
    "lr": HyperParameter(float, 0, minimum_allowed=False),
    "weight_decay": HyperParameter(float, 0, required=False),
}
"""Those of every model of images. ``batch_size`` counts the rows of a step over all workers."""


class FineTuneOptions(Options):
    """The ``options`` that every model of images has.

    Attributes
    ----------
    image_size : int
        Width and height of the square that the network sees, in pixels.
    augment : {"none", "flip", "crop"}
        Random changes of the training images: none, mirroring, or a random crop and mirroring.
    optimizer : {"adamw", "sgd"}
        SGD has a momentum of 0.9.
    schedule : {"constant", "cosine"}
        The learning rate over the budget; ``cosine`` falls to 0 at its end.
    threads : int
        CPU threads of one worker's arithmetic. Sums can differ in the last digits with their number.
    """

    image_size: int = Field(224, ge=8)
    augment: Literal["none", "flip", "crop"] = "crop"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"
    threads: int = Field(1, ge=1)


@dataclass(frozen=True)
class Network:
    """A module from images, float32 (b, 3, size, size), to outputs (b, k), and how its images are normalised.

    ``mean`` and ``std`` are those of each channel, of pixels in [0, 1]. ``plain`` gives the state dict that is saved:
    that of the architecture as its library makes it.
    """

    module: torch.nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def plain(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()


class ImageModel(Protocol):
    """What :func:`fine_tune` asks of a model, besides :class:`datas3_ray.training.contract.Model`."""

    name: str

    def network(self, config: SweepConfig, outputs: int, weights: Any) -> Network:
        """A network with so many outputs, from ``weights`` or, where they are None, from torch's current seed."""
        ...


def fine_tune(
    point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, path: str
) -> Outcome:
    """Train one trial on images; see :func:`datas3_ray.training.job.run_job`."""
    return run_job(_train, point, config, training, tests, report, path)


def _train(job: Job, gang: Gang, report: Report) -> tuple[Outcome, dict[str, Any]]:
    trainer = Trainer(job, gang)
    best, epochs = trainer.run(report)
    scores = {name: trainer.score(images) for name, images in job.tests.items()}
    return Outcome(best.number, epochs, best.validation, best.validation_loss, 0.0, scores), trainer.checkpoint(best)
