"""What every selector must hold to, whatever its method: one suite over the registry."""

from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.selectors import SELECTORS, make_selector
from datas3_ray.selectors.base import Selector

ROWS, DIMENSIONS = 240, 8

# Parameters that suit the pool below. A selector whose entry has no "size" decides how many rows it keeps.
PARAMETERS = {
    "everything": {},
    "random": {"size": 60, "seed": 3},
    "expert": {"where": "label = 'a'"},
    "nearby": {"km": 2000.0, "label": "label"},
    "image_align": {"column": "vec", "x": 3, "size": 60},
    "semdedup": {"column": "vec", "clusters": 6, "size": 60},
    "density_pruning": {"column": "vec", "clusters": 6, "size": 60},
    "importance_resampling": {"column": "vec", "clusters": 4, "children": 3, "size": 60, "seed": 3},
    "clip_score": {"score_column": "quality", "size": 60},
    "import_score": {"score_column": "quality", "higher_is_better": False, "size": 60},
    "stratified": {"score_column": "quality", "bins": 7, "beta": 0.1, "size": 60, "seed": 3},
    "exact_dedup": {"keep": "quality"},
    "hash_dedup": {"radius": 4, "keep": "quality"},
    "ssp": {"column": "vec", "clusters": 6, "share": 0.7, "size": 60},
    "moderate": {"column": "vec", "label": "label", "size": 60},
    "match_label": {},
    "match_dist": {"size": 60, "seed": 3},
    "blind_coreset": {"column": "vec", "size": 60, "draws": 400, "alpha": 20, "seed": 3},
    "near_neighbors": {"column": "vec", "reading": "ranked", "clusters": 6, "size": 60},
    "rds_plus": {"column": "vec", "size": 60},
    "tsds": {"column": "vec", "size": 60, "beyond": "random", "seed": 3},
    "gotd": {"column": "vec", "size": 60, "iterations": 20},
    "domain_classifier": {"column": "vec", "size": 60, "sample": True, "seed": 3},
    "k_center": {"column": "vec", "size": 60, "seed": 3},
    "datacomp_basic": {"caption": "label", "width": None, "height": None, "min_words": 1, "min_characters": 1},
    "caption_words": {"words": ["a"], "caption": "label"},
    "nearest_cluster": {"column": "vec", "clusters": 20},
}
SIZED = [method for method, parameters in PARAMETERS.items() if "size" in parameters]
EMBEDDING = [method for method, parameters in PARAMETERS.items() if "column" in parameters]
SEEDED = ["random", "blind_coreset", "importance_resampling", "k_center", "tsds", "domain_classifier"]
SEEDED += ["stratified", "match_dist"]


def world(seed: int = 0) -> tuple[list[str], np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, DIMENSIONS))
    cluster = rng.integers(0, 6, ROWS)
    vectors = centres[cluster] + 0.3 * rng.normal(size=(ROWS, DIMENSIONS))
    vectors[200:210] = vectors[190:200]  # exact duplicates
    ids = [f"shard-{i % 7}/image-{i:04}" for i in range(ROWS)]
    return ids, vectors.astype(np.float32), ["a" if c < 3 else "b" for c in cluster]


