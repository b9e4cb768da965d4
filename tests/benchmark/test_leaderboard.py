"""The leaderboard, with numbers worked out by hand."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from datas3_ray.benchmark import Leaderboard, leaderboard
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import RESULTS

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def trial(deployment: str, method: str, test: float, *, minutes: int = 0, **changes: Any) -> dict[str, Any]:
    """A winning trial of a selection of 50 of 200 rows, made so many minutes after the start."""
    lineage = {"test": f"{deployment}-test", "settings": "s", **changes.pop("lineage", {})}
    return {
        "trial": f"t{deployment}{method}{minutes}",
        "run": "probe",
        "deployment": deployment,
        "method": method,
        "selection": method,
        "selection_fingerprint": method,
        "model": "vit_linear_probe",
        "vector": "lite",
        "hyperparameters": '{"batch_size": 32, "lr": 0.01}',
        "seed": 0,
        "metric": "accuracy",
        "higher_is_better": True,
        "validation": 0.5,
        "test": test,
        "best": True,
        "subset_size": 50,
        "pool_size": 200,
        "train_rows": 45,
        "missing_classes": 0,
        "test_rows": 100,
        "seconds": 1.0,
        "checkpoint": "",
        "lineage": json.dumps(lineage),
        "created": START + timedelta(minutes=minutes),
        **changes,
    }


def board(*trials: dict[str, Any], model: str | None = None) -> Leaderboard:
    return leaderboard(pa.Table.from_pylist(list(trials), schema=RESULTS), model)


def printed(made: Leaderboard) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(made.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


WHOLE = {"subset_size": 200}


def test_table_one_by_hand() -> None:
    made = board(
        trial("north", "near", 0.80),
        trial("south", "near", 0.60),
        trial("north", "random", 0.70),
        trial("south", "random", 0.90, subset_size=120),
        trial("north", "everything", 0.75, **WHOLE),
        trial("south", "everything", 0.65, **WHOLE),
        trial("north", "near", 0.99, best=False, hyperparameters='{"lr": 1}'),
        trial("south", "expert", 0.95),
    )
    assert made.deployments == ("north", "south")
    # The whole pool first, then those with every deployment by their mean, then the rest.
    assert [(row.method, row.reference) for row in made.rows] == [
        ("everything", True),
        ("random", False),
        ("near", False),
        ("expert", False),
    ]
    assert [row.mean for row in made.rows] == pytest.approx([0.70, 0.80, 0.70, 0.95])
    best = {(row.method, name) for row in made.rows for name, cell in row.cells.items() if cell.best}
    assert best == {("near", "north"), ("expert", "south")}
    assert made.rows[1].cells["south"].subset_size == 120
    assert made.rows[2].cells["north"].score == 0.80
    lines = printed(made).splitlines()
    assert any("everything" in line and "75.0" in line and "200" in line for line in lines)
    expert = next(line for line in lines if "expert" in line)
    assert expert.count(" - ") == 2 and "95.0 ★" in expert and "95.0*" in expert


def test_json_rows_carry_the_chosen_hyperparameters() -> None:
    made = board(trial("north", "near", 0.8), trial("south", "random", 0.7))
    rows = made.to_rows()
    assert json.loads(json.dumps(rows)) == rows
    near = next(row for row in rows if row["method"] == "near")
    assert near["deployments"]["south"] is None
    cell = near["deployments"]["north"]
    assert cell["hyperparameters"] == {"batch_size": 32, "lr": 0.01}
    assert (cell["score"], cell["subset_size"], cell["train_rows"], cell["std"], cell["seeds"]) == (
        0.8,
        50,
        45,
        None,
        1,
    )


def test_ties_are_all_best() -> None:
    made = board(trial("north", "a", 0.8), trial("north", "b", 0.8), trial("north", "c", 0.7))
    assert [row.cells["north"].best for row in made.rows] == [True, True, False]


def test_mean_and_deviation_over_seeds() -> None:
    made = board(
        *(trial("north", "near", score, seed=seed) for seed, score in enumerate((0.6, 0.7, 0.8))),
        trial("north", "random", 0.75),
    )
    cell = made.rows[1].cells["north"]
    assert cell.seeds == 3 and cell.score == pytest.approx(0.7) and cell.std == pytest.approx(0.1)
    assert len(cell.trials) == 3
    assert "70.0 ± 10.0" in printed(made) and "standard deviation" in printed(made)


def test_the_latest_trials_count() -> None:
    made = board(trial("north", "near", 0.9), trial("north", "near", 0.4, minutes=1))
    assert made.rows[0].cells["north"].score == 0.4 and made.rows[0].cells["north"].seeds == 1


def test_seeds_of_other_sweeps_join_only_when_all_else_is_equal() -> None:
    joined = board(trial("north", "near", 0.9, seed=1), trial("north", "near", 0.4, minutes=1))
    assert joined.rows[0].cells["north"].seeds == 2
    for change in (
        {"selection_fingerprint": "older"},
        {"lineage": {"settings": "others"}},
        {"metric": "macro_accuracy"},
    ):
        apart = board(trial("north", "near", 0.9, seed=1, **change), trial("north", "near", 0.4, minutes=1))
        assert apart.rows[0].cells["north"].seeds == 1 and apart.rows[0].cells["north"].score == 0.4


def test_scores_of_another_test_table_are_not_compared() -> None:
    made = board(
        trial("north", "old", 0.99, test_rows=7),
        trial("north", "new", 0.5, minutes=1),
        trial("north", "other", 0.4, minutes=1),
    )
    cells = {row.method: row.cells["north"] for row in made.rows}
    assert cells["old"].outdated and not cells["old"].best
    assert cells["new"].best and not cells["new"].outdated
    assert [row.method for row in made.rows] == ["new", "other", "old"] and made.rows[-1].mean is None
    assert "99.0 †" in printed(made) and "another test table" in printed(made)


def test_lower_is_better() -> None:
    error = {"metric": "mse", "higher_is_better": False}
    made = board(trial("north", "a", 3.5, **error), trial("north", "b", 1.25, **error))
    assert [(row.method, row.cells["north"].best) for row in made.rows] == [("b", True), ("a", False)]
    assert "1.25" in printed(made)


def test_models_and_vectors_are_apart() -> None:
    trials = [
        trial("north", "near", 0.8),
        trial("north", "near", 0.6, vector="clip"),
        trial("north", "near", 0.7, model="other", vector=None),
    ]
    made = board(*trials)
    assert [(row.model, row.vector) for row in made.rows] == [
        ("other", ""),
        ("vit_linear_probe", "clip"),
        ("vit_linear_probe", "lite"),
    ]
    assert all(row.cells["north"].best for row in made.rows)
    assert "vit_linear_probe (clip)" in printed(made)
    assert len(board(*trials, model="vit_linear_probe").rows) == 2
    with pytest.raises(UsageError, match="no results of model 'vit_linear_prob'.*Did you mean 'vit_linear_probe'?"):
        board(*trials, model="vit_linear_prob")


def test_names_are_text_and_never_markup() -> None:
    text = printed(board(trial("[bold]north[/bold]", "[red]near", 0.5)))
    assert "[bold]north[/bold]" in text and "[red]near" in text


def test_no_results() -> None:
    made = leaderboard(RESULTS.empty_table())
    assert made.deployments == () and made.to_rows() == []
    assert "no results yet" in printed(made)


def test_what_winners_were_chosen_on_is_said() -> None:
    on_test = trial("north", "near", 0.8, chosen_on="test", test_low=0.7, test_high=0.9, start="hub:vit")
    made = board(on_test, trial("north", "all", 0.7, chosen_on="query"))
    near, every = made.rows[0].cells["north"], made.rows[1].cells["north"]
    assert (near.chosen_on, near.interval, near.start) == ("test", (0.7, 0.9), "hub:vit")
    assert (every.chosen_on, every.interval, every.start) == ("query", None, "scratch")
    text = " ".join(printed(made).split())
    assert "80.0 ‡ ★" in text and "chosen on query" in text and "chosen on the test table itself" in text
    assert "‡" not in printed(board(trial("north", "all", 0.7)))
    seeds = board(*(trial("north", "near", 0.8, seed=seed, test_low=0.7, test_high=0.9) for seed in (0, 1)))
    assert seeds.rows[0].cells["north"].interval is None
