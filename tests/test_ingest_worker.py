"""One shard in one worker, without Ray: what each setting adds to the rows, and what is set aside."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import time

import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import vector_rows
from PIL import Image
from test_ingest import TINY, jpeg, write_shard

from datas3_ray import Lake, ingest_worker, retry
from datas3_ray.encoders import parse_encoder
from datas3_ray.errors import Datas3Error
from datas3_ray.ingest import ingest
from datas3_ray.ingest_output import Target
from datas3_ray.ingest_plan import parse_config
from datas3_ray.ingest_worker import ShardWorker
from datas3_ray.kernels.phash import hamming
from datas3_ray.lake.schemas import matrix
from datas3_ray.sources import Shard, parse_source
from datas3_ray.sources.watchdog import DecodePool


def worker(folder, values: dict, stores_bytes: bool = False) -> ShardWorker:
    config = parse_config({"encoders": TINY, **values})
    source = parse_source(config.source)
    encoders = {alias: parse_encoder(alias, spec) for alias, spec in (config.encoders or {}).items()}
    target = Target(str(folder / "pool.lance"), str(folder / "pool.quarantine.lance"), False, None)
    return ShardWorker(source, encoders, config, target, stores_bytes, threads=1)


def rows_of(folder, result: dict, name: str = "pool") -> pa.Table:
    """The rows of a result's fragments, committed for the purpose."""
    key = "fragments" if name == "pool" else "quarantine_fragments"
    fragments = [lance.FragmentMetadata.from_json(text) for text in result["entry"][key]]
    schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(result["schema"])))
    if name != "pool":
        from datas3_ray.lake.schemas import QUARANTINE as schema
    operation = lance.LanceOperation.Overwrite(schema, fragments)
    return lance.LanceDataset.commit(str(folder / f"{name}.lance"), operation).to_table()


def test_features_thumbnail_and_stored_bytes_come_with_the_pixels(tmp_path) -> None:
    image = jpeg(1, (400, 300))
    write_shard(tmp_path / "0.tar", [("a", image, {"caption": "x"}), ("b", jpeg(2), {})])
    values = {
        "source": {"webdataset": str(tmp_path / "0.tar")},
        "features": ["sha256", "phash", "brightness", "aspect"],
        "thumbnail": 64,
    }
    maker = worker(tmp_path, values, stores_bytes=True)
    rows = rows_of(tmp_path, maker.work(maker.source.shards()[0]))
    import hashlib

    assert rows["sha256"][0].as_py() == hashlib.sha256(image).hexdigest()
    assert rows["image"][0].as_py() == image
    assert rows["aspect"][0].as_py() == pytest.approx(400 / 300)
    small = Image.open(io.BytesIO(rows["thumbnail"][0].as_py()))
    assert (small.format, small.size) == ("JPEG", (64, 48))
    hashes = rows["phash"].to_numpy()
    assert hamming(hashes[:1], hashes[1:])[0] > 8, "two different pictures"


def test_an_image_that_hangs_is_set_aside_and_its_neighbours_stay(tmp_path, monkeypatch) -> None:
    write_shard(tmp_path / "0.tar", [(key, jpeg(number), {}) for number, key in enumerate("abc")])
    real = ingest_worker.decode_image

    def hanging(data, **options):
        if data == jpeg(1):
            time.sleep(3)
        return real(data, **options)

    monkeypatch.setattr(ingest_worker, "decode_image", hanging)
    maker = worker(tmp_path, {"source": {"webdataset": str(tmp_path / "0.tar")}, "decode_seconds": 0.5})
    result = maker.work(maker.source.shards()[0])
    assert (result["entry"]["rows"], result["entry"]["rejects"]) == (2, 1)
    assert result["reasons"] == {"decode_timeout": 1}
    reject = rows_of(tmp_path, result, "pool.quarantine").to_pylist()[0]
    assert (reject["key"], reject["error"]) == ("b", "not decoded within 0.5 s")


