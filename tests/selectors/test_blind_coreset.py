"""BlindCoreset on a lake: known answers, an independent implementation, and the same bits however it is run."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import vector_rows

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.kernels.blind_coreset import UNIT
from datas3_ray.selectors import BlindCoreset, blind_coreset, column_major, make_selector

ROWS, DIMENSIONS = 300, 6


def vectors(rows: int = ROWS, dimensions: int = DIMENSIONS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, dimensions))
    return (centres[rng.integers(0, 8, rows)] + 0.4 * rng.normal(size=(rows, dimensions))).astype(np.float32)


def names(rows: int = ROWS) -> list[str]:
    return [f"folder-{i % 3}/{'x' * (i % 11)}{i:04}" for i in range(rows)]


def scores(selection) -> dict[str, float]:
    table = selection.to_arrow()
    return dict(zip(table.column("id").to_pylist(), table.column("score").to_pylist(), strict=True))


def published(z: np.ndarray, draws: int, alpha: int, beta: float, seed: int) -> np.ndarray:
    """The method as published, with numpy's own generator: full distances and a full sort for every draw."""
    rng = np.random.default_rng(seed)
    low, mode, high = z.min(axis=0), np.median(z, axis=0), z.max(axis=0)
    score = np.zeros(len(z))
    for _ in range(draws):
        dimensions = rng.choice(z.shape[1], 2, replace=False)
        point = rng.triangular(low[dimensions], mode[dimensions], high[dimensions])
        plane = z[:, dimensions].astype(np.float64)
        winner = np.argmin(np.abs(plane - point).sum(axis=1))
        distance = np.abs(plane - plane[winner]).sum(axis=1)
        near = np.argsort(distance)[1 : alpha + 1]
        penalty = distance[near] ** -beta
        score[winner] += 1
        score[near] -= penalty / penalty.sum()
    return score


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


