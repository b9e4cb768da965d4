"""Scores of training rows from how a model's logits change over the epochs of its training.

All of them are functions of the logits after each epoch, and none changes when a number is added to all logits of a
row, so log-probabilities may be given in their place. :class:`TrainingScores` takes the epochs one block of rows at a
time and keeps what the formulas need; the functions take whole arrays (epochs, rows, classes) and give the same.

* EL2N and GraNd: Paul et al. 2021, arXiv 2107.07075.
* Forgetting: Toneva et al. 2019, arXiv 1812.05159.
* AUM: Pleiss et al. 2020, arXiv 2001.10528.
* Dyn-Unc: He et al. 2023, arXiv 2306.05175.
* TDDS: Zhang et al. 2024, arXiv 2311.13613.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Rows = slice | npt.NDArray[np.int64]

EARLY, WINDOW, DECAY = 10, 10, 0.9
BLOCK_ROWS = 8192

HARDEST = {
    "el2n": "highest",
    "grand": "highest",
    "forgetting": "highest",
    "aum": "lowest",
    "entropy": "highest",
    "dyn_unc": "highest",
    "tdds": "highest",
}
"""The scores by name, and which end of each is the rows that are hard, uncertain or still changing."""

LEAST_WINDOW = {"dyn_unc": 2, "tdds": 3}
"""Scores that look at a window of epochs, and the shortest window that says anything."""


def el2n(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Float64:
    """Length of the error vector, softmax - one hot, mean over the epochs given: in [0, sqrt(2)], hard rows highest.

    Args:
        logits: (epochs, n, c) after each epoch. The paper takes an early one, or the mean over some nets.
        labels: (n,) codes in 0..c-1.

    Returns:
        float64 (n,).

    Raises:
        ValueError: the shapes do not fit, a label is none of the classes, or a logit is not finite.

    >>> el2n([[[0.0, 0.0]]], [0]).round(4).tolist()
    [0.7071]
    """
    return _whole("el2n", logits, labels)


def grand(logits: npt.ArrayLike, labels: npt.ArrayLike, norms: npt.ArrayLike) -> Float64:
    """Norm of the loss's gradient by the last layer's weights and bias, mean over the epochs given; hard rows highest.

    The gradient of a row is (softmax - one hot) times its features and a 1 for the bias, so its norm is the product
    of two lengths and no gradient need be held.

    Args:
        logits: (epochs, n, c).
        labels: (n,).
        norms: (n,) or (epochs, n), lengths of the features that go into the last layer.

    >>> grand([[[0.0, 0.0]]], [0], [1.0]).round(4).tolist()
    [1.0]
    """
    return _whole("grand", logits, labels, norms=norms)


def forgetting(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Float64:
    """How often a row went from right to wrong between epochs; a row that was never right has the number of epochs.

    A row is right when its own logit is above every other. There are at most epochs / 2 such events, so the rows that
    were never learned rank as hardest, above every other, and the score stays finite.

    >>> right, wrong = [2.0, 0.0], [0.0, 2.0]
    >>> forgetting([[right, wrong], [wrong, wrong], [right, wrong]], [0, 0]).tolist()
    [1.0, 3.0]
    """
    return _whole("forgetting", logits, labels)


def aum(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Float64:
    """Area under the margin: own logit less the largest other, mean over the epochs; mislabelled rows lowest.

    >>> aum([[[3.0, 1.0, 0.0]], [[0.0, 0.0, 4.0]]], [0]).tolist()
    [-1.0]
    """
    return _whole("aum", logits, labels)


def entropy(logits: npt.ArrayLike) -> Float64:
    """Entropy -sum p log p of one epoch's logits (n, c), in nats: in [0, log c], uncertain rows highest.

    >>> entropy([[0.0, 0.0], [9.0, 0.0]]).round(4).tolist()
    [0.6931, 0.0012]
    """
    values = np.asarray(logits, np.float64)
    if values.ndim != 2:
        raise ValueError(f"entropy takes the logits (n, c) of one epoch, not an array of shape {values.shape}")
    return _whole("entropy", values[None], np.zeros(len(values), np.int64))


def dyn_unc(logits: npt.ArrayLike, labels: npt.ArrayLike, *, window: int = WINDOW) -> Float64:
    """Dynamic uncertainty: deviation of the label's probability in a window of epochs, mean over all windows.

    The deviation has ``window - 1`` below the line, as the paper writes it.

    >>> p = np.log([[[0.2, 0.8]], [[0.4, 0.6]], [[0.6, 0.4]]])
    >>> dyn_unc(p, [0], window=2).round(4).tolist()
    [0.1414]
    """
    return _whole("dyn_unc", logits, labels, window=window)


def tdds(logits: npt.ArrayLike, labels: npt.ArrayLike, *, window: int = WINDOW, decay: float = DECAY) -> Float64:
    """Temporal dual-depth score: how unevenly the prediction moved within windows, the latest counting most.

    The move between two epochs is sum over classes of |p' (log p' - log p)|. A window of ``window`` epochs has
    ``window - 1`` moves; R is the length of their deviations from their mean. The score is the exponential average
    S = decay R + (1 - decay) S of the windows in turn, from S = 0.

    >>> logits = np.log([[[0.5, 0.5]], [[0.8, 0.2]], [[0.8, 0.2]]])
    >>> move = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.5 / 0.2)
    >>> bool(np.isclose(tdds(logits, [0], window=3)[0], 0.9 * move / np.sqrt(2)))
    True
    """
    return _whole("tdds", logits, labels, window=window, decay=decay)


class TrainingScores:
    """The scores of ``n`` training rows, fed with the logits after each epoch.

    Blocks may come in any order and be of any rows, as long as each row comes once an epoch. What is kept: a few
    numbers a row; ``window`` numbers a row for ``dyn_unc`` and for ``tdds``; and for ``tdds`` the log-probabilities of
    one epoch, float32 (n, c). No other epoch is held.

    Args:
        labels: (n,) codes in 0..c-1.
        classes: c, at least 2.
        scores: names from ``HARDEST``.
        early: ``el2n`` and ``grand`` are means over the first this many epochs.
        window: epochs of a window of ``dyn_unc`` and ``tdds``.
        decay: weight of the latest window in ``tdds``, in (0, 1].

    Raises:
        ValueError: a score is unknown, a label is none of the classes, or a setting is out of its range.

    >>> scores = TrainingScores([0, 1], 2, ["aum", "forgetting"])
    >>> scores.update(slice(0, 2), np.array([[3.0, 1.0], [2.0, 0.0]]))
    >>> {name: values.tolist() for name, values in scores.results().items()}
    {'aum': [2.0, -2.0], 'forgetting': [0.0, 1.0]}
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        classes: int,
        scores: Sequence[str],
        *,
        early: int = EARLY,
        window: int = WINDOW,
        decay: float = DECAY,
    ) -> None:
        unknown = [name for name in scores if name not in HARDEST]
        if unknown:
            raise ValueError(f"no score '{unknown[0]}'; there are: {', '.join(HARDEST)}")
        self._labels: Int64 = np.asarray(labels, np.int64)
        if classes < 2:
            raise ValueError(f"training scores need two classes or more, not {classes}")
        if len(self._labels) and (self._labels.min() < 0 or self._labels.max() >= classes):
            raise ValueError(f"labels must be codes in 0..{classes - 1}")
        if early < 1:
            raise ValueError(f"early must be 1 or more, not {early}")
        self._classes = classes
        self._seen = np.zeros(len(self._labels), np.int64)
        options = {"early": early, "window": window, "decay": decay}
        self._streams = {name: _STREAMS[name](len(self._labels), classes, options) for name in scores}

    def update(self, rows: Rows, logits: npt.ArrayLike, norms: npt.ArrayLike | None = None) -> None:
        """Take the logits (b, c) of some rows after their next epoch; ``norms`` (b,) of their features for ``grand``.

        Raises:
            ValueError: the shapes do not fit, a logit is not finite, or the rows are not all at the same epoch.
        """
        values = np.asarray(logits, np.float64)
        labels, seen = self._labels[rows], self._seen[rows]
        if values.shape != (len(labels), self._classes):
            raise ValueError(f"logits of shape {values.shape} do not fit {len(labels)} rows of {self._classes} classes")
        if not len(labels):
            return
        if not np.isfinite(values).all():
            raise ValueError("a logit is not finite")
        if (seen != seen[0]).any():
            raise ValueError(f"the rows of a block are at different epochs, {seen.min() + 1} to {seen.max() + 1}")
        lengths = None if norms is None else np.asarray(norms, np.float64)
        if "grand" in self._streams and (lengths is None or lengths.shape != labels.shape):
            raise ValueError(f"grand needs the length of the features of each of the {len(labels)} rows")
        block = _Block(int(seen[0]), values, labels, lengths)
        for stream in self._streams.values():
            stream.update(rows, block)
        self._seen[rows] += 1

    def results(self) -> dict[str, Float64]:
        """Name -> float64 (n,), after the epochs so far.

        Raises:
            ValueError: some rows lack an epoch that others have, or there are fewer epochs than a window.
        """
        least, most = (int(self._seen.min()), int(self._seen.max())) if len(self._seen) else (0, 0)
        if least != most:
            raise ValueError(f"some rows have {most} epochs and others {least}; each needs every epoch")
        if len(self._seen) and not most:
            raise ValueError("there is no epoch to score")
        return {name: stream.result(most) for name, stream in self._streams.items()}


