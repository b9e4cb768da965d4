"""The detector on the synthetic world's boxes: it learns, repeats, keeps to itself, and reads weights without code."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from datas3_ray import Lake
from datas3_ray.encoders.weights import hash_tensors
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.sources.boxes import BOXES
from datas3_ray.sources.synthetic import World, generate
from datas3_ray.training import yolo
from datas3_ray.training.config import SweepConfig, load_sweep_config
from datas3_ray.training.contract import Outcome, Point
from datas3_ray.training.detection_data import DetectionImages
from datas3_ray.training.models.yolov8n import Yolov8n, _settings
from datas3_ray.training.sweep import Deployment, run_sweep
from datas3_ray.training.yolo_offline import offline, undone
from datas3_ray.training.yolo_weights import DetectorWeights, detector, load_detector, read_detector_weights, rebuilt

# Not importorskip: ultralytics is to be imported inside `offline` only.
pytestmark = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="the extra `detection` (AGPL-3.0) is not installed"
)

CONFIG = SweepConfig(
    model="yolov8n",
    label="boxes",
    grid={"batch_size": 16, "lr": 0.003},
    options={"image_size": 64, "optimizer": "adamw"},
    epochs=16,
    patience=16,
    weight_decay=0.0005,
)
QUICK = CONFIG.model_copy(update={"epochs": 2})


def world_rows(folder: Path) -> list[dict[str, Any]]:
    """The world's frames as rows of a table, with their bursts; every animal is of one class."""
    rows = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                if not name.endswith(".jpg"):
                    continue
                about: dict[str, Any] = json.loads(tar.extractfile(f"{name[:-4]}.json").read())
                boxes = [{**box, "label": "animal"} for box in about["boxes"]]
                place = {"uri": str(path), "offset": member.offset_data, "length": member.size}
                rows.append({"id": name[:-4], **place, "boxes": boxes, "burst": about["burst"]})
    return sorted(rows, key=lambda row: str(row["id"]))


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = {"id": pa.string(), "uri": pa.string(), "offset": pa.int64(), "length": pa.int64(), "boxes": BOXES.type}
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})


def select(lake: Lake, name: str, keep: list[bool] | np.ndarray) -> None:
    pool = lake.table("pool")
    ids = pool.to_arrow(["id"]).column("id")
    lineage = {"method": "handmade", "table": "pool", "inputs": {"pool": pool.version}, "fingerprint": name}
    lineage["counts"] = {"kept": int(np.sum(keep))}
    lake.write(name, pa.table({"id": ids, "keep": pa.array(keep)}), kind="selection", lineage=lineage)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("frames")
    generate(folder, World(images=300, seed=1, sites=1, size=(96, 72), shards=1, corrupt=0))
    return world_rows(folder)


@pytest.fixture(scope="module")
def lake(ray_session: None, frames: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A pool, and a test table of other bursts; a selection of all and one of 32 frames."""
    lake = Lake(tmp_path_factory.mktemp("detection") / "lake")
    bursts = sorted({row["burst"] for row in frames})[::4]
    pool = [row for row in frames if row["burst"] not in bursts]
    lake.add("pool", as_table(pool))
    lake.add("there", as_table([row for row in frames if row["burst"] in bursts]))
    select(lake, "everything", np.ones(len(pool), bool))
    select(lake, "few", np.arange(len(pool)) < 32)
    return lake


def job_of(lake: Lake, config: SweepConfig, selection: str = "few", batch_size: int = 16) -> yolo.YoloJob:
    """What the model's worker would get."""
    import ray

    chosen, tests = {selection: lake.selection(selection)}, {"there": lake.table("there")}
    prepared = Yolov8n().prepare(lake, config, chosen, tests)
    images, split, weights = ray.get(list(prepared.training[selection, 0].data))
    scored = {name: ray.get(one.data) for name, one in prepared.tests.items()}
    point = Point(0, selection, 0, {"batch_size": batch_size, "lr": 0.003})
    return yolo.YoloJob(selection, images, split, scored, _settings(point, config), weights)


@dataclass
class Trained:
    """One training in this process, for the tests that look at it."""

    job: yolo.YoloJob
    outcome: Outcome
    epochs: list[dict[str, Any]]
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trial")
    model, chosen, tests = Yolov8n(), {"everything": lake.selection("everything")}, {"there": lake.table("there")}
    prepared = model.prepare(lake, CONFIG, chosen, tests)
    assert prepared.start == "scratch" and prepared.vector == ""
    one = prepared.training["everything", 0]
    assert one.classes == ("animal",) and one.validation_on == "held out" and one.inputs == {"pool": 1}
    assert one.train_rows + one.validation_rows == len(chosen["everything"])
    epochs: list[dict[str, Any]] = []
    point = Point(0, "everything", 0, {"batch_size": 16, "lr": 0.003})
    data = {name: test.data for name, test in prepared.tests.items()}
    outcome = model.train(point, CONFIG, one.data, data, epochs.append, str(folder))
    return Trained(job_of(lake, CONFIG, "everything"), outcome, epochs, folder / model.checkpoint)


def test_it_learns_to_find_the_worlds_animals(trained: Trained) -> None:
    outcome, epochs = trained.outcome, trained.epochs
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, CONFIG.epochs + 1))
    assert epochs[0]["validation"]["map50"] < 0.05 and epochs[-1]["train"]["loss"] < 0.8 * epochs[0]["train"]["loss"]
    test = outcome.tests["there"]
    assert test.score > 0.3
    assert 0 < test.figures["map50_95"] < test.score and 0 < test.recall["animal"] <= 1
    best = epochs[outcome.epoch - 1]["validation"]
    assert best["map50"] == outcome.validation == max(epoch["validation"]["map50"] for epoch in epochs)
    assert best["loss"] == outcome.validation_loss and outcome.epochs == CONFIG.epochs


