"""What a model's predictions are worth: accuracy and its kin, with nothing left out of the count.

Classes are numbered by the *training* subset: ``0 .. c-1`` are the classes it holds. A test row whose class the subset
lacks carries a code of ``c`` or more, which no model can predict, so it counts as an error and is never dropped: a
small subset is not scored on an easier test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from datas3_ray.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """A score of predictions against the truth, and which way is better."""

    function: Callable[[np.ndarray, np.ndarray], float] | None
    """Of predictions and truth; None where the model's own evaluation gives it."""
    higher_is_better: bool
    task: str = "classification"

    def __call__(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """The score of int64 codes ``predicted`` (n,) against ``truth`` (n,).

        Raises
        ------
        ValueError
            When there are no rows, or not as many predictions as truths.
        """
        if predicted.shape != truth.shape or predicted.ndim != 1:
            raise ValueError(f"predictions {predicted.shape} and truth {truth.shape} must be vectors of one length")
        if not len(truth):
            raise ValueError("a metric needs at least one row")
        if self.function is None:
            raise ValueError(f"this metric of {self.task} is not one of predictions and truth alone")
        return self.function(predicted, truth)


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows predicted right.

    >>> accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 2]))  # class 2 is not in the subset: an error
    0.5
    """
    return float(np.mean(predicted == truth))


def per_class_recall(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the classes in ``truth`` (k,), ascending, and the share of each one's rows predicted right (k,).

    >>> per_class_recall(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 2]))
    (array([0, 1, 2]), array([0.5, 1. , 0. ]))
    """
    codes, inverse = np.unique(truth, return_inverse=True)
    hits = np.bincount(inverse, weights=predicted == truth, minlength=len(codes))
    return codes, hits / np.bincount(inverse, minlength=len(codes))


def macro_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean recall over the classes of ``truth``: a rare class weighs as much as a common one.

    >>> macro_accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 2]))
    0.5
    """
    return float(per_class_recall(predicted, truth)[1].mean())


def mean_squared_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the squared differences, in the square of the target's unit.

    >>> mean_squared_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    """
    return float(np.mean((predicted.astype(np.float64) - truth) ** 2))


def mean_absolute_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the absolute differences, in the target's unit.

    >>> mean_absolute_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    1.0
    """
    return float(np.mean(np.abs(predicted.astype(np.float64) - truth)))


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """1 less the squared error over that of predicting the truth's mean; 0 where the truth does not vary.

    >>> r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    """
    if truth.min() == truth.max():  # whose variance need not be 0 in floating point
        return 0.0
    return 1.0 - mean_squared_error(predicted, truth) / float(np.var(truth.astype(np.float64)))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True),
    "macro_accuracy": Metric(macro_accuracy, higher_is_better=True),
    "mse": Metric(mean_squared_error, higher_is_better=False, task="regression"),
    "mae": Metric(mean_absolute_error, higher_is_better=False, task="regression"),
    "r2": Metric(r2, higher_is_better=True, task="regression"),
    "map50": Metric(None, higher_is_better=True, task="detection"),
    "map50_95": Metric(None, higher_is_better=True, task="detection"),
    "zero_shot_accuracy": Metric(None, higher_is_better=True, task="image_text"),
    "image_to_text_recall": Metric(None, higher_is_better=True, task="image_text"),
    "text_to_image_recall": Metric(None, higher_is_better=True, task="image_text"),
}
"""By name; the first of a task is its usual one."""


def default_metric(task: str) -> str:
    """The usual metric of a task.

    >>> default_metric("regression")
    'mse'
    """
    return next(name for name, metric in METRICS.items() if metric.task == task)


def metric(name: str) -> Metric:
    """The metric ``name``; a UsageError says which there are when it is not one.

    >>> metric("accuracy").higher_is_better
    True
    """
    if name not in METRICS:
        raise UsageError(f"no metric '{name}'; there are: {', '.join(METRICS)}.{did_you_mean(name, METRICS)}")
    return METRICS[name]


def recode(codes: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Codes into ``names`` (n,) as codes into a subset's ``classes``; names that the subset lacks follow after them.

    >>> recode(np.array([0, 1, 2, 1]), ["cat", "dog", "emu"], ["ant", "dog"])
    array([2, 1, 3, 1])
    """
    known = {name: code for code, name in enumerate(classes)}
    lookup = np.empty(len(names), dtype=np.int64)
    following = len(classes)
    for code, name in enumerate(names):
        lookup[code] = known.get(name, following)
        following += name not in known
    return lookup[codes]
