"""Fine-tuning on small pictures: repeatable, the same with two workers, and exactly as long as it was told."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from training.pictures import rows, select

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.sources.synthetic import World, generate
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.contract import Outcome, Point
from datas3_ray.training.epochs import budget
from datas3_ray.training.gang import Alone
from datas3_ray.training.image_rows import read_image_rows
from datas3_ray.training.image_trainer import Trainer
from datas3_ray.training.job import open_job
from datas3_ray.training.loader import Loader, LoaderSettings
from datas3_ray.training.metrics import accuracy
from datas3_ray.training.models import model as find_model
from datas3_ray.training.sweep import Deployment, run_sweep

# A vision transformer of 0.3 million weights; ResNet50 has 24 million.
SMALL = {"architecture": "test_vit", "image_size": 32, "augment": "flip"}
RESNET = {"image_size": 34, "augment": "flip", "optimizer": "adamw"}


@pytest.fixture(scope="module")
def lake(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A pool of 72 (one damaged), a test table of 30 (one damaged), everything and a third of it as selections."""
    lake = Lake(tmp_path_factory.mktemp("pictures") / "lake")
    for name, table in (("pool", rows(72, "p", 0)), ("test", rows(30, "t", 1))):
        images = table.column("image").to_pylist()
        images[4] = b"damaged"
        lake.add(name, table.set_column(3, "image", pa.array(images, pa.large_binary())))
    place = np.arange(72)
    select(lake, "all", place < 72, cows=np.where(place % 3 == 2, 0.0, 1.0), even=np.full(72, 7.0))
    select(lake, "third", place < 24)
    return lake


class Run:
    """One trial without Tune: the model's own two functions, one after the other."""

    def __init__(self, lake: Lake, folder: Path, selection: str = "all", seed: int = 0, **settings: Any) -> None:
        given = {"model": "vit_lora", "options": SMALL, "grid": {"batch_size": 16, "lr": 0.01}, "epochs": 3, **settings}
        self.config = SweepConfig(seed=seed, **given)
        self.model = find_model(self.config.model)
        self.lake, self.folder = lake, folder
        tests = {"test": lake.table("test")}
        self.prepared = self.model.prepare(lake, self.config, {selection: lake.selection(selection)}, tests)
        self.set = self.prepared.training[selection, seed]
        self.point = Point(0, selection, seed, self.config.points()[0])
        self.reports: list[dict[str, Any]] = []

    def train(self) -> Outcome:
        tests = {name: one.data for name, one in self.prepared.tests.items()}
        arguments = (self.point, self.config, self.set.data, tests, self.reports.append, str(self.folder))
        return self.model.train(*arguments)

    @property
    def saved(self) -> Mapping[str, Any]:
        return torch.load(self.folder / self.model.checkpoint, weights_only=True)

    def losses(self) -> list[float]:
        return [report["train"]["loss"] for report in self.reports]


def test_the_same_seed_gives_the_same_model(lake: Lake, tmp_path: Path) -> None:
    runs = [Run(lake, tmp_path, seed=seed) for seed in (0, 0, 1)]
    outcomes = [run.train() for run in runs]
    assert outcomes[0].validation == outcomes[1].validation
    assert outcomes[0].tests["test"].score == outcomes[1].tests["test"].score
    assert runs[0].losses() == pytest.approx(runs[1].losses(), abs=1e-4)
    assert runs[0].losses() != pytest.approx(runs[2].losses(), abs=1e-4)
    assert [report["epoch"] for report in runs[0].reports] == [1, 2, 3]
    assert outcomes[0].tests["test"].score > 0.9 and outcomes[0].seconds > 0


def test_decoded_anew_it_is_the_same(lake: Lake, tmp_path: Path) -> None:
    kept, streamed = (Run(lake, tmp_path, cache_gb=size) for size in (1.0, 0.0))
    assert kept.train().validation == streamed.train().validation
    assert kept.losses() == pytest.approx(streamed.losses(), abs=1e-6)


