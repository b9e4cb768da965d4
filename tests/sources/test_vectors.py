"""Ready vectors: what is read of .npy, .npz and Parquet, ids and metadata beside them, and headers that lie."""

from __future__ import annotations

import io
import pickle
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, parse_source, vectors

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = -np.arange(8, dtype=np.float64).reshape(4, 2)


def read(spec: dict[str, Any]) -> tuple[pa.Table | None, list[Reject]]:
    source: Any = parse_source(spec)
    shards = source.shards()
    source.vector_fields()
    source = pickle.loads(pickle.dumps(source))
    tables, rejects = [], []
    for shard in shards:
        for part in source.read_rows(shard):
            (rejects if isinstance(part, Reject) else tables).append(part)
    return (pa.concat_tables(tables) if tables else None), rejects


def good(spec: dict[str, Any]) -> pa.Table:
    table, rejects = read(spec)
    assert rejects == []
    assert table is not None
    return table


def matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    return np.concatenate([chunk.flatten().to_numpy().reshape(-1, column.type.list_size) for chunk in column.chunks])


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_float(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "part-0.npy", np.asarray(A, dtype=dtype, order=order))
    table = good({"vectors": str(tmp_path / "*.npy"), "column": "clip"})
    assert table.column_names == ["id", "offset", "caption", "label", "meta", "clip"]
    assert table.schema.field("clip").type == pa.list_(pa.float32(), 3)
    assert table["id"].to_pylist() == [f"part-0/{row:09d}" for row in range(4)]
    assert (matrix(table, "clip") == A).all()


