"""Rows of one key meet, and every answer finds its way back, however many parts, groups and buckets there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import exchange as room
from datas3_ray.exchange import exchange, reduce_buckets
from datas3_ray.runtime import gather


def tables(keys: np.ndarray, parts: int) -> list[pa.Table]:
    names = pa.array([f"row {i}" for i in range(len(keys))])
    whole = pa.table({"key": pa.array(keys, pa.uint64()), "name": names})
    return [
        whole.slice(int(piece[0]), len(piece)) if len(piece) else whole.slice(0, 0)
        for piece in np.array_split(np.arange(len(keys)), parts)
    ]


def _sizes(rows: pa.Table, text: str) -> pa.Table:
    counts = Counter(rows.column("key").to_pylist())
    sizes = [counts[key] for key in rows.column("key").to_pylist()]
    return pa.table({"answer": [f"{text} {name}" for name in rows.column("name").to_pylist()], "size": sizes})


def _beside(rows: pa.Table, others: pa.Table) -> pa.Table:
    counts = Counter(others.column("key").to_pylist())
    return pa.table({"others": [counts[key] for key in rows.column("key").to_pylist()]})


def _tally(rows: pa.Table) -> dict[int, int]:
    return Counter(rows.column("key").to_pylist())


@pytest.mark.parametrize(
    ("parts", "bucket_rows", "objects"), [(1, 1000, 4096), (5, 20, 4096), (7, 10, 12), (9, 150, 3)]
)
def test_answers_are_aligned(ray_session, monkeypatch, parts, bucket_rows, objects) -> None:
    import ray

    monkeypatch.setattr(room, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(room, "MAX_OBJECTS", objects)
    keys = np.random.default_rng(0).integers(0, 40, 150).astype(np.uint64) << np.uint64(32)
    given = tables(keys, parts)
    answers = gather(exchange([ray.put(part) for part in given], len(keys), _sizes, "of"))
    assert [answer.num_rows for answer in answers] == [part.num_rows for part in given]
    whole = pa.concat_tables(answers)
    counts = Counter(keys.tolist())
    assert whole.column("answer").to_pylist() == [f"of row {i}" for i in range(150)]
    assert whole.column("size").to_pylist() == [counts[key] for key in keys.tolist()]


@pytest.mark.parametrize("bucket_rows", [1000, 15])
def test_rows_beside(ray_session, monkeypatch, bucket_rows) -> None:
    import ray

    monkeypatch.setattr(room, "BUCKET_ROWS", bucket_rows)
    keys, others = np.arange(100, dtype=np.uint64), np.repeat(np.arange(50, 150, dtype=np.uint64), 2)
    mine, theirs = tables(keys, 3), tables(others, 4)
    refs = exchange([ray.put(t) for t in mine], 100, _beside, beside=[ray.put(t) for t in theirs])
    found = pa.concat_tables(gather(refs)).column("others").to_pylist()
    assert found == [0] * 50 + [2] * 50


def test_reducing_gives_one_answer_a_bucket(ray_session) -> None:
    import ray

    keys = np.random.default_rng(1).integers(0, 30, 90).astype(np.uint64)
    found = gather(reduce_buckets([ray.put(t) for t in tables(keys, 3)], 90, _tally, bucket_rows=20))
    assert len(found) == 5
    assert sum((Counter(part) for part in found), Counter()) == Counter(keys.tolist())
    assert sum(len(part) for part in found) == len(set(keys.tolist()))  # no key in two buckets


def test_no_parts(ray_session) -> None:
    assert exchange([], 0, _sizes, "of") == []
    assert reduce_buckets([], 0, _tally) == []
