"""Ids of ready vectors are unique in a table, whichever shard they come with and however often it is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import datas3

from datas3_ray import exchange
from datas3_ray import ingest as room
from datas3_ray.ingest import ingest, parse_config, plan_ingest
from datas3_ray.ingest_ids import marked, repeated_rows
from datas3_ray.lake.ledger import quarantine_name


def write(path: Path, ids: list[str | None], value: float = 1.0) -> None:
    """A shard of vectors that all start with ``value``, so that it is seen whose row is there."""
    path.parent.mkdir(exist_ok=True)
    vectors = np.tile(np.array([value, 1.0], np.float32), (len(ids), 1))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 2)
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "clip": column}), path)


def run(lake, pattern, **more):
    return ingest(lake, "pool", config(pattern, **more), progress=False)


def config(pattern, **more):
    return parse_config({"source": {"vectors": str(pattern)}, "workers": 2, **more})


def there(lake) -> dict[str, tuple[str, float]]:
    rows = lake.table("pool").to_arrow(["id", "uri", "clip"]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows), "ids are unique"
    return {row["id"]: (Path(row["uri"]).name, row["clip"][0]) for row in rows}


def set_aside(lake) -> list[tuple[str, int, str, str]]:
    rows = lake.table(quarantine_name("pool")).to_arrow().to_pylist()
    return sorted((Path(row["uri"]).name, row["offset"], row["reason"], row["key"]) for row in rows)


def test_the_first_shard_keeps_an_id_and_the_others_rows_are_set_aside(lake, tmp_path) -> None:
    write(tmp_path / "a.parquet", ["x", "y", None, "y"], 1)
    write(tmp_path / "b.parquet", ["z", "x", "w", "x"], 2)
    write(tmp_path / "c.parquet", ["y", "w", "v"], 3)
    summary = run(lake, tmp_path / "*.parquet")
    assert there(lake) == {
        "x": ("a.parquet", 1),
        "y": ("a.parquet", 1),
        "z": ("b.parquet", 2),
        "w": ("b.parquet", 2),
        "v": ("c.parquet", 3),
    }
    assert summary.reasons == {"duplicate_id": 5, "no_id": 1}
    assert set_aside(lake) == [
        ("a.parquet", 2, "no_id", ""),
        ("a.parquet", 3, "duplicate_id", "y"),
        ("b.parquet", 1, "duplicate_id", "x"),
        ("b.parquet", 3, "duplicate_id", "x"),
        ("c.parquet", 0, "duplicate_id", "y"),
        ("c.parquet", 1, "duplicate_id", "w"),
    ]


def test_what_comes_later_does_not_take_what_is_there(lake, tmp_path) -> None:
    write(tmp_path / "b.parquet", ["x", "y"], 1)
    run(lake, tmp_path / "b.parquet")
    write(tmp_path / "a.parquet", ["y", "z"], 2)
    assert run(lake, tmp_path / "*.parquet").rows == 1
    assert there(lake) == {"x": ("b.parquet", 1), "y": ("b.parquet", 1), "z": ("a.parquet", 2)}


def test_shards_that_were_moved_are_not_in_the_table_twice(lake, tmp_path) -> None:
    write(tmp_path / "old" / "a.parquet", ["x", "y"])
    run(lake, tmp_path / "old" / "*.parquet")
    (tmp_path / "old").rename(tmp_path / "new")
    summary = run(lake, tmp_path / "new" / "*.parquet")
    assert (summary.rows, summary.reasons) == (0, {"duplicate_id": 2})
    assert set(there(lake)) == {"x", "y"}


def test_replaced_rows_leave_their_ids_to_the_new_ones(lake, tmp_path) -> None:
    write(tmp_path / "a.parquet", ["x", "y"], 1)
    write(tmp_path / "b.parquet", ["z"], 1)
    run(lake, tmp_path / "*.parquet")
    write(tmp_path / "a.parquet", ["y", "z", "new"], 2)
    summary = run(lake, tmp_path / "*.parquet", replace=True)
    assert (summary.rows, summary.replaced, summary.reasons) == (2, 1, {"duplicate_id": 1})
    assert there(lake) == {"y": ("a.parquet", 2), "new": ("a.parquet", 2), "z": ("b.parquet", 1)}


def test_an_interrupted_run_ends_as_a_whole_one(lake, tmp_path, monkeypatch) -> None:
    """A shard that was committed before one whose ids it may not have leaves them to that one."""
    write(tmp_path / "a.parquet", ["x", "y"], 1)
    write(tmp_path / "b.parquet", ["y", "z"], 2)
    whole = room._stream
    with monkeypatch.context() as patch:
        patch.setattr(room, "_stream", lambda *plan: (done for done in whole(*plan) if "b.parquet" in str(done)))
        assert run(lake, tmp_path / "*.parquet").shards == 1
    assert there(lake) == {"z": ("b.parquet", 2)}
    assert run(lake, tmp_path / "*.parquet").shards == 1
    assert there(lake) == {"x": ("a.parquet", 1), "y": ("a.parquet", 1), "z": ("b.parquet", 2)}


def test_marks_of_rows() -> None:
    assert marked(np.packbits([False, True]).tobytes(), np.array([0, 1, 9])).tolist() == [False, True, False]
    assert marked(b"", np.arange(2)).tolist() == [False, False]


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(lake, tmp_path) -> None:
    write(tmp_path / "a.parquet", ["x"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table")
    write(tmp_path / "c.parquet", ["x", "y"])
    summary = run(lake, tmp_path / "*.parquet")
    assert summary.reasons["duplicate_id"] == 1
    assert set(there(lake)) == {"x", "y"}


def test_ids_in_a_file_beside_arrays(lake, tmp_path) -> None:
    for name, ids in (("a", ["x", "y"]), ("b", ["y", "z"])):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3), np.float32))
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    source = {"vectors": str(tmp_path / "*.npy"), "column": "clip", "ids": str(tmp_path / "*.txt")}
    summary = ingest(lake, "pool", parse_config({"source": source}), progress=False)
    assert (summary.rows, summary.reasons) == (3, {"duplicate_id": 1})
    assert set_aside(lake) == [("b.npy", 0, "duplicate_id", "y")]


def test_ids_that_no_row_can_have_are_set_aside(lake, tmp_path) -> None:
    for name, ids in (("a", ["x", "y\0z"]), ("b", ["y", "x"])):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3), np.float32))
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    source = {"vectors": str(tmp_path / "*.npy"), "column": "clip", "ids": str(tmp_path / "*.txt")}
    summary = ingest(lake, "pool", parse_config({"source": source}), progress=False)
    assert (summary.rows, summary.reasons) == (2, {"no_id": 1, "duplicate_id": 1})


def test_rows_without_an_address_keep_their_ids_from_replaced_shards(lake, tmp_path) -> None:
    write(tmp_path / "a.parquet", ["x"], 1)
    run(lake, tmp_path / "a.parquet")
    table = lake.table("pool").to_arrow()
    nameless = {"id": ["mine"], "clip": table.column("clip").to_pylist()}
    lake.add(
        "pool",
        pa.table({name: nameless.get(name, pa.nulls(1, table.schema.field(name).type)) for name in table.schema.names}),
    )
    write(tmp_path / "a.parquet", ["mine", "x"], 2)
    assert run(lake, tmp_path / "a.parquet", replace=True).reasons == {"duplicate_id": 1}
    assert set(lake.table("pool").to_arrow(["id"])["id"].to_pylist()) == {"mine", "x"}


def test_no_ids_are_read_where_none_can_repeat(lake, tmp_path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3), np.float32))
    source = {"vectors": str(tmp_path / "*.npy"), "column": "clip"}
    plan = plan_ingest(lake, "pool", parse_config({"source": source}))
    assert [list(plan.source.read_ids(shard)) for shard in plan.todo] == [[], []]
    assert repeated_rows(lake, plan) == {}
    assert ingest(lake, "pool", parse_config({"source": source}), progress=False).rows == 4


def test_places_are_those_in_the_file_where_values_are_bad_too(lake, tmp_path) -> None:
    """A row with a bad value leaves its id to a later one of its shard, unless a shard before has it."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 2)
    for name, ids in (("0", ["a", "b", "b", "c"]), ("1", ["d", "c", "c", "e"])):
        numbers = ["1", "no number", "3", "4"]
        pq.write_table(pa.table({"id": ids, "clip": vectors, "n": numbers}), tmp_path / f"{name}.parquet")
    source = {"vectors": str(tmp_path / "*.parquet"), "columns": {"n": {"from": "row.n", "type": "int"}}}
    ingest(lake, "pool", parse_config({"source": source}), progress=False)
    assert set_aside(lake) == [
        ("0.parquet", 1, "bad_value", "b"),
        ("1.parquet", 1, "bad_value", "c"),
        ("1.parquet", 2, "duplicate_id", "c"),
    ]
    assert sorted(lake.table("pool").to_arrow(["id"])["id"].to_pylist()) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("bucket_rows", [7, 10_000])
