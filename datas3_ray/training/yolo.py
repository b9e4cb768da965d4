"""Training a YOLO detector with ultralytics: its trainer and validator, our data, budget, choice and reports.

Its checkpoints, which are pickles, are never written: the best network stays in memory until it is saved as tensors.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Outcome, Report, TestScore
from datas3_ray.training.detection_data import DetectionImages, DetectionSplit
from datas3_ray.training.epochs import check_loss
from datas3_ray.training.metrics import recode
from datas3_ray.training.yolo_folder import Written, write_images
from datas3_ray.training.yolo_offline import offline, undone
from datas3_ray.training.yolo_weights import ARCHITECTURE, DetectorWeights, detector, rebuilt

if TYPE_CHECKING:
    import torch

METRICS = {"map50": "metrics/mAP50(B)", "map50_95": "metrics/mAP50-95(B)"}
"""What ultralytics calls the sweep's metrics."""

_OTHERS = {"precision": "metrics/precision(B)", "recall": "metrics/recall(B)"}
_TEST_BATCH = 32


@dataclass(frozen=True)
class YoloSettings:
    """How one detector is trained; whatever is not here is as ultralytics has it.

    Attributes
    ----------
    metric : str
        ``map50`` or ``map50_95``: the epoch kept is the best by it on the validation images.
    image_size : int
        Pixels of the longer side, a multiple of 32.
    batch_size : int
    lr : float
        The learning rate after the warm-up; it falls to a hundredth of it.
    optimizer : str
        ``SGD`` or ``AdamW``.
    weight_decay : float
    epochs : int
    samples : int, optional
        Images to see in all, in place of ``epochs``.
    patience : int
        Epochs without progress before training stops; does not count with ``samples``.
    seed : int
    threads : int
        CPU threads of the arithmetic.
    readers : int
        Processes that read and augment images for a GPU.
    """

    metric: str
    image_size: int
    batch_size: int
    lr: float
    optimizer: str
    weight_decay: float
    epochs: int
    samples: int | None
    patience: int
    seed: int
    threads: int = 1
    readers: int = 4


@dataclass(frozen=True)
class YoloJob:
    """Everything that training one detector takes. ``name`` is the selection's, for errors."""

    name: str
    images: DetectionImages
    split: DetectionSplit
    tests: Mapping[str, DetectionImages]
    settings: YoloSettings
    weights: DetectorWeights | None = None


def train_detector(job: YoloJob, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Train one detector and score it on each test table.

    Returns
    -------
    Outcome
    dict
        The checkpoint: ``state_dict`` (tensors on the CPU), ``classes``, ``image_size`` and more plain values.

    Raises
    ------
    Datas3Error
        When the loss becomes infinite or not a number, images cannot be read or written, or a batch does not fit.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="datas3-yolo-") as place, offline(), undone():
        folder = Path(place)
        trainer = _trainer(job, folder, report)
        try:
            trainer.train()
        except RuntimeError as error:
            if "out of memory" in str(error).lower():
                raise _does_not_fit(job.settings) from error
            raise
        finally:
            for name in ("train_loader", "test_loader"):
                _close(getattr(trainer, name, None))
        best = trainer.watch.best
        scores = {test: score(job, best.state, images, folder / "test") for test, images in job.tests.items()}
    if trainer.unreadable:
        known = {"training_unreadable": float(trainer.unreadable)}
        scores = {test: replace(one, figures={**one.figures, **known}) for test, one in scores.items()}
    outcome = Outcome(best.number, trainer.watch.epochs, best.score, best.loss, time.perf_counter() - started, scores)
    saved = {
        "classes": list(job.split.classes),
        "image_size": job.settings.image_size,
        "epoch": best.number,
        "state_dict": best.state,
    }
    return outcome, saved


@dataclass(frozen=True)
class _Best:
    """The network after its best epoch so far."""

    number: int
    score: float
    loss: float
    state: dict[str, torch.Tensor]


