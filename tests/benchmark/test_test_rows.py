"""The leaderboard compares only scores of the same test rows, whatever their table's name, version and length."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.benchmark import Leaderboard, leaderboard
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Everything, Random
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.sweep import Deployment, run_sweep


def rows(count: int, first: int = 0) -> pa.Table:
    y = np.arange(first, first + count) % 2
    x = (np.eye(2, 4)[y] + np.random.default_rng(first).normal(size=(count, 4))).astype(np.float32)
    return pa.table(
        {
            "id": [f"p{i:04d}" for i in range(first, first + count)],
            "label": [("ant", "bee")[code] for code in y],
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4),
        }
    )


def sweep(lake: Lake, folder: Path, name: str, selection: str, seed: int = 0) -> None:
    config = SweepConfig(grid={"batch_size": 32, "lr": 0.1}, epochs=2, seed=(seed,))
    north = Deployment("north", "test", selections={selection: selection})
    run_sweep(lake, config, name=name, deployments={"north": north}, storage=str(folder), progress=lambda _: None)


@pytest.fixture
def swept(lake: Lake, tmp_path: Path) -> Lake:
    """A pool, a test table of it, and method "all" swept."""
    lake.add("pool", rows(200))
    split_table(lake, "pool", "test", Split(rows=40))
    Everything().select(lake, "pool", name="all")
    sweep(lake, tmp_path / "runs", "first", "all")
    return lake


def test_a_test_table_of_as_many_other_rows_outdates_scores(swept: Lake, tmp_path: Path) -> None:
    swept.add("pool", rows(200, first=200))
    split_table(swept, "pool", "test", Split(rows=40), replace=True)
    Random(size=30).select(swept, "pool", name="some")
    sweep(swept, tmp_path / "runs", "second", "some")
    cells = {row.method: row.cells["north"] for row in leaderboard(swept.results()).rows}
    assert {name: cell.outdated for name, cell in cells.items()} == {"all": True, "some": False}
    assert {name: cell.best for name, cell in cells.items()} == {"all": False, "some": True}


def test_seeds_on_a_test_table_that_was_made_anew_are_no_one_cell(swept: Lake, tmp_path: Path) -> None:
    version = swept.table("test").version
    shutil.rmtree(Path(swept.uri) / "test.lance")
    swept.add("test", rows(40, first=900))
    assert swept.table("test").version == version
    sweep(swept, tmp_path / "runs", "second", "all", seed=1)
    (row,) = leaderboard(swept.results()).rows
    assert row.cells["north"].seeds == 1
    sweep(swept, tmp_path / "runs", "third", "all", seed=2)
    (row,) = leaderboard(swept.results()).rows
    assert row.cells["north"].seeds == 2


def test_a_column_more_in_the_test_table_outdates_nothing(swept: Lake, tmp_path: Path) -> None:
    swept.table("test").dataset.add_columns({"brightness": "1.0"})
    sweep(swept, tmp_path / "runs", "second", "all", seed=1)
    (row,) = leaderboard(swept.results()).rows
    assert row.cells["north"].seeds == 2


def board(lake: Lake, *edits: Callable[[dict[str, Any]], Any]) -> Leaderboard:
    """Of the one trial as each edit makes it."""
    made = []
    for edit in edits:
        (trial,) = lake.results().to_pylist()
        edit(trial)
        made.append(trial)
    return leaderboard(pa.Table.from_pylist(made, schema=RESULTS))


def test_rows_of_earlier_versions_are_told_apart_by_the_version(swept: Lake) -> None:
    def earlier(method: str, version: int, minute: int) -> Callable[[dict[str, Any]], None]:
        def edit(trial: dict[str, Any]) -> None:
            lineage = json.loads(trial["lineage"])
            del lineage["contents"]
            lineage["inputs"]["test"] = version
            created = trial["created"].replace(minute=minute)
            trial |= {"method": method, "lineage": json.dumps(lineage), "created": created}

        return edit

    made = board(swept, earlier("a", 1, 0), earlier("b", 2, 1), earlier("c", 2, 2))
    assert {row.method: row.cells["north"].outdated for row in made.rows} == {"a": True, "b": False, "c": False}


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_the_worst(swept: Lake, worst: float, higher: bool) -> None:
    def scored(method: str, score: float, seed: int = 0) -> Callable[[dict[str, Any]], None]:
        return lambda trial: trial.update(
            method=method, test=score, test_seen=score, test_dropped=0, seed=seed, higher_is_better=higher
        )

    made = board(swept, scored("z", 0.5), scored("a", worst), scored("b", worst), scored("b", 0.5, seed=1))
    assert [row.method for row in made.rows] == ["z", "a", "b"]
    cells = {row.method: row.cells["north"] for row in made.rows}
    assert {name: cell.best for name, cell in cells.items()} == {"z": True, "a": False, "b": False}
    assert {name: cell.paper_style and cell.paper_style.best for name, cell in cells.items()} == {
        "z": True,
        "a": False,
        "b": False,
    }
    assert cells["b"].std is not None and math.isnan(cells["b"].std)
    # Of such alone none is the best.
    assert not board(swept, scored("a", worst)).rows[0].cells["north"].best