def test_npz_names_mapping_and_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=A, b=B, one=np.zeros(4), whole=np.zeros((4, 2), int), key=np.array(list("pqrs")))
    table = good({"vectors": str(tmp_path / "x.npz"), "id": "key", "id_prefix": "web"})
    assert table.column_names[-2:] == ["a", "b"]
    assert table["id"].to_pylist() == ["web/p", "web/q", "web/r", "web/s"]
    assert (matrix(table, "b") == B).all()
    table = good({"vectors": str(tmp_path / "x.npz"), "embeddings": {"clip": "b"}})
    assert table.column_names == ["id", "offset", "caption", "label", "meta", "clip"]
    assert table["id"].to_pylist()[3] == "x/000000003"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_remote_and_deflated_are_streamed(tmp_path: Path, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BATCH_ROWS", 3)
    save(tmp_path / "x.npz", a=A, b=B.astype(np.float16))
    memory = fsspec.filesystem("memory")
    memory.pipe("/vectors-test/x.npz", (tmp_path / "x.npz").read_bytes())
    for uri in (str(tmp_path / "x.npz"), "memory://vectors-test/x.npz"):
        table = good({"vectors": uri})
        assert [len(chunk) for chunk in table["a"].chunks] == [3, 1]
        assert (matrix(table, "a") == A).all()
        assert (matrix(table, "b") == B).all()
        assert table["id"].to_pylist()[3] == "x/000000003"


def test_remote_npy_and_fortran_order() -> None:
    memory = fsspec.filesystem("memory")
    for name, array in (("c", A), ("f", np.asfortranarray(A))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        memory.pipe(f"/vectors-test/{name}.npy", buffer.getvalue())
    assert (matrix(good({"vectors": "memory://vectors-test/c.npy", "column": "v"}), "v") == A).all()
    _, (reject,) = read({"vectors": "memory://vectors-test/f.npy", "column": "v"})
    assert reject.reason == "not_a_table"
    assert "np.ascontiguousarray" in reject.error


def test_ids_from_files(tmp_path: Path) -> None:
    for name in ("0", "1"):
        np.save(tmp_path / f"{name}.npy", A)
        (tmp_path / f"{name}.txt").write_text("a\nb\r\n\nd" if name == "0" else "e\nf\ng\nh\n")
    np.save(tmp_path / "ids-0.npy", np.array(["é", "b", "c", "d"]))
    np.save(tmp_path / "ids-1.npy", np.array([b"x", b"y", b"z", "é".encode()]))
    np.save(tmp_path / "whole.npy", np.arange(4, dtype=">i8"))
    spec = {"vectors": str(tmp_path / "[01].npy"), "column": "v"}
    text = good({**spec, "ids": str(tmp_path / "*.txt")})
    assert text["id"].to_pylist() == ["a", "b", None, "d", "e", "f", "g", "h"]
    arrays = good({**spec, "ids": str(tmp_path / "ids-*.npy")})
    assert arrays["id"].to_pylist() == ["é", "b", "c", "d", "x", "y", "z", "é"]
    one = good({**spec, "vectors": str(tmp_path / "0.npy"), "ids": str(tmp_path / "whole.npy")})
    assert one["id"].to_pylist() == ["0", "1", "2", "3"]
    with pytest.raises(UsageError, match="1 files of ids and 2 of vectors"):
        parse_source({**spec, "ids": str(tmp_path / "0.txt")}).shards()
    (tmp_path / "1.txt").write_text("e\nf\n")
    _, (reject,) = read({**spec, "ids": str(tmp_path / "*.txt")})
    assert (reject.reason, reject.key) == ("not_a_table", "")
    assert "has 4 vectors" in reject.error


def datacomp(folder: Path, rows: int = 4) -> dict[str, Any]:
    table = {
        "uid": [f"{row:032x}" for row in range(rows)],
        "url": [f"http://x/{row}" for row in range(rows)],
        "text": ["a", None, "c", "d"][:rows],
        "original_width": pa.array([640, 1, 2, None][:rows], pa.int32()),
        "clip_b32_similarity_score": pa.array([0.25, float("nan"), 0.5, 1][:rows], pa.float32()),
        "face_bboxes": pa.array([[[0.1, 0.2]]] * rows),
        "when": pa.array([datetime(2020, 1, 2)] * rows, pa.timestamp("ns")),
        "inner": pa.array([{"a": {"b": 5}}] * rows),
        "note": ["7", "8", "x", ""][:rows],
    }
    pq.write_table(pa.table(table), folder / "0a1b.parquet")
    np.savez(folder / "0a1b.npz", b32_img=A.astype(np.float16), l14_img=B.astype(np.float16), dedup=np.zeros(4))
    return {"vectors": str(folder / "*"), "metadata": "parquet", "embeddings": {"clip": "l14_img", "clip_b": "b32_img"}}


def test_datacomp_pairs(tmp_path: Path) -> None:
    columns = {
        "caption": "json.text",
        "original_w": {"from": "json.original_width", "type": "int"},
        "score": {"from": "json.clip_b32_similarity_score", "type": "float"},
        "taken": {"from": "json.when", "type": "timestamp"},
        "deep": {"from": "json.inner.a.b", "type": "int"},
        "uid2": "key",
        "part": "shard",
    }
    table = good({**datacomp(tmp_path), "columns": columns})
    assert table["id"].to_pylist() == [f"{row:032x}" for row in range(4)]
    assert (matrix(table, "clip") == B).all() and (matrix(table, "clip_b") == A).all()
    assert table["caption"].to_pylist() == ["a", None, "c", "d"]
    assert table["original_w"].to_pylist() == [640, 1, 2, None]
    assert table["score"].to_pylist() == [0.25, None, 0.5, 1.0]
    assert table["taken"].to_pylist() == [datetime(2020, 1, 2, tzinfo=timezone.utc)] * 4
    assert table["deep"].to_pylist() == [5] * 4
    assert table["uid2"].to_pylist() == table["id"].to_pylist()
    assert table["part"].to_pylist() == ["0a1b"] * 4
    assert table["meta"].null_count == 4


def test_meta_only_when_asked(tmp_path: Path) -> None:
    table = good({**datacomp(tmp_path), "meta": True, "columns": {"caption": "json.text"}})
    assert table["caption"].to_pylist() == ["a", None, "c", "d"]
    assert table["meta"][0].as_py() == (
        '{"clip_b32_similarity_score":0.25,"face_bboxes":[[0.1,0.2]],"inner":{"a":{"b":5}},"note":"7",'
        '"original_width":640,"uid":"00000000000000000000000000000000","url":"http://x/0","when":"2020-01-02T00:00:00"}'
    )


def test_dropped_columns(tmp_path: Path) -> None:
    columns = {"url": None, "note": None, "caption": None, "face_bboxes": None, "inner": None, "when": None}
    table = good({**datacomp(tmp_path), "meta": True, "columns": {**columns, "text": None}})
    assert table["caption"].null_count == 4
    assert (
        table["meta"][3].as_py()
        == '{"clip_b32_similarity_score":1.0,"original_width":null,"uid":"' + f'{3:032x}"' + "}"
    )


def test_a_value_of_the_wrong_type_costs_its_row(tmp_path: Path) -> None:
    table, (reject,) = read({**datacomp(tmp_path), "columns": {"note": {"from": "json.note", "type": "int"}}})
    assert table is not None
    assert table["note"].to_pylist() == [7, 8, None]
    assert matrix(table, "clip").tolist() == B[[0, 1, 3]].tolist()
    assert (reject.reason, reject.offset, reject.key) == ("bad_value", 2, f"{2:032x}")


def test_metadata_that_does_not_fit(tmp_path: Path) -> None:
    spec = datacomp(tmp_path, rows=3)
    with pytest.raises(UsageError, match="has 4 vectors, and .*0a1b.parquet' has 3 rows"):
        read(spec)
    (tmp_path / "other.npz").write_bytes((tmp_path / "0a1b.npz").read_bytes())
    with pytest.raises(UsageError, match="1 of 2 Parquet files are missing, such as .*other.parquet"):
        parse_source(spec).shards()
    with pytest.raises(UsageError, match="has no column 'txt'; .* Did you mean 'text'"):
        (tmp_path / "other.npz").unlink()
        read({**datacomp(tmp_path), "columns": {"caption": "json.txt"}})


@pytest.mark.parametrize("fixed", [True, False])
def test_parquet(tmp_path: Path, fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BATCH_ROWS", 3)
    kind = pa.list_(pa.float64(), 3) if fixed else pa.list_(pa.float64())
    lists = pa.array([*A.tolist(), *A.tolist()], kind)
    table = pa.table({"uid": pa.array([5, 6, 7, 8, 9, 10, 11, 12]), "emb": lists, "site": list("abcdefgh")})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    found = good({"vectors": str(tmp_path / "a.parquet"), "columns": {"site": "json.site"}})
    assert found.column_names == ["id", "offset", "caption", "label", "site", "meta", "emb"]
    assert [len(chunk) for chunk in found["emb"].chunks] == [3, 3, 2]
    assert found["id"].to_pylist() == [str(number) for number in range(5, 13)]
    assert (matrix(found, "emb") == np.concatenate([A, A])).all()
    assert found["site"].to_pylist() == list("abcdefgh")


def test_parquet_rows_that_are_missing_ragged_or_not_numbers(tmp_path: Path) -> None:
    lists = pa.array([[1.0, 2.0], None, [3.0], [4.0, None], [5.0, 6.0]])
    pq.write_table(pa.table({"id": list("abcde"), "emb": lists}), tmp_path / "a.parquet")
    table, (reject,) = read({"vectors": str(tmp_path / "a.parquet"), "embeddings": {"clip": "emb"}})
    assert table is not None
    assert table["id"].to_pylist() == ["a", "b", "d", "e"]
    values = table["clip"].to_pylist()
    assert values[0] == [1.0, 2.0] and values[1] is None and values[2][0] == 4.0 and np.isnan(values[2][1])
    assert (reject.reason, reject.offset, reject.key) == ("bad_record", 2, "c")


def test_parquet_meta_leaves_the_vectors_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "emb": [[1.0]], "n": [3]}), tmp_path / "a.parquet")
    assert good({"vectors": str(tmp_path / "a.parquet"), "meta": True})["meta"].to_pylist() == ['{"id":"a","n":3}']


