"""Whole-number shares of classes, strata and clusters: known answers, and every small case by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from datas3_ray.kernels.strata import (
    equal_width_bins,
    floor_counts,
    match_counts,
    stratum_counts,
    total_variation,
)

POLICIES = ("stop", "redistribute", "oversample")


@pytest.mark.parametrize(
    ("policy", "rows", "copies"),
    [("stop", [2, 4], [2, 4]), ("redistribute", [2, 6], [2, 6]), ("oversample", [2, 4], [4, 4])],
)
def test_the_three_policies(policy, rows, copies) -> None:
    shares = match_counts([0.5, 0.5], [2, 10], 8, policy)
    assert (shares.rows.tolist(), shares.copies.tolist()) == (rows, copies)


@pytest.mark.parametrize("policy", POLICIES)
def test_enough_of_every_class_gives_the_target_whatever_the_policy(policy) -> None:
    shares = match_counts([3, 1, 0], [30, 30, 30], 10, policy)
    assert shares.rows.tolist() == shares.copies.tolist()
    assert shares.rows.tolist() in ([8, 2, 0], [7, 3, 0])
    assert shares.rows.sum() == 10


def test_random_cases_keep_the_sums_and_the_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        k = int(rng.integers(1, 6))
        target, sizes = rng.integers(0, 9, k), rng.integers(0, 12, k)
        target[rng.integers(k)] += 1
        total = int(rng.integers(0, 40))
        there = int(sizes[target > 0].sum())
        shares = {
            policy: match_counts(target, sizes, total, policy) for policy in ("stop", "redistribute", "oversample")
        }
        for share in shares.values():
            assert (share.rows <= sizes).all()
            assert (share.rows >= 0).all()
            assert (share.copies[target == 0] == 0).all()
            assert (share.copies >= share.rows).all()
            assert ((share.copies > 0) == (share.rows > 0)).all()
        ideal = total * target / target.sum()
        assert (np.abs(shares["stop"].rows - np.minimum(sizes, ideal)) < 1).all()
        assert shares["redistribute"].rows.sum() == min(total, there)
        assert shares["oversample"].copies.sum() == (total if there else 0)


def test_a_class_that_the_pool_lacks() -> None:
    assert match_counts([1, 1], [0, 9], 4, "stop").rows.tolist() == [0, 2]
    assert match_counts([1, 1], [0, 9], 4, "redistribute").rows.tolist() == [0, 4]
    assert match_counts([1, 1], [0, 3], 4, "oversample").copies.tolist() == [0, 4]
    assert match_counts([1, 1], [0, 0], 4, "oversample").copies.tolist() == [0, 0]
    with pytest.raises(ValueError, match="a target of 2 classes with sum 0"):
        match_counts([0, 0], [1, 1], 1, "stop")


def test_total_variation() -> None:
    assert total_variation([1, 1], [2, 6]) == 0.25
    assert total_variation([1, 0], [0, 5]) == 1.0
    assert total_variation([2, 6, 4], [1, 3, 2]) == 0.0
    assert math.isnan(total_variation([1, 1], [0, 0]))


def test_bins_have_equal_width_and_hold_both_ends() -> None:
    scores = np.linspace(-3, 5, 81)
    bins = equal_width_bins(scores, -3, 5, 8)
    assert (bins[0], bins[-1]) == (0, 7)
    assert np.bincount(bins).tolist() == [10] * 7 + [11]
    assert equal_width_bins([2.0, 2.0], 2.0, 2.0, 9).tolist() == [0, 0]
    largest = np.finfo(np.float64).max
    assert equal_width_bins([-largest, 0, largest], -largest, largest, 4).tolist() == [0, 2, 3]


def test_strata_share_equally_and_spill() -> None:
    assert stratum_counts([1, 0, 5, 9], 9).tolist() == [1, 0, 4, 4]
    assert stratum_counts([1, 0, 5, 9], 15).tolist() == [1, 0, 5, 9]
    assert stratum_counts([4, 4], 0).tolist() == [0, 0]
    rng = np.random.default_rng(1)
    for _ in range(100):
        sizes = rng.integers(0, 5, 3)
        total = int(rng.integers(0, sizes.sum() + 1))
        found = stratum_counts(sizes, total)
        cases = [x for x in itertools.product(*(range(size + 1) for size in sizes)) if sum(x) == total]
        assert tuple(found) in cases
        # As even as can be: no other answer has a smaller sum of squares.
        assert (found**2).sum() == min(sum(x * x for x in case) for case in cases)


def test_floors_of_both_balances() -> None:
    assert floor_counts([4, 2], 4, 0.0, "proportional").tolist() == [0, 0]
    assert floor_counts([4, 2], 4, 1.0, "proportional").tolist() == [2, 1]
    assert floor_counts([4, 2], 4, 1.0, "equal").tolist() == [2, 2]
    assert floor_counts([9, 1, 0], 6, 1.0, "equal").tolist() == [3, 1, 0]  # the empty cluster does not count
    assert floor_counts([0, 0], 0, 1.0, "equal").tolist() == [0, 0]
    assert floor_counts([10, 10], 6, 0.7, "proportional").tolist() == [2, 2]  # 2.1
    with pytest.raises(ValueError, match="share must be from 0 to 1, not 2"):
        floor_counts([1], 1, 2, "equal")
