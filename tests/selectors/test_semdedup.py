"""SemDeDup against brute force, and the known answers of points on a circle."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import Random, SemDeDup


def circle(degrees: list[float]) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def brute_force(ids, vectors, cluster, similarity, eps) -> tuple[set[str], dict[str, float]]:
    """Every pair of every cluster in float64, rows ordered by (similarity to the centroid, id)."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    kept, largest = set(), {}
    for number in np.unique(cluster):
        rows = sorted(np.flatnonzero(cluster == number), key=lambda i: (similarity[i], ids[i].encode()))
        for place, row in enumerate(rows):
            earlier = [float(unit[row] @ unit[other]) for other in rows[:place]]
            largest[ids[row]] = round(max([0.0, *earlier]), 6)
            if not largest[ids[row]] > 1 - eps:
                kept.add(ids[row])
    return kept, largest


@pytest.mark.parametrize("bucket_rows", [100_000, 40, 7])
def test_equals_brute_force_whole_and_split_over_tasks(lake, make_pool, monkeypatch, bucket_rows) -> None:
    monkeypatch.setattr(SemDeDup, "bucket_rows", bucket_rows)
    rng = np.random.default_rng(5)
    base = rng.normal(size=(60, 16))
    vectors = np.concatenate([base, base + 0.05 * rng.normal(size=base.shape), base[:30], rng.normal(size=(50, 16))])
    vectors = vectors.astype(np.float32)
    ids = [f"id{i:03}" for i in rng.permutation(len(vectors))]
    make_pool(lake, "pool", ids, vectors, fragments=4)
    selection = SemDeDup(column="vec", clusters=5, eps=0.03).select(lake, "pool", name="dedup")
    table = selection.to_arrow()
    at = {name: i for i, name in enumerate(ids)}
    cluster, similarity = np.zeros(len(ids), int), np.zeros(len(ids))
    for row in table.to_pylist():
        cluster[at[row["id"]]], similarity[at[row["id"]]] = row["cluster"], row["similarity"]
    kept, largest = brute_force(ids, vectors, cluster, similarity, 0.03)
    assert set(selection.ids().to_pylist()) == kept
    assert 0 < len(kept) < len(ids)
    for row in table.to_pylist():
        assert row["max_similarity"] == pytest.approx(largest[row["id"]], abs=1.5e-6)
        assert row["keep"] == (row["id"] in kept)
        assert row["score"] == pytest.approx(1 - largest[row["id"]], abs=1.5e-6)
        if not row["keep"]:
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            cosine = unit[at[row["id"]]] @ unit[at[row["duplicate_of"]]]
            assert cosine == pytest.approx(row["max_similarity"], abs=1e-5)


def test_copies_of_one_vector_leave_the_smallest_id(lake, make_pool) -> None:
    vectors = np.concatenate([np.tile(circle([10]), (5, 1)), circle([100, 200])])
    make_pool(lake, "pool", ["e", "c", "d", "b", "f", "x", "y"], vectors, fragments=3)
    selection = SemDeDup(column="vec", clusters=3, eps=1e-5).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {"b", "x", "y"}


