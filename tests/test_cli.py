"""The command: what it prints, its exit status, and one sentence for every mistake."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import datas3
from rich.console import Console

from datas3_ray import Lake, cli
from datas3_ray.selectors import Everything, Random


@pytest.fixture
def filled(lake, make_pool, monkeypatch) -> Lake:
    # Wide consoles on the captured streams, so that no sentence is folded.
    monkeypatch.setattr(cli, "out", Console(width=200, file=None))
    monkeypatch.setattr(cli, "err", Console(width=200, stderr=True))
    rng = np.random.default_rng(0)
    ids = [f"{i:02}" for i in range(40)]
    make_pool(lake, "pool", ids, rng.normal(size=(40, 4)), label=["ab"[i % 2] for i in range(40)])
    Everything().select(lake, "pool", name="all")
    Random(size=10, seed=1).select(lake, "pool", name="some")
    return lake


def test_ls_and_show(filled, capsys) -> None:
    status, out, _ = datas3("ls", "--lake", filled.uri, capsys=capsys)
    assert status == 0
    assert "random of pool, keeps 10" in out
    assert "vectors vec (4)" in out
    rows = json.loads(datas3("ls", "--lake", filled.uri, "--json", capsys=capsys)[1])
    assert {row["name"]: row["kind"] for row in rows} == {"all": "selection", "pool": "image", "some": "selection"}
    status, out, _ = datas3("show", "some", "--lake", filled.uri, capsys=capsys)
    assert status == 0
    assert '"method": "random"' in out
    shown = json.loads(datas3("show", "pool", "--lake", filled.uri, "--json", "--rows", "2", capsys=capsys)[1])
    assert shown["columns"]["vec"] == "fixed_size_list<item: float>[4]"
    assert [row["id"] for row in shown["rows"]] == ["00", "01"]


def test_rejects_are_those_of_an_ingest(filled, capsys) -> None:
    words = ["--rejects", "--lake", filled.uri]
    for name, kind in (("pool", "image"), ("some", "selection")):
        said = datas3("show", name, *words, capsys=capsys)[1]
        assert said == f"table '{name}' ({kind}) was not ingested, so nothing of it can have been rejected.\n"
    filled.write("pool.ledger", pa.table({"shard": ["a.tar"]}), kind="ledger")
    assert datas3("show", "pool", *words, capsys=capsys)[1] == "nothing of table 'pool' was rejected.\n"


@pytest.fixture
def odd(tmp_path) -> Lake:
    """A table with what JSON and a console's markup have no word for, and with a name longer than most."""
    lake = Lake(tmp_path / "odd[/b]lake")
    columns = {"id": ["a", "b"], "depth": [float("nan"), float("inf")], "taken": pa.array([0, 1], pa.timestamp("us"))}
    lake.add("a-name-that-is-longer-than-most-names-of-tables.and-still-one", pa.table(columns))
    Everything().select(lake, lake.names()[0], name="all")
    return lake


def test_nothing_is_lost_on_the_way_to_a_person(odd, capsys, monkeypatch) -> None:
    name = odd.names()[0]
    assert f"{name}  image" in datas3("ls", "--lake", odd.uri, capsys=capsys)[1]  # a pipe is as wide as it takes
    assert "taken                    timestamp[us]\n" in datas3("show", name, "--lake", odd.uri, capsys=capsys)[1]
    assert odd.uri in datas3("ls", "--lake", f"{odd.uri}-typo", capsys=capsys)[2]
    monkeypatch.setattr(cli, "out", Console(force_terminal=True, width=30))
    listed = datas3("ls", "--lake", odd.uri, capsys=capsys)[1]
    assert "…" not in listed
    assert name in "".join(line.split(" ")[0] for line in listed.splitlines())  # folded, and whole
    assert (
        "  taken                    1970-01-01 00:00:00\n" in datas3("show", name, "--lake", odd.uri, capsys=capsys)[1]
    )


def test_json_has_no_word_for_nan(odd, tmp_path, capsys) -> None:
    _, printed, _ = datas3("show", odd.names()[0], "--lake", odd.uri, "--json", capsys=capsys)
    assert [row["depth"] for row in json.loads(printed, parse_constant=pytest.fail)["rows"]] == [None, None]
    to = tmp_path / "[b].jsonl"
    assert f"written to {to}" in datas3("export", "all", str(to), "--lake", odd.uri, capsys=capsys)[1]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in to.read_text().splitlines()]
    assert [row["depth"] for row in rows] == [None, None]