def test_resnet50_with_two_workers_is_the_same(lake: Lake, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "resnet50", "options": RESNET, "epochs": 2}
    prepared = Run(lake, tmp_path, **settings)
    # One row is left for the last batch, so that the second worker has none of it.
    readable = prepared.set.train_rows - 1
    batch = next(size for size in range(12, readable) if readable % size == 1)
    settings["grid"] = {"batch_size": batch, "lr": 0.001}
    one, two = Run(lake, tmp_path, **settings), Run(lake, tmp_path, workers=2, **settings)
    alone, together = one.train(), two.train()
    assert alone.validation == pytest.approx(together.validation, abs=1e-2)
    assert alone.tests["test"].score == pytest.approx(together.tests["test"].score, abs=1e-2)
    assert [report["epoch"] for report in two.reports] == [1, 2]
    assert one.losses() == pytest.approx(two.losses(), rel=1e-2)
    assert two.saved["state_dict"].keys() == one.saved["state_dict"].keys()


def test_a_sweep_with_two_workers_of_which_one_gets_no_row_of_the_last_batch(lake: Lake, tmp_path: Path) -> None:
    """Batches that leave a single row at the end of the training and of the validation rows."""

    def left(share: float, size: int) -> set[int]:
        run = Run(lake, tmp_path, grid={"batch_size": size, "lr": 0.003}, validation=share)
        trainer = Trainer(open_job(run.point, run.config, run.set.data, {}), Alone())
        return {len(trainer.loader) % size, len(trainer.validation) % size}

    share, size = next((share, size) for share in (0.15, 0.2, 0.25) for size in (3, 5, 7) if left(share, size) == {1})
    found = []
    for workers in (1, 2):
        settings: dict[str, Any] = {"model": "vit_lora", "options": SMALL, "epochs": 1, "workers": workers}
        # The second trial makes do with the first one's workers; the mistake of the third ends them.
        grid = {"batch_size": size, "lr": (0.003, 0.001, 1e30, 0.002)}
        config = SweepConfig(**settings, grid=grid, validation=share, retries=0)
        deployments = {"here": Deployment("here", "test", None, {"all": "all"})}
        storage, results = str(tmp_path / str(workers)), f"results-of-{workers}"
        table = run_sweep(lake, config, name="one", deployments=deployments, storage=storage, results=results)
        found.append({json.loads(row["hyperparameters"])["lr"]: row for row in table.to_pylist()})
    alone, together = found
    for lr in (0.003, 0.001, 0.002):
        assert alone[lr]["status"] == together[lr]["status"] == "done", together[lr]["error"]
        assert together[lr]["validation"] == pytest.approx(alone[lr]["validation"], abs=1e-2)
        assert together[lr]["test"] == pytest.approx(alone[lr]["test"], abs=1e-2)
    assert alone[1e30]["status"] == together[1e30]["status"] == "failed"
    assert "lower the learning rate" in together[1e30]["error"]


def test_a_workers_mistake_is_the_trials(lake: Lake, tmp_path: Path) -> None:
    run = Run(lake, tmp_path, workers=2, grid={"batch_size": 16, "lr": 1e30})
    with pytest.raises(Datas3Error, match="^the loss became .* in epoch 1; lower the learning rate.$"):
        run.train()


DAYLIGHT = {"night": 5.0, "dusk": 300.0, "day": 10_000.0}


def world_rows(folder: Path, images: int, seed: int) -> pa.Table:
    """Frames of a camera-trap world, and how light it was: the logarithm of lux."""
    generate(folder, World(images=images, size=(96, 72), shards=1, corrupt=0, seed=seed))
    found = []
    with tarfile.open(next(folder.glob("*.tar"))) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".jpg"):
                about = json.load(tar.extractfile(f"{member.name[:-4]}.json"))
                lux = math.log(DAYLIGHT[about["light"]])
                found.append({"id": f"{seed}-{member.name}", "lux": lux, "image": tar.extractfile(member).read()})
    schema = pa.schema([("id", pa.string()), ("lux", pa.float64()), ("image", pa.large_binary())])
    return pa.Table.from_pylist(found, schema)


