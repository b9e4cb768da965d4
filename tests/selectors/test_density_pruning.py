"""Density pruning: quotas sum to N exactly, and each cluster keeps its farthest rows."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.density import dbp_counts
from datas3_ray.selectors import DensityPruning, SemDeDup


@pytest.fixture
def pool(lake, make_pool):
    rng = np.random.default_rng(1)
    spread = np.repeat([0.05, 0.2, 0.6, 1.0], 75)[:, None]
    centres = np.repeat(rng.normal(size=(4, 6)), 75, axis=0)
    vectors = centres + spread * rng.normal(size=(300, 6))
    return make_pool(lake, "pool", [f"{i:03}" for i in range(300)], vectors, fragments=3)


@pytest.mark.parametrize("size", [1, 3, 10, 77, 299, 300, 0.4])
def test_sizes_sum_to_exactly_n(lake, pool, size) -> None:
    selection = DensityPruning(column="vec", clusters=9, size=size).select(lake, "pool")
    assert len(selection) == (120 if size == 0.4 else size)


def test_each_cluster_keeps_its_farthest_rows_by_quota(lake, pool) -> None:
    selection = DensityPruning(column="vec", clusters=7, size=90, tau=0.02).select(lake, "pool")
    centroids = lake.table(selection.lineage()["report"]["clusters"]).to_arrow()
    sizes = centroids.column("size").to_numpy()
    inter = np.nan_to_num(centroids.column("mean_distance_to_nearest_20").to_numpy())
    quota = dbp_counts(centroids.column("mean_distance").to_numpy(), inter, sizes, 90, 0.02)
    rows = selection.to_arrow().to_pylist()
    assert quota.sum() == 90
    assert len(set(quota.tolist())) > 2
    for cluster, wanted in enumerate(quota):
        mine = sorted((row for row in rows if row["cluster"] == cluster), key=lambda r: (r["similarity"], r["id"]))
        assert [row["keep"] for row in mine] == [place < wanted for place in range(len(mine))]


def test_on_what_semdedup_kept(lake, pool) -> None:
    dedup = SemDeDup(column="vec", clusters=5, eps=0.01).select(lake, "pool", name="dedup")
    selection = DensityPruning(column="vec", clusters=5, size=0.5).select(lake, "pool", within="dedup")
    assert len(selection) == int(len(dedup) * 0.5 + 0.5)
    assert set(selection.ids().to_pylist()) <= set(dedup.ids().to_pylist())
    assert selection.to_arrow().num_rows == len(dedup)


@pytest.mark.parametrize("tau", [float("inf"), 1e-320, 0.0, -1.0])
def test_temperatures_that_cannot_be_meant(tau) -> None:
    with pytest.raises(UsageError, match="tau = .* is not allowed"):
        DensityPruning(column="vec", size=9, tau=tau)