def test_no_two_kept_rows_are_within_eps_and_smaller_eps_keeps_more(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(150, 3)).astype(np.float32)
    ids = [f"{i:03}" for i in range(150)]
    make_pool(lake, "pool", ids, vectors, fragments=2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    before: set[str] = set()
    for eps in (0.2, 0.05, 0.01):
        selection = SemDeDup(column="vec", clusters=1, eps=eps).select(lake, "pool")
        kept = set(selection.ids().to_pylist())
        assert before <= kept
        before = kept
        rows = [int(name) for name in kept]
        cosines = unit[rows] @ unit[rows].T - np.eye(len(rows))
        assert cosines.max() <= 1 - eps + 1e-5


def test_a_finished_selection_answers_every_eps(lake, make_pool) -> None:
    rng = np.random.default_rng(2)
    make_pool(lake, "pool", [f"{i:03}" for i in range(80)], rng.normal(size=(80, 3)))
    first = SemDeDup(column="vec", clusters=4, eps=0.2).select(lake, "pool").to_arrow()
    scores = dict(zip(first.column("id").to_pylist(), first.column("score").to_pylist(), strict=True))
    second = SemDeDup(column="vec", clusters=4, eps=0.05).select(lake, "pool")
    assert set(second.ids().to_pylist()) == {name for name, score in scores.items() if score >= 0.05 - 1e-9}


def near_duplicates(rows: int, seed: int, d: int = 12) -> np.ndarray:
    """Unit rows around a few centres, many nearly the same, some the same."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(77).normal(size=(25, d))
    vectors = base[rng.integers(0, 25, rows)] + 0.2 * rng.normal(size=(rows, d))
    vectors[: rows // 8] = vectors[rows // 2 : rows // 2 + rows // 8]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clusters_in_order(table, keys=None):
    """Ids of each cluster as the rows rank, from a finished selection; ``keys`` in place of the similarity."""
    rows = table.to_pylist()
    keys = keys or {row["id"]: row["similarity"] for row in rows}
    rows.sort(key=lambda row: (row["cluster"], keys[row["id"]], row["id"].encode()))
    groups: dict[int, list[str]] = {}
    for row in rows:
        groups.setdefault(row["cluster"], []).append(row["id"])
    return list(groups.values())


@pytest.mark.parametrize("rule", ["leader", "components"])
def test_other_rules_equal_brute_force_whole_and_split(lake, make_pool, monkeypatch, rule) -> None:
    vectors = near_duplicates(240, 1)
    ids = [f"n{i:03}" for i in range(240)]
    make_pool(lake, "pool", ids, vectors, fragments=3)
    cosine = dict(zip(ids, vectors.astype(np.float64), strict=True))
    tables = []
    for bucket_rows in (100_000, 30, 11):
        monkeypatch.setattr(SemDeDup, "bucket_rows", bucket_rows)
        selector = SemDeDup(column="vec", clusters=4, eps=0.08, rule=rule)
        tables.append(selector.select(lake, "pool", name=f"{rule}-{bucket_rows}").to_arrow())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    found = {row["id"]: row for row in tables[0].to_pylist()}
    for names in clusters_in_order(tables[0]):
        near = {a: [b for b in names if b != a and round(cosine[a] @ cosine[b], 6) > 0.92] for a in names}
        kept: list[str] = []
        group: dict[str, str] = {}
        for name in names:
            if rule == "leader":
                if not any(other in kept for other in near[name]):
                    kept.append(name)
            elif name not in group:
                kept.append(name)
                todo = [name]
                while todo:
                    one = todo.pop()
                    if one not in group:
                        group[one] = name
                        todo += near[one]
        assert [name for name in names if found[name]["keep"]] == kept
        for name in set(names) - set(kept):
            if rule == "leader":
                assert found[name]["duplicate_of"] in kept
                assert cosine[name] @ cosine[found[name]["duplicate_of"]] > 0.92 - 1e-6
            else:
                assert found[name]["duplicate_of"] == group[name]
    kept = {name for name, row in found.items() if row["keep"]}
    paper = set(SemDeDup(column="vec", clusters=4, eps=0.08).select(lake, "pool").ids().to_pylist())
    assert paper < kept if rule == "leader" else kept < paper


def test_a_column_says_which_duplicate_stays(lake, make_pool) -> None:
    rng = np.random.default_rng(4)
    vectors = np.repeat(rng.normal(size=(20, 8)), 2, axis=0) + 1e-3 * rng.normal(size=(40, 8))
    ids = [f"{i:02}" for i in range(40)]
    sharpness = rng.permutation(40).astype(float)
    sharpness[4] = np.nan
    columns = {"sharpness": sharpness, "width": [10 + i % 7 for i in range(40)], "height": [30 - i for i in range(40)]}
    make_pool(lake, "pool", ids, vectors, fragments=2, **columns)

    def stays(**parameters):
        selection = SemDeDup(column="vec", clusters=3, eps=0.01, **parameters).select(lake, "pool")
        assert len(selection) == 20
        return {int(name) for name in selection.ids().to_pylist()}

    best = np.where(np.isnan(sharpness), -1, sharpness).reshape(-1, 2)
    assert stays(keep="sharpness") == set((2 * np.arange(20) + best.argmax(1)).tolist())
    worst = np.where(np.isnan(sharpness), 99, sharpness).reshape(-1, 2)
    assert stays(keep="sharpness", higher_is_better=False) == set((2 * np.arange(20) + worst.argmin(1)).tolist())
    area = (np.array(columns["width"]) * np.array(columns["height"])).reshape(-1, 2)
    assert stays(keep="resolution") == set((2 * np.arange(20) + area.argmax(1)).tolist())
    with pytest.raises(UsageError, match="table 'pool' has no column 'sharpnes'.*Did you mean 'sharpness'"):
        SemDeDup(column="vec", keep="sharpnes").select(lake, "pool")
    with pytest.raises(UsageError, match="column 'id' of table 'pool' is string; a column of numbers is needed"):
        SemDeDup(column="vec", keep="id").select(lake, "pool")


def test_eps_for_a_size_is_the_other_way_round(lake, make_pool) -> None:
    make_pool(lake, "pool", [f"{i:03}" for i in range(120)], near_duplicates(120, 2), fragments=3)
    selection = SemDeDup(column="vec", clusters=4, eps=0.05).select(lake, "pool")
    distinct = sum(row["max_similarity"] < 1 for row in selection.to_arrow().to_pylist())
    assert 90 < distinct < 120
    for size in (1, 40, 60, 0.5, distinct):
        eps = SemDeDup.eps_for(selection, size)
        count = round(size * 120) if isinstance(size, float) else size
        assert len(SemDeDup(column="vec", clusters=4, eps=eps).select(lake, "pool")) >= count
        if eps < 1:
            assert len(SemDeDup(column="vec", clusters=4, eps=eps + 1e-6).select(lake, "pool")) < count
    with pytest.raises(UsageError, match=f"has {distinct} rows that are no exact copy .* no eps keeps {distinct + 1}"):
        SemDeDup.eps_for(selection, distinct + 1)
    with pytest.raises(UsageError, match="was not made by semdedup with rule: paper"):
        SemDeDup.eps_for(Random(size=5).select(lake, "pool"), 3)


def test_an_eps_is_taken_to_the_last_digit(lake, make_pool) -> None:
    """1 - 0.07 is less than 0.93 in binary: a cosine of just 0.93 is a distance of 0.07 and not nearer."""
    vectors = np.array([[1, 0], [0.93, np.sqrt(1 - 0.93**2)]])
    make_pool(lake, "pool", ["a", "b"], vectors)
    assert len(SemDeDup(column="vec", clusters=1, eps=0.07).select(lake, "pool")) == 2
    assert len(SemDeDup(column="vec", clusters=1, eps=0.070002).select(lake, "pool")) == 1


@pytest.mark.parametrize("keep", ["hard", "random", "sharpness"])
def test_an_update_equals_a_full_run_with_the_same_centroids(lake, make_pool, keep) -> None:
    rng = np.random.default_rng(3)
    old, new = near_duplicates(300, 1), near_duplicates(40, 2)
    order = rng.permutation(300)
    new[:12] = old[order[:12]]  # copies of old rows, of each other and of neither
    old[order[20]] = 0  # unusable
    new[12:15] = new[15]
    new[30] = 0
    names = rng.permutation(340)
    ids = [f"r{names[i]:03}" for i in range(340)]
    sharpness = rng.integers(0, 9, 340).astype(float)
    make_pool(lake, "pool", ids[:300], old, fragments=4, sharpness=sharpness[:300])
    selector = SemDeDup(column="vec", clusters=5, eps=0.05, keep=keep)
    first = selector.select(lake, "pool", name="first")
    make_pool(lake, "pool", ids[300:], new, fragments=2, sharpness=sharpness[300:])
    updated = selector.update(lake, "pool", since="first", name="updated")
    centroids = first.lineage()["report"]["centroids"]
    assert updated.lineage()["report"]["new_rows"] == 39
    whole = SemDeDup(column="vec", centroids=centroids, eps=0.05, keep=keep).select(lake, "pool", name="whole")
    assert "new_rows" not in whole.lineage()["report"]
    assert updated.to_arrow().equals(whole.to_arrow())
    assert updated.lineage()["counts"] == whole.lineage()["counts"]
    assert updated.fingerprint == whole.fingerprint
    before = dict(zip(*(first.to_arrow().column(name).to_pylist() for name in ("id", "duplicate_of")), strict=True))
    after = dict(zip(*(updated.to_arrow().column(name).to_pylist() for name in ("id", "duplicate_of")), strict=True))
    assert any(after[name] != before[name] for name in before), "new rows should take a place before some old ones"


def test_an_update_may_take_another_size_its_own_name_and_no_new_rows(lake, make_pool) -> None:
    vectors = near_duplicates(200, 5)
    make_pool(lake, "pool", [f"{i:03}" for i in range(200)], vectors, fragments=2)
    SemDeDup(column="vec", clusters=3, eps=0.05).select(lake, "pool", name="dedup")
    same = SemDeDup(column="vec", size=50).update(lake, "pool", since="dedup", name="fifty")
    assert len(same) == 50
    make_pool(lake, "pool", ["x1", "x2"], vectors[:2])
    again = SemDeDup(column="vec", eps=0.05).update(lake, "pool", since="dedup", name="dedup", replace=True)
    assert again.lineage()["report"]["new_rows"] == 2
    make_pool(lake, "pool", ["y"], vectors[5:6])
    third = SemDeDup(column="vec", eps=0.05).update(lake, "pool", since="dedup", name="third")
    centroids = again.lineage()["report"]["centroids"]
    whole = SemDeDup(column="vec", centroids=centroids, eps=0.05).select(lake, "pool", name="whole")
    assert third.lineage()["report"]["new_rows"] == 1
    assert third.to_arrow().equals(whole.to_arrow())


@pytest.mark.parametrize("change", ["deleted", "held out", "held out, by a column", "many", "rule"])
def test_an_update_that_more_than_new_rows_needs_compares_all(lake, make_pool, change) -> None:
    vectors = near_duplicates(120, 6)
    make_pool(lake, "pool", [f"{i:03}" for i in range(120)], vectors, fragments=3, sharpness=np.arange(120.0))
    rule = {"rule": {"rule": "leader"}, "held out, by a column": {"keep": "sharpness"}}.get(change, {})
    selector = SemDeDup(column="vec", clusters=3, eps=0.05, **rule)
    first = selector.select(lake, "pool", name="first")
    rows = 80 if change == "many" else 3
    make_pool(lake, "pool", [f"n{i}" for i in range(rows)], vectors[:rows], sharpness=np.zeros(rows))
    if change == "deleted":
        lake.table("pool").dataset.delete("id in ('007', '050')")
    if change.startswith("held out"):
        from datas3_ray.lake.splits import Split, split_table

        split_table(lake, "pool", "test", Split(where="id in ('007', '050')"))
    updated = selector.update(lake, "pool", since="first", name="updated")
    assert "new_rows" not in updated.lineage()["report"]
    centroids = first.lineage()["report"]["centroids"]
    whole = SemDeDup(column="vec", centroids=centroids, eps=0.05, **rule).select(lake, "pool", name="whole")
    assert updated.to_arrow().equals(whole.to_arrow())


@pytest.mark.parametrize("column", ["sharpness", "vec"])
def test_an_update_after_values_were_written_again_compares_all(lake, make_pool, column) -> None:
    vectors = near_duplicates(120, 6)
    ids = [f"{i:03}" for i in range(120)]
    make_pool(lake, "pool", ids, vectors, fragments=2, sharpness=np.arange(120.0), other=np.zeros(120))
    selector = SemDeDup(column="vec", clusters=3, eps=0.05, keep="sharpness")
    first = selector.select(lake, "pool", name="first")
    # Lance leaves the old values' file in place for its other columns.
    values = {"sharpness": -np.arange(120.0), "vec": vectors[::-1]}[column]
    rewrite(lake, "pool", ids, column, values)
    make_pool(lake, "pool", ["new"], vectors[:1], sharpness=[7.0], other=[0.0])
    updated = selector.update(lake, "pool", since="first", name="updated")
    assert "new_rows" not in updated.lineage()["report"]
    centroids = first.lineage()["report"]["centroids"]
    same = SemDeDup(column="vec", centroids=centroids, eps=0.05, keep="sharpness")
    assert updated.to_arrow().equals(same.select(lake, "pool", name="whole").to_arrow())
    assert not updated.to_arrow().slice(0, 120).equals(first.to_arrow())
    # A column that is not read may be written again.
    rewrite(lake, "pool", [*ids, "new"], "other", np.ones(121))
    make_pool(lake, "pool", ["newer"], vectors[1:2], sharpness=[8.0], other=[0.0])
    again = selector.update(lake, "pool", since="updated", name="again")
    assert again.lineage()["report"]["new_rows"] == 1
    assert again.to_arrow().equals(same.select(lake, "pool", name="everything").to_arrow())


def test_updates_of_updates_by_the_same_selector(lake, make_pool) -> None:
    vectors = near_duplicates(90, 5)
    make_pool(lake, "pool", [f"{i:03}" for i in range(80)], vectors[:80], fragments=2)
    for clusters in (4, None):
        selector = SemDeDup(column="vec", clusters=clusters, eps=0.05)
        selector.select(lake, "pool", name="dedup", replace=True)
        for turn in range(2):
            name = f"{clusters}-{turn}"
            make_pool(lake, "pool", [name], vectors[80 + turn : 81 + turn])
            updated = selector.update(lake, "pool", since="dedup", name="dedup", replace=True)
            assert updated.lineage()["report"]["new_rows"] == 1
    SemDeDup(column="vec", clusters=4, eps=0.05).select(lake, "pool", name="four")
    make_pool(lake, "pool", ["z"], vectors[-1:])
    SemDeDup(column="vec", clusters=4, eps=0.05).update(lake, "pool", since="four", name="four", replace=True)
    with pytest.raises(UsageError, match="was made with clusters: 4; an update keeps"):
        SemDeDup(column="vec", clusters=5, eps=0.05).update(lake, "pool", since="four", name="five")


def test_an_update_of_half_precision_vectors(lake) -> None:
    vectors = near_duplicates(82, 5).astype(np.float16)

    def rows(first: int, last: int) -> pa.Table:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[first:last].reshape(-1)), vectors.shape[1])
        return pa.table({"id": [f"{i:03}" for i in range(first, last)], "vec": column})

    lake.add("pool", rows(0, 80))
    assert lake.table("pool").schema.field("vec").type.value_type == pa.float16()
    first = SemDeDup(column="vec", clusters=2, eps=0.05).select(lake, "pool", name="first")
    lake.add("pool", rows(80, 82))
    updated = SemDeDup(column="vec", eps=0.05).update(lake, "pool", since="first", name="updated")
    assert updated.lineage()["report"]["new_rows"] == 2
    centroids = first.lineage()["report"]["centroids"]
    whole = SemDeDup(column="vec", centroids=centroids, eps=0.05).select(lake, "pool", name="whole")
    assert updated.to_arrow().equals(whole.to_arrow())


def rewrite(lake, name: str, ids: list[str], column: str, values: np.ndarray) -> None:
    """Other values in a column, in place: every fragment gets a file with that column alone."""
    import lance

    table = lake.table(name)
    of = dict(zip(ids, values, strict=True))
    kind = table.schema.field(column).type
    changed, fields = [], []
    for fragment in table.dataset.get_fragments():
        there = fragment.to_table(columns=["id"]).column("id").to_pylist()
        mine = np.stack([of[one] for one in there])
        array = pa.FixedSizeListArray.from_arrays(mine.reshape(-1), type=kind) if mine.ndim > 1 else pa.array(mine)
        metadata, fields = fragment.update_columns(pa.table({"id": there, column: array}), left_on="id", right_on="id")
        changed.append(metadata)
    operation = lance.LanceOperation.Update(updated_fragments=changed, fields_modified=fields)
    lance.LanceDataset.commit(table.uri, operation, read_version=table.version)


def test_an_update_of_something_else_is_refused(lake, make_pool) -> None:
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], near_duplicates(40, 7))
    selector = SemDeDup(column="vec", clusters=2, eps=0.05)
    random = Random(size=30).select(lake, "pool", name="some")
    selector.select(lake, "pool", name="dedup")
    selector.select(lake, "pool", name="within", within="some")
    for changed, since, said in (
        (selector, random, "was made by random from table 'pool'; an update of semdedup"),
        (selector, "within", "was made within 'some'; only one made from the whole table"),
        (SemDeDup(column="vec", keep="easy"), "dedup", "was made with keep: hard, not keep: easy"),
        (SemDeDup(column="vec", clusters=3), "dedup", "was made with clusters: 2; an update keeps its centroids"),
    ):
        with pytest.raises(UsageError, match=said):
            changed.update(lake, "pool", since=since)


def test_centroids_of_another_column_are_refused(lake, make_pool) -> None:
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], near_duplicates(40, 7))
    make_pool(lake, "narrow", [f"{i:02}" for i in range(40)], near_duplicates(40, 7, d=5))
    name = SemDeDup(column="vec", clusters=2).select(lake, "narrow").lineage()["report"]["centroids"]
    with pytest.raises(UsageError, match="with 5 dimensions, and column 'vec' of table 'pool' has 12"):
        SemDeDup(column="vec", centroids=name).select(lake, "pool")
    with pytest.raises(UsageError, match="table 'pool' is of kind image; the name of a table of centroids is needed"):
        SemDeDup(column="vec", centroids="pool").select(lake, "pool")
    with pytest.raises(UsageError, match="give either clusters or centroids, not both"):
        SemDeDup(column="vec", centroids=name, clusters=3)
    with pytest.raises(UsageError, match="size goes with rule: paper"):
        SemDeDup(column="vec", rule="leader", size=3)


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_orders_differ_only_in_which_duplicate_stays(lake, make_pool, keep) -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(size=(20, 8))
    vectors = np.repeat(base, 2, axis=0) + 1e-3 * rng.normal(size=(40, 8))
    make_pool(lake, "pool", [f"{i:02}" for i in range(40)], vectors)
    selection = SemDeDup(column="vec", clusters=3, eps=0.01, keep=keep).select(lake, "pool")
    pairs = {int(name) // 2 for name in selection.ids().to_pylist()}
    assert len(selection) == 20
    assert pairs == set(range(20))


def test_the_clustering_is_shared_and_can_be_read(lake, make_pool) -> None:
    rng = np.random.default_rng(4)
    make_pool(lake, "pool", [f"{i:02}" for i in range(60)], rng.normal(size=(60, 8)), fragments=2)
    one = SemDeDup(column="vec", clusters=4, eps=0.1).select(lake, "pool")
    two = SemDeDup(column="vec", clusters=4, eps=0.2).select(lake, "pool")
    name = one.lineage()["report"]["clusters"]
    assert two.lineage()["report"]["clusters"] == name
    centroids = lake.table(name).to_arrow()
    assert sum(centroids.column("size").to_pylist()) == 60
    rows = lake.table(name + ".rows").to_arrow()
    assert rows.num_rows == 60
    assert lake.kind(name) == "centroids"
    assert lake.kind(name + ".rows") == "assignments"


def test_eps_and_size_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="semdedup: give either eps or size, not both"):
        SemDeDup(column="vec", eps=0.1, size=5)
    with pytest.raises(UsageError, match="semdedup: eps = 0"):
        SemDeDup(column="vec", eps=0)
