"""Scores of training rows: answers worked out by hand, and every formula again in its plainest form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datas3_ray.kernels import training_scores
from datas3_ray.kernels.training_scores import (
    HARDEST,
    TrainingScores,
    aum,
    dyn_unc,
    el2n,
    entropy,
    forgetting,
    grand,
    tdds,
)

RIGHT, WRONG = (2.0, 0.0), (0.0, 2.0)


def softmax(z) -> list[float]:
    powers = [math.exp(value - max(z)) for value in z]
    return [power / sum(powers) for power in powers]


def history(seed: int, epochs: int = 7, rows: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        2 * rng.normal(size=(epochs, rows, classes)),
        rng.integers(0, classes, rows),
        rng.uniform(0, 3, (epochs, rows)),
    )


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_el2n_by_hand() -> None:
    # Probabilities (3/4, 1/4): a right label misses by (-1/4, 1/4), a wrong one by (3/4, -3/4).
    z = [[[math.log(3), 0.0], [math.log(3), 0.0]]]
    assert el2n(z, [0, 1]) == pytest.approx([math.sqrt(2) / 4, 3 * math.sqrt(2) / 4])
    # Surely wrong is the largest there is.
    assert el2n([[[40.0, 0.0]]], [1])[0] == pytest.approx(math.sqrt(2))
    assert el2n([z[0], [[0.0, 0.0]] * 2], [0, 1])[0] == pytest.approx((math.sqrt(2) / 4 + math.sqrt(0.5)) / 2)


def test_grand_by_hand() -> None:
    # Features (3, 4) and the bias's 1: sqrt(26) times the error's length.
    assert grand([[[0.0, 0.0]]], [0], [5.0]) == pytest.approx([math.sqrt(26) * math.sqrt(0.5)])


def test_grand_is_the_norm_of_autograd_s_gradient() -> None:
    import torch

    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(9, 5)), rng.integers(0, 3, 9)
    layer = torch.nn.Linear(5, 3).double()
    expected = []
    for row, label in zip(features, labels, strict=True):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(torch.tensor(row))[None], torch.tensor([label])).backward()
        gradients = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
        expected.append(float(gradients.norm()))
    logits = layer(torch.tensor(features)).detach().numpy()
    assert grand(logits[None], labels, np.linalg.norm(features, axis=1)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "score"),
    [
        ([RIGHT] * 5, 0),
        ([WRONG, WRONG, RIGHT, RIGHT, RIGHT], 0),  # learned late is not forgotten
        ([RIGHT, WRONG, RIGHT, WRONG, RIGHT], 2),
        ([RIGHT, WRONG, WRONG, WRONG, WRONG], 1),
        ([WRONG] * 5, 5),  # never learned: the hardest
        ([(0.0, 0.0)] * 5, 5),  # a tie is not right
    ],
)
def test_forgetting_by_hand(epochs, score) -> None:
    assert forgetting([[row] for row in epochs], [0]).tolist() == [score]


def test_never_learned_ranks_above_the_most_forgotten() -> None:
    for epochs in range(1, 9):
        often = [RIGHT if epoch % 2 == 0 else WRONG for epoch in range(epochs)]
        score = forgetting([[row, WRONG] for row in often], [0, 0])
        assert score[1] > score[0] == epochs // 2


def test_aum_by_hand() -> None:
    epochs = [[[5.0, 2.0, 1.0]], [[0.0, 3.0, 4.0]]]
    assert aum(epochs, [0]).tolist() == [(3 - 4) / 2]
    assert aum(epochs, [2]).tolist() == [(-4 + 1) / 2]
    # A mislabelled row has the lowest score.
    assert np.argmin(aum([[RIGHT, RIGHT, WRONG]], [0, 1, 1])) == 1


def test_entropy_by_hand() -> None:
    assert entropy([[0.0] * 4, [50.0, 0, 0, 0]]) == pytest.approx([math.log(4), 0.0], abs=1e-12)
    assert entropy(np.log([[0.5, 0.25, 0.25]])) == pytest.approx([1.5 * math.log(2)])
    # The sign: unsure rows have more of it, and none is below zero.
    assert (entropy([[0.0, 0.1], [0.0, 5.0]]) >= 0).all()
    assert np.argmax(entropy([[0.0, 5.0], [0.0, 0.1]])) == 1


def test_dyn_unc_by_hand() -> None:
    p = np.array([0.1, 0.3, 0.8])
    z = np.log(np.stack([p, 1 - p], axis=1))[:, None]
    # Windows (.1, .3) and (.3, .8): half the differences' squares over 1.
    assert dyn_unc(z, [0], window=2) == pytest.approx([(0.2 + 0.5) / math.sqrt(2) / 2])
    assert dyn_unc(z, [0], window=3) == pytest.approx([math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2)])
    assert dyn_unc(np.repeat(z[:1], 3, axis=0), [0], window=2).tolist() == [0.0]


def test_tdds_by_hand() -> None:
    p = np.log([[[0.5, 0.5]], [[0.8, 0.2]], [[0.5, 0.5]], [[0.5, 0.5]]])
    there = 0.8 * math.log(1.6) + 0.2 * math.log(2.5)
    back = 0.5 * math.log(1.6) + 0.5 * math.log(2.5)
    # Moves (there, back, 0); of two numbers the deviations' length is their difference / sqrt(2).
    first, second = abs(there - back) / math.sqrt(2), back / math.sqrt(2)
    assert tdds(p, [0], window=3, decay=0.9) == pytest.approx([0.9 * second + 0.09 * first], rel=1e-6)
    # With decay 1 only the last window counts, and it is not the first one.
    assert tdds(p, [0], window=3, decay=1.0) == pytest.approx([second], rel=1e-6)
    assert second != pytest.approx(first)


# -- by brute force --------------------------------------------------------------------------------------------------


def brute(name: str, logits: np.ndarray, y: int, norms: np.ndarray, window: int, decay: float) -> float:
    """One row's score from its logits (epochs, c), in loops."""
    p = [softmax(z) for z in logits]
    epochs, classes = logits.shape
    errors = [math.sqrt(sum((q[k] - (k == y)) ** 2 for k in range(classes))) for q in p]
    if name == "el2n":
        return sum(errors) / epochs
    if name == "grand":
        return sum(e * math.hypot(norm, 1) for e, norm in zip(errors, norms, strict=True)) / epochs
    margins = [z[y] - max(z[k] for k in range(classes) if k != y) for z in logits]
    if name == "aum":
        return sum(margins) / epochs
    if name == "forgetting":
        right = [margin > 0 for margin in margins]
        flips = sum(a and not b for a, b in zip(right, right[1:], strict=False))
        return flips if any(right) else epochs
    if name == "entropy":
        return -sum(value * math.log(value) for value in p[-1])
    if name == "dyn_unc":
        own = [q[y] for q in p]
        windows = [own[k : k + window] for k in range(epochs - window + 1)]
        return sum(float(np.std(part, ddof=1)) for part in windows) / len(windows)
    moves = [
        sum(abs(b[k] * (math.log(b[k]) - math.log(a[k]))) for k in range(classes))
        for a, b in zip(p, p[1:], strict=False)
    ]
    total = 0.0
    for k in range(epochs - window + 1):
        part = moves[k : k + window - 1]
        uneven = math.sqrt(sum((move - sum(part) / len(part)) ** 2 for move in part))
        total += decay * (1 - decay) ** (epochs - window - k) * uneven
    return total


