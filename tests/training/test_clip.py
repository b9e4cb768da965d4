"""Contrastive training end to end: a tiny network on pictures that their captions describe."""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from datas3_ray import Lake
from datas3_ray.encoders import parse_encoder
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.training.clip_architecture import Architecture, Eye
from datas3_ray.training.clip_scoring import contrastive_losses
from datas3_ray.training.clip_trainer import MOST_SCALE, Towers, Trainer, gathered, learning_rate, times_gradient
from datas3_ray.training.config import SweepConfig, load_sweep_config
from datas3_ray.training.contract import Outcome, Point, Prepared
from datas3_ray.training.models.clip import Clip
from datas3_ray.training.sweep import Deployment, run_sweep

pytest.importorskip("open_clip", reason="the package open_clip is not installed")

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
# A network of timm's that was made for one size of images, and is told another.
FIXED = {**TINY, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "image_size": 32}}
OPTIONS = {"architecture": TINY, "prompts": ["a {label} square", "the {label} one"]}
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (240, 240, 240),
    "yellow": (220, 220, 20),
    "black": (10, 10, 10),
}


def config(**changes: Any) -> SweepConfig:
    options = {**OPTIONS, **changes.pop("options", {})}
    settings = {"grid": {"batch_size": 16, "lr": 0.003}, "epochs": 8, "validation": 0.2, "options": options}
    return load_sweep_config({"model": "clip", **settings, **changes})