def test_the_example_has_ultralytics_own_hyper_parameters() -> None:
    config = load_sweep_config(Path(__file__).parents[2] / "tune_configs" / "yolov8n.yaml")
    settings = _settings(Point(0, "any", 0, {"batch_size": 16, "lr": 0.01}), config)
    with offline():
        from ultralytics.utils import DEFAULT_CFG_DICT as OWN
    given = yolo._arguments(settings, Path("anywhere"), config.epochs)
    assert (given["imgsz"], given["epochs"], given["lr0"], given["weight_decay"]) == (640, 100, 0.01, 0.0005)
    other = {name for name, value in given.items() if value != OWN.get(name)}
    assert other == {"model", "save_dir", "patience", "optimizer", "device", "workers", "amp", "plots", "verbose"}


def test_the_checkpoint_is_tensors_and_gives_the_score(trained: Trained, tmp_path: Path) -> None:
    saved = torch.load(trained.checkpoint, weights_only=True)
    assert (saved["model"], saved["classes"], saved["image_size"]) == ("yolov8n", ["animal"], 64)
    assert saved["epoch"] == trained.outcome.epoch
    network = load_detector(trained.checkpoint)
    assert network.names == {0: "animal"} and not network.training
    with offline(), undone():
        again = yolo.score(trained.job, network.state_dict(), trained.job.tests["there"], tmp_path / "again")
    assert again.score == pytest.approx(trained.outcome.tests["there"].score, abs=1e-6)


def test_classes_that_the_subset_lacks_count_as_errors(trained: Trained, tmp_path: Path) -> None:
    images = trained.job.tests["there"]
    # On every image that has a box there is another one, of a class that was never learnt.
    order = np.argsort(np.r_[images.owner, images.owner], kind="stable")
    both = replace(
        images,
        owner=np.r_[images.owner, images.owner][order],
        codes=np.r_[images.codes, images.codes + 1][order],
        places=np.r_[images.places, images.places][order],
        classes=("animal", "ghost"),
    )
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    with offline(), undone():
        found = yolo.score(trained.job, state, both, tmp_path / "both")
    assert found.score == pytest.approx(trained.outcome.tests["there"].score / 2, abs=1e-6)
    assert found.recall["ghost"] == 0 < found.recall["animal"]


