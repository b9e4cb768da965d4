"""One worker's part in the contrastive training of an image-text model.

The loss of a step is that of its global batch, every pair against all others, however many workers share it: each
worker encodes its part and gets the others' vectors. Gradients flow through a worker's own vectors only, which gives
each parameter's gradient once over all workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datas3_ray.errors import Datas3Error
from datas3_ray.training import clip_scoring as scoring
from datas3_ray.training.clip_architecture import Architecture, Eye
from datas3_ray.training.clip_data import Captioned, TestImages
from datas3_ray.training.contract import Report, TestScore
from datas3_ray.training.epochs import check_loss, parameter_groups, steps, train_epochs
from datas3_ray.training.gang import Gang
from datas3_ray.training.image_data import in_memory
from datas3_ray.training.loader import Batch, Loader, LoaderSettings, decoding_tasks
from datas3_ray.training.pixels import margin
from datas3_ray.training.randomness import epoch_seed
from datas3_ray.training.scoring import score_classes

if TYPE_CHECKING:
    from datas3_ray.training.job import Job

BETAS, EPSILON = (0.9, 0.98), 1e-6
"""Of AdamW, as image-text transformers are usually trained."""
MOST_SCALE = math.log(100)
"""What the logarithm of the learnt scale is kept below."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean losses of a pair in nats, and the recall of held-out pairs by direction."""

    number: int
    train_loss: float
    validation_loss: float
    recall: Mapping[str, float]


