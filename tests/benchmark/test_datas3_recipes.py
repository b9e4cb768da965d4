"""The five recipes of DataS3, each run whole on a small synthetic data set in the official layout."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from datas3_ray import Lake
from datas3_ray.benchmark.deployments import find_deployment, names
from datas3_ray.benchmark.leaderboard import leaderboard
from datas3_ray.benchmark.submission import pack
from datas3_ray.benchmark.verify import verify
from datas3_ray.recipe import load_recipe, run_recipe

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "datas3"
TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
# What makes the paper's settings small: a few queries, one size, few clusters, one grid point, one epoch.
SMALL = {
    "changes": {"query.rows": 20},
    "percents": [50],
    "agree": [1, 5],
    "clusters": 10,
    "size": "50%",
}
# Where the paper's shares of a large data set would leave nothing of a small one.
CHANGES = {
    "geode": {"query.share": [0.0, 0.15], "test.share": [0.15, 0.4]},
    "fish_detection": {"query.hash": "id", "test.hash": "id"},
}
METHODS = ["everything", "query_set", "expert", "image_align-1", "image_align-5", "near_nbors", "clip_score-50"]
LABELLED = ["match_label", "match_dist-50"]
OURS = ["random", "dedup", "near", "rds_plus", "tsds", "classifier"]
EVERYWHERE = {"everything", "clip_score-50", "random", "dedup"}


def settings(folder: Path, dataset: str, data: Path, **more: Any) -> list[str]:
    clip = folder / "tiny-clip"
    clip.mkdir(exist_ok=True)
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    tiny = {"open_clip": f"local-dir:{clip}", "weights": "random", "precision": "float32"}
    encoders = {"clip": tiny, "clip_text": {**tiny, "input": "caption"}}
    labelled = LABELLED if find_deployment(names(dataset)[0]).task == "classification" else []
    methods = [m if m in EVERYWHERE else f"{m}-{{deployment}}" for m in [*METHODS, *labelled, *OURS]]
    values = {
        **SMALL,
        "data": str(data),
        "lake": str(folder / "lake"),
        "encoders": encoders,
        "methods": methods,
        **more,
    }
    values["changes"] = {**SMALL["changes"], **CHANGES.get(dataset, {})}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


PROBE = {"steps.probe.sweep.set.grid": {"lr": [0.01], "batch_size": [32]}, "steps.probe.sweep.set.epochs": 1}


def networks(*selections: str, **task: str) -> dict[str, Any]:
    """The probe is trained on every selection; networks on these, which is enough to see that they take part."""
    once = {"epochs": 1, "weights": None, **task}
    resnet = {"grid": {"lr": [0.001], "batch_size": [64]}, "options": {"image_size": 40}}
    lora = {"grid": {"lr": [0.003], "batch_size": [64]}, "options": {"image_size": 32, "architecture": "test_vit"}}
    return {
        "steps.resnet50.sweep.selections": selections,
        "steps.resnet50.sweep.set": {**once, **resnet},
        "steps.vit-lora.sweep.selections": selections,
        "steps.vit-lora.sweep.set": {**once, **lora},
    }


FEW = ["everything", "expert-{deployment}"]
YOLO = {
    "methods": FEW,
    "steps.yolov8n.sweep.set.grid": {"lr": [0.01], "batch_size": [16]},
    "steps.yolov8n.sweep.set.epochs": 1,
    "steps.yolov8n.sweep.set.weights": None,
    "steps.yolov8n.sweep.set.options": {"image_size": 64},
}


def run(dataset: str, folder: Path, **more: Any) -> Lake:
    data = folder / "data"
    if not data.exists():
        import_module(f"worlds.{dataset.replace('fish_detection', 'fishtrack')}").build(data)
    root = {
        "iwildcam": data / "iwildcam_v2.0",
        "geode": data / "geode",
        "auto_arborist": data / "auto_arborist",
        "nuscenes": data / "nuscenes",
        "fish_detection": data / "FishTrack23-Latest",
    }[dataset]
    if dataset == "iwildcam":
        more["gps"] = str(data / "gps_locations.json")
    recipe = load_recipe(RECIPES / f"{dataset}.yaml", settings(folder, dataset, root, **more))
    run_recipe(recipe, say=lambda _: None, progress=False)
    return recipe.lake


def board(lake: Lake) -> list[dict[str, Any]]:
    """The leaderboard without what names a run or a time."""
    return [
        {
            **{key: row[key] for key in ("method", "model", "mean")},
            "cells": {
                name: cell and {key: cell[key] for key in ("score", "validation", "subset_size", "test_rows", "metric")}
                for name, cell in row["deployments"].items()
            },
        }
        for row in leaderboard(lake.results()).to_rows()
    ]


def check(lake: Lake, dataset: str, few: list[str], models: list[str]) -> None:
    """The probe has every method, the other models those few; each is scored on each deployment."""
    found = board(lake)
    labelled = LABELLED if find_deployment(names(dataset)[0]).task == "classification" else []
    wanted = {model: sorted(few) for model in models}
    if dataset != "fish_detection":
        wanted["vit_linear_probe"] = sorted([*METHODS, *labelled, *OURS])
    assert {model: sorted(row["method"] for row in found if row["model"] == model) for model in wanted} == wanted
    assert len(found) == sum(map(len, wanted.values()))
    for row in found:
        assert set(row["cells"]) == {of.partition("/")[2] for of in names(dataset)}
        for name, cell in row["cells"].items():
            deployment = find_deployment(f"{dataset}/{name}")
            assert cell["metric"] == deployment.metric and cell["test_rows"] > 0, (row["method"], name)
    assert set(lake.results().column("status").to_pylist()) == {"done"}
    file = Path(lake.uri).parent / "submission.zip"
    for method in sorted({row["method"] for row in found}):
        pack(lake, method, file)
        assert {each.line() for each in verify(file, lake) if each.holds is False} == set(), method


@pytest.mark.parametrize("dataset", ["iwildcam", "geode", "auto_arborist", "nuscenes", "fish_detection"])
def test_captions_are_the_deployments_own(dataset: str) -> None:
    text = (RECIPES / f"{dataset}.yaml").read_text()
    for of in names(dataset):
        found = find_deployment(of)
        assert f'template: "{found.caption}"' in text
        assert f"{found.name}" in text


def test_iwildcam(ray_session: None, tmp_path: Path) -> None:
    lake = run("iwildcam", tmp_path, **PROBE, **networks("everything"))
    check(lake, "iwildcam", ["everything"], ["resnet50", "vit_lora"])
    assert lake.selection("expert-se_asia").lineage()["method"] == "nearby"


def test_geode(ray_session: None, tmp_path: Path) -> None:
    lake = run("geode", tmp_path, **PROBE, **networks("everything"))
    check(lake, "geode", ["everything"], ["resnet50", "vit_lora"])


def test_the_same_recipe_twice_gives_the_same_to_the_last_digit(ray_session: None, tmp_path: Path) -> None:
    boards = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lake = run("geode", tmp_path / name, deployments=["nigeria"], **PROBE, **networks("everything"))
        boards.append(board(lake))
    assert boards[0] == boards[1] and len(boards[0]) == len([*METHODS, *LABELLED, *OURS]) + 2


def test_auto_arborist(ray_session: None, tmp_path: Path) -> None:
    lake = run("auto_arborist", tmp_path, **PROBE, **networks("everything"))
    check(lake, "auto_arborist", ["everything"], ["resnet50", "vit_lora"])
    cities = set(lake.table("pool").to_arrow(["city"]).column("city").to_pylist())
    assert "surrey" in cities and not cities & {"los_angeles", "washington_dc"}


def test_nuscenes(ray_session: None, tmp_path: Path) -> None:
    task = {"task": "regression", "label": "target", "metric": "mse"}
    lake = run("nuscenes", tmp_path, **PROBE, **networks("everything", **task))
    check(lake, "nuscenes", ["everything"], ["resnet50", "vit_lora"])


def test_fish_detection(ray_session: None, tmp_path: Path) -> None:
    if find_spec("ultralytics") is None:  # importing it here would change PIL and numpy for all that follows
        pytest.skip("the extra detection is not installed")
    lake = run("fish_detection", tmp_path, **YOLO)
    check(lake, "fish_detection", ["everything", "expert"], ["yolov8n"])