class _Block:
    """One epoch's logits (b, c) of some rows and what several scores make of them. ``epoch`` counts from 0."""

    def __init__(self, epoch: int, logits: Float64, labels: Int64, norms: Float64 | None) -> None:
        self.epoch, self.logits, self.norms = epoch, logits, norms
        self.own = (np.arange(len(labels)), labels)

    @cached_property
    def log_p(self) -> Float64:
        shifted = self.logits - self.logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    @cached_property
    def p(self) -> Float64:
        return np.asarray(np.exp(self.log_p))

    @cached_property
    def error(self) -> Float64:
        """Length of softmax - one hot."""
        residual = self.p.copy()
        residual[self.own] -= 1
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", residual, residual)))

    @cached_property
    def margin(self) -> Float64:
        others = self.logits.copy()
        others[self.own] = -np.inf
        return np.asarray(self.logits[self.own] - others.max(axis=1))


class _Mean:
    """The mean of a number over the first epochs, or over all of them."""

    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        self.total = np.zeros(rows)
        self.epochs: int | None = None

    def update(self, rows: Rows, block: _Block) -> None:
        if self.epochs is None or block.epoch < self.epochs:
            self.total[rows] += self.value(block)

    def value(self, block: _Block) -> Float64:
        raise NotImplementedError

    def result(self, epochs: int) -> Float64:
        return np.asarray(self.total / max(1, epochs if self.epochs is None else min(epochs, self.epochs)))


