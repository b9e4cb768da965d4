"""Distances on the globe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the Earth (IUGG)."""
_BLOCK = 1 << 22

Float64 = npt.NDArray[np.float64]


def nearest_km(points: npt.ArrayLike, references: npt.ArrayLike) -> Float64:
    """Great-circle distance of each point to the nearest of the references, by the haversine formula on a sphere.

    Args:
        points: (n, 2) latitudes and longitudes in degrees.
        references: (m, 2), at least one.

    Returns:
        float64 (n,), kilometres, rounded to the millimetre. Time grows with n' m, n' being the distinct points; memory
        does not.

    Raises:
        ValueError: a shape is another, or there are no references.

    >>> nearest_km([[0.0, 0.0], [10.0, 181.0]], [[0.0, 1.0], [10.0, -179.0]]).tolist()
    [111.19508, 0.0]
    """
    places, centres = np.asarray(points, np.float64), np.asarray(references, np.float64)
    if places.ndim != 2 or centres.ndim != 2 or places.shape[1] != 2 or centres.shape[1] != 2 or not len(centres):
        raise ValueError(f"points and references must be (n, 2) and (m, 2), m > 0, not {places.shape}, {centres.shape}")
    distinct, back = np.unique(places, axis=0, return_inverse=True)
    latitude, longitude = np.radians(np.unique(centres, axis=0)).T
    best = np.empty(len(distinct))
    step = max(1, _BLOCK // len(latitude))
    for start in range(0, len(distinct), step):
        phi, lam = np.radians(distinct[start : start + step]).T[:, :, None]
        squared = np.sin((latitude - phi) / 2) ** 2
        squared += np.cos(phi) * np.cos(latitude) * np.sin((longitude - lam) / 2) ** 2
        best[start : start + step] = squared.min(axis=1, initial=1.0)
    return np.round(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(best)), 6)[back.reshape(-1)]
