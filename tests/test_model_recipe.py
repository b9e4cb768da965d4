"""Every kind of model that a CPU trains, on real images, two selections and two deployments: one leaderboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.recipe import load_recipe, run_recipe

RECIPE = Path(__file__).resolve().parents[1] / "pipelines" / "emoji_models.yaml"


def test_four_kinds_of_models_sweep_the_same_selections(real_data: Path, ray_session: None, tmp_path: Path) -> None:
    for module in ("peft", "open_clip"):
        pytest.importorskip(module)
    for vendor in ("emoji-google", "emoji-twitter"):
        (tmp_path / "data" / vendor).mkdir(parents=True)
        for shard in sorted((real_data / vendor).glob("*.tar"))[:2]:
            (tmp_path / "data" / vendor / shard.name).symlink_to(shard)
    settings = [f"data={tmp_path}/data", f"lake={tmp_path}/lake", "rows=48", "epochs=1", "size=40"]
    run_recipe(load_recipe(RECIPE, settings), say=lambda _: None, progress=False)
    board = leaderboard(Lake(tmp_path / "lake").results())
    shown = {(row.model, row.method): set(row.cells) for row in board.rows}
    models = ("vit_linear_probe", "resnet50", "vit_lora", "clip")
    assert shown == {(model, method): {"google", "twitter"} for model in models for method in ("random", "near")}
    # Two batch sizes x two learning rates x two selections x two deployments.
    results = Lake(tmp_path / "lake").results().to_pylist()
    assert {model: sum(row["model"] == model for row in results) for model in models} == dict.fromkeys(models, 16)
    assert {row["status"] for row in results} == {"done"}
    assert {row["start"] for row in results} == {"scratch"}
