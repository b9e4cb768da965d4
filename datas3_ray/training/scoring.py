"""Predictions on a test table as a score with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datas3_ray.training.contract import TestScore
from datas3_ray.training.metrics import METRICS, macro_accuracy, metric, per_class_recall, recode

RESAMPLED = 1000
"""Test tables that an interval is taken from."""


def score_classes(
    predicted: np.ndarray, codes: np.ndarray, names: Sequence[str], classes: Sequence[str], name: str
) -> TestScore:
    """Classes predicted on a test table, by the metric ``name``: over all rows, and over those the subset could know.

    Parameters
    ----------
    predicted : ndarray of shape (n,), int64
        Codes into ``classes``, those of the training subset.
    codes : ndarray of shape (n,), int64
        The truth as codes into ``names``, the test table's classes.

    Examples
    --------
    >>> score = score_classes(np.array([0, 0]), np.array([0, 1]), ["cat", "emu"], ["cat", "dog"], "accuracy")
    >>> score.score, score.recall
    (0.5, {'cat': 1.0, 'emu': 0.0})
    >>> score.seen, score.dropped  # the emu left out, as published results do
    (1.0, 1)
    """
    truth = recode(codes, names, classes)
    known_rows = truth < len(classes)
    dropped = int(len(truth) - known_rows.sum())
    present, recall = per_class_recall(predicted, truth)
    known = dict(zip(recode(np.arange(len(names)), names, classes).tolist(), names, strict=True))
    return TestScore(
        score=metric(name)(predicted, truth),
        interval=interval(predicted, truth, name),
        macro_accuracy=macro_accuracy(predicted, truth),
        recall={known[code]: value for code, value in zip(present.tolist(), recall.tolist(), strict=True)},
        dropped=dropped,
        seen=metric(name)(predicted[known_rows], truth[known_rows]) if 0 < dropped < len(truth) else None,
    )


def score_numbers(predicted: np.ndarray, truth: np.ndarray, name: str) -> TestScore:
    """Numbers predicted on a test table (n,), by the metric ``name``; the task's other metrics beside it."""
    others = [other for other, each in METRICS.items() if each.task == "regression" and other != name]
    return TestScore(
        score=metric(name)(predicted, truth),
        interval=interval(predicted, truth, name),
        figures={other: metric(other)(predicted, truth) for other in others},
    )


def interval(predicted: np.ndarray, truth: np.ndarray, name: str, seed: int = 0) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the metric over test tables drawn from this one with replacement.

    >>> low, high = interval(np.zeros(100), np.r_[np.zeros(80), np.ones(20)], "accuracy")
    >>> 0.7 < low < 0.8 < high < 0.9
    True
    """
    rng = np.random.default_rng(seed)
    if name == "accuracy":  # the hits of a resampled table are binomial, which is the same and quick
        low, high = np.percentile(rng.binomial(len(truth), np.mean(predicted == truth), RESAMPLED), [2.5, 97.5])
        return float(low) / len(truth), float(high) / len(truth)
    scores = []
    for _ in range(RESAMPLED):
        rows = rng.integers(0, len(truth), len(truth))
        scores.append(metric(name)(predicted[rows], truth[rows]))
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
