"""Submissions: packed from a real sweep, verified, and told apart from files that someone has changed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from command import datas3

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.benchmark.archive import MAX_MEMBER
from datas3_ray.benchmark.submission import Packed, pack, plain_trial
from datas3_ray.benchmark.verify import Check, verify
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.lake.splits import Split, split_table
from datas3_ray.selectors import Everything, Random
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.sweep import Deployment, run_sweep

CLASSES = ("ant", "bee", "cow")
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
IDS = "selections/some/ids.jsonl"
Members = dict[str, bytes]


def rows(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = (1.5 * np.eye(3, 6)[y] + rng.normal(size=(count, 6))).astype(np.float32)
    return pa.table(
        {
            "id": [f"p{i:04d}" for i in range(count)],
            "label": [CLASSES[code] for code in y],
            "part": [("pool", "pool", "pool", "test", "query")[i // 3 % 5] for i in range(count)],
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6),
        }
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Lake:
    """A pool of 450 rows of which two fifths are set aside, two selections, and a sweep of four points, two seeds."""
    folder = tmp_path_factory.mktemp("submission")
    lake = Lake(folder / "lake")
    lake.add("pool", rows(450))
    for part in ("test", "query"):
        split_table(lake, "pool", f"north-{part}", Split(where=f"part = '{part}'"))
    Everything().select(lake, "pool", name="all")
    Random(size=60, seed=1).select(lake, "pool", name="some")
    config = SweepConfig(grid={"batch_size": (16, 32), "lr": (30.0, 0.01)}, epochs=2, seed=(0, 1), normalize=False)
    north = Deployment("north", "north-test", "north-query", {"everything": "all", "random": "some"})
    run_sweep(
        lake, config, name="probe", deployments={"north": north}, storage=str(folder / "runs"), progress=lambda _: None
    )
    return lake


@pytest.fixture(scope="module")
def packed(swept: Lake, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(swept, "random", tmp_path_factory.mktemp("packed") / "random.zip", now=NOW)


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.sentence for check in checks if check.holds is False}


def read(path: str | Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def manifest_of(members: Members, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(members["manifest.json"])
    edit(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()


def put(members: Members, name: str, data: bytes, *, hashed: bool = True) -> None:
    """Change a member; ``hashed``: and the manifest, so that it matches."""
    members[name] = data
    if hashed:
        known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest_of(members, lambda manifest: manifest["members"].update({name: known}))


def put_trials(members: Members, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    trials = [json.loads(line) for line in members["trials.jsonl"].splitlines()]
    edit(trials)
    put(members, "trials.jsonl", "".join(f"{json.dumps(trial)}\n" for trial in trials).encode())


def test_a_submission_holds_in_every_check(swept: Lake, packed: Packed) -> None:
    checks = verify(packed.path)
    assert failing(checks) == {} and {check.holds for check in checks} == {True}
    assert [check.name for check in checks] == [
        "archive", "manifest", "hashes", "form", "ids", "lineage", "grid", "winners", "cells",
    ]  # fmt: skip
    with_lake = verify(packed.path, swept)
    assert failing(with_lake) == {} and len(with_lake) == 13 and {check.holds for check in with_lake} == {True}
    assert packed.trials == 8 and packed.selections == ("some",) and packed.deployments == ("north",)


def test_what_is_in_it(swept: Lake, packed: Packed) -> None:
    members = read(packed.path)
    assert list(members) == sorted(members)
    ids = [json.loads(line) for line in members[IDS].splitlines()]
    assert ids == sorted(swept.selection("some").ids().to_pylist()) and len(ids) == 60
    manifest = json.loads(members["manifest.json"])
    assert manifest["deployments"] == {"north": {"test": "north-test", "query": "north-query"}}
    assert {name: (table["role"], table["rows"]) for name, table in manifest["tables"].items()} == {
        "pool": ("pool", 450),
        "north-test": ("test", 90),
        "north-query": ("query", 90),
    }
    (claimed,) = manifest["cells"]
    cell = leaderboard(swept.results()).rows[-1].cells["north"]
    assert claimed["score"] == pytest.approx(cell.score) and claimed["seeds"] == 2 and claimed["subset_size"] == 60
    assert claimed["paper_style"]["score"] >= claimed["score"] and "best" not in claimed
    text = b"".join(members.values()).decode()
    assert str(Path(swept.uri).parent) not in text and "checkpoint" not in text


def test_the_same_lake_and_time_give_the_same_bytes(swept: Lake, packed: Packed, tmp_path: Path) -> None:
    again = pack(swept, "random", tmp_path / "again.zip", now=NOW)
    assert again.sha256 == packed.sha256
    assert Path(again.path).read_bytes() == Path(packed.path).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.zip"]


def test_secrets_stay_at_home() -> None:
    lineage = {
        "sweep": "s",
        "tune": "/home/me/runs",
        "config": {"weights": "https://me:secret@host/w.pt?sig=abc", "storage_options": {"aws_secret": "hidden"}},
        "inputs": {"pool": 3},
    }
    trial = dict.fromkeys(RESULTS.names) | {
        "created": NOW,
        "hyperparameters": "{}",
        "lineage": json.dumps(lineage),
        "checkpoint": "s3://key:secret@bucket/runs",
        "start": "/home/me/w.pt",
        "error": "no access to s3://key:secret@bucket",
    }
    text = json.dumps(plain_trial(trial))
    assert "secret" not in text and "hidden" not in text and "/home/me" not in text and "sig=abc" not in text
    assert "https://host/w.pt" in text


@pytest.mark.parametrize(
    ("method", "model", "says"),
    [
        ("randon", None, "no results of method 'randon'.*everything, random. Did you mean 'random'?"),
        ("random", "resnet50", "method 'random' has no results of model 'resnet50'"),
    ],
)
def test_what_cannot_be_packed(swept: Lake, tmp_path: Path, method: str, model: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pack(swept, method, tmp_path / "x.zip", model=model)
    with pytest.raises(UsageError, match="there is no folder"):
        pack(swept, "random", tmp_path / "none" / "x.zip")
    with pytest.raises(UsageError, match="it is a folder; name a file"):
        pack(swept, "random", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_selection_that_was_made_anew_cannot_be_packed(swept: Lake, tmp_path: Path) -> None:
    shutil.copytree(swept.uri, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    Random(size=50, seed=2).select(lake, "pool", name="some", replace=True)
    with pytest.raises(UsageError, match="selection 'some' was made anew since vit_linear_probe was trained on it"):
        pack(lake, "random", tmp_path / "x.zip")


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


def raise_score_and_claim(members: Members) -> None:
    raise_score(members)

    def edit(manifest: dict[str, Any]) -> None:
        from datas3_ray.benchmark.submission import claims, table_of

        trials = [json.loads(line) for line in members["trials.jsonl"].splitlines()]
        manifest["cells"] = claims(leaderboard(table_of(trials)))

    manifest_of(members, edit)


def raise_claim(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest["cells"][0].update({"score": 0.999}))


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
        (raise_score, {"cells"}, {"trials in the lake"}),
        (raise_score_and_claim, set(), {"trials in the lake"}),
        (raise_claim, {"cells"}, set()),
        (raise_paper_claim, {"cells"}, set()),
        (mark_another, {"winners", "cells"}, {"trials in the lake"}),
        (drop_a_trial, {"grid"}, set()),
        (change_lineage, {"lineage"}, set()),
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


def test_a_trial_without_lineage_fails_checks_and_breaks_none(packed: Packed, tmp_path: Path) -> None:
    members = read(packed.path)
    no_lineage(members)
    found = failing(verify(write(tmp_path / "x.zip", members)))
    assert "lineage" in found and "grid" in found


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


def test_the_commands(swept: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "r.zip")
    status, out, _ = datas3("submit", "random", "--output", file, "--lake", swept.uri, capsys=capsys)
    assert (
        status == 0 and "1 selections, 8 trials" in out and hashlib.sha256(Path(file).read_bytes()).hexdigest() in out
    )
    status, out, _ = datas3("verify", file, "--lake", swept.uri, capsys=capsys)
    assert status == 0 and out.count("✓") == 13 and "✗" not in out
    assert "✓ cells: all 1 claimed cells follow from the trials." in out
    members = read(file)
    raise_claim(members)
    write(Path(file), members)
    status, out, _ = datas3("verify", file, capsys=capsys)
    assert status == 1 and "✗ cells: north, vit_linear_probe: score is claimed to be 0.999" in out
    status, out, _ = datas3("verify", file, "--json", capsys=capsys)
    assert status == 1 and [check["name"] for check in json.loads(out) if not check["holds"]] == ["cells"]
    status, _, complaint = datas3("verify", str(tmp_path / "none.zip"), capsys=capsys)
    assert status == 2 and "no file" in complaint
    status, _, complaint = datas3("submit", "randon", "--output", file, "--lake", swept.uri, capsys=capsys)
    assert status == 2 and "Did you mean 'random'?" in complaint


def test_the_leaderboard_command_has_every_form(
    swept: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["leaderboard", "--lake", swept.uri]
    status, out, _ = datas3(*at, "--scoring", "both", capsys=capsys)
    assert status == 0 and "paper-style" in out and "honest" in out
    assert "paper-style" not in datas3(*at, "--scoring", "honest", capsys=capsys)[1]
    files = [str(tmp_path / name) for name in ("b.csv", "b.md", "b.html")]
    status, out, _ = datas3(*at, "--csv", files[0], "--markdown", files[1], "--html", files[2], capsys=capsys)
    assert status == 0 and out.count("written: ") == 3
    assert all(Path(file).stat().st_size > 300 for file in files)
    status, out, said = datas3(*at, "--markdown", "-", "--html", files[2], capsys=capsys)
    assert status == 0 and out.startswith("**test accuracy") and "written: " in said
    rows = json.loads(datas3(*at, "--json", capsys=capsys)[1])
    assert [row["method"] for row in rows] == ["everything", "random"]
    assert {"score", "interval", "subset_size", "paper_style"} <= set(rows[0]["deployments"]["north"])
    paper = tmp_path / "paper.csv"
    paper.write_text("dataset,deployment,method,metric,score,subset_size,note\nworld,north,theirs,accuracy,0.5,9,\n")
    shown = datas3(*at, "--paper-file", str(paper), capsys=capsys)[1]
    assert "theirs" in shown and "50.0" in shown
    for words, says in (
        (["--paper"], "none of these deployments is the paper's: north"),
        (["--no-paper", "--paper-file", str(paper)], "give one or the other"),
        (["--scoring", "fair"], "no scoring 'fair'"),
        (["--paper-file", "/no/such.csv"], "there is no such file"),
        *(([form, "."], "cannot write to .: it is a folder") for form in ("--csv", "--markdown", "--html")),
        (["--html", f"{paper}/b.html"], "paper.csv is a file and no folder"),
    ):
        status, _, complaint = datas3(*at, *words, capsys=capsys)
        assert status == 2 and says in complaint and complaint.count("\n") == 1
