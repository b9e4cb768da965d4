"""Indexes: the kind that is chosen and why, brought up to date, and the same answers through plain LanceDB."""

from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake import indexes
from datas3_ray.lake.indexes import build_index, build_indexes
from datas3_ray.lake.storage import dataset_uri

DIM = 16


def rows(start: int, count: int, **more) -> pa.Table:
    rng = np.random.default_rng(start)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    vectors = (centres[rng.integers(0, 20, count)] + 0.3 * rng.normal(size=(count, DIM))).astype(np.float32)
    number = range(start, start + count)
    return pa.table(
        {
            "id": [f"r{i:05}" for i in number],
            "uri": [f"u{i}" for i in number],
            "caption": [f"a {'red' if i % 2 else 'blue'} bus number {i}" for i in number],
            "label": [f"c{i % 5}" for i in number],
            "score": [i / 7 for i in number],
            "flag": [bool(i % 3) for i in number],
            "count": list(number),
            "vec": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
            **more,
        }
    )


@pytest.fixture
def pool(tmp_path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", rows(0, 2000))
    return lake


def names(lake: Lake) -> dict[str, str]:
    found = lancedb.connect(lake.uri).open_table("pool").list_indices()
    return {index.columns[0]: index.index_type.lower() for index in found}


@pytest.mark.parametrize(
    ("column", "kind", "why"),
    [
        ("id", "btree", "all different"),
        ("caption", "fts", "by their words"),
        ("label", "bitmap", "5 different values"),
        ("flag", "bitmap", "two values"),
        ("score", "btree", "in ranges"),
        ("count", "btree", "more than 1000"),
    ],
)
def test_what_auto_chooses(pool, column, kind, why) -> None:
    assert "would be built" in build_index(pool, "pool", column, dry_run=True).sentence()
    assert names(pool) == {}
    report = build_index(pool, "pool", column)
    assert (report.kind, report.action) == (kind, "built")
    assert why in report.sentence()
    assert names(pool) == {column: kind}
    version = pool.table("pool").version
    again = build_index(pool, "pool", column)
    assert again.action == "up to date"
    assert pool.table("pool").version == version


def test_no_vector_index_for_few_rows_unless_it_is_named(pool, monkeypatch) -> None:
    report = build_index(pool, "pool", "vec")
    assert (report.kind, report.action) == (None, "none")
    assert "it pays from 100000 rows" in report.sentence()
    assert names(pool) == {}
    monkeypatch.setattr(indexes, "ROWS_WORTH_AN_INDEX", 1000)
    report = build_index(pool, "pool", "vec")
    assert (report.kind, report.action) == ("ivf_sq", "built")
    assert "2000 vectors, cosine, 32 partitions" in report.sentence()


@pytest.mark.parametrize("kind", ["ivf_sq", "ivf_flat", "ivf_pq", "ivf_rq"])
def test_recall_through_plain_lancedb_with_a_prefilter(pool, kind) -> None:
    build_index(pool, "pool", "vec", kind)
    opened = lancedb.connect(pool.uri).open_table("pool")
    queries = rows(50_000, 20).column("vec").to_pylist()

    def ask(query: list[float], exact: bool) -> set[str]:
        search = opened.search(query, vector_column_name="vec").distance_type("cosine")
        search = search.bypass_vector_index() if exact else search.nprobes(20).refine_factor(20)
        found = search.where("label = 'c1'", prefilter=True).select(["id", "label", "_distance"]).limit(10).to_list()
        assert {row["label"] for row in found} == {"c1"}
        return {row["id"] for row in found}

    recall = np.mean([len(ask(query, True) & ask(query, False)) / 10 for query in queries])
    assert recall >= 0.95


def test_rows_that_came_later_are_added(pool) -> None:
    for column, kind in (("vec", "ivf_sq"), ("id", "auto"), ("label", "auto"), ("caption", "auto")):
        build_index(pool, "pool", column, kind)
    pool.add("pool", rows(2000, 300))
    for column in ("vec", "id", "label", "caption"):
        assert "would be updated" in build_index(pool, "pool", column, dry_run=True).sentence()
        report = build_index(pool, "pool", column)
        assert (report.action, report.why) == ("updated", "300 rows came since it was built")
        assert build_index(pool, "pool", column).action == "up to date"
    opened = lancedb.connect(pool.uri).open_table("pool")
    assert opened.index_stats("vec_idx").num_unindexed_rows == 0
    row = pool.table("pool").to_arrow(filter="id = 'r02100'").to_pylist()[0]
    assert opened.search(row["vec"], vector_column_name="vec").limit(1).select(["id", "_distance"]).to_list()[0][
        "id"
    ] == ("r02100")
    words = opened.search("2100", query_type="fts").limit(1).select(["id", "_score"]).to_list()
    assert words[0]["id"] == "r02100"
    assert "ScalarIndexQuery" in opened.search().where("id = 'r02100'").explain_plan()


def test_rows_without_vectors_do_not_stop_an_update(pool) -> None:
    build_index(pool, "pool", "vec", "ivf_flat")
    none = pa.nulls(40, pool.table("pool").schema.field("vec").type)
    pool.add("pool", rows(3000, 40).drop_columns(["vec"]).append_column("vec", none))
    assert build_index(pool, "pool", "vec").action == "updated"
    assert build_index(pool, "pool", "vec").action == "up to date"


def test_another_kind_replaces_the_index(pool) -> None:
    build_index(pool, "pool", "label", "btree")
    assert build_index(pool, "pool", "label").kind == "btree"
    assert build_index(pool, "pool", "label", "bitmap").action == "built"
    assert names(pool) == {"label": "bitmap"}


def test_a_btree_on_stable_row_ids_is_read_by_both_libraries(tmp_path) -> None:
    import lance

    lake = Lake(tmp_path / "lake")
    lance.write_dataset(rows(0, 500), dataset_uri(lake.uri, "pool"), enable_stable_row_ids=True)
    build_index(lake, "pool", "id")
    lance.write_dataset(rows(500, 100), dataset_uri(lake.uri, "pool"), mode="append")
    assert build_index(lake, "pool", "id").action == "updated"
    where = "id = 'r00550'"
    assert "ScalarIndexQuery" in lake.table("pool").dataset.scanner(filter=where).explain_plan()
    assert "ScalarIndexQuery" in lancedb.connect(lake.uri).open_table("pool").search().where(where).explain_plan()


def test_usual_columns_and_all(pool) -> None:
    assert [report.column for report in build_indexes(pool, "pool", dry_run=True)] == ["id", "caption", "vec"]
    every = [report.column for report in build_indexes(pool, "pool", every=True, dry_run=True)]
    assert every == ["id", "caption", "vec", "label", "score", "flag", "count"]


@pytest.mark.parametrize(
    ("column", "kind", "says"),
    [
        ("lable", "auto", "has no column 'lable'.* Did you mean 'label'"),
        ("label", "btre", "no kind of index.* Did you mean 'btree'"),
        ("label", "ivf_sq", "ivf_sq indexes vectors, and column 'label' is string; vector columns: vec"),
        ("vec", "btree", "column 'vec' holds vectors"),
        ("count", "fts", "cannot have an index of kind fts"),
    ],
)
def test_mistakes(pool, column, kind, says) -> None:
    with pytest.raises(UsageError, match=says):
        build_index(pool, "pool", column, kind)


def test_too_few_vectors_and_odd_dimensions(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    odd = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(300 * 6, np.float32)), 6)
    none = pa.nulls(300, pa.list_(pa.float32(), 8))
    lake.add("pool", pa.table({"id": [f"r{i}" for i in range(300)], "odd": odd, "none": none}))
    with pytest.raises(UsageError, match="a multiple of 8 dimensions, and 'odd' has 6"):
        build_index(lake, "pool", "odd", "ivf_pq")
    with pytest.raises(UsageError, match="needs at least 1 vectors, and table 'pool' has 0"):
        build_index(lake, "pool", "none", "ivf_sq")


def test_an_index_that_cannot_be_written_is_told_without_internals(tmp_path, monkeypatch) -> None:
    lake = Lake(tmp_path)
    lake.add("pool", pa.table({"id": ["a", "b"]}))

    def refuse(*args, **more):
        text = "LanceError(IO): Read-only file system (os error 30), /cargo/lance-io-13.0.0/src/object_store.rs:1000:21"
        raise RuntimeError(f"lance error: {text}")

    monkeypatch.setattr(lancedb.table.LanceTable, "create_index", refuse)
    says = r"^btree on column 'id' of table 'pool' failed: Read-only file system \(os error 30\); make it writable"
    with pytest.raises(Datas3Error, match=says):
        build_index(lake, "pool", "id")
