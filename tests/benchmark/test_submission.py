"""Submissions: packed from a real sweep, and the commands that pack and verify."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from benchmark.submissions import (
    IDS,
    NOW,
    failing,
    raise_claim,
    read,
    write,
)
from command import datas3

from datas3_ray import Lake
from datas3_ray.benchmark import leaderboard
from datas3_ray.benchmark.submission import Packed, cleaned, pack, plain_trial
from datas3_ray.benchmark.verify import verify
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.selectors import Random


def test_a_submission_holds_in_every_check(swept: Lake, packed: Packed) -> None:
    checks = verify(packed.path)
    assert failing(checks) == {} and {check.holds for check in checks} == {True}
    assert [check.name for check in checks] == [
        "archive", "manifest", "hashes", "form", "ids", "lineage", "figures", "grid", "winners", "cells",
    ]  # fmt: skip
    with_lake = verify(packed.path, swept)
    assert failing(with_lake) == {} and len(with_lake) == 14 and {check.holds for check in with_lake} == {True}
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
    ("value", "left"),
    [
        ("/home/me/w.pt", "w.pt"),
        ("//srv/share/w.pt", "w.pt"),
        ("~/runs/w.pt", "w.pt"),
        ("~me/w.pt", "w.pt"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("local-dir:~/clip", "local-dir:clip"),
        ("local-dir://home/me/clip", "local-dir:clip"),
        ("file:///home/me/w.pt", "w.pt"),
        ("file://host/home/me/w.pt", "w.pt"),
        ("from file:///home/me/w.pt", "from w.pt"),
        ("hf-hub:timm/vit", "hf-hub:timm/vit"),
        ("timm/vit", "timm/vit"),
        ("s3://bucket/runs/w.pt?sig=1", "s3://bucket/runs/w.pt"),
        ("width / height > 2", "width / height > 2"),
    ],
)
def test_folders_of_this_machine_stay_at_home(value: str, left: str) -> None:
    assert cleaned({"weights": [value]}) == {"weights": [left]}


def test_classes_keep_their_names_whatever_they_are() -> None:
    found = {"recall": {"token": 0.5, "/a/b": 1.0}, "missing_classes": ["/a/b", "s3://me:key@bucket/a"]}
    assert cleaned({"lineage": found}) == {"lineage": found}


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


def test_the_commands(swept: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "r.zip")
    status, out, _ = datas3("submit", "random", "--output", file, "--lake", swept.uri, capsys=capsys)
    assert (
        status == 0 and "1 selections, 8 trials" in out and hashlib.sha256(Path(file).read_bytes()).hexdigest() in out
    )
    status, out, _ = datas3("verify", file, "--lake", swept.uri, capsys=capsys)
    assert status == 0 and out.count("✓") == 14 and "✗" not in out
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
