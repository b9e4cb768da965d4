"""A linear probe: multinomial logistic or linear regression on fixed vectors, trained by Adam in mini-batches.

The loop is written for many short runs: rows are gathered by a permutation instead of a data loader, the gradient of
the loss is written out instead of recorded, and nothing is copied but some batches at a time
(:mod:`datas3_ray.training.probe_layer`), so a run costs little more than its matrix products. The result depends on the
data and the settings alone, never on the order in which rows were stored (:mod:`datas3_ray.training.data` sorts them by
id) or on what else runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datas3_ray.training.metrics import metric
from datas3_ray.training.probe_layer import ProbeLayer, loss_sum
from datas3_ray.training.target import Target

CHUNK_ROWS = 8192


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained.

    ``weight_decay`` is Adam's L2 penalty on the weights (not the bias); ``patience`` is the number of epochs without
    progress on validation after which training stops. ``normalize`` scales every vector to the length sqrt(d), so that
    only its direction counts; ``standardize`` then scales every dimension to mean 0 and deviation 1 on the training
    rows.
    """

    batch_size: int = 64
    lr: float = 1e-3
    epochs: int = 20
    patience: int = 5
    weight_decay: float = 0.0
    normalize: bool = True
    standardize: bool = False
    metric: str = "accuracy"
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows gave: the mean loss and the validation metric.

    The loss is the cross-entropy in nats, or the squared error of the scaled target.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation: float


@dataclass(frozen=True)
class Probe:
    """A trained probe. ``weight`` (c, d) and ``bias`` (c,) apply to ``(x - mean) / std``; all float32 on the CPU.

    With ``normalize`` x is first scaled to the length sqrt(d). A regression has a ``target``, one output and no
    ``classes``.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    classes: tuple[str, ...]
    normalize: bool = False
    target: Target | None = None

    def logits(self, x: np.ndarray | torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Scores (n, c) of vectors ``x`` (n, d), or of its ``rows`` only, in chunks of bounded memory."""
        return _logits(_tensor(x), rows, self.weight, self.bias, _Scale(self.normalize, self.mean, 1 / self.std))

    def predict(self, x: np.ndarray | torch.Tensor) -> np.ndarray:
        """The most likely class's code for each row of ``x`` (n, d), int64 (n,); ties go to the lower code.

        A regression gives its numbers, float64 (n,), in the target's unit.
        """
        return _predicted(self.logits(x), self.target)


@dataclass(frozen=True)
class Fit:
    """A trained probe, the epoch it was taken from (1-based), and every epoch's figures."""

    probe: Probe
    epoch: int
    validation: float
    history: tuple[Epoch, ...]