def test_known_answer(lake, make_pool) -> None:
    """Points 0, 1, 3 on a line with two neighbours each: every draw gives its winner 1 and takes known shares."""
    make_pool(lake, "pool", ["a", "b", "c"], [[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    selector = BlindCoreset(column="vec", size=2, draws=1, alpha=2, subspace=1)
    answers = {
        0: [1, -81 / 82, -1 / 82],
        1: [-16 / 17, 1, -1 / 17],
        2: [-16 / 97, -81 / 97, 1],
    }
    selection = selector.select(lake, "pool")
    found = [scores(selection)[name] for name in "abc"]
    assert found == pytest.approx(answers[int(np.argmax(found))], abs=1e-8)
    assert selection.lineage()["report"] == {"draws": 1, "dimensions": 2, "constant_dimensions": 1, "shards": 1}


def test_ranking_agrees_with_the_published_method_as_well_as_two_of_its_seeds_do(lake, make_pool) -> None:
    z = vectors(100)
    make_pool(lake, "pool", names(100), z, fragments=2)
    theirs = [published(z, 15_000, 40, 4.0, seed) for seed in (1, 2)]
    ours = []
    for seed in (1, 2):
        selector = BlindCoreset(column="vec", size=50, draws=15_000, alpha=40, seed=seed)
        found = scores(selector.select(lake, "pool", name=f"seed{seed}"))
        ours.append(np.array([found[name] for name in names(100)]))
    between_seeds = spearman(*theirs)
    between_programs = np.mean([spearman(a, b) for a in ours for b in theirs])
    assert between_seeds > 0.85
    assert between_programs > between_seeds - 0.02
    np.testing.assert_allclose(np.std(ours), np.std(theirs), rtol=0.1)


def test_same_bits_for_any_fragments_order_tasks_blocks_and_shards(tmp_path, ray_session, make_pool, monkeypatch):
    z = np.round(vectors() * 4) / 4  # many equal distances
    z[100:110] = z[90:100]
    order = np.random.default_rng(1).permutation(ROWS)
    parameters = {"column": "vec", "size": 80, "draws": 900, "alpha": 30, "seed": 1}
    answers, shards = [], []

    def run(fragments: int, rows: np.ndarray, **changes) -> None:
        lake = Lake(tmp_path / str(len(answers)))
        make_pool(lake, "pool", [names()[i] for i in rows], z[rows], fragments=fragments)
        selection = make_selector("blind_coreset", {**parameters, **changes}).select(lake, "pool")
        table = selection.to_arrow().sort_by("id")
        answers.append((table.column("score").to_pylist(), table.column("keep").to_pylist()))
        assert abs(sum(answers[-1][0])) < 1e-9
        shards.append(selection.lineage()["report"]["shards"])

    run(1, np.arange(ROWS))
    run(3, order)
    monkeypatch.setattr(blind_coreset, "FEWEST_DRAWS", 100)  # several tasks
    monkeypatch.setattr(blind_coreset, "PLANNED_DRAWS", 500)  # two plans
    run(2, order)
    monkeypatch.setattr(column_major, "BLOCK_BYTES", 4 * ROWS * 2)  # blocks of two columns
    monkeypatch.setattr(column_major, "DEAL_BYTES", 1)  # a task a block
    monkeypatch.setattr(column_major, "RANGE_ROWS", 70)  # ids in five ranges
    run(2, order)
    monkeypatch.setattr(blind_coreset, "ROUND_DRAWS", 300)
    run(3, order, memory=4 * ROWS * DIMENSIONS / 2 / (1 << 30))
    monkeypatch.setattr(blind_coreset, "BLOCK_BYTES", 1)
    run(1, np.arange(ROWS), memory=4 * ROWS * DIMENSIONS / 4 / (1 << 30))
    assert shards[:4] == [1, 1, 1, 1]
    assert 1 < shards[4] < shards[5]
    for answer in answers[1:]:
        assert answer == answers[0]


def test_shards_that_hold_more_than_their_share_are_asked_again(tmp_path, ray_session, make_pool, monkeypatch) -> None:
    """Every third row is in one crowd, so that one of three shards has nearly all the neighbours."""
    size = 4 * 900 * DIMENSIONS
    z = vectors(900)
    z[::3] = 8 + 0.01 * z[::3]
    ids = [f"{i:04}" for i in range(900)]
    answers = []
    for shards in (1, 3):
        monkeypatch.setattr(blind_coreset, "_limits", lambda memory, shards=shards: (size // shards, size // shards))
        lake = Lake(tmp_path / str(shards))
        make_pool(lake, "pool", ids, z)
        selector = BlindCoreset(column="vec", size=80, draws=200, alpha=280, seed=1)
        selection = selector.select(lake, "pool")
        assert selection.lineage()["report"]["shards"] == shards
        answers.append(scores(selection))
    assert answers[0] == answers[1]


def test_memory_is_no_part_of_what_a_selection_is(lake, make_pool) -> None:
    make_pool(lake, "pool", names(), vectors())
    first = BlindCoreset(column="vec", size=50, draws=50, memory=1.0).select(lake, "pool", name="s")
    again = BlindCoreset(column="vec", size=50, draws=50, memory=2.0).select(lake, "pool", name="s")
    assert again.table.version == first.table.version


def test_two_columns_are_concatenated_as_they_are(tmp_path, ray_session) -> None:
    z = vectors(120, 7)
    z[3, 5:] = np.nan
    z[4, 5:] = 0.0
    rows = vector_rows(names(120), z[:, :5], "clip")
    two = rows.append_column("dino", vector_rows(names(120), z[:, 5:], "dino").column("dino"))
    good = np.setdiff1d(np.arange(120), [3, 4])
    one = vector_rows([names(120)[i] for i in good], z[good], "both")
    answers = []
    for number, (table, columns) in enumerate([(two, {"columns": ["clip", "dino"]}), (one, {"column": "both"})]):
        lake = Lake(tmp_path / str(number))
        lake.add("pool", table)
        selection = BlindCoreset(**columns, size=30, draws=300, alpha=20).select(lake, "pool")
        answers.append(scores(selection))
        assert selection.lineage()["counts"]["invalid"] == (2 if number == 0 else 0)
        assert selection.lineage()["report"]["dimensions"] == 7
    assert answers[0] == answers[1]


def test_weights_are_the_scores_from_zero_to_one(lake, make_pool) -> None:
    make_pool(lake, "pool", names(), vectors(), fragments=2)
    table = BlindCoreset(column="vec", size=50, draws=500, alpha=20).select(lake, "pool").to_arrow()
    score, weight = (table.column(name).to_numpy() for name in ("score", "weight"))
    assert (weight.min(), weight.max()) == (0.0, 1.0)
    np.testing.assert_allclose(weight, (score - score.min()) / (score.max() - score.min()))
    # Scores are whole numbers of units, all together exactly 0.
    assert int((score * UNIT).astype(np.int64).sum()) == 0


def test_copies_have_the_same_chance_and_finite_scores(lake, make_pool) -> None:
    z = np.repeat(vectors(60), 3, axis=0)
    ids = [f"{i // 3:03}-{i % 3}" for i in range(180)]
    make_pool(lake, "pool", ids, z, fragments=2)
    found = scores(BlindCoreset(column="vec", size=50, draws=2000, alpha=20).select(lake, "pool"))
    assert np.isfinite(list(found.values())).all()
    for i in range(60):
        assert found[f"{i:03}-1"] == found[f"{i:03}-2"]


def test_pools_of_one_row_and_of_none(lake, make_pool) -> None:
    make_pool(lake, "one", ["a"], [[1.0, 2.0]])
    table = BlindCoreset(column="vec", size=1, draws=10).select(lake, "one").to_arrow()
    assert [table.column(name).to_pylist() for name in ("keep", "score", "weight")] == [[True], [0.0], [1.0]]
    make_pool(lake, "none", ["a", "b"], [[0.0, 0.0], [np.nan, 1.0]])
    with pytest.raises(UsageError, match="blind_coreset: of the 2 rows of table 'none' to choose from, none has"):
        BlindCoreset(column="vec", size=1, draws=10).select(lake, "none")


def test_mistakes_are_one_sentence(lake, make_pool) -> None:
    with pytest.raises(UsageError, match="give either column or columns"):
        BlindCoreset(size=5)
    with pytest.raises(UsageError, match="give either column or columns"):
        BlindCoreset(column="a", columns=["a", "b"], size=5)
    with pytest.raises(UsageError, match="columns must be different ones"):
        BlindCoreset(columns=["a", "a"], size=5)
    for name, value in [("draws", 0), ("alpha", 0), ("beta", 0), ("subspace", 0), ("memory", 0)]:
        with pytest.raises(UsageError, match=f"blind_coreset: {name}"):
            BlindCoreset(column="vec", size=5, **{name: value})
    make_pool(lake, "pool", ["a", "b"], [[1.0, 2.0, 3.0], [1.0, 4.0, 3.0]])
    with pytest.raises(UsageError, match="subspace = 4 dimensions need as many, and the vectors of 'pool' have 3"):
        BlindCoreset(column="vec", size=1, subspace=4).select(lake, "pool")
    with pytest.raises(UsageError, match="need as many that vary, and 1 of the 3 dimensions of 'vec' do"):
        BlindCoreset(column="vec", size=1).select(lake, "pool")
    with pytest.raises(UsageError, match="column 'dino' of table 'pool' is not there"):
        BlindCoreset(columns=["vec", "dino"], size=1).select(lake, "pool")
    assert lake.names() == ["pool"]