def test_a_budget_of_images_is_kept_to_the_image(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []

    def counting(batch: dict[str, Any], count: int) -> dict[str, Any]:
        kept = first_images(batch, count)
        cut.append(len(kept["img"]))
        assert len(kept["im_file"]) == count and kept["batch_idx"].max() < count
        assert len(kept["cls"]) == len(kept["bboxes"]) == len(kept["batch_idx"])
        return kept

    first_images = yolo.first_images
    monkeypatch.setattr(yolo, "first_images", counting)
    config = QUICK.model_copy(update={"samples": 50})
    job = job_of(lake, config)
    train = len(job.split.train)
    assert train < 32
    epochs: list[dict[str, Any]] = []
    outcome, _ = yolo.train_detector(replace(job, tests={}), epochs.append)
    # An epoch, and of the next one a batch and the rest of the budget.
    assert outcome.epochs == len(epochs) == 2
    assert cut == [50 - train - 16]


def state_of_the_process() -> list[Any]:
    numbers = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    return [np.get_printoptions(), torch.save, repr(torch.tensor([1.5])), *numbers, *drawn, dict(os.environ)]


def test_the_same_seed_gives_the_same_and_leaves_the_process_as_it_was(lake: Lake) -> None:
    # ultralytics makes a step every 64 images or batch: a batch as large as the selection is a step an epoch.
    job = job_of(lake, QUICK.model_copy(update={"epochs": 3}), batch_size=64)
    found = []
    with np.printoptions(precision=3):
        before = state_of_the_process()
        for seed in (0, 0, 1):
            epochs: list[dict[str, Any]] = []
            one = replace(job, settings=replace(job.settings, seed=seed))
            outcome, saved = yolo.train_detector(one, epochs.append)
            found.append((epochs, replace(outcome, seconds=0), hash_tensors(saved["state_dict"])))
        assert state_of_the_process() == before
    assert len({epoch["validation"]["loss"] for epoch in found[0][0]}) == 3
    assert found[0] == found[1]
    assert all(mine != other for mine, other in zip(found[0], found[2], strict=True))


def test_arithmetic_has_the_threads_asked_for(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    config = QUICK.model_copy(update={"epochs": 1, "options": {**QUICK.options, "threads": 3}})
    threads: list[int] = []
    close = yolo._close
    monkeypatch.setattr(yolo, "_close", lambda loader: (threads.append(torch.get_num_threads()), close(loader)))
    yolo.train_detector(job_of(lake, config), lambda figures: threads.append(torch.get_num_threads()))
    assert threads == [3] * 4  # an epoch, its two loaders, and the test table's


def test_no_socket_is_opened_and_nothing_is_written_to_the_home(lake: Lake, tmp_path: Path) -> None:
    job = job_of(lake, QUICK.model_copy(update={"epochs": 1}))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    code = """
import pickle, sys
asked = []
def hook(event, arguments):
    fetching = event == "subprocess.Popen" and any(word in str(arguments[1]) for word in ("pip", "uv ", "curl", "http"))
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "os.system") or fetching:
        asked.append((event, arguments))
        raise OSError("there is no network")
sys.addaudithook(hook)
from datas3_ray.training.yolo import train_detector
outcome, _ = train_detector(pickle.load(open(sys.argv[1], "rb")), lambda figures: None)
print(outcome.epochs, "there" in outcome.tests, asked)
"""
    aside = ("YOLO_", "PYTEST", "MPL", "XDG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(aside)}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = [sys.executable, "-c", code, str(tmp_path / "job")]
    run = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "1 True []\n", run.stdout
    assert not [path for path in (tmp_path / "home").rglob("*") if "ltralytics" in path.name]
    assert {path.name for path in tmp_path.iterdir()} == {"job", "home", "tmp"}
    left = [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("datas3")]
    assert left == [f"datas3-ultralytics-{os.getuid()}"]


def test_a_loss_that_is_no_number_ends_the_trial(lake: Lake) -> None:
    job = replace(job_of(lake, QUICK), tests={})
    with offline():
        tensors = {name: value.clone() for name, value in detector(["animal"]).state_dict().items()}
    tensors["model.0.conv.weight"][0] = float("nan")
    job = replace(job, weights=DetectorWeights(tensors, ("animal",)))
    epochs: list[dict[str, Any]] = []
    with pytest.raises(Datas3Error, match="the loss became not a number in epoch 1; lower the learning rate"):
        yolo.train_detector(job, epochs.append)
    assert not epochs


@pytest.mark.parametrize(("batch_size", "fits"), [(1, 0), (16, 3)])
def test_memory_that_is_used_up_is_one_sentence(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, batch_size: int, fits: int
) -> None:
    """At the first batch, which ultralytics would try again with half of it, and after an epoch."""
    job = job_of(lake, QUICK, batch_size=batch_size)
    with offline():
        from ultralytics.nn.tasks import DetectionModel
    batches: list[int] = []
    forward = DetectionModel.forward

    def full(self: Any, batch: Any, *args: Any, **more: Any) -> Any:
        if isinstance(batch, dict):
            batches.append(len(batch["img"]))
            if len(batches) > fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch, *args, **more)

    monkeypatch.setattr(DetectionModel, "forward", full)
    epochs: list[dict[str, Any]] = []
    with pytest.raises(Datas3Error, match=f"a batch of {batch_size} images of 64 pixels does not fit into the memory"):
        yolo.train_detector(job, epochs.append)
    assert len(batches) == fits + 1 and len(epochs) == fits // 2


def without(images: DetectionImages, lost: np.ndarray) -> DetectionImages:
    """The same, but the files of the images at ``lost`` are gone."""
    uris = np.array(images.rows.places.column("uri").to_pylist(), object)
    uris[lost] = "/nowhere/at/all.tar"
    places = images.rows.places.set_column(0, "uri", pa.array(uris, pa.string()))
    return replace(images, rows=replace(images.rows, places=places))


def test_images_that_are_gone_are_counted_or_one_sentence(lake: Lake) -> None:
    job = job_of(lake, QUICK.model_copy(update={"epochs": 1}))
    lost = replace(
        job,
        images=without(job.images, job.split.train[:3]),
        tests={name: without(images, np.arange(2)) for name, images in job.tests.items()},
    )
    figures = yolo.train_detector(lost, lambda figures: None)[0].tests["there"].figures
    assert (figures["training_unreadable"], figures["unreadable"]) == (3, 2)
    lost = replace(job, images=without(job.images, np.arange(len(job.images))))
    with pytest.raises(Datas3Error, match=r"0 of the \d+ training images of selection 'few' can be read"):
        yolo.train_detector(lost, lambda figures: None)


def test_a_sweep_reports_each_epoch_once(lake: Lake, tmp_path: Path) -> None:
    deployments = {"there": Deployment("there", "there", None, {"few": "few"})}
    storage = tmp_path / "runs"
    rows = run_sweep(lake, QUICK, name="yolo", deployments=deployments, storage=str(storage)).to_pylist()
    assert [(row["model"], row["metric"], row["best"]) for row in rows] == [("yolov8n", "map50", True)]
    (progress,) = storage.rglob("result.json")
    epochs = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs if "epoch" in epoch and "train" in epoch] == [1, 2]
    assert not [name for epoch in epochs for name in epoch if name.startswith("metrics/")]
    assert load_detector(rows[0]["checkpoint"]).names == {0: "animal"}


# Weights


def test_weights_of_ultralytics_own_are_read_without_running_code(tmp_path: Path) -> None:
    with offline():
        theirs = detector([f"thing {code}" for code in range(78)] + ["zebra", "hare"])
        torch.save({"model": None, "ema": theirs, "train_args": {}, "epoch": -1}, tmp_path / "theirs.pt")
    found = read_detector_weights(str(tmp_path / "theirs.pt"))
    assert found.classes[-2:] == ("zebra", "hare")
    with offline():
        ours = detector(["hare", "owl", "zebra"], found)
        head, before = ours.state_dict()["model.22.cv3.0.2.weight"], theirs.state_dict()["model.22.cv3.0.2.weight"]
        if head.shape[1] == before.shape[1]:  # older versions take over fewer layers
            assert torch.equal(head[[0, 2]], before[[79, 78]])
        body = "model.0.conv.weight"
        assert torch.equal(ours.state_dict()[body], theirs.state_dict()[body])
        # Its branches are as wide as those for 80 classes; it is built again from its tensors all the same.
        state = {name: value.clone() for name, value in ours.state_dict().items()}
        again = rebuilt(replace(found, tensors=state, classes=("hare", "owl", "zebra")))
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(again.eval()(pixels)[0], ours.eval()(pixels)[0])


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_weights_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    torch.save({"ema": Evil()}, tmp_path / "evil.pt")
    torch.save({"state_dict": {"conv.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with offline():
        state = detector(["animal"]).state_dict()
    torch.save({name: value for name, value in state.items() if name != "model.0.conv.weight"}, tmp_path / "part.pt")
    for name, sentence in (
        ("evil.pt", "evil.pt' cannot be read as weights: it holds more than tensors"),
        ("other.pt", "of another architecture: they lack its layers that classify"),
        ("part.pt", r"of another architecture: they lack 'model\.0\.conv\.weight'\."),
        ("text.pt", "text.pt' cannot be read as weights"),
        ("absent.pt", "does not exist"),
    ):
        with pytest.raises(UsageError, match=sentence):
            read_detector_weights(str(tmp_path / name))
    with pytest.raises(UsageError, match=r"'yolov8n' are no local .* none are downloaded"):
        read_detector_weights("yolov8n")
    assert not (tmp_path / "evil").exists()
