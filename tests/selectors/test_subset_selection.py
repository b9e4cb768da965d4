"""Methods outside the package: written in ten lines, named in a recipe, part of everything."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.recipe import parse_recipe, run_recipe
from datas3_ray.selectors import Expert, Random, SubsetSelection, make_selector

ROOT = Path(__file__).parents[2]


def code_of_the_page(page: str = "docs/own_methods.md") -> str:
    return re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """``module(text)`` writes a module into the working folder, gives its name, and forgets it in the end."""
    name = f"own_{abs(hash(request.node.name))}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop(name, None)


@pytest.fixture
def pool(lake, make_pool):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(120, 6)).astype(np.float32)
    vectors[7] = 0
    ids = [f"r{i:03}" for i in range(120)]
    make_pool(lake, "pool", ids, vectors, fragments=3, width=list(range(120)), label=["cat", "dog"] * 60)
    make_pool(lake, "query", [f"q{i}" for i in range(8)], rng.normal(size=(8, 6)), label=["cat", "dog"] * 4)
    make_pool(lake, "test", [f"t{i}" for i in range(20)], rng.normal(size=(20, 6)), label=["cat", "dog"] * 10)
    return vectors


def expected(lake: Any, vectors: np.ndarray, size: int) -> list[str]:
    query = np.stack(lake.table("query").to_arrow(["vec"]).column("vec").to_pylist())
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    score = unit @ query.mean(axis=0)
    score[7] = -np.inf
    return sorted(f"r{i:03}" for i in np.argsort(-score, kind="stable")[:size])


def test_the_page_s_example_takes_part_in_a_whole_recipe(lake, pool, module, tmp_path) -> None:
    name = module(code_of_the_page())
    raw = {
        "lake": lake.uri,
        "output": str(tmp_path / "output"),
        "steps": [
            {
                "name": "mine",
                "select": {"from": "pool", "query": "query", f"{name}:NearestToMean": {"column": "vec", "size": 30}},
            },
            {"name": "random", "select": {"from": "pool", "random": {"size": 30}}},
            {
                "name": "probe",
                "sweep": {
                    "config": "tune_configs/vit_linear_probe.yaml",
                    "set": {"grid": {"lr": [0.01], "batch_size": [32]}, "epochs": 2},
                    "selections": ["mine", "random"],
                    "deployments": {"here": {"test": "test"}},
                },
            },
        ],
    }
    said: list[str] = []
    recipe = parse_recipe(raw)
    run_recipe(recipe, say=said.append, progress=False)
    mine = lake.selection("mine")
    assert sorted(mine.ids().to_pylist()) == expected(lake, pool, 30)
    assert mine.lineage()["method"] == "nearest_to_mean" and len(mine.lineage()["code"]) == 16
    assert mine.lineage()["counts"]["invalid"] == 1
    assert len(mine.resize(5).ids()) == 5
    assert set(lake.results().column("method").to_pylist()) == {"mine", "random"}
    said.clear()
    run_recipe(parse_recipe(raw), say=said.append, progress=False)
    assert all("up to date" in line for line in said)


def test_the_example_of_a_selector_leaves_out_rows_without_a_value(lake, make_pool, module) -> None:
    path = f"{module(code_of_the_page('CONTRIBUTING.md'))}:Brightest"
    light = [None if i % 3 == 0 else float(i) for i in range(60)]
    make_pool(lake, "pool", [f"{i:02}" for i in range(60)], np.eye(60), fragments=3, light=light)
    bright = make_selector(path, {"by": "light", "size": 4}).select(lake, "pool", name="bright")
    assert sorted(bright.ids().to_pylist()) == ["55", "56", "58", "59"]
    counts = bright.lineage()["counts"]
    assert (counts["rows"], counts["invalid"], counts["eligible"]) == (60, 20, 40)
    with pytest.raises(UsageError, match="no column 'ligth'"):
        make_selector(path, {"by": "ligth", "size": 4}).select(lake, "pool")


def test_a_row_without_a_score_is_one_sentence_that_names_the_method(lake, pool, module) -> None:
    name = module(
        "import pyarrow as pa\n"
        "from datas3_ray.selectors.base import Outcome, Selector, score_table\n"
        "class Blind(Selector):\n"
        "    method = 'blind'\n"
        "    size: int\n"
        "    def choose(self, inputs):\n"
        "        return Outcome(inputs.view.map(_score), size=self.size)\n"
        "def _score(fragment):\n"
        "    ids = fragment.ids()\n"
        "    return score_table(ids, pa.nulls(len(ids), pa.float64()))\n"
    )
    with pytest.raises(UsageError, match=r"^blind: the scores cannot be ranked: 40 scores are NaN.*counted invalid\.$"):
        make_selector(f"{name}:Blind", {"size": 3}).select(lake, "pool", name="blind")
    assert not lake.exists("blind")


def test_other_code_is_another_method(lake, pool, module) -> None:
    name = module(code_of_the_page())
    first = make_selector(f"{name}:NearestToMean", {"column": "vec", "size": 30})
    first.select(lake, "pool", query="query", name="mine")
    assert first.is_current(lake, "pool", "mine", query="query")
    module(code_of_the_page().replace("rows.vectors @", "-rows.vectors @"))
    second = make_selector(f"{name}:NearestToMean", {"column": "vec", "size": 30})
    assert not second.is_current(lake, "pool", "mine", query="query")
    second.select(lake, "pool", query="query", name="mine", replace=True)
    assert sorted(lake.selection("mine").ids().to_pylist()) != expected(lake, pool, 30)


def test_columns_without_vectors_and_any_partitions(lake, pool, make_pool, module) -> None:
    name = module(
        "from datas3_ray.selectors import SubsetSelection\n"
        "class WideFirst(SubsetSelection):\n"
        "    reads = ('width',)\n"
        "    def score(self, rows, query):\n"
        "        assert rows.vectors is None and query is None\n"
        "        return rows['width'] % 50\n"
    )
    make_pool(lake, "one", [f"r{i:03}" for i in range(120)], np.ones((120, 2)), width=list(range(120)))
    selector = make_selector(f"{name}:WideFirst", {"size": 4})
    kept = [selector.select(lake, table, name=f"s-{table}").ids().to_pylist() for table in ("pool", "one")]
    assert sorted(kept[0]) == sorted(kept[1]) == ["r048", "r049", "r098", "r099"]
    parent = Random(size=30).select(lake, "pool", name="parent")
    inside = selector.select(lake, "pool", within="parent", name="inside")
    assert set(inside.ids().to_pylist()) < set(parent.ids().to_pylist())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("return rows.vectors", r"score gave shape \(\d+, 6\) for \d+ rows"),
        ("return [float('nan')] * len(rows)", "the score of row 'r\\d+' is nan"),
        ("return [1e300] * len(rows)", "not a finite float32"),
        ("return rows['height']", "score failed: KeyError"),
    ],
)
def test_scores_that_cannot_be_ranked(lake, pool, module, text: str, said: str) -> None:
    name = module(
        "from datas3_ray.selectors import SubsetSelection\n"
        "class Odd(SubsetSelection):\n    column: str\n    def score(self, rows, query):\n"
        f"        {text}\n"
    )
    with pytest.raises(UsageError, match=said):
        make_selector(f"{name}:Odd", {"column": "vec", "size": 3}).select(lake, "pool", name="odd")
    assert not lake.exists("odd")


def test_paths_that_name_no_selector(module) -> None:
    name = module(
        "from datas3_ray.selectors import SubsetSelection\n"
        "class Mine(SubsetSelection): pass\n"
        "class Taken(SubsetSelection): method = 'expert'\n"
        "class Thing: pass\n"
    )
    for path, said in (
        ("no_such_module_of_mine:A", "no module 'no_such_module_of_mine': it is neither installed nor in"),
        (f"{name}:Mina", "has no class 'Mina'. Did you mean 'Mine'"),
        (f"{name}:Thing", "is no selector: make it a subclass"),
        (f"{name}:Taken", "calls itself 'expert'"),
        ("os.path:", "names no class; write package.module:Class"),
        (f"{name}:Mine", "the key 'size' is missing"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            make_selector(path, {})
    with pytest.raises(UsageError, match="unknown key 'sise'"):
        make_selector(f"{name}:Mine", {"sise": 3})
    broken = module("import not_there_at_all\n")
    with pytest.raises(UsageError, match="needs 'not_there_at_all', which is not installed"):
        make_selector(f"{broken}:Mine", {})
    broken = module("1 / 0\n")
    with pytest.raises(UsageError, match="cannot be imported: ZeroDivisionError"):
        make_selector(f"{broken}:Mine", {})


def test_a_class_without_score_says_so(lake, pool) -> None:
    class Empty(SubsetSelection):
        pass

    with pytest.raises(UsageError, match="does not implement score"):
        Empty(size=3).select(lake, "pool")
    assert Expert.method == "expert"
