"""Old and new rows of one cluster, block by block, beside brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.similarity import normalize
from datas3_ray.selectors import semdedup_raised as module
from datas3_ray.selectors.grouping import Group, load_group
from datas3_ray.selectors.semdedup_raised import Raised

DIMENSIONS = 6


def rows_of(prefix: str, count: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Rows in five clusters, with repeated keys and repeated vectors, of any length."""
    rng = np.random.default_rng(seed)
    vectors = np.random.default_rng(0).normal(size=(20, DIMENSIONS))[rng.integers(0, 20, count)]
    vectors[::3] += 0.1 * rng.normal(size=vectors[::3].shape)
    table = pa.table(
        {
            "id": [f"{prefix}{number:03}" for number in rng.permutation(count)],
            "cluster": pa.array(rng.integers(0, 5, count), pa.int32()),
            "key": rng.integers(0, 4, count).astype(np.float64),
        }
    )
    return table, (vectors * rng.uniform(0.1, 9, (count, 1))).astype(np.float32)


def earlier(a: dict, b: dict) -> bool:
    return (a["key"], a["id"]) < (b["key"], b["id"])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.round(normalize(a)[0].astype(np.float64) @ normalize(b)[0].astype(np.float64).T * SCALE).astype(int)


def expected(part: pa.Table, old: np.ndarray, group: Group) -> tuple[dict[int, tuple], dict[int, tuple]]:
    """Of each old row the best earlier new row that its own maximum does not beat, and of each new row the best old."""
    keys = cosines(old, group.matrix())
    new = [
        {"id": name.as_py(), "cluster": int(cluster), "key": key}
        for name, cluster, key in zip(group.ids, group.cluster, group.key, strict=True)
    ]
    mine: dict[int, tuple] = {}
    theirs: dict[int, tuple] = {}
    for position, row in enumerate(part.to_pylist()):
        had = round(row["max_similarity"] * SCALE)
        for number, other in enumerate(new):
            if row["cluster"] != other["cluster"] or keys[position, number] <= 0:
                continue
            found = int(keys[position, number])
            if earlier(other, row):
                if found >= had and found > mine.get(position, (0,))[0]:
                    mine[position] = (found, number)
            elif found > theirs.get(number, (0,))[0] or (
                found == theirs[number][0] and earlier(row, {"key": theirs[number][1], "id": theirs[number][2]})
            ):
                theirs[number] = (found, row["key"], row["id"])
    return mine, theirs


@pytest.mark.parametrize("tile_rows", [1, 7, 1000])
@pytest.mark.parametrize("run_pairs", [3, 40, 1 << 20])
@pytest.mark.parametrize("batch", [5, 64])
def test_equals_brute_force_whatever_the_blocks(monkeypatch, tile_rows: int, run_pairs: int, batch: int) -> None:
    monkeypatch.setattr(module, "TILE_BYTES", 4 * DIMENSIONS * tile_rows)
    monkeypatch.setattr(module, "RUN_PAIRS", run_pairs)
    part, old = rows_of("o", 90, 1)
    had = np.random.default_rng(3).uniform(0, 1, 90).astype(np.float32).round(3)
    had[:20] = 1.0
    part = part.append_column("max_similarity", pa.array(had))
    rows, vectors = rows_of("n", 30, 2)
    group = load_group([{"rows": rows, "vectors": normalize(vectors)[0], "part": 0, "position": np.arange(30)}])
    raised = Raised(part, group)
    for start in range(0, 90, batch):
        raised.add(old[start : start + batch])
    mine, theirs = raised.tables()
    wanted_mine, wanted_theirs = expected(part, old, group)
    found = {row["position"]: (row["millionths"], row["new"]) for row in mine.to_pylist()}
    # A row may be named whose cosine is a little less than what was had: it changes nothing.
    least = {position: round(float(had[position]) * SCALE) for position in found}
    assert {p: pair for p, pair in found.items() if pair[0] >= least[p]} == wanted_mine
    assert {r["new"]: (r["millionths"], r["key"], r["id"]) for r in theirs.to_pylist()} == wanted_theirs
    assert wanted_mine and wanted_theirs


def test_what_is_known_of_new_rows_rules_pairs_out_and_changes_no_answer() -> None:
    part, old = rows_of("o", 90, 1)
    part = part.append_column("max_similarity", pa.array(np.ones(90, np.float32)))
    rows, vectors = rows_of("n", 30, 2)
    group = load_group([{"rows": rows, "vectors": normalize(vectors)[0], "part": 0, "position": np.arange(30)}])
    _, wanted = expected(part, old, group)
    least = np.zeros(30, np.float32)
    for number, (millionths, *_) in wanted.items():
        least[number] = (millionths - 1) / SCALE if number % 2 else 0
    answers, pairs = [], []
    for known in (None, least):
        raised = Raised(part, group, known)
        for start in range(0, 90, 10):
            raised.add(old[start : start + 10])
        answers.append({r["new"]: (r["millionths"], r["key"], r["id"]) for r in raised.tables()[1].to_pylist()})
        pairs.append(sum(len(found[0]) for found in raised.found))
    assert answers[0] == answers[1] == wanted
    assert pairs[1] < pairs[0]
    assert least.max() > 0.5  # and the caller's array is as it was
    assert (least[::2] == 0).all()


def test_lengths_whose_squares_float32_cannot_hold() -> None:
    part, old = rows_of("o", 40, 1)
    part = part.append_column("max_similarity", pa.array(np.zeros(40, np.float32)))
    rows, vectors = rows_of("n", 20, 2)
    group = load_group([{"rows": rows, "vectors": normalize(vectors)[0], "part": 0, "position": np.arange(20)}])
    answers = []
    for scale in (1.0, 1e25, 1e-25):
        raised = Raised(part, group)
        raised.add((old * np.float32(scale)).astype(np.float32))
        answers.append([table.to_pylist() for table in raised.tables()])
    assert answers[0][0] and answers[1] == answers[0] == answers[2]


def test_no_new_rows_and_no_old_rows() -> None:
    part, old = rows_of("o", 10, 1)
    part = part.append_column("max_similarity", pa.array(np.zeros(10, np.float32)))
    rows, vectors = rows_of("n", 5, 2)
    group = load_group([{"rows": rows, "vectors": normalize(vectors)[0], "part": 0, "position": np.arange(5)}])
    empty = {"rows": rows.slice(0, 0), "vectors": vectors[:0], "part": 0, "position": np.arange(0)}
    nobody = Raised(part, load_group([empty]))
    nobody.add(old)
    assert [table.num_rows for table in nobody.tables()] == [0, 0]
    assert [table.num_rows for table in Raised(part.slice(0, 0), group).tables()] == [0, 0]
