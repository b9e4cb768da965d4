"""A real sweep, and a submission of it."""

from __future__ import annotations

import pytest
from benchmark.submissions import NOW, rows

from datas3_ray import Lake
from datas3_ray.benchmark.submission import Packed, pack
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Everything, Random
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.sweep import Deployment, run_sweep


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Lake:
    """A pool of 450 rows of which two fifths are set aside, two selections, and a sweep of four points, two seeds."""
    folder = tmp_path_factory.mktemp("submission")
    lake = Lake(folder / "lake")
    lake.add("pool", rows(450))
    for part in ("test", "query"):
        split_table(lake, "pool", f"north-{part}", Split(where=f"part = '{part}'"))
    Everything().select(lake, "pool", name="all")
    Random(size=60, seed=1).select(lake, "pool", name="some")
    config = SweepConfig(grid={"batch_size": (16, 32), "lr": (30.0, 0.01)}, epochs=2, seed=(0, 1), normalize=False)
    north = Deployment("north", "north-test", "north-query", {"everything": "all", "random": "some"})
    run_sweep(
        lake, config, name="probe", deployments={"north": north}, storage=str(folder / "runs"), progress=lambda _: None
    )
    return lake


@pytest.fixture(scope="session")
def packed(swept: Lake, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(swept, "random", tmp_path_factory.mktemp("packed") / "random.zip", now=NOW)
