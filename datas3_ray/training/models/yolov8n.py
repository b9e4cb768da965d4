"""The model ``yolov8n``: ultralytics' YOLOv8n, a detector. ultralytics is optional, and under the AGPL-3.0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.training.contract import HyperParameter, Options, Outcome, Point, Prepared, Report

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig
    from datas3_ray.training.yolo import YoloSettings

_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


class Yolov8nOptions(Options):
    """The ``options`` of the model; hyper-parameters that neither these nor the sweep name are ultralytics' defaults.

    Attributes
    ----------
    image_size : int
        Pixels of an image's longer side, a multiple of 32.
    optimizer : {"sgd", "adamw"}
        ultralytics' own choice, ``auto``, is none here: it would set aside the learning rates of the grid.
    max_boxes : int
        The most boxes that an image may have. Memory grows with their number.
    threads : int
        CPU threads of the arithmetic. Sums can differ in the last digits with their number.
    readers : int
        Processes that read and augment images where there is a GPU.
    """

    image_size: int = Field(640, ge=64, multiple_of=32)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    max_boxes: int = Field(1000, ge=1)
    threads: int = Field(1, ge=1)
    readers: int = Field(4, ge=0)


class Yolov8n:
    """Boxes and their classes from images; keeps to :class:`datas3_ray.training.contract.Model`."""

    name = "yolov8n"
    checkpoint = "yolov8n.pt"
    tasks = ("detection",)
    hyperparameters: Mapping[str, HyperParameter] = {
        "batch_size": HyperParameter(int, 1),
        "lr": HyperParameter(float, 0, minimum_allowed=False),
        "weight_decay": HyperParameter(float, 0, required=False),
    }
    options = Yolov8nOptions
    ignores = ("column", "normalize", "standardize", "sampling", "weight", "workers", "cache_gb")

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """Look up the images' places and boxes, and read the weights, once for all trials."""
        import ray

        from datas3_ray.training.detection_data import test_sets, training_sets
        from datas3_ray.training.yolo_offline import require_ultralytics

        _check(config)
        require_ultralytics()
        weights = None
        if config.weights:
            from datas3_ray.training.yolo_weights import read_detector_weights

            weights = read_detector_weights(config.weights)
        most = config.own().max_boxes
        scored = test_sets(config, selections, tests, most)
        elsewhere = sorted({name for test in scored.values() for name in test.classes})
        training = training_sets(lake, config, selections, most, elsewhere)
        stored = ray.put(weights)
        training = {key: replace(one, data=(*one.data, stored)) for key, one in training.items()}
        return Prepared("", config.weights or "scratch", training, scored)

    def train(
        self, point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, folder: str
    ) -> Outcome:
        """Train one detector in a worker and score it on each test table."""
        import ray
        import torch

        from datas3_ray.training.yolo import YoloJob, train_detector

        started = time.perf_counter()
        images, split, weights = ray.get(list(training))
        scored = {name: ray.get(ref) for name, ref in tests.items()}
        job = YoloJob(point.selection, images, split, scored, _settings(point, config), weights)
        outcome, saved = train_detector(job, report)
        about = {"model": self.name, "options": config.own().model_dump(), "task": config.task}
        torch.save({**about, **saved}, f"{folder}/{self.checkpoint}")
        return replace(outcome, seconds=time.perf_counter() - started)


def _settings(point: Point, config: SweepConfig) -> YoloSettings:
    from datas3_ray.training.yolo import YoloSettings

    options: Yolov8nOptions = config.own()
    return YoloSettings(
        metric=config.metric,
        image_size=options.image_size,
        batch_size=int(point.hyperparameters["batch_size"]),
        lr=float(point.hyperparameters["lr"]),
        optimizer=_OPTIMIZERS[options.optimizer],
        weight_decay=float(point.hyperparameters.get("weight_decay", config.weight_decay)),
        epochs=config.epochs,
        samples=config.samples,
        patience=config.patience,
        seed=point.seed,
        threads=options.threads,
        readers=options.readers,
    )


def _check(config: SweepConfig) -> None:
    """Raise a UsageError for settings of the sweep that ultralytics' trainer cannot follow."""
    for key, values in (*config.grid.items(), ("weight_decay", (config.weight_decay,))):
        if key in ("lr", "weight_decay") and max(values) > 1:
            raise UsageError(f"{key} = {max(values):g} is not possible with model yolov8n; it takes at most 1.")
