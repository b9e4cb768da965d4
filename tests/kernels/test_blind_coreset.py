"""BlindCoreset's kernel against brute force that replays the same draws, with ties, copies and odd data."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.blind_coreset import (
    UNIT,
    Ranges,
    choose_strips,
    make_draws,
    nearest_rows,
    penalties,
    rows_around,
    score_draws,
    settle,
    sketch,
    triangular,
)
from datas3_ray.kernels.subspace_search import Columns, Draws


def distances(columns: np.ndarray, dimensions: np.ndarray, centre: np.ndarray) -> np.ndarray:
    total = np.zeros(columns.shape[1], np.float32)
    with np.errstate(over="ignore"):
        for dimension, value in zip(dimensions, centre, strict=True):
            total = total + np.abs(columns[dimension] - value)
    return total


def brute_force(columns: np.ndarray, draws: Draws, neighbours: int, beta: float) -> np.ndarray:
    """Every distance, a full sort by (distance, row), and shares in floating point."""
    n = columns.shape[1]
    score = np.zeros(n)
    for dimensions, point in zip(draws.dimensions, draws.point, strict=True):
        winner = int(np.argmin(distances(columns, dimensions, point)))
        around = distances(columns, dimensions, columns[dimensions, winner]).astype(np.float64)
        near = [i for i in np.lexsort([np.arange(n), around]) if i != winner][:neighbours]
        if not near:
            continue
        least = around[near].min()
        weight = (around[near] == 0).astype(float) if least == 0 else (least / around[near]) ** beta
        score[winner] += 1
        score[near] -= weight / weight.sum()
    return score


def prepared(columns: np.ndarray, count: int, subspace: int, seed: int = 5) -> tuple[Columns, Draws]:
    matrix = Columns([columns[:3], columns[3:6], columns[6:]] if len(columns) > 6 else [columns])
    draws = make_draws(seed, 0, count, Ranges.of(matrix), subspace)
    return matrix, choose_strips(draws, sketch(matrix))[0]


def pool(kind: str, n: int = 700, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(d, n)).astype(np.float32)
    if kind == "clusters":
        columns = (rng.normal(size=(d, 9))[:, rng.integers(0, 9, n)] + 0.1 * columns).astype(np.float32)
    if kind == "whole numbers":
        columns = np.round(columns * 2)
    if kind == "half zero":
        columns = np.maximum(columns, 0)
    if kind == "long tails":
        columns = (columns**7).astype(np.float32)
    if kind == "copies":
        columns[:, n // 2 :] = columns[:, : n - n // 2]
    if kind == "constant column":
        columns[2] = 4.0
    if kind == "far from zero":
        columns = (columns + np.float32(1e6)).astype(np.float32)
    if kind == "tiny":
        columns = columns * np.float32(1e-38)
    if kind == "huge":
        columns = columns * np.float32(8e37)
    return columns


@pytest.mark.parametrize("subspace", [1, 2, 3])
@pytest.mark.parametrize(
    "kind",
    ["normal", "clusters", "whole numbers", "half zero", "long tails", "copies", "constant column", "far from zero"]
    + ["tiny", "huge"],
)
def test_scores_equal_brute_force(kind: str, subspace: int) -> None:
    columns = pool(kind)
    matrix, draws = prepared(columns, 60, subspace)
    for neighbours in (1, 13, 100, 2000):
        score = score_draws(matrix, draws, neighbours, 4.0)
        assert score.sum() == 0
        np.testing.assert_allclose(score / UNIT, brute_force(columns, draws, neighbours, 4.0), atol=60 * 1e-6)


def test_a_large_pool_where_strips_and_samples_matter() -> None:
    columns = pool("clusters", n=20_000, d=5)
    matrix, draws = prepared(columns, 150, 2)
    np.testing.assert_allclose(
        score_draws(matrix, draws, 300, 4.0) / UNIT, brute_force(columns, draws, 300, 4.0), atol=150 * 1e-6
    )


@pytest.mark.parametrize("beta", [0.5, 1, 2.0, 3, 7, 64, 100.0])
def test_exponents(beta: float) -> None:
    columns = pool("normal", n=200)
    matrix, draws = prepared(columns, 40, 2)
    np.testing.assert_allclose(
        score_draws(matrix, draws, 20, beta) / UNIT, brute_force(columns, draws, 20, beta), atol=40 * 1e-6
    )


@pytest.mark.parametrize("kind", ["normal", "whole numbers", "copies", "half zero"])
@pytest.mark.parametrize("shards", [2, 5])
def test_searching_shards_of_the_rows_gives_the_same_bits(kind: str, shards: int) -> None:
    columns = pool(kind, n=401)
    matrix, draws = prepared(columns, 80, 2)
    expected = score_draws(matrix, draws, 30, 4.0)
    parts = [Columns([np.ascontiguousarray(columns[:, shard::shards])]) for shard in range(shards)]
    found = [nearest_rows(part, draws) for part in parts]
    rows = np.stack([row * shards + shard for shard, (_, row, _) in enumerate(found)])
    distance = np.stack([part[0] for part in found])
    best = np.lexsort([rows, distance], axis=0)[0]
    at = np.arange(len(draws))
    winner, centre = rows[best, at], np.stack([part[2] for part in found])[best, at]
    around = [rows_around(part, draws, centre, 31) for part in parts]
    near = np.concatenate([row * shards + shard for shard, (_, row) in enumerate(around)], axis=1)
    shown = np.concatenate([part[0] for part in around], axis=1)
    limit, changed, units = settle(shown, near, winner, 30, 4.0)
    score = np.zeros(401, np.int64)
    np.add.at(score, changed, units)
    np.testing.assert_array_equal(score, expected)
    np.testing.assert_array_equal(limit, np.sort(shown, axis=1)[:, 30])


def test_nearest_and_around_take_the_smaller_row_at_equal_distances() -> None:
    columns = np.array([[5, 1, 1, 3, 3, 1]], np.float32)
    matrix = Columns([columns])
    draw = Draws(np.zeros((1, 1), np.int32), np.array([[2.0]], np.float32), np.zeros(1, np.int8))
    distance, row, centre = nearest_rows(matrix, draw)
    assert (distance.tolist(), row.tolist(), centre.tolist()) == ([1.0], [1], [[1.0]])
    distance, row = rows_around(matrix, draw, centre, 4)
    assert (distance.tolist(), row.tolist()) == ([[0, 0, 0, 2]], [[1, 2, 5, 3]])


def test_order_and_division_of_draws_change_no_bit() -> None:
    matrix, draws = prepared(pool("clusters"), 200, 2)
    whole = score_draws(matrix, draws, 50, 4.0)
    order = np.random.default_rng(0).permutation(200)
    pieces = [score_draws(matrix, draws[order[i::7]], 50, 4.0) for i in range(7)]
    np.testing.assert_array_equal(sum(pieces), whole)


def test_the_strip_changes_the_speed_only() -> None:
    matrix, draws = prepared(pool("whole numbers"), 100, 3)
    expected = score_draws(matrix, draws, 40, 4.0)
    for strip in range(3):
        other = Draws(draws.dimensions, draws.point, np.full(100, strip, np.int8))
        np.testing.assert_array_equal(score_draws(matrix, other, 40, 4.0), expected)


def test_permuting_rows_permutes_scores_where_there_are_no_ties() -> None:
    columns = pool("normal")
    matrix, draws = prepared(columns, 150, 2)
    order = np.random.default_rng(0).permutation(columns.shape[1])
    moved = score_draws(Columns([np.ascontiguousarray(columns[:, order])]), draws, 50, 4.0)
    np.testing.assert_array_equal(moved, score_draws(matrix, draws, 50, 4.0)[order])


def test_twice_the_vectors_are_the_same_draws_and_scores() -> None:
    scores = []
    for scale in (1, 2):
        matrix, draws = prepared(pool("clusters") * np.float32(scale), 150, 2)
        scores.append(score_draws(matrix, draws, 50, 4.0))
    np.testing.assert_array_equal(*scores)


def test_copies_pay_alike_and_all_scores_add_up_to_zero() -> None:
    columns = np.repeat(pool("normal", n=50), 3, axis=1)
    matrix, draws = prepared(columns, 300, 2)
    score = score_draws(matrix, draws, 20, 4.0).reshape(50, 3)
    assert score.sum() == 0
    # The first of each three wins; the other two are at distance 0 and share its vote equally.
    np.testing.assert_array_equal(score[:, 1], score[:, 2])
    np.testing.assert_array_equal(score[:, 0] > 0, score[:, 1] < 0)
    assert (score[:, 0] % UNIT == 0).all()


def test_penalties_of_distances_that_would_overflow() -> None:
    for distance in ([1e-38, 1e-38, 1.0], [1e-45, 3e38, 1e-45], [3e38, 3e38, np.inf]):
        share = penalties(np.array(distance, np.float32), 4.0) / UNIT
        assert np.isfinite(share).all()
        assert sorted(share.tolist()) == [0.0, 0.5, 0.5]
    assert penalties(np.array([np.inf], np.float32), 4.0).tolist() == [0]
    assert len(penalties(np.empty(0, np.float32), 4.0)) == 0


def test_penalties_do_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    distance = rng.random(5000).astype(np.float32) + np.float32(1e-3)
    order = rng.permutation(5000)
    np.testing.assert_array_equal(penalties(distance, 4.0)[order], penalties(distance[order], 4.0))
    assert abs(int(penalties(distance, 4.0).sum()) - UNIT) <= 5000


def test_draws_are_distinct_dimensions_all_equally_often() -> None:
    ranges = Ranges.varying([0, 0, 5, 0, 0, 0], [1, 1, 5, 1, 1, 1], [3, 3, 5, 3, 3, 3])
    draws = make_draws(7, 0, 40_000, ranges, 3)
    assert (np.sort(draws.dimensions, axis=1)[:, 1:] != np.sort(draws.dimensions, axis=1)[:, :-1]).all()
    assert 2 not in draws.dimensions
    for i in range(3):
        counts = np.bincount(draws.dimensions[:, i], minlength=6)[[0, 1, 3, 4, 5]]
        assert abs(counts - 8000).max() < 5 * np.sqrt(8000)
    # The triangular distribution over 0..3 with mode 1 has mean 4/3.
    assert abs(draws.point.mean() - 4 / 3) < 0.01
    assert draws.point.min() >= 0 and draws.point.max() <= 3
    assert (make_draws(8, 0, 10, ranges, 3).point != draws.point[:10]).any()


def test_draws_know_their_numbers() -> None:
    ranges = Ranges.varying(np.zeros(9), np.ones(9), np.full(9, 2.0))
    whole = make_draws(2, 0, 30, ranges)
    parts = [make_draws(2, first, 10, ranges) for first in (0, 10, 20)]
    np.testing.assert_array_equal(np.concatenate([part.dimensions for part in parts]), whole.dimensions)
    np.testing.assert_array_equal(np.concatenate([part.point for part in parts]), whole.point)


def test_triangular_at_its_ends() -> None:
    assert triangular([1 / 12, 1 / 3, 5 / 6], 0, 1, 3) == pytest.approx([0.5, 1, 2])
    u = np.array([1e-12, 0.25, 1 - 1e-12])
    for low, mode, high in [(0, 0, 1), (0, 1, 1), (-2, -1, 5)]:
        found = triangular(u, low, mode, high)
        assert (found >= low).all() and (found <= high).all() and (np.diff(found) > 0).all()
    with pytest.raises(ValueError, match="needs low < high"):
        triangular([0.5], 1.0, 1.0, 1.0)


def test_ranges_of_blocks() -> None:
    columns = pool("half zero", n=101)
    ranges = Ranges.of(Columns([columns[:5], columns[5:]]))
    np.testing.assert_array_equal(ranges.low, columns.min(axis=1))
    np.testing.assert_array_equal(ranges.median, np.median(columns, axis=1))
    np.testing.assert_array_equal(ranges.high, columns.max(axis=1))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="draws of 2 dimensions need as many columns that vary, and 1 do"):
        make_draws(0, 0, 5, Ranges.varying([0, 1], [0.5, 1], [1, 1]))
    with pytest.raises(ValueError, match="at least one block"):
        Columns([])
    with pytest.raises(ValueError, match="C-contiguous float32"):
        Columns([np.zeros((3, 4), np.float32).T])


def test_pools_of_one_row_and_two() -> None:
    matrix = Columns([np.array([[0.0], [1.0]], np.float32)])
    draws = Draws(np.array([[0, 1]], np.int32), np.zeros((1, 2), np.float32), np.zeros(1, np.int8))
    assert score_draws(matrix, draws, 10, 4.0).tolist() == [0]
    pair = Columns([np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)])
    assert (score_draws(pair, draws, 10, 4.0) / UNIT).tolist() == [1.0, -1.0]
