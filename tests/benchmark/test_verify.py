"""Submissions that someone has changed are told apart from those of a real sweep."""

from __future__ import annotations

import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from benchmark.submissions import IDS, Members, failing, manifest_of, put, put_trials, raise_claim, read, rows, write

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.benchmark.archive import MAX_MEMBER
from datas3_ray.benchmark.submission import Packed, claims, table_of
from datas3_ray.benchmark.verify import verify
from datas3_ray.errors import UsageError
from datas3_ray.selectors import Random

# What someone may have changed, with every hash made to match, and the checks that must then fail.


def swap_id(members: Members) -> None:
    ids = members[IDS].splitlines()
    ids[-1] = b'"zzzz"'
    put(members, IDS, b"\n".join(ids) + b"\n")


def swap_id_without_hash(members: Members) -> None:
    put(members, IDS, members[IDS].replace(b'"p', b'"q', 1), hashed=False)


def add_test_row(members: Members) -> None:
    """A row of the test table in place of another, so that the counts are right."""
    ids = sorted([*members[IDS].splitlines()[1:], b'"p0009"'])
    put(members, IDS, b"\n".join(ids) + b"\n")


def repeat_id(members: Members) -> None:
    ids = members[IDS].splitlines()
    ids[1] = ids[0]
    put(members, IDS, b"\n".join(ids) + b"\n")


def drop_id(members: Members) -> None:
    put(members, IDS, b"\n".join(members[IDS].splitlines()[1:]) + b"\n")


def raise_score(members: Members) -> None:
    def edit(trials: list[dict[str, Any]]) -> None:
        next(trial for trial in trials if trial["best"])["test"] = 0.999

    put_trials(members, edit)


def claim_again(members: Members) -> None:
    """The cells that the changed trials give."""

    def edit(manifest: dict[str, Any]) -> None:
        trials = [json.loads(line) for line in members["trials.jsonl"].splitlines()]
        manifest["cells"] = claims(leaderboard(table_of(trials)))

    manifest_of(members, edit)


def invent(members: Members, change: Callable[[dict[str, Any]], Any] = lambda trial: None) -> None:
    """Higher scores of every winner that agree with each other and with what is claimed."""

    def edit(trials: list[dict[str, Any]]) -> None:
        for trial in trials:
            if trial["best"]:
                trial |= {"test": 0.99, "test_seen": 0.99, "test_low": 0.97, "test_high": 1.0}
            change(trial)

    put_trials(members, edit)
    claim_again(members)


def invent_and_shift_the_time(members: Members) -> None:
    invent(members, lambda trial: trial.update(created=trial["created"].replace("20", "19", 1)))


def invent_and_rename(members: Members) -> None:
    invent(members, lambda trial: trial.update(trial=f"00000000-{trial['trial'][9:]}"))


def invent_a_sweep(members: Members) -> None:
    def change(trial: dict[str, Any]) -> None:
        trial["trial"] = f"00000000-{trial['trial'][9:]}"
        trial["lineage"]["sweep"] = "0" * 16

    invent(members, change)


def invent_seeds(members: Members) -> None:
    def change(trial: dict[str, Any]) -> None:
        trial["seed"] += 2
        trial["lineage"]["config"]["seed"] = [2, 3]

    invent(members, change)


def repeat_a_name(members: Members) -> None:
    put_trials(members, lambda trials: trials[1].update(trial=trials[0]["trial"]))


def raise_paper_claim(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest["cells"][0]["paper_style"].update({"score": 0.999}))


def mark_another(members: Members) -> None:
    def edit(trials: list[dict[str, Any]]) -> None:
        for trial in trials:
            trial["best"] = not trial["best"] and trial["hyperparameters"]["lr"] == 30.0

    put_trials(members, edit)


def drop_a_trial(members: Members) -> None:
    put_trials(members, lambda trials: trials.remove(next(trial for trial in trials if not trial["best"])))


def change_lineage(members: Members) -> None:
    name = "selections/some/lineage.json"
    put(members, name, members[name].replace(b'"fingerprint": "', b'"fingerprint": "0'))


