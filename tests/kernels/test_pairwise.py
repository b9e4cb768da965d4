from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels import _tiles, pairwise, screen
from datas3_ray.kernels.pairwise import (
    PriorMax,
    cross_max,
    cross_prior_max,
    largest_kept,
    merge_max,
    prior_max,
    prior_max_groups,
)
from datas3_ray.kernels.similarity import normalize


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small products on few cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def circle(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


def brute(x: np.ndarray) -> PriorMax:
    """The definition, on the whole matrix in float64."""
    x = x.astype(np.float64)
    cosines = np.round(np.clip(x @ x.T, -1, 1) * 1e6)
    cosines[np.triu_indices(len(x))] = 0
    best = np.maximum(cosines.max(1, initial=0), 0)
    first = np.where(best > 0, cosines.argmax(1) if len(x) else 0, -1)
    return PriorMax((best / 1e6).astype(np.float32), first.astype(np.int64))


def same(found: PriorMax, expected: PriorMax) -> None:
    assert found.similarity.dtype == np.float32 and found.argmax.dtype == np.int64
    assert np.array_equal(found.similarity, expected.similarity)
    assert np.array_equal(found.argmax, expected.argmax)


def taken(found: PriorMax, rows: Any) -> PriorMax:
    return PriorMax(found.similarity[rows], found.argmax[rows])


def vectors(n: int, d: int, seed: int, kind: str) -> np.ndarray:
    """Random rows, with copies, near copies, chains along a circle, or all nearly the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "copies":
        x[rng.integers(0, n, n)] = x[rng.integers(0, n, n)]
    elif kind == "near":
        x = x[rng.integers(0, max(1, n // 5), n)] + 1e-4 * x
    elif kind == "chain":
        angle = rng.integers(0, 40, n) * 0.05
        x = np.zeros((n, d))
        x[:, 0], x[:, 1] = np.cos(angle), np.sin(angle)
    elif kind == "tight":
        x = 1 + 2e-3 * x
    return normalize(x.astype(np.float32))[0]


KINDS = st.sampled_from(["random", "copies", "near", "chain", "tight"])
SHAPES = st.tuples(st.integers(1, 90), st.sampled_from([2, 3, 17, 64]), st.integers(0, 10**6), KINDS)


@pytest.mark.parametrize(
    ("degrees", "maxima", "kept"),
    [
        ((0, 10, 20), (0, 0.9848, 0.9848), {0}),
        ((0, 20, 10), (0, 0.9397, 0.9848), {0, 20}),
        ((10, 0, 20), (0, 0.9848, 0.9848), {10}),
        ((0, 170), (0, 0), {0, 170}),
    ],
)
def test_angles_on_the_circle(degrees: tuple[int, ...], maxima: tuple[float, ...], kept: set[int]) -> None:
    found = prior_max(circle(*degrees))
    assert np.allclose(found.similarity, maxima, atol=5e-5)
    assert {angle for angle, m in zip(degrees, found.similarity, strict=True) if not m > 0.97} == kept


@given(SHAPES, st.sampled_from([1, 2, 3, 7, 16, 33, 64, 1000, None]))
@settings(max_examples=100, deadline=None)
def test_every_tile_size_gives_the_definition(shape: tuple[int, int, int, str], block: int | None) -> None:
    x = vectors(*shape)
    same(prior_max(x, block), brute(x))


@pytest.fixture(params=["bfloat16", "int8"])
def always_screened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at coarse numbers first whatever the size, also where the CPU is slow at them."""
    monkeypatch.setattr(pairwise, "SCREENED", 1)
    for module in (pairwise, screen):
        monkeypatch.setattr(module, "fast_units", lambda: request.param)


@pytest.mark.usefixtures("always_screened")
@pytest.mark.parametrize("kind", ["random", "copies", "near", "chain", "tight"])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("d", [1, 3, 24, 96, 100])
def test_screening_gives_the_definition(kind: str, block: int, d: int) -> None:
    for n in (1, 2, 90):
        x = vectors(n, max(d, 2), n + d, kind)
        same(prior_max(x, block), brute(x))


@pytest.mark.usefixtures("always_screened")
@pytest.mark.parametrize("constant", ["CROWDED", "WAITING", "PATIENCE"])
@pytest.mark.parametrize("kind", ["random", "copies", "near", "tight"])
def test_screening_gives_up_in_time_with_the_same_answer(
    constant: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, constant, 0)
    monkeypatch.setattr(pairwise, "SCREEN_BLOCK", 50)
    x = vectors(400, 32, 5, kind)
    same(prior_max(x, 64), brute(x))


@pytest.mark.usefixtures("always_screened")
def test_coordinates_that_stand_out_do_not_mislead_the_screen() -> None:
    x = vectors(300, 64, 4, "near")
    x[:, 5] += 3
    x[::3, 9] *= 50
    x[7] = np.eye(64)[3]
    x = normalize(x)[0]
    same(prior_max(x), brute(x))


@pytest.mark.parametrize("units", ["bfloat16", "int8"])
@pytest.mark.parametrize("d", [48, 1280])
def test_the_bound_of_the_screen_holds(units: screen.Units, d: int) -> None:
    for kind in ("random", "near", "chain", "tight"):
        rows = torch.from_numpy(vectors(200, d, 1, kind))
        looked = screen.Screen(rows, units)
        space = screen.Workspace(200, 200)
        cosines = space.product(looked, 0, 200, looked, 0, 200).numpy() * looked.step[:, None]
        exact = rows.double() @ rows.double().T
        off = np.abs(cosines - exact.numpy())
        bound = looked.bound(0, 200, looked, 0, 200)[:, None] + looked.rounding(np.abs(cosines))
        assert (off <= bound).all()


@pytest.mark.parametrize("screened", [False, True])
@given(SHAPES, SHAPES, st.sampled_from([3, 16, None]))
@settings(max_examples=40, deadline=None)
def test_an_earlier_piece_as_a_whole(screened: bool, left: Any, right: Any, block: int | None) -> None:
    x = vectors(left[0], right[1], left[2], left[3])
    y = vectors(right[0], right[1], right[2], right[3])
    before = pairwise.SCREENED, pairwise.fast_units
    pairwise.SCREENED, pairwise.fast_units = (1, lambda: "int8") if screened else (10**9, before[1])
    try:
        found = cross_max(x, y, block)
    finally:
        pairwise.SCREENED, pairwise.fast_units = before
    cosines = np.round(np.clip(x.astype(float) @ y.astype(float).T, -1, 1) * 1e6)
    best = np.maximum(cosines.max(1), 0)
    first = np.where(best > 0, cosines.argmax(1), -1)
    same(found, PriorMax((best / 1e6).astype(np.float32), first.astype(np.int64)))


def test_the_largest_cosine_kept_is_decimal() -> None:
    for eps in range(1, 1001):
        assert largest_kept(eps / 1000) == 10**6 - 1000 * eps
    assert largest_kept(1e-6) == 999_999


@given(SHAPES, st.integers(1, 5), st.sampled_from([3, 16, None]))
@settings(max_examples=100, deadline=None)
def test_split_pieces_merge_to_the_same(shape: tuple[int, int, int, str], pieces: int, block: int | None) -> None:
    x = vectors(*shape)
    rng = np.random.default_rng(shape[2])
    where = rng.integers(0, pieces, len(x))
    rows = [np.flatnonzero(where == piece) for piece in range(pieces)]
    found: list[list[Any]] = []
    for mine in rows:
        similarity, local = prior_max(x[mine], block)
        found.append([(similarity, np.where(local >= 0, mine[local], -1) if len(mine) else local)])
    for a in range(pieces):
        for b in range(a):
            for_a, for_b = cross_prior_max(x[rows[a]], rows[a], x[rows[b]], rows[b], block)
            found[a].append(for_a)
            found[b].append(for_b)
    expected = brute(x)
    for mine, parts in zip(rows, found, strict=True):
        parts = [parts[i] for i in rng.permutation(len(parts))]
        merged = PriorMax(*parts[0])
        for part in parts[1:]:
            merged = merge_max(merged, part)
        same(merged, PriorMax(expected.similarity[mine], expected.argmax[mine]))


def test_pieces_need_not_be_sorted() -> None:
    x = vectors(60, 5, 0, "copies")
    a, b = np.split(np.random.default_rng(0).permutation(60), [25])
    for_a, for_b = cross_prior_max(x[a], a, x[b], b)
    sorted_a, sorted_b = cross_prior_max(x[np.sort(a)], np.sort(a), x[np.sort(b)], np.sort(b))
    same(for_a, taken(sorted_a, np.argsort(np.argsort(a))))
    same(for_b, taken(sorted_b, np.argsort(np.argsort(b))))


@given(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 16, 17, 40]), max_size=12), st.integers(0, 10**6), KINDS)
@settings(max_examples=60, deadline=None)
def test_groups_equal_one_call_each(sizes: list[int], seed: int, kind: str) -> None:
    offsets = np.cumsum([0, *sizes])
    x = vectors(int(offsets[-1]), 8, seed, kind) if offsets[-1] else np.zeros((0, 8), np.float32)
    found = prior_max_groups(x, offsets)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        alone = brute(x[start:stop])
        there = PriorMax(found.similarity[start:stop], found.argmax[start:stop])
        same(there, PriorMax(alone.similarity, np.where(alone.argmax >= 0, alone.argmax + start, -1)))


