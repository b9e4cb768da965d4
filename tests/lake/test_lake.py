"""Tables of a lake: what goes in, what plain LanceDB sees, and what is refused."""

from __future__ import annotations

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from conftest import vector_rows

from datas3_ray import Lake, retry
from datas3_ray.errors import UsageError
from datas3_ray.lake import lake as lake_module
from datas3_ray.lake.algebra import combine
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.lake.storage import commit, dataset_uri, open_dataset, write_fragments
from datas3_ray.selectors import Random, SemDeDup


@pytest.fixture
def rows() -> pa.Table:
    vectors = pa.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], pa.list_(pa.float64()))
    return pa.table({"id": ["a", "b", "c"], "label": ["x", None, "y"], "vec": vectors})


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path / "lake")


def test_list_columns_become_searchable_vectors(lake: Lake, rows: pa.Table) -> None:
    lake.add("pool", rows)
    assert lake.table("pool").vector_columns() == {"vec": 2}
    found = lancedb.connect(lake.uri).open_table("pool").search([0.6, 0.8]).limit(1).to_list()
    assert found[0]["id"] == "c"


@pytest.mark.parametrize("name", ["results", "pool.ledger", "pool.quarantine", "pool.embed"])
def test_names_of_the_projects_own_tables_are_not_to_be_had(lake: Lake, rows: pa.Table, name: str) -> None:
    pool = lake.add("pool", rows)
    parts = [Random(size=1, seed=seed).select(lake, "pool", name=f"part-{seed}").name for seed in (0, 1)]
    for make in (
        lambda: lake.add(name, rows),
        lambda: split_table(lake, "pool", name, Split(where="label = 'x'")),
        lambda: Random(size=1).select(lake, "pool", name=name),
        lambda: combine(lake, "union", parts, name),
        lambda: lake.ingest(name, source={"folder": "."}, encoders={}),
    ):
        with pytest.raises(UsageError, match=f"'{name}' is a name that the lake keeps"):
            make()
    assert lake.names() == [*parts, pool.name]


