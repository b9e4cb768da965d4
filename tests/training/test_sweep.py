"""Sweeps end to end on a small lake: exact rows, one training a selection, choice on validation, done once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.contract import Outcome, Point
from datas3_ray.training.metrics import accuracy, recode
from datas3_ray.training.probe import load_probe
from datas3_ray.training.results import best_points
from datas3_ray.training.sweep import Deployment, SweepProgress, _open, run_sweep, sweep_is_done
from datas3_ray.training.tuning import Trial

CLASSES = ("ant", "bee", "cow")
# Unscaled vectors and a learning rate that is far too large, so that the grid has a plain winner.
CONFIG = SweepConfig(grid={"batch_size": 16, "lr": (30.0, 0.01)}, epochs=4, seed=(0, 1), normalize=False)


def rows(count: int, prefix: str, seed: int, shuffled_labels: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = (1.2 * np.eye(3, 6)[y] + rng.normal(size=(count, 6))).astype(np.float32)
    told = (y + 1) % 3 if shuffled_labels else y
    return pa.table(
        {
            "id": [f"{prefix}{i:04d}" for i in range(count)],
            "label": [CLASSES[code] for code in told],
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6),
        }
    )


def select(lake: Lake, name: str, keep: np.ndarray, fingerprint: str = "") -> None:
    pool = lake.table("pool")
    ids = pool.to_arrow(["id"]).column("id")
    lineage = {
        "method": "handmade",
        "table": "pool",
        "inputs": {"pool": pool.version},
        "counts": {"kept": int(keep.sum())},
        "fingerprint": fingerprint or name,
    }
    lake.write(name, pa.table({"id": ids, "keep": pa.array(keep)}), kind="selection", lineage=lineage)


def small_lake(folder: Path) -> Lake:
    """A pool of 300, everything and a selection without cows; in the south every label means another class."""
    lake = Lake(folder / "lake")
    lake.add("pool", rows(300, "p", 0))
    lake.add("north", rows(90, "n", 1))
    lake.add("south", rows(60, "s", 2, shuffled_labels=True))
    select(lake, "everything", np.ones(300, bool))
    select(lake, "no-cows", (np.arange(300) % 3 != 2) & (np.arange(300) < 150))
    return lake


DEPLOYMENTS = {
    "north": Deployment("north", "north", None, {"all data": "everything", "near": "no-cows"}),
    "south": Deployment("south", "south", "north", {"all data": "everything"}),
}


class Swept:
    """One sweep, run once for the tests that look at it."""

    def __init__(self, folder: Path) -> None:
        self.lake = small_lake(folder)
        self.storage = str(folder / "runs")
        self.progress: list[SweepProgress] = []
        self.rows = run_sweep(
            self.lake,
            CONFIG,
            name="probe",
            deployments=DEPLOYMENTS,
            storage=self.storage,
            progress=self.progress.append,
        )
        self.trials: list[dict[str, Any]] = self.rows.to_pylist()


@pytest.fixture(scope="module")
def swept(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return Swept(tmp_path_factory.mktemp("sweep"))


def test_one_row_a_deployment_selection_seed_and_point(swept: Swept) -> None:
    assert swept.rows.schema.equals(RESULTS)
    counts = Counter((trial["deployment"], trial["method"]) for trial in swept.trials)
    assert counts == {("north", "all data"): 4, ("north", "near"): 4, ("south", "all data"): 4}
    assert swept.lake.results().num_rows == 12 and swept.lake.kind("results") == "results"
    # Trained once for both deployments: 2 selections x 2 seeds x 2 points.
    assert len({trial["trial"] for trial in swept.trials}) == 8
    assert sorted({progress.done for progress in swept.progress}) == list(range(9))
    states = {trial.state for progress in swept.progress for trial in progress.trials}
    assert states == {"running", "done"}
    assert {trial.epoch for progress in swept.progress for trial in progress.trials} >= {1, 2, 3, 4}
    assert swept.progress[-1].total == 8 and swept.progress[-1].best == max(t["validation"] for t in swept.trials)
    by_trial: dict[str, set[tuple[float, str]]] = {}
    for trial in swept.trials:
        by_trial.setdefault(trial["trial"], set()).add((trial["validation"], trial["checkpoint"]))
    assert all(len(same) == 1 for same in by_trial.values())


def test_counts_and_lineage(swept: Swept) -> None:
    for trial in swept.trials:
        lineage = json.loads(trial["lineage"])
        near = trial["method"] == "near"
        assert (trial["subset_size"], trial["pool_size"]) == (100 if near else 300, 300)
        assert trial["missing_classes"] == (1 if near else 0)
        assert lineage["missing_classes"] == (["cow"] if near else [])
        assert trial["train_rows"] + lineage["counts"]["validation"] == trial["subset_size"]
        assert trial["test_rows"] == (90 if trial["deployment"] == "north" else 60)
        assert lineage["inputs"] == {"pool": 1, trial["deployment"]: 1}
        assert lineage["query"] == ("north" if trial["deployment"] == "south" else None)
        assert ("recall" in lineage) == trial["best"]
        if near:
            assert trial["test"] <= 2 / 3
            assert not trial["best"] or lineage["recall"]["cow"] == 0.0


def test_the_winner_is_chosen_on_validation_even_where_the_test_disagrees(swept: Swept) -> None:
    for deployment, method in (("north", "all data"), ("north", "near"), ("south", "all data")):
        trials = [t for t in swept.trials if (t["deployment"], t["method"]) == (deployment, method)]
        worth: dict[str, dict[str, float]] = {}
        for grid in {t["hyperparameters"] for t in trials}:
            members = [t for t in trials if t["hyperparameters"] == grid]
            worth[grid] = {key: float(np.mean([t[key] for t in members])) for key in ("validation", "test")}
        chosen = {t["hyperparameters"] for t in trials if t["best"]}
        assert chosen == {max(worth, key=lambda grid: worth[grid]["validation"])}
        assert [t["seed"] for t in trials if t["best"]] == [0, 1]
        if deployment == "south":
            # What is right in the pool is wrong here, so the better model has the lower score.
            assert worth[chosen.pop()]["test"] < max(point["test"] for point in worth.values())


def test_checkpoints_give_the_scores(swept: Swept) -> None:
    north = swept.lake.table("north").to_arrow()
    x = np.asarray(north.column("lite").to_pylist(), dtype=np.float32)
    codes = np.array([CLASSES.index(label) for label in north.column("label").to_pylist()])
    for trial in swept.trials:
        if trial["deployment"] == "north":
            probe = load_probe(trial["checkpoint"])
            assert accuracy(probe.predict(x), recode(codes, CLASSES, probe.classes)) == trial["test"]


def test_tensorboard_reads_every_trial(swept: Swept) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = {Path(trial["checkpoint"]).parents[2] for trial in swept.trials}
    (run,) = runs
    folders = {next(run.glob(f"{trial['trial'][-4:]}-*")): trial for trial in swept.trials}
    assert len(folders) == 8
    for folder, trial in folders.items():
        assert list(folder.glob("events.out.tfevents.*"))
        events = EventAccumulator(str(folder)).Reload()
        curve = [event.value for event in events.Scalars("ray/tune/validation/accuracy")]
        lineage = json.loads(trial["lineage"])
        assert len(curve) == lineage["epochs"]
        assert curve[lineage["epoch"] - 1] == pytest.approx(trial["validation"])
        assert events.Scalars("ray/tune/best/accuracy")[-1].value == pytest.approx(trial["validation"])


def test_a_second_run_is_skipped(swept: Swept) -> None:
    version = swept.lake.table("results").version

    def never(progress: SweepProgress) -> None:
        raise AssertionError("a finished sweep was run again")

    same = {"name": "probe", "deployments": DEPLOYMENTS}
    assert sweep_is_done(swept.lake, CONFIG, **same)
    again = run_sweep(
        swept.lake,
        CONFIG.model_copy(update={"max_concurrent": 1}),
        storage=swept.storage,
        progress=never,
        **same,
    )
    assert again.equals(swept.rows)
    assert swept.lake.table("results").version == version
    assert len(list(Path(swept.storage).iterdir())) == 1
    assert not sweep_is_done(swept.lake, CONFIG.model_copy(update={"epochs": 5}), **same)
    assert not sweep_is_done(swept.lake, CONFIG, name="other", deployments=DEPLOYMENTS)


def test_weights_that_were_written_over_make_another_sweep(swept: Swept, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    grid = {"batch_size": (8,), "lr": (0.1,)}
    config = SweepConfig(model="resnet50", weights=str(weights), grid=grid)
    marks = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        sweep = _open(swept.lake, config, "sweep", DEPLOYMENTS)
        marks.append(sweep.fingerprint)
        weights.write_bytes(b"while it trains")
        assert sweep.fingerprint == marks[-1]
        assert SweepConfig.model_validate(sweep.config.settings()).weights == sweep.config.weights
    assert marks[0] != marks[1]


def test_the_leaderboard_of_a_sweep(swept: Swept) -> None:
    board = leaderboard(swept.rows)
    assert board.deployments == ("north", "south")
    assert [(row.method, row.reference) for row in board.rows] == [("all data", True), ("near", False)]
    best = [t["test"] for t in swept.trials if t["deployment"] == "north" and t["method"] == "near" and t["best"]]
    assert board.rows[1].cells["north"].score == pytest.approx(np.mean(best))
    assert board.rows[1].cells["north"].subset_size == 100
    assert set(board.rows[1].cells) == {"north"}


def test_a_failed_trial_is_recorded_and_the_others_go_on(tmp_path: Path, ray_session: None) -> None:
    lake = small_lake(tmp_path / "failing")
    config = SweepConfig(grid={"batch_size": 8, "lr": (3e37, 0.01)}, epochs=2, max_concurrent=1, retries=1)
    south = {"south": DEPLOYMENTS["south"]}
    told: list[SweepProgress] = []
    rows = run_sweep(lake, config, name="bad", deployments=south, storage=str(tmp_path / "r"), progress=told.append)
    failed, done = rows.to_pylist()
    assert (failed["status"], failed["test"], failed["validation"], failed["best"]) == ("failed", None, None, False)
    assert "a smaller lr may" in failed["error"]
    assert (done["status"], done["error"], done["best"]) == ("done", None, True)
    assert told[-1].failed == 1 and told[-1].done == 2 and "1 failed" in str(told[-1])
    assert leaderboard(rows).rows[0].cells["south"].score == done["test"]
    assert sweep_is_done(lake, config, name="bad", deployments=south)


def test_where_every_trial_fails_nothing_is_written(tmp_path: Path, ray_session: None) -> None:
    lake = small_lake(tmp_path / "failing")
    config = SweepConfig(grid={"batch_size": 8, "lr": (3e37, 2e37)}, epochs=2, max_concurrent=1, retries=0)
    with pytest.raises(Datas3Error, match=r"trial everything batch_size=8 lr=3e\+37 seed=0 failed, as all 2 did"):
        run_sweep(lake, config, name="bad", deployments={"south": DEPLOYMENTS["south"]}, storage=str(tmp_path / "r"))
    assert not lake.exists("results")


def test_a_sweep_that_was_killed_goes_on_with_the_trials_that_are_left(tmp_path: Path, ray_session: None) -> None:
    """The driver is killed for real when some trials have finished; the next run trains only the others."""
    import os
    import signal
    import subprocess
    import sys
    import time

    lake = small_lake(tmp_path)
    config = SweepConfig(grid={"batch_size": 4, "lr": (0.01, 0.02, 0.03, 0.04)}, epochs=60, patience=60, seed=(0, 1))
    script = (
        "import sys\n"
        "from datas3_ray import Lake\n"
        "from datas3_ray.training.config import SweepConfig\n"
        "from datas3_ray.training.sweep import Deployment, run_sweep\n"
        "config = SweepConfig.model_validate_json(sys.argv[3])\n"
        "south = Deployment('south', 'south', None, {'all data': 'everything'})\n"
        "run_sweep(Lake(sys.argv[1]), config, name='long', deployments={'south': south}, storage=sys.argv[2])\n"
    )
    storage = tmp_path / "runs"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, lake.uri, str(storage), config.model_dump_json()],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while len(list(storage.glob("long-*/trials/*/record.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in storage.glob("long-*/trials/*/record.json")}
    assert 2 <= len(finished) < 8
    assert not Lake(lake.uri).exists("results")
    south = {"south": Deployment("south", "south", None, {"all data": "everything"})}
    rows = run_sweep(Lake(lake.uri), config, name="long", deployments=south, storage=str(storage))
    assert sorted(rows.column("trial").to_pylist()) == sorted(set(rows.column("trial").to_pylist()))
    assert rows.num_rows == 8 and set(rows.column("status").to_pylist()) == {"done"}
    assert all(file.stat().st_mtime_ns == at for file, at in finished.items())
    whole = run_sweep(Lake(lake.uri), config, name="long", deployments=south, storage=str(tmp_path / "other"))
    assert whole.equals(rows)


def test_random_search_trains_some_points_and_halving_stops_the_worse(tmp_path: Path, ray_session: None) -> None:
    lake = small_lake(tmp_path)
    south = {"south": DEPLOYMENTS["south"]}
    grid = {"batch_size": (8, 16), "lr": (1e-6, 1e-5, 0.02, 0.03)}
    some = SweepConfig(grid=grid, search="random", trials=3, epochs=2)
    assert len(some.points()) == 3
    assert some.points() == SweepConfig(grid=grid, search="random", trials=3, epochs=2).points()
    rows = run_sweep(lake, some, name="some", deployments=south, storage=str(tmp_path / "r"))
    assert rows.num_rows == 3
    halving = SweepConfig(grid=grid, search="asha", epochs=9, max_concurrent=2, normalize=False)
    rows = run_sweep(lake, halving, name="halving", deployments=south, storage=str(tmp_path / "r"))
    states = Counter(rows.column("status").to_pylist())
    assert states["done"] >= 1 and states["stopped"] >= 1 and states.total() == 8
    for row in rows.to_pylist():
        assert (row["test"] is None) == (row["status"] == "stopped")
        assert row["validation"] is not None
    (best,) = [row for row in rows.to_pylist() if row["best"]]
    assert best["status"] == "done"


@pytest.mark.parametrize("chosen_on", ["query", "test"])
def test_winners_may_be_chosen_on_the_query_or_as_published_on_the_test(swept: Swept, chosen_on: str) -> None:
    changed = {"validation_on": "query"} if chosen_on == "query" else {"report_best": "test"}
    config = CONFIG.model_copy(update=changed)
    # The labels of the query in the south are those of the pool, its test's are shifted: the two disagree.
    south = {"south": DEPLOYMENTS["south"]}
    rows = run_sweep(swept.lake, config, name=chosen_on, deployments=south, storage=swept.storage)
    assert set(rows.column("chosen_on").to_pylist()) == {chosen_on}
    worth: dict[str, list[float]] = {}
    for row in rows.to_pylist():
        lineage = json.loads(row["lineage"])
        score = lineage["query_score"] if chosen_on == "query" else row["test"]
        worth.setdefault(row["hyperparameters"], []).append(score)
    winner = max(worth, key=lambda grid: np.mean(worth[grid]))
    assert {row["hyperparameters"] for row in rows.to_pylist() if row["best"]} == {winner}


def test_intervals_hold_the_score(swept: Swept) -> None:
    for row in swept.trials:
        assert row["test_low"] <= row["test"] <= row["test_high"]
        assert row["test_high"] - row["test_low"] < 0.4
        assert (row["task"], row["start"], row["status"], row["chosen_on"]) == (
            "classification",
            "scratch",
            "done",
            "validation",
        )


def test_rows_of_unknown_classes_are_counted_and_dropped_beside(swept: Swept) -> None:
    dropped = 0
    for row in swept.trials:
        if row["missing_classes"] == 0:
            assert (row["test_seen"], row["test_dropped"]) == (row["test"], 0)
        else:  # a third of the test rows are cows, of which every one is an error
            dropped += 1
            assert row["test_dropped"] == row["test_rows"] // 3
            assert row["test_seen"] == pytest.approx(row["test"] * 3 / 2)
    assert dropped == 4


def test_results_of_an_earlier_version_get_the_new_columns(swept: Swept, lake: Lake) -> None:
    old = swept.rows.drop_columns(["task", "start", "status", "error", "test_low", "test_high", "chosen_on"])
    old = old.drop_columns(["test_seen", "test_dropped"])
    lake.write("results", old, kind="results", mode="append")
    assert lake.results().schema.names == RESULTS.names
    lake.append_results(swept.rows)
    results = lake.results()
    assert results.num_rows == 24
    assert results.column("status").to_pylist() == [None] * 12 + ["done"] * 12
    assert [row.method for row in leaderboard(results).rows] == ["all data", "near"]


def trial(
    index: int, validation: float, test: float, lr: float, seed: int = 0, selection: str = "s", loss: float = 0.5
) -> Trial:
    point = Point(index, selection, seed, {"batch_size": 32, "lr": lr})
    return Trial(point, Outcome(1, 1, validation, loss, 0.0), "")


def test_best_points_ties_seeds_and_selections() -> None:
    assert best_points([trial(1, 0.8, 0.9, 0.1), trial(0, 0.8, 0.1, 0.2)], "accuracy") == {0}
    assert best_points([trial(0, 0.8, 0.9, 0.1, loss=0.7), trial(1, 0.8, 0.1, 0.2, loss=0.6)], "accuracy") == {1}
    assert best_points([trial(0, 0.9, 0.9, 0.1, loss=0.7), trial(1, 0.8, 0.1, 0.2, loss=0.6)], "accuracy") == {0}
    several = [
        trial(0, 0.9, 0.0, 0.1, seed=0),
        trial(1, 0.7, 0.0, 0.2, seed=0),
        trial(2, 0.5, 1.0, 0.1, seed=1),
        trial(3, 0.8, 1.0, 0.2, seed=1),
        trial(4, 0.1, 0.0, 0.1, selection="t"),
    ]
    assert best_points(several, "accuracy") == {1, 3, 4}


@pytest.mark.parametrize(
    ("deployments", "sentence"),
    [
        ({}, "sweep 'probe' has no deployments"),
        ({"a": Deployment("a", "north")}, "deployment 'a' of sweep 'probe' has no selections"),
        ({"a": Deployment("b", "north", None, {"x": "everything"})}, "lists deployment 'b' under the name 'a'"),
        ({"a": Deployment("a", "nroth", None, {"x": "everything"})}, "no table 'nroth'.*Did you mean 'north'?"),
        ({"a": Deployment("a", "north", "q", {"x": "everything"})}, "no table 'q'"),
        ({"a": Deployment("a", "north", None, {"x": "everythin"})}, "no table 'everythin'"),
        ({"a": Deployment("a", "north", None, {"x": "pool"})}, "'pool' is a table of kind image, not a selection"),
        ({"a": Deployment("a", "everything", None, {"x": "everything"})}, "an image table is needed"),
        ({"a": Deployment("a", "pool", None, {"x": "no-cows"})}, "keeps 100 rows of test table 'pool'"),
        ({"a": Deployment("a", "blank", None, {"x": "no-cows"})}, "test table 'blank' has no row with both"),
        ({"a": Deployment("a", "plain", None, {"x": "no-cows"})}, "column 'lite' of table 'plain' is not there"),
        ({"a": Deployment("a", "north", None, {"x": "cows"})}, r"'cows' holds one class only \('cow', 100 rows\)"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    ray_session: None, swept: Swept, tmp_path: Path, deployments: dict[str, Deployment], sentence: str
) -> None:
    lake = swept.lake
    if not lake.exists("blank"):
        north = rows(30, "b", 5)
        lake.add("blank", north.set_column(1, "label", pa.nulls(30, pa.string())))
        lake.add("plain", north.drop_columns("lite"))
        select(lake, "cows", np.arange(300) % 3 == 2)
    storage = tmp_path / "runs"
    with pytest.raises(UsageError, match=sentence):
        run_sweep(lake, CONFIG, name="probe", deployments=deployments, storage=str(storage))
    assert not storage.exists()


def test_a_query_that_shares_rows_with_the_test_chooses_nothing(swept: Swept, tmp_path: Path) -> None:
    both = {"south": Deployment("south", "south", "south", {"all data": "everything"})}
    config = CONFIG.model_copy(update={"validation_on": "query"})
    with pytest.raises(UsageError, match=r"query table 'south' of deployment 'south' has 60 rows of its test table"):
        run_sweep(swept.lake, config, name="leak", deployments=both, storage=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