@pytest.mark.parametrize("kind", ["random", "near", "copies", "tight"])
def test_large_groups_and_default_blocks(kind: str) -> None:
    x = vectors(2600, 24, 3, kind)
    offsets = np.array([0, 200, 500, 2600])
    found = prior_max_groups(x, offsets)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        alone = brute(x[start:stop])
        shifted = np.where(alone.argmax >= 0, alone.argmax + start, -1)
        same(taken(found, slice(start, stop)), PriorMax(alone.similarity, shifted))
    same(prior_max(x), brute(x))


@pytest.mark.parametrize("dense", [0, 10**9])
def test_single_products_and_tiles_of_float64_agree(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "DENSE", dense)
    x = vectors(300, 12, 1, "tight")
    same(prior_max(x, 64), brute(x))
    same(prior_max_groups(x, [0, 100, 300]), prior_max_groups(x, [0, 100, 300], block=7))


def test_threads_do_not_matter() -> None:
    x = vectors(1200, 64, 2, "near")
    expected = prior_max(x)
    torch.set_num_threads(2)
    same(prior_max(x), expected)


@given(SHAPES, st.floats(0.001, 0.9), st.floats(0.001, 0.9))
@settings(max_examples=50, deadline=None)
def test_what_is_kept_is_apart_and_shrinks(shape: tuple[int, int, int, str], eps: float, other: float) -> None:
    x = vectors(*shape)
    m = prior_max(x).similarity.astype(np.float64)
    small, large = sorted((eps, other))
    kept = m <= 1 - small
    assert kept[0] and (kept >= (m <= 1 - large)).all()
    cosines = x[kept].astype(np.float64) @ x[kept].astype(np.float64).T
    assert (cosines[np.triu_indices(kept.sum(), 1)] <= 1 - small + 1e-6).all()


