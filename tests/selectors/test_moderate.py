"""Moderate: medians, distances and the middle, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import Moderate


def brute_force(ids, vectors, group, size, around) -> tuple[set[str], np.ndarray]:
    distance = np.empty(len(ids))
    for name in set(group):
        mine = np.array([g == name for g in group])
        prototype = np.median(vectors[mine].astype(np.float64), axis=0).astype(np.float32).astype(np.float64)
        distance[mine] = np.linalg.norm(vectors[mine].astype(np.float64) - prototype, axis=1)
    distance = distance.astype(np.float32).astype(np.float64)
    if around == "rank":
        order = sorted(range(len(ids)), key=lambda i: (distance[i], ids[i]))
        below = (len(ids) - size) // 2
        return {ids[i] for i in order[below : below + size]}, distance
    order = sorted(range(len(ids)), key=lambda i: (abs(distance[i] - np.median(distance)), ids[i]))
    return {ids[i] for i in order[:size]}, distance


@pytest.mark.parametrize("around", ["distance", "rank"])
@pytest.mark.parametrize("labels", [["b", "a"], [3, 10, 7]])
@pytest.mark.parametrize("fragments", [1, 4])
def test_equals_brute_force(lake, make_pool, around, labels, fragments) -> None:
    rng = np.random.default_rng(1)
    ids = [f"{i:03}" for i in rng.permutation(151)]
    group = [labels[i] for i in rng.integers(0, len(labels), 151)]
    vectors = rng.normal(size=(151, 4)).astype(np.float32)
    make_pool(lake, "pool", ids, vectors, fragments=fragments, kind=group)
    selection = Moderate(column="vec", label="kind", size=40, around=around).select(lake, "pool")
    wanted, distance = brute_force(ids, vectors, group, 40, around)
    assert set(selection.ids().to_pylist()) == wanted
    found = {row["id"]: row["distance"] for row in selection.to_arrow().to_pylist()}
    assert [found[name] for name in ids] == pytest.approx(distance.tolist(), rel=1e-6)
    assert selection.lineage()["report"]["groups"] == len(labels)
    assert selection.lineage()["report"]["median_distance"] == pytest.approx(np.median(distance), rel=1e-6)


def test_in_clusters(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    ids, vectors = [f"{i:03}" for i in range(120)], rng.normal(size=(120, 5)).astype(np.float32)
    make_pool(lake, "pool", ids, vectors, fragments=3)
    selection = Moderate(column="vec", clusters=4, size=30).select(lake, "pool")
    cluster = {row["id"]: row["cluster"] for row in selection.to_arrow().to_pylist()}
    wanted, _ = brute_force(ids, vectors, [cluster[name] for name in ids], 30, "distance")
    assert set(selection.ids().to_pylist()) == wanted


def test_a_class_of_one_row_and_rows_without_a_label_or_a_vector(lake, make_pool) -> None:
    vectors = np.array([[0, 1], [0, 3], [0, 4], [5, 5], [1, 1], [np.nan, 1]], np.float32)
    labels = ["a", "a", "a", "lonely", None, "a"]
    make_pool(lake, "pool", list("uvwxyz"), vectors, fragments=2, label=labels)
    selection = Moderate(column="vec", label="label", size=2).select(lake, "pool")
    rows = {row["id"]: row for row in selection.to_arrow().to_pylist()}
    # The prototype of a is (0, 3): distances 2, 0, 1; the lonely row is its own prototype. Their median is 0.5.
    assert {name: row["distance"] for name, row in rows.items()} == {"u": 2.0, "v": 0.0, "w": 1.0, "x": 0.0}
    assert selection.lineage()["counts"]["invalid"] == 2
    assert set(selection.ids().to_pylist()) == {"v", "w"}  # v, w and x are equally near; the smallest ids


def test_one_grouping() -> None:
    with pytest.raises(UsageError, match="moderate: give either label or clusters"):
        Moderate(column="vec", size=5)
    with pytest.raises(UsageError, match="moderate: give either label or clusters"):
        Moderate(column="vec", size=5, label="a", clusters=3)