def test_query_finds_the_row_itself_first(filled, capsys) -> None:
    words = ["query", "pool", "--like", "07", "--lake", filled.uri, "--limit", "3", "--json"]
    rows = json.loads(datas3(*words, capsys=capsys)[1])
    assert rows[0]["id"] == "07"
    assert rows[0]["_distance"] == pytest.approx(0, abs=1e-5)
    assert len(rows) == 3
    rows = json.loads(datas3(*words, "--where", "label = 'a'", capsys=capsys)[1])
    assert all(row["label"] == "a" for row in rows)


def test_query_of_copies_begins_with_the_row_itself(lake, make_pool, capsys) -> None:
    """A vector without a direction is like nothing, and that is said."""
    make_pool(lake, "copies", ["d", "b", "c", "a", "zero"], [[1, 0], [1, 0], [2, 0], [0, 1], [0, 0]])

    def found(like: str, *words: str) -> list[str]:
        command = ["query", "copies", "--like", like, "--lake", lake.uri, "--json", *words]
        return [row["id"] for row in json.loads(datas3(*command, capsys=capsys)[1])]

    assert found("c") == ["c", "b", "d", "a"]
    assert found("c", "--limit", "1") == ["c"]
    assert found("c", "--where", "id != 'c' -- not itself") == ["b", "d", "a"]
    status, _, said = datas3("query", "copies", "--like", "zero", "--lake", lake.uri, capsys=capsys)
    assert status == 2 and "the vector of row 'zero' in column 'vec' has no direction" in said


@pytest.mark.parametrize("name", ["kept[v2].csv", f"{'long-' * 30}.csv", "a[/b].csv"])
def test_paths_are_said_as_they_are(filled, tmp_path, capsys, monkeypatch, name) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli, "out", Console(width=80, file=None))
    path = tmp_path / "x[bold]" / name
    path.parent.mkdir(parents=True)  # of "a[/b].csv" two folders
    said = datas3("export", "some", str(path), "--lake", filled.uri, capsys=capsys)[1]
    assert said == f"10 rows of selection 'some' written to {path}\n"
    said = datas3("report", "--to", f"{path}.html", "--lake", filled.uri, capsys=capsys)[1]
    assert said == f"page written: {path}.html\n"


def test_diff(filled, capsys) -> None:
    (row,) = json.loads(datas3("diff", "all", "some", "--lake", filled.uri, "--json", capsys=capsys)[1])
    assert (row["first"], row["second"], row["both"], row["only_first"], row["only_second"]) == (40, 10, 10, 30, 0)
    assert row["jaccard"] == 0.25
    assert "method: everything / random" in row["differ_in"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".txt"])
