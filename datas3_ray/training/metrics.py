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

    function: Callable[[np.ndarray, np.ndarray], float]
    higher_is_better: bool

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


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True),
    "macro_accuracy": Metric(macro_accuracy, higher_is_better=True),
}


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
