"""Embed: another encoder's column, the same after any crash, and nothing else of the table changes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake
from datas3_ray.embed import EmbedConfig, EmbedSummary, embed, plan_embed
from datas3_ray.encoders import parse_encoder
from datas3_ray.errors import UsageError
from datas3_ray.lake.optimize import OptimizeConfig, optimize_table
from datas3_ray.lake.orphans import remove_orphans
from datas3_ray.lake.references import unfinished
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.storage import commit, dataset_uri, write_fragments
from datas3_ray.sources.decode import decode_image

TINY = {"timm": "test_resnet", "weights": "random", "image_size": 32, "precision": "float32", "batch_size": 8}
OTHER = {**TINY, "image_size": 64}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def rows(folder: Path, start: int, count: int) -> pa.Table:
    """Images packed into one file, their places, and a vector column that is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{start:05}.pack"
    images = [jpeg(start + number) for number in range(count)]
    path.write_bytes(b"".join(images))
    lengths = [len(image) for image in images]
    vectors = np.random.default_rng(start).normal(size=(count, 4)).astype(np.float32)
    return pa.table(
        {
            "id": [f"r{i:05}" for i in range(start, start + count)],
            "uri": [str(path)] * count,
            "offset": np.cumsum([0, *lengths[:-1]]),
            "length": pa.array(lengths, pa.int64()),
            "caption": [f"caption {i}" for i in range(start, start + count)],
            "vec": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4),
        }
    )


def direct(lake: Lake, spec: dict, name: str = "pool") -> np.ndarray:
    """Every row's vector from an encoder of this process."""
    encoder = parse_encoder("direct", spec).build()
    inputs = []
    for row in lake.table(name).to_arrow(["uri", "offset", "length"]).to_pylist():
        with open(row["uri"], "rb") as file:
            file.seek(row["offset"])
            inputs.append(encoder.prepare(decode_image(file.read(row["length"])).image))
    return encoder.encode(inputs)


def same(made: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for the last bit, which the number of the process's threads decides."""
    return made.shape == wanted.shape and np.allclose(made, wanted, rtol=0, atol=1e-6)


def go(lake: Lake, encoders: dict, **more) -> EmbedSummary:
    return embed(lake, "pool", EmbedConfig(encoders=encoders, workers=1, **more), progress=False)


@pytest.fixture
def pool(lake, tmp_path) -> Lake:
    for number in range(4):
        lake.add("pool", rows(tmp_path / "data", number * 10, 10))
    return lake


def untouched(lake: Lake) -> pa.Table:
    return lake.table("pool").to_arrow(["id", "uri", "offset", "length", "caption", "vec"])


def data_files(lake: Lake) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(lake.uri, "pool.lance", "data").iterdir()}


def test_the_column_is_what_the_encoder_gives_and_nothing_else_changes(pool) -> None:
    table = pool.table("pool")
    table.dataset.create_index("vec", "IVF_FLAT", metric="cosine", num_partitions=2)
    table.dataset.delete("id in ('r00003', 'r00025')")
    before, files = untouched(pool), data_files(pool)
    query = np.ones(4, np.float32)

    def search() -> list[dict]:
        opened = lancedb.connect(pool.uri).open_table("pool")
        return opened.search(query, vector_column_name="vec").limit(7).select(["id", "_distance"]).to_list()

    found = search()
    plan = plan_embed(pool, "pool", EmbedConfig(encoders={"dino": TINY}))
    assert plan.describe() == "new column dino: 4 of 4 fragments (38 rows in all)"
    version = pool.table("pool").version
    summary = go(pool, {"dino": TINY})
    assert (summary.vectors, summary.fragments, summary.nulls) == (38, 4, 0)
    assert pool.table("pool").version == version + 1, "one commit"
    made = pool.table("pool").to_arrow().column("dino")
    assert same(matrix(made), direct(pool, TINY))
    assert untouched(pool).equals(before)
    assert files.items() <= data_files(pool).items()
    assert search() == found
    assert {index.num_rows_indexed for index in pool.table("pool").dataset.describe_indices()} == {38}
    assert pool.table("pool").encoder("dino")["model"] == "test_resnet"
    row = pool.table("pool").to_arrow(filter="id = 'r00017'").to_pylist()[0]
    nearest = lancedb.connect(pool.uri).open_table("pool").search(row["dino"], vector_column_name="dino").limit(1)
    assert nearest.select(["id", "_distance"]).to_list()[0]["id"] == "r00017"
    assert unfinished(pool, "pool") is None
    version = pool.table("pool").version
    again = go(pool, {"dino": TINY})
    assert "up to date" in again.sentence()
    assert pool.table("pool").version == version