def fit_probe(
    x: np.ndarray | torch.Tensor,
    y: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    classes: Sequence[str],
    settings: ProbeSettings,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_logits: Callable[[int, int, np.ndarray], None] | None = None,
    device: str | None = None,
) -> Fit:
    """Train a probe and return it as it was after its best epoch on validation.

    The best epoch has the best metric; among equals the lowest validation loss, then the earliest.

    Parameters
    ----------
    x : float32 (n, d)
        Vectors; may be read-only and hold more rows than are used.
    y : int64 or float64 (n,)
        Codes into ``classes``, or without classes the numbers to predict; read at the rows of ``train`` and
        ``validation`` only.
    train, validation : int64
        Rows of ``x`` to learn from and to choose the epoch by.
    classes : sequence of str
        Names of the classes; none for a regression, which minimises the squared error.
    settings : ProbeSettings
        Learning rate, epochs and the like.
    on_epoch : callable, optional
        Called with each :class:`Epoch`.
    on_logits : callable, optional
        Called after each epoch as ``on_logits(epoch, first, logits)`` for one block of training rows after another:
        float32 (b, c) of the rows ``train[first : first + b]``, by the weights as they are then.
    device : str, optional
        A torch device; by default CUDA where there is any, else the CPU.

    Raises
    ------
    ValueError
        When there is nothing to learn from or to choose by.

    Examples
    --------
    >>> x = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]], dtype=np.float32)
    >>> rows = np.arange(4)
    >>> fit = fit_probe(x, np.array([0, 0, 1, 1]), rows, rows, classes=("up", "right"), settings=ProbeSettings(lr=0.1))
    >>> fit.probe.predict(x)
    array([0, 0, 1, 1])
    """
    if not len(train) or not len(validation):
        raise ValueError(f"a probe needs rows to train on and to validate on, got {len(train)} and {len(validation)}")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    target = None if classes else Target.of(y[train])
    data = _Data.of(x, y if target is None else target.scaled(y), train, validation, on)
    scale = _Scale.fit(data.x, data.train, settings)
    factor = scale.factors(data.x, data.train)
    layer = ProbeLayer(
        len(classes) or 1,
        data.x.shape[1],
        batch_size=min(settings.batch_size, len(train)),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        regression=target is not None,
        device=on,
    )
    weight, bias = layer.weight, layer.bias
    order = torch.Generator().manual_seed(settings.seed)
    score = metric(settings.metric)
    truth = data.y[data.validation]
    plain_truth = truth.cpu().numpy() if target is None else y[validation]
    best: Epoch | None = None
    best_key, best_state = (-math.inf, -math.inf), (weight, bias)
    history: list[Epoch] = []
    for number in range(1, settings.epochs + 1):
        shuffle = torch.randperm(len(data.train), generator=order).to(on)
        shuffled = data.train[shuffle]
        train_loss = layer.learn(data.x, shuffled, data.y[shuffled], scale, factor[shuffle]) / len(shuffled)
        logits = _logits(data.x, data.validation, weight, bias, scale)
        value = score(_predicted(logits.cpu(), target), plain_truth)
        validation_loss = float(loss_sum(logits, truth)) / len(truth)
        epoch = Epoch(number, train_loss, validation_loss, value)
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        if not math.isfinite(train_loss):
            raise ValueError(f"the training loss is {train_loss} in epoch {number}; a smaller lr may help")
        if on_logits is not None:
            for first, block in _logit_blocks(data.x, data.train, weight, bias, scale):
                on_logits(number, first, block.cpu().numpy())
        key = (value if score.higher_is_better else -value, -validation_loss)
        if math.isfinite(validation_loss) and key > best_key:
            best_key, best, best_state = key, epoch, (weight.clone(), bias.clone())
        elif best is not None and number - best.epoch >= settings.patience:
            break
    if best is None:
        raise ValueError(f"the validation loss was never finite in {len(history)} epochs; a smaller lr may help")
    probe = Probe(
        best_state[0].cpu(),
        best_state[1].cpu(),
        scale.mean.cpu(),
        (1 / scale.inverse_std).cpu(),
        tuple(classes),
        settings.normalize,
        target,
    )
    return Fit(probe, best.epoch, best.validation, tuple(history))


def feature_lengths(x: np.ndarray | torch.Tensor, train: np.ndarray, settings: ProbeSettings) -> np.ndarray:
    """Lengths (t,) of the training rows' vectors ``x[train]``, scaled as :func:`fit_probe` scales them; float32."""
    vectors, rows = _tensor(x), torch.tensor(train, dtype=torch.int64)
    scale = _Scale.fit(vectors, rows, settings)
    parts = [torch.linalg.vector_norm(scale(vectors[part]), dim=1) for part in rows.split(CHUNK_ROWS)]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


def save_probe(probe: Probe, path: str) -> None:
    """Write a probe so that ``torch.load(path, weights_only=True)`` gives back its tensors and the classes' names."""
    tensors = {"weight": probe.weight, "bias": probe.bias, "mean": probe.mean, "std": probe.std}
    target = vars(probe.target) if probe.target else None
    torch.save({**tensors, "classes": list(probe.classes), "normalize": probe.normalize, "target": target}, path)


