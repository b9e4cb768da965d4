"""The epochs of a network's training: how many there are, which is the best, when a loss is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from datas3_ray.errors import Datas3Error
from datas3_ray.training.metrics import metric

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.config import SweepConfig


class _Judged(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def validation_loss(self) -> float: ...


E = TypeVar("E", bound=_Judged)


def budget(config: SweepConfig, size: int) -> Iterator[tuple[int, int]]:
    """Numbers of the epochs of ``size`` rows, from 1, and how many rows each may see.

    >>> from datas3_ray.training.config import SweepConfig
    >>> resnet = {"model": "resnet50", "grid": {"batch_size": 8, "lr": 0.1}}
    >>> list(budget(SweepConfig(epochs=2), 10)), list(budget(SweepConfig(samples=25, **resnet), 10))
    ([(1, 10), (2, 10)], [(1, 10), (2, 10), (3, 5)])
    """
    for number in range(1, epochs_of(config, size) + 1):
        yield number, size if config.samples is None else min(size, config.samples - (number - 1) * size)


def epochs_of(config: SweepConfig, size: int) -> int:
    """How many epochs of ``size`` rows the budget has.

    >>> from datas3_ray.training.config import SweepConfig
    >>> resnet = {"model": "resnet50", "grid": {"batch_size": 8, "lr": 0.1}}
    >>> epochs_of(SweepConfig(epochs=2), 10), epochs_of(SweepConfig(samples=25, **resnet), 10)
    (2, 3)
    """
    return config.epochs if config.samples is None else -(-config.samples // max(size, 1))


def steps(config: SweepConfig, size: int, batch_size: int) -> int:
    """Steps of the whole budget; the last batch of an epoch has what is left."""
    return sum(-(-limit // batch_size) for _, limit in budget(config, size))


def train_epochs(
    config: SweepConfig,
    size: int,
    train: Callable[[int, int], E],
    worth: Callable[[E], float],
    network: torch.nn.Module,
    tell: Callable[[E], None],
) -> tuple[E, int]:
    """Train until the budget or the patience is used up; leaves the network as it was after its best epoch.

    Parameters
    ----------
    size : int
        Rows of an epoch.
    train : callable
        Trains an epoch by its number and the rows it may see.
    worth : callable
        An epoch's value of the sweep's metric; the best is kept, among equals the one of lowest validation loss.
    tell : callable
        Called after each epoch.

    Returns
    -------
    The best epoch, and how many there were.
    """
    sign = 1 if metric(config.metric).higher_is_better else -1
    best: E | None = None
    rank: tuple[float, float] = (-math.inf, -math.inf)
    kept: dict[str, torch.Tensor] = {}
    number = 0
    for number, limit in budget(config, size):
        epoch = train(number, limit)
        mine = sign * worth(epoch), -epoch.validation_loss
        if best is None or mine > rank:
            best, rank, kept = epoch, mine, _changing(network)
        tell(epoch)
        if config.samples is None and number - best.number >= config.patience:
            break
    assert best is not None
    network.load_state_dict(kept, strict=False)
    return best, number


def check_loss(loss: float, number: int) -> None:
    """Raise a Datas3Error for an epoch whose loss is not finite."""
    if not math.isfinite(loss):
        word = "not a number" if math.isnan(loss) else "infinite"
        raise Datas3Error(f"the loss became {word} in epoch {number}; lower the learning rate.")


def parameter_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained: weights decay; biases and the scales of normalisations, which are vectors, do not."""
    trained = [value for value in network.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]


def _changing(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what training changes: parameters that are trained, and buffers."""
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    return {name: value.detach().clone() for name, value in network.state_dict().items() if name not in frozen}