def pictures(folder: Path, prefix: str, count: int, seed: int = 0) -> pa.Table:
    """One colour a picture, in noise; the caption and the label say which."""
    rng = np.random.default_rng(seed)
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    uris = []
    for i, name in enumerate(names):
        pixels = np.array(COLOURS[name]) + rng.normal(0, 12, (40, 48, 3))
        uris.append(str(folder / f"{prefix}{i:03d}.png"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(uris[-1])
    return pa.table(
        {
            "id": [f"{prefix}{i:03d}" for i in range(count)],
            "uri": uris,
            "caption": [f"a {name} square" for name in names],
            "label": names,
        }
    )


def select(lake: Lake, name: str, keep: np.ndarray, table: str = "pool", **columns: Any) -> None:
    pool = lake.table(table)
    lineage = {
        "method": "handmade",
        "table": table,
        "inputs": {table: pool.version},
        "counts": {"kept": int(keep.sum())},
        "fingerprint": name,
    }
    rows = {"id": pool.to_arrow(["id"]).column("id"), "keep": pa.array(keep), **columns}
    lake.write(name, pa.table(rows), kind="selection", lineage=lineage)


@pytest.fixture(scope="module")
def lake(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A pool of 120 pictures of six colours, tests of 36, and tables in which something is missing."""
    folder = tmp_path_factory.mktemp("clip")
    lake = Lake(folder / "lake")
    lake.add("pool", pictures(folder, "p", 120))
    lake.add("north", pictures(folder, "n", 36, seed=1))
    select(lake, "everything", np.ones(120, bool), weight=pa.array(1.0 + np.arange(120) % 2))
    select(lake, "half", np.arange(120) < 60)
    select(lake, "one", np.arange(120) == 5)
    select(lake, "reds", np.arange(120) % 6 == 0)
    select(lake, "none", np.zeros(120, bool))
    rows = pictures(folder, "t", 36, seed=2)
    lake.add("without-captions", rows.drop_columns("caption"))
    lake.add("without-labels", rows.set_column(3, "label", pa.nulls(36, pa.string())))
    lake.add("no-label-column", rows.drop_columns("label"))
    lake.add("one-class", rows.filter(pa.compute.equal(rows["label"], "red")))
    lake.add("numbers", rows.set_column(2, "caption", pa.array(np.arange(36.0))))
    select(lake, "captionless", np.ones(36, bool), table="without-captions")
    return lake


def prepare(lake: Lake, settings: SweepConfig, selection: str = "everything", test: str = "north") -> Prepared:
    return Clip().prepare(lake, settings, {selection: lake.selection(selection)}, {test: lake.table(test)})


def fit(
    lake: Lake,
    settings: SweepConfig,
    folder: Path,
    selection: str = "everything",
    test: str = "north",
    seed: int = 0,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """One trial in this process."""
    prepared = prepare(lake, settings, selection, test)
    reports: list[dict[str, Any]] = []
    point = Point(0, selection, seed, settings.points()[0])
    data = prepared.training[selection, seed].data
    tests = {name: one.data for name, one in prepared.tests.items()}
    folder.mkdir(exist_ok=True)
    return Clip().train(point, settings, data, tests, reports.append, str(folder)), reports


@pytest.fixture(scope="module")
def fitted(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("fitted")
    return *fit(lake, config(), folder), folder


def test_it_learns_which_caption_belongs_to_which_picture(fitted: tuple[Outcome, list[dict[str, Any]], Path]) -> None:
    outcome, reports, _ = fitted
    score = outcome.tests["north"]
    assert score.score > 0.9 and score.interval is not None and score.interval[0] <= score.score <= score.interval[1]
    assert set(score.recall) == set(COLOURS)
    # 36 pictures with six captions: six texts to find.
    for name in ("image_to_text_recall", "text_to_image_recall"):
        assert score.figures[f"{name}_low"] <= score.figures[name] <= score.figures[f"{name}_high"]
        assert score.figures[name] <= score.figures[f"{name}@5"] <= score.figures[f"{name}@10"] == 1
    assert score.figures["image_to_text_recall"] > 0.9
    assert [report["epoch"] for report in reports] == list(range(1, 9)) and outcome.epochs == 8
    best = reports[outcome.epoch - 1]["validation"]
    assert outcome.validation == best["image_to_text_recall"] == best["zero_shot_accuracy"]
    assert outcome.validation_loss == best["loss"]
    worth = [(each["validation"]["image_to_text_recall"], -each["validation"]["loss"]) for each in reports]
    assert max(worth) == worth[outcome.epoch - 1]
    assert reports[-1]["train"]["loss"] < reports[0]["train"]["loss"]


def test_the_same_seed_gives_the_same_trial(lake: Lake, tmp_path: Path) -> None:
    short = config(epochs=2, options={"augment": "crop"})
    runs = [fit(lake, short, tmp_path / name, seed=0) for name in ("a", "b")]
    assert runs[0][1] == runs[1][1] and runs[0][0].tests == runs[1][0].tests
    other, _ = fit(lake, config(epochs=2, seed=1, options={"augment": "crop"}), tmp_path / "c", seed=1)
    assert other.validation_loss != runs[0][0].validation_loss


def test_the_checkpoint_is_one_of_open_clips(
    lake: Lake, fitted: tuple[Outcome, list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """It starts another sweep, and the encoder that loads it gives the vectors that were scored."""
    import open_clip

    outcome, _, folder = fitted
    path = folder / "clip.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == outcome.epoch and saved["options"]["architecture"] == TINY
    named = tmp_path / "datas3-of-a-test.json"
    named.write_text(json.dumps(TINY))
    open_clip.add_model_config(named)
    spec = {"open_clip": named.stem, "weights": str(path), "precision": "float32", "device": "cpu"}
    images, captions = (parse_encoder("e", {**spec, "input": what}).build() for what in ("image", "caption"))
    rows = lake.table("north").to_arrow(["uri", "label"]).to_pylist()
    vectors = images.encode([images.prepare(Image.open(row["uri"]).convert("RGB")) for row in rows])
    texts = captions.encode([captions.prepare(f"a {name} square") for name in COLOURS])
    found = [list(COLOURS)[place] for place in (vectors @ texts.T / np.linalg.norm(texts, axis=1)).argmax(1)]
    assert np.mean([name == row["label"] for name, row in zip(found, rows, strict=True)]) > 0.9
    again = config(epochs=1, weights=str(path), grid={"batch_size": 16, "lr": 1e-9})
    assert prepare(lake, again).start == str(path)
    further, _ = fit(lake, again, tmp_path / "further")
    assert further.tests["north"].score == outcome.tests["north"].score
    assert further.validation_loss == pytest.approx(outcome.validation_loss, abs=1e-3)


def test_two_workers_give_what_one_gives(lake: Lake, tmp_path: Path) -> None:
    # Batches of 19, which no two workers can share alike, and a last one of 102 - 5 * 19 = 7.
    assert prepare(lake, config()).training["everything", 0].train_rows == 102
    short: dict[str, Any] = {"epochs": 2, "metric": "text_to_image_recall", "weight": "weight"}
    short["grid"] = {"batch_size": 19, "lr": 0.003}
    alone, one = fit(lake, config(**short), tmp_path / "one")
    together, two = fit(lake, config(**short, workers=2), tmp_path / "two")
    assert [report["epoch"] for report in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        assert b["train"]["loss"] == pytest.approx(a["train"]["loss"], abs=1e-3)
        assert b["validation"]["loss"] == pytest.approx(a["validation"]["loss"], abs=1e-2)
        assert b["validation"]["text_to_image_recall"] == pytest.approx(
            a["validation"]["text_to_image_recall"], abs=1e-2
        )
    assert together.tests["north"].score == pytest.approx(alone.tests["north"].score, abs=1e-2)
    first, second = (
        torch.load(tmp_path / name / "clip.pt", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-2


class OneOf:
    """A worker beside others whose rows are known."""

    def __init__(self, rank: int, parts: list[torch.Tensor]) -> None:
        self.rank, self.world, self.parts = rank, len(parts), parts

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        for rank, part in enumerate(self.parts):
            if rank != self.rank:
                tensor[rank, : len(part), :-1], tensor[rank, : len(part), -1] = part.detach(), 1
        return tensor


def test_gradients_of_shared_batches_are_those_of_the_whole_batch() -> None:
    """Averaged over three workers with 3, 2 and 0 rows: the whole batch's, of an encoder's weights and of the scale."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64)

    def loss(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        left, right = (torch.nn.functional.normalize(half, dim=1) for half in rows.split(4, 1))
        return contrastive_losses(left, right, scale).mean()

    def leaves() -> tuple[torch.Tensor, torch.Tensor]:
        return weight.clone().requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    w, scale = leaves()
    loss(inputs @ w, scale).backward()
    expected = w.grad, scale.grad
    parts = list(inputs.split([3, 2, 0]))
    gradients = []
    for rank, part in enumerate(parts):
        w, scale = leaves()
        rows = gathered(OneOf(rank, [each @ weight for each in parts]), times_gradient(part @ w, 3), 3)  # type: ignore[arg-type]
        assert torch.equal(rows, inputs @ weight) or torch.allclose(rows, inputs @ weight)
        loss(rows, scale).backward()
        gradients.append((w.grad, scale.grad))
    for found, wanted in zip(zip(*gradients, strict=True), expected, strict=True):
        assert torch.allclose(torch.stack(found).mean(0), wanted, atol=1e-12)


def test_a_worker_without_rows_still_takes_part() -> None:
    with torch.random.fork_rng():
        towers = Towers(Architecture(TINY).scratch())
    images, texts, scale = towers(torch.zeros(0, 3, 32, 32), torch.zeros(0, 10, dtype=torch.int64))
    assert images.shape == texts.shape == (0, 16)
    (images.sum() + texts.sum() + scale).backward()
    trained = [value for value in towers.parameters() if value.requires_grad]
    assert all(value.grad is not None for value in trained)


def test_a_budget_of_samples_cuts_the_last_epoch_short(lake: Lake, tmp_path: Path) -> None:
    rows = prepare(lake, config(), "half").training["half", 0].train_rows
    outcome, reports = fit(lake, config(samples=2 * rows + 20, epochs=99), tmp_path / "s", "half")
    assert outcome.epochs == 3 and len(reports) == 3


def test_a_few_rows_validate_on_themselves_and_a_pair_alone_is_passed_over(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = Trainer._step

    def counted(trainer: Trainer, batch: Any) -> torch.Tensor:
        steps.append(len(batch.everyone))
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", counted)
    settings = config(epochs=3, grid={"batch_size": 2, "lr": 0.01})
    select(lake, "three", np.arange(120) < 3)
    trained = prepare(lake, settings, "three").training["three", 0]
    assert (trained.train_rows, trained.validation_rows, trained.validation_on) == (3, 3, "training rows")
    _, reports = fit(lake, settings, tmp_path / "t", "three")
    assert steps == [2, 2, 2] and len(reports) == 3


def test_the_schedule_and_the_scale(lake: Lake, tmp_path: Path) -> None:
    rates = [learning_rate(2.0, step, 20, 4) for step in range(20)]
    assert (
        rates[:4] == [0.5, 1.0, 1.5, 2.0]
        and rates[4] == 2.0
        and rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    )
    assert rates[12] == pytest.approx(1.0) and 0 < rates[-1] < 0.1
    # A rate at which the scale would run away.
    fit(lake, config(epochs=2, grid={"batch_size": 16, "lr": 3.0}, options={"warmup": 0}), tmp_path / "s")
    scale = float(torch.load(tmp_path / "s" / "clip.pt", weights_only=True)["state_dict"]["logit_scale"])
    assert 0 <= scale <= MOST_SCALE + 1e-6 and math.log(100) == MOST_SCALE


def test_rs2_draws_from_the_whole_pool(lake: Lake, tmp_path: Path) -> None:
    settings = config(sampling="rs2", epochs=2)
    prepared = prepare(lake, settings, "half")
    trained = prepared.training["half", 0]
    import ray

    _, split, _ = ray.get(list(trained.data))
    assert trained.train_rows == split.draws and trained.train_rows + trained.validation_rows == 60
    assert len(split.train) + len(split.validation) == 120
    outcome, _ = fit(lake, settings, tmp_path / "r", "half")
    assert outcome.epochs == 2


def test_rows_without_captions_or_images_are_counted(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = pictures(folder, "q", 60)
    captions = rows["caption"].to_pylist()
    captions[3], captions[7] = None, "  "
    uris = rows["uri"].to_pylist()
    uris[10] = None
    broken = str(folder / "q012.png")
    Path(broken).write_bytes(b"no picture")
    rows = rows.set_column(2, "caption", pa.array(captions)).set_column(1, "uri", pa.array(uris))
    own = Lake(tmp_path / "lake")
    own.add("pool", rows)
    own.add("north", pictures(folder, "m", 12, seed=3))
    select(own, "everything", np.ones(60, bool))
    trained = prepare(own, config()).training["everything", 0]
    assert (trained.unlabelled, trained.unusable) == (2, 1)
    assert trained.train_rows + trained.validation_rows == 57
    outcome, reports = fit(own, config(epochs=1), tmp_path / "out")
    assert len(reports) == 1 and outcome.tests["north"].score >= 0


def test_captions_that_read_alike_are_one_text(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = pictures(folder, "m", 12)
    captions = [text.upper() if i % 2 else f" {text}" for i, text in enumerate(rows["caption"].to_pylist())]
    own = Lake(tmp_path / "lake")
    own.add("north", rows.set_column(2, "caption", pa.array(captions)))
    own.add("pool", pictures(folder, "p", 24))
    select(own, "everything", np.ones(24, bool))
    outcome, _ = fit(own, config(epochs=1), tmp_path / "out")
    # Six texts and not twelve or more, so that a hit among the first ten is certain.
    assert outcome.tests["north"].figures["image_to_text_recall@10"] == 1.0


def test_a_table_without_captions_is_scored_by_its_labels_alone(lake: Lake, tmp_path: Path) -> None:
    outcome, _ = fit(lake, config(epochs=1), tmp_path / "w", test="without-captions")
    assert not outcome.tests["without-captions"].figures
    settings = config(epochs=1, metric="image_to_text_recall")
    outcome, _ = fit(lake, settings, tmp_path / "v", test="no-label-column")
    score = outcome.tests["no-label-column"]
    assert score.interval is not None and "zero_shot_accuracy" not in score.figures
    assert {"image_to_text_recall@5", "text_to_image_recall_low"} <= set(score.figures)
    outcome, _ = fit(lake, settings, tmp_path / "u")
    assert {"zero_shot_accuracy", "zero_shot_accuracy_low"} <= set(outcome.tests["north"].figures)


def test_a_loss_that_is_no_number_is_told(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(Datas3Error, match=r"the loss became not a number in epoch \d; lower the learning rate"):
        fit(lake, config(grid={"batch_size": 16, "lr": 1e37}, options={"warmup": 0}), tmp_path / "n")


def test_images_that_are_gone_are_told(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    own = Lake(tmp_path / "lake")
    own.add("pool", pictures(folder, "p", 24))
    own.add("north", pictures(tmp_path, "n", 12))
    select(own, "everything", np.ones(24, bool))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(Datas3Error, match="training images of selection 'everything' cannot be read"):
        fit(own, config(epochs=1), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "selection", "test", "words"),
    [
        ({}, "captionless", "north", "table 'without-captions' has no column 'caption'"),
        ({"options": {"caption": "captoin"}}, "everything", "north", "no column 'captoin'.*Did you mean 'caption'"),
        ({}, "everything", "no-label-column", "table 'no-label-column' has no column 'label'"),
        (
            {},
            "everything",
            "without-labels",
            r"'without-labels' has no row with both a label.*\(36 without",
        ),
        ({}, "everything", "one-class", r"'one-class' holds one class only \('red'\)"),
        (
            {"metric": "image_to_text_recall"},
            "everything",
            "without-captions",
            "table 'without-captions' has no column 'caption'",
        ),
        ({"metric": "image_to_text_recall"}, "everything", "numbers", "'caption' of table 'numbers' holds double, not"),
        ({}, "one", "north", r"selection 'one' leaves 1 row to train on \('a black square'\)"),
        ({}, "reds", "north", r"selection 'reds' leaves \d+ rows with one caption to train on \('a red square'\)"),
        ({}, "none", "north", "selection 'none' keeps 0 rows and none of them has both a caption and an image"),
        ({}, "everything", "pool", "keeps 120 rows of test table 'pool'"),
        ({"sampling": "balanced"}, "everything", "north", "sampling 'balanced' draws classes"),
        (
            {"options": {"architecture": "ViT-B-23"}},
            "everything",
            "north",
            "no model 'ViT-B-23'.*mean 'ViT-B-32",
        ),
        ({"options": {"architecture": {**TINY, "width": 3}}}, "everything", "north", "open_clip cannot make this"),
        ({"options": {"architecture": FIXED}}, "everything", "north", "with images of 32 pixels .*doesn't match"),
        ({"options": {"architecture": "local-dir:/nowhere"}}, "everything", "north", "no open_clip_config.json"),
        ({"weights": "nowhere/w.pt"}, "everything", "north", "model clip: the weights .* does not exist"),
        ({"weights": "laion2b"}, "everything", "north", "it has no pretrained tags"),
        ({"weight": "column"}, "everything", "north", "no column 'column'"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    lake: Lake, changes: dict[str, Any], selection: str, test: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as error:
        prepare(lake, config(**changes), selection, test)
    assert "\n" not in str(error.value)


def test_weights_of_another_architecture(lake: Lake, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="another architecture") as error:
        prepare(lake, config(weights=str(tmp_path / "w.pt")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": ["a photo"]}, "the template 'a photo' lacks {label}"),
        ({"prompts": []}, "prompts = "),
        ({"architecture": "nowhere.json"}, "architecture = 'nowhere.json' is not allowed: there is no such file"),
        ({"architecture": {"embed_dim": 5}}, "this one lacks vision_cfg"),
        ({"architecture": 7}, "expected a name"),
        ({"warmup": 1}, "warmup = 1 is not allowed"),
        ({"promts": ["{label}"]}, "unknown key 'promts'.*Did you mean 'prompts'"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words) if "*" not in words else words) as error:
        config(options=options)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="batch_size"):
        config(grid={"batch_size": 1, "lr": 0.1})


def test_a_configuration_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is in the settings, so that workers need no file and another content is another sweep."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    read = config(options={"architecture": "tiny.json", "prompts": "{label}"})
    (tmp_path / "tiny.json").unlink()
    assert SweepConfig.model_validate(read.model_dump(mode="json")) == read
    assert read.own().architecture == TINY and read.own().prompts == ("{label}",)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="that file is no JSON"):
        config(options={"architecture": "broken.json"})


def test_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture(TINY, image_size=48)
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    torch.manual_seed(5)
    one, two = architecture.scratch(), architecture.scratch()
    torch.manual_seed(5)
    again = architecture.scratch()
    weights = [model.visual.conv1.weight for model in (one, two, again)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    assert Eye.of(one).size == 48 and len(Eye.of(one).mean) == 3
    wide = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": [32, 48]}}
    with pytest.raises(UsageError, match="48 x 32 pixels, and only square"):
        Eye.of(Architecture(wide).scratch())
    texts = pa.array([f"a {name} square" for name in COLOURS] + ["ein Luchs: äöü 🦊 " * 20])
    tokens = Architecture(TINY).tokens(texts)
    assert tokens.shape == (7, 10) and tokens.dtype == np.uint16
    assert Architecture(TINY).tokens(texts.slice(0, 0)).shape == (0, 10)
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(UsageError, match=r"pip install 'datas3-ray\[clip\]'"):
        Clip().prepare(None, config(), {}, {})  # type: ignore[arg-type]


def test_many_captions_are_tokenized_by_tasks(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"number {i}" for i in range(50)])
    whole = Architecture(TINY).tokens(texts)
    monkeypatch.setattr("datas3_ray.training.clip_architecture._CHUNK", 20)
    assert np.array_equal(Architecture(TINY).tokens(texts), whole) and len(np.unique(whole, axis=0)) == 50


def test_a_network_that_also_writes_captions_trains_its_two_encoders() -> None:
    vision: dict[str, Any] = {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}
    text: dict[str, Any] = {**TINY["text_cfg"], "embed_cls": True, "output_tokens": True}
    written = {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    towers = Towers(
        Architecture(
            {
                "embed_dim": 32,
                "vision_cfg": {**vision, "output_tokens": True},
                "text_cfg": text,
                "multimodal_cfg": written,
                "custom_text": True,
            }
        ).scratch()
    )
    images, texts, scale = towers(torch.rand(3, 3, 32, 32), torch.randint(1, 9, (3, 10)))
    contrastive_losses(images, texts, scale).sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in towers.parameters())


def test_a_sweep_writes_its_results(lake: Lake, tmp_path: Path) -> None:
    settings = config(grid={"batch_size": 16, "lr": (0.003, 0.0001)}, epochs=2)
    deployments = {"north": Deployment("north", "north", None, {"all": "everything", "half": "half"})}
    rows = run_sweep(lake, settings, name="clip", deployments=deployments, storage=str(tmp_path / "runs"))
    trials = rows.to_pylist()
    assert len(trials) == 4 and {trial["metric"] for trial in trials} == {"zero_shot_accuracy"}
    assert {trial["task"] for trial in trials} == {"image_text"} and {trial["start"] for trial in trials} == {"scratch"}
    assert all(trial["missing_classes"] == 0 and trial["test_rows"] == 36 for trial in trials)
    assert sorted(trial["subset_size"] for trial in trials) == [60, 60, 120, 120]
    assert sum(trial["best"] for trial in trials) == 2
    for trial in trials:
        assert torch.load(trial["checkpoint"], weights_only=True)["options"]["architecture"] == TINY


def test_real_emoji_with_their_names(real_data: Path, ray_session: None, tmp_path: Path) -> None:
    """Two epochs on pictures as they come from a shard, read by range."""
    lake = Lake(tmp_path / "lake")
    source = {"webdataset": str(real_data / "emoji-google" / "00000.tar")}
    lake.ingest("emoji", source=source, encoders={}, progress=False)
    rows = lake.table("emoji").to_arrow(["id", "caption"])
    assert rows.num_rows > 100 and rows["caption"].null_count < rows.num_rows
    keep = np.arange(rows.num_rows) % 4 != 0
    select(lake, "most", keep, table="emoji")
    test = lake.table("emoji").to_arrow().filter(pa.array(~keep))
    lake.add("test", test)
    settings = config(epochs=2, metric="image_to_text_recall", grid={"batch_size": 64, "lr": 0.001})
    outcome, reports = fit(lake, settings, tmp_path / "out", "most", "test")
    assert len(reports) == 2 and reports[1]["train"]["loss"] < reports[0]["train"]["loss"]
    assert 0 <= outcome.tests["test"].score <= outcome.tests["test"].figures["image_to_text_recall@10"] <= 1
