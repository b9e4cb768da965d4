"""Trying many selections for one deployment: judged on the query's other half, the test left alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import yaml

from datas3_ray import Lake
from datas3_ray.auto import AutoConfig, Candidate, default_candidates, ranked, run_auto, split_query
from datas3_ray.benchmark import leaderboard
from datas3_ray.errors import UsageError
from datas3_ray.recipe import load_recipe, run_recipe
from datas3_ray.training.config import SweepConfig

PROBE = SweepConfig(grid={"batch_size": 32, "lr": 0.02}, epochs=15)
CANDIDATES = ({"random": {"size": [0.1, 0.3], "seed": 2}}, {"image_align": {"column": "lite", "x": 3, "size": 0.3}})


def rows(count: int, prefix: str, seed: int, here: bool) -> pa.Table:
    """Two classes that look one way here and the other way round elsewhere; elsewhere is three quarters of a pool."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    place = np.full(count, here) if here else rng.random(count) < 0.25
    x = np.zeros((count, 8))
    x[:, 0] = np.where(place, 3, -3)
    x[:, 1] = np.where(place, 1, -1) * (2 * y - 1)
    x += 0.6 * rng.normal(size=x.shape)
    return pa.table(
        {
            "id": [f"{prefix}{i:04d}" for i in range(count)],
            "label": pa.array(np.array(["ant", "bee"])[y]),
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), 8),
        }
    )


@pytest.fixture
def filled(lake: Lake) -> Lake:
    lake.add("pool", rows(400, "p", 0, here=False))
    lake.add("query", rows(60, "q", 1, here=True))
    lake.add("test", rows(80, "t", 2, here=True))
    return lake


def config(**changes: object) -> AutoConfig:
    values = {"pool": "pool", "query": "query", "test": "test", "column": "lite", "candidates": CANDIDATES}
    return AutoConfig(**{**values, "probe": PROBE, "final": PROBE, **changes})


def test_the_best_on_the_other_half_is_trained_and_nothing_is_done_twice(filled: Lake, tmp_path) -> None:
    found = run_auto(filled, config(), name="here", storage=str(tmp_path), progress=lambda progress: None)
    assert [one.label for one in found.candidates][0] == "image_align"
    assert {one.label for one in found.candidates} == {"random size=0.1", "random size=0.3", "image_align"}
    assert found.winner.score > found.candidates[1].score
    (trial,) = found.results.to_pylist()
    assert (trial["deployment"], trial["method"], trial["selection"]) == ("here", "auto", found.winner.selection)
    assert trial["test"] > 0.7
    ask, judge = (
        set(filled.table(f"here.{part}").to_arrow(["id"]).column("id").to_pylist()) for part in ("ask", "judge")
    )
    assert not ask & judge
    assert len(ask) == len(judge) == 30
    # The probes' trials are apart: the leaderboard has the deployment alone.
    assert leaderboard(filled.results()).deployments == ("here",)
    assert filled.results("here.probes").num_rows == 3
    before = {name: filled.table(name).version for name in filled.names()}
    again = run_auto(filled, config(), name="here", storage=str(tmp_path), progress=lambda progress: None)
    assert again.candidates == found.candidates
    assert {name: filled.table(name).version for name in filled.names()} == before


def test_as_a_step_of_a_recipe(filled: Lake, tmp_path) -> None:
    body = {
        "from": "pool",
        "query": "query",
        "test": "test",
        "column": "lite",
        "candidates": list(CANDIDATES),
        "probe": {"grid": {"batch_size": 32, "lr": 0.02}, "epochs": 15},
        "config": {"grid": {"batch_size": 32, "lr": 0.02}, "epochs": 15},
    }
    recipe = {"lake": filled.uri, "output": str(tmp_path / "out"), "steps": [{"name": "here", "auto": body}]}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    said: list[str] = []
    run_recipe(load_recipe(str(file)), progress=False, say=said.append)
    assert any("image_align of 3 candidates" in line for line in said)
    assert filled.results().num_rows == 1


def test_the_smaller_of_equals_wins() -> None:
    probes = pa.table(
        {
            "method": ["a", "b", "c", "c"],
            "selection": ["sa", "sb", "sc", "sc"],
            "subset_size": [30, 20, 10, 10],
            "test": [0.8, 0.8, 0.9, 0.5],
            "best": [True, True, True, True],
            "metric": ["accuracy"] * 4,
        }
    )
    assert ranked(probes) == (
        Candidate("b", "sb", 20, 0.8),
        Candidate("a", "sa", 30, 0.8),
        Candidate("c", "sc", 10, 0.7),
    )


def test_candidates_are_the_combinations_of_what_is_listed() -> None:
    assert len(config(candidates=default_candidates("lite")).selectors()) == 3 + 6 + 3 + 3
    assert len(config(candidates=()).selectors()) == 15
    assert list(config().selectors()) == ["random size=0.1", "random size=0.3", "image_align"]
    with pytest.raises(UsageError, match="a candidate names one method, got random, expert"):
        config(candidates=({"random": {}, "expert": {}},)).selectors()


def test_mistakes_are_told_before_anything_is_selected(filled: Lake, tmp_path) -> None:
    before = filled.names()
    wrong = ({"image_align": {"column": "late", "x": 1, "size": 0.5}},)
    with pytest.raises(UsageError, match="column 'late' of table 'pool' is not there"):
        run_auto(filled, config(candidates=wrong), name="here", storage=str(tmp_path))
    assert set(filled.names()) - set(before) <= {"here.ask", "here.judge"}
    filled.add("bare", rows(9, "b", 3, here=True).set_column(1, "label", pa.nulls(9, pa.string())))
    with pytest.raises(UsageError, match="'bare' has 9 rows, 0 with a 'label'; it needs one labelled row"):
        split_query(filled, "bare", "here", "label", 0)


def test_candidates_of_one_method_do_not_take_each_others_place() -> None:
    def labels(*candidates: dict[str, dict[str, object]]) -> dict[str, object]:
        return {label: one.size for label, one in config(candidates=candidates).selectors().items()}

    assert labels({"random": {"size": 0.1}}, {"random": {"size": 0.2}}) == {
        "random size=0.1": 0.1,
        "random size=0.2": 0.2,
    }
    assert set(labels({"random": {"size": 0.1}}, {"random": {"size": 0.1, "seed": 3}})) == {"random", "random seed=3"}
    # What the label of a list shows may be that of another candidate too.
    assert set(
        labels({"random": {"size": [0.1, 0.2], "seed": 2}}, {"random": {"size": 0.1}}, {"random": {"size": 0.2}})
    ) == {"random size=0.1 seed=2", "random size=0.2 seed=2", "random size=0.1", "random size=0.2"}
    assert set(labels({"random": {"size": 0.1}}, {"random": {"size": 0.1, "seed": 0}})) == {"random"}
    assert set(labels({"random": {"size": 1}}, {"random": {"size": 1.0}})) == {"random size=1", "random size=1.0"}


def test_the_judges_follow_the_label(filled: Lake) -> None:
    table = filled.table("query").to_arrow()
    some = pa.array([name if i % 2 else None for i, name in enumerate(table.column("label").to_pylist())])
    filled.write("half", table.append_column("species", some), kind="image")
    split_query(filled, "half", "here", "label", 0)
    ask, every = filled.table("here.ask").version, filled.table("here.judge").count_rows()
    split_query(filled, "half", "here", "species", 0)
    assert filled.table("here.judge").count_rows("species IS NULL") == 0
    assert 0 < filled.table("here.judge").count_rows() < every
    assert filled.table("here.ask").version == ask