def change_parameters(members: Members) -> None:
    name = "selections/some/lineage.json"
    made = json.loads(members[name])
    put(members, name, json.dumps({**made, "parameters": {**made["parameters"], "seed": 7}}).encode())


def hide_the_query(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest["deployments"]["north"].update({"query": None}))


def no_loss(members: Members) -> None:
    put_trials(members, lambda trials: [trial["lineage"].update(validation_loss=None) for trial in trials])


def change_table(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest["tables"]["north-test"].update({"fingerprint": "0" * 32}))


def add_member(members: Members) -> None:
    members["selections/other/ids.jsonl"] = b""


def add_listed_member(members: Members) -> None:
    put(members, "selections/other/ids.jsonl", b"")


def add_path(members: Members) -> None:
    members["../x"] = b"out"


def add_absolute_path(members: Members) -> None:
    members["/etc/x"] = b"out"


def add_pickle(members: Members) -> None:
    members["trials.pkl"] = b"\x80\x04."


def drop_manifest(members: Members) -> None:
    del members["manifest.json"]


def another_version(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest.update({"version": 99}))


def unknown_key(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest.update({"extra": 1}))


def paths_for_tables(members: Members) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["tables"]["../../pool"] = manifest["tables"].pop("pool")

    manifest_of(members, edit)


def endless_grid(members: Members) -> None:
    def edit(trials: list[dict[str, Any]]) -> None:
        many = [round(1e-6 * (n + 1), 9) for n in range(2000)]
        for trial in trials:
            trial["lineage"]["config"]["grid"] = {"batch_size": list(range(1, 2001)), "lr": many}

    put_trials(members, edit)


def deep(members: Members) -> None:
    put(members, "trials.jsonl", b"[" * 200_000 + b"\n")


def not_a_number(members: Members) -> None:
    put_trials(members, lambda trials: trials[0].update({"test": "high"}))


def unknown_column(members: Members) -> None:
    put_trials(members, lambda trials: trials[0].update({"bonus": 1}))


def no_seed(members: Members) -> None:
    put_trials(members, lambda trials: trials[0].update({"seed": None}))


def no_lineage(members: Members) -> None:
    put_trials(members, lambda trials: trials[0].update({"lineage": {}}))


