"""The x-th largest cosine of each row with the queries, in bfloat16 numbers first where the CPU has units for them.

The answer is that of float64 cosines in whole millionths, whatever was used to skip: bfloat16 products leave the few
pairs of a row whose cosine may be the one that is sought, float32 products of those leave one or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import DENSE, WINDOW, Pairs, at_least, positions, rounded
from datas3_ray.kernels.screen import ROUNDED, Screen, dots

if TYPE_CHECKING:
    import torch

SPARSE = 4
"""Groups of columns, and pairs of a row that are looked at, for each of the x cosines that are sought."""

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""How many cosines of each row are certainly above its x-th largest; lines and columns of those that may be it."""


class OrderStatistic:
    """Finds the x-th largest cosines of blocks of up to ``lines`` rows.

    Args:
        right: float32 (m, d), unit.
        x: from 1 to m.
        lines: the most rows of a block.
        screened: whether to look at bfloat16 numbers first; ``right`` is on the CPU then.

    >>> import torch
    >>> OrderStatistic(torch.eye(3), 2, 4, screened=False).of(torch.eye(3)[:1]).tolist()
    [0]
    """

    def __init__(self, right: torch.Tensor, x: int, lines: int, *, screened: bool) -> None:
        import torch

        self.right, self.x = right, x
        self.groups = SPARSE * x
        self.screen = Screen(right, "bfloat16") if screened and self.groups <= len(right) else None
        self._coarse = torch.empty(lines * len(right) if self.screen is not None else 0, dtype=torch.bfloat16)
        self._fine = torch.empty(lines * len(right), device=right.device)

    def of(self, rows: torch.Tensor) -> npt.NDArray[np.int64]:
        """int64 (n,): the x-th largest cosine of each unit row, in whole millionths."""
        import torch

        found = None
        if self.screen is not None and not self.screen.useless:
            found = self._screened(rows, self.screen)
            self.screen.tiles += 1
            self.screen.crowded += found is None
        found = found or self._multiplied(rows)
        above, line, column = found
        if len(line) > DENSE * len(rows):
            every = rounded(rows.double() @ self.right.double().T).cpu().numpy()
            return np.asarray(np.partition(every, len(self.right) - self.x, axis=1)[:, len(self.right) - self.x])
        device = rows.device
        i, j = torch.from_numpy(line).to(device), torch.from_numpy(column).to(device)
        keys = Pairs(rows, self.right).keys(i, j).cpu().numpy()
        keys = keys[np.lexsort((-keys, line))]
        return np.asarray(keys[np.searchsorted(line, np.arange(len(rows))) + (self.x - 1 - above)])

    def _screened(self, rows: torch.Tensor, right: Screen) -> Found | None:
        """By bfloat16 products; None where too many are too close to tell, or some are not positive."""
        import torch

        n, m = len(rows), len(right)
        left = Screen(rows, "bfloat16")
        product = torch.mm(left.coarse, right.coarse.T, out=self._coarse[: n * m].view(n, m))
        # As 16-bit integers, positive bfloat16 numbers are in their own order, and above all negative ones.
        bits = product.view(torch.int16).numpy()
        off = left.bound(0, n, right, 0, m).astype(np.float32)
        limit = _limit(_floats(_of_groups(bits, self.groups, self.x)), off)
        if limit.min() <= 0:
            return None
        places = np.flatnonzero(bits >= _bits(limit)[:, None])
        if len(places) > SPARSE * self.x * n:
            return None
        line, column = np.divmod(places, m)
        values = _floats(bits.reshape(-1)[places])
        kth = _kth_of_lines(line, values, np.full(n, self.x - 1))
        certain = values * np.float32(1 - ROUNDED) - off[line] > (kth * np.float32(1 + ROUNDED) + off)[line]
        unclear = np.flatnonzero((values >= _limit(kth, off)[line]) & ~certain)
        above = np.bincount(line[certain], minlength=n)
        line, column = line[unclear], column[unclear]
        return _settled(line, column, dots(rows, line, self.right, column), above, self.x)

    def _multiplied(self, rows: torch.Tensor) -> Found:
        """By float32 products."""
        import torch

        n, m = len(rows), len(self.right)
        cosines = torch.mm(rows, self.right.T, out=self._fine[: n * m].view(n, m))
        found = self._among_large(cosines) if cosines.device.type == "cpu" and self.groups <= m else None
        if found is not None:
            return found
        kth = _kth_largest(cosines, self.x)
        above = (cosines > (kth + WINDOW)[:, None]).sum(1)
        line, column = positions(at_least(cosines, kth - WINDOW) & (cosines <= (kth + WINDOW)[:, None]))
        return above.cpu().numpy(), line.cpu().numpy(), column.cpu().numpy()

    def _among_large(self, cosines: torch.Tensor) -> Found | None:
        """By what reaches the x-th largest of some groups' maxima, which is no more than that of all.

        None where that is too much.
        """
        least = _of_groups(cosines.numpy(), self.groups, self.x) - np.float32(WINDOW)
        places = np.flatnonzero(cosines.numpy() >= least[:, None])
        if len(places) > SPARSE * self.x * len(cosines):
            return None
        line, column = np.divmod(places, cosines.shape[1])
        none = np.zeros(len(cosines), np.int64)
        return _settled(line, column, cosines.numpy().reshape(-1)[places], none, self.x)


