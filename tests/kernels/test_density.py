from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datas3_ray.kernels.density import complexity, dbp_counts, dbp_targets, softmax


def counts_for(share: list[float], sizes: list[int], total: int) -> list[int]:
    """dbp_counts with complexities that give these shares at tau = 0.1."""
    return dbp_counts(np.log(share) * 0.1, np.ones(len(share)), sizes, total, 0.1).tolist()


def test_known_answers() -> None:
    assert np.allclose(softmax(np.array([0.02, 0.03]) / 0.1), [0.47502, 0.52498], atol=5e-6)
    assert counts_for([0.5, 0.3, 0.2], [3, 10, 10], 10) == [3, 4, 3]
    assert counts_for([0.96, 0.03, 0.01], [20, 20, 20], 10) == [8, 1, 1]
    assert counts_for([1 / 3] * 3, [10, 10, 10], 10) == [4, 3, 3]
    assert counts_for([0.9, 0.05, 0.05], [2, 5, 9], 16) == [2, 5, 9]


def test_complexity_is_the_product() -> None:
    assert np.array_equal(complexity([0.5, 0.0], [0.5, 0.3]), [0.25, 0.0])
    assert np.isnan(complexity([np.nan, 1.0], [1.0, np.nan])).all()


def test_softmax_does_not_overflow() -> None:
    assert np.allclose(softmax([1e5, 1e5 - 1]), softmax([1, 0]))
    assert softmax([-1e9, 0.0]).tolist() == [0.0, 1.0]
    assert softmax([]).tolist() == []


def test_temperature_goes_from_equal_to_greedy() -> None:
    assert np.allclose(dbp_targets([0.1, 0.2, 0.3], 30, 1e6), 10, atol=1e-4)
    assert np.allclose(dbp_targets([0.1, 0.2, 0.3], 30, 1e-4), [0, 0, 30])


def test_empty_clusters_take_no_part() -> None:
    nan = np.nan
    with_empty = dbp_counts([0.1, nan, 0.2, nan], [0.3, nan, 0.3, 0.5], [9, 0, 9, 0], 10, 0.1)
    assert with_empty[[1, 3]].tolist() == [0, 0]
    assert with_empty[[0, 2]].tolist() == dbp_counts([0.1, 0.2], [0.3, 0.3], [9, 9], 10, 0.1).tolist()
    assert dbp_counts([nan, nan], [nan, nan], [0, 0], 0, 0.1).tolist() == [0, 0]


def test_one_cluster_keeps_everything_asked_for() -> None:
    assert dbp_counts([0.2, np.nan], [np.nan, np.nan], [9, 0], 4, 0.1).tolist() == [4, 0]


def test_fewer_rows_than_clusters() -> None:
    x = dbp_counts([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [5, 5, 5], 2, 0.1)
    assert x.tolist() == [0, 1, 1]  # targets .18, .49 and 1.33
    assert dbp_counts([0.1, 0.2], [1.0, 1.0], [5, 5], 0, 0.1).tolist() == [0, 0]
    assert dbp_counts([0.1, 0.9, 0.1], [1.0, 1.0, 1.0], [5, 5, 5], 3, 0.01).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_sum_and_bounds_always_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 600))
    sizes = rng.integers(0, 300, k)
    total = int(rng.integers(0, sizes.sum() + 1))
    there = sizes > 0
    x = dbp_counts(rng.random(k), rng.random(k), sizes, total, float(rng.choice([0.01, 0.1, 0.5])))
    assert x.dtype == np.int64 and x.sum() == total and (x <= sizes).all()
    assert (x[there] >= (1 if total >= there.sum() else 0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [0.1], [5], 6, 0.1), "6 units cannot be shared: the bounds allow from 1 to 5"),
        (([0.1, 0.1], [0.1, 0.1], [5, 5], 3, 0.0), "tau must be a positive number, not 0.0"),
        (([0.1, 0.1], [0.1, 0.1], [5, 5], 3, float("nan")), "tau"),
        (([0.1, np.nan], [0.1, 0.1], [5, 5], 3, 0.1), "complexity of cluster 1 is NaN"),
        (([0.1], [0.1, 0.1], [5, 5], 3, 0.1), "one length"),
        (([0.1, 0.1], [0.1, 0.1], [5], 3, 0.1), "sizes must be 2 whole numbers"),
        (([0.1, 0.1], [0.1, 0.1], [5.0, 5.0], 3, 0.1), "whole numbers"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dbp_counts(*arguments)
    with pytest.raises(ValueError, match="finite"):
        softmax([0.0, np.inf])
