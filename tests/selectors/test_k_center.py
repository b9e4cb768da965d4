"""KCenter: farthest-first over fragments equals the traversal over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.similarity import normalize
from datas3_ray.selectors import KCenter, Random


def brute(ids: list[str], vectors: np.ndarray, first: str, count: int) -> list[str]:
    """Ids in the order in which they are kept."""
    x = vectors.astype(np.float64)
    kept = [ids.index(first)]
    while len(kept) < count:
        distance = np.min([((x - x[i]) ** 2).sum(1).astype(np.float32) for i in kept], axis=0)
        rest = [i for i in range(len(ids)) if i not in kept]
        kept.append(min(rest, key=lambda i: (-distance[i], ids[i])))
    return [ids[i] for i in kept]


def ranking(selection) -> list[str]:
    rows = selection.to_arrow(["id", "score"], kept=True).sort_by([("score", "descending"), ("id", "ascending")])
    return rows.column("id").to_pylist()


@pytest.fixture
def line(lake, make_pool):
    """The points 0, 1, 5 and 10 of a line that does not pass through the origin."""
    return make_pool(lake, "pool", ["p0", "p1", "p5", "p10"], [[1, 0], [1, 1], [1, 5], [1, 10]], fragments=2)


def test_known_answer(lake, line) -> None:
    selection = KCenter(column="vec", size=3, metric="euclidean", start="p0").select(lake, "pool")
    assert ranking(selection) == ["p0", "p10", "p5"]
    scores = dict(zip(*(selection.to_arrow().column(name).to_pylist() for name in ("id", "score")), strict=True))
    assert scores == {"p0": 20.0, "p1": 1.0, "p5": 5.0, "p10": 10.0}
    assert selection.lineage()["report"] == {"start": "p0", "radius": 1.0, "ranked": 3}


@pytest.mark.parametrize("fragments", [1, 4, 13])
@pytest.mark.parametrize("held", [0.5, 0.0])
def test_equals_brute_force(lake, make_pool, monkeypatch, fragments, held) -> None:
    monkeypatch.setattr(KCenter, "held_share", held)
    rng = np.random.default_rng(0)
    vectors = np.round(rng.normal(size=(80, 3)), 1).astype(np.float32)  # ties
    vectors[:, 0] += 3
    ids = [f"{i % 3}-{i:02}" for i in range(80)]
    make_pool(lake, "pool", ids, vectors, fragments=fragments)
    first = ids[int(np.argmin(hash64(id_words(ids), seed=5, stream="k-center")))]
    selection = KCenter(column="vec", size=30, seed=5).select(lake, "pool")
    assert ranking(selection) == brute(ids, normalize(vectors)[0], first, 30)
    euclidean = KCenter(column="vec", size=30, seed=5, metric="euclidean").select(lake, "pool")
    assert ranking(euclidean) == brute(ids, vectors, first, 30)


def test_the_score_is_the_distance_to_the_nearest_kept_row(lake, make_pool) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    make_pool(lake, "pool", [f"{i:02}" for i in range(60)], vectors, fragments=3)
    selection = KCenter(column="vec", size=10).select(lake, "pool")
    table = selection.to_arrow()
    keep = table.column("keep").to_numpy()
    unit = normalize(vectors)[0].astype(np.float64)
    distance = 1 - (unit @ unit[keep].T).max(1)
    assert table.column("score").to_numpy()[~keep] == pytest.approx(distance[~keep], abs=1e-6)
    assert selection.lineage()["report"]["radius"] == pytest.approx(distance[~keep].max(), abs=1e-6)


def test_copies_come_last_and_by_id(lake, make_pool) -> None:
    distinct = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    vectors = np.repeat(distinct, 4, axis=0)
    ids = [f"{i:02}" for i in range(20)]
    make_pool(lake, "pool", ids, vectors, fragments=3)
    five = KCenter(column="vec", size=5).select(lake, "pool")
    assert len({int(name) // 4 for name in five.ids().to_pylist()}) == 5
    assert five.lineage()["report"]["radius"] == 0.0
    seven = KCenter(column="vec", size=7).select(lake, "pool")
    assert set(five.ids().to_pylist()) < set(seven.ids().to_pylist())
    rest = sorted(set(ids) - set(five.ids().to_pylist()))
    assert set(seven.ids().to_pylist()) - set(five.ids().to_pylist()) == set(rest[:2])


def test_it_can_be_cut_shorter_and_not_longer(lake, line) -> None:
    selection = KCenter(column="vec", size=3, metric="euclidean", start="p0").select(lake, "pool", name="s")
    assert set(selection.resize(1).ids().to_pylist()) == {"p0"}
    assert set(selection.resize(2).ids().to_pylist()) == {"p0", "p10"}
    with pytest.raises(UsageError, match="'s' of method k_center ranks its first 3 rows only"):
        selection.resize(4)


def test_lengths_whose_squares_float32_cannot_hold(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a", "b", "c"], np.array([[1e19, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(UsageError, match="k_center: a vector is longer than 1e18.*scale the column down"):
        KCenter(column="vec", size=2, metric="euclidean").select(lake, "pool")
    assert len(KCenter(column="vec", size=2).select(lake, "pool")) == 2


def test_starting_row(lake, line) -> None:
    with pytest.raises(UsageError, match="start = 'p2' is no eligible row of table 'pool'"):
        KCenter(column="vec", size=2, start="p2").select(lake, "pool")
    parent = Random(size=2, seed=1).select(lake, "pool", name="parent")
    outside = next(name for name in ("p0", "p1", "p5", "p10") if name not in parent.ids().to_pylist())
    with pytest.raises(UsageError, match="is no eligible row"):
        KCenter(column="vec", size=2, start=outside).select(lake, "pool", within="parent")
