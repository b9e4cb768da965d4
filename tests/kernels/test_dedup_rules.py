"""Leaders and components against every pair in float64."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.dedup_rules import components, join, leaders, links
from datas3_ray.kernels.pairwise import PriorMax

LARGEST = 970_000


def rows(n: int, seed: int = 0, d: int = 6) -> np.ndarray:
    """Unit rows, many of them nearly alike, some the same."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(max(1, n // 6), d))
    x = base[rng.integers(0, len(base), n)] + 0.15 * rng.normal(size=(n, d))
    x[n // 2 : n // 2 + n // 10] = x[: n // 10]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def millionths(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x.astype(np.float64) @ y.astype(np.float64).T * 1e6), -1e6, 1e6).astype(np.int64)


def brute_leaders(x: np.ndarray) -> tuple[list[int], list[int], list[bool]]:
    cosines = millionths(x, x)
    best, which, leads = [], [], []
    for row in range(len(x)):
        top, place = 0, -1
        for other in range(row):
            if leads[other] and cosines[row, other] > top:
                top, place = int(cosines[row, other]), other
        best.append(top)
        which.append(place)
        leads.append(top <= LARGEST)
    return best, which, leads


def brute_components(x: np.ndarray) -> list[int]:
    linked = millionths(x, x) > LARGEST
    first = list(range(len(x)))
    changed = True
    while changed:
        changed = False
        for i, j in zip(*np.nonzero(linked), strict=True):
            low = min(first[i], first[j])
            changed |= first[i] != low or first[j] != low
            first[i] = first[j] = low
    return first


@pytest.mark.parametrize("n", [1, 2, 300, 1300])
def test_leaders_equal_brute_force(n) -> None:
    x = rows(n, n)
    found = leaders(x, LARGEST)
    best, which, leads = brute_leaders(x)
    assert np.round(found.similarity * 1e6).astype(int).tolist() == best
    assert found.argmax.tolist() == which
    assert found.leads.tolist() == leads
    assert n < 10 or 0 < sum(leads) < n


def test_leaders_of_a_later_piece_go_on_from_those_before() -> None:
    x = rows(700, 3)
    whole = leaders(x, LARGEST)
    one = leaders(x[:250], LARGEST)
    chosen = np.flatnonzero(one.leads)
    cosines = millionths(x[250:], x[chosen])
    known = PriorMax(
        (np.maximum(cosines.max(1), 0) / 1e6).astype(np.float32),
        np.where(cosines.max(1) > 0, chosen[cosines.argmax(1)], -1),
    )
    two = leaders(x[250:], LARGEST, known=known, base=250)
    for name in ("similarity", "argmax", "leads"):
        pieces = np.concatenate([getattr(one, name), getattr(two, name)])
        assert pieces.tolist() == getattr(whole, name).tolist(), name


@pytest.mark.parametrize("n", [1, 2, 300, 1300])
def test_components_equal_brute_force(n) -> None:
    x = rows(n, n)
    assert components(x, LARGEST).tolist() == brute_components(x)


def test_links_of_two_pieces_and_their_own_components_are_those_of_the_whole() -> None:
    x = rows(900, 5)
    a, b = x[:400], x[400:]
    first = np.concatenate([components(a, LARGEST), components(b, LARGEST) + 400])
    i, j = links(a, b, LARGEST)
    assert len(i) < len(x)
    assert (millionths(a[i], b[j]).diagonal() > LARGEST).all()
    assert join(first, i, j + 400).tolist() == components(x, LARGEST).tolist()
    none = links(np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32)[1:], LARGEST)
    assert [len(side) for side in none] == [0, 0]


def test_a_long_chain_is_one_component_whatever_the_order() -> None:
    angle = np.deg2rad(np.arange(80) * 3.0)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(80)
    assert components(circle[order], 998_000).tolist() == [0] * 80
    assert leaders(circle, 998_000).leads.tolist() == [place % 2 == 0 for place in range(80)]


def test_many_copies_stay_fast_and_one_is_kept() -> None:
    x = np.repeat(rows(3, 1, d=8), 600, axis=0)
    assert leaders(x, 999_999).leads.sum() == 3
    assert sorted(set(components(x, 999_999).tolist())) == [0, 600, 1200]