def more(ids: list[str], labels: list[str]) -> dict[str, pa.Array]:
    """Columns beside the vectors; some rows share a file, some have nearly the same hash, many the same quality."""
    number = np.array([int(name[-4:]) if name[-4:].isdigit() else 9999 for name in ids], np.uint64)
    hashes = (number // 3 + 1) * np.uint64(0x9E3779B97F4A7C15) ^ (np.uint64(5) << (number % 3 * 7))
    return {
        "label": pa.array(labels),
        "sha256": pa.array([f"{n // 2:064x}" for n in number.tolist()]),
        "phash": pa.array(hashes, pa.uint64()),
        "quality": pa.array((number % 50) / 7),
        **coordinates(number),
    }


def coordinates(number: np.ndarray) -> dict[str, pa.Array]:
    return {"latitude": pa.array(number % 140 - 70.0), "longitude": pa.array(number % 350 - 170.0)}


def build(lake: Lake, make_pool, partitions: int = 3, order: np.ndarray | None = None, vectors=None) -> None:
    ids, default, labels = world()
    vectors = default if vectors is None else vectors
    order = np.arange(ROWS) if order is None else order
    ids, labels = [ids[i] for i in order], [labels[i] for i in order]
    make_pool(lake, "pool", ids, vectors[order], fragments=partitions, **more(ids, labels))
    rng = np.random.default_rng(9)
    queries = default[:20] + 0.1 * rng.normal(size=(20, DIMENSIONS))
    columns = {"label": world()[2][:20], **coordinates(np.arange(20))}
    make_pool(lake, "query", [f"q{i}" for i in range(20)], queries, **columns)


def select(lake: Lake, method: str, name: str | None = None, **changes):
    selector = make_selector(method, {**PARAMETERS[method], **changes})
    return selector.select(lake, "pool", query="query" if selector.needs_query else None, name=name)


def chosen(selection) -> set[str]:
    ids = selection.ids().to_pylist()
    assert len(ids) == len(set(ids)), "a row was chosen twice"
    return set(ids)


def test_every_registered_selector_is_tested() -> None:
    assert set(PARAMETERS) == set(SELECTORS)


@pytest.mark.parametrize("method", PARAMETERS)
def test_rows_are_distinct_from_the_pool_and_counted(lake, make_pool, method) -> None:
    build(lake, make_pool)
    selection = select(lake, method)
    table = selection.to_arrow()
    assert table.schema.names[:3] == ["id", "keep", "score"]
    assert len(set(table.column("id").to_pylist())) == table.num_rows == ROWS
    assert chosen(selection) <= set(world()[0])
    counts = selection.lineage()["counts"]
    assert counts["kept"] == len(selection) == len(chosen(selection))
    assert counts["kept"] + counts["dropped"] == counts["eligible"] == ROWS
    if method in SIZED:
        assert len(selection) == 60


@pytest.mark.parametrize("method", PARAMETERS)
def test_same_set_for_any_partitions_and_any_row_order(tmp_path, ray_session, make_pool, method) -> None:
    answers = []
    shuffled = np.random.default_rng(1).permutation(ROWS)
    for number, (partitions, order) in enumerate([(1, None), (2, None), (7, None), (3, shuffled)]):
        lake = Lake(tmp_path / str(number))
        build(lake, make_pool, partitions, order)
        answers.append(chosen(select(lake, method)))
    assert answers[0] == answers[1] == answers[2] == answers[3]


@pytest.mark.parametrize("method", PARAMETERS)
def test_repeating_it_returns_the_same_selection_and_writes_nothing(lake, make_pool, method) -> None:
    build(lake, make_pool)
    first = select(lake, method, name="s")
    again = select(lake, method, name="s")
    assert again.table.version == first.table.version
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize("method", SEEDED)
def test_another_seed_gives_another_set(lake, make_pool, method) -> None:
    build(lake, make_pool)
    assert chosen(select(lake, method)) != chosen(select(lake, method, seed=4))


@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize(
    ("size", "kept", "shortfall"),
    [(0, 0, 0), (1, 1, 0), (ROWS, ROWS, 0), (ROWS + 5, ROWS, 5), (0.25, 60, 0), (1.0, ROWS, 0)],
)
def test_sizes(lake, make_pool, method, size, kept, shortfall) -> None:
    build(lake, make_pool, partitions=2)
    selection = select(lake, method, size=size)
    assert len(chosen(selection)) == len(selection) == kept
    assert selection.lineage()["counts"]["shortfall"] == shortfall


@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize("size", [-1, 1.5, 0.0, float("nan"), True, "many"])
def test_sizes_that_cannot_be_meant_are_refused(method, size) -> None:
    with pytest.raises(UsageError, match=f"{method}: size"):
        make_selector(method, {**PARAMETERS[method], "size": size})


@pytest.mark.parametrize("method", EMBEDDING)
def test_unusable_vectors_are_left_out_and_counted(lake, make_pool, method) -> None:
    vectors = world()[1]
    vectors[[5, 77]] = 0.0
    vectors[100, 3] = np.nan
    vectors[101] = np.inf
    build(lake, make_pool, vectors=vectors)
    selection = select(lake, method)
    counts = selection.lineage()["counts"]
    assert counts["invalid"] == 4
    assert counts["eligible"] == ROWS - 4
    assert not chosen(selection) & {world()[0][i] for i in (5, 77, 100, 101)}
    assert len(selection) == 60 or method not in SIZED


@pytest.mark.parametrize("method", EMBEDDING)
def test_scaling_all_vectors_by_two_changes_nothing(tmp_path, ray_session, make_pool, method) -> None:
    answers = []
    for scale in (1.0, 2.0):
        lake = Lake(tmp_path / str(scale))
        build(lake, make_pool, vectors=world()[1] * np.float32(scale))
        answers.append(chosen(select(lake, method)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("method", PARAMETERS)
def test_within_a_parent_selection(lake, make_pool, method) -> None:
    build(lake, make_pool)
    parent = make_selector("random", {"size": 100, "seed": 1}).select(lake, "pool", name="parent")
    selector = make_selector(method, {**PARAMETERS[method], **({"size": 40} if method in SIZED else {})})
    query = "query" if selector.needs_query else None
    selection = selector.select(lake, "pool", within="parent", query=query)
    assert chosen(selection) <= chosen(parent)
    lineage = selection.lineage()
    assert lineage["counts"]["eligible"] == 100
    assert lineage["within"] == "parent"
    assert lineage["inputs"]["parent"] == parent.table.version
    if method in SIZED:
        assert len(selection) == 40


@pytest.mark.parametrize("method", PARAMETERS)
def test_within_a_parent_that_kept_nothing_there_is_nothing_to_choose(lake, make_pool, method) -> None:
    build(lake, make_pool)
    make_selector("expert", {"where": "label = 'nobody'"}).select(lake, "pool", name="nothing")
    selector = make_selector(method, PARAMETERS[method])
    query = "query" if selector.needs_query else None
    try:
        inside = selector.select(lake, "pool", within="nothing", query=query, name="inside")
    except UsageError as error:
        assert "no eligible row" in str(error)
        assert not lake.exists("inside")
        return
    assert len(inside) == inside.to_arrow().num_rows == 0
    lineage = inside.lineage()
    assert lineage["within"] == "nothing"
    assert lineage["counts"]["outside"] == ROWS


@pytest.mark.parametrize("method", EMBEDDING)
def test_a_table_without_any_usable_vector(lake, make_pool, method) -> None:
    build(lake, make_pool, vectors=np.zeros((ROWS, DIMENSIONS)))
    with pytest.raises(UsageError, match="no eligible row|none has a usable value"):
        select(lake, method, name="s")
    assert not lake.exists("s")


@pytest.mark.parametrize("method", EMBEDDING)
def test_a_table_without_any_rows_left(lake, make_pool, method) -> None:
    build(lake, make_pool)
    lake.table("pool").dataset.delete("id is not null")
    try:
        assert len(select(lake, method)) == 0
    except UsageError as error:
        assert "no eligible row" in str(error)


@pytest.mark.parametrize("method", PARAMETERS)
def test_resizing_equals_selecting_at_that_size(lake, make_pool, method) -> None:
    build(lake, make_pool)
    selection = select(lake, method, name="s")
    if not selection.lineage()["resizable"]:
        with pytest.raises(UsageError, match="run the method again with the size"):
            selection.resize(30)
        return
    resized = selection.resize(30)
    assert resized.name == "s-30"
    assert chosen(resized) == chosen(select(lake, method, size=30))
    assert resized.lineage()["resized_from"] == "s"
    assert selection.resize(30).table.version == resized.table.version


@pytest.mark.parametrize("method", PARAMETERS)
def test_lineage_says_what_was_done(lake, make_pool, method) -> None:
    build(lake, make_pool)
    selection = select(lake, method, name="s")
    lineage = selection.lineage()
    assert lineage["method"] == method
    for key, value in PARAMETERS[method].items():
        assert lineage["parameters"][key] == value
    assert lineage["inputs"]["pool"] == lake.table("pool").version
    assert lineage["seconds"] > 0
    assert lineage["code_version"]
    assert lineage["created"].startswith("20")


@pytest.mark.parametrize("method", PARAMETERS)
def test_new_rows_make_it_stale(lake, make_pool, method) -> None:
    build(lake, make_pool)
    first = select(lake, method, name="s")
    make_pool(lake, "pool", ["new"], np.ones((1, DIMENSIONS)), **more(["new"], ["a"]))
    with pytest.raises(UsageError, match="exists and was made with other parameters or from other versions"):
        select(lake, method, name="s")
    selector = make_selector(method, PARAMETERS[method])
    query = "query" if selector.needs_query else None
    second = selector.select(lake, "pool", name="s", query=query, replace=True)
    assert second.lineage()["counts"]["eligible"] == ROWS + 1
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("method", PARAMETERS)
def test_a_parent_made_before_the_pool_grew_or_was_compacted_still_restricts(lake, make_pool, method) -> None:
    build(lake, make_pool)
    parent = chosen(make_selector("random", {"size": 100, "seed": 1}).select(lake, "pool", name="parent"))
    make_pool(lake, "pool", ["new"], np.ones((1, DIMENSIONS)), **more(["new"], ["a"]))
    selector = make_selector(method, {**PARAMETERS[method], **({"size": 40} if method in SIZED else {})})
    query = "query" if selector.needs_query else None
    grown = chosen(selector.select(lake, "pool", within="parent", query=query, name="grown"))
    lake.table("pool").dataset.optimize.compact_files()
    compacted = chosen(selector.select(lake, "pool", within="parent", query=query, name="compacted"))
    assert grown == compacted
    assert grown <= parent


@pytest.mark.parametrize("method", PARAMETERS)
def test_mistakes_are_one_sentence_and_write_nothing(lake, make_pool, method) -> None:
    build(lake, make_pool)
    before = lake.names()
    with pytest.raises(UsageError, match="has no parameter|unknown key 'sise'"):
        make_selector(method, {**PARAMETERS[method], "sise": 1})
    with pytest.raises(UsageError, match="no table 'pol'.*Did you mean 'pool'"):
        _run(lake, method, "pol")
    with pytest.raises(UsageError, match="no table 'nobody'"):
        _run(lake, method, "pool", within="nobody")
    if method in EMBEDDING:
        with pytest.raises(UsageError, match=r"its vector columns are: vec \(8\)"):
            _run(lake, method, "pool", column="vek")
    if SELECTORS[method].needs_query:
        make_pool(lake, "other", ["o1", "o2", "o3"], np.eye(3))
        before = lake.names()
        if method in EMBEDDING:
            with pytest.raises(UsageError, match="has 8 dimensions in table 'pool' and 3 in query table 'other'"):
                make_selector(method, PARAMETERS[method]).select(lake, "pool", query="other")
        with pytest.raises(UsageError, match="needs a query"):
            make_selector(method, PARAMETERS[method]).select(lake, "pool")
    else:
        with pytest.raises(UsageError, match="looks at no query"):
            make_selector(method, PARAMETERS[method]).select(lake, "pool", query="query")
    assert lake.names() == before


def _run(lake: Lake, method: str, table: str, within: str | None = None, **changes):
    selector = make_selector(method, {**PARAMETERS[method], **changes})
    return selector.select(lake, table, within=within, query="query" if selector.needs_query else None)


def test_ids_of_another_programs_table_that_are_no_strings_are_one_sentence(lake, make_pool) -> None:
    build(lake, make_pool)
    rows = lake.table("pool").to_arrow()
    numbered = rows.set_column(0, "id", pa.array(range(ROWS))).replace_schema_metadata(None)
    lancedb.connect(lake.uri).create_table("numbered", numbered)
    lancedb.connect(lake.uri).create_table("nameless", numbered.drop_columns(["id"]))
    with pytest.raises(UsageError, match="column 'id' of table 'numbered' is int64, and ids are strings"):
        _run(lake, "match_label", "numbered")
    with pytest.raises(UsageError, match="table 'nameless' has no column 'id'"):
        _run(lake, "match_label", "nameless")


def test_a_query_may_have_numbers_for_ids_or_none_where_they_decide_nothing(lake, make_pool) -> None:
    build(lake, make_pool)
    rows = lake.table("query").to_arrow().replace_schema_metadata(None)
    other = lancedb.connect(lake.uri)
    other.create_table("numbered", rows.set_column(0, "id", pa.array(range(10, 30))))
    other.create_table("nameless", rows.drop_columns(["id"]))

    def asked(method: str, query: str) -> set[str]:
        return chosen(make_selector(method, PARAMETERS[method]).select(lake, "pool", query=query))

    assert len(asked("rds_plus", "numbered")) == 60
    assert asked("nearest_cluster", "nameless") == asked("nearest_cluster", "query")
    with pytest.raises(UsageError, match="table 'nameless' has no column 'id'"):
        asked("rds_plus", "nameless")


def test_parameters_cannot_be_changed_after_construction() -> None:
    selector: Selector = make_selector("random", {"size": 5})
    with pytest.raises(ValueError, match="frozen"):
        selector.size = 6


def test_the_lake_is_listed_once_for_a_selection(lake, make_pool, monkeypatch) -> None:
    build(lake, make_pool)
    listed: list[str | None] = []
    tables = Lake.tables
    monkeypatch.setattr(Lake, "tables", lambda self, kind=None: listed.append(kind) or tables(self, kind))
    select(lake, "semdedup")
    assert listed == ["image"]


def test_sizes_from_numpy_are_counts_and_shares() -> None:
    assert make_selector("random", {"size": np.int64(1)}) == make_selector("random", {"size": 1})
    assert isinstance(make_selector("ssp", {"column": "vec", "size": np.int32(7)}).size, int)
    assert make_selector("random", {"size": np.float32(0.5)}) == make_selector("random", {"size": 0.5})
    with pytest.raises(UsageError, match="size must not be negative"):
        make_selector("random", {"size": np.int64(-1)})


def test_sizes_in_percent() -> None:
    assert make_selector("random", {"size": "25%"}) == make_selector("random", {"size": 0.25})
    assert make_selector("random", {"size": "0.1 %"}).size == 0.001
    for size in ("0%", "101%", "x%", "%", "25"):
        with pytest.raises(UsageError, match=f"size = '{size}' is not allowed"):
            make_selector("random", {"size": size})
