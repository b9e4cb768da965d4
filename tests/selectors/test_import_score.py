"""ImportScore: a column, or a file that is joined by id."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from datas3_ray import exchange
from datas3_ray.errors import UsageError
from datas3_ray.selectors import ClipScore, Expert, ImportScore, make_selector, score_files


@pytest.fixture
def pool(lake, make_pool):
    ids = [f"{i:03}" for i in range(80)]
    values = [None if i % 10 == 0 else float((i * 37) % 40) for i in range(80)]
    make_pool(lake, "pool", ids, np.ones((80, 2)), fragments=4, loss=pa.array(values, pa.float32()), word=ids)
    return {name: value for name, value in zip(ids, values, strict=True) if value is not None}


def best(scores: dict[str, float], size: int, higher: bool = True) -> set[str]:
    return set(sorted(scores, key=lambda name: (-scores[name] if higher else scores[name], name))[:size])


@pytest.mark.parametrize("higher", [True, False])
def test_a_column_of_the_table(lake, pool, higher) -> None:
    selection = ImportScore(score_column="loss", higher_is_better=higher, size=20).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == best(pool, 20, higher)
    counts = selection.lineage()["counts"]
    assert (counts["invalid"], counts["eligible"]) == (8, 72)
    cut = ImportScore(score_column="loss", higher_is_better=higher, threshold=11).select(lake, "pool")
    wanted = {name for name, value in pool.items() if (value >= 11 if higher else value <= 11)}
    assert set(cut.ids().to_pylist()) == wanted
    assert 11 in {pool[name] for name in wanted}


def write(path, kind: str, ids, values) -> str:
    """A file of ids and numbers in some order, with a column more and ids that the pool does not have."""
    order = np.random.default_rng(1).permutation(len(ids))
    rows = [(ids[i], values[i]) for i in order]
    target = path / f"scores.{kind}"
    if kind == "parquet":
        table = pa.table({"other": ["x"] * len(rows), "key": [r[0] for r in rows], "el2n": [r[1] for r in rows]})
        parquet.write_table(table, target, row_group_size=7)
        return str(target)
    text = "key,other,el2n\n" + "".join(f"{name},x,{'' if value is None else value}\n" for name, value in rows)
    data = text.encode()
    target.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return str(target)


@pytest.mark.parametrize("bucket_rows", [500_000, 13])
@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz"])
def test_a_file(lake, pool, tmp_path, monkeypatch, kind, bucket_rows) -> None:
    monkeypatch.setattr(exchange, "BUCKET_ROWS", bucket_rows)
    ids = [f"{i:03}" for i in range(5, 100)]
    values = [float("nan") if i == 7 else None if i == 8 else (i * 31) % 50 / 4 for i in range(5, 100)]
    file = write(tmp_path, kind, ids, values)
    selection = ImportScore(file=file, id_column="key", score_column="el2n", size=25).select(lake, "pool")
    known = {n: v for n, v in zip(ids, values, strict=True) if v is not None and v == v and int(n) < 80}
    assert set(selection.ids().to_pylist()) == best(known, 25)
    lineage = selection.lineage()
    assert lineage["counts"]["invalid"] == 80 - len(known)
    assert lineage["report"] == {"files": 1, "file_rows": 95, "matched": len(known)}
    assert {row["id"]: row["score"] for row in selection.to_arrow().to_pylist()} == known


def test_pieces_of_a_file_and_several_files(lake, pool, tmp_path) -> None:
    parquet.write_table(pa.table({"id": [f"{i:03}" for i in range(40)], "s": list(range(40))}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("id,s\n" + "".join(f"{i:03},{i}\n" for i in range(40, 80)))
    selection = ImportScore(file=f"{tmp_path}/{{a.parquet,b.csv}}", score_column="s", size=50).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {f"{i:03}" for i in range(30, 80)}
    whole = list(score_files.read_scores(str(tmp_path / "b.csv"), "id", "s"))
    assert sum(piece.num_rows for piece in whole) == 40
    assert whole[0].schema == pa.schema([("id", pa.string()), ("score", pa.float64())])


def test_long_files_come_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(score_files, "PIECE_ROWS", 10)
    parquet.write_table(pa.table({"id": [str(i) for i in range(35)], "s": list(range(35))}), tmp_path / "a.parquet")
    pieces = list(score_files.read_scores(str(tmp_path / "a.parquet"), "id", "s"))
    assert [piece.num_rows for piece in pieces] == [10, 10, 10, 5]


def test_another_content_of_the_file_is_another_selection(lake, pool, tmp_path) -> None:
    file = write(tmp_path, "csv", ["001", "002"], [1.0, 2.0])
    selector = make_selector("import_score", {"file": file, "id_column": "key", "score_column": "el2n", "size": 1})
    first = selector.select(lake, "pool", name="s")
    assert first.ids().to_pylist() == ["002"]
    assert selector.is_current(lake, "pool", "s")
    write(tmp_path, "csv", ["001", "002", "003"], [9.0, 2.0, 1.0])
    assert not selector.is_current(lake, "pool", "s")
    assert selector.select(lake, "pool", name="s", replace=True).ids().to_pylist() == ["001"]


@pytest.mark.parametrize("bucket_rows", [500_000, 13])
def test_an_id_twice(lake, pool, tmp_path, monkeypatch, bucket_rows) -> None:
    monkeypatch.setattr(exchange, "BUCKET_ROWS", bucket_rows)
    file = write(tmp_path, "parquet", ["001", "002", "001"], [1.0, 2.0, 1.0])
    with pytest.raises(UsageError, match=r"scores.parquet' has id '001' more than once; each row needs one score"):
        ImportScore(file=file, id_column="key", score_column="el2n", size=1).select(lake, "pool")
    assert lake.names() == ["pool"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_files_that_say_nothing_of_the_rows(lake, pool, tmp_path, kind) -> None:
    for ids, rows in (([], 0), (["1", "2"], 2)):
        file = write(tmp_path, kind, ids, [0.5] * len(ids))
        if not ids and kind == "parquet":
            schema = pa.schema([("key", pa.string()), ("el2n", pa.float64())])
            parquet.write_table(schema.empty_table(), file)
        with pytest.raises(UsageError, match=f"has {rows} rows, and a number for none of the 80 rows.*column 'key'"):
            ImportScore(file=file, id_column="key", score_column="el2n", size=1).select(lake, "pool")
    assert lake.names() == ["pool"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_threshold_is_met_by_a_row_of_just_that_value_however_it_is_stored(lake, make_pool, tmp_path, kind) -> None:
    ids = [f"{i:02}" for i in range(14)]
    tenths = pa.array([i / 10 for i in range(14)]).cast(kind)
    make_pool(lake, "tenths", ids, np.ones((14, 2)), value=tenths)
    parquet.write_table(pa.table({"id": ids, "value": tenths}), tmp_path / "tenths.parquet")
    for file in (None, str(tmp_path / "tenths.parquet")):
        best = ImportScore(score_column="value", file=file, threshold=0.7).select(lake, "tenths")
        assert best.ids().to_pylist() == ids[7:]
        least = ImportScore(score_column="value", file=file, threshold=0.3, higher_is_better=False)
        assert least.select(lake, "tenths").ids().to_pylist() == ids[:4]
    assert len(ClipScore(score_column="value", threshold=0.7).select(lake, "tenths")) == 7
    assert len(Expert("value >= 0.7").select(lake, "tenths")) == 7


def test_files_that_cannot_be_meant(lake, pool, tmp_path) -> None:
    file = write(tmp_path, "csv", ["001"], ["high"])
    parquet.write_table(pa.table({"key": ["001", "a\0b"], "el2n": [1.0, 2.0]}), tmp_path / "nul.parquet")
    parquet.write_table(
        pa.table({"key": ["001", None], "el2n": [1.0, 2.0], "text": ["a", "b"]}), tmp_path / "n.parquet"
    )
    (tmp_path / "broken.parquet").write_bytes(b"not this")
    nulls = str(tmp_path / "n.parquet")
    for changes, sentence in (
        ({"file": file, "id_column": "id"}, "scores.csv' has no column 'id'; it has: key, other, el2n"),
        ({"file": file, "score_column": "el2m"}, "has no column 'el2m'.*Did you mean 'el2n'"),
        ({"file": file}, "scores.csv' cannot be read: .*'high'"),
        ({"file": str(tmp_path / "nul.parquet")}, "nul.parquet' has an id with a NUL byte in column 'key'"),
        ({"file": nulls}, "n.parquet' has 1 rows or more without an id in column 'key'"),
        ({"file": nulls, "score_column": "text"}, "column 'text' of .* is string; a column of numbers is needed"),
        ({"file": str(tmp_path / "broken.parquet")}, "broken.parquet' cannot be read"),
        ({"file": str(tmp_path / "none.csv")}, "import_score: .*none.csv"),
        ({"file": __file__}, "must end in .parquet, .csv or .csv.gz"),
        ({"file": None}, "has no column 'el2n'"),
    ):
        given = {"id_column": "key", "score_column": "el2n", "size": 1, **changes}
        with pytest.raises(UsageError, match=sentence):
            ImportScore(**given).select(lake, "pool")
    with pytest.raises(UsageError, match="column 'word' of table 'pool' is string"):
        ImportScore(score_column="word", size=1).select(lake, "pool")
    with pytest.raises(UsageError, match="give either size or threshold"):
        ImportScore(score_column="word")
    assert lake.names() == ["pool"]