def load_probe(path: str) -> Probe:
    """Read a probe that :func:`save_probe` wrote, from a file or an object store's uri."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    target = Target(**saved["target"]) if saved.get("target") else None
    return Probe(**{**saved, "classes": tuple(saved["classes"]), "target": target})


@dataclass(frozen=True)
class _Data:
    """Vectors, codes or targets, and both sets of rows, on the device. On the CPU the vectors are the caller's own."""

    x: torch.Tensor
    y: torch.Tensor
    train: torch.Tensor
    validation: torch.Tensor

    @staticmethod
    def of(
        x: np.ndarray | torch.Tensor, y: np.ndarray, train: np.ndarray, validation: np.ndarray, device: torch.device
    ) -> _Data:
        rows = [torch.tensor(part, dtype=torch.int64) for part in (train, validation)]
        vectors = _tensor(x)
        codes = torch.tensor(y, dtype=torch.float32 if np.issubdtype(y.dtype, np.floating) else torch.int64)
        if device.type == "cpu":
            return _Data(vectors, codes, rows[0], rows[1])
        used = torch.cat(rows)
        places = torch.arange(len(used), device=device)
        return _Data(
            vectors[used].to(device),
            codes[used].to(device),
            places[: len(rows[0])],
            places[len(rows[0]) :],
        )


def _predicted(outputs: torch.Tensor, target: Target | None) -> np.ndarray:
    """Codes int64 (n,) of outputs (n, k), or numbers float64 (n,) in the target's unit."""
    return outputs.argmax(1).numpy() if target is None else target.unscaled(outputs[:, 0].numpy())


def _logits(
    x: torch.Tensor,
    rows: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: _Scale,
) -> torch.Tensor:
    chunks = [block for _, block in _logit_blocks(x, rows, weight, bias, scale)]
    return torch.cat(chunks) if chunks else x.new_zeros(0, len(bias))


def _logit_blocks(
    x: torch.Tensor,
    rows: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: _Scale,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Place of the first row, and logits (b, c), of one block after another."""
    for start in range(0, len(x) if rows is None else len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        vectors = scale(x[part].clone() if rows is None else x.index_select(0, rows[part]))
        yield start, torch.addmm(bias, vectors, weight.t())


@dataclass(frozen=True)
class _Scale:
    """How vectors are scaled before the weights apply: rows to one length, then columns to mean and deviation."""

    normalize: bool
    mean: torch.Tensor
    inverse_std: torch.Tensor
    standardize: bool = True

    @staticmethod
    def fit(x: torch.Tensor, train: torch.Tensor, settings: ProbeSettings) -> _Scale:
        """The scaling that the settings ask for, its moments those of the training rows."""
        plain = _Scale(settings.normalize, x.new_zeros(x.shape[1]), x.new_ones(x.shape[1]), standardize=False)
        return _Scale(settings.normalize, *_moments(x, train, plain)) if settings.standardize else plain

    def __call__(self, rows: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
        """The rows (n, d), changed in place; ``factors`` (n,) are theirs where they are known."""
        if self.normalize:
            rows.mul_((self._factors(rows) if factors is None else factors).unsqueeze(1))
        return rows.sub_(self.mean).mul_(self.inverse_std) if self.standardize else rows

    def factors(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What each of some rows of x is multiplied by, (r,)."""
        if not self.normalize:
            return x.new_ones(len(rows))
        return torch.cat([self._factors(x[part]) for part in rows.split(CHUNK_ROWS)])

    def _factors(self, rows: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(rows, dim=1)
        # A vector of zeros has no direction and stays as it is.
        return torch.where(length > 0, math.sqrt(rows.shape[1]) / length, 1.0)


def _moments(x: torch.Tensor, rows: torch.Tensor, scale: _Scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1/standard deviation (d,) of some rows, summed in float64; a constant column keeps its scale."""
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for part in rows.split(CHUNK_ROWS):
        total += scale(x[part]).double().sum(0)
    mean = total / len(rows)
    squares = torch.zeros_like(mean)
    for part in rows.split(CHUNK_ROWS):
        squares += (scale(x[part]).double() - mean).square_().sum(0)
    std = (squares / len(rows)).sqrt_()
    # Below this a column is constant but for rounding, and dividing would blow that rounding up.
    flat = std <= 1e-6 * mean.abs() + 1e-12
    return mean.float(), torch.where(flat, torch.ones_like(std), 1 / std).float()


def _tensor(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The same memory as a float32 tensor. Arrays from Ray's object store are read-only, and nothing writes to them."""
    if isinstance(x, torch.Tensor):
        return x.float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
