"""HashDedup against every pair of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import exchange
from datas3_ray.errors import UsageError
from datas3_ray.selectors import HashDedup, hash_dedup


def hashes_around_centres(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 12).astype(np.uint64) * np.uint64(2)
    found = centres[rng.integers(0, 12, n)]
    for _ in range(5):
        flip = np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)
        found = np.where(rng.random(n) < 0.5, found ^ flip, found)
    found[rng.integers(0, n, n // 6)] = 0
    return found


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def leader(rows: list[tuple[str, int]], radius: int) -> dict[str, str]:
    """Rows in order: the first row before it that stays and is near removes it."""
    stays: list[tuple[str, int]] = []
    answer = {}
    for name, value in rows:
        near = [other for other, hashed in stays if bits(value, hashed) <= radius]
        answer[name] = near[0] if near else name
        if not near:
            stays.append((name, value))
    return answer


def components(rows: list[tuple[str, int]], radius: int) -> dict[str, str]:
    """Rows in order: each chain of near rows keeps its first."""
    answer: dict[str, str] = {}
    for name, value in rows:
        if name in answer:
            continue
        waiting = [(name, value)]
        while waiting:
            at, here = waiting.pop()
            if at not in answer:
                answer[at] = name
                waiting += [row for row in rows if row[0] not in answer and bits(here, row[1]) <= radius]
    return answer


def found(selection) -> dict[str, str]:
    rows = selection.to_arrow().to_pylist()
    assert all(row["keep"] == (row["duplicate_of"] is None) == (row["distance"] is None) for row in rows)
    return {row["id"]: row["duplicate_of"] or row["id"] for row in rows}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("rule", ["leader", "components"])
@pytest.mark.parametrize("radius", [0, 2, 5])
@pytest.mark.parametrize("flat", ["keep", "compare"])
def test_equals_brute_force(lake, make_pool, monkeypatch, small, rule, radius, flat) -> None:
    if small:
        monkeypatch.setattr(exchange, "BUCKET_ROWS", 11)
        monkeypatch.setattr(hash_dedup, "LINK_ROWS", 40)
    rng = np.random.default_rng(radius)
    hashes = hashes_around_centres(140, seed=radius)
    ids = [f"{i:03}" for i in rng.permutation(140)]
    width = rng.integers(0, 5, 140).astype(float)
    make_pool(lake, "pool", ids, np.ones((140, 2)), fragments=4, phash=pa.array(hashes), width=pa.array(width))
    selection = HashDedup(radius=radius, rule=rule, keep="width", flat=flat).select(lake, "pool")
    order = sorted(range(140), key=lambda i: (-width[i], ids[i]))
    compared = [(ids[i], int(hashes[i])) for i in order if flat == "compare" or hashes[i]]
    wanted = {"leader": leader, "components": components}[rule](compared, radius)
    wanted |= {ids[i]: ids[i] for i in order if flat == "keep" and not hashes[i]}
    assert found(selection) == wanted
    assert 0 < len(selection) < 140
    value = dict(zip(ids, hashes.tolist(), strict=True))
    for row in selection.to_arrow().to_pylist():
        if row["duplicate_of"]:
            assert row["distance"] == bits(value[row["id"]], value[row["duplicate_of"]])
            assert rule == "components" or row["distance"] <= radius
    assert selection.lineage()["report"]["flat_rows"] == int((hashes == 0).sum())


def test_a_chain_shows_how_the_rules_differ(lake, make_pool) -> None:
    chain = np.array([0b0001, 0b0011, 0b0111, 0b1111], np.uint64)
    make_pool(lake, "pool", list("abcd"), np.ones((4, 2)), fragments=2, phash=pa.array(chain))
    assert found(HashDedup(radius=1).select(lake, "pool")) == {"a": "a", "b": "a", "c": "c", "d": "c"}
    joined = HashDedup(radius=1, rule="components").select(lake, "pool")
    assert found(joined) == {"a": "a", "b": "a", "c": "a", "d": "a"}
    assert [row["distance"] for row in joined.to_arrow().to_pylist()] == [None, 1, 2, 3]


def test_missing_hashes_and_signed_ones(lake, make_pool) -> None:
    signed = pa.array([-1, -1, None, 7], pa.int64())
    make_pool(lake, "pool", list("abcd"), np.ones((4, 2)), fragments=2, signed=signed, words=["x"] * 4)
    selection = HashDedup(hash="signed", radius=3).select(lake, "pool")
    assert found(selection) == {"a": "a", "b": "a", "d": "d"}
    assert selection.lineage()["counts"]["invalid"] == 1
    with pytest.raises(UsageError, match=r"column 'words' of table 'pool' is string; hashes are uint64"):
        HashDedup(hash="words").select(lake, "pool")
    with pytest.raises(UsageError, match="hash_dedup: radius = 40"):
        HashDedup(radius=40)
