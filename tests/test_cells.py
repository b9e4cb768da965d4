"""Cells inside clusters: made once for a pool, and the same however the table is laid out."""

from __future__ import annotations

import numpy as np

from datas3_ray import Lake
from datas3_ray.cells import FEWEST_ROWS, nested_cells
from datas3_ray.clustering import KMeansConfig
from datas3_ray.lake.view import View

CONFIG = KMeansConfig(clusters=4, seed=1)


def nested(lake: Lake, children: int = 5):
    return nested_cells(lake, View(lake.table("pool"), "vec"), "s", CONFIG, children)


def rows_of(found) -> dict[str, tuple[int, int]]:
    parts = found.mapped.results()
    return {
        row["id"]: (row["cluster"], row["cell"]) for part in parts for row in part.to_pylist() if row["id"] is not None
    }


def test_every_row_is_in_the_nearest_cell_of_its_cluster(lake, make_pool) -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    make_pool(lake, "pool", [f"{i:03}" for i in range(400)], vectors, fragments=3)
    found = nested(lake)
    cells = found.cells
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cluster = (unit @ cells.first.T).argmax(1)
    inside = np.where(cells.parent[None, :] == cluster[:, None], unit @ cells.second.T, -2)
    assert rows_of(found) == {f"{i:03}": (cluster[i], inside[i].argmax()) for i in range(400)}
    assert found.sizes.tolist() == np.bincount(inside.argmax(1), minlength=len(cells.second)).tolist()
    assert cells.locate_anywhere(unit.astype(np.float32)).tolist() == inside.argmax(1).tolist()
    members = np.bincount(cluster)
    assert all(1 <= (cells.parent == j).sum() <= min(5, max(1, members[j] // FEWEST_ROWS)) for j in range(4))


def test_are_made_once_and_the_same_for_any_layout(tmp_path, ray_session, make_pool) -> None:
    rng = np.random.default_rng(3)
    vectors, order = rng.normal(size=(300, 6)), rng.permutation(300)
    answers = []
    for number, (fragments, rows) in enumerate([(1, np.arange(300)), (4, order)]):
        lake = Lake(tmp_path / str(number))
        make_pool(lake, "pool", [f"{i:03}" for i in rows], vectors[rows], fragments=fragments)
        found = nested(lake)
        version = lake.table(found.name).version
        assert rows_of(nested(lake)) == rows_of(found)
        assert lake.table(found.name).version == version
        assert nested(lake, children=3).name != found.name
        answers.append((found.cells.second, rows_of(found)))
    assert np.array_equal(answers[0][0], answers[1][0])
    assert answers[0][1] == answers[1][1]


def test_a_single_child_is_the_cluster_itself(lake, make_pool) -> None:
    make_pool(lake, "pool", [f"{i:03}" for i in range(90)], np.random.default_rng(1).normal(size=(90, 4)))
    found = nested(lake, children=1)
    assert np.array_equal(found.cells.second, found.cells.first)
    assert all(cluster == cell for cluster, cell in rows_of(found).values())
