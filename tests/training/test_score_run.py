"""Scoring a pool: the right rows, the right numbers, columns made once, and nothing written where it fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.kernels import training_scores as kernels
from datas3_ray.kernels.training_scores import HARDEST
from datas3_ray.lake import row_columns
from datas3_ray.lake.optimize import OptimizeConfig, optimize_table
from datas3_ray.lake.row_columns import made_from
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Random
from datas3_ray.training.data import read_labelled
from datas3_ray.training.probe import ProbeSettings, feature_lengths, fit_probe
from datas3_ray.training.recorder import read_record
from datas3_ray.training.score_plan import ScoreConfig, parse_config, plan_scores
from datas3_ray.training.score_run import score_table

ROWS, CLASSES = 120, ("ant", "bee", "cow")
MISLABELLED = (7, 31, 64, 100)
UNLABELLED, WITHOUT_VECTOR = (5, 50), (20,)
CONFIG = ScoreConfig(scores=tuple(HARDEST), epochs=5, lr=0.02, window=4, batch_size=16)


@pytest.fixture
def pool(lake: Lake, make_pool) -> Lake:
    """Three clear classes; a few rows with another's label, without one, or without a vector."""
    rng = np.random.default_rng(0)
    y = np.arange(ROWS) % 3
    x = (3 * np.eye(3, 6)[y] + 0.4 * rng.normal(size=(ROWS, 6))).astype(np.float32)
    x[list(WITHOUT_VECTOR)] = np.nan
    told = y.copy()
    told[list(MISLABELLED)] = (y[list(MISLABELLED)] + 1) % 3
    labels = [None if i in UNLABELLED else CLASSES[code] for i, code in enumerate(told)]
    order = rng.permutation(ROWS)  # stored out of the ids' order
    ids = [f"r{i:03}" for i in order]
    site = [int(i) % 4 for i in order]
    make_pool(lake, "pool", ids, x[order], fragments=3, label=[labels[i] for i in order], site=site)
    return lake


def column(lake: Lake, name: str, table: str = "pool") -> dict[str, float | None]:
    rows = lake.table(table).to_arrow(["id", name])
    return dict(zip(rows.column("id").to_pylist(), rows.column(name).to_pylist(), strict=True))


