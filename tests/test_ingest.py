"""Ingest: every image once, every broken file accounted for, and the same table after any crash."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.ingest import IngestConfig, ingest
from datas3_ray.lake.ledger import Ledger, ShardEntry, ledger_name, quarantine_name
from datas3_ray.lake.schemas import matrix

TINY = {"tiny": {"timm": "test_resnet", "weights": "random", "image_size": 32, "precision": "float32"}}


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_shard(path: Path, samples: list[tuple[str, bytes, dict]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, image, info in samples:
            for name, data in ((f"{key}.jpg", image), (f"{key}.json", json.dumps(info).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def make_shards(folder: Path, shards: int = 4, rows: int = 12) -> str:
    for s in range(shards):
        samples = [
            (f"k{i:03}", jpeg(s * 1000 + i), {"label": "ab"[i % 2], "site": f"s{s}", "extra": i, "caption": f"c {i}"})
            for i in range(rows)
        ]
        write_shard(folder / f"{s:05}.tar", samples)
    return str(folder / "*.tar")


def config(pattern: str, **more) -> IngestConfig:
    source = {"webdataset": pattern, "columns": {"site": "json.site"}}
    return IngestConfig(source=source, encoders=TINY, **more)


def versions(lake: Lake) -> dict[str, int]:
    return {name: lake.table(name).version for name in lake.names()}


def content(lake: Lake, name: str = "pool") -> pa.Table:
    return lake.table(name).to_arrow().sort_by("id")


def test_rows_columns_and_vectors(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data" / "set")
    summary = ingest(lake, "pool", config(pattern), progress=False)
    assert (summary.rows, summary.rejects, summary.shards) == (48, 0, 4)
    pool = lake.table("pool")
    assert pool.schema.names == [
        "id",
        "uri",
        "offset",
        "length",
        "width",
        "height",
        "caption",
        "label",
        "site",
        "meta",
        "tiny",
    ]
    assert not pool.schema.field("id").nullable
    rows = content(lake)
    first = rows.to_pylist()[0]
    assert first["id"] == "set/00000/k000"
    assert (first["width"], first["height"], first["label"], first["site"]) == (40, 30, "a", "s0")
    assert json.loads(first["meta"]) == {"extra": 0}
    with open(first["uri"], "rb") as file:
        file.seek(first["offset"])
        assert file.read(first["length"]) == jpeg(0)
    assert rows.column("id").to_pylist() == sorted(set(rows.column("id").to_pylist()))
    vectors = matrix(rows.column("tiny"))
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) == 48
    encoder = pool.encoder("tiny")
    assert encoder["family"] == "timm"
    assert encoder["precision"] == "float32"
    assert len(encoder["weights_sha256"]) == 64


def test_plain_lancedb_finds_the_image_itself_first(lake, tmp_path) -> None:
    ingest(lake, "pool", config(make_shards(tmp_path / "data")), progress=False)
    row = content(lake).to_pylist()[17]
    found = lancedb.connect(lake.uri).open_table("pool").search(row["tiny"]).limit(5).to_list()
    assert found[0]["id"] == row["id"]
    assert found[0]["_distance"] == pytest.approx(0.0, abs=1e-5)


def test_a_second_run_changes_no_version_and_new_shards_are_the_only_ones_read(lake, tmp_path) -> None:
    folder = tmp_path / "data"
    pattern = make_shards(folder, shards=2)
    ingest(lake, "pool", config(pattern), progress=False)
    before = versions(lake)
    again = ingest(lake, "pool", config(pattern), progress=False)
    assert (again.rows, again.shards, again.skipped) == (0, 0, 2)
    assert versions(lake) == before
    write_shard(folder / "00009.tar", [("new", jpeg(77), {"label": "a", "site": "s9"})])
    third = ingest(lake, "pool", config(pattern), progress=False)
    assert (third.rows, third.shards, third.skipped) == (1, 1, 2)
    assert lake.table("pool").count_rows() == 25


def test_the_same_table_for_any_number_of_workers_and_commits(tmp_path, ray_session) -> None:
    pattern = make_shards(tmp_path / "data", shards=5)
    tables = []
    for number, more in enumerate(
        [{"workers": 1, "commit_shards": 1}, {"workers": 2}, {"workers": 2, "commit_shards": 2}]
    ):
        lake = Lake(tmp_path / f"lake{number}")
        ingest(lake, "pool", config(pattern, **more), progress=False)
        tables.append(content(lake))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_broken_files_go_to_quarantine_with_a_reason_and_their_neighbours_stay(lake, tmp_path) -> None:
    good = [(f"g{i}", jpeg(i), {"label": "a"}) for i in range(20)]
    bad = [
        ("html", b"<html>not found</html>", {}),
        ("cut", jpeg(1)[:200], {}),
        ("none", b"", {}),
    ]
    shard = tmp_path / "data" / "00000.tar"
    write_shard(shard, [*good[:10], *bad, *good[10:]])
    (tmp_path / "data" / "00001.tar").write_bytes(b"this is no tar" * 100)
    summary = ingest(lake, "pool", config(str(tmp_path / "data" / "*.tar")), progress=False)
    assert summary.rows == 20
    assert summary.reasons == {"not_an_image": 1, "truncated_image": 1, "empty_image": 1, "not_a_tar": 1}
    rejects = lake.table(quarantine_name("pool")).to_arrow().to_pylist()
    assert {(row["key"], row["reason"]) for row in rejects} >= {("html", "not_an_image"), ("cut", "truncated_image")}
    assert all(row["error"] and row["shard"] for row in rejects)
    ledger = lake.table(ledger_name("pool")).to_arrow()
    assert ledger.column("state").to_pylist() == ["done", "done"]
    assert sum(ledger.column("samples").to_pylist()) == summary.rows + summary.rejects


def test_on_error_fail_stops_with_a_sentence(lake, tmp_path) -> None:
    write_shard(tmp_path / "data" / "0.tar", [("ok", jpeg(0), {}), ("bad", b"<html>", {})])
    with pytest.raises(Datas3Error, match=r"key 'bad'.* was rejected as not_an_image.*on_error is 'fail'"):
        ingest(lake, "pool", config(str(tmp_path / "data" / "0.tar"), on_error="fail"), progress=False)
    assert lake.names() == ["pool.ledger"], "the ledger, without a shard"
    assert Ledger(lake, "pool").rows().num_rows == 0


def test_bytes_are_stored_when_asked(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=3)
    ingest(lake, "pool", config(pattern, store="bytes"), progress=False)
    assert content(lake).column("image").to_pylist() == [jpeg(i) for i in range(3)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": {"webdataset": "DIR/none-*.tar"}}, "none-"),
        ({"source": {"webdataset": "/no/such/folder/*.tar"}}, "/no/such/folder"),
        ({"source": {"webdatset": "x.tar"}}, "Did you mean 'webdataset'"),
        ({"encoders": {"tiny": {"timm": "resnet1888"}}}, "resnet1888"),
        ({"encoders": {"tiny": {"timm": "test_resnet", "weights": "/no/weights.pt"}}}, "/no/weights.pt"),
        ({"encoders": {"site": TINY["tiny"]}}, "names both an encoder and a column"),
        ({"encoders": None}, "needs encoders"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_lake(tmp_path, change, says) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=1)
    values = {"source": {"webdataset": pattern, "columns": {"site": "json.site"}}, "encoders": TINY, **change}
    lake = Lake(tmp_path / "lake")
    with pytest.raises(UsageError, match=says) as caught:
        ingest(lake, "pool", IngestConfig(**values), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "lake").exists()


def test_other_encoders_or_columns_need_another_table(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=2)
    ingest(lake, "pool", config(pattern), progress=False)
    before = versions(lake)
    other = config(pattern).model_copy(update={"encoders": {"tiny": {**TINY["tiny"], "image_size": 64}}})
    with pytest.raises(UsageError, match="was ingested with other encoders or columns"):
        ingest(lake, "pool", other, progress=False)
    assert versions(lake) == before


def test_a_changed_shard_is_reported_and_left(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=2, rows=2)
    ingest(lake, "pool", config(pattern), progress=False)
    write_shard(tmp_path / "data" / "00001.tar", [("other", jpeg(5), {}), ("more", jpeg(6), {}), ("x", jpeg(7), {})])
    summary = ingest(lake, "pool", config(pattern), progress=False)
    assert [Path(uri).name for uri in summary.changed] == ["00001.tar"]
    assert "1 changed since" in summary.sentence()
    assert lake.table("pool").count_rows() == 4


@pytest.mark.parametrize("crash_after", ["ledger", "quarantine", "data"])
def test_a_commit_that_a_crash_cut_short_is_finished_once(tmp_path, ray_session, monkeypatch, crash_after) -> None:
    """The driver dies between any two of the commits; the next run finishes them and adds nothing twice."""
    folder = tmp_path / "data"
    write_shard(folder / "0.tar", [("a", jpeg(0), {}), ("bad", b"<html>", {}), ("b", jpeg(1), {})])
    settings = config(str(folder / "0.tar"))
    clean = Lake(tmp_path / "clean")
    ingest(clean, "pool", settings, progress=False)

    lake = Lake(tmp_path / "lake")
    import datas3_ray.lake.ledger as module

    done = {"ledger": 0, "quarantine": 1, "data": 2}[crash_after]
    real, calls = module.commit, []

    def dying(*args, **kwargs):
        if len(calls) == done:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "commit", dying)
    if crash_after == "data":
        monkeypatch.setattr(Ledger, "_finish", _die_before_done(Ledger._finish))
    with pytest.raises(KeyboardInterrupt):
        ingest(lake, "pool", settings, progress=False)
    monkeypatch.undo()
    assert Ledger(lake, "pool").rows().column("state").to_pylist() == ["prepared"]
    summary = ingest(lake, "pool", settings, progress=False)
    assert (summary.recovered, summary.shards, summary.skipped) == (1, 0, 1)
    assert content(lake).equals(content(clean))
    assert lake.table(quarantine_name("pool")).count_rows() == 1
    assert Ledger(lake, "pool").rows().column("state").to_pylist() == ["done"]


def _die_before_done(finish):
    """``_finish`` with the process dying right before the ledger rows become done."""
    from lance import LanceDataset

    def dying(self, commit_id, *, retried):
        real = LanceDataset.update
        LanceDataset.update = lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt())
        try:
            finish(self, commit_id, retried=retried)
        finally:
            LanceDataset.update = real

    return dying


def test_a_shard_that_another_run_committed_meanwhile_is_not_added_again(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=2)
    ingest(lake, "pool", config(pattern), progress=False)
    ledger = Ledger(lake, "pool")
    row = ledger.rows().to_pylist()[0]
    twice = ShardEntry(row["shard"], row["fingerprint"], row["size"], 2, 2, 0, json.loads(row["fragments"]), [], 0.1)
    assert ledger.commit([twice], lake.table("pool").schema, row["config"]) == []
    assert lake.table("pool").count_rows() == 2


def test_rows_that_do_not_add_up_are_not_committed(lake, tmp_path) -> None:
    entry = ShardEntry("s", "f", 1, samples=3, rows=2, rejects=0, fragments=[], quarantine_fragments=[], seconds=0.1)
    with pytest.raises(Datas3Error, match="3 samples were read but 2 rows and 0 rejects"):
        Ledger(lake, "pool").commit([entry], pa.schema([]), "c")
    assert lake.names() == []


def test_the_lakes_own_short_cut(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=2)
    summary = lake.ingest("pool", source={"webdataset": pattern}, encoders=TINY, workers=1, progress=False)
    assert summary.rows == 2
    with pytest.raises(UsageError, match="ingest: unknown key 'worker'.*Did you mean 'workers'"):
        lake.ingest("pool", source={"webdataset": pattern}, encoders=TINY, worker=1)
