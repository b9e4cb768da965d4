"""How TSDS spreads the queries' mass over their neighbours (arXiv 2410.11303, section 4).

Each of m queries has mass 1/m. With its neighbours by distance d_1 <= d_2 <= ... and their densities rho, neighbour k
takes at most 1 / (m s rho_k) of it, nearest first. The larger s, the farther the mass goes. Spreading is chosen over
nearness as long as

    alpha / C * sum over queries of the extra distance  <  (1 - alpha) * m

and s is where that ends. The extra distance is a sum over the breakpoints c_k = 1/rho_1 + ... + 1/rho_k that s has
passed, (d_{k+1} - d_k) c_k each, so that s is found by sorting the breakpoints. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The mass that each query gives to each of its neighbours.

    Attributes:
        mass: float64 (m, K); each line sums to 1 / m.
        s: how far the mass is spread.
        settled: whether more neighbours a query would change nothing.
    """

    mass: Float64
    s: float
    settled: bool


def spread_mass(distance: npt.ArrayLike, density: npt.ArrayLike, alpha: float, scale: float) -> Spread:
    """The mass of each query on each of its K nearest neighbours.

    Args:
        distance: (m, K), rising in each line, not negative.
        density: (m, K), of the same neighbours, positive.
        alpha: 0 spreads over all K neighbours; 1 gives all to the nearest, in equal parts to those equally near.
        scale: C, positive: the mean extra distance at which nearness weighs as much as spreading, at alpha = 0.5.

    Raises:
        ValueError: the shapes differ, or a number is out of its range.

    >>> spread_mass([[0.1, 0.1, 0.5]], np.ones((1, 3)), alpha=1, scale=5.0).mass.tolist()
    [[0.5, 0.5, 0.0]]
    >>> spread_mass([[0.1, 0.2, 0.5]], [[1.0, 2.0, 1.0]], alpha=0, scale=5.0).mass.round(4).tolist()
    [[0.6667, 0.3333, 0.0]]
    """
    d, rho = np.asarray(distance, np.float64), np.asarray(density, np.float64)
    _check(d, rho, alpha, scale)
    m, neighbours = d.shape
    if alpha == 1 or neighbours == 1:
        nearest = d == d[:, :1] if alpha == 1 else np.ones_like(d, bool)
        settled = bool((~nearest[:, -1]).all()) if alpha == 1 else False
        return Spread(nearest / nearest.sum(axis=1, keepdims=True) / m, 0.0, settled)
    share = 1 / rho
    reach = np.cumsum(share, axis=1)
    s, found = _balance(reach[:, :-1], np.diff(d, axis=1), alpha, scale)
    taken = np.clip(s - (reach - share), 0, share)
    # What the neighbours known cannot hold goes to the last of them.
    taken[:, -1] += np.maximum(0, s - reach[:, -1])
    mass = taken / taken.sum(axis=1, keepdims=True) / m
    return Spread(mass, s, found and bool(s < reach[:, -1].min()))


def _balance(breakpoints: Float64, gap: Float64, alpha: float, scale: float) -> tuple[float, bool]:
    """The breakpoint at which the extra distance outweighs the spreading, and whether there is one."""
    points = breakpoints.reshape(-1)
    order = np.argsort(points, kind="stable")
    extra = np.cumsum((breakpoints * gap).reshape(-1)[order])
    over = alpha / scale * extra >= (1 - alpha) * len(breakpoints)
    if not over.any():
        return float(points[order[-1]]), False
    return float(points[order[int(np.argmax(over))]]), True


def _check(distance: Float64, density: Float64, alpha: float, scale: float) -> None:
    if distance.ndim != 2 or distance.shape != density.shape or distance.size == 0:
        raise ValueError(f"distances {distance.shape} and densities {density.shape} must be one matrix (m, K) each")
    if not (np.diff(distance, axis=1) >= 0).all() or not (distance >= 0).all():
        raise ValueError("the distances of a query must rise from neighbour to neighbour and not be negative")
    if not (density > 0).all() or not np.isfinite(density).all():
        raise ValueError("densities must be positive and finite")
    if not 0 <= alpha <= 1 or not scale > 0:
        raise ValueError(f"alpha must be from 0 to 1 and scale above 0, not {alpha} and {scale}")
