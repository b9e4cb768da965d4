"""Row-by-row cosines and distances, against one row at a time."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.paired import distance_to, paired_cosine


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_cosines_equal_one_row_at_a_time(kind) -> None:
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(5000, 9)).astype(kind), rng.normal(size=(5000, 9)).astype(kind)
    found = paired_cosine(X, Y)
    for row in range(0, 5000, 97):
        a, b = X[row].astype(np.float64), Y[row].astype(np.float64)
        assert found[row] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert np.array_equal(found, np.concatenate([paired_cosine(X[i : i + 7], Y[i : i + 7]) for i in range(0, 5000, 7)]))
    if kind is np.float32:
        assert np.array_equal(found, paired_cosine(X * 2, Y / 4))


def test_cosines_stay_within_one_and_bad_rows_are_refused() -> None:
    X = np.random.default_rng(2).normal(size=(100, 50)).astype(np.float32)
    assert (paired_cosine(X, X) == 1).all()
    assert (paired_cosine(X, -X) == -1).all()
    X[3] = 0
    with pytest.raises(ValueError, match="1 rows of Y have no direction"):
        paired_cosine(X + 1, X)
    with pytest.raises(ValueError, match=r"one shape, not \(100, 50\) and \(100, 4\)"):
        paired_cosine(X, X[:, :4])


def test_distances_equal_one_row_at_a_time() -> None:
    rng = np.random.default_rng(3)
    X, centres, group = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(4, 5)), rng.integers(0, 4, 300)
    wanted = [np.linalg.norm(row.astype(np.float64) - centres[g]) for row, g in zip(X, group, strict=True)]
    assert np.allclose(distance_to(X, centres, group), wanted, rtol=1e-7)
    assert np.array_equal(distance_to(X * 2, centres * 2, group), 2 * distance_to(X, centres, group))