def test_one_of_many_copies_is_first() -> None:
    x = np.repeat(vectors(1, 512, 0, "random"), 3000, axis=0)
    found = prior_max(x)
    assert found.similarity[0] == 0 and (found.similarity[1:] == 1).all()
    assert found.argmax[0] == -1 and not found.argmax[1:].any()


def test_opposite_and_orthogonal_rows_have_no_earlier_one() -> None:
    same(prior_max(circle(0, 180, 90)), PriorMax(np.zeros(3, np.float32), np.array([-1, -1, -1])))
    same(prior_max(np.eye(300, dtype=np.float32)), PriorMax(np.zeros(300, np.float32), np.full(300, -1)))


def test_empty_and_single() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert prior_max(empty).similarity.shape == (0,)
    assert prior_max_groups(empty, [0]).argmax.shape == (0,)
    assert prior_max_groups(empty, [0, 0, 0]).argmax.shape == (0,)
    same(prior_max(circle(3)), PriorMax(np.zeros(1, np.float32), np.array([-1])))
    for_a, for_b = cross_prior_max(empty, np.zeros(0, int), np.eye(4, dtype=np.float32), np.arange(4))
    assert for_a.argmax.shape == (0,) and for_b.argmax.tolist() == [-1] * 4


def test_bad_input_is_refused() -> None:
    x = circle(0, 10, 20)
    broken = x.copy()
    broken[1] = np.nan
    with pytest.raises(ValueError, match="row 1 of X is zero, NaN or infinite"):
        prior_max(broken)
    with pytest.raises(ValueError, match="block must be at least 1, not 0"):
        prior_max(x, 0)
    for offsets in ([0, 2], [1, 3], [0, 2, 1, 3], [], [0.0, 3.0], [[0, 3]]):
        with pytest.raises(ValueError, match="offsets"):
            prior_max_groups(x, offsets)
    with pytest.raises(ValueError, match="rank_b must be 3 whole numbers"):
        cross_prior_max(x, [0, 1, 2], x, [3, 4])
    with pytest.raises(ValueError, match="different dimensions"):
        cross_prior_max(x, [0, 1, 2], np.eye(3, dtype=np.float32), [3, 4, 5])
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_max(prior_max(x), prior_max(x[:2]))
