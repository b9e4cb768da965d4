"""Cosines of chosen pairs, which the kernels ask for after a quick look."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from datas3_ray.kernels._tiles import WINDOW
from datas3_ray.kernels.screen import dots

WARNS_OF_NOTHING = """
import warnings
import numpy as np, torch
from datas3_ray.kernels.order_statistic import OrderStatistic
rows = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)))
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    found = OrderStatistic(rows, 2, 8, screened=True)
    found.of(rows[:8])
assert found.screen.crowded == 0, "nothing was screened"
assert not heard, [str(warning.message) for warning in heard]
"""


def test_cosines_of_pairs_equal_float64_ones_whatever_pairs_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    left, right = (torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 40)))) for n in (30, 70))
    i = np.sort(rng.integers(5, 25, 200))  # some rows are asked for often, some never
    j = rng.integers(0, 70, 200)
    exact = (left.numpy()[i] * right.numpy()[j]).sum(1)
    assert np.abs(dots(left.float(), i, right.float(), j) - exact).max() < WINDOW / 2
    assert dots(left.float(), i[:0], right.float(), j[:0]).shape == (0,)
    # The rows may be a part of others.
    assert (dots(left.float()[5:25], i - 5, right.float(), j) == dots(left.float(), i, right.float(), j)).all()


def test_asking_for_pairs_warns_of_nothing() -> None:
    """In a process of its own: torch warns of sparse matrices once."""
    subprocess.run([sys.executable, "-c", WARNS_OF_NOTHING], check=True, timeout=300)
