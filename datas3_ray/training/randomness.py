"""Torch's own random draws, made repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws of torch's generators (first weights, dropout) repeat, and others' go on as if nothing had been."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def epoch_seed(seed: int, number: int, rank: int) -> int:
    """A seed for one epoch of one worker.

    >>> epoch_seed(0, 1, 0) == epoch_seed(0, 1, 0) != epoch_seed(0, 1, 1)
    True
    """
    return int(np.random.SeedSequence([seed, number, rank]).generate_state(1, np.uint64)[0])