def logits_by_hand(lake: Lake, config: ScoreConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (epochs, n, c) of probes trained anew for 1, 2, ... epochs, labels and lengths."""
    vectors = read_labelled(lake.table("pool"), "vec", "label")
    rows = np.arange(len(vectors))
    epochs = []
    for epoch in range(1, config.epochs + 1):
        settings = ProbeSettings(batch_size=config.batch_size, lr=config.lr, epochs=epoch, patience=99, seed=seed)
        # Judged by the training loss, the best epoch of this easy problem is the last one.
        fit = fit_probe(vectors.x, vectors.y, rows, rows, classes=vectors.classes, settings=settings)
        assert fit.epoch == epoch
        epochs.append(fit.probe.logits(vectors.x).numpy())
    return np.stack(epochs), vectors.y, np.linalg.norm(vectors.x, axis=1)


def test_the_numbers_are_those_of_the_proxy_s_logits(pool: Lake) -> None:
    before = pool.table("pool")
    summary = score_table(pool, "pool", CONFIG)
    assert pool.table("pool").version == before.version + 1  # one commit
    now, then = pool.table("pool").to_arrow(before.schema.names), before.to_arrow()
    assert now.drop_columns(["vec"]).equals(then.drop_columns(["vec"]))
    assert np.array_equal(matrix(now.column("vec")), matrix(then.column("vec")), equal_nan=True)
    vectors = read_labelled(pool.table("pool"), "vec", "label")
    logits, labels, _ = logits_by_hand(pool, CONFIG)
    lengths = np.full(len(labels), np.sqrt(6))  # normalize: every vector is that long
    expected = {
        "el2n": kernels.el2n(logits, labels),
        "grand": kernels.grand(logits, labels, lengths),
        "forgetting": kernels.forgetting(logits, labels),
        "aum": kernels.aum(logits, labels),
        "entropy": kernels.entropy(logits[-1]),
        "dyn_unc": kernels.dyn_unc(logits, labels, window=4),
        "tdds": kernels.tdds(logits, labels, window=4),
    }
    empty = {f"r{i:03}" for i in (*UNLABELLED, *WITHOUT_VECTOR)}
    for name, values in expected.items():
        found = column(pool, name)
        assert {row for row, value in found.items() if value is None} == empty
        assert [found[row] for row in vectors.ids.to_pylist()] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6)
    assert (summary.rows, summary.scored, summary.unlabelled, summary.unusable) == (120, 117, 2, 1)
    assert summary.columns == list(HARDEST)
    said = "written for 117 of 120 rows of pool, 2 without a label, 1 without a usable vector; the proxy gets"
    assert said in summary.sentence()
    assert summary.accuracy == pytest.approx(113 / 117)


def test_mislabelled_rows_are_at_the_hard_end(pool: Lake) -> None:
    score_table(pool, "pool", CONFIG)
    wrong = {f"r{i:03}" for i in MISLABELLED}
    for name in ("el2n", "grand", "forgetting", "aum"):
        found = {row: value for row, value in column(pool, name).items() if value is not None}
        hardest = sorted(found, key=found.__getitem__, reverse=HARDEST[name] == "highest")[:4]
        assert set(hardest) == wrong, name
        assert made_from(pool.table("pool"), name)["hardest"] == HARDEST[name]
    never = column(pool, "forgetting")
    assert {row for row, value in never.items() if value == CONFIG.epochs} == wrong


def test_scaled_vectors_have_lengths_of_their_own_in_grand(pool: Lake) -> None:
    plain = CONFIG.model_copy(update={"normalize": False, "scores": ("grand", "el2n"), "early": 1})
    score_table(pool, "pool", plain)
    vectors = read_labelled(pool.table("pool"), "vec", "label")
    rows = vectors.ids.to_pylist()
    ratio = np.array([column(pool, "grand")[row] / column(pool, "el2n")[row] for row in rows])
    assert ratio == pytest.approx(np.sqrt(np.linalg.norm(vectors.x, axis=1) ** 2 + 1), rel=1e-4)
    settings = ProbeSettings(normalize=True, standardize=True)
    scaled = feature_lengths(vectors.x, np.arange(len(rows)), settings)
    unit = vectors.x * np.sqrt(6) / np.linalg.norm(vectors.x, axis=1, keepdims=True)
    assert scaled == pytest.approx(np.linalg.norm((unit - unit.mean(0)) / unit.std(0), axis=1), rel=1e-3)


def test_several_runs_give_their_mean(pool: Lake) -> None:
    two = CONFIG.model_copy(update={"runs": 2, "scores": ("aum", "el2n"), "prefix": "two_"})
    score_table(pool, "pool", two)
    for seed in (0, 1):
        one = CONFIG.model_copy(update={"seed": seed, "scores": ("aum", "el2n"), "prefix": f"s{seed}_"})
        score_table(pool, "pool", one)
    for name in ("aum", "el2n"):
        first, second, mean = (column(pool, f"{prefix}{name}") for prefix in ("s0_", "s1_", "two_"))
        scored = [row for row, value in mean.items() if value is not None]
        assert [mean[row] for row in scored] == pytest.approx([(first[r] + second[r]) / 2 for r in scored], rel=1e-5)
        assert any(first[row] != second[row] for row in scored)


def test_rows_that_a_split_set_aside_are_not_trained_on(pool: Lake, make_pool) -> None:
    split_table(pool, "pool", "test", Split(where="site = 1"))
    held_out = set(pool.table("test").to_arrow(["id"]).column("id").to_pylist())
    config = CONFIG.model_copy(update={"scores": ("aum",)})
    summary = score_table(pool, "pool", config)
    assert summary.held_out == len(held_out) == 30
    found = column(pool, "aum")
    assert all(found[row] is None for row in held_out)
    # The same numbers as where those rows had never been there.
    rest = pool.table("pool").to_arrow(["id", "vec", "label"], filter="site != 1")
    pool.add("rest", rest)
    score_table(pool, "rest", config)
    alone = column(pool, "aum", "rest")
    assert {row: found[row] for row in alone} == alone


def test_columns_are_made_once_for_the_same_inputs(pool: Lake) -> None:
    config = CONFIG.model_copy(update={"scores": ("el2n", "tdds")})
    drawn = Random(size=5, seed=0)
    drawn.select(pool, "pool", name="drawn")
    assert plan_scores(pool, "pool", config).describe() == "train a proxy on vec for 5 epochs, add el2n, tdds to pool"
    score_table(pool, "pool", config)
    version = pool.table("pool").version
    assert score_table(pool, "pool", config).sentence() == "the scores of pool are up to date."
    optimize_table(pool, "pool", OptimizeConfig(prune=False))
    assert plan_scores(pool, "pool", config).describe() == "up to date"
    assert pool.table("pool").version > version
    # Another score is added without touching those that are there, and no selection is stale.
    before = column(pool, "el2n")
    more = config.model_copy(update={"scores": ("el2n", "aum")})
    assert list(plan_scores(pool, "pool", more).todo) == ["aum"]
    score_table(pool, "pool", more)
    assert column(pool, "el2n") == before
    assert drawn.is_current(pool, "pool", "drawn")
    # decay bears on tdds alone, and the order of the rows on nothing.
    other = CONFIG.model_copy(update={"decay": 0.5, "scores": ("el2n", "tdds", "aum")})
    plan = plan_scores(pool, "pool", other)
    assert plan.describe() == "train a proxy on vec for 5 epochs, replace tdds in pool"
    tdds = column(pool, "tdds")
    score_table(pool, "pool", other)
    assert column(pool, "tdds") != tdds
    assert column(pool, "el2n") == before
    # Both settle: replaced columns do not make the others stale.
    assert plan_scores(pool, "pool", other).is_done
    assert plan_scores(pool, "pool", more).is_done


def test_new_rows_and_new_splits_make_scores_stale_and_a_split_made_again_does_not(pool: Lake) -> None:
    config = CONFIG.model_copy(update={"scores": ("aum",)})
    score_table(pool, "pool", config)
    split_table(pool, "pool", "test", Split(where="site = 1"))
    assert plan_scores(pool, "pool", config).replaced == ("aum",)
    score_table(pool, "pool", config)
    # The replacement changed the table, so a recipe would split again: to the same rows.
    split_table(pool, "pool", "test", Split(where="site = 1"), replace=True)
    assert plan_scores(pool, "pool", config).is_done
    rows = pool.table("pool").to_arrow().slice(0, 1)
    pool.add("pool", rows.set_column(0, "id", pa.array(["r999"])))
    assert plan_scores(pool, "pool", config).replaced == ("aum",)
    score_table(pool, "pool", config)
    assert column(pool, "aum")["r999"] is not None


def test_logits_are_recorded_and_score_the_same(pool: Lake, tmp_path: Path) -> None:
    folder = str(tmp_path / "logits")
    config = CONFIG.model_copy(update={"record": folder, "record_dtype": "float32", "scores": ("aum", "tdds")})
    summary = score_table(pool, "pool", config)
    assert summary.recorded == folder
    record = read_record(f"{folder}/seed-0")
    assert (record.logits.shape, record.classes, record.complete) == ((5, 117, 3), CLASSES, True)
    for name, values in record.scores(["aum", "tdds"], window=4).items():
        stored = column(pool, name)
        assert [stored[row] for row in record.ids.to_pylist()] == pytest.approx(values.tolist(), rel=1e-5, abs=1e-7)
    assert plan_scores(pool, "pool", config).is_done
    elsewhere = config.model_copy(update={"record": str(tmp_path / "other")})
    assert plan_scores(pool, "pool", elsewhere).describe().endswith(f"epochs, record logits in {tmp_path}/other")
    version = pool.table("pool").version
    assert score_table(pool, "pool", elsewhere).columns == []
    assert np.array_equal(read_record(tmp_path / "other" / "seed-0").logits, record.logits)
    assert pool.table("pool").version == version


def test_a_record_of_other_settings_is_made_anew(pool: Lake, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"scores": ("aum",), "prefix": "slow_"})
    score_table(pool, "pool", config)
    with_record = config.model_copy(update={"record": str(tmp_path / "logits")})
    other = with_record.model_copy(update={"lr": 0.5, "prefix": "fast_"})
    score_table(pool, "pool", other)
    assert plan_scores(pool, "pool", other).is_done
    assert plan_scores(pool, "pool", with_record).unrecorded
    assert score_table(pool, "pool", with_record).columns == []
    record = read_record(tmp_path / "logits" / "seed-0")
    stored = column(pool, "slow_aum")
    found = [stored[row] for row in record.ids.to_pylist()]
    assert found == pytest.approx(record.scores(["aum"])["aum"].tolist(), rel=1e-2, abs=1e-2)
    assert plan_scores(pool, "pool", with_record).is_done and plan_scores(pool, "pool", other).unrecorded


def test_the_probe_s_hook_gives_every_training_row_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from datas3_ray.training import probe

    monkeypatch.setattr(probe, "CHUNK_ROWS", 7)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    train = rng.permutation(40)[:30]
    found: dict[int, list] = {}
    fit = fit_probe(
        x,
        y,
        train,
        train,
        classes=CLASSES,
        settings=ProbeSettings(epochs=3, patience=3),
        on_logits=lambda epoch, first, logits: found.setdefault(epoch, []).append((first, logits)),
    )
    assert [first for first, _ in found[1]] == [0, 7, 14, 21, 28]
    blocks = {epoch: np.concatenate([logits for _, logits in parts]) for epoch, parts in found.items()}
    assert sorted(blocks) == [1, 2, 3]
    assert np.array_equal(blocks[fit.epoch], fit.probe.logits(x[train]).numpy())


def test_divergence_and_meddling_write_nothing(pool: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    version = pool.table("pool").version
    wild = CONFIG.model_copy(update={"lr": 3e37, "normalize": False})
    with pytest.raises(Datas3Error, match=r"scoring table 'pool' stopped: .* a smaller lr may help \(it is 3e\+37\)"):
        score_table(pool, "pool", wild)
    assert pool.table("pool").version == version
    commit = row_columns.commit_columns

    def late(table, *rest):
        pool.table("pool").dataset.delete("id = 'r000'")
        return commit(table, *rest)

    monkeypatch.setattr(row_columns, "commit_columns", late)
    with pytest.raises(Datas3Error, match="table 'pool' was changed by another program"):
        score_table(pool, "pool", CONFIG)
    assert "aum" not in pool.table("pool").schema.names


def test_a_replacement_that_is_cut_short_is_made_again(pool: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    import lance

    score_table(pool, "pool", CONFIG.model_copy(update={"scores": ("aum",)}))
    other = CONFIG.model_copy(update={"scores": ("aum", "el2n"), "epochs": 4})
    with monkeypatch.context() as patch:
        # The process ends when the values are there and what the field says of them is not.
        patch.setattr(lance.LanceDataset, "update_field_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score_table(pool, "pool", other)
    assert plan_scores(pool, "pool", other).todo == {"aum": "aum"}
    half = column(pool, "aum")
    score_table(pool, "pool", other)
    assert plan_scores(pool, "pool", other).is_done
    assert column(pool, "aum") == half
    assert made_from(pool.table("pool"), "aum")["epochs"] == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "the key 'scores' is missing"),
        ({"scores": []}, r"name one or more of el2n, grand"),
        ({"scores": ["el2m"]}, r"no score 'el2m'; there are: .* Did you mean 'el2n'\?"),
        ({"scores": ["aum", "aum"]}, "a score is named twice"),
        ({"scores": ["aum"], "epoch": 5}, r"unknown key 'epoch'.* Did you mean 'epochs'\?"),
        ({"scores": ["aum"], "epochs": 0}, r"epochs = 0 is not allowed: input should be greater than or equal to 1"),
        ({"scores": ["aum"], "prefix": "2-"}, r"prefix = '2-' is not allowed: a column's name has letters"),
        ({"scores": ["dyn_unc"], "epochs": 1}, "dyn_unc needs windows of 2 epochs or more, got 1"),
        ({"scores": ["tdds"], "epochs": 2}, "tdds needs windows of 3 epochs or more, got 2"),
        ({"scores": ["tdds"], "window": 12}, "tdds needs 12 epochs, one window, got 10"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_config(values)


def test_tables_that_cannot_be_scored(pool: Lake, make_pool) -> None:
    def refused(says: str, table: str = "pool", **changes) -> None:
        with pytest.raises(UsageError, match=says):
            score_table(pool, table, CONFIG.model_copy(update=changes))

    refused("no table 'pol'.* Did you mean 'pool'", "pol")
    refused(r"column 'vex' .* is not there; its vector columns are: vec \(6\)", column="vex")
    refused("has no column 'lable'.* Did you mean 'label'", label="lable")
    refused("holds fixed_size_list.*, not classes", label="vec")
    make_pool(pool, "one", ["a", "b"], np.eye(2), label=["x", "x"])
    refused("the 2 rows of table 'one' to train on are of one class in 'label'", "one")
    make_pool(pool, "none", ["a", "b"], np.eye(2), label=pa.nulls(2, pa.string()))
    refused(r"no row with both a 'label' and a vector in 'vec' to train on \(2 without a label", "none")
    make_pool(pool, "own", ["a", "b"], np.eye(2), label=["x", "y"], aum=[1.0, 2.0])
    refused("has a column 'aum' that no scoring made; choose other names with 'prefix'", "own")
    assert made_from(pool.table("own"), "aum") is None


def test_a_column_says_how_it_was_made(pool: Lake) -> None:
    score_table(pool, "pool", CONFIG.model_copy(update={"scores": ("tdds", "aum")}))
    field = pool.table("pool").schema.field("tdds")
    about = json.loads(field.metadata[b"datas3:numbers"])
    assert field.type == pa.float32()
    assert {key: about[key] for key in ("score", "column", "label", "epochs", "window", "decay", "scored")} == {
        "score": "tdds",
        "column": "vec",
        "label": "label",
        "epochs": 5,
        "window": 4,
        "decay": 0.9,
        "scored": 117,
    }
    assert "window" not in made_from(pool.table("pool"), "aum")