class _El2n(_Mean):
    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        super().__init__(rows, classes, options)
        self.epochs = options["early"]

    def value(self, block: _Block) -> Float64:
        return block.error


class _Grand(_El2n):
    def value(self, block: _Block) -> Float64:
        assert block.norms is not None
        return np.asarray(block.error * np.sqrt(np.square(block.norms) + 1))


class _Aum(_Mean):
    def value(self, block: _Block) -> Float64:
        return block.margin


class _Forgetting:
    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        self.right, self.learned = np.zeros(rows, bool), np.zeros(rows, bool)
        self.events = np.zeros(rows)

    def update(self, rows: Rows, block: _Block) -> None:
        right = block.margin > 0
        self.events[rows] += self.right[rows] & ~right
        self.right[rows] = right
        self.learned[rows] |= right

    def result(self, epochs: int) -> Float64:
        return np.where(self.learned, self.events, float(epochs))


class _Entropy:
    """Of the latest epoch."""

    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        self.latest = np.zeros(rows)

    def update(self, rows: Rows, block: _Block) -> None:
        self.latest[rows] = -np.einsum("ij,ij->i", block.p, block.log_p)

    def result(self, epochs: int) -> Float64:
        return self.latest


class _Windowed:
    """A score that looks at a window of epochs."""

    name: str

    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        self.window = options["window"]
        if self.window < LEAST_WINDOW[self.name]:
            raise ValueError(f"{self.name} needs a window of {LEAST_WINDOW[self.name]} epochs or more: {self.window}")

    def check(self, epochs: int) -> None:
        if epochs < self.window:
            raise ValueError(f"{self.name} needs {self.window} epochs, one window, and there are {epochs}")


