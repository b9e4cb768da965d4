"""SSP: floors of both balances, and the farthest of what is left."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.ranking import top_n
from datas3_ray.kernels.strata import floor_counts
from datas3_ray.selectors.ssp import SSP, with_floors

DISTANCE = {"a1": 0.9, "a2": 0.8, "a3": 0.7, "a4": 0.6, "b1": 0.3, "b2": 0.2}


@pytest.mark.parametrize(
    ("share", "balance", "kept"),
    [
        (0.0, "proportional", {"a1", "a2", "a3", "a4"}),
        (1.0, "proportional", {"a1", "a2", "a3", "b1"}),
        (1.0, "equal", {"a1", "a2", "b1", "b2"}),
    ],
)
def test_the_three_readings_differ(ray_session, share, balance, kept) -> None:
    import ray

    ids = sorted(DISTANCE, key=lambda name: name[::-1])  # clusters mixed
    part = pa.table(
        {
            "id": ids,
            "cluster": pa.array([int(name[0] == "b") for name in ids], pa.int32()),
            "similarity": pa.array([1 - DISTANCE[name] for name in ids], pa.float32()),
        }
    )
    sizes = np.array([4, 2])
    floors = floor_counts(sizes, 4, share, balance)
    cut = pa.concat_tables(ray.get(with_floors([ray.put(part.slice(0, 2)), ray.put(part.slice(2))], sizes, floors)))
    found = top_n(cut.column("score").to_numpy(), cut.column("id"), 4)
    assert {name for name, keep in zip(cut.column("id").to_pylist(), found, strict=True) if keep} == kept


def brute_force(rows, sizes, total, share, balance) -> set[str]:
    def order(row):
        return (-(1 - row["similarity"]), row["id"])

    kept = []
    filled = sum(size > 0 for size in sizes)
    for cluster, size in enumerate(sizes):
        floor = math.floor(share * size * total / len(rows)) if balance == "proportional" else 0
        floor = min(size, math.floor(share * total / filled)) if balance == "equal" else floor
        kept += sorted((row for row in rows if row["cluster"] == cluster), key=order)[:floor]
    names = {row["id"] for row in kept}
    rest = sorted((row for row in rows if row["id"] not in names), key=order)
    return names | {row["id"] for row in rest[: total - len(names)]}


@pytest.mark.parametrize("balance", ["proportional", "equal"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_equals_brute_force(lake, make_pool, balance, share) -> None:
    rng = np.random.default_rng(3)
    spread = np.repeat([0.1, 0.4, 1.0], [100, 60, 40])[:, None]
    vectors = np.repeat(rng.normal(size=(3, 6)), [100, 60, 40], axis=0) + spread * rng.normal(size=(200, 6))
    ids = [f"{i:03}" for i in rng.permutation(200)]
    make_pool(lake, "pool", ids, vectors, fragments=3)
    selection = SSP(column="vec", size=70, clusters=5, share=share, balance=balance).select(lake, "pool")
    rows = selection.to_arrow().to_pylist()
    sizes = np.bincount([row["cluster"] for row in rows], minlength=5)
    assert set(selection.ids().to_pylist()) == brute_force(rows, sizes, 70, share, balance)
    assert selection.lineage()["report"]["bound_rows"] == sum(row["bound"] for row in rows)
    assert all(row["keep"] for row in rows if row["bound"])


def test_share_is_a_share() -> None:
    with pytest.raises(UsageError, match="ssp: share = 1.5"):
        SSP(column="vec", size=5, share=1.5)
