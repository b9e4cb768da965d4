"""Garbage: what nothing refers to goes, and nothing else does."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.lake.ledger import Ledger, ShardEntry, ledger_name, quarantine_name
from datas3_ray.lake.orphans import _fsspec_options, lake_filesystem, parse_age, remove_orphans
from datas3_ray.lake.schemas import LEDGER, QUARANTINE, with_kind
from datas3_ray.lake.storage import dataset_uri, write_fragments

NOW = timedelta(0)


def rows(start: int, count: int) -> pa.Table:
    vectors = np.random.default_rng(start).normal(size=(count, 4)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4)
    return pa.table({"id": [f"r{i:03}" for i in range(start, start + count)], "vec": column})


def files(lake: Lake, name: str) -> set[str]:
    folder = f"{lake.uri}/{name}.lance"
    return {os.path.relpath(os.path.join(at, file), folder) for at, _, names in os.walk(folder) for file in names}


def leave(lake: Lake, name: str, start: int = 900) -> list[str]:
    """Fragments that a killed worker wrote; returns their metadata."""
    schema = lake.table(name).schema
    return write_fragments(rows(start, 5).cast(schema), dataset_uri(lake.uri, name), append=True)


@pytest.fixture
def pool(tmp_path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", rows(0, 20))
    lake.add("pool", rows(20, 20))
    lake.table("pool").dataset.delete("id in ('r001', 'r025')")
    lake.table("pool").dataset.create_scalar_index("id", "BTREE")
    return lake


def every_version(lake: Lake, name: str) -> list[int]:
    versions = [entry["version"] for entry in lake.table(name).dataset.versions()]
    return [lake.table(name, version).to_arrow().num_rows for version in versions]


def test_only_what_no_version_refers_to_goes(pool) -> None:
    before, counts = files(pool, "pool"), every_version(pool, "pool")
    leave(pool, "pool")
    (left,) = files(pool, "pool") - before
    (dry,) = remove_orphans(pool, older_than=NOW, dry_run=True)
    assert [orphan.path for orphan in dry.orphans] == [left]
    assert "would be removed" in dry.sentence()
    assert left in files(pool, "pool")
    (report,) = remove_orphans(pool, older_than=NOW)
    assert (report.table, len(report.orphans), report.bytes > 0) == ("pool", 1, True)
    assert files(pool, "pool") == before
    assert every_version(pool, "pool") == counts
    assert remove_orphans(pool, older_than=NOW) == []


def test_young_files_stay(pool) -> None:
    leave(pool, "pool")
    assert remove_orphans(pool) == []
    (path,) = [orphan.path for orphan in remove_orphans(pool, older_than=NOW, dry_run=True)[0].orphans]
    two_days_ago = time.time() - 2 * 86400
    os.utime(f"{pool.uri}/pool.lance/{path}", (two_days_ago, two_days_ago))
    assert len(remove_orphans(pool)[0].orphans) == 1


def test_old_transactions_of_failed_commits_go_and_manifests_never(pool) -> None:
    folder = f"{pool.uri}/pool.lance"
    for path in ("_transactions/1-dead.txn", "_indices/dead/index.idx", "_versions/dead.manifest", "data/dead.lance"):
        os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        with open(f"{folder}/{path}", "wb") as file:
            file.write(b"x")
    (report,) = remove_orphans(pool, ["pool"], older_than=NOW)
    gone = [orphan.path for orphan in report.orphans]
    assert gone == ["_indices/dead/index.idx", "_transactions/1-dead.txn", "data/dead.lance"]
    assert "_versions/dead.manifest" in files(pool, "pool")


def test_what_a_killed_ingest_had_prepared_is_kept_and_can_be_finished(pool) -> None:
    prepared = leave(pool, "pool", 500)
    quarantined = pa.table({"uri": ["a"], "reason": ["no_image"]})
    full = pa.Table.from_pylist(quarantined.to_pylist(), with_kind(QUARANTINE, "quarantine"))
    rejects = write_fragments(full, dataset_uri(pool.uri, quarantine_name("pool")), append=False)
    pool.write(quarantine_name("pool"), QUARANTINE.empty_table(), kind="quarantine")
    entry = ShardEntry("s", "f", 1, 6, 5, 1, prepared, rejects, 0.1)
    values = {
        "shard": entry.shard,
        "config": "c",
        "fragments": json.dumps(prepared),
        "quarantine_fragments": json.dumps(rejects),
        "commit": "abc",
        "state": "prepared",
    }
    row = {field.name: None for field in LEDGER} | values
    pool.write(ledger_name("pool"), pa.Table.from_pylist([row], LEDGER), kind="ledger")
    leave(pool, "pool", 700)
    (report,) = remove_orphans(pool, older_than=NOW)
    assert len(report.orphans) == 1
    assert Ledger(pool, "pool").recover() == 1
    assert pool.table("pool").to_arrow().num_rows == 43
    assert pool.table(quarantine_name("pool")).count_rows() == 1
    assert remove_orphans(pool, older_than=NOW) == []


def test_a_folder_that_never_was_a_table_goes_whole(pool) -> None:
    write_fragments(rows(0, 5), dataset_uri(pool.uri, "begun"), append=False)
    assert pool.names() == ["pool"]
    assert remove_orphans(pool) == [], "it may be under way"
    (report,) = remove_orphans(pool, ["begun"], older_than=NOW)
    assert (report.committed, len(report.orphans)) == (False, 1)
    assert "never committed" in report.sentence()
    assert not os.path.exists(f"{pool.uri}/begun.lance")


def test_mistakes(pool) -> None:
    with pytest.raises(UsageError, match="no table 'pol'"):
        remove_orphans(pool, ["pol"])
    for text in ("x", "-1d", "5", "1y"):
        with pytest.raises(UsageError, match="an age is written like"):
            parse_age(text)
    assert parse_age("0") == NOW
    assert parse_age("1.5h") == timedelta(minutes=90)


def test_storage_options_are_translated() -> None:
    options = {"AWS_ACCESS_KEY_ID": "k", "aws_secret_access_key": "s", "region": "r", "endpoint": "http://e"}
    assert _fsspec_options("s3", options) == {
        "key": "k",
        "secret": "s",
        "endpoint_url": "http://e",
        "client_kwargs": {"region_name": "r"},
    }
    assert _fsspec_options("s3", {"allow_http": "true", "timeout": "5s"}) == {"use_ssl": False}
    assert _fsspec_options("az", {"account_name": "n"}) == {"account_name": "n"}
    filesystem, path = lake_filesystem("/tmp/x/")
    assert (filesystem.protocol[0], path) == ("file", "/tmp/x")


def test_on_an_object_store(s3) -> None:
    lake = Lake("s3://bucket/orphans", s3.lake_options)
    lake.add("pool", rows(0, 20))
    write_fragments(rows(50, 5), dataset_uri(lake.uri, "pool"), append=True, options=lake.options)
    write_fragments(rows(50, 5), dataset_uri(lake.uri, "begun"), append=False, options=lake.options)
    reports = remove_orphans(lake, older_than=NOW)
    assert [(report.table, len(report.orphans)) for report in reports] == [("begun", 1), ("pool", 1)]
    assert lake.table("pool").to_arrow().num_rows == 20
    assert remove_orphans(lake, older_than=NOW) == []