def test_rows_that_cannot_be_had_or_decoded_are_counted_and_tried_again_when_asked(lake, tmp_path) -> None:
    good = rows(tmp_path / "data", 0, 10)
    path = good.column("uri")[0].as_py()
    broken = {"uri": good.column("uri").to_pylist(), "length": good.column("length").to_pylist()}
    broken["uri"][2] = str(tmp_path / "gone.pack")
    broken["length"][5] = 100
    table = good.set_column(1, "uri", pa.array(broken["uri"])).set_column(3, "length", pa.array(broken["length"]))
    lake.add("pool", table)
    lake.add("pool", rows(tmp_path / "data", 10, 10))
    summary = go(lake, {"dino": TINY})
    assert (summary.vectors, summary.nulls) == (18, 2)
    assert summary.reasons == {"unreadable_file": 1, "truncated_image": 1}
    assert "2 rows without a vector (truncated_image 1, unreadable_file 1)" in summary.sentence()
    made = lake.table("pool").to_arrow(["id", "dino"])
    assert [row["id"] for row in made.to_pylist() if row["dino"] is None] == ["r00002", "r00005"]
    properties = lake.table("pool").dataset.get_transactions()[0].transaction_properties
    assert '"unreadable_file": 1' in properties["datas3:embed"]
    version = lake.table("pool").version
    assert go(lake, {"dino": TINY}).fragments == 0
    (tmp_path / "gone.pack").write_bytes(Path(path).read_bytes())
    assert go(lake, {"dino": TINY}).fragments == 0
    assert lake.table("pool").version == version
    before = matrix(made.column("dino"))
    again = go(lake, {"dino": TINY}, retry_failed=True)
    assert (again.fragments, again.vectors, again.reasons) == (1, 1, {"truncated_image": 1})
    after = matrix(lake.table("pool").to_arrow(["dino"]).column("dino"))
    mine = np.array([number != 2 for number in range(20)])
    assert np.array_equal(after[mine], before[mine], equal_nan=True)
    assert np.isfinite(after[2]).all()
    assert remove_orphans(lake, older_than=timedelta(0), dry_run=True) == []


def test_a_table_that_grew_is_filled_where_it_lacks_vectors(pool, tmp_path) -> None:
    go(pool, {"dino": TINY})
    pool.table("pool").dataset.create_index("dino", "IVF_SQ", metric="cosine", num_partitions=2)
    first = pool.table("pool").to_arrow()
    files = data_files(pool)
    uri, schema = dataset_uri(pool.uri, "pool"), pool.table("pool").schema
    more = rows(tmp_path / "data", 100, 15)
    more = more.cast(pa.schema([schema.field(name) for name in more.schema.names]))
    # As an ingest does it, which knows nothing of the column.
    commit(uri, write_fragments(more, uri, append=True), schema, mode="append")
    assert pool.table("pool").to_arrow(["dino"]).column("dino").null_count == 15
    pool.table("pool").dataset.delete("id = 'r00104'")
    plan = plan_embed(pool, "pool", EmbedConfig(encoders={"dino": TINY}))
    assert "dino: 1 of 5 fragments to look through for missing vectors" in plan.describe()
    summary = go(pool, {"dino": TINY})
    assert (summary.fragments, summary.vectors, summary.nulls) == (1, 14, 0)
    table = pool.table("pool")
    assert table.to_arrow().slice(0, 40).equals(first)
    assert same(matrix(table.to_arrow().column("dino")), direct(pool, TINY))
    assert files.items() <= data_files(pool).items()
    table.dataset.optimize.optimize_indices()
    row = table.to_arrow(filter="id = 'r00107'").to_pylist()[0]
    nearest = lancedb.connect(pool.uri).open_table("pool").search(row["dino"], vector_column_name="dino").limit(1)
    assert nearest.select(["id", "_distance"]).to_list()[0]["id"] == "r00107"