def test_dimensions_that_differ(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", A)
    np.save(tmp_path / "1.npy", B)
    table, (reject,) = read({"vectors": str(tmp_path / "*.npy"), "column": "v"})
    assert table is not None and len(table) == 4
    assert (reject.reason, reject.uri) == ("not_a_table", str(tmp_path / "1.npy"))
    assert "has 2 dimensions here, and 3 dimensions in" in reject.error and "0.npy" in reject.error


def test_nan_infinite_and_overflow_pass_to_the_ingest(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[np.nan, 1e300], [np.inf, 1]]))
    values = matrix(good({"vectors": str(tmp_path / "a.npy"), "column": "v"}), "v")
    assert np.isfinite(values).tolist() == [[False, False], [False, True]]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise AssertionError('unpickled')",))


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a NumPy file"),
        (b"PK garbage", "not a NumPy file"),
        (header("(1000000000000, 512)") + b"\0" * 100, "cut off: its header promises"),
        (header("(4, 3)") + A.tobytes()[:-1], "cut off: its header promises"),
        (header("(-4, -3)") + A.tobytes(), "cut off"),
        (header("(4, 3)", "|O") + A.tobytes(), "Python objects, which are never unpickled"),
        (header("(12,)") + A.tobytes(), "not a matrix of floats"),
        (header("(4, 3)", "<i4") + A.tobytes(), "not a matrix of floats"),
        (header("(4, 0)"), "not a matrix of floats"),
        (header("(__import__('os').getpid(), 3)"), "not a NumPy file"),
    ],
)
def test_headers_are_not_believed(tmp_path: Path, data: bytes, words: str) -> None:
    np.save(tmp_path / "0.npy", A)
    (tmp_path / "1.npy").write_bytes(data)
    with pytest.raises(UsageError, match=words):
        read({"vectors": str(tmp_path / "1.npy"), "column": "v"})
    table, (reject,) = read({"vectors": str(tmp_path / "*.npy"), "column": "v"})
    assert table is not None and len(table) == 4
    assert reject.reason == "not_a_table"


def test_objects_in_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=A, key=np.array([Evil()] * 4, dtype=object))
    with pytest.raises(UsageError, match="never unpickled; save text with dtype str"):
        read({"vectors": str(tmp_path / "x.npz"), "id": "key"})


