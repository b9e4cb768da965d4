"""The leaderboard's page: one file, both scorings, sortable, safe with hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datas3_ray.benchmark import PaperCell
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.report.board_page import write_leaderboard
from datas3_ray.report.scatter import RIGHT, WIDTH
from datas3_ray.report.versus import Mark, _apart, legend, versus

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
HOSTILE = '</script><script>alert("1")</script><img src=http://evil.test/x onerror=alert(1)>'


def page(tmp_path: Path, trials: list[dict[str, Any]], **options: Any) -> str:
    results = pa.Table.from_pylist(trials, schema=RESULTS)
    return write_leaderboard(results, tmp_path / "out" / "board.html", now=NOW, **options).read_text(encoding="utf-8")


@pytest.fixture
def trials(trial) -> list[dict[str, Any]]:
    seen = {"test_seen": 0.9, "test_dropped": 4, "missing_classes": 1, "test_low": 0.75, "test_high": 0.86}
    return [
        trial("north", "everything", 0.7, 60),
        trial("north", "half", 0.8125, 30, **seen),
        trial("north", "few", 0.65, 6),
        trial("south", "everything", 0.6, 60),
        trial("south", "half", 0.55, 30),
    ]


def test_the_page_allows_itself_and_nothing_else(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    text = page(tmp_path, trials)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src 'none'" in policy.group(1) and "unsafe" not in policy.group(1)
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.group(1)
    assert not re.search(r"(src|href)=", text) and "url(" not in text and "@import" not in text
    assert not re.search(r"<[^>]+ (style|on\w+)=", text)
    assert text == page(tmp_path, trials)


def test_both_scorings_and_intervals_stand_side_by_side(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    text = page(tmp_path, trials)
    row = re.search(r'<tr><th scope="row">half</th>(.*?)</tr>', text, re.S)
    assert row
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.group(1))
    words = [re.sub(r"<[^>]+>", " ", cell).split() for cell in cells]
    assert words == [
        ["81.2", "★", "75.0–86.0"],
        ["90.0", "★"],
        ["30"],
        ["55.0"],
        ["55.0"],
        ["30"],
        ["68.1"],
        ["72.5"],
    ]
    assert 'data-sort="0.8125"' in row.group(1) and 'data-sort="0.9"' in row.group(1)
    assert "4 test rows left out" in row.group(1)
    honest = page(tmp_path, trials, scoring="honest")
    assert (
        "paper-style"
        not in re.sub(r"<details>.*?</details>|<style>.*?</style>|<script>.*?</script>", "", honest, flags=re.S).lower()
    )
    with pytest.raises(UsageError, match="no scoring 'fair'"):
        page(tmp_path, trials, scoring="fair")


def test_every_deployment_has_a_panel_and_the_legend_every_method(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    paper = [
        PaperCell("world", "south", "theirs", "accuracy", 0.58, 20, ""),
        PaperCell("world", "north", "x", "accuracy", None, 5, ""),
    ]
    text = page(tmp_path, trials, paper=paper)
    panels = dict(re.findall(r"<figure><figcaption>(\w+)</figcaption>(.*?)</figure>", text, re.S))
    assert list(panels) == ["north", "south"]
    assert len(re.findall(r'<g class="mark m\d', panels["north"])) == 3 and "log scale" in panels["north"]
    assert panels["north"].count('class="bar"') == 3 and panels["north"].count("hollow") == 1
    assert 'class="reference"' in panels["north"] and "theirs (paper), 58" in panels["south"]
    keys = re.findall(r"<li[^>]*>.*?</svg>([^<]+)</li>", text, re.S)
    assert keys[:3] == ["everything", "half", "few"]
    assert {"filled: honest", "hollow: paper-style", "cross: published (paper)", "bar: 95% interval"} < set(keys)
    rows = re.findall(r'<tr class="paper"><th scope="row">(\w+) ', text)
    assert rows == ["theirs", "x"]
    assert not re.search(r'<tr class="paper">(?:(?!</tr>).)*★', text, re.S)


def test_hostile_names_stay_text(trial, tmp_path: Path) -> None:
    one = trial(HOSTILE, HOSTILE, 0.5, 30, model=HOSTILE, hyperparameters=json.dumps({HOSTILE: HOSTILE}))
    paper = [PaperCell(HOSTILE, HOSTILE, HOSTILE, "accuracy", 0.5, 5, HOSTILE)]
    text = page(tmp_path, [one], paper=paper, title=HOSTILE)
    assert text.count("<script") == 1 and "<img" not in text and "evil.test" in text


def test_no_results_and_scores_that_cannot_be_drawn(trial, tmp_path: Path) -> None:
    assert "There are no results yet" in page(tmp_path, [])
    text = page(tmp_path, [trial("north", "half", float("nan"), 30)])
    assert "<figure>" not in text and 'class="board"' in text


def test_marks_of_one_size_stand_apart_and_inside() -> None:
    places = _apart([100.0, 100.0, 101.0, 300.0])
    assert places[3] == 300.0 and sorted(places[:3])[1] - sorted(places[:3])[0] >= 9
    assert max(_apart([360.0] * 5)) <= 360.0
    crowded = _apart([50.0, *[300.0] * 60, 320.0, 330.0])
    assert crowded == sorted(crowded) and min(crowded) >= 50.0 and max(crowded) <= WIDTH - RIGHT
    assert max(crowded[1:61]) - min(crowded[1:61]) <= 90.0
    looks = {str(key.picture) for key in legend([str(i) for i in range(32)], both=False)[:32]}
    assert len(looks) == 32
    plot = versus([Mark("a", 0, 5, 0.5)], reference=None, metric="mse", deployment="d")
    assert "a, 0.5000, with 5 rows" in plot


@pytest.mark.parametrize("scoring", ["both", "honest", "paper"])
def test_the_best_has_the_ring_that_the_legend_speaks_of(
    trials: list[dict[str, Any]], tmp_path: Path, scoring: str
) -> None:
    text = page(tmp_path, trials, scoring=scoring)
    panels = re.findall(r"<figure>(.*?)</figure>", text, re.S)
    assert "ring: the best" in text and panels
    for panel in panels:
        (best,) = re.findall(r'<g class="mark [^"]*"><title>([^<]*)</title>(?:(?!</g>).)*class="halo"', panel)
        assert "(best)" in best


def test_headings_sort_the_table(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium to click in")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page(tmp_path, trials))
    script = """<script>
    const said = [];
    const order = () => Array.from(document.querySelectorAll("tbody")[0].rows).map((row) => row.cells[0].textContent);
    const buttons = document.querySelectorAll("table.board thead button");
    for (const place of [1, 1, 1, 0, 6, 5]) {
      buttons[place].click();
      said.push([buttons[place].textContent, ...order()].join(" "));
    }
    document.title = said.join("; ");
    </script>"""
    file = tmp_path / "clicked.html"
    file.write_text(text.replace("</body>", script + "</body>"), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/user",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert title
    assert title.group(1).split("; ") == [
        "honest half everything few",
        "honest few everything half",
        "honest everything half few",
        "Method everything few half",
        "size half everything few",
        "paper-style everything half few",
    ]


def test_a_report_has_both_scorings_and_the_papers_rows(full, trials: list[dict[str, Any]], tmp_path: Path) -> None:
    from datas3_ray.recipe import parse_recipe, run_recipe

    full.write("results", pa.Table.from_pylist(trials, schema=RESULTS), kind="results")
    paper = tmp_path / "paper.csv"
    head = "dataset,deployment,method,metric,score,subset_size,note\n"
    paper.write_text(f"{head}world,north,theirs,accuracy,0.58,20,made up\n")
    step = {"name": "page", "report": {"samples": 0, "paper": str(paper)}}
    recipe = parse_recipe({"lake": full.uri, "output": str(tmp_path / "out"), "steps": [step]})
    said: list[str] = []
    run_recipe(recipe, say=said.append)
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and ">paper-style</th>" in text
    row = re.search(r'<tr class="paper"><th scope="row">theirs .*?</tr>', text, re.S)
    assert row and "58.0" in row.group(0) and "★" not in row.group(0)
    run_recipe(recipe, say=said.append)
    assert "up to date" in said[-1]
    paper.write_text(f"{head}world,north,theirs,accuracy,0.61,20,made up\n")
    run_recipe(recipe, say=said.append)
    assert "61.0" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


def test_a_mean_without_an_outdated_score_is_marked_as_partial(trial) -> None:
    from datas3_ray.report.board import boards

    made = [
        trial("north", "half", 0.8, 30, test_rows=7),
        trial("south", "half", 0.5, 30),
        trial("north", "all", 0.7, 60, created=datetime(2026, 1, 3, tzinfo=timezone.utc)),
        trial("south", "all", 0.6, 60),
    ]
    (board,) = boards(pa.Table.from_pylist(made, schema=RESULTS), scoring="both")
    means = {row.method: [mean.text for mean in row.means] for row in board.rows}
    assert means == {"all": ["65.0", "65.0"], "half": ["50.0*", "50.0*"]}
    assert any(hint.startswith("* is the mean") for hint in board.hints)