def test_adding_appends_and_keeps_the_order_of_columns(lake: Lake, rows: pa.Table) -> None:
    lake.add("pool", rows)
    more = pa.table({"vec": [[1.0, 1.0]], "label": ["z"], "id": ["d"]})
    assert lake.add("pool", more).count_rows() == 4
    assert lake.table("pool").to_arrow(["id"]).column("id").to_pylist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop_columns(["id"]), "need a string column 'id'"),
        (lambda t: t.set_column(0, "id", pa.array(["a", "a", "c"])), "repeat 1 ids, 'a'"),
        (lambda t: t.set_column(0, "id", pa.array(["a", None, "c"])), "1 missing ids"),
        (lambda t: t.set_column(0, "id", pa.array(["a", "b\0", "c"])), "an id with a NUL byte: 'b"),
        (lambda t: t.set_column(2, "vec", pa.array([[1.0], [1.0, 2.0], [1.0]])), "lengths [1, 2]"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_before_anything_is_written(lake, rows, change, says) -> None:
    with pytest.raises(UsageError, match=says.replace("[", r"\[").replace("]", r"\]")):
        lake.add("pool", change(rows))
    assert lake.names() == []


def test_vectors_of_doubles_become_floats_and_what_floats_cannot_hold_is_not_usable(lake: Lake, rows: pa.Table) -> None:
    doubles = pa.FixedSizeListArray.from_arrays(pa.array([1e39, 1.0, 1e-60, 0.0, 1.0, 2.0]), 2)
    lake.add("pool", rows.set_column(2, "vec", doubles))
    assert lake.table("pool").schema.field("vec").type == pa.list_(pa.float32(), 2)
    lancedb.connect(lake.uri).create_table("foreign", pa.table({"id": ["a", "b", "c"], "vec": doubles}))
    for table in ("pool", "foreign"):
        dedup = SemDeDup(column="vec", clusters=1).select(lake, table)
        assert dedup.ids().to_pylist() == ["c"]
        assert dedup.lineage()["counts"]["invalid"] == 2


def test_a_second_batch_must_fit_the_table(lake: Lake, rows: pa.Table) -> None:
    version = lake.add("pool", rows).version
    other = rows.set_column(0, "id", pa.array(["d", "e", "f"]))
    with pytest.raises(UsageError, match="id 'a' is already in table 'pool'"):
        lake.add("pool", rows)
    with pytest.raises(UsageError, match=r"missing columns \['label'\]"):
        lake.add("pool", other.drop_columns(["label"]))
    with pytest.raises(UsageError, match="has 2 dimensions and the rows have 3"):
        lake.add("pool", other.set_column(2, "vec", pa.array([[1.0, 2.0, 3.0]] * 3)))
    assert lake.table("pool").version == version


def test_unknown_names_are_answered_with_those_there_are(lake: Lake, rows: pa.Table) -> None:
    lake.add("pool", rows)
    with pytest.raises(UsageError, match=r"no table 'pol' .* it has: pool\. Did you mean 'pool'"):
        lake.table("pol")
    with pytest.raises(UsageError, match="is a table of kind image, not a selection"):
        lake.selection("pool")
    with pytest.raises(UsageError, match=r"its vector columns are: vec \(2\)\. Did you mean 'vec'"):
        lake.table("pool").require_vector("vecc")
    with pytest.raises(UsageError, match="cannot name a table"):
        lake.add("../pool", rows)


def test_a_table_is_pinned_to_its_version(lake: Lake, rows: pa.Table) -> None:
    before = lake.add("pool", rows)
    lake.add("pool", rows.set_column(0, "id", pa.array(["d", "e", "f"])))
    assert before.count_rows() == 3
    assert lake.table("pool", before.version).count_rows() == 3
    assert lake.table("pool").count_rows() == 6


def test_tables_made_by_other_programs_are_image_tables(lake: Lake) -> None:
    lancedb.connect(lake.uri).create_table("theirs", [{"id": "a", "vector": [1.0, 2.0]}])
    assert lake.names("image") == ["theirs"]
    assert [table.name for table in lake.tables("image")] == ["theirs"]
    assert [table.count_rows() for table in lake.tables()] == [1]
    assert lake.image_table("theirs").vector_columns() == {"vector": 2}


def test_a_retried_commit_adds_its_rows_once(lake: Lake, rows: pa.Table) -> None:
    pool = lake.add("pool", rows)
    uri = dataset_uri(lake.uri, "pool")
    more = rows.set_column(0, pool.schema.field("id"), pa.array(["d", "e", "f"])).cast(pool.schema)
    fragments = write_fragments(more, uri, append=True)
    assert open_dataset(uri).count_rows() == 3
    for _ in range(3):
        commit(uri, fragments, pool.schema, mode="append", commit_id="once", retried=True)
    assert open_dataset(uri).count_rows() == 6


def first(monkeypatch, module, name: str, other) -> None:
    """What another program does right before this one's next call of ``module.name``."""
    work = getattr(module, name)

    def late(*args, **more):
        monkeypatch.setattr(module, name, work)
        other()
        return work(*args, **more)

    monkeypatch.setattr(module, name, late)


def test_two_programs_that_begin_a_table_at_once_lose_no_row(lake: Lake, rows: pa.Table, monkeypatch) -> None:
    more = rows.set_column(0, "id", pa.array(["d", "e", "f"]))
    first(monkeypatch, lake_module, "commit", lambda: lake.add("pool", more))
    lake.add("pool", rows)
    assert sorted(lake.table("pool").to_arrow(["id"])["id"].to_pylist()) == list("abcdef")
    first(monkeypatch, lance.LanceDataset, "commit", lambda: lake.add("late", more))
    lake.add("late", rows)
    assert lake.table("late").count_rows() == 6

    for table, says in ((rows, "id 'a' is already in table"), (more.drop_columns(["label"]), "unknown columns")):
        name = says.split()[0]
        first(monkeypatch, lake_module, "commit", lambda name=name, table=table: lake.add(name, table))
        with pytest.raises(UsageError, match=says):
            lake.add(name, rows)
        assert lake.table(name).count_rows() == 3


def test_of_two_programs_that_add_the_same_ids_at_once_one_does(lake: Lake, rows: pa.Table, monkeypatch) -> None:
    def named(*ids: str) -> pa.Table:
        return rows.slice(0, len(ids)).set_column(0, "id", pa.array(ids))

    def ids() -> list[str]:
        return sorted(lake.table("pool").to_arrow(["id"])["id"].to_pylist())

    lake.add("pool", rows)
    first(monkeypatch, lake_module, "commit", lambda: lake.add("pool", named("e", "f")))
    with pytest.raises(UsageError, match="id 'e' is already in table 'pool'; nothing was added"):
        lake.add("pool", named("d", "e"))
    assert ids() == list("abcef")
    first(monkeypatch, lake_module, "commit", lambda: lake.add("pool", named("g")))
    lake.add("pool", named("h"))
    assert ids() == list("abcefgh")

    # The commit's answer is lost, and another program commits before it is asked for again.
    commit = lance.LanceDataset.commit

    def unanswered(*args, **more):
        monkeypatch.setattr(lance.LanceDataset, "commit", commit)
        commit(*args, **more)
        lake.add("pool", named("j"))
        raise OSError("connection reset by peer")

    monkeypatch.setattr(retry, "DELAYS", (0.0,))
    monkeypatch.setattr(lance.LanceDataset, "commit", unanswered)
    lake.add("pool", named("i"))
    assert ids() == list("abcefghij")


def test_two_sweeps_that_end_at_once_lose_no_result(lake: Lake, monkeypatch) -> None:
    trials = [pa.Table.from_pylist([{"trial": name}], RESULTS) for name in ("a", "b")]
    first(monkeypatch, lake_module, "commit", lambda: lake.append_results(trials[1]))
    lake.append_results(trials[0])
    assert sorted(lake.results()["trial"].to_pylist()) == ["a", "b"]


def test_null_vectors_and_nulls_inside_vectors_read_as_nan() -> None:
    from datas3_ray.lake.schemas import matrix

    column = pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32(), 2))
    got = matrix(column)
    assert got[0].tolist() == [1.0, 2.0]
    assert np.isnan(got[1]).all()
    assert np.isnan(got[2, 1])
    assert matrix(column.slice(2)).shape == (1, 2)
    assert np.isnan(matrix(column.slice(1))[0]).all()


def test_what_only_moves_rows_or_adds_columns_is_no_change_of_content(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    for first in "abc":
        lake.add("pool", vector_rows([f"{first}{i}" for i in range(4)], np.eye(4)))
    assert (lake.table("pool").version, lake.table("pool").content_version) == (3, 3)
    lake.table("pool").dataset.optimize.compact_files()
    lake.table("pool").dataset.create_scalar_index("id", "BTREE")
    lake.table("pool").dataset.add_columns(pa.field("dino", pa.float32()))
    table = lake.table("pool")
    assert table.version > 5
    assert table.content_version == 3
    table.dataset.update({"dino": "1.0"}, where="id = 'a0'")
    table = lake.table("pool")
    changed = table.version
    assert table.content_version == changed
    table.dataset.delete("id = 'a0'")
    assert lake.table("pool").content_version == changed + 1