def _of_groups(values: npt.NDArray[Any], groups: int, x: int) -> npt.NDArray[Any]:
    """(n,): the x-th largest of the maxima of at least some groups of columns, which x of each row's (n, m) reach."""
    while (half := values.shape[1] // 2) >= groups:
        values = np.maximum(values[:, :half], values[:, half : 2 * half])
    place = values.shape[1] - x
    return np.asarray(np.partition(values, place, axis=1)[:, place])


def _settled(
    line: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    above: npt.NDArray[np.int64],
    x: int,
) -> Found:
    """What float32 cosines of pairs tell, line by line, where ``above`` others of each row are known to be larger."""
    kth = _kth_of_lines(line, values, x - 1 - above)[line]
    larger = values > kth + np.float32(WINDOW)
    near = np.flatnonzero((values >= kth - np.float32(WINDOW)) & ~larger)
    return above + np.bincount(line[larger], minlength=len(above)), line[near], column[near]


def _kth_of_lines(
    line: npt.NDArray[np.int64], values: npt.NDArray[np.float32], rank: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32 (n,): the value of each line that has the rank (n,), 0 for the largest; ``line`` ascends."""
    count = np.bincount(line, minlength=len(rank))
    inside = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((len(rank), int(count.max())), -np.inf, np.float32)
    table[line, inside] = values
    table.sort(axis=1)
    return np.asarray(table[np.arange(len(rank)), table.shape[1] - 1 - rank])


def _kth_largest(cosines: torch.Tensor, x: int) -> torch.Tensor:
    import torch

    if x == 1:
        return cosines.amax(1)
    if cosines.device.type != "cpu":
        return torch.topk(cosines, x, dim=1).values[:, -1]
    place = cosines.shape[1] - x
    return torch.from_numpy(np.partition(cosines.numpy(), place, axis=1)[:, place].copy())


def _limit(kth: npt.NDArray[np.float32], off: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Below this no product is that of a cosine as large as that of a product ``kth``, where both may be ``off``."""
    return (kth * np.float32(1 - ROUNDED) - 2 * off) / np.float32(1 + ROUNDED)


def _floats(bits: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """The bfloat16 numbers of some bits."""
    return (bits.astype(np.int32) << 16).view(np.float32)


def _bits(floats: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """The bits of the largest bfloat16 numbers that do not exceed positive float32 numbers."""
    return (floats.view(np.int32) >> 16).astype(np.int16)
