"""Early stopping: a trial is compared with those of its own selection and seed, and one of each is always scored."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from training import pictures

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.errors import Datas3Error
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.contract import Outcome, Point
from datas3_ray.training.halving import Halving, check_scored
from datas3_ray.training.sweep import Deployment, SweepProgress, run_sweep
from datas3_ray.training.tuning import Trial


def vectors(count: int, prefix: str, noisy: int = 0) -> pa.Table:
    """Rows whose vector says the class; of the last ``noisy`` it says nothing."""
    rng = np.random.default_rng(count)
    y = np.arange(count) % 3
    x = (1.5 * np.eye(3, 6)[y] + rng.normal(size=(count, 6))).astype(np.float32)
    y[count - noisy :] = rng.integers(0, 3, noisy)
    return pa.table(
        {
            "id": [f"{prefix}{i:04d}" for i in range(count)],
            "label": [f"class {code}" for code in y],
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6),
        }
    )


def test_a_selection_that_is_harder_is_not_stopped_as_a_whole(tmp_path: Path, ray_session: None) -> None:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", vectors(300, "p", noisy=150))
    lake.add("test", vectors(60, "t"))
    pictures.select(lake, "clean", np.arange(300) < 150)
    pictures.select(lake, "noisy", np.arange(300) >= 150)
    config = SweepConfig(
        grid={"batch_size": (8, 16), "lr": (0.001, 0.01, 0.02)},
        search="asha",
        epochs=9,
        seed=(0, 1),
        validation=0.3,
        max_concurrent=1,
    )
    there = {"there": Deployment("there", "test", None, {"clean": "clean", "noisy": "noisy"})}
    found = run_sweep(lake, config, name="both", deployments=there, storage=str(tmp_path / "r"))
    states = Counter((row["method"], row["seed"], row["status"]) for row in found.to_pylist())
    assert states.total() == 24
    assert all(states[method, seed, "done"] for method in ("clean", "noisy") for seed in (0, 1))
    assert sum(count for key, count in states.items() if key[2] == "stopped")
    assert {row["method"] for row in found.to_pylist() if row["best"]} == {"clean", "noisy"}
    assert {row.method for row in leaderboard(found).rows} == {"clean", "noisy"}


def test_a_budget_of_samples_has_more_epochs_than_it_says(tmp_path: Path, ray_session: None) -> None:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", pictures.rows(9, "p", 0))
    lake.add("test", pictures.rows(6, "t", 1))
    pictures.select(lake, "all", np.ones(9, bool))
    config = SweepConfig(
        model="vit_lora",
        options={"architecture": "test_vit", "image_size": 32},
        grid={"batch_size": 8, "lr": 0.001},
        search="asha",
        epochs=1,
        samples=25,  # 3 epochs
    )
    there = {"there": Deployment("there", "test", None, {"all": "all"})}
    (row,) = run_sweep(lake, config, name="samples", deployments=there, storage=str(tmp_path / "r")).to_pylist()
    assert (row["status"], row["best"]) == ("done", True)
    assert row["test"] is not None


def test_an_interrupted_trial_is_not_one_that_the_search_gave_up_on(tmp_path: Path, ray_session: None) -> None:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", vectors(300, "p"))
    lake.add("test", vectors(60, "t"))
    pictures.select(lake, "all", np.ones(300, bool))
    grid = {"batch_size": 1, "lr": 0.01}
    config = SweepConfig(grid=grid, search="asha", epochs=40, patience=40, seed=(0, 1), max_concurrent=1)
    there = {"there": Deployment("there", "test", None, {"all": "all"})}
    before, seen = signal.getsignal(signal.SIGINT), []

    def interrupt(progress: SweepProgress) -> None:
        if progress.done == 1 and not seen and any(t.state == "running" and t.epoch for t in progress.trials):
            seen.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Datas3Error, match=r"interrupted while trial all batch_size=1 lr=0\.01 seed=1 ran; start it"):
        run_sweep(lake, config, name="cut", deployments=there, storage=str(tmp_path / "r"), progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert not lake.exists("results")


def started(halving: Halving, *points: Point) -> Callable[[int, int, float], str]:
    """Add a trial for each point; the answer tells of a trial by its index, its epoch and its accuracy then."""
    trials = [SimpleNamespace(trial_id=str(point), config={"point": vars(point)}) for point in points]
    for trial in trials:
        halving.on_trial_add(None, trial)

    def tell(index: int, epoch: int, accuracy: float) -> str:
        return halving.on_trial_result(None, trials[index], {"epoch": epoch, "validation/accuracy": accuracy})

    return tell


def test_the_worse_of_one_selection_and_seed_are_stopped_and_those_at_their_end_are_not() -> None:
    halving = Halving("accuracy", {("a", 0): 3, ("a", 1): 3, ("b", 0): 9})
    points = [("a", 0, 1), ("a", 0, 2), ("a", 1, 1), ("b", 0, 1), ("b", 0, 2)]
    tell = started(halving, *(Point(i, s, seed, {"lr": lr}) for i, (s, seed, lr) in enumerate(points)))
    assert tell(0, 1, 0.9) == "CONTINUE"
    assert tell(1, 1, 0.5) == "STOP"
    assert tell(2, 1, 0.5) == "CONTINUE"
    assert tell(3, 1, 0.2) == "CONTINUE"
    assert tell(4, 1, 0.3) == "CONTINUE"
    assert [tell(3, 3, 0.4), tell(4, 3, 0.3)] == ["CONTINUE", "STOP"]
    assert [tell(0, 3, 0.9), tell(2, 3, 0.1)] == ["CONTINUE", "CONTINUE"]
    assert tell(3, 9, 0.0) == "CONTINUE"
    assert halving.stopped == {1, 4}
    # A report of the scores has no epoch.
    assert halving.on_trial_result(None, SimpleNamespace(config={"point": {"selection": "a", "seed": 0}}), {})


def test_a_selection_without_a_score_is_told() -> None:
    def trial(index: int, selection: str, status: str) -> Trial:
        point = Point(index, selection, 0, {"lr": index})
        outcome = Outcome(1, 1, 0.5, 0.5, 0.0) if status == "done" else None
        return Trial(point, outcome, status=status, error="it burnt." if status == "failed" else "")

    check_scored([trial(0, "a", "done"), trial(1, "a", "stopped"), trial(2, "b", "failed")])
    with pytest.raises(
        Datas3Error,
        match=r"no trial of selection 'b' ended with a score \(1 stopped early, 1 failed \(trial b lr=2 .*it burnt",
    ):
        check_scored([trial(0, "a", "done"), trial(1, "b", "stopped"), trial(2, "b", "failed")])