def test_many_shards_against_a_dictionary(lake, tmp_path, monkeypatch, bucket_rows) -> None:
    monkeypatch.setattr(exchange, "BUCKET_ROWS", bucket_rows)
    draw = np.random.default_rng(0)
    taken: dict[str, str] = {}
    repeated: Counter[str] = Counter()
    for number in range(6):
        ids = [f"é{name}" for name in draw.integers(0, 80, 20)]
        write(tmp_path / f"{number}.parquet", ids)
        for name in ids:
            repeated[f"{number}.parquet"] += name in taken
            taken.setdefault(name, f"{number}.parquet")
        if number == 2:
            run(lake, tmp_path / "*.parquet")
    run(lake, tmp_path / "*.parquet")
    assert {name: shard for name, (shard, _) in there(lake).items()} == taken
    assert Counter(shard for shard, *_ in set_aside(lake)) == {k: n for k, n in repeated.items() if n}


def test_the_command_says_how_many_were_set_aside(tmp_path, capsys) -> None:
    write(tmp_path / "a.parquet", ["x", "y"])
    write(tmp_path / "b.parquet", ["y"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"lake: {tmp_path}/lake\nsteps: [{{name: pool, ingest: {{source: {{vectors: '{tmp_path}/*.parquet'}}}}}}]"
    )
    status, out, err = datas3("run", str(recipe), capsys=capsys)
    assert status == 0
    assert "2 rows and 1 rejects from 2 shards" in out + err
    assert "duplicate_id 1" in out + err
