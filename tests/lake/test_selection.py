"""What a selection still means after the pool that it was made from has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import lance
import lancedb
import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.lake.algebra import combine
from datas3_ray.lake.optimize import OptimizeConfig, optimize_lake
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Everything, Expert, ImportScore, KCenter, Random, SemDeDup, Stratified

IDS = [f"r{i}" for i in range(10)]


@pytest.fixture
def pool(lake, make_pool):
    """Ten rows in two fragments; ``w`` is the number of each."""
    make_pool(lake, "pool", IDS, np.eye(10), fragments=2, w=np.arange(10.0))
    return lake


def chosen(selection) -> set[str]:
    return set(selection.ids().to_pylist())


def test_nothing_can_be_chosen_within_a_selection_that_keeps_nothing(pool) -> None:
    nothing = Expert("w < 0").select(pool, "pool", name="nothing")
    assert len(nothing) == 0
    for within in ("nothing", nothing):
        inside = Random(size=3).select(pool, "pool", within=within)
        assert len(inside) == 0
        lineage = inside.lineage()
        assert lineage["within"] == "nothing"
        assert (lineage["counts"]["outside"], lineage["counts"]["shortfall"]) == (10, 3)
    with pytest.raises(UsageError, match="no eligible row"):
        SemDeDup(column="vec", clusters=2).select(pool, "pool", within="nothing")


@pytest.mark.parametrize("fragments", [1, 2, 10])
def test_rows_that_were_changed_in_place_are_found_where_they_are_now(lake, make_pool, fragments) -> None:
    make_pool(lake, "pool", IDS, np.eye(10), fragments=fragments, w=np.arange(10.0), x=np.zeros(10))
    Expert("w >= 4").select(lake, "pool", name="most")
    ImportScore(score_column="w", size=1.0).select(lake, "pool", name="all")
    lancedb.connect(lake.uri).open_table("pool").update(where="id = 'r5'", values={"x": 5.0})
    expected = set(IDS[4:])

    def answers() -> list[set[str]]:
        return [
            chosen(Everything().select(lake, "pool", within="most")),
            chosen(combine(lake, "intersect", ["most", "all"])),
            chosen(combine(lake, "minus", ["all", "most"])),
            chosen(Stratified(size=1.0, selection="all").select(lake, "pool")),
        ]

    assert answers() == [expected, expected, set(IDS[:4]), set(IDS)]
    optimize_lake(lake, ["pool"], OptimizeConfig(prune=False))
    assert answers() == [expected, expected, set(IDS[:4]), set(IDS)]


def test_rows_that_were_deleted_and_added_again(pool, make_pool) -> None:
    Expert("w < 8").select(pool, "pool", name="low")
    pool.table("pool").dataset.delete("id in ('r3', 'r9')")
    make_pool(pool, "pool", ["r9", "r3"], np.ones((2, 10)), w=[9.0, 3.0])
    assert chosen(Everything().select(pool, "pool", within="low")) == set(IDS[:8])


def test_another_size_has_no_rows_that_were_set_aside_or_deleted_since(pool, make_pool) -> None:
    ranking = ImportScore(score_column="w", size=5).select(pool, "pool", name="ranking")
    assert chosen(ranking.resize(4)) == set(IDS[6:])
    split_table(pool, "pool", "test", Split(where="id in ('r9', 'r7', 'r1')"))
    four = ranking.resize(4, name="four")
    assert chosen(four) == {"r8", "r6", "r5", "r4"}
    assert four.lineage()["counts"]["held_out"] == 3
    assert four.lineage()["inputs"]["test"] == pool.table("test").version
    assert ranking.resize(4, name="four").table.version == four.table.version
    pool.table("pool").dataset.delete("id = 'r8'")
    make_pool(pool, "pool", ["new"], np.ones((1, 10)), w=[99.0])
    counts = ranking.resize(20).lineage()["counts"]
    assert chosen(ranking.resize(20)) == {"r0", "r2", "r3", "r4", "r5", "r6"}
    assert {key: counts[key] for key in ("rows", "outside", "held_out", "eligible", "kept", "shortfall")} == {
        "rows": 10, "outside": 1, "held_out": 3, "eligible": 6, "kept": 6, "shortfall": 14,
    }  # fmt: skip
    optimize_lake(pool, ["pool"], OptimizeConfig(prune=False))
    assert chosen(ranking.resize(3, name="three")) == {"r6", "r5", "r4"}
    assert chosen(Random(size=1.0).select(pool, "pool", within="three")) == {"r6", "r5", "r4"}


def test_another_size_of_a_pool_without_any_row_left(pool) -> None:
    ranking = ImportScore(score_column="w", size=5).select(pool, "pool", name="ranking")
    pool.table("pool").dataset.delete("id is not null")
    assert ranking.resize(3).to_arrow().num_rows == 0


def test_sizes_of_another_cut_are_those_of_selectors(pool) -> None:
    ranking = ImportScore(score_column="w", size=5).select(pool, "pool", name="ranking")
    assert len(ranking.resize("25%")) == 3
    assert len(ranking.resize(np.int64(1), name="one")) == 1
    for size in (2.5, -1, True, "many", "x%", float("nan")):
        with pytest.raises(UsageError, match="size = .* is not allowed"):
            ranking.resize(size)
    dedup = SemDeDup(column="vec", clusters=2, eps=0.5).select(pool, "pool", name="dedup")
    assert SemDeDup.eps_for(dedup, "25%") == SemDeDup.eps_for(dedup, 0.25)
    with pytest.raises(UsageError, match="size = -1 is not allowed"):
        SemDeDup.eps_for(dedup, -1)


def test_a_pool_that_was_deleted_and_made_anew_is_another_one(pool, make_pool) -> None:
    selectors = {
        "some": Random(size=4),
        "dedup": SemDeDup(column="vec", clusters=2),
        "spread": KCenter(column="vec", size=4),
    }
    for name, selector in selectors.items():
        selector.select(pool, "pool", name=name)
    ImportScore(score_column="w", size=0.5).select(pool, "pool", name="ranking").resize(2, name="two")
    marks = [pool.selection(name).fingerprint for name in selectors]
    shutil.rmtree(Path(pool.uri) / "pool.lance")
    others = [f"n{i}" for i in range(10)]
    make_pool(pool, "pool", [*others[:5], *others[8:], *IDS[5:8]], np.eye(10)[::-1], fragments=2, w=np.arange(10.0))
    now = {*others[:5], *others[8:], *IDS[5:8]}
    for mark, (name, selector) in zip(marks, selectors.items(), strict=True):
        assert not selector.is_current(pool, "pool", name)
        with pytest.raises(UsageError, match="was made with other parameters or from other versions"):
            selector.select(pool, "pool", name=name)
        again = selector.select(pool, "pool", name=name, replace=True)
        assert again.fingerprint != mark
        assert chosen(again) <= now
        assert selector.is_current(pool, "pool", name)
    # What the new pool still has of the rows that were chosen from the old one is found by id.
    assert chosen(pool.selection("ranking").resize(9, name="nine")) == {"r5", "r6", "r7"}
    assert chosen(Everything().select(pool, "pool", within="ranking")) == {"r5", "r6", "r7"}


def test_parents_that_are_none_are_refused(pool) -> None:
    for within in (5, ["a"], pool.table("pool")):
        with pytest.raises(UsageError, match="within is a selection or its name"):
            Random(size=2).select(pool, "pool", within=within)
    with pytest.raises(UsageError, match="'5' cannot name a table"):
        Random(size=2).select(pool, "pool", name=5)
    with pytest.raises(UsageError, match="takes a list of selections"):
        combine(pool, "union", "ab")


def test_a_table_stays_the_same_whatever_is_done_to_it(pool, make_pool) -> None:
    born = pool.table("pool").born
    assert born is not None and pool.table("pool").content_mark == f"{born}:{pool.table('pool').content_version}"
    table = lancedb.connect(pool.uri).open_table("pool")
    table.add(table.to_arrow().slice(0, 1).set_column(0, "id", [["late"]]))
    table.update(where="id = 'r1'", values={"w": 50.0})
    table.add_columns({"twice": "w * 2"})
    optimize_lake(pool, ["pool"], OptimizeConfig(keep_days=0))
    assert pool.table("pool").born == born
    # Rows that were read from it make another table.
    copy = pool.add("copy", pool.table("pool").to_arrow())
    assert copy.born not in (None, born)
    split = Split(where="w < 5")
    first = split_table(pool, "pool", "test", split)
    again = split_table(pool, "pool", "test", Split(where="w < 4"), replace=True)
    assert first.born == again.born != born
    assert first.content_mark != again.content_mark


@pytest.mark.parametrize("kind", ["select", "resize", "combine", "split"])
def test_of_two_programs_that_take_a_name_at_once_one_gets_it(lake, make_pool, monkeypatch, kind) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    make_pool(
        lake, "pool", [f"r{i:02}" for i in range(40)], vectors, fragments=2, label=[str(i % 4) for i in range(40)]
    )
    whole, half = (Random(size=size, seed=0).select(lake, "pool", name=f"r{size}") for size in (1.0, 0.5))
    make = {
        "select": lambda odd: Random(size=0.5, seed=odd).select(lake, "pool", name="mine").table,
        "resize": lambda odd: (half if odd else whole).resize(5, "mine").table,
        "combine": lambda odd: combine(lake, "minus" if odd else "union", [whole.name, half.name], "mine").table,
        "split": lambda odd: split_table(lake, "pool", "mine", Split(where=f"label = '{odd}'")),
    }[kind]
    commit = lance.LanceDataset.commit

    def race(mine: int, theirs: int):
        def late(*args, **more):
            monkeypatch.setattr(lance.LanceDataset, "commit", commit)
            made.append(make(theirs))
            return commit(*args, **more)

        made: list = []
        monkeypatch.setattr(lance.LanceDataset, "commit", late)
        try:
            made.append(make(mine))
        finally:
            monkeypatch.setattr(lance.LanceDataset, "commit", commit)
        return made

    with pytest.raises(UsageError, match=r"'mine' exists and (was|is)"):
        race(0, 1)
    theirs = lake.table("mine")
    assert theirs.version == 1 and theirs.lineage()["fingerprint"] == make(1).lineage()["fingerprint"]
    shutil.rmtree(theirs.uri)
    one, other = race(0, 0)
    assert one.version == other.version == 1, "one that was made in just this way is taken as it is"
