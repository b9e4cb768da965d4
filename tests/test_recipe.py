"""The recipe language: variables, loops, overrides, and one sentence for whatever cannot be meant."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.recipe import load_recipe, parse_recipe, run_recipe
from datas3_ray.steps import SelectStep, SplitStep, SweepStep

SELECT = {"name": "r", "select": {"from": "pool", "random": {"size": 0.5}}}


@pytest.fixture
def filled(lake, make_pool) -> Lake:
    rng = np.random.default_rng(0)
    region = ["north" if i % 2 else "south" for i in range(60)]
    ids = [f"{i:02}" for i in range(60)]
    make_pool(lake, "pool", ids, rng.normal(size=(60, 4)), region=region, label=["ab"[i % 3 % 2] for i in range(60)])
    return lake


def recipe(lake: Lake, *steps: dict, **top) -> dict:
    return {"lake": lake.uri, **top, "steps": copy.deepcopy(list(steps))}


def sweep(config: str = "tune_configs/vit_linear_probe.yaml", **more) -> dict:
    body = {"config": config, "selections": ["r"], "deployments": {"north": {"test": "pool"}}, **more}
    return {"name": "probe", "sweep": body}


def test_variables_keep_their_type_and_nest(filled) -> None:
    raw = recipe(
        filled,
        {"name": "r", "select": {"from": "${table}", "random": {"size": "${size}", "seed": 7}}},
        table="${base}ol",
        base="po",
        size=0.25,
    )
    step = parse_recipe(raw).steps[0]
    assert isinstance(step, SelectStep)
    assert step.source == "pool"
    assert step.selector.model_dump() == {"size": 0.25, "seed": 7}


def test_loops_expand_to_one_step_a_combination(filled) -> None:
    raw = recipe(
        filled,
        {
            "name": "{region}-{half}",
            "for": {"region": ["north", "south"], "half": ["a", "b"]},
            "split": {"from": "pool", "where": "region = '{region}' AND label = '{half}'"},
        },
    )
    steps = parse_recipe(raw).steps
    assert [step.name for step in steps] == ["north-a", "north-b", "south-a", "south-b"]
    assert isinstance(steps[3], SplitStep)
    assert steps[3].split.where == "region = 'south' AND label = 'b'"


def test_overrides_reach_top_level_keys_and_steps(filled) -> None:
    raw = recipe(filled, SELECT, note="x")
    raw["steps"][0]["select"]["from"] = "${note}"
    parsed = parse_recipe(raw, overrides=["note=pool", "steps.r.select.random.size=12", "steps.r.select.random.seed=3"])
    assert parsed.steps[0].selector.model_dump() == {"size": 12, "seed": 3}


def test_a_sweep_may_name_everything_without_a_step(filled, tmp_path) -> None:
    raw = {
        "lake": str(tmp_path / "new"),
        "steps": [
            {"name": "pool", "ingest": {"source": {"webdataset": "x.tar"}, "encoders": {"lite": {"timm": "resnet18"}}}},
            {"name": "test", "split": {"from": "pool", "where": "label = 'a'"}},
            {
                "name": "probe",
                "sweep": {
                    "config": "tune_configs/vit_linear_probe.yaml",
                    "selections": ["everything"],
                    "deployments": {"north": {"test": "test"}},
                },
            },
        ],
    }
    steps = parse_recipe(raw).steps
    assert [step.name for step in steps] == ["pool", "test", "everything", "probe"]


def test_a_sweeps_selections_are_labelled_without_the_deployment(filled) -> None:
    step = SweepStep(
        name="probe",
        config={},
        selections=("everything", "near-{deployment}", "{deployment}_only"),
        deployments={"north": {"test": "t", "selections": ("mine",)}, "south": {"test": "t"}},
    )
    assert step.named_selections("north") == {
        "everything": "everything",
        "near": "near-north",
        "{deployment}_only".replace("{deployment}_", ""): "north_only",
        "mine": "mine",
    }
    assert set(step.reads()) == {"everything", "near-north", "north_only", "mine", "t", "near-south", "south_only"}


def test_running_twice_skips_and_a_change_runs_what_depends_on_it(filled) -> None:
    raw = recipe(
        filled,
        {"name": "query", "split": {"from": "pool", "where": "region = 'north'"}},
        SELECT,
        {
            "name": "near",
            "select": {"from": "pool", "within": "r", "query": "query", "image_align": {"column": "vec", "size": 5}},
        },
    )
    lines: list[str] = []
    first = run_recipe(parse_recipe(raw), say=lines.append, progress=False)
    assert [outcome.skipped for outcome in first] == [False, False, False]
    assert "15 of 30 rows kept (50.0%)" in lines[1]
    versions = {name: filled.table(name).version for name in filled.names()}
    assert all(outcome.skipped for outcome in run_recipe(parse_recipe(raw), say=lines.append, progress=False))
    assert {name: filled.table(name).version for name in filled.names()} == versions

    plan: list[str] = []
    changed = parse_recipe(raw, overrides=["steps.r.select.random.seed=1"])
    run_recipe(changed, dry_run=True, say=plan.append)
    assert "up to date" in plan[0]
    assert "random on pool" in plan[1]
    assert "will run, since r will change" in plan[2]
    assert {name: filled.table(name).version for name in filled.names()} == versions
    third = run_recipe(changed, say=lines.append, progress=False)
    assert [outcome.skipped for outcome in third] == [True, False, False]


def test_a_page_is_written_anew_only_when_something_changed(filled, tmp_path) -> None:
    raw = recipe(filled, SELECT, {"name": "page", "report": {"samples": 2}}, output=str(tmp_path / "out"))
    first = run_recipe(parse_recipe(raw), say=lambda _: None, progress=False)
    page = tmp_path / "out" / "page.html"
    written = page.stat().st_mtime_ns
    assert not first[1].skipped
    again = run_recipe(parse_recipe(raw), say=lambda _: None, progress=False)
    assert again[1].skipped
    assert page.stat().st_mtime_ns == written
    plan: list[str] = []
    run_recipe(parse_recipe(raw), dry_run=True, say=plan.append)
    assert "up to date" in plan[1]
    changed = parse_recipe(raw, overrides=["steps.r.select.random.seed=5"])
    run_recipe(changed, dry_run=True, say=plan.append)
    assert "will run, since r will change" in plan[3]
    assert not run_recipe(changed, say=lambda _: None, progress=False)[1].skipped


def test_a_plan_tells_which_column_is_missing_unless_an_earlier_step_brings_it(filled) -> None:
    """What the run would fail with: the method looks at the table when nothing was ever chosen, too."""
    coreset = {"name": "c", "select": {"from": "pool", "blind_coreset": {"columns": ["vec", "clip"], "size": 5}}}
    with pytest.raises(UsageError, match="column 'clip' of table 'pool' is not there"):
        run_recipe(parse_recipe(recipe(filled, coreset)), dry_run=True, say=lambda _: None)
    score = {"table": "pool", "column": "vec", "scores": ["el2n"], "epochs": 2}
    steps = [
        {"name": "hard", "score": score},
        {"name": "find", "index": {"from": "pool", "columns": ["el2n"]}},
        {"name": "easy", "select": {"from": "pool", "import_score": {"score_column": "el2n", "size": 5}}},
        {"name": "s", "select": {"from": "pool", "stratified": {"selection": "easy", "size": 2}}},
    ]
    plan: list[str] = []
    run_recipe(parse_recipe(recipe(filled, *steps)), dry_run=True, say=plan.append)
    assert [line.split()[0] for line in plan] == ["hard", "find", "easy", "s"]
    assert "since pool will change" in plan[1] and "since pool will change" in plan[2]


def test_a_world_that_is_there_is_planned_as_such(filled, tmp_path) -> None:
    world = {"name": "world", "synthetic": {"folder": str(tmp_path / "data"), "images": 100}}
    raw = recipe(filled, world, {"name": "page", "report": {}}, output=str(tmp_path / "out"))
    plan: list[str] = []
    run_recipe(parse_recipe(raw), dry_run=True, say=plan.append)
    assert "draw 100 images" in plan[0] and "since world will change" in plan[1]
    run_recipe(parse_recipe(raw), say=lambda _: None, progress=False)
    run_recipe(parse_recipe(raw), dry_run=True, say=plan.append)
    assert all("up to date" in line for line in plan[2:])
    assert all(outcome.skipped for outcome in run_recipe(parse_recipe(raw), say=lambda _: None, progress=False))


def test_a_page_can_go_to_an_object_store(filled) -> None:
    import fsspec

    raw = recipe(filled, SELECT, {"name": "page", "report": {"samples": 2}}, output="memory://out/")
    outcomes = run_recipe(parse_recipe(raw), say=lambda _: None, progress=False)
    assert outcomes[1].details["page"] == "memory://out/page.html"
    assert b"</html>" in fsspec.filesystem("memory").cat_file("/out/page.html")
    assert run_recipe(parse_recipe(raw), say=lambda _: None, progress=False)[1].skipped


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("steps"), "'steps' must be a list"),
        (lambda r: r.update(stpes=r.pop("steps")), "Is 'stpes' meant to be 'steps'"),
        (lambda r: r.pop("lake"), "the key 'lake' is missing"),
        (lambda r: r.update(outptu="x"), "key 'outptu' is not a recipe's key.*Did you mean 'output'"),
        (lambda r: r["steps"][0].pop("name"), "step 1 has no 'name'"),
        (
            lambda r: r["steps"][0].update(selct=r["steps"][0].pop("select")),
            "unknown key 'selct'.*Did you mean 'select'",
        ),
        (lambda r: r["steps"][0]["select"].update(witin="x"), "step 'r': unknown key 'witin'.*Did you mean 'within'"),
        (lambda r: r["steps"][0]["select"].pop("from"), "the key 'from' is missing"),
        (lambda r: r["steps"][0]["select"].update(semdedup={}), "exactly one method is needed"),
        (lambda r: r["steps"][0]["select"]["random"].update(sise=3), "random: unknown key 'sise'.*Did you mean 'size'"),
        (lambda r: r["steps"][0]["select"]["random"].update(size=1.5), "random: size = 1.5 is not allowed"),
        (lambda r: r["steps"][0]["select"].update({"from": "pol"}), "reads 'pol', which is neither an earlier step"),
        (lambda r: r["steps"][0]["select"].update(query="pool"), "random looks at no query"),
        # YAML's keys and values need not be texts: `on:` is the key True, a year is a number.
        (lambda r: r.update({True: "x"}), "the key True is no text; put it in quotes"),
        (lambda r: r["steps"][0].update({1: {}}), "step 'r': unknown key '1'"),
        (lambda r: r["steps"][0]["select"].update({1: {}}), "step 'r': unknown key '1'"),
        (lambda r: r["steps"].append({"name": "c", "combine": {1: ["a", "b"]}}), "step 'c': unknown key '1'"),
        (lambda r: r["steps"][0].update(name=2019), "step 1: name = 2019 is not allowed: a table's name is a text"),
        (lambda r: r["steps"][0]["select"].update({"from": 3}), "step 'r': from = 3 is not allowed"),
        (lambda r: r["steps"][0].update(name="a/b"), "step 'a/b': 'a/b' cannot name a table"),
        (lambda r: r.update(lake=["a"]), r"lake = \['a'\] is not allowed: it is a folder"),
        (lambda r: r.update(output={"a": 1}), "output = {'a': 1} is not allowed: it is a folder"),
        (lambda r: r.update(storage_options="x"), "storage_options must be keys and values"),
        (lambda r: r["steps"].append(dict(SELECT)), "two steps are named 'r'"),
        (lambda r: r["steps"][0]["select"].update({"from": "${tabel}"}), r"\$\{tabel\} refers to no top-level key"),
        (lambda r: r.update(a="${b}", b="${a}", lake="${a}"), "refers to itself"),
        (lambda r: r.update(data=None, lake="${data}"), r"\$\{data\} has no value; give it one with --set data=VALUE"),
        (lambda r: r["steps"][0].update({"for": ["x"]}), "'for' is written"),
        (
            lambda r: r["steps"].insert(
                0, {"name": "x", "select": {"from": "pool", "within": "r", "random": {"size": 1}}}
            ),
            "reads 'r', which comes later; move it up",
        ),
        (lambda r: r["steps"].append({"name": "s", "split": {"from": "pool"}}), "a split needs 'where'"),
        (
            lambda r: r["steps"].append(sweep(config="tune_configs/vit_linear_prob.yaml")),
            "step 'probe': no file tune_configs/vit_linear_prob.yaml",
        ),
        (lambda r: r["steps"].append(sweep(set={"epoch": 5})), "'probe': .*unknown key 'epoch'. Did you mean 'epochs'"),
        (lambda r: r["steps"].append(sweep(set={"grid.lr": ["high"]})), "'probe': .*grid.lr holds 'high'"),
        (
            lambda r: r["steps"].append({"name": "i", "ingest": {"source": {}, "encoders": {}, "worker": 2}}),
            "unknown key 'worker'.*Did you mean 'workers'",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(filled, change, says) -> None:
    raw = yaml.safe_load(yaml.safe_dump(recipe(filled, SELECT)))
    change(raw)
    before = filled.names()
    with pytest.raises(UsageError, match=says) as caught:
        parse_recipe(raw, "my.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("my.yaml: ")
    assert filled.names() == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lake", "write key=value"),
        ("steps.q.select.from=x", "no step 'q'"),
        ("steps.r={select: {from: x}}", "write steps.r.path=value"),
        ("foldr=x", r"key 'foldr' is not a recipe's key and no \$\{foldr\} refers to it. Did you mean 'folder'"),
        ("lake.a=x", "only top-level keys"),
        ("steps.r.select.from.deep=x", "has no keys"),
        ("lake=[", "the value is not YAML"),
    ],
)
def test_overrides_that_cannot_be_meant(filled, override, says) -> None:
    with pytest.raises(UsageError, match=says):
        parse_recipe(recipe(filled, SELECT, folder="here", description="${folder}"), overrides=[override])


def test_files_that_are_no_recipes(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no file nowhere\.yaml"):
        load_recipe("nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("lake: [")
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(broken)
    broken.write_text("lake: a\nsteps:\n  - {name: r, select: {from: pool, random: {size: 2, size: 3}}}\n")
    with pytest.raises(UsageError, match=r"is not YAML: the key 'size' is there twice in .*, line 3, column 54"):
        load_recipe(broken)
    broken.write_bytes("lake: caf\xe9\n".encode("latin-1"))
    with pytest.raises(UsageError, match="is not YAML: .*invalid continuation byte"):
        load_recipe(broken)
    with pytest.raises(UsageError, match="no file xxx"):
        load_recipe("x" * 300)
    broken.write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="a recipe is a mapping"):
        load_recipe(broken)


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted(ROOT.glob("pipelines/**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_that_come_with_the_project_parse(path, tmp_path, make_pool) -> None:
    for name in ("pool", "imagenet"):  # what the papers' recipes expect in the lake
        make_pool(Lake(tmp_path / "lake"), name, ["a"], [[1.0, 0.0]])
    to_be_given = re.findall(r"^(\w+): null$", path.read_text(), re.MULTILINE)
    overrides = [f"lake={tmp_path / 'lake'}", *(f"{key}={tmp_path}" for key in to_be_given)]
    parsed = load_recipe(path, overrides)
    assert parsed.steps
    assert load_recipe(str(path.relative_to(ROOT)), overrides).name == parsed.name