def test_fragments_that_are_partly_filled_after_a_compaction(pool, tmp_path) -> None:
    go(pool, {"dino": TINY})
    schema = pool.table("pool").schema
    more = rows(tmp_path / "data", 100, 15)
    pool.add("pool", more.append_column(schema.field("dino"), pa.nulls(15, schema.field("dino").type)))
    optimize_table(pool, "pool", OptimizeConfig(prune=False))
    pool.table("pool").dataset.delete("id in ('r00000', 'r00050', 'r00114')")
    first = pool.table("pool").to_arrow()
    summary = go(pool, {"dino": TINY})
    assert (summary.fragments, summary.vectors, summary.nulls) == (1, 14, 0)
    table = pool.table("pool")
    rest = [name for name in table.schema.names if name != "dino"]
    assert table.to_arrow(rest).equals(first.select(rest))
    assert same(matrix(table.to_arrow().column("dino")), direct(pool, TINY))
    assert go(pool, {"dino": TINY}).fragments == 0


def test_another_encoder_under_the_same_name_is_refused(pool) -> None:
    go(pool, {"dino": TINY})
    version = pool.table("pool").version
    with pytest.raises(UsageError, match="column 'dino' of table 'pool' was made by another encoder: its"):
        go(pool, {"dino": OTHER})
    with pytest.raises(UsageError, match="column 'vec' of table 'pool' was made by another encoder"):
        go(pool, {"vec": TINY})
    assert pool.table("pool").version == version
    assert go(pool, {"dino": TINY, "wide": OTHER}).vectors == 40


def test_a_table_that_changes_meanwhile(pool, tmp_path, monkeypatch) -> None:
    from datas3_ray import embed as module

    original = module.commit_columns
    times = []

    def commit_late(table, finished, *rest):
        if not times:
            pool.add("pool", rows(tmp_path / "data", 200, 10))
            pool.table("pool").dataset.delete("id = 'r00001'")
        times.append(len(finished))
        return original(table, finished, *rest)

    monkeypatch.setattr(module, "commit_columns", commit_late)
    summary = go(pool, {"dino": TINY})
    assert times == [4, 5]
    assert summary.fragments == 5
    assert pool.table("pool").count_rows() == 49
    assert same(matrix(pool.table("pool").to_arrow().column("dino")), direct(pool, TINY))


def test_mistakes(pool) -> None:
    for encoders, says in (
        ({}, "at least one encoder"),
        ({"caption2": {"timn": "x"}}, "unknown family"),
        ({"offset": TINY}, "already"),
    ):
        with pytest.raises(UsageError, match=says):
            go(pool, encoders)
    pool.add("bare", pool.table("pool").to_arrow(["id", "vec"]))
    with pytest.raises(UsageError, match="does not say where they are"):
        embed(pool, "bare", EmbedConfig(encoders={"dino": TINY}))
    assert "secret" not in repr(EmbedConfig(encoders={}, storage_options={"key": "secret"}))


KILLED = """
import sys
from datas3_ray import Lake
from datas3_ray.embed import EmbedConfig, embed
embed(Lake(sys.argv[1]), "pool", EmbedConfig(encoders={"dino": %r}, workers=1, record_seconds=0), progress=False)
"""


def test_a_killed_run_is_resumed_and_does_only_what_is_missing(lake, tmp_path) -> None:
    for number in range(40):
        lake.add("pool", rows(tmp_path / "data", number * 100, 30))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen([sys.executable, "-c", KILLED % TINY, lake.uri], env=environment)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if lake.exists("pool.embed") and lake.table("pool.embed").count_rows() >= 3:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = lake.table("pool.embed").count_rows()
    assert 3 <= done < 40
    assert "dino" not in lake.table("pool").schema.names
    assert "an embed of 'pool' was cut short" in str(unfinished(lake, "pool"))
    tidied = optimize_table(lake, "pool", OptimizeConfig(keep_days=0))
    assert (tidied.rewritten_rows, tidied.pruned) == (0, [])
    assert "left as they are: an embed of 'pool' was cut short" in tidied.sentence()
    kept = set(data_files(lake))
    remove_orphans(lake, older_than=timedelta(0))
    assert len(kept - set(data_files(lake))) <= 2
    summary = go(lake, {"dino": TINY})
    assert summary.reused == done
    assert summary.fragments == 40 - done
    assert same(matrix(lake.table("pool").to_arrow().column("dino")), direct(lake, TINY))
    assert lake.table("pool.embed").count_rows() == 0
