"""Entropic optimal transport from many rows to m queries, rows in shards (GOT-D, arXiv 2405.02774, section 3).

The dual potentials solve, for cost C, row weights 1/n and query weights 1/m,

    f_i = -eps log sum_j exp((g_j - C_ij) / eps) / m        g_j = -eps log sum_i exp((f_i - C_ij) / eps) / n

A step needs g alone: each shard answers with its rows' potentials and with the mass that they send to each query,
an m-vector, and the sum of the shards' vectors gives the next g. In the logarithmic domain and float64 throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

LEAST_EPSILON = 0.01
"""Below it the mass of a far query could fall under the smallest float64; costs are cosine distances, up to 2."""
_TILE_ELEMENTS = 1 << 21
_SMALLEST = np.finfo(np.float64).tiny


class Shard(NamedTuple):
    """What one shard's rows say of a step: their potentials (n,), and the mass they send to each query (m,)."""

    potential: Float64
    mass: Float64


def shard_step(X: npt.ArrayLike, Q: npt.ArrayLike, g: npt.ArrayLike, epsilon: float, device: str = "cpu") -> Shard:
    """Potentials of a shard's rows for the queries' potentials g, and where their mass goes.

    Args:
        X: (n, d) unit rows; the cost is 1 - cosine.
        Q: (m, d) unit queries.
        g: (m,).
        epsilon: at least LEAST_EPSILON.
        device: where the matrices are multiplied.

    Returns:
        potential f (n,), and the sum over rows of softmax_j((g_j - C_ij) / eps), (m,), which adds up to n; float64.

    >>> shard_step(np.eye(2), np.eye(2), np.zeros(2), 0.5).mass.round(6).tolist()
    [1.0, 1.0]
    """
    import torch

    if not epsilon >= LEAST_EPSILON:
        raise ValueError(f"epsilon must be at least {LEAST_EPSILON}, not {epsilon}")
    rows, queries = np.asarray(X), torch.from_numpy(np.asarray(Q, np.float64)).to(device)
    pull = torch.from_numpy(np.asarray(g, np.float64)).to(device)
    m = len(queries)
    potential = np.empty(len(rows), np.float64)
    mass = torch.zeros(m, dtype=torch.float64, device=device)
    size = max(64, _TILE_ELEMENTS // m)
    for start in range(0, len(rows), size):
        block = torch.from_numpy(rows[start : start + size].astype(np.float64)).to(device)
        # In place: this one matrix is the whole memory of the step.
        logits = torch.mm(block, queries.T).sub_(1).add_(pull).div_(epsilon)
        peak = logits.amax(1, keepdim=True)
        weights = logits.sub_(peak).exp_()
        total = weights.sum(1, keepdim=True)
        mass += torch.mv(weights.T, (1 / total).view(-1))
        potential[start : start + size] = (-epsilon * (total.log() + peak - np.log(m))).view(-1).cpu().numpy()
    return Shard(potential, mass.cpu().numpy())


def next_potential(g: npt.ArrayLike, mass: npt.ArrayLike, n: int, epsilon: float) -> tuple[Float64, float]:
    """The queries' next potentials, and how far the mass of this step was from 1/m each (sum of absolute errors).

    Args:
        g: (m,), the potentials of the step.
        mass: (m,), the sum over all shards of the mass that they sent.
        n: rows in all shards.
        epsilon: as in the step.

    >>> next_potential([0.0, 0.0], [1.0, 3.0], 4, 1.0)[1]
    0.5
    """
    before = np.asarray(g, np.float64)
    share = np.asarray(mass, np.float64) / n
    m = len(before)
    after = before - epsilon * (np.log(np.maximum(share, _SMALLEST)) + np.log(m))
    return after - after.mean(), float(np.abs(share - 1 / m).sum())


def calibrated_gradient(f: npt.ArrayLike, mean: float, n: int) -> Float64:
    """The gradient of the transport cost in a row's mass: f_i minus the mean of all others. It sums to 0 over all n.

    >>> calibrated_gradient([1.0, 2.0, 6.0], 3.0, 3).tolist()
    [-3.0, -1.5, 4.5]
    """
    return (np.asarray(f, np.float64) - mean) * (n / max(1, n - 1))