@pytest.mark.parametrize("name", HARDEST)
@pytest.mark.parametrize("window", [3, 4, 7])
def test_every_score_against_its_plainest_form(name: str, window: int) -> None:
    logits, labels, norms = history(window)
    scores = TrainingScores(labels, 4, [name], window=window, decay=0.7)
    for epoch in range(len(logits)):
        scores.update(slice(0, 40), logits[epoch], norms[epoch])
    expected = [brute(name, logits[:, i], labels[i], norms[:, i], window, 0.7) for i in range(40)]
    assert scores.results()[name] == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_the_functions_and_the_streams_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_scores, "BLOCK_ROWS", 7)
    logits, labels, norms = history(1)
    stream = TrainingScores(labels, 4, list(HARDEST), window=5, early=7)
    for epoch in range(7):
        stream.update(slice(None), logits[epoch], norms[epoch])
    whole = {
        "el2n": el2n(logits, labels),
        "grand": grand(logits, labels, norms),
        "forgetting": forgetting(logits, labels),
        "aum": aum(logits, labels),
        "entropy": entropy(logits[-1]),
        "dyn_unc": dyn_unc(logits, labels, window=5),
        "tdds": tdds(logits, labels, window=5),
    }
    for name, values in stream.results().items():
        assert values == pytest.approx(whole[name], rel=1e-12), name


