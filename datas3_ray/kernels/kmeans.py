"""Spherical k-means: unit centroids that maximise the mean cosine of rows to their nearest one.

Rows are assigned as :func:`datas3_ray.kernels.similarity.nearest` assigns them, with close calls decided in float64,
and centroids are summed in float64, so the result depends on the rows, their order, k and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels._tiles import Pairs, full_precision, matrix, unit_rows
from datas3_ray.kernels.closest import Closest
from datas3_ray.kernels.hashing import hash64, uniform
from datas3_ray.kernels.screen import Screen, Units, fast_units

if TYPE_CHECKING:
    import torch

Init = Literal["random", "plusplus"]

SCREENED = 2048
"""Rows from which looking at coarse numbers first pays off."""
_COARSE_TO_FINE: dict[Units | None, tuple[Units, ...]] = {"bfloat16": ("int8", "bfloat16"), "int8": ("int8",)}
_BLOCK_ELEMENTS = 1 << 20
_LEAST_ROWS, _MOST_ROWS = 512, 4096
_PLUSPLUS_ROWS, _PLUSPLUS_PER_CENTROID = 4096, 8
_NO_LOSS = 1e-6
_STATISTICS_BLOCK = 512


@dataclass(frozen=True)
class KMeansResult:
    """What :func:`spherical_kmeans` found.

    Attributes:
        centroids: float32 (k', d), unit; every one has members.
        sizes: int64 (k',), the rows nearest to each.
        objective: mean cosine of the rows to their centroid, at the start and after each iteration.
        iterations: times that the centroids were moved.
        requested: the k that was asked for.
    """

    centroids: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int64]
    objective: tuple[float, ...]
    iterations: int
    requested: int

    @property
    def k(self) -> int:
        """Clusters found, k'."""
        return len(self.centroids)

    @property
    def empty(self) -> int:
        """Clusters asked for that could not be filled, as there are not that many distinct rows."""
        return self.requested - self.k


def spherical_kmeans(
    X: npt.ArrayLike,
    k: int,
    seed: int,
    iterations: int = 20,
    init: Init = "random",
    device: str = "cpu",
    tolerance: float = 1e-5,
) -> KMeansResult:
    """Spherical k-means by Lloyd's iterations.

    A cluster that loses all its rows takes the row that is farthest from its centroid out of the cluster with the
    largest loss.

    Args:
        X: (n, d) float32 or float16, n >= 1; rows that are not unit are normalised. Give a sample, e.g. 256 k rows.
        k: clusters wanted, k >= 1.
        seed: of the start, see :func:`datas3_ray.kernels.hashing.hash64`.
        iterations: at most this many.
        init: "random" starts from k distinct rows; "plusplus" from rows drawn, out of a sample of
            max(4096, 8 k), with probability proportional to the cosine distance to those drawn before.
        device: where the matrices are multiplied.
        tolerance: stop when an iteration raises the mean cosine by less, or no row changes its cluster.

    Returns:
        The centroids with the history; fewer than k where there are not k distinct rows (``result.empty``).

    Raises:
        ValueError: no rows, a row without direction, or a parameter out of range.

    >>> rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    >>> result = spherical_kmeans(rows, k=2, seed=0)
    >>> sorted(result.sizes.tolist()), result.empty
    ([2, 2], 0)
    """
    _require(k, iterations, init, tolerance)
    vectors = matrix(X, "X")
    if len(vectors) == 0:
        raise ValueError("k-means needs at least one row")
    import torch

    rows = unit_rows(vectors, "X", device)
    with full_precision():
        centroids = rows[torch.from_numpy(_starts(rows, k, seed, init)).to(rows.device)].clone()
        passes = _Passes(rows)
        objective: list[float] = []
        previous: torch.Tensor | None = None
        moved = reseeded = 0
        while True:
            found = passes.assign(centroids)
            objective.append(found.objective)
            settled = previous is not None and bool((found.index == previous).all())
            if len(objective) > 1 and not reseeded:
                settled |= objective[-1] - objective[-2] < tolerance
            if settled or moved == iterations:
                break
            centroids, reseeded = _moved(rows, centroids, found)
            previous = found.index
            moved += 1
    members = found.counts > 0
    return KMeansResult(
        centroids=centroids[members].cpu().numpy(),
        sizes=found.counts[members].cpu().numpy(),
        objective=tuple(objective),
        iterations=moved,
        requested=int(k),
    )


def centroid_statistics(
    centroids: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sum_distance: npt.ArrayLike,
    l: int,  # noqa: E741  (the paper's name)
    device: str = "cpu",
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How wide each cluster is and how far it is from its neighbours (arXiv 2401.04578, section 3).

    Args:
        centroids: (k, d) float32; those that are not unit are normalised.
        sizes: (k,) members of each cluster.
        sum_distance: (k,) sum of the members' cosine distances, 1 - cos, to their centroid.
        l: neighbours to look at, l >= 1; all of them where there are fewer.
        device: where the matrices are multiplied.

    Returns:
        intra: float64 (k,), the mean distance of the members to the centroid.
        inter: float64 (k,), the mean distance of the centroid to the l nearest centroids of other clusters that
            are not empty; NaN where there is no other. Both are NaN for an empty cluster.

    Raises:
        ValueError: the lengths differ, l < 1, or a centroid has no direction.

    >>> square = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    >>> intra, inter = centroid_statistics(square, [2, 1, 1], [0.5, 0.0, 0.0], l=1)
    >>> intra.tolist(), inter.tolist()
    ([0.25, 0.0, 0.0], [1.0, 1.0, 1.0])
    """
    import torch

    centres, counts = matrix(centroids, "centroids"), np.asarray(sizes)
    distances = np.asarray(sum_distance, np.float64)
    if counts.shape != (len(centres),) or distances.shape != (len(centres),):
        raise ValueError(f"{len(centres)} centroids need as many sizes and sums, not {counts.shape} {distances.shape}")
    if isinstance(l, bool) or not isinstance(l, (int, np.integer)) or l < 1:
        raise ValueError(f"l must be a whole number of at least 1, not {l}")
    intra, inter = np.full(len(centres), np.nan), np.full(len(centres), np.nan)
    there = np.flatnonzero(counts > 0)
    intra[there] = distances[there] / counts[there]
    neighbours = min(int(l), len(there) - 1)
    if neighbours < 1:
        return intra, inter
    unit = unit_rows(centres[there], "centroids", device).double()
    for start in range(0, len(there), _STATISTICS_BLOCK):
        distance = (1.0 - unit[start : start + _STATISTICS_BLOCK] @ unit.T).clamp_(0.0, 2.0)
        line = torch.arange(len(distance), device=unit.device)
        distance[line, line + start] = torch.inf
        nearest = torch.topk(distance, neighbours, dim=1, largest=False).values
        inter[there[start : start + _STATISTICS_BLOCK]] = nearest.mean(1).cpu().numpy()
    return intra, inter


@dataclass(frozen=True)
class _Assignment:
    """index int64 (n,), counts int64 (k,), sums float64 (k, d) and loss float64 (k,)."""

    index: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    loss: torch.Tensor
    objective: float


class _Passes:
    """Passes over the rows: each finds the nearest centroids and adds the rows up in the same block, while cached.

    Where the CPU multiplies coarser numbers in units of its own, rows are first looked at in those; float32 decides for
    the rows whose two nearest centroids are too close to tell, so the answer is that of float32 throughout.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        units = fast_units() if rows.device.type == "cpu" and len(rows) >= SCREENED else None
        self.screens = [Screen(rows, each) for each in _COARSE_TO_FINE.get(units, ())]

    def assign(self, centroids: torch.Tensor) -> _Assignment:
        import torch

        n, (k, d), device = len(self.rows), centroids.shape, self.rows.device
        index = torch.empty(n, dtype=torch.int64, device=device)
        partial = torch.zeros((k, d), dtype=torch.float32, device=device)
        sums = torch.zeros((k, d), dtype=torch.float64, device=device)
        added = 0
        for start, nearest in self._nearest(centroids):
            block = slice(start, start + len(nearest))
            index[block] = nearest
            _add(partial, nearest, self.rows[block])
            added += len(nearest)
            # float32 sums are short and then added in float64; not too often, as that touches every centroid.
            if added >= max(_MOST_ROWS, 4 * k) or block.stop == n:
                sums += partial
                partial.zero_()
                added = 0
        counts = torch.bincount(index, minlength=k)
        inner = (sums * centroids).sum(1)
        return _Assignment(index, counts, sums, counts - inner, float(inner.sum()) / n)

    def _nearest(self, centroids: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        k = len(centroids)
        size = min(max(_LEAST_ROWS, min(_MOST_ROWS, _BLOCK_ELEMENTS // k)), len(self.rows))
        closest = Closest(centroids, [screen.units for screen in self.screens] if k > 1 else (), size)
        for start in range(0, len(self.rows), size):
            block = slice(start, min(start + size, len(self.rows)))

            def coarse(level: int, left: npt.NDArray[np.int64] | None, block: slice = block) -> Screen:
                return self.screens[level].take(block if left is None else left + block.start)

            yield start, closest.of(self.rows[block], coarse)


def _add(sums: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Add each row to its cluster's sum, in the same order every time: ``index_add_`` has none on a GPU."""
    if sums.device.type == "cpu":
        sums.index_add_(0, index, rows)
    else:
        _add_by_product(sums, index, rows)


def _add_by_product(sums: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """The same as a product with the (k, rows) matrix of memberships."""
    import torch

    member = torch.zeros((len(sums), len(rows)), dtype=rows.dtype, device=rows.device)
    member[index, torch.arange(len(rows), device=rows.device)] = 1
    sums.addmm_(member, rows)


def _moved(rows: torch.Tensor, centroids: torch.Tensor, found: _Assignment) -> tuple[torch.Tensor, int]:
    """The centroids at their members' mean directions, empty ones refilled; and how many were refilled."""
    import torch

    sums = found.sums.clone()
    empty = torch.nonzero(found.counts == 0).view(-1).tolist()
    donors = _donors(found, len(empty)) if empty else []
    for cluster, donor in zip(empty, donors, strict=False):
        members = torch.nonzero(found.index == donor).view(-1)
        cosines = Pairs(rows, centroids).keys(members, torch.full_like(members, donor))
        row = rows[members[torch.argmin(cosines)]].double()
        sums[donor] -= row
        sums[cluster] = row
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    # Members that cancel out, or none, leave the centroid where it was.
    means = torch.where(norms > _NO_LOSS, sums / norms.clamp_min(_NO_LOSS), centroids.double())
    return means.float(), min(len(empty), len(donors))


def _donors(found: _Assignment, wanted: int) -> list[int]:
    """The clusters with the largest loss that have rows to give away."""
    loss = found.loss.cpu().numpy()
    size = found.counts.cpu().numpy()
    order = np.argsort(-loss, kind="stable")
    return order[(loss > _NO_LOSS * size)[order] & (size > 1)[order]][:wanted].tolist()


def _starts(rows: torch.Tensor, k: int, seed: int, init: Init) -> npt.NDArray[np.int64]:
    """Rows to start from, distinct as vectors; fewer than k only where there are not k distinct ones."""
    numbers = np.arange(1, len(rows) + 1, dtype=np.uint64)[:, None]
    order = np.argsort(hash64(numbers, seed, "kmeans start"), kind="stable")
    first = order[:0]
    if init == "plusplus":
        first = _spread(rows, order[: max(_PLUSPLUS_ROWS, _PLUSPLUS_PER_CENTROID * k)], k, seed)
    chosen: list[int] = []
    seen: set[bytes] = set()
    for row in np.concatenate([first, order]).tolist():
        if len(chosen) == k:
            break
        mark = hashlib.blake2b((rows[row] + 0.0).cpu().numpy().tobytes(), digest_size=16).digest()
        if mark not in seen:
            seen.add(mark)
            chosen.append(row)
    return np.array(chosen, np.int64)


def _spread(rows: torch.Tensor, sample: npt.NDArray[np.int64], k: int, seed: int) -> npt.NDArray[np.int64]:
    """Up to k rows of the sample, each drawn in proportion to its cosine distance to those drawn before."""
    import torch

    vectors = rows[torch.from_numpy(sample).to(rows.device)]
    draws = uniform(hash64(np.arange(1, k + 1, dtype=np.uint64)[:, None], seed, "kmeans plusplus"))
    chosen = [0]
    distance = np.full(len(sample), 2.0)
    for draw in draws[1:]:
        cosine = torch.mv(vectors, vectors[chosen[-1]]).cpu().numpy().astype(np.float64)
        distance = np.minimum(distance, np.maximum(1.0 - cosine, 0.0))
        distance[distance < _NO_LOSS] = 0.0
        cumulative = np.cumsum(distance)
        if cumulative[-1] <= 0:
            break
        chosen.append(int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")))
    return sample[chosen]


def _require(k: int, iterations: int, init: str, tolerance: float) -> None:
    for name, value, least in (("k", k, 1), ("iterations", iterations, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")
    if init not in ("random", "plusplus"):
        raise ValueError(f"init must be 'random' or 'plusplus', not {init!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, and {tolerance} is")
