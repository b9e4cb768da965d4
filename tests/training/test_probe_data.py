"""What a probe learns from: joined on ids, split by their hash, indifferent to order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import vector_field
from datas3_ray.training import data
from datas3_ray.training.data import probe_data, read_labelled


def rows(count: int, labels: list[str | None], dimensions: int = 4, prefix: str = "r") -> pa.Table:
    """Row i has the vector (i, i, ...), so that a vector tells whose it is."""
    values = np.repeat(np.arange(count, dtype=np.float32), dimensions)
    return pa.table(
        {
            "id": [f"{prefix}{i:04d}" for i in range(count)],
            "label": pa.array([labels[i % len(labels)] for i in range(count)], pa.string()),
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(values), dimensions),
        }
    )


def select(lake: Lake, name: str, keep: list[str], table: str = "pool", version: int | None = None) -> None:
    ids = lake.table(table).to_arrow(["id"]).column("id").combine_chunks()
    mask = pc.is_in(ids, value_set=pa.array(keep, pa.string()))
    lineage = {
        "method": "handmade",
        "table": table,
        "inputs": {table: version or lake.table(table).version},
        "counts": {"kept": len(keep)},
        "fingerprint": name,
    }
    lake.write(name, pa.table({"id": ids, "keep": mask}), kind="selection", lineage=lineage)


@pytest.fixture
def empty(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def names(found: data.ProbeData, which: np.ndarray) -> set[str]:
    return set(found.ids.take(pa.array(which)).to_pylist())


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_every_row_keeps_its_own_vector_and_label(empty: Lake, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stored out of order and in two fragments, with rows deleted; read by scan and row by row.
    monkeypatch.setattr(data, "_TAKE_SHARE", share)
    monkeypatch.setattr(data, "_TAKE_ROWS", 7)
    table = rows(120, ["a", "b", None, "c"]).take(pa.array(np.random.default_rng(0).permutation(120)))
    empty.add("pool", table.slice(0, 50))
    empty.add("pool", table.slice(50))
    empty.table("pool").dataset.delete("id in ('r0001', 'r0060')")
    keep = [f"r{i:04d}" for i in range(40, 100) if i != 60]
    select(empty, "some", keep)
    found = read_labelled(empty.table("pool"), "lite", "label", keep=pa.array(keep))
    expected = [i for i in range(40, 100) if i != 60 and i % 4 != 2]
    assert found.ids.to_pylist() == [f"r{i:04d}" for i in expected]
    assert found.x[:, 0].tolist() == expected and (found.x == found.x[:, :1]).all()
    assert [found.classes[code] for code in found.y] == ["abxc"[i % 4] for i in expected]
    assert set(found.unlabelled.to_pylist()) == {f"r{i:04d}" for i in range(42, 100, 4)}
    split = probe_data(empty, "some", "lite").split
    assert split.unlabelled == 15 and len(split.train) + len(split.validation) == len(expected)


def test_the_split_does_not_depend_on_the_order_or_on_other_rows(tmp_path: Path) -> None:
    table = rows(200, ["a", "b"])
    keep = [f"r{i:04d}" for i in range(0, 200, 2)] + ["r0001", "r0003"]
    found = []
    for place, order in enumerate((np.arange(200), np.random.default_rng(1).permutation(200))):
        lake = Lake(tmp_path / str(place))
        lake.add("pool", table.take(pa.array(order)))
        select(lake, "s", keep)
        found.append(probe_data(lake, "s", "lite", seed=4))
    one, two = found
    assert np.array_equal(one.x, two.x) and np.array_equal(one.y, two.y)
    assert np.array_equal(one.split.train, two.split.train)
    held_out = names(one, one.split.validation)
    assert held_out and not held_out & names(one, one.split.train)
    # A row's side depends on its id and the seed, so in a larger selection the same rows are held out.
    select(lake, "all", [f"r{i:04d}" for i in range(200)])
    larger = probe_data(lake, "all", "lite", seed=4)
    assert held_out == names(larger, larger.split.validation) & set(keep)
    assert names(larger, probe_data(lake, "all", "lite", seed=5).split.validation) != names(
        larger, larger.split.validation
    )


def test_share_and_classes_of_one_row(empty: Lake) -> None:
    labels = [f"only {i}" if i < 30 else "many" for i in range(2000)]
    empty.add("pool", rows(2000, labels))
    select(empty, "s", [f"r{i:04d}" for i in range(2000)])
    found = probe_data(empty, "s", "lite", validation=0.2)
    assert 0.15 < len(found.split.validation) / 2000 < 0.25
    assert set(found.y[found.split.train]) == set(range(31))


def test_an_empty_hold_out_gets_one_row(empty: Lake) -> None:
    empty.add("pool", rows(12, ["a", "b"]))
    select(empty, "s", [f"r{i:04d}" for i in range(12)])
    split = probe_data(empty, "s", "lite", validation=1e-9).split
    assert (len(split.train), len(split.validation), split.validation_on) == (11, 1, data.HELD_OUT)


@pytest.mark.parametrize("labels", [["a", "b"], [str(i) for i in range(12)]])
def test_too_few_rows_validate_on_training_rows(empty: Lake, labels: list[str]) -> None:
    count = 9 if len(labels) == 2 else 12
    empty.add("pool", rows(12, labels))
    select(empty, "s", [f"r{i:04d}" for i in range(count)])
    split = probe_data(empty, "s", "lite").split
    assert split.validation_on == data.TRAINING_ROWS
    assert split.train.tolist() == split.validation.tolist() == list(range(count))


def test_missing_and_broken_vectors_are_left_out_and_counted(empty: Lake) -> None:
    table = rows(20, ["a", "b"])
    vectors = table.column("lite").to_pylist()
    vectors[3], vectors[4], vectors[5] = None, [0.0, float("nan"), 0.0, 0.0], [float("inf"), float("-inf"), 0.0, 0.0]
    empty.add("pool", table.set_column(2, "lite", pa.array(vectors, pa.list_(pa.float32(), 4))))
    select(empty, "s", [f"r{i:04d}" for i in range(20)])
    found = probe_data(empty, "s", "lite")
    assert found.split.unusable == 3 and len(found.ids) == 17 and np.isfinite(found.x).all()


@pytest.mark.parametrize("kind", [pa.int32(), pa.bool_(), pa.dictionary(pa.int32(), pa.string())])
def test_labels_of_other_kinds(empty: Lake, kind: pa.DataType) -> None:
    column = pa.array([i % 2 for i in range(20)], pa.int32())
    labels = column.cast(pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    empty.add("pool", rows(20, ["a"]).set_column(1, "label", labels))
    select(empty, "s", [f"r{i:04d}" for i in range(20)])
    assert len(probe_data(empty, "s", "lite").split.classes) == 2


def test_a_column_added_after_the_selection_is_found(empty: Lake) -> None:
    empty.add("pool", rows(30, ["a", "b"]).drop_columns("label"))
    select(empty, "s", [f"r{i:04d}" for i in range(30)])
    labels = pa.table({"label": [str(i // 10) for i in range(30)]})
    empty.table("pool").dataset.add_columns(labels.to_reader())
    assert probe_data(empty, "s", "lite").split.classes == ("0", "1", "2")


def test_the_pinned_version_is_read(empty: Lake) -> None:
    empty.add("pool", rows(30, ["a", "b"]))
    select(empty, "s", [f"r{i:04d}" for i in range(30)])
    empty.table("pool").dataset.delete("id < 'r0010'")
    assert len(probe_data(empty, "s", "lite").ids) == 30


@pytest.mark.parametrize(
    ("labels", "keep", "label", "sentence"),
    [
        ([None, ""], 20, "label", "'s' keeps 20 rows and none of them has both a label and a vector"),
        (["a"], 20, "label", r"'s' holds one class only \('a', 20 rows\)"),
        (["a", "b"], 0, "label", "'s' keeps 0 rows"),
        (["a", "b"], 20, "lable", "'pool' has no column 'lable'.*Did you mean 'label'?"),
        (["a", "b"], 20, "lite", "column 'lite' of table 'pool' holds fixed_size_list.*not classes"),
    ],
)
def test_nothing_to_learn(empty: Lake, labels: list[str | None], keep: int, label: str, sentence: str) -> None:
    empty.add("pool", rows(20, labels))
    select(empty, "s", [f"r{i:04d}" for i in range(keep)])
    with pytest.raises(UsageError, match=sentence):
        probe_data(empty, "s", "lite", label)


def test_the_column_must_be_a_vector(empty: Lake) -> None:
    empty.add("pool", rows(20, ["a", "b"]))
    select(empty, "s", ["r0001"])
    with pytest.raises(UsageError, match="column 'light'.*its vector columns are: lite"):
        probe_data(empty, "s", "light")


def test_the_default_column(empty: Lake) -> None:
    pool = empty.add("pool", rows(4, ["a"]))
    assert data.default_column(None, pool) == "lite"
    two = rows(4, ["a"])
    two = empty.add("two", two.append_column("clip", two.column("lite")))
    with pytest.raises(UsageError, match=r"several vector columns \(lite, clip\)"):
        data.default_column(None, two)
    with pytest.raises(UsageError, match="has no vector column"):
        data.default_column(None, empty.add("none", rows(4, ["a"]).drop_columns("lite")))


def test_vectors_of_two_encoders_do_not_mix(empty: Lake) -> None:
    def with_encoder(name: str, encoder: dict[str, str]) -> None:
        table = rows(4, ["a"])
        field = vector_field("lite", 4, encoder)
        empty.add(name, table.cast(pa.schema([*list(table.schema)[:2], field])))

    with_encoder("pool", {"name": "vit", "weights": "1", "dtype": "float32"})
    with_encoder("other", {"name": "vit", "weights": "2", "dtype": "float32"})
    with_encoder("gpu", {"name": "vit", "weights": "1", "dtype": "bfloat16"})
    empty.add("wide", rows(4, ["a"], dimensions=6))
    pool = empty.table("pool")
    data.check_same_vectors("lite", pool, empty.table("gpu"))
    with pytest.raises(UsageError, match=r"different encoders \(they differ in: weights\)"):
        data.check_same_vectors("lite", pool, empty.table("other"))
    with pytest.raises(UsageError, match="4 dimensions in table 'pool' and 6 in test table 'wide'"):
        data.check_same_vectors("lite", pool, empty.table("wide"))


def test_a_selection_of_rows_that_are_gone(empty: Lake) -> None:
    empty.add("pool", rows(20, ["a", "b"]))
    select(empty, "s", [f"r{i:04d}" for i in range(20)])
    empty.table("pool").dataset.delete("id < 'r0003'")
    with pytest.raises(UsageError, match="3 of 20 selected rows are not in version"):
        read_labelled(empty.table("pool"), "lite", "label", keep=empty.selection("s").ids())
