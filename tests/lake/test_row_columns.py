"""Columns of numbers beside a table's rows: by id, in one commit, and nothing else of the table changes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import Datas3Error
from datas3_ray.lake import row_columns
from datas3_ray.lake.optimize import OptimizeConfig, optimize_table
from datas3_ray.lake.row_columns import inputs_version, made_from, write_numbers
from datas3_ray.selectors import ImportScore, Random


@pytest.fixture
def pool(lake, make_pool):
    ids = [f"r{i:02}" for i in range(30)]
    make_pool(lake, "pool", ids, np.eye(30, 4, dtype=np.float32) + 1, fragments=3, label=["a", "b", "c"] * 10)
    return lake


def numbers(rows: range, **columns) -> pa.Table:
    """Row i has i (times something), handed over backwards."""
    order = list(reversed(rows))
    values = {name: pa.array([factor * i for i in order], pa.float32()) for name, factor in columns.items()}
    return pa.table({"id": [f"r{i:02}" for i in order], **values})


def column(lake, name: str) -> dict[str, float | None]:
    rows = lake.table("pool").to_arrow(["id", name])
    return dict(zip(rows.column("id").to_pylist(), rows.column(name).to_pylist(), strict=True))


def test_numbers_find_their_rows_and_the_others_get_null(pool) -> None:
    before = pool.table("pool").to_arrow()
    version = pool.table("pool").version
    after = write_numbers(pool, "pool", version, numbers(range(5, 25), a=1, b=10), {"a": {"mark": "x"}, "b": {}})
    assert after == version + 1  # one commit
    assert column(pool, "a") == {f"r{i:02}": float(i) if 5 <= i < 25 else None for i in range(30)}
    assert column(pool, "b")["r07"] == 70.0
    assert pool.table("pool").to_arrow(before.schema.names).equals(before)
    assert made_from(pool.table("pool"), "a") == {"mark": "x"}
    assert made_from(pool.table("pool"), "b") == {}
    assert made_from(pool.table("pool"), "label") is None
    assert made_from(pool.table("pool"), "none") is None


def test_new_columns_leave_selections_current_and_other_values_do_not(pool) -> None:
    version = inputs_version(pool.table("pool"))
    write_numbers(pool, "pool", version, numbers(range(30), a=1), {"a": {}})
    drawn, cut = Random(size=5, seed=0), ImportScore(score_column="a", size=4)
    drawn.select(pool, "pool", name="drawn")
    cut.select(pool, "pool", name="cut")
    write_numbers(pool, "pool", version, numbers(range(30), b=1), {"b": {}})
    assert drawn.is_current(pool, "pool", "drawn")
    assert cut.is_current(pool, "pool", "cut")
    write_numbers(pool, "pool", version, numbers(range(30), a=-1), {"a": {"mark": "y"}})
    # A selection of the old numbers must not pass for one of the new.
    assert not cut.is_current(pool, "pool", "cut")
    assert cut.select(pool, "pool", name="cut", replace=True).ids().to_pylist() == ["r00", "r01", "r02", "r03"]
    # And yet the numbers' own inputs are as they were.
    assert inputs_version(pool.table("pool")) == version
    assert made_from(pool.table("pool"), "a") == {"mark": "y"}
    assert column(pool, "b")["r09"] == 9.0


def test_replaced_values_after_deletions_appends_and_compaction(pool, make_pool) -> None:
    version = inputs_version(pool.table("pool"))
    write_numbers(pool, "pool", version, numbers(range(30), a=1, b=2), {"a": {}, "b": {}})
    pool.table("pool").dataset.delete("id in ('r00', 'r13', 'r29')")
    more = pa.table({"id": ["r30", "r31"], "label": ["a", "b"], "vec": [[1.0] * 4] * 2})
    nulls = pa.nulls(2, pa.float32())
    pool.add("pool", more.append_column("a", nulls).append_column("b", nulls))
    changed = inputs_version(pool.table("pool"))
    assert changed > version
    write_numbers(pool, "pool", changed, numbers(range(32), a=3), {"a": {}})
    left = [i for i in range(32) if i not in (0, 13, 29)]
    assert column(pool, "a") == {f"r{i:02}": 3.0 * i for i in left}
    assert column(pool, "b") == {f"r{i:02}": 2.0 * i if i < 30 else None for i in left}
    optimize_table(pool, "pool", OptimizeConfig(prune=False))
    assert len(pool.table("pool").fragment_ids()) == 1
    assert inputs_version(pool.table("pool")) == changed
    write_numbers(pool, "pool", changed, numbers(range(32), a=5, c=1), {"a": {}, "c": {}})
    assert column(pool, "a") == {f"r{i:02}": 5.0 * i for i in left}
    assert column(pool, "c") == {f"r{i:02}": 1.0 * i for i in left}
    assert column(pool, "b")["r05"] == 10.0


def test_a_table_that_changed_meanwhile_is_left_alone(pool) -> None:
    version = inputs_version(pool.table("pool"))
    pool.table("pool").dataset.delete("id = 'r03'")
    now = pool.table("pool").version
    with pytest.raises(Datas3Error, match="changed by another program"):
        write_numbers(pool, "pool", version, numbers(range(30), a=1), {"a": {}})
    assert pool.table("pool").version == now


@pytest.mark.parametrize("add", [True, False])
def test_fragments_that_were_joined_during_the_commit_are_written_anew(pool, monkeypatch, add: bool) -> None:
    version = inputs_version(pool.table("pool"))
    if not add:
        write_numbers(pool, "pool", version, numbers(range(30), a=7), {"a": {}})
    commit, calls = row_columns.commit_columns, []

    def late(table, *rest):
        if not calls:
            optimize_table(pool, "pool", OptimizeConfig(prune=False))
        calls.append(table.version)
        return commit(table, *rest)

    monkeypatch.setattr(row_columns, "commit_columns", late)
    write_numbers(pool, "pool", version, numbers(range(30), a=1), {"a": {}})
    assert len(calls) == 2
    assert column(pool, "a") == {f"r{i:02}": float(i) for i in range(30)}