class _DynUnc(_Windowed):
    name = "dyn_unc"

    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        super().__init__(rows, classes, options)
        self.ring, self.total = np.zeros((self.window, rows)), np.zeros(rows)

    def update(self, rows: Rows, block: _Block) -> None:
        self.ring[block.epoch % self.window, rows] = block.p[block.own]
        if block.epoch + 1 >= self.window:
            self.total[rows] += self.ring[:, rows].std(axis=0, ddof=1)

    def result(self, epochs: int) -> Float64:
        self.check(epochs)
        return np.asarray(self.total / (epochs - self.window + 1))


class _Tdds(_Windowed):
    name = "tdds"

    def __init__(self, rows: int, classes: int, options: dict[str, Any]) -> None:
        super().__init__(rows, classes, options)
        self.decay = options["decay"]
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], not {self.decay}")
        self.before = np.zeros((rows, classes), np.float32)
        self.ring, self.average = np.zeros((self.window - 1, rows)), np.zeros(rows)

    def update(self, rows: Rows, block: _Block) -> None:
        # Both rounded alike, so that a prediction that stays as it is does not move.
        log_p = block.log_p.astype(np.float32)
        if block.epoch:
            move = np.abs(block.p * (log_p - self.before[rows])).sum(axis=1)
            self.ring[(block.epoch - 1) % (self.window - 1), rows] = move
        self.before[rows] = log_p
        if block.epoch + 1 >= self.window:
            moves = self.ring[:, rows]
            uneven = np.linalg.norm(moves - moves.mean(axis=0), axis=0)
            self.average[rows] = self.decay * uneven + (1 - self.decay) * self.average[rows]

    def result(self, epochs: int) -> Float64:
        self.check(epochs)
        return self.average


_STREAMS: dict[str, Any] = {
    "el2n": _El2n,
    "grand": _Grand,
    "forgetting": _Forgetting,
    "aum": _Aum,
    "entropy": _Entropy,
    "dyn_unc": _DynUnc,
    "tdds": _Tdds,
}


def _whole(
    name: str, logits: npt.ArrayLike, labels: npt.ArrayLike, norms: npt.ArrayLike | None = None, **options: Any
) -> Float64:
    """A score of whole arrays, in blocks of bounded memory."""
    values, codes = np.asarray(logits), np.asarray(labels, np.int64)
    if values.ndim != 3 or codes.shape != values.shape[1:2]:
        raise ValueError(
            f"logits must be (epochs, n, c) and labels (n,), and they have the shapes {values.shape} and {codes.shape}"
        )
    epochs, rows, classes = values.shape
    lengths = None if norms is None else np.broadcast_to(np.asarray(norms, np.float64), (epochs, rows))
    scores = TrainingScores(codes, classes, [name], **{"early": max(1, epochs), **options})
    for epoch in range(epochs):
        for first in range(0, rows, BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            scores.update(part, values[epoch, part], None if lengths is None else lengths[epoch, part])
    return scores.results()[name]