def test_blocks_may_come_in_any_order() -> None:
    logits, labels, norms = history(2)
    straight = TrainingScores(labels, 4, list(HARDEST), window=4)
    shuffled = TrainingScores(labels, 4, list(HARDEST), window=4)
    rng = np.random.default_rng(0)
    for epoch in range(7):
        straight.update(slice(0, 40), logits[epoch], norms[epoch])
        for rows in np.array_split(rng.permutation(40), 6):
            shuffled.update(rows, logits[epoch, rows], norms[epoch, rows])
    for name, values in straight.results().items():
        assert np.array_equal(shuffled.results()[name], values), name


def test_adding_a_number_to_a_row_s_logits_changes_nothing() -> None:
    logits, labels, norms = history(4)
    moved = logits + np.random.default_rng(1).normal(size=(7, 40, 1))
    for function in (el2n, forgetting, aum, lambda z, y: dyn_unc(z, y, window=4), lambda z, y: tdds(z, y, window=4)):
        assert function(moved, labels) == pytest.approx(function(logits, labels), rel=1e-5)
    assert entropy(moved[0]) == pytest.approx(entropy(logits[0]))
    assert grand(moved, labels, norms) == pytest.approx(grand(logits, labels, norms))


def test_el2n_and_grand_look_at_early_epochs_only() -> None:
    logits, labels, norms = history(5)
    stream = TrainingScores(labels, 4, ["el2n", "grand", "aum"], early=2)
    for epoch in range(7):
        stream.update(slice(0, 40), logits[epoch], norms[epoch])
    found = stream.results()
    assert found["el2n"] == pytest.approx(el2n(logits[:2], labels))
    assert found["grand"] == pytest.approx(grand(logits[:2], labels, norms[:2]))
    assert found["aum"] == pytest.approx(aum(logits, labels))


def test_large_logits_stay_finite() -> None:
    z = np.array([[[1e4, 0.0]], [[0.0, 1e4]], [[1e4, 0.0]]])
    stream = TrainingScores([1], 2, list(HARDEST), window=3)
    for epoch in z:
        stream.update(slice(0, 1), epoch, [1.0])
    assert all(np.isfinite(values).all() for values in stream.results().values())


def test_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="no score 'el2m'; there are: el2n, grand"):
        TrainingScores([0], 2, ["el2m"])
    with pytest.raises(ValueError, match="two classes or more, not 1"):
        TrainingScores([0], 1, ["el2n"])
    with pytest.raises(ValueError, match=r"codes in 0\.\.1"):
        TrainingScores([0, 2], 2, ["el2n"])
    with pytest.raises(ValueError, match="tdds needs a window of 3 epochs or more: 2"):
        TrainingScores([0], 2, ["tdds"], window=2)
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\], not 0"):
        TrainingScores([0], 2, ["tdds"], decay=0.0)
    with pytest.raises(ValueError, match="dyn_unc needs 10 epochs, one window, and there are 1"):
        dyn_unc([[[0.0, 1.0]]], [0])
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(1,\)"):
        el2n([[0.0, 1.0]], [0])
    with pytest.raises(ValueError, match=r"one epoch, not an array of shape \(1, 1, 2\)"):
        entropy([[[0.0, 1.0]]])
    stream = TrainingScores([0, 1], 2, ["grand"])
    with pytest.raises(ValueError, match="grand needs the length"):
        stream.update(slice(0, 2), [[0.0, 1.0]] * 2)
    with pytest.raises(ValueError, match=r"shape \(1, 3\) do not fit 1 rows of 2 classes"):
        stream.update(slice(0, 1), [[0.0, 1.0, 2.0]], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        stream.update(slice(0, 1), [[0.0, np.nan]], [1.0])
    with pytest.raises(ValueError, match="no epoch"):
        stream.results()
    stream.update(slice(0, 1), [[0.0, 1.0]], [1.0])
    with pytest.raises(ValueError, match="some rows have 1 epochs and others 0"):
        stream.results()
    with pytest.raises(ValueError, match="at different epochs, 1 to 2"):
        stream.update(slice(0, 2), [[0.0, 1.0]] * 2, [1.0, 1.0])