def test_resnet50_tells_how_light_the_synthetic_world_is(ray_session: None, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.add("pool", world_rows(tmp_path / "a", 120, 1))
    lake.add("test", world_rows(tmp_path / "b", 60, 2))
    select(lake, "all", np.ones(120, bool))
    run = Run(
        lake,
        tmp_path,
        model="resnet50",
        options=RESNET | {"schedule": "cosine"},
        task="regression",
        label="lux",
        epochs=6,
        grid={"batch_size": 12, "lr": 0.001},
    )
    score = run.train().tests["test"]
    truth = np.array(lake.table("test").to_arrow(["lux"]).column("lux").to_pylist())
    # Half of the squared error of predicting the mean, in the target's own unit.
    assert score.score < 0.5 * np.var(truth)
    assert score.figures["r2"] == pytest.approx(1 - score.score / np.var(truth))
    assert run.saved["target"]["std"] == pytest.approx(np.std(truth), rel=0.3)


def test_a_saved_resnet50_gives_the_scores(lake: Lake, tmp_path: Path) -> None:
    from torchvision.models import resnet50

    run = Run(lake, tmp_path, model="resnet50", options=RESNET, epochs=2, grid={"batch_size": 16, "lr": 0.001})
    outcome = run.train()
    saved = run.saved
    network = resnet50(num_classes=3)
    network.load_state_dict(saved["state_dict"])
    network.eval()
    images, columns = read_image_rows(lake.table("test"), None, ("label",))
    loader = Loader(images, LoaderSettings(size=saved["image_size"], batch_size=30))
    batch = next(loader.plain())
    mean, std = (torch.tensor(saved[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        codes = network((batch.images / 255 - mean) / std).argmax(1).numpy()
    labels = columns.column("label").to_pylist()
    truth = np.array([saved["classes"].index(labels[row]) for row in batch.rows])
    score = outcome.tests["test"]
    assert accuracy(codes, truth) == pytest.approx(score.score) and len(truth) == 29
    assert score.figures == {"unreadable": 1.0}
    assert saved["epoch"] == outcome.epoch
    assert run.prepared.start == "scratch"


def test_weights_of_a_file(lake: Lake, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    still: dict[str, Any] = {"model": "resnet50", "options": RESNET, "epochs": 1}
    still["grid"] = {"batch_size": 64, "lr": 1e-12}
    first = Run(lake, tmp_path, **still | {"epochs": 3, "grid": {"batch_size": 16, "lr": 0.001}})
    learnt = first.train()
    assert learnt.tests["test"].score > 0.5
    path = tmp_path / "weights.pth"
    torch.save(first.saved["state_dict"], path)
    second = Run(lake, tmp_path, weights=str(path), **still)
    # The classifier has as many outputs, so it is taken over too, and one epoch that learns nothing keeps it.
    assert second.prepared.start == str(path)
    body = {name: value for name, value in first.saved["state_dict"].items() if name.endswith("weight")}
    second.train()
    found = second.saved["state_dict"]
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in body.items())
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(UsageError, match="model resnet50: the weights are of another architecture: they lack 'layer1"):
        Run(lake, tmp_path, weights=str(path), **still)
    with pytest.raises(
        UsageError, match="neither a local .* file nor one of torchvision's: IMAGENET1K_V1.*Did you mean"
    ):
        Run(lake, tmp_path, weights="IMAGENET1K_V3", **still)


def test_a_diverging_trial_says_so(lake: Lake, tmp_path: Path) -> None:
    run = Run(lake, tmp_path, grid={"batch_size": 16, "lr": 1e30})
    with pytest.raises(Datas3Error, match="^the loss became (not a number|infinite) in epoch 1; lower the learning"):
        run.train()
    assert run.reports == []


def test_a_budget_of_samples(lake: Lake, tmp_path: Path) -> None:
    run = Run(lake, tmp_path, samples=100, grid={"batch_size": 16, "lr": 0.01}, patience=1)
    size = run.set.train_rows - 1
    trainer = Trainer(open_job(run.point, run.config, run.set.data, {}), Alone())
    assert list(budget(run.config, len(trainer.loader))) == [(1, size), (2, 100 - size)]
    trainer.run(run.reports.append)
    assert trainer.steps == math.ceil(size / 16) + math.ceil((100 - size) / 16)
    assert len(run.reports) == 2
    less = Run(lake, tmp_path, samples=20)
    assert less.train().epochs == 1


def test_patience(lake: Lake, tmp_path: Path) -> None:
    options = SMALL | {"augment": "none"}
    run = Run(lake, tmp_path, options=options, epochs=30, patience=2, grid={"batch_size": 16, "lr": 1e-30})
    outcome = run.train()
    assert (outcome.epoch, outcome.epochs) == (1, 3)  # nothing changes, so the first epoch stays the best


def test_the_cosine_ends_at_nothing(lake: Lake, tmp_path: Path) -> None:
    run = Run(lake, tmp_path, options=SMALL | {"schedule": "cosine", "optimizer": "sgd"}, epochs=2, patience=2)
    trainer = Trainer(open_job(run.point, run.config, run.set.data, {}), Alone())
    rates = []
    step = trainer.optimizer.step

    def noted(*arguments: Any) -> Any:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*arguments)

    trainer.optimizer.step = noted  # type: ignore[method-assign]
    trainer.run(run.reports.append)
    steps = 2 * math.ceil((run.set.train_rows - 1) / 16)
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * at / steps)) / 2 for at in range(steps)])