class _Watch:
    """What the epochs gave: reports each, keeps the best one's network, and says when to stop."""

    def __init__(self, settings: YoloSettings, report: Report) -> None:
        self.settings, self.report = settings, report
        self.best: _Best | None = None
        self.epochs = 0
        self.seen = 0
        """Images of the batches so far."""

    def left(self) -> int | None:
        """Images that the budget still has; None where it is one of epochs."""
        samples = self.settings.samples
        return None if samples is None else samples - self.seen

    def epoch_is_over(self, train_loss: float, metrics: Mapping[str, float], network: torch.nn.Module) -> float:
        """Take an epoch's figures and network; the metric."""
        self.epochs += 1
        loss = math.fsum(value for name, value in metrics.items() if name.startswith("val/"))
        for value in (train_loss, loss):
            check_loss(value, self.epochs)
        score = float(metrics[METRICS[self.settings.metric]])
        if self.best is None or (score, -loss) > (self.best.score, -self.best.loss):
            state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            self.best = _Best(self.epochs, score, loss, state)
        self.report(
            {
                "epoch": self.epochs,
                "train": {"loss": train_loss},
                "validation": {"loss": loss, **{name: float(metrics[key]) for name, key in METRICS.items()}},
            }
        )
        return score

    def is_over(self) -> bool:
        """Whether the patience is used up."""
        assert self.best is not None
        return self.settings.samples is None and self.epochs - self.best.number >= self.settings.patience


def _trainer(job: YoloJob, folder: Path, report: Report) -> Any:
    """ultralytics' trainer of detectors for a job, its images written to ``folder``."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    written = _write_split(job, folder)
    settings = job.settings
    epochs = settings.epochs if settings.samples is None else -(-settings.samples // written.images)

    base: Any = DetectionTrainer

    # Its name does not say "Trainer": ultralytics gives those that do its integrations, Ray Tune's among them.
    class Epochs(base):
        """Trains by our budget, and keeps the best network in memory and not as a pickle."""

        watch = _Watch(settings, report)
        unreadable = written.unreadable

        def get_dataset(self) -> dict[str, Any]:
            names = dict(enumerate(job.split.classes))
            parts = {part: str(folder / part / "images") for part in ("train", "val")}
            return {"path": folder, "nc": len(names), "names": names, "channels": 3, **parts}

        def _build_train_pipeline(self) -> None:
            if getattr(self, "train_loader", None) is not None:  # memory is used up, and it would halve the batch
                raise _does_not_fit(settings)
            super()._build_train_pipeline()

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            left = self.watch.left()
            if left is not None and left < len(batch["img"]):
                batch = first_images(batch, left)
            self.watch.seen += len(batch["img"])
            self.stop = self.watch.left() == 0
            return super().preprocess_batch(batch)

        def validate(self) -> tuple[dict[str, float], float]:
            losses = self.tloss.values() if isinstance(self.tloss, dict) else self.tloss
            train_loss = math.fsum(float(value) for value in losses)
            metrics = self.validator(self)
            metrics.pop("fitness", None)
            score = self.watch.epoch_is_over(train_loss, metrics, self.ema.ema)
            self.stop = self.stop or self.watch.is_over()
            return metrics, score

        def _handle_nan_recovery(self, epoch: int) -> bool:
            """A loss that is no number has ended the training in :meth:`validate`."""
            return False

        def save_model(self) -> bool:
            """Never: it would be a pickle."""
            return False

        def final_eval(self) -> None:
            """The best network is scored on the test tables in place of this."""

    trainer = Epochs(overrides=_arguments(settings, folder, epochs))
    trainer.model = detector(job.split.classes, job.weights)
    trainer.add_callback("on_pretrain_routine_end", lambda _: _set_threads(settings))
    return trainer


def _set_threads(settings: YoloSettings) -> None:
    """The threads asked for: ultralytics sets a number of its own with every trainer and validator."""
    import torch

    torch.set_num_threads(settings.threads)


def _does_not_fit(settings: YoloSettings) -> Datas3Error:
    return Datas3Error(
        f"a batch of {settings.batch_size} images of {settings.image_size} pixels does not fit into the memory; lower "
        "batch_size or options.image_size."
    )


def _arguments(settings: YoloSettings, folder: Path, epochs: int) -> dict[str, Any]:
    """ultralytics' arguments that are not its defaults."""
    return {
        "model": ARCHITECTURE,
        "epochs": epochs,
        "patience": epochs + 1,
        "batch": settings.batch_size,
        "imgsz": settings.image_size,
        "lr0": settings.lr,
        "optimizer": settings.optimizer,
        "weight_decay": settings.weight_decay,
        # numpy's generator takes 32 bits, and ultralytics adds up to 1.
        "seed": settings.seed % ((1 << 32) - 2),
        "save_dir": str(folder / "run"),
        **_quiet_arguments(settings),
    }