@pytest.mark.parametrize(
    ("change", "alone", "with_lake"),
    [
        (swap_id, set(), {"ids in the lake", "selections in the lake"}),
        (swap_id_without_hash, {"hashes", "ids"}, {"ids in the lake", "selections in the lake"}),
        (add_test_row, set(), {"ids in the lake", "selections in the lake"}),
        (repeat_id, {"ids"}, {"selections in the lake"}),
        (drop_id, {"ids"}, {"selections in the lake"}),
        (raise_score, {"figures", "cells"}, {"trials in the lake"}),
        (invent, set(), {"trials in the lake"}),
        (invent_and_shift_the_time, set(), {"trials in the lake"}),
        (invent_and_rename, set(), {"trials in the lake"}),
        (invent_a_sweep, set(), {"trials in the lake"}),
        (invent_seeds, set(), {"trials in the lake"}),
        (repeat_a_name, {"form"}, set()),
        (raise_claim, {"cells"}, set()),
        (raise_paper_claim, {"cells"}, set()),
        (mark_another, {"winners", "cells"}, {"trials in the lake"}),
        (drop_a_trial, {"grid"}, set()),
        (change_lineage, {"lineage"}, set()),
        (change_parameters, set(), {"selections in the lake"}),
        (hide_the_query, {"lineage"}, set()),
        (change_table, set(), {"tables in the lake"}),
        (add_member, {"manifest"}, set()),
        (add_listed_member, {"manifest"}, set()),
        (add_path, {"archive"}, set()),
        (add_absolute_path, {"archive"}, set()),
        (add_pickle, {"archive"}, set()),
        (drop_manifest, {"manifest"}, set()),
        (another_version, {"manifest"}, set()),
        (unknown_key, {"manifest"}, set()),
        (paths_for_tables, {"manifest"}, set()),
        (endless_grid, {"grid"}, {"trials in the lake"}),
        (deep, {"form"}, set()),
        (not_a_number, {"form"}, set()),
        (unknown_column, {"form"}, set()),
        (no_seed, {"form"}, set()),
    ],
)
def test_what_was_changed_is_found(
    swept: Lake,
    packed: Packed,
    tmp_path: Path,
    change: Callable[[Members], None],
    alone: set[str],
    with_lake: set[str],
) -> None:
    members = read(packed.path)
    change(members)
    file = write(tmp_path / "changed.zip", members)
    found = failing(verify(file))
    assert set(found) == alone, found
    found = failing(verify(file, swept))
    assert set(found) == alone | with_lake, found
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in found.values())
    assert not (tmp_path.parent / "x").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": 1.7, "test_seen": 1.7, "test_high": 1.7}, "test is 1.7, which no accuracy can be"),
        ({"test": math.nan}, "test is nan, which no accuracy can be"),
        ({"validation": -0.1}, "validation is -0.1, which no accuracy can be"),
        ({"test": 0.99, "test_seen": 0.99, "test_low": 0.2, "test_high": 0.5}, "outside of its own interval"),
        ({"test_low": 0.6, "test_high": 0.5}, "the interval of its score"),
        ({"test_seen": 0.99}, "test_seen 0.99, and no test row was dropped"),
        ({"test_dropped": 3}, "3 test rows were dropped, and no class is missing"),
        ({"chosen_on": "test"}, "chosen_on is test, and by its settings it was chosen on validation"),
        ({"higher_is_better": False}, "higher_is_better is False, which accuracy is not"),
        ({"status": "failed"}, "its status is failed, and its test score"),
        ({"test": None}, "its status is done, and its test score None"),
        ({"missing_classes": 1}, "missing_classes is 1, and its lineage says 0"),
        ({"train_rows": 3}, "train_rows is 3, and its lineage says 54"),
        ({"test_rows": 3}, "test_rows is 3, and its lineage says 90"),
        ({"pool_size": 451}, "pool_size is 451, and table 'pool' has 450 rows"),
        ({"task": "regression"}, "task is 'regression', and its settings say 'classification'"),
        ({"vector": "clip"}, "vector is 'clip', and its settings say 'lite'"),
    ],
)
def test_figures_that_contradict_each_other_are_found(
    packed: Packed, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    members = read(packed.path)

    def edit(trials: list[dict[str, Any]]) -> None:
        for trial in trials:
            trial["lineage"]["config"]["column"] = "lite"
        next(trial for trial in trials if trial["best"]).update(change)

    put_trials(members, edit)
    assert says in failing(verify(write(tmp_path / "x.zip", members)))["figures"]


def test_a_score_that_is_no_number_fails_no_check_by_itself(packed: Packed, tmp_path: Path) -> None:
    """A regression that diverged, with two seeds."""
    members = read(packed.path)

    def edit(trials: list[dict[str, Any]]) -> None:
        for trial in trials:
            trial |= {"metric": "mse", "task": "regression", "higher_is_better": False, "test_low": None}
            trial["lineage"]["config"] |= {"metric": "mse", "task": "regression"}
            if trial["hyperparameters"]["lr"] == 30.0:
                trial |= {"test": math.nan, "test_seen": math.nan}

    put_trials(members, edit)
    found = failing(verify(write(tmp_path / "x.zip", members)))
    assert "figures" not in found and "numerator" not in str(found)


def test_a_trial_without_lineage_fails_checks_and_breaks_none(packed: Packed, tmp_path: Path) -> None:
    members = read(packed.path)
    no_lineage(members)
    found = failing(verify(write(tmp_path / "x.zip", members)))
    assert "lineage" in found and "grid" in found


def test_losses_that_are_missing_break_no_check(swept: Lake, packed: Packed, tmp_path: Path) -> None:
    members = read(packed.path)
    no_loss(members)
    assert "trials in the lake" in failing(verify(write(tmp_path / "x.zip", members), swept))


def test_what_a_file_says_does_nothing_to_a_terminal(packed: Packed, tmp_path: Path) -> None:
    members = read(packed.path)
    manifest_of(members, lambda manifest: manifest.update({"method": "\x1b[2J\nrandom \ud800"}))
    for check in verify(write(tmp_path / "x.zip", members)):
        assert check.line().isprintable()
        check.line().encode()


def test_bombs_and_broken_archives(packed: Packed, tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("trials.jsonl", "w", force_zip64=True) as member:
            for _ in range(MAX_MEMBER // (1 << 24) + 1):
                member.write(bytes(1 << 24))
    assert file.stat().st_size < 1 << 20
    assert "unpacks to" in failing(verify(file))["archive"]
    # One that hides its size is read as far as it says.
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        true = archive.infolist()[0].file_size
    little, large = (10).to_bytes(4, "little"), true.to_bytes(4, "little")
    file.write_bytes(data.replace(large, little))
    assert set(failing(verify(file))) == {"archive"}
    file.write_bytes(Path(packed.path).read_bytes()[:-100])
    assert "no zip archive" in failing(verify(file))["archive"]
    whole = bytearray(Path(packed.path).read_bytes())
    whole[2000] ^= 0xFF
    file.write_bytes(whole)
    assert failing(verify(file))
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(2):
            with pytest.warns(UserWarning) if "manifest.json" in archive.namelist() else _nothing():
                archive.writestr("manifest.json", "{}")
    assert "twice" in failing(verify(file))["archive"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("manifest.json", "{}")
    assert "deflation" in failing(verify(file))["archive"]
    with zipfile.ZipFile(file, "w") as archive:
        for place in range(2001):
            archive.writestr(f"selections/s{place}/ids.jsonl", "")
    assert "2,001 members" in failing(verify(file))["archive"]
    with pytest.raises(UsageError, match="no file"):
        verify(tmp_path / "none.zip")


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_another_lake_with_the_same_rows_will_do(swept: Lake, packed: Packed, tmp_path: Path) -> None:
    other = Lake(tmp_path / "other")
    for name in ("pool", "north-test", "north-query"):
        table = swept.table(name).to_arrow()
        other.add(name, table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows))))
    checks = {check.name: check for check in verify(packed.path, other)}
    assert checks["tables in the lake"].holds and checks["ids in the lake"].holds
    assert checks["selections in the lake"].holds is None and "–" in checks["selections in the lake"].line()
    assert checks["trials in the lake"].holds is None
    # A selection that was made of the same rows there has another fingerprint, and the same ids.
    held = [swept.table(f"north-{part}").to_arrow(["id"]).column("id") for part in ("test", "query")]
    taken = pa.array([each for column in held for each in column.to_pylist()])
    eligible = swept.table("pool").to_arrow()
    other.add("free", eligible.filter(pc.invert(pc.is_in(eligible.column("id"), value_set=taken))))
    made = Random(size=60, seed=1).select(other, "free", name="some")
    assert made.fingerprint != swept.selection("some").fingerprint
    assert {check.name: check for check in verify(packed.path, other)}["selections in the lake"].holds
    Random(size=60, seed=2).select(other, "free", name="some", replace=True)
    assert "has other ids" in failing(verify(packed.path, other))["selections in the lake"]
    # And one whose test table has other labels will not.
    changed = swept.table("north-test").to_arrow()
    labels = pa.array(["ant"] * changed.num_rows)
    wrong = Lake(tmp_path / "wrong")
    for name in ("pool", "north-query"):
        wrong.add(name, swept.table(name).to_arrow())
    wrong.add("north-test", changed.set_column(changed.schema.get_field_index("label"), "label", labels))
    assert "'north-test'" in failing(verify(packed.path, wrong))["tables in the lake"]
    assert "has no table" in failing(verify(packed.path, Lake(tmp_path / "empty")))["tables in the lake"]


def test_a_lake_that_has_grown_since_still_agrees(swept: Lake, packed: Packed, tmp_path: Path) -> None:
    shutil.copytree(swept.uri, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    more = rows(460).slice(450)
    lake.add("pool", more.select(lake.table("pool").schema.names))
    assert failing(verify(packed.path, lake)) == {}
