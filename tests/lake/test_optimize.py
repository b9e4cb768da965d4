"""Compaction and pruning: fewer fragments, the same rows in the same order, and nothing gone that is referred to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake import optimize as module
from datas3_ray.lake.ledger import Ledger, ledger_name
from datas3_ray.lake.optimize import OptimizeConfig, compact_small, optimize_lake, optimize_table
from datas3_ray.lake.references import referenced_versions, unfinished
from datas3_ray.lake.row_columns import inputs_version, write_numbers
from datas3_ray.lake.schemas import LEDGER
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import DensityPruning, Random

NOW = OptimizeConfig(keep_days=0)


@pytest.fixture
def pool(lake, make_pool):
    rng = np.random.default_rng(0)
    ids = [f"r{i:04}" for i in range(240)]
    return make_pool(lake, "pool", ids, rng.normal(size=(240, 8)), fragments=12, site=[f"s{i % 7}" for i in range(240)])


def read_all(lake) -> dict[tuple[str, int], int]:
    """Every version that is referred to, opened and read in full."""
    return {
        (name, version): lake.table(name, version).to_arrow().num_rows
        for name, versions in referenced_versions(lake).items()
        for version in versions
    }


def test_small_fragments_become_one_in_order_and_again_does_nothing(lake, pool) -> None:
    before = pool.to_arrow()
    report = optimize_table(lake, "pool", OptimizeConfig(prune=False))
    assert (report.fragments_before, report.fragments_after, report.rewritten_rows) == (12, 1, 240)
    assert lake.table("pool").to_arrow().equals(before)
    version = lake.table("pool").version
    again = optimize_table(lake, "pool", OptimizeConfig(prune=False))
    assert (again.fragments_after, again.rewritten_rows) == (1, 0)
    assert "none too small" in again.sentence()
    assert lake.table("pool").version == version


@pytest.mark.parametrize("target", [{"target_rows": 70}, {"target_bytes": 4 * 1500}])
def test_targets_bound_the_fragments_and_larger_ones_keep_their_place(lake, make_pool, target) -> None:
    rng = np.random.default_rng(1)
    sizes = [20, 30, 10, 200, 20, 25, 30, 10, 40, 5]
    ids = [f"r{i:04}" for i in range(sum(sizes))]
    at = 0
    for size in sizes:
        make_pool(lake, "pool", ids[at : at + size], rng.normal(size=(size, 8)))
        at += size
    config = OptimizeConfig(prune=False, small_rows=100, **target)
    report = optimize_table(lake, "pool", config)
    assert report.fragments_after < len(sizes)
    table = lake.table("pool")
    assert table.to_arrow(["id"]).column("id").to_pylist() == ids
    if "target_rows" in target:
        assert [f.count_rows() for f in table.dataset.get_fragments()] == [60, 200, 45, 40, 45]
    version = table.version
    assert optimize_table(lake, "pool", config).rewritten_rows == 0
    assert lake.table("pool").version == version


def test_deleted_rows_stay_deleted_and_their_room_is_given_back(lake, pool) -> None:
    pool.dataset.delete("id < 'r0030'")
    left = lake.table("pool").to_arrow()
    optimize_table(lake, "pool", OptimizeConfig(prune=False))
    table = lake.table("pool")
    assert table.to_arrow().equals(left)
    table.dataset.delete("id < 'r0090'")
    assert optimize_table(lake, "pool", OptimizeConfig(prune=False)).rewritten_rows == 150
    assert [f.physical_rows for f in lake.table("pool").dataset.get_fragments()] == [150]


def test_an_index_answers_the_same_after_compaction(lake, pool) -> None:
    dataset = pool.dataset
    dataset.create_index("vec", "IVF_FLAT", metric="cosine", num_partitions=2)
    dataset.create_scalar_index("id", "BTREE")
    query = {"column": "vec", "q": np.ones(8, np.float32), "k": 9, "nprobes": 2, "metric": "cosine"}
    columns = ["id", "_distance"]
    before = lake.table("pool").dataset.to_table(columns=columns, nearest=query)
    optimize_table(lake, "pool", OptimizeConfig(prune=False))
    dataset = lake.table("pool").dataset
    assert dataset.to_table(columns=columns, nearest=query).equals(before)
    assert {index.num_rows_indexed for index in dataset.describe_indices()} == {240}
    assert dataset.to_table(columns=["id"], filter="id = 'r0077'").num_rows == 1


def test_selections_are_valid_after_compaction_and_what_they_read_survives_the_prune(lake, pool) -> None:
    split_table(lake, "pool", "query", Split(hash="site", share=(0.0, 0.4)))
    first = Random(size=60, seed=1).select(lake, "pool", name="first")
    DensityPruning(column="vec", clusters=3, size=0.5).select(lake, "pool", name="dense")
    kept = first.ids()
    child_before = Random(size=20, seed=2).select(lake, "pool", within="first", name="before")
    pinned = lake.selection("first").lineage()["inputs"]["pool"]
    rows_then = lake.table("pool", pinned).to_arrow()
    optimize_table(lake, "pool", NOW)
    assert lake.selection("first").ids().equals(kept)
    assert lake.selection("first").resize(30).ids().to_pylist()
    child = Random(size=20, seed=2).select(lake, "pool", within="first", name="after")
    assert sorted(child.ids().to_pylist()) == sorted(child_before.ids().to_pylist())
    assert lake.table("pool", pinned).to_arrow().equals(rows_then)
    reports = optimize_lake(lake, config=NOW)
    assert {report.table for report in reports} == set(lake.names())
    assert read_all(lake)["pool", pinned] == 240
    assert pinned in next(report for report in reports if report.table == "pool").referenced


def test_only_unreferenced_old_versions_go(lake, pool) -> None:
    Random(size=5, seed=0).select(lake, "pool", name="some")
    pool.dataset.tags.create("paper", 3)
    dry = optimize_table(lake, "pool", NOW, dry_run=True)
    assert (dry.fragments_after, lake.table("pool").version) == (1, pool.version)
    assert len(dry.pruned) == 10
    assert len(optimize_table(lake, "pool").pruned) == 0, "a week has not passed"
    report = optimize_table(lake, "pool", NOW)
    there = [entry["version"] for entry in lake.table("pool").dataset.versions()]
    assert there == [3, pool.version, lake.table("pool").version]
    assert report.referenced == [3, pool.version]
    assert read_all(lake)["pool", 3] == 60


def test_a_replaced_parent_selection_keeps_what_it_was_made_from(lake, pool) -> None:
    Random(size=60, seed=1).select(lake, "pool", name="parent")
    Random(size=20, seed=2).select(lake, "pool", within="parent", name="child")
    Random(size=50, seed=3).select(lake, "pool", name="parent", replace=True)
    old = lake.selection("child").lineage()["inputs"]["parent"]
    assert old != lake.table("parent").version
    optimize_lake(lake, config=NOW)
    assert lake.table("parent", old).count_rows("keep") == 60
    assert len(lake.selection("parent")) == 50


def test_compact_small_waits_until_it_pays(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    ids = [f"r{i:04}" for i in range(90)]
    make_pool(lake, "pool", ids[:70], rng.normal(size=(70, 4)), fragments=7)
    assert compact_small(lake, "pool") is None
    make_pool(lake, "pool", ids[70:], rng.normal(size=(20, 4)), fragments=2)
    report = compact_small(lake, "pool")
    assert report is not None
    assert (report.fragments_before, report.fragments_after, report.pruned) == (9, 1, [])
    assert lake.table("pool").to_arrow(["id"]).column("id").to_pylist() == ids


def test_compact_small_moves_no_larger_fragment(lake, make_pool) -> None:
    rng = np.random.default_rng(1)
    ids = [f"r{i:04}" for i in range(500)]
    config = OptimizeConfig(small_rows=100)
    make_pool(lake, "pool", ids[:100], rng.normal(size=(100, 4)), fragments=10)
    make_pool(lake, "pool", ids[100:300], rng.normal(size=(200, 4)))
    assert compact_small(lake, "pool", config) is None
    make_pool(lake, "pool", ids[300:], rng.normal(size=(200, 4)), fragments=10)
    report = compact_small(lake, "pool", config)
    assert report is not None
    assert (report.rewritten_rows, report.fragments_after) == (200, 12)
    assert lake.table("pool").to_arrow(["id"]).column("id").to_pylist() == ids


def test_an_unfinished_ingest_keeps_its_history(lake, pool) -> None:
    row = {field.name: None for field in LEDGER} | {
        "shard": "a",
        "config": "c",
        "fragments": "[]",
        "quarantine_fragments": "[]",
        "commit": "x",
        "state": "prepared",
    }
    import pyarrow as pa

    lake.write(ledger_name("pool"), pa.Table.from_pylist([row], LEDGER), kind="ledger")
    report = optimize_table(lake, "pool", NOW)
    assert report.fragments_after == 1
    assert report.pruned == []
    assert "cut short" in report.sentence()
    Ledger(lake, "pool").recover()
    assert unfinished(lake, "pool") is None
    assert optimize_table(lake, "pool", NOW).pruned


def test_ledgers_are_compacted_and_unknown_tables_named(lake) -> None:
    import pyarrow as pa

    for number in range(9):
        rows = pa.table({"shard": [f"s{number}"], "state": ["done"]})
        lake.write("pool.ledger", rows, kind="ledger", mode="append")
    assert optimize_table(lake, "pool.ledger", NOW).fragments_after == 1
    assert lake.table("pool.ledger").to_arrow().column("shard").to_pylist() == [f"s{n}" for n in range(9)]
    with pytest.raises(UsageError, match="no table 'poool'"):
        optimize_table(lake, "poool")


def test_on_an_object_store(s3, ray_session, make_pool) -> None:
    from datas3_ray import Lake

    lake = Lake("s3://bucket/optimized", s3.lake_options)
    ids = [f"r{i:04}" for i in range(40)]
    pool = make_pool(lake, "pool", ids, np.random.default_rng(0).normal(size=(40, 4)), fragments=4)
    Random(size=5, seed=0).select(lake, "pool", name="some")
    report = optimize_table(lake, "pool", NOW)
    assert (report.fragments_after, len(report.pruned), report.referenced) == (1, 5, [pool.version])
    assert lake.table("pool").to_arrow(["id"]).column("id").to_pylist() == ids
    assert lake.table("pool", pool.version).to_arrow().num_rows == 40


def test_pruning_makes_nothing_stale(lake, make_pool) -> None:
    """What tells the last change of a table goes with its version, and is remembered."""
    make_pool(lake, "pool", [f"r{i}" for i in range(20)], np.eye(20), fragments=5)
    selector = Random(size=5)
    selector.select(lake, "pool", name="some")
    mark = lake.table("pool").content_mark
    for _ in range(3):
        optimize_lake(lake, config=NOW)
        assert lake.table("pool").content_mark == mark
        assert selector.is_current(lake, "pool", "some")
    version = lake.table("pool").version
    numbers = pa.table({"id": [f"r{i}" for i in range(20)], "n": np.arange(20.0)})
    for turn in range(3):  # new numbers in place, which change the table and not what they are made from
        inputs = inputs_version(lake.table("pool"))
        write_numbers(lake, "pool", inputs, numbers, {"n": {"turn": turn}})
        before = lake.table("pool").content_mark
        optimize_lake(lake, config=NOW)
        assert lake.table("pool").content_mark == before
        assert inputs_version(lake.table("pool")) == inputs
    assert lake.table("pool").version > version
    assert not selector.is_current(lake, "pool", "some")
    make_pool(lake, "pool", ["new"], np.ones((1, 20)), n=[1.0])
    assert inputs_version(lake.table("pool")) > inputs


def test_a_compaction_that_cannot_be_written_is_a_sentence_and_no_change(lake, pool, monkeypatch) -> None:
    def full(*args, **more):
        raise OSError("LanceError(IO): No space left on device (os error 28), writer/structural.rs:254:9")

    monkeypatch.setattr(module, "_rewrite", full)
    says = r"^compacting table 'pool' failed: No space left on device .*the table is as it was; free some space"
    with pytest.raises(Datas3Error, match=says):
        optimize_table(lake, "pool", NOW)
    assert lake.table("pool").version == pool.version
