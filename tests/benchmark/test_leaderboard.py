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
    # The other grid point of "near" is better on test, so that both scorings are shown.
    assert expert.count(" - ") == 3 and "95.0 ★" in expert and "95.0*" in expert


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


def grid(method: str, lr: float, validation: float, test: float, seen: float, **changes: Any) -> dict[str, Any]:
    """A trial in the north at one learning rate; ten of a hundred test rows are of classes the subset lacks."""
    known = {"validation": validation, "test_seen": seen, "test_dropped": 10, "missing_classes": 1, "best": False}
    made = trial("north", method, test, hyperparameters=json.dumps({"lr": lr}), **{**known, **changes})
    return {**made, "trial": f"{method}-{lr}-{made['seed']}"}


def test_paper_style_is_the_best_on_test_over_the_rows_of_known_classes() -> None:
    made = board(
        grid("near", 0.1, validation=0.9, test=0.60, seen=0.66, best=True),
        grid("near", 0.01, validation=0.8, test=0.70, seen=0.77),
        grid("near", 0.001, validation=0.7, test=0.72, seen=0.75),  # best on test only with all rows counted
        trial("north", "all", 0.71, **WHOLE),
    )
    near = next(row for row in made.rows if row.method == "near")
    cell = near.cells["north"]
    assert (cell.score, cell.hyperparameters) == (0.60, {"lr": 0.1})
    assert cell.paper_style is not None
    assert (cell.paper_style.score, cell.paper_style.hyperparameters) == (0.77, {"lr": 0.01})
    assert (cell.paper_style.dropped, cell.paper_style.trials) == (10, ("near-0.01-0",))
    assert (near.mean, near.paper_style_mean) == (0.60, 0.77)
    # Each scoring has its own best.
    every = made.rows[0].cells["north"]
    assert every.best and every.paper_style is not None and not every.paper_style.best
    assert not cell.best and cell.paper_style.best
    assert every.paper_style.score == 0.71 and every.paper_style.dropped == 0
    assert made.scorings_differ and "paper-style" in printed(made)
    row = next(row for row in made.to_rows() if row["method"] == "near")
    assert row["deployments"]["north"]["paper_style"]["score"] == 0.77


def test_paper_style_takes_one_grid_point_for_all_seeds() -> None:
    made = board(
        *(grid("near", 0.1, 0.9, 0.5, seen, seed=seed, best=True) for seed, seen in enumerate((0.9, 0.1))),
        *(grid("near", 0.01, 0.8, 0.5, seen, seed=seed) for seed, seen in enumerate((0.6, 0.7))),
        # One seed of it failed: a point with every seed is preferred to it.
        grid("near", 0.001, 0.7, 0.5, 0.99),
    )
    style = made.rows[0].cells["north"].paper_style
    assert style is not None and style.score == pytest.approx(0.65) and style.std == pytest.approx(0.0707, abs=1e-4)
    assert style.seeds == 2 and style.hyperparameters == {"lr": 0.01} and len(style.trials) == 2


def test_paper_style_of_errors_is_the_lowest() -> None:
    error = {"metric": "mse", "higher_is_better": False, "missing_classes": 0, "test_dropped": 0}
    made = board(
        grid("a", 0.1, 2.0, 3.0, 3.0, best=True, **error),
        grid("a", 0.2, 2.5, 1.5, 1.5, **error),
        grid("b", 0.1, 2.0, 2.0, 2.0, best=True, **error),
    )
    found = {row.method: row.cells["north"].paper_style for row in made.rows}
    assert found["a"] is not None and found["a"].score == 1.5 and found["a"].best
    assert found["b"] is not None and not found["b"].best


def test_paper_style_is_not_known_where_it_was_not_written_and_classes_are_missing() -> None:
    made = board(trial("north", "old", 0.7, missing_classes=3), trial("north", "same", 0.6))
    styles = {row.method: row.cells["north"].paper_style for row in made.rows}
    assert styles["old"] is None and styles["same"] is not None and styles["same"].score == 0.6
    assert not made.scorings_differ and "paper-style" not in printed(made)
    # Every test row was dropped: there is no score, and the honest one does not take its place.
    nothing = board(trial("north", "none", 0.0, test_dropped=100, missing_classes=2)).rows[0].cells["north"]
    assert nothing.paper_style is None
    assert board(trial("north", "old", 0.7, missing_classes=3)).rows[0].paper_style_mean is None


def test_older_sweeps_of_the_same_method_give_no_paper_style_score() -> None:
    made = board(
        grid("near", 0.1, 0.9, 0.5, 0.6, best=True, minutes=1),
        grid("near", 0.2, 0.9, 0.9, 0.99, best=True, selection_fingerprint="older"),
    )
    style = made.rows[0].cells["north"].paper_style
    assert style is not None and style.score == 0.6


def test_the_scoring_to_print_can_be_chosen() -> None:
    made = board(grid("near", 0.1, 0.9, 0.60, 0.66, best=True, test_low=0.55, test_high=0.65))
    from datas3_ray.benchmark.tables import scorings

    assert scorings(made) == ("honest", "paper") and scorings(made, "honest") == ("honest",)
    with pytest.raises(UsageError, match="no scoring 'fair'; there are: honest, paper, both"):
        scorings(made, "fair")  # type: ignore[arg-type]
    text = printed(made)
    assert "60.0 ★" in text and "66.0 ★" in text and "55.0–65.0" in text