def _quiet_arguments(settings: YoloSettings) -> dict[str, Any]:
    from datas3_ray.runtime import device

    chosen = device()
    return {
        "device": "cpu" if chosen == "cpu" else "0",
        "workers": 0 if chosen == "cpu" else settings.readers,
        "amp": False,
        "plots": False,
        "verbose": False,
    }


def _write_split(job: YoloJob, folder: Path) -> Written:
    """Write the training and validation images; what there is of the first, and how many of all cannot be read."""
    codes = recode(job.images.codes, job.images.classes, job.split.classes)
    parts = {"train": job.split.train, "val": job.split.validation}
    written = {
        part: write_images(folder / part, job.images, positions, codes, job.settings.image_size)
        for part, positions in parts.items()
    }
    for part, what in (("train", "training"), ("val", "validation")):
        if not written[part].boxes:
            read = f"{written[part].images} of the {len(parts[part])} {what} images of selection '{job.name}'"
            raise Datas3Error(
                f"{read} can be read, and they have no box; check that the files are still there and that the boxes "
                "are in pixels of the upright image."
            )
    unreadable = written["train"].unreadable
    if not np.array_equal(parts["train"], parts["val"]):
        unreadable += written["val"].unreadable
    return replace(written["train"], unreadable=unreadable)


def _close(loader: Any) -> None:
    """End a loader's processes, which ultralytics does only after a training without errors."""
    if hasattr(loader, "close"):
        loader.close()


def first_images(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The first ``count`` images of a batch as ultralytics collates them, with their boxes.

    Tensors and tuples of the batch have an entry an image, but ``batch_idx`` (each box's image), ``cls`` and
    ``bboxes``, which have one a box.
    """
    boxes = batch["batch_idx"] < count
    cut: dict[str, Any] = {}
    for name, values in batch.items():
        if name in ("batch_idx", "cls", "bboxes"):
            cut[name] = values[boxes]
        else:
            cut[name] = values[:count]
    return cut


def score(job: YoloJob, state: Mapping[str, torch.Tensor], images: DetectionImages, folder: Path) -> TestScore:
    """A trained network on a test table, by ultralytics' validator. To be called inside :func:`offline`.

    Parameters
    ----------
    job : YoloJob
        Its classes, settings and metric.
    state : mapping of str to tensor
        The network's, as :func:`train_detector` gives it.
    images : DetectionImages
        The test table's. Classes of theirs that the job lacks count with 0.
    folder : Path
        Where to write them; removed afterwards.

    Raises
    ------
    Datas3Error
        When no readable image has a box, or there is no room for them.
    """
    import yaml
    from ultralytics.models.yolo.detect import DetectionValidator

    classes = [*job.split.classes, *sorted(set(images.classes) - set(job.split.classes))]
    codes = recode(images.codes, images.classes, classes)
    written = write_images(folder, images, np.arange(len(images)), codes, job.settings.image_size)
    if not written.boxes:
        raise Datas3Error(
            f"{written.images} of the {len(images)} test images can be read, and they have no box; check that the "
            "files are still there and that the boxes are in pixels of the upright image."
        )
    network = rebuilt(DetectorWeights(dict(state), job.split.classes))
    # ultralytics leaves out the labels of classes that a network has no name for.
    network.names = {code: str(code) for code in range(len(classes))}
    about = folder / "data.yaml"
    about.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": network.names}))
    validator = DetectionValidator(
        save_dir=folder / "run",
        args={
            "mode": "val",
            "task": "detect",
            "data": str(about),
            "imgsz": job.settings.image_size,
            "batch": _TEST_BATCH,
            "rect": True,
            **_quiet_arguments(job.settings),
        },
    )
    validator.add_callback("on_val_start", lambda _: _set_threads(job.settings))
    try:
        found = validator(model=network)
    finally:
        _close(validator.dataloader)
        shutil.rmtree(folder)
    figures = {name: float(found[key]) for name, key in {**METRICS, **_OTHERS}.items()}
    if written.unreadable:
        figures["unreadable"] = float(written.unreadable)
    box = validator.metrics.box
    recall = {classes[int(code)]: float(value) for code, value in zip(box.ap_class_index, box.r, strict=True)}
    return TestScore(figures.pop(job.settings.metric), recall=recall, figures=figures)
