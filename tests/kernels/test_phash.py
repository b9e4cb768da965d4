"""The perceptual hash against its definition written out, and the distance against counting bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels.phash import hamming, phash


def coefficient(luma: np.ndarray, v: int, u: int) -> float:
    """DCT-II of the luma at the frequencies v (down) and u (across), as its definition says."""
    return sum(
        float(luma[y, x]) * math.cos(math.pi * v * (2 * y + 1) / 64) * math.cos(math.pi * u * (2 * x + 1) / 64)
        for y in range(32)
        for x in range(32)
    )


def smooth(seed: int) -> np.ndarray:
    """A picture with most of its energy in low frequencies."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6)).astype(float)
    at = np.linspace(0, 5, 32)
    rows = np.array([np.interp(at, range(6), row) for row in coarse])
    return np.array([np.interp(at, range(6), column) for column in rows.T]).T.astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_the_coefficients_above_their_median(seed: int) -> None:
    luma = smooth(seed) if seed else np.random.default_rng(9).integers(0, 256, (32, 32), dtype=np.uint8)
    flat = [coefficient(luma, v, u) for v in range(1, 9) for u in range(1, 9)]
    middle = sorted(flat)[31:33]
    assert middle[1] - middle[0] > 0.01  # no coefficient is so near the median that rounding decides
    expected = sum(1 << (63 - n) for n, value in enumerate(flat) if value > sum(middle) / 2)
    assert int(phash(luma)) == expected
    assert bin(expected).count("1") == 32


def test_many_at_once_are_each_alone() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (7, 32, 32), dtype=np.uint8)
    hashes = phash(batch)
    assert hashes.dtype == np.uint64 and hashes.shape == (7,)
    assert hashes.tolist() == [int(phash(one)) for one in batch]
    assert phash(np.asfortranarray(batch)).tolist() == hashes.tolist()
    assert phash(batch[:0]).shape == (0,)


def test_pictures_without_structure_in_both_directions_have_the_hash_zero() -> None:
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[None] * 8, 32, axis=0)
    for luma in (np.zeros((32, 32), np.uint8), np.full((32, 32), 201, np.uint8), ramp, ramp.T.copy()):
        assert int(phash(luma)) == 0


def test_brightness_and_contrast_do_not_matter_and_a_negative_is_the_complement() -> None:
    luma = smooth(4) // 4 * 2
    plain = int(phash(luma))
    assert int(phash((luma + 100).astype(np.uint8))) == plain
    assert int(phash((luma * 2).astype(np.uint8))) == plain
    assert int(phash((255 - luma).astype(np.uint8))) == plain ^ (2**64 - 1)


def test_the_extremes_do_not_overflow() -> None:
    corner = np.zeros((32, 32), np.uint8)
    corner[:16, :16] = 255
    flat = [coefficient(corner, v, u) for v in range(1, 9) for u in range(1, 9)]
    assert bool(int(phash(corner)) >> 63) == (flat[0] > float(np.median(flat)))


def test_noise_changes_few_bits_and_another_picture_half_of_them() -> None:
    rng = np.random.default_rng(0)
    near, far = [], []
    for seed in range(20):
        luma = smooth(seed)
        noisy = np.clip(luma + rng.normal(0, 4, luma.shape), 0, 255).astype(np.uint8)
        near.append(int(hamming(phash(luma), phash(noisy))))
        far.append(int(hamming(phash(luma), phash(smooth(seed + 100)))))
    assert np.mean(near) <= 6 and np.mean(far) >= 20


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_hamming_counts_bits(words: list[int], other: int) -> None:
    got = hamming(np.array(words, np.uint64), np.uint64(other))
    assert got.tolist() == [bin(word ^ other).count("1") for word in words]
    pairs = hamming(np.array(words, np.uint64)[:, None], np.array(words, np.uint64))
    assert pairs.shape == (len(words), len(words)) and (pairs == pairs.T).all() and not pairs.diagonal().any()


def test_other_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not uint8 of shape \(31, 32\)"):
        phash(np.zeros((31, 32), np.uint8))
    with pytest.raises(ValueError, match="not float64"):
        phash(np.zeros((32, 32)))
    with pytest.raises(ValueError, match="not int64"):
        hamming(np.array([1]), np.array([1], np.uint64))
