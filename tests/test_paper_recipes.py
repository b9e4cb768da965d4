"""The papers' pipelines: their values as written, and each one run on a small lake with --set."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.recipe import Recipe, load_recipe, run_recipe

ROWS = 300


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def web(lake, make_pool):
    """Rows around a few centres, some nearly the same, with captions that fit more or less."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 6, ROWS)
    clip = unit(np.eye(8)[cluster] + 0.2 * rng.normal(size=(ROWS, 8)))
    clip[200:260] = unit(clip[100:160] + 0.01 * rng.normal(size=(60, 8)))
    text = unit(clip + rng.uniform(0.1, 2, ROWS)[:, None] * rng.normal(size=(ROWS, 8)))
    dino = unit(np.eye(8)[cluster, ::-1] + 0.3 * rng.normal(size=(ROWS, 8)))

    def column(vectors: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), 8)

    words = np.array(["a zebra in tall grass", "one two three four", "zebra", "no"])
    make_pool(
        lake,
        "pool",
        [f"{i:03}" for i in range(ROWS)],
        clip,
        fragments=3,
        clip=column(clip),
        clip_text=column(text),
        dino=column(dino),
        caption=words[rng.integers(0, 4, ROWS)].tolist(),
        language=np.array(["en", "de"])[(rng.random(ROWS) < 0.2).astype(int)].tolist(),
        width=rng.integers(100, 900, ROWS).tolist(),
        height=rng.integers(100, 900, ROWS).tolist(),
    )
    examples = unit(np.eye(8)[[0, 1]] + 0.1 * rng.normal(size=(2, 8)))
    make_pool(lake, "imagenet", ["x", "y"], examples, clip=column(examples))
    return lake


def selectors(recipe: Recipe) -> dict[str, dict]:
    return {step.name: step.selector.model_dump() for step in recipe.steps if step.kind == "select"}


def run(web, name: str, *overrides: str) -> dict[str, int]:
    recipe = load_recipe(f"pipelines/{name}.yaml", [f"lake={web.uri}", *overrides])
    outcomes = run_recipe(recipe, say=lambda line: None, progress=False)
    assert not any(outcome.skipped for outcome in outcomes)
    again = run_recipe(recipe, say=lambda line: None, progress=False)
    assert all(outcome.skipped for outcome in again)
    return {step.name: len(web.selection(step.name)) for step in recipe.steps}


def ids(web, name: str) -> set[str]:
    return set(web.selection(name).ids().to_pylist())


def within(web, name: str) -> str | None:
    return web.selection(name).lineage()["within"]


def test_laion_dbp(web) -> None:
    values = selectors(load_recipe("pipelines/laion_dbp.yaml", [f"lake={web.uri}"]))
    assert values["dedup"] | {"clusters": 50_000, "size": 0.63, "keep": "hard"} == values["dedup"]
    for name, size in (("dbp-large", 0.6), ("dbp-medium", 0.4), ("dbp-small", 0.28)):
        assert values[name] | {"clusters": 500, "tau": 0.1, "neighbours": 20, "size": size} == values[name]
        assert values[name]["column"] == "dino"
    sizes = run(web, "laion_dbp", "dedup_clusters=6", "dbp_clusters=6")
    assert sizes == {"dedup": 189, "dbp-large": 113, "dbp-medium": 76, "dbp-small": 53, "random-medium": 76}
    assert all(within(web, name) == "dedup" and ids(web, name) <= ids(web, "dedup") for name in list(sizes)[1:])


def test_datacomp_medium(web) -> None:
    values = selectors(load_recipe("pipelines/datacomp_medium.yaml", [f"lake={web.uri}"]))
    assert values["dedup"] | {"clusters": 30_000, "size": 0.8} == values["dedup"]
    assert (values["clip-strict"]["size"], values["clip-loose"]["size"]) == (0.4, 0.5)
    assert values["dbp-strict"] == values["dbp-loose"]
    assert values["dbp-loose"] | {"clusters": 100, "tau": 0.1, "size": 19_000_000} == values["dbp-loose"]
    sizes = run(web, "datacomp_medium", "dedup_clusters=6", "dbp_clusters=6", "final=48")
    expected = {"dedup": 240, "clip-strict": 96, "clip-loose": 120, "dbp-strict": 48, "dbp-loose": 48}
    assert sizes == {**expected, "random-final": 48}
    assert ids(web, "dbp-strict") <= ids(web, "clip-strict") <= ids(web, "clip-loose") <= ids(web, "dedup")


def test_blindcs(web) -> None:
    values = selectors(load_recipe("pipelines/blindcs.yaml", [f"lake={web.uri}"]))["blindcs"]
    paper = {"columns": ("clip", "dino"), "draws": 1_000_000, "subspace": 2, "alpha": 1000, "beta": 4.0}
    assert values | paper == values
    sizes = run(web, "blindcs", "draws=2000", "alpha=20")
    assert sizes == {"blindcs": 30, "random": 30}
    assert "weight" in web.selection("blindcs").to_arrow().schema.names


def test_datacomp_filters(web, tmp_path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("zebra\n")
    sizes = run(web, "datacomp_filters", f"words={words}", "clusters=6", "threshold=0.7")
    rows = {row["id"]: row for row in web.table("pool").to_arrow().to_pylist()}
    english = {name for name, row in rows.items() if row["language"] == "en"}
    assert ids(web, "english") == english
    assert ids(web, "text-based") == {name for name in english if "zebra" in rows[name]["caption"]}
    assert sizes["clip-best"] == 90
    assert ids(web, "laion2b") == ids(web, "clip-above") & english
    captioned = {name for name in english if len(rows[name]["caption"].split()) >= 2}
    assert ids(web, "image-based") == ids(web, "near-clusters") & captioned
    assert ids(web, "image-based-and-clip") == ids(web, "image-based") & ids(web, "clip-best")
    assert 0 < sizes["image-based-and-clip"] < sizes["image-based"] < sizes["near-clusters"] < ROWS
    assert 0 < sizes["basic"] < len(english)
