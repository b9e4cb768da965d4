"""Farthest-first traversal: batched rounds over shards give what one pass a centre gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels import k_center
from datas3_ray.kernels.k_center import TAKEN, Rows, farthest, lower, pick, start


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float32 squared distances of every row to one, computed in float64."""
    return ((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum(1).astype(np.float32)


def one_at_a_time(x: np.ndarray, order: np.ndarray, first: int, count: int) -> tuple[list[int], list[float]]:
    """The definition: a pass over all rows for every centre, until only copies of centres are left."""
    least = squared(x, x[first])
    picks, distances = [first], []
    while len(picks) < count:
        free = np.where(np.isin(np.arange(len(x)), picks), TAKEN, least)
        tied = np.flatnonzero(free == free.max())
        if free.max() <= 0:
            break
        best = tied[np.argmin(order[tied])]
        picks.append(int(best))
        distances.append(float(free.max()))
        least = np.minimum(least, squared(x, x[best]))
    return picks, distances


def in_rounds(x: np.ndarray, order: np.ndarray, first: int, count: int, shards: int, offered: int) -> tuple:
    """The same over shards, with ``offered`` rows of each shard a round."""
    places = np.array_split(np.arange(len(x)), shards)
    rows = [Rows.of(x[place]) for place in places]
    known = [start(len(place)) for place in places]
    picks, distances, new = [first], [], np.array([first])
    while True:
        for place, shard, least in zip(places, rows, known, strict=True):
            lower(least, shard, Rows.of(x[new]))
            least[np.isin(place, new)] = TAKEN
        offers = [farthest(least, order[place], offered) for place, least in zip(places, known, strict=True)]
        candidates = np.concatenate([place[index] for place, (index, _) in zip(places, offers, strict=True)])
        if len(picks) == count or len(candidates) == 0:
            return picks, distances
        least = np.concatenate([least[index] for least, (index, _) in zip(known, offers, strict=True)])
        ends = np.cumsum([len(index) for index, _ in offers]) - 1
        fences = [end for end, (_, more) in zip(ends, offers, strict=True) if more]
        fence = min(fences, key=lambda end: (-least[end], order[candidates[end]]), default=None)
        index, distance = pick(Rows.of(x[candidates]), least, order[candidates], fence, count - len(picks))
        if len(index) == 0:
            assert least.max() <= 0, "at least the first candidate is certain"
            return picks, distances
        new = candidates[index]
        picks += new.tolist()
        distances += distance.tolist()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_rounds_equal_one_pass_a_centre(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 90))
    d = data.draw(st.sampled_from([1, 2, 5, 40]))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    x = rng.normal(size=(n, d)) * 10.0 ** data.draw(st.integers(-3, 3)) + data.draw(st.sampled_from([0.0, 100.0]))
    if data.draw(st.booleans()):
        x = np.round(x)  # many equal distances
    x[rng.integers(0, n, n // 3)] = x[rng.integers(0, n, n // 3)]  # copies
    x = x.astype(np.float32)
    order = rng.permutation(n)
    count, first = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    expected = one_at_a_time(x, order, first, count)
    got = in_rounds(
        x, order, first, count, data.draw(st.integers(1, min(n, 5))), data.draw(st.sampled_from([1, 3, 50]))
    )
    assert got[0] == expected[0]
    assert got[1] == expected[1]


def test_known_answer_on_a_line() -> None:
    x = np.array([[0], [1], [5], [10]], np.float32)
    assert one_at_a_time(x, np.arange(4), 0, 3)[0] == [0, 3, 2]
    assert in_rounds(x, np.arange(4), 0, 3, shards=2, offered=1)[0] == [0, 3, 2]


def test_radius_is_at_most_twice_the_best() -> None:
    from itertools import combinations

    rng = np.random.default_rng(3)
    for _ in range(20):
        x = rng.normal(size=(9, 2)).astype(np.float32)
        between = np.sqrt(np.stack([squared(x, row) for row in x]))
        best = min(between[list(chosen)].min(0).max() for chosen in combinations(range(9), 3))
        picks, _ = in_rounds(x, np.arange(9), 0, 3, shards=2, offered=2)
        assert between[picks].min(0).max() <= 2 * best + 1e-6


def test_distances_do_not_depend_on_tiles_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(700, 33)).astype(np.float32), rng.normal(size=(50, 33)).astype(np.float32)
    x[:40] = c[:40] + np.float32(1e-6)
    whole = start(700)
    lower(whole, Rows.of(x), Rows.of(c))
    assert np.array_equal(whole, np.min([squared(x, row) for row in c], axis=0))
    monkeypatch.setattr(k_center, "_MOST_ROWS", 17)
    pieces = start(700)
    for row in c:
        lower(pieces, Rows.of(x), Rows.of(row[None]))
    assert np.array_equal(whole, pieces)


def test_rows_that_are_centres_or_at_distance_zero_stay() -> None:
    rows = Rows.of(np.zeros((2, 3), np.float32))
    least = np.array([TAKEN, 0.0], np.float32)
    lower(least, rows, rows)
    assert least.tolist() == [TAKEN, 0.0]
    picks, _ = pick(rows, least, np.arange(2), None, 2)
    assert len(picks) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20])
def test_farthest_equals_sorting(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(30):
        least = rng.integers(-1, 3, 9).astype(np.float32)
        order = rng.permutation(9)
        free = [i for i in np.lexsort([order, -least]) if least[i] != TAKEN]
        index, more = farthest(least, order, count)
        assert index.tolist() == free[:count]
        assert more == (len(free) > count)


def test_mistakes() -> None:
    rows = Rows.of(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="row 1 of X is not finite or longer than 1e\\+18"):
        Rows.of(np.array([[1.0], [1e19]], np.float32))
    with pytest.raises(ValueError, match="different dimensions, 3 and 2"):
        lower(start(2), rows, Rows.of(np.ones((1, 2), np.float32)))
    with pytest.raises(ValueError, match="least must be float32"):
        lower(np.zeros(2), rows, rows)