def test_cut_and_lying_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "0.npz", a=A)
    whole = (tmp_path / "0.npz").read_bytes()
    (tmp_path / "1.npz").write_bytes(whole[:-30])
    with zipfile.ZipFile(tmp_path / "2.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header("(1000000000, 3)") + A.tobytes())
    damaged = bytearray(whole)
    damaged[damaged.index(b"a.npy") + 60] ^= 0xFF
    (tmp_path / "3.npz").write_bytes(damaged)
    table, rejects = read({"vectors": str(tmp_path / "*.npz")})
    assert table is not None and len(table) == 4
    assert [(reject.reason, Path(reject.uri).stem) for reject in rejects] == [("not_a_table", n) for n in "123"]


def test_rows_before_the_damage_are_kept_and_a_missing_file_may_come_back(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", A)
    np.save(tmp_path / "1.npy", A[:0])
    np.save(tmp_path / "2.npy", A)
    source: Any = parse_source({"vectors": str(tmp_path / "*.npy"), "column": "v"})
    shards = source.shards()
    source.vector_fields()
    (tmp_path / "2.npy").unlink()
    reasons = [part.reason for shard in shards[1:] for part in source.read_rows(shard)]
    assert reasons == ["empty_shard", "unreadable_shard"]


def test_misuse_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    np.savez(tmp_path / "a.npz", label=A)
    (tmp_path / "a.txt").write_text("x")
    for spec, words in (
        ({"vectors": "a.npy"}, "name the vector column with `column:`"),
        ({"vectors": "a.n*", "column": "v"}, "are of two kinds"),
        ({"vectors": "a.txt"}, "no file of vectors"),
        ({"vectors": "a.npz", "column": "v"}, "use `embeddings:`"),
        ({"vectors": "a.npz"}, "'label' is the name of another column"),
        ({"vectors": "a.npz", "embeddings": {"clip": "lable"}}, "has no 'lable'; it has label. Did you mean 'label'?"),
        ({"vectors": "a.npz", "embeddings": {"1x": "label"}}, "'1x' cannot be a column name"),
        ({"vectors": "a.npz", "embeddings": {}}, "embeddings is empty"),
        ({"vectors": "a.npz", "embeddings": {"c": "label"}, "id": "key"}, "has no 'key'"),
        ({"vectors": "a.npz", "ids": "x", "metadata": "parquet"}, "both `ids` and `metadata`"),
        ({"vectors": "a.npz", "metadata": "csv"}, "metadata"),
    ):
        full = {key: str(tmp_path / value) if key == "vectors" else value for key, value in spec.items()}
        with pytest.raises(UsageError, match=words.replace("?", r"\?")):
            read(full)


def test_same_stems_clash_only_where_ids_are_made_of_them(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "0.npz", v=A, key=np.array([folder + str(row) for row in range(4)]))
    spec = {"vectors": str(tmp_path / "*/0.npz")}
    with pytest.raises(UsageError, match="id_folders: 1"):
        parse_source(spec).shards()
    assert good({**spec, "id_folders": 1})["id"].to_pylist()[4] == "b/0/000000000"
    assert good({**spec, "id": "key"})["id"].to_pylist()[4] == "b0"


def test_there_are_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    source = parse_source({"vectors": str(tmp_path / "a.npy"), "column": "v"})
    with pytest.raises(TypeError, match="has vectors, not images"):
        source.read(source.shards()[0])
    assert source.describe().endswith("embeddings v; columns caption, label, meta")


@pytest.mark.parametrize("beside", [False, True])
def test_row_groups_before_a_damaged_one_are_kept(tmp_path: Path, beside: bool) -> None:
    vectors = np.random.default_rng(0).random((3000, 4)).astype(np.float32)
    columns: dict[str, Any] = {"id": [f"i{number}" for number in range(3000)]}
    spec: dict[str, Any] = {"vectors": str(tmp_path / "0.parquet")}
    if beside:
        np.save(tmp_path / "0.npy", vectors)
        spec = {"vectors": str(tmp_path / "0.npy"), "column": "clip", "metadata": "parquet"}
    else:
        columns["clip"] = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=1000)
    column = pq.ParquetFile(tmp_path / "0.parquet").metadata.row_group(2).column(0)
    data = bytearray((tmp_path / "0.parquet").read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    data[at : at + 200] = b"\xff" * 200
    (tmp_path / "0.parquet").write_bytes(data)
    table, (reject,) = read(spec)
    assert table is not None
    assert table["id"].to_pylist() == columns["id"][:2000]
    assert np.array_equal(np.stack(table["clip"].to_pylist()), vectors[:2000])
    assert (reject.reason, reject.offset) == ("not_a_table", 2000)
