"""The one layer of a linear probe, and the steps that train it, with as few calls a step as the arithmetic allows.

A step on 32 rows is tens of microseconds of arithmetic, so what counts is the number of calls. Rows are gathered some
batches at a time into memory that is used again and again, so that a step's views exist beforehand, and the loss is
taken once for all batches of a block. Adam does not care for a constant factor of the gradient but for its epsilon, so
the gradient stays undivided and the epsilon is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

BLOCK_ROWS = 1024
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class _Batch(NamedTuple):
    """One batch's views: rows (b, d), and transposed; what is aimed at, outputs and residual, (k, b)."""

    rows: torch.Tensor
    across: torch.Tensor
    aim: torch.Tensor
    outputs: torch.Tensor
    residual: torch.Tensor


class _Block:
    """Memory for m batches of b rows: rows (m b, d), and of each batch what is aimed at, outputs and residual (k, b).

    A row of classes after a row of classes, rather than the other way round, makes both matrix products twice as fast.
    """

    def __init__(self, batches: int, size: int, outputs: int, dimensions: int, device: torch.device) -> None:
        self.rows = torch.empty(batches * size, dimensions, device=device)
        self.aim, self.outputs, self.residual = (torch.empty(batches, outputs, size, device=device) for _ in range(3))
        rows = self.rows.view(batches, size, dimensions)
        views = (rows, rows.mT, self.aim, self.outputs, self.residual)
        self.batches = [_Batch(*parts) for parts in zip(*(view.unbind() for view in views), strict=True)]

    def fill(self, x: torch.Tensor, rows: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Gather rows of x, which are returned, and what is aimed at: one hot of codes, or the targets themselves."""
        torch.index_select(x, 0, rows, out=self.rows)
        truths = truth.view(len(self.batches), 1, -1)
        if truth.is_floating_point():
            self.aim.copy_(truths)
        else:
            self.aim.zero_().scatter_(1, truths, 1.0)
        return self.rows

    def loss(self, truth: torch.Tensor) -> torch.Tensor:
        """The summed loss of the block's outputs."""
        return loss_sum(self.outputs.mT.reshape(len(self.rows), -1), truth)


class ProbeLayer:
    """Weight (k, d) and bias (k,) in one piece of memory, and Adam (Kingma and Ba 2015, algorithm 1) on both.

    ``regression`` minimises the squared error of one output; otherwise k classes have the cross-entropy of their
    softmax. ``weight_decay`` is Adam's L2 penalty on the weights.
    """

    def __init__(
        self,
        outputs: int,
        dimensions: int,
        *,
        batch_size: int,
        lr: float,
        weight_decay: float,
        regression: bool,
        device: torch.device,
    ) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        self.lr, self.regression, self.steps = lr, regression, 0
        # What the residuals' sum is larger by than the gradient of the mean loss.
        self._excess = batch_size / 2 if regression else float(batch_size)
        self._decay = weight_decay * self._excess
        count = outputs * (dimensions + 1)
        self._both, self._gradient, self._first, self._second, self._root = (zeros(count) for _ in range(5))
        split = outputs * dimensions
        self.weight, self.bias = self._both[:split].view(outputs, dimensions), self._both[split:]
        self._by_weight, self._by_bias = self._gradient[:split].view(outputs, dimensions), self._gradient[split:]
        self._column = self.bias.unsqueeze(1)
        self._shape = outputs, dimensions
        self.batch_size = batch_size
        self._blocks: dict[tuple[int, int], _Block] = {}

    @torch.inference_mode()  # small steps cost less without what gradients would need
    def learn(
        self,
        x: torch.Tensor,
        rows: torch.Tensor,
        truth: torch.Tensor,
        scale: Callable[[torch.Tensor, torch.Tensor], object],
        factors: torch.Tensor,
    ) -> float:
        """One epoch over ``rows`` of x (n, d), in their order; returns the summed loss.

        ``truth`` (r,) are their codes int64, or targets float32; ``scale(vectors, factors)`` changes gathered vectors
        in place.
        """
        total = torch.zeros((), device=x.device, dtype=torch.float64)
        sizes = self._sizes(len(rows))
        parts = (part.split([batches * size for batches, size in sizes]) for part in (rows, truth, factors))
        for shape, part, truths, of_part in zip(sizes, *parts, strict=True):
            block = self._block(*shape)
            scale(block.fill(x, part, truths), of_part)
            for batch in block.batches:
                self._step(batch, self.batch_size / shape[1])
            total += block.loss(truths)
        return float(total)

    def _sizes(self, count: int) -> list[tuple[int, int]]:
        """Batches and their size, of one block after another; the last batch of an epoch may be smaller."""
        batches, rest = divmod(count, self.batch_size)
        most = max(1, BLOCK_ROWS // self.batch_size)
        sizes = [(min(most, batches - start), self.batch_size) for start in range(0, batches, most)]
        return [*sizes, (1, rest)] if rest else sizes

    def _block(self, batches: int, size: int) -> _Block:
        """Every epoch has blocks of the same few sizes."""
        if (batches, size) not in self._blocks:
            self._blocks[batches, size] = _Block(batches, size, *self._shape, self.weight.device)
        return self._blocks[batches, size]

    def _step(self, batch: _Batch, weight: float) -> None:
        torch.addmm(self._column, self.weight, batch.across, out=batch.outputs)
        if self.regression:
            torch.sub(batch.outputs, batch.aim, out=batch.residual)
        else:
            torch.softmax(batch.outputs, 0, out=batch.residual)
            batch.residual.sub_(batch.aim)
        if weight != 1:
            batch.residual.mul_(weight)
        torch.mm(batch.residual, batch.rows, out=self._by_weight)
        torch.sum(batch.residual, 1, out=self._by_bias)
        if self._decay:
            self._by_weight.add_(self.weight, alpha=self._decay)
        self.steps += 1
        self._first.lerp_(self._gradient, 1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(self._gradient, self._gradient, value=1 - _BETA2)
        # The bias correction of the second moment, taken out of the root.
        scale = math.sqrt(1 - _BETA2**self.steps)
        root = torch.sqrt(self._second, out=self._root).add_(_EPSILON * scale * self._excess)
        self._both.addcdiv_(self._first, root, value=-self.lr * scale / (1 - _BETA1**self.steps))


def loss_sum(outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The summed loss of outputs (n, k): cross-entropy in nats of codes (n,), or squared error of targets (n,)."""
    if truth.is_floating_point():
        return (outputs[:, 0] - truth).square().sum()
    return torch.nn.functional.cross_entropy(outputs, truth, reduction="sum")
