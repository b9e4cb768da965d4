"""Distances on the globe, beside the textbook and a brute force of another formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datas3_ray.kernels.great_circle import EARTH_RADIUS_KM, nearest_km


def vincenty_on_a_sphere(a: np.ndarray, b: np.ndarray) -> float:
    """The angle from both its sine and its cosine: another formula, stable everywhere."""
    (phi1, lam1), (phi2, lam2) = np.radians(a), np.radians(b)
    d = lam2 - lam1
    y = math.hypot(
        math.cos(phi2) * math.sin(d),
        math.cos(phi1) * math.sin(phi2) - math.sin(phi1) * math.cos(phi2) * math.cos(d),
    )
    x = math.sin(phi1) * math.sin(phi2) + math.cos(phi1) * math.cos(phi2) * math.cos(d)
    return EARTH_RADIUS_KM * math.atan2(y, x)


def test_brute_force() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-90, 90, 300), rng.uniform(-180, 180, 300)], axis=1)
    references = np.stack([rng.uniform(-90, 90, 17), rng.uniform(-180, 180, 17)], axis=1)
    points[:5] = references[:5]
    points[5:10] = references[5:10] + 1e-6  # some ten centimetres
    expected = [min(vincenty_on_a_sphere(a, b) for b in references) for a in points]
    assert np.allclose(nearest_km(points, references), expected, rtol=1e-9, atol=2e-6)


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        ((0, 0), (0, 180), math.pi * EARTH_RADIUS_KM),
        ((90, 0), (-90, 77), math.pi * EARTH_RADIUS_KM),
        ((0, 179.5), (0, -179.5), math.radians(1) * EARTH_RADIUS_KM),
        ((60, 10), (60, 10), 0.0),
        ((90, 0), (90, 123), 0.0),
        ((12.5, 370), (12.5, 10), 0.0),
    ],
)
def test_known_distances(a: tuple[float, float], b: tuple[float, float], km: float) -> None:
    assert nearest_km([a], [b])[0] == pytest.approx(km, abs=2e-6)


def test_many_rows_at_few_places_cost_little_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    places = rng.uniform(-80, 80, (50, 2))
    points = places[rng.integers(0, 50, 1000)]
    whole = nearest_km(points, places[:9])
    monkeypatch.setattr("datas3_ray.kernels.great_circle._BLOCK", 20)
    assert np.array_equal(nearest_km(points, places[:9]), whole)
    assert nearest_km(np.empty((0, 2)), places).shape == (0,)


@pytest.mark.parametrize(
    ("points", "references"), [([[0, 0]], np.empty((0, 2))), ([0, 0], [[0, 0]]), ([[0, 0]], [[0]])]
)
def test_shapes_that_cannot_be_meant(points: object, references: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        nearest_km(points, references)
