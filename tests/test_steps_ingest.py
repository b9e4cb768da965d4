"""Steps that bring images in: what they plan before anything is there, and after a run that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datas3_ray import Lake
from datas3_ray.lake.ledger import Ledger
from datas3_ray.recipe import parse_recipe, run_recipe
from datas3_ray.sources.synthetic import World, generate


def steps(folder: Path, pattern: str = "*.tar") -> list[dict[str, Any]]:
    return [
        {"name": "world", "synthetic": {"folder": str(folder), "images": 100}},
        {"name": "pool", "ingest": {"source": {"webdataset": f"{folder}/{pattern}"}, "encoders": {}}},
        {"name": "some", "select": {"from": "pool", "random": {"size": 5}}},
    ]


def planned(lake: Lake, asked: list[dict[str, Any]]) -> list[str]:
    plan: list[str] = []
    run_recipe(parse_recipe({"lake": lake.uri, "steps": asked}), dry_run=True, say=plan.append)
    return plan


def test_the_ingest_of_a_world_that_is_not_drawn_yet_can_be_planned(lake: Lake, tmp_path: Path) -> None:
    plan = planned(lake, steps(tmp_path / "data"))
    assert f"will run, since the files in {tmp_path / 'data'} will change" in plan[1]
    assert "will run, since pool will change" in plan[2]
    with pytest.raises(Exception, match="match"):
        planned(lake, [*steps(tmp_path / "other")[:1], *steps(tmp_path / "data")[1:]])
    assert lake.names() == []
    assert not (tmp_path / "data").exists()


def test_what_a_killed_ingest_left_is_work_to_do(lake: Lake, tmp_path: Path, monkeypatch) -> None:
    generate(tmp_path / "data", World(images=100))
    one = steps(tmp_path / "data", "*00.tar")[1:]
    run_recipe(parse_recipe({"lake": lake.uri, "steps": one}), say=lambda line: None, progress=False)
    rows = lake.table("pool").count_rows()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    both = steps(tmp_path / "data", "*0[01].tar")[1:]
    recipe = parse_recipe({"lake": lake.uri, "steps": both})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "_finish", killed)
        run_recipe(recipe, say=lambda line: None, progress=False)
    plan = planned(lake, both)
    assert "commit 1 shards of a run that was cut short" in plan[0]
    assert "will run, since pool will change" in plan[1]
    said: list[str] = []
    outcomes = run_recipe(recipe, say=said.append, progress=False)
    assert [outcome.skipped for outcome in outcomes] == [False, False]
    assert "1 shards of a run that was cut short committed" in said[0]
    assert lake.table("pool").count_rows() > rows
    assert all("up to date" in line for line in planned(lake, both))