def test_a_shard_that_cannot_be_read_is_tried_again_and_left(tmp_path, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(ingest_worker.time, "sleep", pauses.append)
    write_shard(tmp_path / "0.tar", [("a", jpeg(0), {})])
    maker = worker(tmp_path, {"source": {"webdataset": str(tmp_path / "0.tar")}})
    result = maker.work(Shard(str(tmp_path / "gone.tar"), 1, "1", "gone"))
    assert "gone.tar" in result["unread"]
    assert result["entry"] is None
    assert len(pauses) >= ingest_worker.ATTEMPTS - 1


def test_of_a_compressed_shard_the_bytes_are_kept(tmp_path) -> None:
    write_shard(tmp_path / "0.tar", [("a", jpeg(0), {})])
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    source = {"webdataset": str(tmp_path / "1.tar.gz")}
    assert not parse_source(source).ranged
    maker = worker(tmp_path, {"source": source}, stores_bytes=True)
    rows = rows_of(tmp_path, maker.work(maker.source.shards()[0]))
    assert rows["image"].to_pylist() == [jpeg(0)]


def test_large_shards_are_written_in_pieces(tmp_path, monkeypatch) -> None:
    import datas3_ray.ingest_output as module

    monkeypatch.setattr(module, "FLUSH_ROWS", 3)
    samples = [(f"k{i}", jpeg(i) if i % 4 else b"<html>", {}) for i in range(16)]
    write_shard(tmp_path / "0.tar", samples)
    maker = worker(tmp_path, {"source": {"webdataset": str(tmp_path / "0.tar")}})
    result = maker.work(maker.source.shards()[0])
    assert (len(result["entry"]["fragments"]), len(result["entry"]["quarantine_fragments"])) == (4, 2)
    assert rows_of(tmp_path, result)["id"].to_pylist() == [f"{tmp_path.name}/0/k{i}" for i in range(16) if i % 4]
    assert rows_of(tmp_path, result, "pool.quarantine").num_rows == 4


class TestReadyVectors:
    """The source ``vectors``: whole tables pass through, rows that cannot be in the lake are set aside."""

    @pytest.fixture
    def result(self, tmp_path):
        import pyarrow.parquet as pq

        vectors = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        vectors[2, 1] = np.nan
        vectors[5, 0] = np.inf
        ids = ["a", "b", "c", None, "e", "f", "a", "h"]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4)
        rows = pa.table({"id": ids, "clip": column, "url": [f"http://x/{i}" for i in range(8)]})
        pq.write_table(rows, tmp_path / "0.parquet")
        source = {
            "vectors": str(tmp_path / "0.parquet"),
            "id": "id",
            "columns": {"url": "row.url"},
        }
        maker = worker(tmp_path, {"source": source, "encoders": None})
        return vectors, maker.work(maker.source.shards()[0])

    def test_sound_rows_are_kept_as_they_are(self, tmp_path, result) -> None:
        vectors, done = result
        rows = rows_of(tmp_path, done)
        assert [name.rpartition("/")[2] for name in rows["id"].to_pylist()] == ["a", "b", "e", "h"]
        assert np.array_equal(matrix(rows["clip"]), vectors[[0, 1, 4, 7]])
        assert rows["url"].to_pylist() == [f"http://x/{i}" for i in (0, 1, 4, 7)]
        assert rows["uri"].to_pylist() == [str(tmp_path / "0.parquet")] * 4

    def test_the_others_are_set_aside_with_their_place(self, tmp_path, result) -> None:
        _, done = result
        assert done["reasons"] == {"nan_vector": 2, "no_id": 1, "duplicate_id": 1}
        assert done["entry"]["samples"] == 8
        rejects = rows_of(tmp_path, done, "pool.quarantine").to_pylist()
        assert {(row["offset"], row["reason"]) for row in rejects} == {
            (2, "nan_vector"),
            (5, "nan_vector"),
            (3, "no_id"),
            (6, "duplicate_id"),
        }

    def test_json_can_hold_the_account(self, result) -> None:
        assert json.loads(json.dumps(result[1])) == result[1]


def test_rows_of_ready_vectors_are_told_by_their_own_numbers(tmp_path) -> None:
    import pyarrow.parquet as pq

    ids = ["a", None, "c", "a", None]
    values = pa.array([[1.0], [2.0], [3.0], [4.0], [5.0]], pa.list_(pa.float32(), 1))
    pq.write_table(pa.table({"id": ids, "v": values, "n": ["0", "x", "x", "0", "0"]}), tmp_path / "0.parquet")
    source = {"vectors": str(tmp_path / "0.parquet"), "columns": {"n": {"from": "row.n", "type": "int"}}}
    maker = worker(tmp_path, {"source": source, "encoders": None})
    done = maker.work(maker.source.shards()[0])
    rejects = {(row["offset"], row["reason"]) for row in rows_of(tmp_path, done, "pool.quarantine").to_pylist()}
    assert rejects == {(1, "bad_value"), (2, "bad_value"), (3, "duplicate_id"), (4, "no_id")}


