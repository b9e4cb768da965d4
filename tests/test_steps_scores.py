"""The step score and the command of the same name, from drawn images to selections that are cut by the scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from command import datas3

from datas3_ray import Lake, cli, cli_scores
from datas3_ray.errors import UsageError
from datas3_ray.kernels.training_scores import HARDEST
from datas3_ray.recipe import Recipe, parse_recipe, run_recipe
from datas3_ray.sources.synthetic import World, generate

TINY = {"timm": "test_resnet", "weights": "random", "image_size": 32, "precision": "float32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The camera-trap world with every fifth label wrong and every tenth missing."""
    folder = tmp_path_factory.mktemp("world")
    generate(folder, World(images=200, shards=4, corrupt=2, size=(64, 48), mislabelled=0.2, unlabelled=0.1))
    return folder


@pytest.fixture(scope="module")
def ingested(world: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that holds the world's images and their vectors, to be copied."""
    folder = tmp_path_factory.mktemp("ingested") / "lake"
    run(recipe(Lake(folder), world, first=1))
    return folder


@pytest.fixture
def filled(ingested: Path, lake: Lake) -> Lake:
    shutil.copytree(ingested, lake.uri)
    return lake


def recipe(lake: Lake, world: Path, *overrides: str, first: int | None = None) -> Recipe:
    columns = {"true_label": "json.true_label", "site": "json.site"}
    source = {"webdataset": f"{world}/*.tar", "columns": columns}
    steps = [
        {"name": "pool", "ingest": {"source": source, "encoders": {"lite": TINY}}},
        {"name": "test", "split": {"from": "pool", "hash": "site", "share": [0.0, 0.2]}},
        {"name": "random", "select": {"from": "pool", "random": {"size": 20, "seed": 0}}},
        {
            "name": "dynamics",
            "score": {"table": "pool", "column": "lite", "scores": list(HARDEST), "epochs": 6, "lr": 0.01, "seed": 0},
        },
        {"name": "hard", "select": {"from": "pool", "import_score": {"score_column": "el2n", "size": 30}}},
        {
            "name": "clean",
            "select": {"from": "pool", "import_score": {"score_column": "aum", "size": 0.5}},
        },
        {
            "name": "covering",
            "select": {"from": "pool", "stratified": {"score_column": "el2n", "size": 40, "bins": 10, "beta": 0.1}},
        },
        {
            "name": "margins",
            "select": {
                "from": "pool",
                "stratified": {"score_column": "aum", "size": 40, "bins": 10, "beta": 0.1, "hardest": "lowest"},
            },
        },
    ]
    return parse_recipe({"lake": lake.uri, "steps": steps[:first]}, overrides=overrides)


def run(made: Recipe, **options) -> dict[str, str]:
    lines: list[str] = []
    run_recipe(made, say=lines.append, progress=False, **options)
    return {line.split()[0]: line for line in lines}


def scored(lake: Lake, name: str) -> dict[str, float]:
    rows = lake.table("pool").to_arrow(["id", name]).to_pylist()
    return {row["id"]: row[name] for row in rows if row[name] is not None}


def test_from_images_to_selections(filled: Lake, world: Path) -> None:
    lines = run(recipe(filled, world))
    held_out = set(filled.table("test").to_arrow(["id"]).column("id").to_pylist())
    pool = filled.table("pool").to_arrow(["id", "label", "true_label"]).to_pylist()
    expected = {row["id"] for row in pool if row["label"] and row["id"] not in held_out}
    assert 100 < len(expected) < 200 - len(held_out)
    assert f"written for {len(expected)} of 200 rows of pool" in lines["dynamics"]
    for name in HARDEST:
        values = scored(filled, name)
        assert set(values) == expected, name
        assert np.isfinite(list(values.values())).all(), name
    # The cuts are those of the columns.
    hard, aum = scored(filled, "el2n"), scored(filled, "aum")
    assert set(filled.selection("hard").ids().to_pylist()) == set(sorted(hard, key=lambda i: (-hard[i], i))[:30])
    clean = set(filled.selection("clean").ids().to_pylist())
    assert clean == set(sorted(aum, key=lambda i: (-aum[i], i))[: (len(aum) + 1) // 2])
    # Wrong labels gather where margins are small.
    wrong = {row["id"] for row in pool if row["id"] in expected and row["label"] != row["true_label"]}
    assert len(wrong & clean) < len(wrong - clean)
    for name, values, hardest in (("covering", hard, 1), ("margins", aum, -1)):
        rows = filled.selection(name).to_arrow().to_pylist()
        assert sum(row["keep"] for row in rows) == 40
        dropped = {row["id"] for row in rows if row["stratum"] < 0}
        count = round(0.1 * len(values))
        assert dropped == set(sorted(values, key=lambda i: (hardest * values[i], i), reverse=True)[:count])
    counts = filled.selection("hard").lineage()["counts"]
    assert counts["invalid"] == 200 - len(held_out) - len(expected)
    assert counts["held_out"] == len(held_out)


def test_a_second_run_does_nothing_and_settings_make_it_work_again(filled: Lake, world: Path) -> None:
    run(recipe(filled, world))
    versions = {name: filled.table(name).version for name in filled.names()}
    again = recipe(filled, world)
    assert all("up to date" in line for line in run(again, dry_run=True).values())
    assert "the scores of pool are up to date" in run(again)["dynamics"]
    assert {name: filled.table(name).version for name in filled.names()} == versions
    # random is from before the scores: their columns have not made it stale.
    changed = recipe(filled, world, "steps.dynamics.score.scores=[aum]", "steps.dynamics.score.epochs=4")
    lines = run(changed, dry_run=True)
    assert "train a proxy on lite for 4 epochs, replace aum in pool" in lines["dynamics"]
    assert "up to date" in lines["random"]
    before, clean = scored(filled, "aum"), filled.selection("clean").table.version
    run(changed)
    assert scored(filled, "aum") != before
    assert filled.selection("clean").table.version != clean
    # Then it settles, although the pool's values changed and the split was made again.
    run(changed)
    versions = {name: filled.table(name).version for name in filled.names()}
    assert all(outcome.skipped for outcome in run_recipe(changed, say=lambda line: None, progress=False))
    assert {name: filled.table(name).version for name in filled.names()} == versions


def test_what_a_step_cannot_mean(lake: Lake) -> None:
    def refused(says: str, **body) -> None:
        with pytest.raises(UsageError, match=says):
            parse_recipe({"lake": lake.uri, "steps": [{"name": "s", "score": body}]})

    refused("step 's': the key 'table' is missing", scores=["aum"])
    refused("step 's': the key 'scores' is missing", table="pool")
    refused(r"step 's': unknown key 'score'; it takes: scores, .* Did you mean 'scores'\?", table="pool", score=["aum"])
    refused(r"step 's': .*no score 'entropie'.* Did you mean 'entropy'\?", table="pool", scores=["entropie"])
    refused("step 's' reads 'pool', which is neither", table="pool", scores=["aum"])


def test_the_command(lake: Lake, make_pool, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli, "err", Console(width=300, stderr=True))
    rng = np.random.default_rng(0)
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], rng.normal(size=(40, 4)), label=["a", "b"] * 20)
    words = ["score", "pool", "--lake", lake.uri, "--scores", "el2n, aum", "--epochs", "3", "--column", "vec"]
    status, out, _ = datas3(*words, "--dry-run", capsys=capsys)
    assert (status, out) == (0, "pool: train a proxy on vec for 3 epochs, add el2n, aum to pool\n")
    assert lake.table("pool").schema.names == ["id", "label", "vec"]
    status, out, _ = datas3(*words, "--json", "--set", "lr=0.1", "--record", str(tmp_path / "logits"), capsys=capsys)
    (row,) = json.loads(out)
    assert (status, row["columns"], row["scored"], row["classes"]) == (0, ["el2n", "aum"], 40, 2)
    assert (tmp_path / "logits" / "seed-0" / "logits.npy").is_file()
    assert datas3(*words, "--set", "lr=0.1", capsys=capsys)[1] == "the scores of pool are up to date.\n"
    assert "replace el2n, aum in pool" in datas3(*words, "--dry-run", capsys=capsys)[1]
    status, out, _ = datas3(*words, "--prefix", "early_", "--runs", "2", capsys=capsys)
    assert out.startswith("early_el2n, early_aum written for 40 of 40 rows of pool; the proxy gets ")
    for extra, says in (
        (("--set", "lr"), "--set 'lr': write key=value."),
        (("--set", "epochs=3"), "--set 'epochs=3': there is an option --epochs for it."),
        (("--set", "lrr=3"), "unknown key 'lrr'; it takes: scores, "),
        (("--label", "lable"), "table 'pool' has no column 'lable'"),
    ):
        status, _, err = datas3(*words, *extra, capsys=capsys)
        assert status == 2
        assert says in " ".join(err.split())


def test_the_help_names_every_score() -> None:
    command = typer.main.get_command(cli.app).commands["score"]
    (option,) = [parameter for parameter in command.params if parameter.name == "scores"]
    assert all(name in option.help for name in HARDEST)
    assert cli_scores.score.__doc__ in command.help
