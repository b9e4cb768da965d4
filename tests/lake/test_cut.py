"""The distributed cut keeps exactly the rows of one global sort."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import datas3_ray.lake.cut as cut_module
from datas3_ray.lake.cut import apply_cut, find_cut


def parts_of(ids: list[str], scores: np.ndarray, count: int) -> list[pa.Table]:
    table = pa.table({"id": ids, "score": scores})
    return [table.take(pa.array(piece)) for piece in np.array_split(np.arange(len(ids)), count)]


def kept(parts: list[pa.Table], cut) -> set[str]:
    tables = [apply_cut(part, cut) for part in parts]
    return {row for table in tables for row in table.filter(table.column("keep")).column("id").to_pylist()}


@pytest.mark.parametrize("few", [0, 100_000])
@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("ties", ["none", "some", "all"])
def test_equals_a_global_sort(ray_session, monkeypatch, few, partitions, ties) -> None:
    import ray

    monkeypatch.setattr(cut_module, "FEW", few)
    rng = np.random.default_rng(3)
    ids = [f"shard-{i % 5}/image-{i}" for i in rng.permutation(200)]
    scores = {"none": rng.normal(size=200), "some": rng.integers(0, 4, 200) / 4.0, "all": np.zeros(200)}[ties]
    parts = parts_of(ids, scores, partitions)
    order = sorted(range(200), key=lambda i: (-scores[i], ids[i].encode()))
    for count in (0, 1, 57, 199, 200):
        cut = find_cut([ray.put(part) for part in parts], count)
        assert kept(parts, cut) == {ids[i] for i in order[:count]}


def test_empty_parts_and_no_parts(ray_session) -> None:
    import ray

    empty = pa.table({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
    full = pa.table({"id": ["a"], "score": [0.5]})
    assert kept([empty, full], find_cut([ray.put(empty), ray.put(full)], 1)) == {"a"}
    assert find_cut([], 0).keep(np.zeros((0, 2), np.uint64)).tolist() == []
