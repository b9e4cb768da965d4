"""A sweep's configuration: the file that ships, overrides, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datas3_ray.errors import UsageError
from datas3_ray.training.config import SweepConfig, load_sweep_config
from datas3_ray.training.models import model

SHIPPED = Path(__file__).resolve().parents[2] / "tune_configs" / "vit_linear_probe.yaml"


IMAGES = {"grid": {"batch_size": 4, "lr": 0.1}}


def test_the_shipped_file_is_the_paper_s_grid() -> None:
    config = load_sweep_config(SHIPPED)
    assert config == SweepConfig()
    assert config.grid == {"batch_size": (32, 64, 128), "lr": (0.01, 0.001, 0.0001)}
    assert len(config.points()) == 9
    assert config.points()[1] == {"batch_size": 32, "lr": 0.001}


def test_overrides_reach_inside() -> None:
    config = load_sweep_config(SHIPPED, {"epochs": 3, "grid.lr": [0.5], "grid": {"batch_size": 8}, "seed": [1, 2]})
    assert config.epochs == 3 and config.seed == (1, 2)
    assert config.grid == {"batch_size": (8,), "lr": (0.5,)}


def test_yaml_that_reads_a_number_as_text(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("grid: {batch_size: 32, lr: [1e-3, 1e-4]}\n")
    assert load_sweep_config(path).grid["lr"] == (0.001, 0.0001)


def test_how_many_run_at_once_is_not_part_of_the_settings() -> None:
    assert load_sweep_config({"max_concurrent": 1}).settings() == load_sweep_config({}).settings()
    assert load_sweep_config({"seed": 1}).settings() != load_sweep_config({}).settings()


def test_local_weights_count_by_content(tmp_path: Path) -> None:
    path, folder = tmp_path / "w.pt", tmp_path / "net"
    given = {**IMAGES, "model": "clip", "weights": str(path), "options": {"architecture": f"local-dir:{folder}"}}
    config = load_sweep_config(given)
    assert config.by_content() == config  # there is no file, which is told when it is read
    folder.mkdir()
    marks = []
    for file, text in ((path, "one"), (path, "two"), (folder / "a", "three"), (folder / "a", "four")):
        file.write_text(text)
        marks.append(config.by_content().settings())
    assert all(marks.count(mark) == 1 for mark in marks)
    assert str(tmp_path) not in str(marks)
    moved = path.rename(tmp_path / "other.pt")
    assert load_sweep_config({**given, "weights": str(moved)}).by_content().settings() == marks[-1]


@pytest.mark.parametrize("weights", [None, "", "IMAGENET1K_V2", "random", "hf-hub:a/b", "no/such/file.pt"])
def test_other_weights_count_by_name(weights: str | None) -> None:
    config = load_sweep_config({**IMAGES, "model": "resnet50", "weights": weights})
    assert config.by_content().settings() == config.settings()


def test_trials_go_with_a_search_that_draws() -> None:
    for search in ("random", "asha"):
        assert len(load_sweep_config({"search": search, "trials": 2}).points()) == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epoch": 3}, "unknown key 'epoch'. Did you mean 'epochs'?"),
        ({"grid": {"batchsize": 3}}, "unknown key 'batchsize' in grid.*Did you mean 'batch_size'?"),
        ({"grid": {"lr": 0.1}}, "grid lacks 'batch_size'"),
        ({"grid": {"lr": [0.1, 0], "batch_size": 4}}, "grid.lr holds 0; each value must be a number above 0"),
        ({"grid": {"lr": "fast", "batch_size": 4}}, "grid.lr holds 'fast'"),
        ({"grid": {"lr": 0.1, "batch_size": [2.5]}}, "grid.batch_size holds 2.5.*whole number of at least 1"),
        ({"grid": {"lr": [0.1, 0.1], "batch_size": 4}}, "grid.lr needs one or more different values"),
        ({"grid": {"lr": [], "batch_size": 4}}, "grid.lr needs one or more different values"),
        ({"grid": {"lr": float("inf"), "batch_size": 4}}, "grid.lr holds inf"),
        ({"model": "vit_linear_prob"}, "no model 'vit_linear_prob'.*Did you mean 'vit_linear_probe'?"),
        ({"metric": "acc"}, "no metric 'acc'"),
        ({"metric": ["accuracy"]}, r"metric: it must be the name of one, got \['accuracy'\]"),
        ({"metric": 5}, "metric: it must be the name of one, got 5"),
        ({"grid": {"lr": 0.1, "batch_size": 10**400}}, "grid.batch_size holds 1000"),
        ({"weight_decay": float("inf")}, "weight_decay: input should be a finite number, got inf"),
        ({**IMAGES, "model": "resnet50", "cache_gb": float("inf")}, "cache_gb: input should be a finite number"),
        ({**IMAGES, "model": "vit_lora", "options": {"alpha": float("inf")}}, ".*alpha = inf is not allowed"),
        ({"epochs": 0}, "epochs: .*greater than or equal to 1, got 0"),
        ({"validation": 1}, "validation: .*less than 1, got 1"),
        ({"seed": [1, 1]}, "seed: .*different whole numbers"),
        ({"seed": -1}, "seed: .*different whole numbers"),
        ({"weights": "w.pt"}, "weights = 'w.pt' means nothing to model vit_linear_probe; leave it out"),
        ({"samples": 9}, "samples = 9 means nothing"),
        ({"sampling": "rs2"}, "sampling = 'rs2' means nothing"),
        ({"weight": "w"}, "weight = 'w' means nothing"),
        ({"workers": 2}, "workers = 2 means nothing"),
        ({"cache_gb": 1}, "cache_gb = 1.0 means nothing"),
        ({"trials": 2}, "trials = 2 means nothing with search: grid, which trains every point; use search: random or"),
        ({**IMAGES, "model": "resnet50", "column": "vec"}, "column = 'vec' means nothing to model resnet50"),
        ({**IMAGES, "model": "vit_lora", "normalize": False}, "normalize = False means nothing"),
        ({**IMAGES, "model": "clip", "standardize": True}, "standardize = True means nothing"),
        ({**IMAGES, "model": "yolov8n", "sampling": "rs2"}, "sampling = 'rs2' means nothing"),
        ({**IMAGES, "model": "yolov8n", "weight": "w"}, "weight = 'w' means nothing"),
        ({**IMAGES, "model": "yolov8n", "workers": 2}, "workers = 2 means nothing"),
    ],
)
def test_one_sentence_for_each_mistake(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"sweep config: {sentence}"):
        load_sweep_config(values)


@pytest.mark.parametrize(
    ("text", "sentence"), [("- a\n- b\n", "must hold keys and values"), ("a: [", "is not YAML"), (None, "no such file")]
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=f"sweep.yaml: .*{sentence}"):
        load_sweep_config(path)


def test_an_unknown_model() -> None:
    with pytest.raises(
        UsageError,
        match="no model 'resnet'; there are: clip, .* Did you mean 'resnet50'",
    ):
        model("resnet")
