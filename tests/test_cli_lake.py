"""The commands embed, optimize, index and gc, and the recipe steps of the same names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import datas3
from PIL import Image

from datas3_ray import Lake, cli
from datas3_ray.errors import UsageError
from datas3_ray.lake.storage import dataset_uri, write_fragments
from datas3_ray.selectors import Random
from datas3_ray.steps import Context
from datas3_ray.steps_lake import OptimizeStep, make_embed, make_index

TINY = "{timm: test_resnet, weights: random, image_size: 32, precision: float32}"


@pytest.fixture
def filled(lake, make_pool, tmp_path, monkeypatch) -> Lake:
    from rich.console import Console

    monkeypatch.setattr(cli, "err", Console(width=200, stderr=True))
    rng = np.random.default_rng(0)
    uris = []
    for number in range(30):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
        uris.append(str(path))
    sizes = [Path(uri).stat().st_size for uri in uris]
    columns = {"uri": uris, "offset": [0] * 30, "length": sizes, "label": ["ab"[i % 2] for i in range(30)]}
    make_pool(lake, "pool", [f"{i:02}" for i in range(30)], rng.normal(size=(30, 8)), fragments=3, **columns)
    return lake


def test_optimize(filled, capsys) -> None:
    Random(size=10, seed=1).select(filled, "pool", name="some")
    words = ["optimize", "--lake", filled.uri, "--keep-days", "0"]
    status, out, _ = datas3(*words, "--dry-run", capsys=capsys)
    assert status == 0
    assert "pool: 3 fragments would become 1 (30 rows" in out
    assert len(filled.table("pool").fragment_ids()) == 3
    status, out, _ = datas3(*words, "pool", "--json", capsys=capsys)
    (row,) = json.loads(out)
    assert (status, row["fragments_after"], row["referenced"]) == (0, 1, [3])
    assert "none too small" in datas3(*words, "pool", capsys=capsys)[1]


def test_index(filled, capsys) -> None:
    words = ["index", "pool", "--lake", filled.uri]
    status, out, _ = datas3(*words, capsys=capsys)
    assert status == 0
    assert out.splitlines() == [
        "BTREE on id built: ids are all different.",
        "no index on vec: 30 rows are searched exactly and fast; it pays from 100000 rows (or name a kind).",
    ]
    status, out, _ = datas3(*words, "--column", "vec", "--kind", "ivf_flat", capsys=capsys)
    assert out.startswith("IVF_FLAT on vec built: 30 vectors, cosine, 4 partitions")
    rows = json.loads(datas3(*words, "--all", "--json", capsys=capsys)[1])
    assert {row["column"]: row["action"] for row in rows} == {"id": "up to date", "vec": "up to date", "label": "built"}


def test_gc(filled, capsys) -> None:
    words = ["gc", "--lake", filled.uri, "--older-than", "0"]
    assert datas3(*words, capsys=capsys)[1] == "nothing is left over.\n"
    table = filled.table("pool")
    write_fragments(table.to_arrow().slice(0, 4), dataset_uri(filled.uri, "pool"), append=True)
    status, out, _ = datas3(*words, "--dry-run", capsys=capsys)
    assert status == 0
    assert "pool: 1 files" in out
    assert "data/" in out
    (row,) = json.loads(datas3(*words, "--json", capsys=capsys)[1])
    assert (row["table"], len(row["files"])) == ("pool", 1)
    assert datas3(*words, capsys=capsys)[1] == "nothing is left over.\n"
    assert datas3("gc", "--lake", filled.uri, "--older-than", "soon", capsys=capsys)[0] == 2


def test_embed_and_the_steps(filled, capsys, tmp_path) -> None:
    words = ["embed", "pool", "--lake", filled.uri, "--encoder", f"dino={TINY}"]
    status, out, _ = datas3(*words, "--dry-run", capsys=capsys)
    assert status == 0
    assert "pool: new column dino: 3 of 3 fragments (30 rows in all)" in out
    (row,) = json.loads(datas3(*words, "--json", capsys=capsys)[1])
    assert (row["vectors"], row["nulls"]) == (30, 0)
    assert filled.table("pool").vector_columns() == {"vec": 8, "dino": 96}
    assert "dino of pool is up to date." in datas3(*words, capsys=capsys)[1]

    context = Context(filled, str(tmp_path / "out"), progress=False)
    spec = {"timm": "test_resnet", "weights": "random", "image_size": 32, "precision": "float32"}
    step = make_embed("more", {"from": "pool", "encoders": {"dino": spec}}, OptimizeStep)
    assert step.plan(context) == "up to date"
    assert step.run(context).skipped
    step = OptimizeStep(name="tidy", tables=("pool",), keep_days=0)
    assert step.reads() == ["pool"]
    assert "3 fragments would become 1" in step.plan(context)
    assert not step.run(context).skipped
    assert step.plan(context) == "up to date"
    assert step.run(context).skipped
    step = make_index("find", {"from": "pool", "columns": ["label"]}, OptimizeStep)
    assert "would be built" in step.plan(context)
    assert not step.run(context).skipped
    assert step.plan(context) == "up to date"
    for body, says in (({}, "'from' is missing"), ({"from": "pool", "colums": ["x"]}, "unknown key 'colums'")):
        with pytest.raises(UsageError, match=says):
            make_index("find", dict(body), OptimizeStep)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "pool", "--encoder", "dino"], "write NAME={timm: MODEL, ...}"),
        (["embed", "pool", "--encoder", "dino={timm"], "is not YAML"),
        (["embed", "pool", "--encoder", "dino=5"], "expected a mapping"),
        (["embed", "pool"], "Missing option"),
        (["optimize", "pol"], "no table 'pol'"),
        (["index", "pool", "--column", "labl"], "no column 'labl'"),
        (["index", "pool", "--kind", "btree"], "--kind btree needs a --column"),
        (["index", "pool", "--column", "id", "--all"], "exclude each other"),
        (["gc", "pol"], "no table 'pol'"),
    ],
)
def test_mistakes(filled, capsys, words, says) -> None:
    status, _, complaint = datas3(*words, "--lake", filled.uri, capsys=capsys)
    assert status == 2
    assert says in " ".join(complaint.split())
