"""One worker's network, images and optimiser, and the epochs it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Report, TestScore
from datas3_ray.training.epochs import check_loss, parameter_groups, steps, train_epochs
from datas3_ray.training.image_data import in_memory
from datas3_ray.training.loader import Loader, LoaderSettings, decoding_tasks
from datas3_ray.training.metrics import metric as find_metric
from datas3_ray.training.metrics import recode
from datas3_ray.training.pixels import margin
from datas3_ray.training.randomness import epoch_seed
from datas3_ray.training.scoring import score_classes, score_numbers
from datas3_ray.training.target import Target

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.finetune import FineTuneOptions, Network
    from datas3_ray.training.gang import Gang
    from datas3_ray.training.image_data import LabelledImages
    from datas3_ray.training.job import Job
    from datas3_ray.training.loader import Batch

MOMENTUM = 0.9
"""Of SGD."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. Losses are means a row: cross-entropy in nats, or the standardised target's square error."""

    number: int
    train_loss: float
    validation_loss: float
    validation: float


@dataclass
class _Predicted:
    """Outputs of readable rows: their positions (m,), predictions (m,) and the loss's sum."""

    rows: np.ndarray
    values: np.ndarray
    loss: float


class Trainer:
    """One worker's network, loaders and optimiser."""

    def __init__(self, job: Job, gang: Gang) -> None:
        from datas3_ray.training.models import model as find_model

        self.job, self.config, self.split, self.gang = job, job.config, job.split, gang
        self.options: FineTuneOptions = job.config.own()
        self.regression = job.config.task == "regression"
        self.images, self.train_rows, self.validation_rows = in_memory(
            job.images, self.split, self._bytes(), self.config.cache_gb * 2**30
        )
        self.y, self.target = self._labels()
        self.weights = np.zeros(len(self.images))
        self.weights[self.train_rows] = 1.0 if self.split.weights is None else self.split.weights
        sampling = self.config.sampling
        self.loader = self._loader(self.images, self.train_rows, sampling, self.split.draws)
        if not len(self.loader):
            raise Datas3Error(
                f"none of the {len(self.train_rows)} training images of selection '{job.point.selection}' can be read "
                f"('{self.images.rows.ids[int(self.train_rows[0])]}' for one); check that their files are still there."
            )
        self.validation = self._loader(self.images, self.validation_rows)
        model: Any = find_model(self.config.model)
        outputs = 1 if self.regression else len(self.split.classes)
        self.network: Network = model.network(self.config, outputs, job.start)
        self.device = gang.device()
        self.module = gang.together(_on(self.network.module, self.device))
        self.mean, self.std = _scale(self.network, self.device)
        self.takes_no_rows = _counts_rows(self.network.module)
        self.optimizer = self._optimizer()
        self.steps = 0

    # What is learnt from

    def _bytes(self) -> int:
        """Of one decoded image in memory."""
        edge = margin(self.options.image_size) if self.options.augment == "crop" else self.options.image_size
        return edge * edge * 3

    def _labels(self) -> tuple[np.ndarray, Target]:
        """What the network is to give for each row of ``images``, as codes or standardised numbers."""
        if self.regression:
            target = Target.of(self.images.y[self.train_rows])
            return target.scaled(self.images.y), target
        return recode(self.images.y, self.images.classes, self.split.classes), Target()

    def _loader(
        self, images: LabelledImages, only: np.ndarray | None, sampling: str = "shuffle", draws: int | None = None
    ) -> Loader:
        own = images is self.images
        room = int(self.config.cache_gb * 2**30)
        if not own and len(self.images) * self._bytes() <= room:
            room -= len(self.images) * self._bytes()
        settings = LoaderSettings(
            size=self.options.image_size,
            batch_size=int(self.job.point.hyperparameters["batch_size"]),
            seed=self.job.point.seed,
            augment=self.options.augment,
            sampling=sampling,
            cache_bytes=room,
            draws=draws,
            tasks=decoding_tasks(self.config) if self.gang.device() != "cpu" else 0,
        )
        classes = images.y if sampling == "balanced" else None
        return Loader(images.rows, settings, classes=classes, rank=self.gang.rank, world=self.gang.world, only=only)

    # Epochs

    def run(self, report: Report) -> tuple[Epoch, int]:
        """Train until the budget or the patience is used up; leaves the network as it was after its best epoch."""

        def tell(epoch: Epoch) -> None:
            figures = {"loss": epoch.validation_loss, self.config.metric: epoch.validation}
            report({"epoch": epoch.number, "train": {"loss": epoch.train_loss}, "validation": figures})

        module = self.network.module
        return train_epochs(self.config, len(self.loader), self._epoch, lambda epoch: epoch.validation, module, tell)

    def _epoch(self, number: int, limit: int) -> Epoch:
        import torch

        self.module.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        torch.manual_seed(epoch_seed(self.job.point.seed, number, self.gang.rank))
        for batch in self.loader.epoch(number, limit):
            total += self._step(batch)
        loss, rows = self.gang.sum(total).tolist()
        check_loss(loss, number)
        predicted = self._predict(self.validation, self.y)
        check_loss(predicted.loss, number)
        truth = self.images.y[predicted.rows] if self.regression else self.y[predicted.rows]
        score = find_metric(self.config.metric)(predicted.values, truth)
        return Epoch(number, loss / max(rows, 1), predicted.loss / len(predicted.rows), score)

    def _step(self, batch: Batch) -> torch.Tensor:
        """One step; the sum of the rows' weighted losses and the number of rows, of this worker."""
        import torch

        self._schedule()
        losses = self._losses(batch, self.y)
        weighted = losses * torch.from_numpy(self.weights[batch.rows]).to(self.device, losses.dtype)
        self.optimizer.zero_grad(set_to_none=True)
        # Workers' gradients are averaged, so each counts as many times as there are workers.
        (weighted.sum() * (self.gang.world / len(batch.everyone))).backward()
        self.optimizer.step()
        self.steps += 1
        return torch.stack(
            [weighted.detach().sum().double(), torch.tensor(float(len(batch)), device=self.device).double()]
        )

    def _losses(self, batch: Batch, y: np.ndarray) -> torch.Tensor:
        return self._loss_of(self._outputs(batch), y[batch.rows])

    def _loss_of(self, outputs: torch.Tensor, y: np.ndarray) -> torch.Tensor:
        """Each row's loss, float32 (b,)."""
        import torch

        truth = torch.from_numpy(y).to(self.device)
        if self.regression:
            return (outputs[:, 0] - truth).square()
        return torch.nn.functional.cross_entropy(outputs, truth, reduction="none")

    def _outputs(self, batch: Batch) -> torch.Tensor:
        """The network's outputs, float32 (b, k); bfloat16 inside on a GPU."""
        import torch

        images = batch.images.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
        blank = not len(images) and not self.takes_no_rows
        if blank:
            # A worker without a row of the last batch takes its part in averaging all the same.
            images = images.new_zeros((1, *images.shape[1:]))
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
            outputs = self.module(images)
        return outputs.float()[:0] if blank else outputs.float()

    def _predict(self, loader: Loader, y: np.ndarray | None = None) -> _Predicted:
        """Predictions of all workers for a loader's rows, in the order of positions; with the loss where ``y`` is."""
        import torch

        self.module.eval()
        rows: list[np.ndarray] = []
        values: list[np.ndarray] = []
        loss = 0.0
        module, self.module = self.module, self.network.module  # each worker its own batches, and no gradients
        with torch.no_grad():
            for batch in loader.plain():
                if not len(batch):
                    continue
                outputs = self._outputs(batch)
                if y is not None:
                    loss += float(self._loss_of(outputs, y[batch.rows]).double().sum())
                found = outputs[:, 0] if self.regression else outputs.argmax(1)
                rows.append(batch.rows)
                values.append(found.cpu().numpy())
        self.module = module
        parts = self.gang.gather((_joined(rows, np.int64), _joined(values, np.float64), loss))
        every = np.concatenate([part[0] for part in parts])
        order = np.argsort(every, kind="stable")
        found_values = np.concatenate([part[1] for part in parts])[order]
        found_values = self.target.unscaled(found_values) if self.regression else found_values.astype(np.int64)
        if not len(every):
            raise Datas3Error(
                f"none of the {loader.unreadable} validation or test images can be read; check that their files are "
                "still there."
            )
        return _Predicted(every[order], found_values, math.fsum(part[2] for part in parts))

    # Afterwards

    def score(self, images: LabelledImages) -> TestScore:
        """The network on a test table."""
        loader = self._loader(images, None)
        predicted = self._predict(loader)
        truth = images.y[predicted.rows]
        if self.regression:
            score = score_numbers(predicted.values, truth, self.config.metric)
        else:
            score = score_classes(predicted.values, truth, images.classes, self.split.classes, self.config.metric)
        if loader.unreadable:
            score.figures["unreadable"] = float(loader.unreadable)
        return score

    def checkpoint(self, best: Epoch) -> dict[str, Any]:
        """What is saved: tensors on the CPU and plain values."""
        return {
            "model": self.config.model,
            "options": self.options.model_dump(),
            "task": self.config.task,
            "classes": list(self.split.classes),
            "target": {"mean": self.target.mean, "std": self.target.std},
            "image_size": self.options.image_size,
            "mean": list(self.network.mean),
            "std": list(self.network.std),
            "epoch": best.number,
            "state_dict": {name: tensor.detach().cpu() for name, tensor in self.network.plain().items()},
        }

    def _optimizer(self) -> torch.optim.Optimizer:
        import torch

        decay = float(self.job.point.hyperparameters.get("weight_decay", self.config.weight_decay))
        groups = parameter_groups(self.network.module, decay)
        lr = float(self.job.point.hyperparameters["lr"])
        if self.options.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)
        return torch.optim.AdamW(groups, lr=lr)

    def _schedule(self) -> None:
        """Set the learning rate of the step to come."""
        if self.options.schedule == "constant":
            return
        if not self.steps:
            self.all_steps = steps(self.config, len(self.loader), self.loader.settings.batch_size)
        lr = float(self.job.point.hyperparameters["lr"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * self.steps / self.all_steps)) / 2


def _scale(network: Network, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of 8-bit pixels, float32 (1, 3, 1, 1)."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(device) * 255 for values in (network.mean, network.std))
    return mean, std


def _counts_rows(module: torch.nn.Module) -> bool:
    """Whether it has batch statistics, in which an image that is none would count; convolutions take no rows at all."""
    import torch

    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _on(module: torch.nn.Module, device: str) -> torch.nn.Module:
    import torch

    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate(parts).astype(kind) if parts else np.empty(0, kind)
