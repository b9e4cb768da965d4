"""How many rows each cluster keeps in density-based pruning (DBP, arXiv 2401.04578, section 3).

A cluster is complex when its members are far from its centroid and its centroid is far from others. Complex clusters
keep more rows: the counts are the whole numbers nearest to N softmax(complexity / tau) within the clusters' sizes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datas3_ray.kernels.allocate import allocate

Float64 = npt.NDArray[np.float64]


def complexity(intra: npt.ArrayLike, inter: npt.ArrayLike) -> Float64:
    """C_j = d_inter(j) d_intra(j) (equation 1).

    Args:
        intra: (k,) mean cosine distance of the members to their centroid.
        inter: (k,) mean cosine distance of the centroid to its nearest others.

    Returns:
        float64 (k,), NaN where either is.

    >>> complexity([0.2], [0.5]).tolist()
    [0.1]
    """
    wide, far = np.asarray(intra, np.float64), np.asarray(inter, np.float64)
    if wide.shape != far.shape or wide.ndim != 1:
        raise ValueError(f"intra and inter must be vectors of one length, not of shapes {wide.shape} and {far.shape}")
    return wide * far


def softmax(x: npt.ArrayLike) -> Float64:
    """exp(x_j) / sum exp(x), without overflow (equation 2, given C / tau).

    Args:
        x: (k,) finite reals.

    Returns:
        float64 (k,), adding up to 1.

    >>> [round(float(p), 5) for p in softmax(np.array([0.02, 0.03]) / 0.1)]
    [0.47502, 0.52498]
    """
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"softmax needs finite numbers, and number {int(np.argmin(np.isfinite(values)))} is not")
    if values.size == 0:
        return values
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def dbp_targets(complexities: npt.ArrayLike, total: int, tau: float) -> Float64:
    """P_j N with P = softmax(C / tau).

    Args:
        complexities: (k,) of clusters that are not empty.
        total: N, the rows to keep.
        tau: temperature above 0; large makes the targets equal, small gives the most complex cluster everything.

    Returns:
        float64 (k,), adding up to ``total``; all of it where there is one cluster, whatever its complexity.

    >>> dbp_targets([np.nan], total=7, tau=0.1).tolist()
    [7.0]
    """
    if not 0 < tau < np.inf:
        raise ValueError(f"tau must be a positive number, not {tau}")
    values = np.asarray(complexities, np.float64)
    if len(values) == 1:  # a lone cluster has no neighbours, so its complexity is unknown
        return np.array([float(total)])
    if np.isnan(values).any():
        raise ValueError(f"the complexity of cluster {int(np.argmax(np.isnan(values)))} is NaN")
    return softmax(values / tau) * total


def dbp_counts(
    intra: npt.ArrayLike, inter: npt.ArrayLike, sizes: npt.ArrayLike, total: int, tau: float
) -> npt.NDArray[np.int64]:
    """The rows that each cluster keeps: argmin of sum (x_j - P_j N)^2 with sum x = N, 1 <= x_j <= M_j (equation 3).

    Args:
        intra: (k,) as from :func:`datas3_ray.kernels.kmeans.centroid_statistics`.
        inter: (k,) likewise; what empty clusters have is not looked at.
        sizes: (k,) whole numbers M_j, the members of each cluster.
        total: N, at most the sum of the sizes. Where it is less than the number of clusters that are not empty, the
            lower bound is 0 instead of 1.
        tau: temperature of the softmax; the paper's is 0.1.

    Returns:
        int64 (k,), adding up to ``total`` exactly, 0 for empty clusters; ties go to the smaller cluster.

    Raises:
        ValueError: the total is more than there is, tau is not positive, or a cluster's complexity is NaN.

    >>> dbp_counts([0.1, 0.1, 0.0], [0.2, 0.3, 0.0], [50, 50, 0], total=10, tau=0.1).tolist()
    [5, 5, 0]
    """
    complexities = complexity(intra, inter)
    members = np.asarray(sizes)
    if members.shape != complexities.shape or (members.size and members.dtype.kind not in "iu"):
        raise ValueError(f"sizes must be {len(complexities)} whole numbers, not {members.dtype} {members.shape}")
    there = np.flatnonzero(members > 0)
    counts = np.zeros(len(members), np.int64)
    least = 1 if total >= len(there) else 0
    targets = dbp_targets(complexities[there], total, tau)
    counts[there] = allocate(targets, least, members[there], total, form="additive")
    return counts