class Towers(torch.nn.Module):
    """The two encoders in one call, so that their gradients are averaged together."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for unused in ("text_decoder", "logit_bias"):  # no part of the contrastive loss
            part = getattr(model, unused, None)
            if part is not None:
                part.requires_grad_(False)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of unit length of images (b, 3, size, size) and tokens (b, L), (b, d) each, and the scale."""
        count, scale = len(images), self.model.logit_scale.exp()
        if not count:  # networks cannot take no images; one that is then left out makes every gradient 0
            images, tokens = images.new_zeros(1, *images.shape[1:]), tokens.new_zeros(1, *tokens.shape[1:])
        return self.images(images)[:count], self.texts(tokens)[:count], scale

    def images(self, images: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.model.encode_image(images, normalize=True)
        return vectors

    def texts(self, tokens: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.model.encode_text(tokens, normalize=True)
        return vectors


def gathered(gang: Gang, mine: torch.Tensor, most: int) -> torch.Tensor:
    """All workers' rows (B, k) by rank, of this one's (b, k); no worker has more than ``most``.

    Only this worker's rows carry gradients.
    """
    if gang.world == 1:
        return mine
    # A sum with zeros is the one exchange that every backend can do on CPUs and GPUs; the last column says what is
    # a row.
    rows = mine.new_zeros(gang.world, most, mine.shape[1] + 1)
    rows[gang.rank, : len(mine), :-1] = mine.detach()
    rows[gang.rank, : len(mine), -1] = 1
    parts = [part[part[:, -1] > 0, :-1] for part in gang.sum(rows)]
    parts[gang.rank] = mine
    return torch.cat(parts)


def times_gradient(values: torch.Tensor, factor: float) -> torch.Tensor:
    """The same values, whose gradients are multiplied on their way back."""
    return values if factor == 1 else values.detach() + factor * (values - values.detach())


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Of step ``step``, from 0, of ``steps``: a straight line up to the peak, then half a cosine down to 0.

    >>> [round(learning_rate(1.0, step, 6, 2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


class Trainer:
    """One worker's network, loaders and optimiser."""

    def __init__(self, job: Job, gang: Gang) -> None:
        self.job, self.config, self.gang = job, job.config, gang
        self.options = job.config.own()
        architecture = Architecture(self.options.architecture, self.options.image_size)
        self.towers = Towers(job.start if job.start is not None else architecture.scratch())
        self.eye = Eye.of(self.towers.model)
        self.device = gang.device()
        self.towers.to(self.device)
        self.module = gang.together(self.towers)
        self.mean, self.std = (
            torch.tensor(values).view(1, 3, 1, 1).to(self.device) * 255 for values in (self.eye.mean, self.eye.std)
        )
        self._open_loaders()
        self.optimizer = self._optimizer()
        self.steps = 0

    def _open_loaders(self) -> None:
        """The training and validation rows' loaders, over the pool's pixels where they fit in memory together."""
        split = self.job.split
        self.images, rows, held_out = in_memory(self.job.images, split, self._bytes(), self.config.cache_gb * 2**30)
        self.weights = np.zeros(len(self.images), dtype=np.float32)
        self.weights[rows] = 1.0 if split.weights is None else split.weights
        self.loader = self._loader(self.images, rows, self.config.sampling, split.draws)
        self.validation = self._loader(self.images, held_out)
        if len(self.loader) < 2:
            raise Datas3Error(
                f"{self.loader.unreadable} of the {len(rows)} training images of selection "
                f"'{self.job.point.selection}' cannot be read, which leaves {len(self.loader)}; check that their files "
                "are still there."
            )

    def _bytes(self) -> int:
        """Of one decoded image in memory."""
        edge = margin(self.eye.size) if self.options.augment == "crop" else self.eye.size
        return int(edge * edge * 3)

    def _loader(
        self, images: Captioned, only: np.ndarray | None, sampling: str = "shuffle", draws: int | None = None
    ) -> Loader:
        room = int(self.config.cache_gb * 2**30)
        if images is not self.images and len(self.images) * self._bytes() <= room:
            room -= len(self.images) * self._bytes()
        settings = LoaderSettings(
            size=self.eye.size,
            batch_size=int(self.job.point.hyperparameters["batch_size"]),
            seed=self.job.point.seed,
            augment=self.options.augment,
            sampling=sampling,
            cache_bytes=room,
            draws=draws,
            tasks=decoding_tasks(self.config) if self.device != "cpu" else 0,
        )
        return Loader(images.rows, settings, rank=self.gang.rank, world=self.gang.world, only=only)

    # Epochs

    def run(self, report: Report) -> tuple[Epoch, int]:
        """Train until the budget or the patience is used up; leaves the network as it was after its best epoch."""

        def tell(epoch: Epoch) -> None:
            report(self._figures(epoch))

        return train_epochs(self.config, len(self.loader), self._epoch, self.worth, self.towers, tell)

    def worth(self, epoch: Epoch) -> float:
        """What epochs are chosen by. Held-out rows need no classes, so image-to-text recall stands for zero-shot."""
        return epoch.recall.get(self.config.metric, epoch.recall[scoring.IMAGE_TO_TEXT])

    def _figures(self, epoch: Epoch) -> dict[str, Any]:
        return {
            "epoch": epoch.number,
            "train": {"loss": epoch.train_loss},
            "validation": {"loss": epoch.validation_loss, **epoch.recall, self.config.metric: self.worth(epoch)},
        }

    def _epoch(self, number: int, limit: int) -> Epoch:
        self.module.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        torch.manual_seed(epoch_seed(self.job.point.seed, number, self.gang.rank))
        for batch in self.loader.epoch(number, limit):
            if len(batch.everyone) > 1:  # a pair alone has nothing to be told from
                total += self._step(batch)
        loss, rows = total.tolist()
        check_loss(loss, number)
        images, texts, text_of = self._pairs(self.validation, self.images)
        if not len(images):
            raise Datas3Error(
                f"none of the {self.validation.unreadable} validation images can be read; check that their files are "
                "still there."
            )
        with torch.no_grad():
            scale = float(self.towers.model.logit_scale.exp())
            held_out = scoring.held_out_loss(images, texts[torch.from_numpy(text_of).to(self.device)], scale)
        check_loss(held_out, number)
        found = scoring.retrieve(images, texts, text_of)
        recall = {name: found.recall(name) for name in (scoring.IMAGE_TO_TEXT, scoring.TEXT_TO_IMAGE)}
        return Epoch(number, loss / max(rows, 1), held_out, recall)

    def _step(self, batch: Batch) -> torch.Tensor:
        """One step; the sum of the global batch's weighted losses and its number of rows."""
        self._schedule()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
            images, texts, scale = self.module(self._seen(batch), self._tokens(self.images.text[batch.rows]))
        weights = torch.from_numpy(self.weights[batch.rows]).to(self.device)
        mine = torch.cat([images.float(), texts.float(), weights[:, None]], 1)
        # The workers' gradients are averaged: those of the vectors, of which each worker has a part, count as many
        # times as there are workers; that of the scale is whole in every one.
        world = self.gang.world
        rows = gathered(self.gang, times_gradient(mine, world), -(-len(batch.everyone) // world))
        size = images.shape[1]
        losses = scoring.contrastive_losses(rows[:, :size], rows[:, size:-1], scale.float()) * rows[:, -1].detach()
        self.optimizer.zero_grad(set_to_none=True)
        (losses.sum() / max(len(losses), 1)).backward()
        self.optimizer.step()
        self.steps += 1
        with torch.no_grad():
            self.towers.model.logit_scale.clamp_(0, MOST_SCALE)
        total = losses.detach().sum().double()
        return torch.stack([total, torch.tensor(float(len(losses)), device=self.device).double()])

    def _seen(self, batch: Batch) -> torch.Tensor:
        """A batch's images as the network takes them, float32."""
        return batch.images.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)

    def _tokens(self, text: np.ndarray, images: Captioned | None = None) -> torch.Tensor:
        """Tokens of captions, by their codes, int64 (b, L)."""
        tokens = (images or self.images).tokens[text]
        return torch.from_numpy(tokens.astype(np.int64)).to(self.device)

    # Vectors

    @torch.no_grad()
    def _encode_images(self, loader: Loader) -> tuple[np.ndarray, torch.Tensor]:
        """All workers' readable rows of a loader, in the order of positions (n,), and their vectors (n, d)."""
        self.towers.eval()
        rows, vectors = [np.empty(0, np.int64)], []
        for batch in loader.plain():
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
                vectors.append(self.towers.images(self._seen(batch)).float().cpu().numpy())
            rows.append(batch.rows)
        parts = self.gang.gather((np.concatenate(rows), np.concatenate(vectors) if vectors else None))
        every = np.concatenate([part[0] for part in parts])
        found = [part[1] for part in parts if part[1] is not None]
        order = np.argsort(every, kind="stable")
        together = np.concatenate(found)[order] if found else np.empty((0, 1), np.float32)
        return every[order], torch.from_numpy(together).to(self.device)

    @torch.no_grad()
    def _encode_texts(self, tokens: np.ndarray) -> torch.Tensor:
        """Vectors (m, d) of tokens (m, L), of which each worker encodes a part."""
        self.towers.eval()
        size = self.loader.settings.batch_size
        mine = np.array_split(tokens, self.gang.world)[self.gang.rank]
        vectors = []
        for start in range(0, len(mine), size):
            part = torch.from_numpy(mine[start : start + size].astype(np.int64)).to(self.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
                vectors.append(self.towers.texts(part).float().cpu().numpy())
        parts = self.gang.gather(np.concatenate(vectors) if vectors else None)
        return torch.from_numpy(np.concatenate([part for part in parts if part is not None])).to(self.device)

    def _pairs(self, loader: Loader, images: Captioned) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Vectors of a loader's images (n, d), of their different captions (m, d), and each image's caption (n,).

        Captions that the network cannot tell apart, because their tokens are the same, are one.
        """
        rows, vectors = self._encode_images(loader)
        return vectors, *self._captions(rows, images)

    def _captions(self, rows: np.ndarray, images: Captioned) -> tuple[torch.Tensor, np.ndarray]:
        used, text_of = np.unique(images.text[rows], return_inverse=True)
        tokens, same = np.unique(images.tokens[used], axis=0, return_inverse=True)
        if not len(tokens):
            return torch.empty(0, 1), text_of
        return self._encode_texts(tokens), same.reshape(-1)[text_of].astype(np.int64)

    # Afterwards

    def score(self, test: TestImages) -> TestScore:
        """The network on a test table, by every metric that its columns allow."""
        loader = self._loader(test.images, None)
        rows, vectors = self._encode_images(loader)
        labelled, captioned = test.label[rows] >= 0, test.images.text[rows] >= 0
        scores: dict[str, TestScore] = {}
        if len(test.classes) > 1 and labelled.any():
            scores[scoring.ZERO_SHOT] = self._zero_shot(test, rows[labelled], vectors[_mask(labelled)])
        if captioned.any():
            texts, text_of = self._captions(rows[captioned], test.images)
            scores.update(scoring.retrieval_figures(scoring.retrieve(vectors[_mask(captioned)], texts, text_of)))
        if self.config.metric not in scores:
            raise Datas3Error(
                f"none of the {len(test.images)} test images can be read ('{test.images.rows.ids[0]}' for one); check "
                "that their files are still there."
            )
        score = scoring.with_figures(self.config.metric, scores)
        if loader.unreadable:
            score.figures["unreadable"] = float(loader.unreadable)
        return score

    def _zero_shot(self, test: TestImages, rows: np.ndarray, vectors: torch.Tensor) -> TestScore:
        classes, templates, length = test.prompts.shape
        prompts = self._encode_texts(test.prompts.reshape(-1, length)).view(classes, templates, -1)
        predicted = scoring.zero_shot(vectors, scoring.class_vectors(prompts))
        return score_classes(predicted, test.label[rows], test.classes, test.classes, "accuracy")

    def checkpoint(self, best: Epoch) -> dict[str, Any]:
        """What is saved: tensors on the CPU and plain values."""
        return {
            "model": self.config.model,
            "options": self.options.model_dump(mode="json"),
            "image_size": self.eye.size,
            "mean": list(self.eye.mean),
            "std": list(self.eye.std),
            "epoch": best.number,
            "state_dict": {name: value.detach().cpu() for name, value in self.towers.model.state_dict().items()},
        }

    def _optimizer(self) -> torch.optim.Optimizer:
        decay = float(self.job.point.hyperparameters.get("weight_decay", self.config.weight_decay))
        groups = parameter_groups(self.towers, decay)  # the scale of the similarities is a number and does not decay
        return torch.optim.AdamW(groups, lr=float(self.job.point.hyperparameters["lr"]), betas=BETAS, eps=EPSILON)

    def _schedule(self) -> None:
        """Set the learning rate of the step to come."""
        if not self.steps:
            self.all_steps = steps(self.config, len(self.loader), self.loader.settings.batch_size)
            self.warmup = math.ceil(self.options.warmup * self.all_steps)
        lr = learning_rate(float(self.job.point.hyperparameters["lr"]), self.steps, self.all_steps, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def _mask(which: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(which))
