"""Every method of the emoji recipe, on a part of the real images."""

from __future__ import annotations

from pathlib import Path

import yaml

from datas3_ray.benchmark import leaderboard
from datas3_ray.recipe import load_recipe, run_recipe

RECIPE = Path(__file__).resolve().parents[1] / "pipelines" / "emoji.yaml"


def test_every_method_takes_part(real_data: Path, ray_session: None, tmp_path: Path) -> None:
    for folder, shards in (("emoji-google", 2), ("emoji-twitter", 2), ("clipart", 1)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for shard in sorted((real_data / folder).glob("*.tar"))[:shards]:
            (tmp_path / "data" / folder / shard.name).symlink_to(shard)
    settings = [f"data={tmp_path}/data", f"lake={tmp_path}/lake", "seeds=[0, 1]"]
    settings += ["steps.probe.sweep.set.grid={batch_size: 64, lr: 0.01}", "steps.probe.sweep.set.epochs=1"]
    settings += ["steps.blind_coreset.select.blind_coreset.draws=2000"]
    recipe = load_recipe(RECIPE, settings)
    run_recipe(recipe, say=lambda _: None, progress=False)
    asked = [name.removesuffix("-{deployment}") for name in yaml.safe_load(RECIPE.read_text())["methods"]]
    board = leaderboard(recipe.lake.results())
    assert sorted(row.method for row in board.rows) == sorted(asked) and len(asked) == 26
    for row in board.rows:
        assert set(row.cells) == {"google", "twitter"}
        assert all(cell.seeds == 2 and cell.std is not None for cell in row.cells.values())
    pool = recipe.lake.selection("everything").lineage()["counts"]["eligible"]
    for name in ("random", "ssp", "k_center", "blind_coreset", "align-google", "rds_plus-google", "gotd-twitter"):
        assert len(recipe.lake.selection(name)) == int(pool * 0.25 + 0.5), name
