"""Batch normalisation over all workers' rows, also on CPUs, where torch's own knows GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the workers, through which gradients flow back to all of them."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0])


def _summed(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


class SharedBatchNorm(torch.nn.BatchNorm2d):
    """``BatchNorm2d`` whose statistics are those of the global batch; a worker's part may have no rows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise images (b, c, h, w) by mean and variance over b, h, w and all workers."""
        if not self.training:
            return super().forward(input)
        count = torch.tensor([float(input.numel() // input.shape[1])], dtype=input.dtype, device=input.device)
        sums = _Sum.apply(torch.cat([input.sum((0, 2, 3)), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = input - mean[None, :, None, None]
        # Around the common mean, not as a difference of squares, which would lose digits.
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scaled = centred * torch.rsqrt(variance + self.eps)[None, :, None, None]
        return scaled * self.weight[None, :, None, None] + self.bias[None, :, None, None]

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise(module: torch.nn.Module, device: str) -> None:
    """Turn a network's batch normalisations, in place, into those that share their statistics between workers."""
    kind: Any = SharedBatchNorm if device == "cpu" else torch.nn.SyncBatchNorm
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.BatchNorm2d:
                setattr(parent, name, _as(kind, child))


def _as(kind: Any, old: torch.nn.BatchNorm2d) -> torch.nn.Module:
    new = kind(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    new = new.to(next(iter(old.state_dict().values())))
    new.load_state_dict(old.state_dict())
    for name, value in old.named_parameters():
        new.get_parameter(name).requires_grad_(value.requires_grad)
    return new
