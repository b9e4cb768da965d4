"""Metrics count what a subset cannot know as errors."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.training.contract import Outcome, TestScore
from datas3_ray.training.metrics import METRICS, accuracy, macro_accuracy, metric, per_class_recall, recode
from datas3_ray.training.records import parse_outcome
from datas3_ray.training.scoring import score_classes, score_numbers
from datas3_ray.training.target import Target


def test_a_class_the_subset_lacks_counts_as_errors_and_is_not_dropped() -> None:
    # The test holds cat, dog, emu; the subset only cat and dog. Every answer on the other rows is right.
    truth = recode(np.array([0, 0, 1, 2, 2]), ["cat", "dog", "emu"], ["cat", "dog"])
    predicted = np.array([0, 0, 1, 0, 1])
    assert accuracy(predicted, truth) == 3 / 5
    codes, recall = per_class_recall(predicted, truth)
    assert codes.tolist() == [0, 1, 2] and recall.tolist() == [1.0, 1.0, 0.0]
    assert macro_accuracy(predicted, truth) == pytest.approx(2 / 3)


def test_macro_accuracy_weighs_classes_alike() -> None:
    truth = np.array([0] * 9 + [1])
    assert accuracy(np.zeros(10, int), truth) == 0.9
    assert macro_accuracy(np.zeros(10, int), truth) == 0.5


def test_recode_gives_each_unknown_name_a_code_of_its_own() -> None:
    assert recode(np.arange(4), ["a", "b", "c", "d"], ["c", "x"]).tolist() == [2, 3, 0, 4]


@pytest.mark.parametrize("number", [0.1, 3.0, 1e9 + 0.1])
def test_numbers_that_do_not_vary(number: float) -> None:
    """The mean of equal numbers may differ from them in the last digit, and then so does their deviation from 0."""
    truth = np.full(3, number)
    assert metric("r2")(np.array([0.1, 0.2, 0.3]), truth) == 0.0
    assert score_numbers(truth + 1, truth, "r2").interval == (0.0, 0.0)
    assert Target.of(truth).std == 1.0
    assert Target.of(np.array([1.0, 3.0])) == Target(2.0, 1.0)


def test_the_registry() -> None:
    assert all(METRICS[name].higher_is_better for name in ("accuracy", "macro_accuracy"))
    with pytest.raises(UsageError, match="no metric 'acuracy'.* Did you mean 'accuracy'?"):
        metric("acuracy")


@pytest.mark.parametrize(("predicted", "truth"), [([], []), ([1], [1, 2])])
def test_nothing_to_score(predicted: list[int], truth: list[int]) -> None:
    with pytest.raises(ValueError, match="row|length"):
        metric("accuracy")(np.array(predicted, int), np.array(truth, int))


def test_rows_of_classes_the_subset_lacks_are_dropped_from_the_paper_style_score_only() -> None:
    codes, names = np.array([0, 0, 1, 2, 2]), ["cat", "dog", "emu"]
    predicted = np.array([0, 1, 1, 0, 1])
    score = score_classes(predicted, codes, names, ["cat", "dog"], "accuracy")
    assert (score.score, score.seen, score.dropped) == (2 / 5, pytest.approx(2 / 3), 2)
    macro = score_classes(predicted, codes, names, ["cat", "dog"], "macro_accuracy")
    assert (macro.score, macro.seen) == (pytest.approx(0.5), pytest.approx(0.75))
    whole = score_classes(predicted, codes, names, ["cat", "dog", "emu"], "accuracy")
    assert (whole.score, whole.seen, whole.dropped) == (2 / 5, None, 0)
    nothing = score_classes(predicted, codes, names, ["fox", "gnu"], "accuracy")
    assert (nothing.score, nothing.seen, nothing.dropped) == (0.0, None, 5)
    assert score_numbers(predicted.astype(float), codes.astype(float), "mse").dropped == 0


def test_a_record_of_an_earlier_version_counted_no_dropped_rows() -> None:
    outcome = Outcome(1, 2, 0.5, 0.1, 1.0, {"north": TestScore(0.5, (0.4, 0.6), dropped=3, seen=0.7)})
    found = asdict(outcome)
    assert parse_outcome(found) == outcome
    del found["tests"]["north"]["dropped"], found["tests"]["north"]["seen"]
    old = parse_outcome(found).tests["north"]
    assert (old.dropped, old.seen) == (None, None)