def test_export(filled, tmp_path, capsys, suffix) -> None:
    path = tmp_path / f"kept{suffix}"
    status, out, _ = datas3("export", "some", str(path), "--lake", filled.uri, capsys=capsys)
    assert status == 0
    assert "10 rows of selection 'some'" in out
    wanted = sorted(filled.selection("some").ids().to_pylist())
    if suffix == ".parquet":
        table = pq.read_table(path)
        assert table.schema.names == ["id", "label"]
        assert sorted(table.column("id").to_pylist()) == wanted
    else:
        lines = path.read_text().splitlines()
        assert len(lines) == 10 + (suffix == ".csv")
        if suffix == ".txt":
            assert sorted(lines) == wanted
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["ls", "--lake", "/no/such/lake"], 2, "no lake at /no/such/lake"),
        (["show", "pol", "--lake", "LAKE"], 2, "no table 'pol'"),
        (["query", "pool", "--like", "zz", "--lake", "LAKE"], 2, "has no row 'zz'"),
        (["query", "pool", "--like", "07", "--where", "x =", "--lake", "LAKE"], 2, "where = 'x =' does not work"),
        (
            ["query", "pool", "--like", "07", "--where", "labl = 'a'", "--lake", "LAKE"],
            2,
            "Did you mean 'label'?\n",
        ),
        (["diff", "all", "pool", "--lake", "LAKE"], 2, "is a table of kind image, not a selection"),
        (["export", "some", "kept.doc", "--lake", "LAKE"], 2, "must end in one of .parquet"),
        (["export", "some", "/no/folder/kept.csv", "--lake", "LAKE"], 2, "there is no folder /no/folder"),
        (["export", "some", "FOLDER", "--lake", "LAKE"], 2, "it is a folder; name a file"),
        (["report", "--to", ".", "--lake", "LAKE"], 2, "cannot write to .: it is a folder; name a file"),
        (["submit", "some", "--output", ".", "--lake", "LAKE"], 2, "cannot write to .: it is a folder; name a file"),
        (["leaderboard", "--html", ".", "--lake", "LAKE"], 2, "cannot write to .: it is a folder; name a file"),
        (["quickstart", "--folder", "FILE"], 2, "/data: FILE is a file; name a folder"),
        (["run", "pipelines/quickstart.yaml", "--set", "folder=FILE"], 2, "/data: FILE is a file; name a folder"),
        (["run", "pipelines/quickstart.yaml", "--set", "folder=FILE", "--dry-run"], 2, "FILE is a file; name a folder"),
        (["leaderboard", "--lake", "LAKE"], 1, "has no results yet"),
        (["run", "nowhere.yaml"], 2, "no file nowhere.yaml"),
        (["run"], 2, "Missing argument"),
        (["runn"], 2, "No such command"),
        (["ls", "--lakes", "x"], 2, "No such option"),
        (["query", "pool", "--like", "07", "--limit", "0"], 2, "or equal to 1. Try 'datas3 --help'.\n"),
        (["gc", "--lake", "LAKE-typo"], 2, "no lake at LAKE-typo: there is no table there"),
        (["score", "pool", "--scores", "el3n", "--lake", "LAKE"], 2, "tdds. Did you mean 'el2n'?\n"),
    ],
)
def test_mistakes(filled, tmp_path, capsys, words, status, says) -> None:
    before = filled.names()
    file, folder = tmp_path / "file", tmp_path / "folder.csv"
    file.touch()
    folder.mkdir()
    for word, meant in (("LAKE", filled.uri), ("FILE", str(file)), ("FOLDER", str(folder))):
        words = [given.replace(word, meant) for given in words]
        says = says.replace(word, meant)
    got, _, complaint = datas3(*words, capsys=capsys)
    assert got == status
    assert says in complaint
    assert "Traceback" not in complaint
    assert complaint.count("\n") == 1
    assert filled.names() == before


def test_ctrl_c_is_one_sentence(filled, capsys, monkeypatch) -> None:
    monkeypatch.setattr("datas3_ray.lake.search.nearest_rows", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    status, _, complaint = datas3("query", "pool", "--like", "07", "--lake", filled.uri, capsys=capsys)
    assert (status, complaint) == (1, "error: stopped; run the same command again to go on where it stopped.\n")


def test_a_store_that_does_not_answer_is_one_sentence(filled, capsys, monkeypatch) -> None:
    from datas3_ray import retry

    monkeypatch.setattr(retry, "DELAYS", ())
    with socket.socket() as closed:  # bound and not listening: nobody answers there
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(key, "us-east-1")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        status, _, complaint = datas3("ls", "--lake", "s3://bucket/lake", capsys=capsys)
    assert status == 1
    assert complaint.startswith("error: listing the tables of s3://bucket/lake failed: ")
    assert complaint.endswith("Connection refused; run the same command again when the store answers.\n")


def test_a_recipe_runs_and_is_planned_from_the_command(filled, tmp_path, capsys) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"lake: {filled.uri}\nsteps:\n  - name: r\n    select: {{from: pool, random: {{size: 5}}}}\n")
    status, out, _ = datas3("run", str(path), "--dry-run", capsys=capsys)
    assert status == 0
    assert "random on pool" in out
    assert not filled.exists("r")
    status, out, _ = datas3("run", str(path), "--set", "steps.r.select.random.size=7", capsys=capsys)
    assert status == 0
    assert "7 of 40 rows kept" in out
    path.write_text("lake: x\nstep: []\n")
    status, _, complaint = datas3("run", str(path), capsys=capsys)
    assert status == 2
    assert "'steps' must be a list" in complaint


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "datas3_ray", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    for command in ("run", "quickstart", "ls", "show", "query", "diff", "export", "leaderboard", "report"):
        assert command in done.stdout


def test_what_the_disk_says_is_a_sentence(filled, monkeypatch, capsys) -> None:
    def full(*args, **more):
        raise OSError("LanceError(IO): No space left on device (os error 28), writer/structural.rs:254:9")

    monkeypatch.setattr("datas3_ray.lake.indexes.build_indexes", full)
    status, _, said = datas3("index", "pool", "--lake", filled.uri, capsys=capsys)
    assert status == 1
    assert "error: the command failed: No space left on device (os error 28); free some space" in said
