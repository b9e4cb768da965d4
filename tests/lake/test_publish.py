"""A selection as columns of its image table: plain LanceDB searches among what was kept."""

from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from command import datas3

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.lake.optimize import OptimizeConfig, optimize_table
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Expert, Random, SemDeDup

IDS = [f"r{i:02}" for i in range(30)]
VECTORS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


@pytest.fixture
def pool(lake, make_pool) -> Lake:
    vectors = VECTORS.copy()
    vectors[7] = np.nan
    make_pool(lake, "pool", IDS, vectors, fragments=3, label=["a", "b", "c"] * 10)
    return lake


def column(lake: Lake, name: str) -> dict[str, object]:
    rows = lake.table("pool").to_arrow(["id", name])
    return dict(zip(rows.column("id").to_pylist(), rows.column(name).to_pylist(), strict=True))


def said(lake: Lake, selection: str, name: str = "keep") -> dict[str, object]:
    """What the selection says of the pool's rows, None of those that it does not know."""
    rows = lake.selection(selection).to_arrow(["id", name])
    known = dict(zip(rows.column("id").to_pylist(), rows.column(name).to_pylist(), strict=True))
    return {id: known.get(id) for id in lake.table("pool").to_arrow(["id"]).column("id").to_pylist()}


def test_plain_lancedb_searches_among_the_kept_rows(pool) -> None:
    split_table(pool, "pool", "test", Split(where="id in ('r01', 'r02')"))
    dedup = SemDeDup(column="vec", clusters=2, size=11)
    selection = dedup.select(pool, "pool", name="dedup")
    before = pool.table("pool").to_arrow(["id", "label"])
    assert selection.publish() == ["dedup"]
    assert column(pool, "dedup") == said(pool, "dedup")
    assert {id for id, kept in column(pool, "dedup").items() if kept is None} == {"r01", "r02", "r07"}
    assert pool.table("pool").to_arrow(["id", "label"]).equals(before)

    found = lancedb.connect(pool.uri).open_table("pool").search(VECTORS[0]).where("dedup").limit(30).to_arrow()
    assert sorted(found.column("id").to_pylist()) == sorted(selection.ids().to_pylist())
    assert dedup.is_current(pool, "pool", "dedup"), "columns that are new make nothing stale"
    assert Expert(where="dedup").select(pool, "pool", name="again").ids().equals(selection.ids())


def test_other_columns_and_names(pool) -> None:
    selection = SemDeDup(column="vec", clusters=2, eps=0.5).select(pool, "pool", name="de-dup.2")
    columns = ["keep", "score", "duplicate_of", "cluster"]
    made = selection.publish(columns)
    assert made == ["de_dup_2", "de_dup_2_score", "de_dup_2_duplicate_of", "de_dup_2_cluster"]
    for published, name in zip(made, columns, strict=True):
        assert column(pool, published) == said(pool, "de-dup.2", name)
        assert pool.table("pool").schema.field(published).type == selection.table.schema.field(name).type
    assert selection.publish(["score"], name="similar") == ["similar_score"]


def test_rows_that_moved_changed_or_came_later(pool) -> None:
    selection = Random(size=9, seed=1).select(pool, "pool", name="some")
    pool.table("pool").dataset.delete("id in ('r00', 'r12')")
    moved = pa.table({"id": ["r20"], "label": ["z"], "vec": pa.array([[1.0] * 4], pa.list_(pa.float32(), 4))})
    pool.table("pool").dataset.merge_insert("id").when_matched_update_all().execute(moved)
    pool.add("pool", pa.table({"id": ["new"], "label": ["a"], "vec": [[1.0] * 4]}))
    optimize_table(pool, "pool", OptimizeConfig(prune=False))
    selection.publish()
    assert column(pool, "some") == said(pool, "some")
    assert column(pool, "some")["new"] is None
    assert column(pool, "some")["r20"] == said(pool, "some")["r20"] is not None
    # Rows may come without the columns that were made of those before.
    pool.add("pool", pa.table({"id": ["newer"], "label": ["a"], "vec": [[1.0] * 4]}))
    assert column(pool, "some")["newer"] is None
    assert pool.table("pool").count_rows("some") == 9 - sum(
        kept in ("r00", "r12") for kept in selection.ids().to_pylist()
    )


def test_the_same_again_does_nothing_and_another_takes_its_place(pool) -> None:
    Random(size=9, seed=1).select(pool, "pool", name="some").publish()
    version = pool.table("pool").version
    assert pool.selection("some").publish() == ["some"]
    assert pool.table("pool").version == version
    first = column(pool, "some")
    Random(size=20, seed=2).select(pool, "pool", name="some", replace=True).publish()
    assert column(pool, "some") == said(pool, "some") != first


def test_names_that_are_taken_are_left_alone(pool) -> None:
    some = Random(size=9, seed=1).select(pool, "pool", name="some")
    Random(size=3, seed=1).select(pool, "pool", name="other").publish(name="kept")
    version = pool.table("pool").version
    with pytest.raises(UsageError, match="has a column 'label' already, which is not 'keep' of selection 'some'"):
        some.publish(name="label")
    with pytest.raises(UsageError, match="has a column 'kept' already"):
        some.publish(name="KEPT")
    with pytest.raises(UsageError, match="has a column 'kept' already"):
        some.publish(name="kept")
    with pytest.raises(UsageError, match="a column cannot be called '9lives'"):
        some.publish(name="9lives")
    with pytest.raises(UsageError, match=r"has no column 'scores' to publish; it has .*score.* Did you mean 'score'"):
        some.publish(["scores"])
    with pytest.raises(UsageError, match="no column of selection 'some' is named"):
        some.publish([])
    assert pool.table("pool").version == version


def test_a_table_that_was_made_anew_is_not_written_to(pool, make_pool) -> None:
    some = Random(size=9, seed=1).select(pool, "pool", name="some")
    lancedb.connect(pool.uri).drop_table("pool")
    make_pool(pool, "pool", IDS, VECTORS, fragments=3)
    with pytest.raises(UsageError, match="deleted and made anew since selection 'some'"):
        some.publish()


def test_the_command(pool, capsys) -> None:
    Random(size=9, seed=1).select(pool, "pool", name="some")
    status, out, _ = datas3(
        "publish", "some", "--columns", "keep, score", "--as", "drawn", "--lake", pool.uri, capsys=capsys
    )
    assert (status, out.strip()) == (0, "table 'pool' has selection 'some' as drawn, drawn_score")
    assert column(pool, "drawn") == said(pool, "some")
    status, _, err = datas3("publish", "pool", "--lake", pool.uri, capsys=capsys)
    assert status == 2
    assert "not a selection" in err
