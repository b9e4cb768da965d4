"""The nearest centroid of each row: in coarse numbers first, in finer ones where two centroids are too close to tell.

The answer is that of float64 cosines in whole millionths, ties to the smaller index, whatever was used to skip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import NOTHING, WINDOW, Pairs, Tile, decode, improve
from datas3_ray.kernels.screen import Screen, Units, Workspace

if TYPE_CHECKING:
    import torch


class Closest:
    """Finds nearest centroids for blocks of up to ``lines`` rows.

    Args:
        centroids: float32 (k, d), unit, k > 1 where ``units`` are given, and then on the CPU.
        units: coarse numbers to look at, the coarser first; none to go straight to float32.
        lines: the most rows of a block.

    >>> import torch
    >>> Closest(torch.eye(3), ["bfloat16"], 4).of(torch.eye(3)[[2, 0]]).tolist()
    [2, 0]
    """

    def __init__(self, centroids: torch.Tensor, units: Sequence[Units], lines: int) -> None:
        import torch

        self.centroids, self.turned = centroids, centroids.T.contiguous()
        self.levels = [Screen(centroids, each, one_step=True) for each in units]
        self.buffer = torch.empty((lines, len(centroids)), device=centroids.device)
        self.space = Workspace(lines, len(centroids)) if self.levels else None

    def of(
        self, rows: torch.Tensor, coarse: Callable[[int, npt.NDArray[np.int64] | None], Screen] | None = None
    ) -> torch.Tensor:
        """Index of the nearest centroid of each unit row, int64 (n,).

        ``coarse(level, left)`` gives those rows in a level's coarse numbers, all of them for None; by default they are
        rounded here.
        """
        import torch

        index = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        left = np.arange(len(rows))
        for number, level in enumerate(self.levels):
            if level.useless:
                continue
            which = None if len(left) == len(rows) else left
            if coarse is not None:
                part = coarse(number, which)
            else:
                part = Screen(rows if which is None else rows[torch.from_numpy(which)], level.units)
            found, close = self._look(part, level)
            index[torch.from_numpy(left)] = found
            level.tiles += 1
            level.crowded += 2 * len(close) > len(left)
            left = left[close]
            if not len(left):
                return index
        lines = torch.from_numpy(left).to(rows.device)
        rest = rows if len(left) == len(rows) else rows.index_select(0, lines)
        cosines = torch.mm(rest, self.turned, out=self.buffer[: len(rest)])
        index[lines] = _decided(rest, self.centroids, cosines)
        return index

    def _look(self, part: Screen, level: Screen) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """The nearest centroids, and the rows where two cosines that are off together could tell otherwise."""
        import torch

        assert self.space is not None
        tile = (part, 0, len(part), level, 0, len(level))
        step = part.step.astype(np.float64)
        lowest: float
        if level.units == "int8":
            # As all integers of the centroids are worth the same, their products need no conversion to be compared.
            cosines, lowest = self.space.integers(*tile), torch.iinfo(torch.int32).min
            step *= level.step[0]
        else:
            cosines, lowest = self.space.product(*tile), -torch.inf
        index, peak = _largest(cosines)
        cosines[torch.arange(len(part)), index] = lowest
        most, second = peak.numpy() * step, cosines.amax(1).numpy() * step
        bound = part.bound(0, len(part), level, 0, len(level)) + part.rounding(most)
        return index, np.flatnonzero(second >= most - 2 * bound)


def _decided(rows: torch.Tensor, centroids: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    """The nearest centroid of each row of a block by float32 cosines, close calls by exact ones."""
    import torch

    index, peak = _largest(cosines)
    every = torch.arange(len(rows), device=rows.device)
    cosines[every, index] = -torch.inf
    lines = torch.nonzero(cosines.amax(1) >= peak - WINDOW).view(-1)
    cosines[every, index] = peak
    if len(lines) == 0:
        return index

    def exact(chosen: torch.Tensor) -> torch.Tensor:
        return rows[lines[chosen]].double() @ centroids.double().T

    best = torch.full_like(lines, NOTHING)
    improve(best, Tile(cosines[lines], lines, torch.zeros_like(lines), exact), Pairs(rows, centroids))
    index[lines] = torch.from_numpy(decode(best)[1]).to(rows.device)
    return index


def _largest(cosines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first largest column of each line and its value; numpy's argmax is eight times as fast on the CPU."""
    import torch

    if cosines.device.type != "cpu":
        peak, index = cosines.max(1)
        return index, peak
    index = torch.from_numpy(np.argmax(cosines.numpy(), axis=1))
    return index, cosines.gather(1, index[:, None]).view(-1)