def test_both_scorings_are_printed_where_they_fit() -> None:
    from rich.console import Console

    from datas3_ray.benchmark.tables import table_for

    made = board(grid("near", 0.1, 0.9, 0.60, 0.66, best=True))
    for width, both in ((200, True), (44, False)):
        console = Console(file=io.StringIO(), width=width)
        console.print(table_for(made, width))
        text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
        assert ("66.0 ★" in text) == both and ("fit no more" in text) != both and "60.0 ★" in text
    assert "66.0" in "".join(str(cell) for column in table_for(made, 44, "both").columns for cell in column.cells)


PAPER = """# figures made up for a test
dataset,deployment,method,metric,score,subset_size,note
geode,Nigeria,everything,accuracy,0.9,,
geode,nigeria,their method,accuracy,0.91,12000,new
"""


def test_paper_rows_stand_beside_ours_and_are_never_best(tmp_path: Any) -> None:
    from datas3_ray.benchmark import read_paper
    from datas3_ray.benchmark.tables import csv_text, markdown

    (tmp_path / "paper.csv").write_text(PAPER)
    trials = [trial("nigeria", "near", 0.8), trial("attic", "near", 0.7)]
    results = pa.Table.from_pylist(trials, schema=RESULTS)
    made = leaderboard(results, paper=read_paper(tmp_path / "paper.csv"))
    assert [row.method for row in made.paper] == ["everything", "query_set", "expert", "their method"]
    assert all(set(row.cells) == {"nigeria"} for row in made.paper)
    every = made.paper[0].cells["nigeria"]
    assert (every.score, every.subset_size) == (0.9, 53000)  # the score is the file's, the size the package's
    assert made.rows[0].cells["nigeria"].best
    lines = printed(made).splitlines()
    line = next(line for line in lines if "query_set (paper)" in line)
    assert "500" in line and " - " in line
    assert "90.0" in next(line for line in lines if "everything (paper)" in line)
    rows = made.to_rows()
    assert [row["source"] for row in rows] == ["lake"] + ["paper"] * 4
    assert json.loads(json.dumps(rows)) == rows
    assert rows[1]["deployments"]["nigeria"]["score"] == 0.9 and rows[1]["deployments"]["attic"] is None
    text = markdown(made)
    assert "| everything \\(paper\\) | - | 90.0 | 53,000 |" in text
    table = csv_text(made).splitlines()
    assert "paper,,,their method,,nigeria,accuracy,,,,,,,,,,,0.91," in "\n".join(table)
    assert (
        leaderboard(pa.Table.from_pylist([trial("attic", "near", 1)], schema=RESULTS), paper=read_paper()).paper == ()
    )


def test_the_shipped_table_has_every_deployment_and_no_score() -> None:
    from datas3_ray.benchmark import read_paper

    cells = read_paper()
    assert len({cell.deployment for cell in cells}) == 20 and len(cells) == 60
    assert {cell.score for cell in cells} == {None} and all(cell.subset_size for cell in cells)
    by_key = {(cell.deployment, cell.method): cell for cell in cells}
    assert by_key["se_asia", "query_set"].subset_size == 309
    assert by_key["gulf_of_mexico", "expert"].metric == "map50"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("0.91", "91"), "line 4: score = 91 is not allowed: accuracy is a share of 1"),
        (("0.91", "n/a"), "line 4: score = 'n/a' is not allowed"),
        (("12000", "12k"), "line 4: subset_size = '12k' is not allowed"),
        (("12000", "0.5"), "whole number of rows"),
        (("12000,new", "12000"), "line 4: it has 6 values and needs 7"),
        (("their method", "everything"), "'everything' in nigeria is there twice"),
        (("accuracy,0.91", "acc,0.91"), "no metric 'acc'"),
        (("their method", ""), "line 4: method is empty"),
        (("dataset,", "data,"), "its columns must be dataset, deployment"),
    ],
)
def test_mistakes_in_a_paper_file(tmp_path: Any, changed: tuple[str, str], says: str) -> None:
    from datas3_ray.benchmark import read_paper

    (tmp_path / "paper.csv").write_text(PAPER.replace(*changed))
    with pytest.raises(UsageError, match=says.replace("(", "\\(")):
        read_paper(tmp_path / "paper.csv")
    with pytest.raises(UsageError, match="no such file"):
        read_paper(tmp_path / "none.csv")


def test_names_are_text_in_markdown() -> None:
    from datas3_ray.benchmark.tables import markdown

    text = markdown(board(trial("a|b\n# c", "*near* <script>", 0.5, test_low=0.4, test_high=0.6)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}  # method, two scores, size, two means
    assert "<script>" not in text and "\\*near\\*" in text and "**50.0 ★** (40.0–60.0)" in text


def test_a_query_set_kept_whole_is_no_reference() -> None:
    made = board(
        trial("north", "everything", 0.75, **WHOLE),
        trial("north", "query_set", 0.80, subset_size=30, pool_size=30),
    )
    assert {row.method: row.reference for row in made.rows} == {"everything": True, "query_set": False}
