"""Near hashes by bands, against every pair."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels import hamming as kernel
from datas3_ray.kernels.hamming import band_values, leaders, linked, merge_links
from datas3_ray.kernels.phash import hamming


def crowd(n: int, seed: int, most: int = 6) -> np.ndarray:
    """Hashes around a few centres, so that there are chains, copies and loners."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 8).astype(np.uint64) * np.uint64(2) + rng.integers(0, 2, 8).astype(np.uint64)
    hashes = centres[rng.integers(0, 8, n)]
    for _ in range(most):
        flip = np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)
        hashes = np.where(rng.random(n) < 0.5, hashes ^ flip, hashes)
    return hashes


def all_components(hashes: np.ndarray, radius: int) -> np.ndarray:
    first = np.full(len(hashes), -1)
    near = hamming(hashes[:, None], hashes[None, :]) <= radius
    for start in range(len(hashes)):
        if first[start] < 0:
            waiting = [start]
            while waiting:
                row = waiting.pop()
                if first[row] < 0:
                    first[row] = start
                    waiting += np.flatnonzero(near[row] & (first < 0)).tolist()
    return first


@pytest.mark.parametrize("radius", range(33))
def test_near_hashes_share_a_band(radius) -> None:
    rng = np.random.default_rng(radius)
    one = rng.integers(0, 2**63, 200).astype(np.uint64)
    other = one.copy()
    for row in range(200):
        for bit in rng.choice(64, radius, replace=False):
            other[row] ^= np.uint64(1) << np.uint64(bit)
    assert (hamming(one, other) == radius).all()
    assert (band_values(one, radius) == band_values(other, radius)).any(axis=1).all()
    assert (band_values(one, radius) == band_values(one, radius)).all()


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_bands_cover_every_bit_once_and_do_not_mix(radius) -> None:
    zero = band_values(np.zeros(1, np.uint64), radius)[0]
    for bit in range(64):
        changed = band_values(np.array([1 << bit], np.uint64), radius)[0] != zero
        assert changed.sum() == 1
    assert len(set(zero.tolist())) == radius + 1


@pytest.mark.parametrize("tile", [2048, 7])
@pytest.mark.parametrize("radius", [0, 1, 3, 8])
def test_linked_equals_a_walk_over_all_pairs(monkeypatch, tile, radius) -> None:
    monkeypatch.setattr(kernel, "_ROWS", tile)
    monkeypatch.setattr(kernel, "_COLUMNS", tile + 2)
    monkeypatch.setattr(kernel, "_MANY", tile)
    hashes = crowd(150, seed=radius)
    assert np.array_equal(linked(hashes, [0, 150], radius), all_components(hashes, radius))
    runs = [0, 40, 40, 41, 150]
    wanted = np.concatenate([all_components(hashes[a:b], radius) + a for a, b in zip(runs, runs[1:], strict=False)])
    assert np.array_equal(linked(hashes, runs, radius), wanted)


@pytest.mark.parametrize("radius", [0, 1, 3, 8])
def test_bands_and_merging_give_the_components_of_all_pairs(radius) -> None:
    hashes = np.unique(crowd(150, seed=radius + 50))
    left, right = [], []
    for band in band_values(hashes, radius).T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order].astype(np.int64)) != 0, True])
        first = linked(hashes[order], starts, radius)
        left.append(hashes[order])
        right.append(hashes[order][first])
    nodes, label = merge_links(np.concatenate(left), np.concatenate(right))
    assert np.array_equal(nodes, hashes)
    assert np.array_equal(label, hashes[all_components(hashes, radius)])


@pytest.mark.parametrize("radius", [0, 2, 6])
def test_leaders_equal_the_rule_read_aloud(radius) -> None:
    hashes = np.tile(crowd(60, seed=9), 2)
    kept, wanted = [], []
    for row, value in enumerate(hashes):
        near = [other for other in kept if int(value ^ hashes[other]).bit_count() <= radius]
        wanted.append(near[0] if near else row)
        if not near:
            kept.append(row)
    assert leaders(hashes, radius).tolist() == wanted
    assert len(kept) < 120


def test_long_chains_are_one_component() -> None:
    chain = np.array([(1 << length) - 1 for length in range(65)], np.uint64)
    shuffled = np.random.default_rng(0).permutation(chain)
    assert linked(shuffled, [0, 65], 1).tolist() == [0] * 65
    nodes, label = merge_links(chain[:-1], chain[1:])
    assert len(nodes) == 65
    assert set(label.tolist()) == {0}


def test_no_hashes() -> None:
    none = np.zeros(0, np.uint64)
    assert linked(none, [0], 3).tolist() == leaders(none, 3).tolist() == []
    assert [part.tolist() for part in merge_links(none, none)] == [[], []]
    assert band_values(none, 3).shape == (0, 4)
    with pytest.raises(ValueError, match="radius must be from 0 to 32, not 40"):
        band_values(none, 40)
    with pytest.raises(ValueError, match="must be a vector of uint64, not int64"):
        linked(np.zeros(3, np.int64), [0, 3], 1)