def test_weights_scale_the_loss(lake: Lake, tmp_path: Path) -> None:
    plain, even, cowless = (Run(lake, tmp_path, weight=column) for column in (None, "even", "cows"))
    outcomes = [run.train() for run in (plain, even, cowless)]
    assert plain.losses() == pytest.approx(even.losses(), rel=1e-6)
    assert outcomes[0].tests["test"].recall["cow"] > 0.8
    assert outcomes[2].tests["test"].recall["cow"] == 0  # rows of weight 0 teach nothing


def test_rs2_learns_from_the_pool(lake: Lake, tmp_path: Path) -> None:
    kept, fresh = Run(lake, tmp_path, "third", epochs=6), Run(lake, tmp_path, "third", sampling="rs2", epochs=6)
    trainer = Trainer(open_job(fresh.point, fresh.config, fresh.set.data, {}), Alone())
    assert len(trainer.loader) == kept.set.train_rows == fresh.set.train_rows < 24
    seen = {int(row) for number in range(1, 7) for row in trainer.loader.order(number)[0]}
    assert len(seen) > 50 and not seen & set(trainer.validation_rows.tolist())
    outcome = fresh.train()
    assert outcome.epochs == 6 and outcome.tests["test"].score > 0.5


def test_balanced(lake: Lake, tmp_path: Path) -> None:
    run = Run(lake, tmp_path, "third", sampling="balanced")
    trainer = Trainer(open_job(run.point, run.config, run.set.data, {}), Alone())
    drawn = trainer.y[trainer.loader.order(1)[0]]
    counts = np.bincount(drawn)
    assert counts.max() - counts.min() <= 1
    with pytest.raises(UsageError, match="sampling 'balanced' needs classes, and the task is regression"):
        Run(lake, tmp_path, sampling="balanced", task="regression", label="number")


def test_images_that_are_gone(lake: Lake, tmp_path: Path) -> None:
    lake.add("places", rows(30, "q", 3).drop_columns(["image"]).append_column("uri", pa.array(["/gone.png"] * 30)))
    select(lake, "gone", np.ones(30, bool), table="places")
    with pytest.raises(Datas3Error, match=r"none of the \d+ training images of selection 'gone' can be read \('q00"):
        Run(lake, tmp_path, "gone").train()


def test_a_sweep_of_two_selections_and_two_deployments(lake: Lake, tmp_path: Path) -> None:
    lake.add("south", rows(18, "s", 8))
    config = SweepConfig(
        model="vit_lora", options=SMALL, grid={"batch_size": 16, "lr": [0.01, 1e30]}, epochs=2, retries=0
    )
    both = {"all": "all", "third": "third"}
    deployments = {"north": Deployment("north", "test", None, both), "south": Deployment("south", "south", None, both)}
    found = run_sweep(lake, config, name="vit", deployments=deployments, storage=str(tmp_path / "runs")).to_pylist()
    good = [row for row in found if '"lr": 0.01' in row["hyperparameters"]]
    assert len(good) == 4 and {(row["deployment"], row["method"]) for row in good} == {
        (deployment, method) for deployment in deployments for method in both
    }
    assert all(row["best"] and 0 <= row["test"] <= 1 for row in good)
    assert {row["test_rows"] for row in good} == {30, 18}
    assert all(torch.load(row["checkpoint"], weights_only=True)["classes"] == ["ant", "bee", "cow"] for row in good)
