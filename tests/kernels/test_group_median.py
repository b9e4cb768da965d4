"""Medians by radix over partitions, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels import group_median
from datas3_ray.kernels.group_median import (
    finish_medians,
    float_keys,
    key_floats,
    median_histogram,
    median_neighbours,
    next_medians,
    start_medians,
)


def medians(parts, k: int, dimensions: int) -> np.ndarray:
    sizes = sum(np.bincount(group, minlength=k) for _, group in parts)
    search = start_medians(sizes, dimensions)
    while not search.found:
        search = next_medians(search, sum(median_histogram(rows, group, search) for rows, group in parts))
    at_most, above = zip(*(median_neighbours(rows, group, search) for rows, group in parts), strict=True)
    return finish_medians(search, sum(at_most), np.minimum.reduce(above))


@pytest.mark.parametrize("cells", [1 << 22, 200, 1])
@pytest.mark.parametrize("levels", [2, 5, None])
def test_equals_numpy(monkeypatch, cells, levels) -> None:
    monkeypatch.setattr(group_median, "MAX_CELLS", cells)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(101, 3)) * 10.0 ** rng.integers(-20, 20, (101, 3))
    rows = (rows if levels is None else np.sign(rows) * rng.integers(0, levels, rows.shape)).astype(np.float32)
    group = rng.integers(0, 6, 101)
    group[group == 4] = 3  # group 4 is empty
    group[0] = 6  # a group of one
    found = medians([(rows[:40], group[:40]), (rows[40:40], group[40:40]), (rows[40:], group[40:])], 7, 3)
    for number in range(7):
        mine = rows[group == number].astype(np.float64)
        if len(mine):
            assert np.array_equal(found[number], np.median(mine, axis=0).astype(np.float32))
        else:
            assert np.isnan(found[number]).all()


def test_half_precision_rows_and_scaling() -> None:
    rng = np.random.default_rng(4)
    rows, group = rng.normal(size=(30, 2)).astype(np.float16), np.zeros(30, int)
    found = medians([(rows, group)], 1, 2)
    assert np.array_equal(found[0], np.median(rows.astype(np.float64), axis=0).astype(np.float32))
    assert np.array_equal(medians([(rows.astype(np.float32) * 2, group)], 1, 2), found * 2)


def test_keys_sort_as_floats_and_come_back() -> None:
    values = np.array([-np.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 2.0, np.inf], np.float32)
    keys = float_keys(values)
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert np.array_equal(key_floats(keys), values)
    assert float_keys(np.float32([-0.0])) == float_keys(np.float32([0.0]))


def test_fewer_rows_than_said() -> None:
    search = start_medians([10], 1)
    with pytest.raises(ValueError, match="fewer rows than were said"):
        next_medians(search, median_histogram(np.ones((2, 1), np.float32), np.zeros(2, int), search))
