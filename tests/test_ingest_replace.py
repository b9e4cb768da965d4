"""Changed content in the place of what was ingested: all of it, and nothing of its neighbours'."""

from __future__ import annotations

import pytest
from test_ingest import jpeg, make_shards

from datas3_ray.errors import Datas3Error
from datas3_ray.ingest import ingest, parse_config
from datas3_ray.lake.ledger import Ledger, ShardEntry


def config(source: dict, **more):
    return parse_config({"source": source, "encoders": {}, "workers": 1, **more})


def test_content_that_returns_is_taken_again(lake, tmp_path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    table = tmp_path / "files.csv"
    for label in "abababa":
        table.write_text("path,label\n" + "".join(f"{number}.jpg,{label}\n" for number in range(3)))
        summary = ingest(lake, "pool", config({"manifest": str(table)}, replace=True), progress=False)
        assert (summary.rows, summary.shards) == (3, 1)
        assert lake.table("pool").to_arrow(["label"])["label"].to_pylist() == [label] * 3
    assert ingest(lake, "pool", config({"manifest": str(table)}, replace=True), progress=False).skipped == 3


def test_a_shard_that_nobody_entered_is_told(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=2)
    ingest(lake, "pool", config({"webdataset": pattern}), progress=False)
    ledger = Ledger(lake, "pool")
    row = ledger.rows().to_pylist()[0]
    schema = lake.table("pool").schema
    same = ShardEntry(row["shard"], row["fingerprint"], row["size"], 0, 0, 0, [], [], 0.1)
    assert ledger.commit([same], schema, row["config"]) == [], "another run was faster"
    with pytest.raises(Datas3Error, match=r"1 shards were read and could not be entered .*00000.tar"):
        ledger.commit([same], schema, row["config"], known={row["commit"]})
    other = ShardEntry(row["shard"], "other", row["size"], 0, 0, 0, [], [], 0.1)
    with pytest.raises(Datas3Error, match="could not be entered"):
        ledger.commit([other], schema, row["config"])
