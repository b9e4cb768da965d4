"""What a model that a sweep trains must offer.

A model is one class in one file of :mod:`datas3_ray.training.models` that keeps to :class:`Model`. It says which tasks,
hyper-parameters and options it has, reads what it needs from the lake on the driver, and trains one trial in a worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig


@dataclass(frozen=True)
class HyperParameter:
    """What values a hyper-parameter may take; a grid must name it when ``required``."""

    kind: type[int] | type[float]
    minimum: float
    required: bool = True
    minimum_allowed: bool = True

    def parse(self, value: Any) -> int | float | None:
        """The value as its kind, or None when it cannot be one. YAML reads ``1e-3`` as text, so text is tried too."""
        if isinstance(value, bool):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(number) or number < self.minimum or (number == self.minimum and not self.minimum_allowed):
            return None
        if self.kind is int:
            return int(number) if number == int(number) else None
        return number

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} {'of at least' if self.minimum_allowed else 'above'} {self.minimum:g}"


@dataclass(frozen=True)
class Point:
    """One trial: a selection, a seed and a point of the grid. ``index`` is its place among the sweep's trials."""

    index: int
    selection: str
    seed: int
    hyperparameters: Mapping[str, int | float]

    def __str__(self) -> str:
        grid = " ".join(f"{key}={value:g}" for key, value in self.hyperparameters.items())
        return f"{self.selection} {grid} seed={self.seed}"


@dataclass(frozen=True)
class TrainingSet:
    """The labelled rows of one selection, split in two for one seed. ``data`` is what the model's ``train`` gets."""

    data: Any
    classes: tuple[str, ...]
    train_rows: int
    validation_rows: int
    unlabelled: int
    unusable: int
    validation_on: str
    """``held out``, or ``training rows`` where there were too few to hold any out."""
    inputs: Mapping[str, int]
    """The pool table and the version read."""


@dataclass(frozen=True)
class TestSet:
    """The labelled rows of one test table. ``data`` is what the model's ``train`` gets."""

    __test__ = False

    data: Any
    classes: tuple[str, ...]
    rows: int
    unlabelled: int
    unusable: int
    version: int


@dataclass(frozen=True)
class Prepared:
    """Everything a sweep's trials need, with the arrays themselves in Ray's object store."""

    vector: str
    """The vector column trained on; empty for models that read images."""
    start: str
    """Where the weights come from: ``scratch``, or the file or hub name."""
    training: Mapping[tuple[str, int], TrainingSet]
    """By selection and seed."""
    tests: Mapping[str, TestSet]
    """By test table."""


@dataclass(frozen=True)
class TestScore:
    """A trained model on one test table, by the sweep's metric. Classes that the subset lacks are errors in all."""

    __test__ = False

    score: float
    interval: tuple[float, float] | None = None
    """95% of the scores of resampled test tables lie between these."""
    macro_accuracy: float | None = None
    recall: dict[str, float] = field(default_factory=dict)
    """Of each class, where the task has classes."""
    figures: dict[str, float] = field(default_factory=dict)
    """The task's other metrics."""
    dropped: int | None = 0
    """Test rows of classes that the subset lacks, which published results leave out; None where nobody counted them."""
    seen: float | None = None
    """The metric over the other rows; None where there are none, or where no row was dropped and it is ``score``."""


@dataclass(frozen=True)
class Outcome:
    """A trained model: its best epoch (1-based) of how many, that epoch's validation score and loss, the seconds that
    training and scoring took, and the scores on the test tables."""

    epoch: int
    epochs: int
    validation: float
    validation_loss: float
    seconds: float
    tests: dict[str, TestScore] = field(default_factory=dict)


Report = Callable[[dict[str, Any]], None]


class Options(BaseModel):
    """A model's own settings, as ``options:`` of a sweep's file gives them; a model without any uses this class."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Protocol):
    """What a sweep asks of a model."""

    name: str
    checkpoint: str
    """Name of the file that ``train`` leaves in its folder."""
    tasks: tuple[str, ...]
    """Of ``classification``, ``regression``, ``detection`` and ``image_text``; the first is the default."""
    hyperparameters: Mapping[str, HyperParameter]
    options: type[Options]
    ignores: tuple[str, ...]
    """Settings of a sweep that mean nothing to it; to set one is a mistake that is told before work starts."""

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """On the driver: read the selections and test tables once. Raises a UsageError when they do not fit."""
        ...

    def train(
        self,
        point: Point,
        config: SweepConfig,
        training: Any,
        tests: Mapping[str, Any],
        report: Report,
        folder: str,
    ) -> Outcome:
        """In a worker: train one point, ``report`` each epoch's figures, leave the checkpoint in ``folder``."""
        ...
