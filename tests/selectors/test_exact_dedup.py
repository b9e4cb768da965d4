"""ExactDedup against a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import exchange
from datas3_ray.errors import UsageError
from datas3_ray.selectors import ExactDedup


def brute_force(ids, values, prefer=None) -> dict[str, str]:
    """The id that stays for each row: of equal values the most preferred, then the smallest id."""
    stays: dict = {}
    prefer = prefer or [0.0] * len(ids)
    for name, value, _ in sorted(zip(ids, values, prefer, strict=True), key=lambda row: (-row[2], row[0].encode())):
        stays.setdefault(value, name)
    return {name: stays[value] for name, value in zip(ids, values, strict=True)}


def found(selection) -> dict[str, str]:
    rows = selection.to_arrow().to_pylist()
    assert all(row["keep"] == (row["duplicate_of"] is None) for row in rows)
    return {row["id"]: row["duplicate_of"] or row["id"] for row in rows}


@pytest.mark.parametrize("bucket_rows", [500_000, 9])
@pytest.mark.parametrize("kind", ["text", "bytes", "number", "vector"])
@pytest.mark.parametrize(("keep", "higher"), [(None, True), ("width", True), ("width", False)])
def test_equals_brute_force(lake, make_pool, monkeypatch, bucket_rows, kind, keep, higher) -> None:
    monkeypatch.setattr(exchange, "BUCKET_ROWS", bucket_rows)
    rng = np.random.default_rng(2)
    ids = [f"{'i' * int(rng.integers(1, 12))}{i:03}" for i in rng.permutation(130)]
    value = rng.integers(1, 60, 130)
    width = [float(w) if w else None for w in rng.integers(0, 4, 130)]
    vectors = np.column_stack([value, -value, np.ones(130)]).astype(np.float32)
    column = {"text": [f"{v:x}" for v in value], "bytes": [bytes([v, 0]) for v in value]}.get(kind, value)
    make_pool(lake, "pool", ids, vectors, fragments=4, value=pa.array(column), width=pa.array(width, pa.float64()))
    by = "vec" if kind == "vector" else "value"
    selection = ExactDedup(by=by, keep=keep, higher_is_better=higher).select(lake, "pool")
    prefer = None
    if keep:
        prefer = [-np.inf if w is None else w if higher else -w for w in width]
    assert found(selection) == brute_force(ids, value.tolist(), prefer)
    assert len(selection) == len(set(value.tolist()))


def test_rows_without_a_value_are_invalid(lake, make_pool) -> None:
    vectors = np.array([[1, 2], [1, 2], [0, 0], [np.nan, 1]], np.float32)
    make_pool(lake, "pool", list("abcd"), vectors, fragments=2, sha256=pa.array(["x", None, "x", None], pa.string()))
    by_file = ExactDedup().select(lake, "pool")
    assert found(by_file) == {"a": "a", "c": "a"}
    assert by_file.lineage()["counts"]["invalid"] == 2
    by_vector = ExactDedup(by="vec").select(lake, "pool")
    assert found(by_vector) == {"a": "a", "b": "a"}
    assert by_vector.lineage()["counts"]["invalid"] == 2


def test_vectors_are_compared_number_by_number(lake, make_pool) -> None:
    nearly = np.nextafter(np.float32(1), np.float32(2))
    vectors = np.array([[1, 0], [1, -0.0], [nearly, 0], [2, 0]], np.float32)
    make_pool(lake, "pool", list("abcd"), vectors)
    assert found(ExactDedup(by="vec").select(lake, "pool")) == {"a": "a", "b": "a", "c": "c", "d": "d"}


def test_one_value_everywhere(lake, make_pool) -> None:
    ids = [f"{i:02}" for i in range(30, 0, -1)]
    make_pool(lake, "pool", ids, np.ones((30, 2)), fragments=5, sha256=["same"] * 30)
    selection = ExactDedup().select(lake, "pool")
    assert selection.ids().to_pylist() == ["01"]
    assert set(found(selection).values()) == {"01"}


def test_columns_that_cannot_be_compared(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a"], np.ones((1, 2)), brightness=[0.5], word=["x"])
    with pytest.raises(UsageError, match="no column 'sha256'"):
        ExactDedup().select(lake, "pool")
    with pytest.raises(UsageError, match="'brightness' of table 'pool' is double; exact_dedup compares texts"):
        ExactDedup(by="brightness").select(lake, "pool")
    with pytest.raises(UsageError, match="column 'word' of table 'pool' is string; a column of numbers is needed"):
        ExactDedup(by="word", keep="word").select(lake, "pool")
    assert lake.names() == ["pool"]