def test_a_row_of_ready_vectors_without_one_is_set_aside(tmp_path) -> None:
    import pyarrow.parquet as pq

    lists = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": list("abc"), "clip": lists}), tmp_path / "0.parquet")
    maker = worker(tmp_path, {"source": {"vectors": str(tmp_path / "0.parquet")}, "encoders": None})
    done = maker.work(maker.source.shards()[0])
    assert rows_of(tmp_path, done)["id"].to_pylist() == ["a", "c"]
    (reject,) = rows_of(tmp_path, done, "pool.quarantine").to_pylist()
    assert (reject["key"], reject["offset"], reject["reason"]) == ("b", 1, "no_vector")


def test_more_decode_threads_change_nothing(tmp_path) -> None:
    """What a GPU's worker does: many threads decode ahead of one encoder."""
    samples = [(f"k{i:02}", jpeg(i) if i % 5 else b"<html>", {"caption": str(i)}) for i in range(30)]
    write_shard(tmp_path / "0.tar", samples)
    made = []
    for threads in (1, 4):
        maker = worker(tmp_path / str(threads), {"source": {"webdataset": str(tmp_path / "0.tar")}})
        maker.pool = DecodePool(threads, 30.0)
        result = maker.work(maker.source.shards()[0])
        rejects = rows_of(tmp_path / str(threads), result, "pool.quarantine")
        made.append((rows_of(tmp_path / str(threads), result), rejects))
    assert made[0][0].equals(made[1][0])
    assert made[0][1].equals(made[1][1])
    assert made[0][0].num_rows == 24


def test_an_encoder_that_gives_nan_costs_the_row_and_no_other(tmp_path, monkeypatch) -> None:
    write_shard(tmp_path / "0.tar", [(key, jpeg(number), {}) for number, key in enumerate("abc")])
    maker = worker(tmp_path, {"source": {"webdataset": str(tmp_path / "0.tar")}})
    encoder = maker.bank.encoders["tiny"]
    real = encoder.encode

    def encode(batch):
        vectors = real(batch).copy()
        vectors[1, 0] = np.nan
        return vectors

    monkeypatch.setattr(encoder, "encode", encode)
    result = maker.work(maker.source.shards()[0])
    assert (result["entry"]["rows"], result["reasons"]) == (2, {"nan_vector": 1})
    reject = rows_of(tmp_path, result, "pool.quarantine").to_pylist()[0]
    assert reject["error"] == "encoder 'tiny' gave a vector with NaN or infinite values"
    assert reject["offset"] > 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path, small_disk, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    lake = Lake(small_disk / "lake")
    lake.add("pool", vector_rows(["a"], np.ones((1, 8))))
    (small_disk / "filler").write_bytes(bytes(1_900_000))
    write_shard(tmp_path / "0.tar", [(f"k{i}", jpeg(i, (400, 300)), {}) for i in range(30)])
    maker = worker(small_disk / "lake", {"source": {"webdataset": str(tmp_path / "0.tar")}}, stores_bytes=True)
    with pytest.raises(
        Datas3Error,
        match="writing rows to .* failed after 6 attempts: .*o space.*; what was committed "
        "before stays; free some space and run the same command again",
    ):
        maker.work(maker.source.shards()[0])
    assert pauses == list(retry.DELAYS)
    assert lake.table("pool").count_rows() == 1


def test_a_read_only_lake_is_one_sentence(tmp_path, small_disk) -> None:
    write_shard(tmp_path / "0.tar", [("a", jpeg(0), {})])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    config = parse_config({"source": {"webdataset": str(tmp_path / "0.tar")}, "encoders": TINY})
    with pytest.raises(Datas3Error, match="ead-only") as caught:
        ingest(Lake(small_disk / "lake"), "pool", config, progress=False)
    assert "make it writable for this user, or name another lake" in str(caught.value)
