from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels import similarity
from datas3_ray.kernels.similarity import (
    STATED_PRECISION,
    mean_cosine,
    nearest,
    normalize,
    top_order_statistic,
    valid_rows,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small products on few cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unit(n: int, d: int, seed: int, copies: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = normalize(rng.normal(size=(n, d)).astype(np.float32))[0]
    if copies:
        x[rng.integers(0, n, copies)] = x[rng.integers(0, n, copies)]
    return x


def exact_cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.round(np.clip(x.astype(np.float64) @ y.astype(np.float64).T, -1, 1) * 1e6)


def test_normalize_flags_what_has_no_direction() -> None:
    x = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-40, 0], [3e38, 3e38]], np.float32)
    result, valid = normalize(x)
    assert valid.tolist() == [True, False, False, False, True, True]
    assert result.dtype == np.float32 and np.isfinite(result).all()
    assert not result[~valid].any()
    assert np.allclose(np.linalg.norm(result[valid].astype(np.float64), axis=1), 1, atol=1e-7)
    assert np.array_equal(valid_rows(x), valid)
    assert np.array_equal(valid_rows(x[:, ::-1]), valid)


@pytest.mark.filterwarnings("error")
def test_normalize_takes_what_float32_cannot_hold_for_infinite_without_a_warning() -> None:
    assert normalize(np.array([[1e300, 1.0], [1e-300, 1.0]]))[1].tolist() == [False, True]


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_normalize_in_half_precision_and_any_scale(n: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, 24)).astype(np.float16)
    result, valid = normalize(x)
    assert result.shape == (n, 24) and valid.all()
    assert np.array_equal(normalize(x.astype(np.float32) * 2)[0], result)
    assert np.allclose(result, x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), atol=1e-7)


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([2, 3, 16, 129]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_nearest_equals_float64(n: int, k: int, d: int, seed: int) -> None:
    x, c = unit(n, d, seed, copies=5), unit(k, d, seed + 1, copies=5)
    exact = exact_cosines(x, c)
    index, cosine = nearest(x, c)
    assert index.dtype == np.int32 and cosine.dtype == np.float32
    assert np.array_equal(index, exact.argmax(1))  # numpy's argmax also takes the first
    assert np.array_equal(cosine, (exact.max(1) / 1e6).astype(np.float32))


def test_nearest_does_not_depend_on_batch_order_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = unit(3000, 96, 1), unit(700, 96, 2)
    x[:500] = normalize((c[:500] + c[100:600]).astype(np.float32))[0]  # half way between two centroids
    index, cosine = nearest(x, c)
    order = np.random.default_rng(0).permutation(len(x))
    for rows in (order, order[:1], order[:77], order[1000:]):
        again = nearest(x[rows], c)
        assert np.array_equal(again[0], index[rows]) and np.array_equal(again[1], cosine[rows])
    monkeypatch.setattr(similarity, "COLUMN_BLOCK", 100)
    monkeypatch.setattr(similarity, "ROW_BLOCK", 256)
    torch.set_num_threads(2)
    again = nearest(x, c)
    assert np.array_equal(again[0], index) and np.array_equal(again[1], cosine)


def test_nearest_takes_the_smaller_of_equal_centroids() -> None:
    c = np.repeat(unit(3, 8, 0), 40, axis=0)[np.random.default_rng(0).permutation(120)]
    x = np.repeat(unit(2, 8, 1), 300, axis=0)
    index, _ = nearest(x, c)  # more ties than single dot products are worth
    assert np.array_equal(index, exact_cosines(x, c).argmax(1))
    opposite = nearest(np.array([[1, 0]], np.float32), np.array([[-1, 0], [-1, 0]], np.float32))
    assert opposite[0].tolist() == [0] and opposite[1].tolist() == [-1.0]


def test_nearest_of_half_precision_and_unnormalised_rows() -> None:
    x, c = unit(200, 32, 3), unit(20, 32, 4)
    index, cosine = nearest(x, c)
    scaled = nearest(x * np.float32(4), c * np.float32(0.5))
    assert np.array_equal(scaled[0], index) and np.array_equal(scaled[1], cosine)
    half = x.astype(np.float16)
    halved = nearest(half, c)
    again = nearest(normalize(half)[0], c)
    assert np.array_equal(halved[0], again[0]) and np.allclose(halved[1], again[1], atol=1.1e-6)
    read_only = np.asfortranarray(x)
    read_only.setflags(write=False)
    assert np.array_equal(nearest(read_only, c)[0], index)


def test_the_process_precision_is_neither_used_nor_changed() -> None:
    x, c = unit(500, 64, 5), unit(50, 64, 6)
    index, cosine = nearest(x, c)
    torch.set_float32_matmul_precision("medium")
    try:
        again = nearest(x, c)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(again[0], index) and np.array_equal(again[1], cosine)


def angles(rows: list[tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose cosines with three orthogonal queries are the given numbers."""
    spare = [np.sqrt(1 - sum(value**2 for value in row)) for row in rows]
    return np.array([[*row, rest] for row, rest in zip(rows, spare, strict=True)], np.float32), np.eye(4)[:3].astype(
        "f4"
    )


def test_image_align_order_statistics() -> None:
    x, q = angles([(0.9, 0.1, 0.1), (0.5, 0.5, 0.5), (0.6, 0.6, 0.0)])
    expected = {1: [0.9, 0.5, 0.6], 2: [0.1, 0.5, 0.6], 3: [0.1, 0.5, 0.0]}
    for statistic, values in expected.items():
        result = top_order_statistic(x, q, statistic)
        assert np.array_equal(result, np.array(values, np.float32))
        assert ((result > 0.55) == ((x @ q.T > 0.55).sum(1) >= statistic)).all()
    assert np.allclose(mean_cosine(x, q) * 3, [1.1, 1.5, 1.2], atol=3e-6)


@given(st.integers(1, 50), st.integers(1, 80), st.sampled_from([2, 5, 33]), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_order_statistic_equals_float64(n: int, m: int, d: int, seed: int, data: Any) -> None:
    x, q = unit(n, d, seed, copies=3), unit(m, d, seed + 1, copies=m)
    order = data.draw(st.integers(1, m))
    expected = np.sort(exact_cosines(x, q), axis=1)[:, m - order] / 1e6
    assert np.array_equal(top_order_statistic(x, q, order), expected.astype(np.float32))


def test_order_statistic_does_not_depend_on_batch_or_on_many_ties() -> None:
    x, q = unit(1500, 48, 7), unit(300, 48, 8)
    whole = top_order_statistic(x, q, 10)
    assert np.array_equal(
        np.concatenate([top_order_statistic(part, q, 10) for part in np.split(x, [1, 33, 1100])]), whole
    )
    assert np.array_equal(top_order_statistic(x, q[::-1], 10), whole)
    tied = np.repeat(q[:2], 100, axis=0)
    expected = np.sort(exact_cosines(x, tied), axis=1)
    for order in (1, 100, 101, 200):
        assert np.array_equal(top_order_statistic(x, tied, order), (expected[:, 200 - order] / 1e6).astype("f4"))


def test_mean_cosine_equals_the_mean_of_cosines() -> None:
    x, q = unit(5000, 20, 9), unit(70, 20, 10)
    expected = (x.astype(np.float64) @ q.astype(np.float64).T).mean(1)
    result = mean_cosine(x, q)
    assert np.abs(result - expected).max() <= STATED_PRECISION
    assert np.array_equal(mean_cosine(x[100:200], q[::-1]), result[100:200])


def test_no_rows() -> None:
    empty, c = np.zeros((0, 4), np.float32), unit(3, 4, 0)
    index, cosine = nearest(empty, c)
    assert index.shape == cosine.shape == (0,)
    assert top_order_statistic(empty, c, 1).shape == mean_cosine(empty, c).shape == (0,)
    assert valid_rows(empty).shape == (0,)


def test_bad_input_is_refused() -> None:
    x, c = unit(3000, 4, 0), unit(3, 4, 1)
    for value in (np.nan, 0.0, np.inf):
        broken = x.copy()
        broken[2500] = value
        for function in (nearest, mean_cosine):
            with pytest.raises(ValueError, match="row 2500 of X is zero, NaN or infinite"):
                function(broken, c)
        with pytest.raises(ValueError, match="row 2500 of Q"):
            top_order_statistic(c, broken, 1)
    with pytest.raises(ValueError, match="different dimensions, 4 and 5"):
        nearest(x, unit(2, 5, 0))
    with pytest.raises(ValueError, match="at least one centroid"):
        nearest(x, c[:0])
    with pytest.raises(ValueError, match="at least one query"):
        mean_cosine(x, c[:0])
    with pytest.raises(ValueError, match="matrix of float32 or float16"):
        nearest(x[0], c)
    with pytest.raises(ValueError, match="int64"):
        normalize(np.ones((2, 2), np.int64))
    for order in (0, 4, True, 1.5):
        with pytest.raises(ValueError, match="from 1 to the number of queries, 3"):
            top_order_statistic(x, c, order)  # type: ignore[arg-type]
