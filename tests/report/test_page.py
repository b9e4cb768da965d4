"""The page: one file, safe with hostile data, and every number on it the lake's."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import QUARANTINE, RESULTS
from datas3_ray.report import write_report
from datas3_ray.report.card import recipe_step

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
HOSTILE = '</span><script>alert("1")</script><img src=http://evil.test/x onerror=alert(1)>'
VOID = {"meta", "br", "img", "link", "input", "hr"}
ROWS = 60  # of the pool


class Dom(HTMLParser):
    """Every tag with its attributes and the text inside; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, (tag, self._open[-3:])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page(lake: Lake, tmp_path: Path, **options: Any) -> str:
    return write_report(lake, tmp_path / "out" / "report.html", now=NOW, **options).read_text(encoding="utf-8")


def card_of(text: str, name: str) -> str:
    """The markup of one selection's card."""
    cards = re.findall(r'<article class="card".*?</article>', text, re.S)
    return next(card for card in cards if f">{name}</h3>" in card)


def test_the_page_asks_nothing_of_the_network(full: Lake, tmp_path: Path) -> None:
    dom = Dom(page(full, tmp_path))
    for tag, attributes in dom.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert name != "style" and not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "poster", "data", "action", "xlink:href"}:
                assert (value or "").startswith(("#", "data:image/")), (tag, name, value)
    assert "url(" not in page(full, tmp_path) and "@import" not in page(full, tmp_path)


def test_the_policy_allows_the_page_and_nothing_else(full: Lake, tmp_path: Path) -> None:
    text = page(full, tmp_path)
    policy = next(m["content"] for m in Dom(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style and text.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_links_and_pictures_point_at_something(full: Lake, tmp_path: Path) -> None:
    dom = Dom(page(full, tmp_path))
    ids = [attributes["id"] for _, attributes in dom.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag in ("a", "use"):
        targets = [str(attributes["href"]) for attributes in dom.all(tag)]
        assert targets and {target[1:] for target in targets} <= set(ids)


def test_a_picture_is_stored_once_and_has_words(full: Lake, tmp_path: Path) -> None:
    dom = Dom(page(full, tmp_path))
    stored = [image["href"] for image in dom.all("image")]
    assert len(stored) == len(set(stored))
    assert len(dom.all("use")) > len(stored) > 30
    pictures = [svg for svg in dom.all("svg") if str(svg.get("aria-label", "")).startswith("zebra: 00000/")]
    assert pictures
    for svg in dom.all("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    for cell in dom.all("th"):
        assert cell.get("scope") in {"row", "col", "colgroup"}


def test_thumbnails_are_small_webp(full: Lake, tmp_path: Path) -> None:
    for image in Dom(page(full, tmp_path)).all("image"):
        kind, _, data = str(image["href"]).partition(",")
        assert kind == "data:image/webp;base64"
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        assert opened.size == (int(str(image["width"])), int(str(image["height"]))) == (40, 30)


def test_hostile_text_stays_text(
    tmp_path: Path,
    image_rows: Callable[..., pa.Table],
    select: Callable[..., None],
    trial: Callable[..., dict[str, Any]],
) -> None:
    lake = Lake(tmp_path / "lake")
    rows = image_rows(
        tmp_path / "data", label=lambda i: HOSTILE, caption=lambda i: HOSTILE, id=lambda i: f"{HOSTILE}{i}'"
    )
    lake.write("pool", rows, kind="image")
    reject = {"uri": f"s3://bucket/{HOSTILE}", "offset": 1, "reason": HOSTILE, "error": HOSTILE}
    lake.write("pool.quarantine", pa.Table.from_pylist([reject], schema=QUARANTINE), kind="quarantine")
    keep = np.arange(ROWS) % 2 == 0
    select(
        lake,
        "half",
        keep,
        method=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        report={HOSTILE: HOSTILE, "table": {HOSTILE: [HOSTILE]}, "rows": [{HOSTILE: HOSTILE}]},
        columns={"max_similarity": np.linspace(0, 1, ROWS), "duplicate_of": rows.column("id")},
    )
    trials = [trial(HOSTILE, HOSTILE, 0.5, 30, hyperparameters=json.dumps({HOSTILE: HOSTILE}), model=HOSTILE)]
    lake.write("results", pa.Table.from_pylist(trials, schema=RESULTS), kind="results")
    text = page(lake, tmp_path, title=HOSTILE)
    dom = Dom(text)
    assert "<script" not in text
    assert not dom.all("script") and not dom.all("img")
    assert all(not name.startswith("on") for _, attributes in dom.tags for name in attributes)
    assert HOSTILE in dom.text
    assert len(dom.all("use")) >= 48


def test_no_secret_of_a_uri_is_on_the_page(
    tmp_path: Path, image_rows: Callable[..., pa.Table], select: Callable[..., None]
) -> None:
    uri = "https://me:hush-user@host/a.jpg?token=hush-token"
    lake = Lake(tmp_path / "lake")
    rows = image_rows(tmp_path / "data")
    places = [f"no-such-protocol://me:hush-user@host/{i}?token=hush-token" for i in range(ROWS)]
    lake.write("pool", rows.set_column(1, "uri", pa.array(places)), kind="image")
    reject = {"uri": uri, "offset": 0, "reason": "unreadable_file", "error": f"403 for '{uri}'"}
    lake.write("pool.quarantine", pa.Table.from_pylist([reject], schema=QUARANTINE), kind="quarantine")
    select(lake, "near", np.arange(ROWS) < 5, parameters={"words": uri, "size": 0.5})
    text = page(lake, tmp_path)
    assert "hush" not in text
    assert text.count("https://host/a.jpg") >= 5  # where it was, the error, the parameter, its step and its record


def test_the_legend_of_a_histogram_says_which_bar_is_below(full: Lake, tmp_path: Path) -> None:
    """Bars of a bin stand on each other: the one whose foot is lower is the one below."""
    card = card_of(page(full, tmp_path), "half")
    plot = re.search(r'<svg class="plot".*?</svg>(.*?)</ul>', card, re.S)
    assert plot
    both = next(group for group in re.findall(r"<g>(.*?)</g>", plot.group(0)) if group.count("<rect") == 2)
    heights = {css: float(y) for css, y in re.findall(r'<rect class="(\w+)" x="[\d.]+" y="([\d.]+)"', both)}
    lower = max(heights, key=heights.__getitem__)
    said = dict(re.findall(r'<rect class="(\w+)"[^>]*/></svg>\w+ \((\w+)\)', plot.group(1)))
    assert said == {lower: "below", ({"kept", "dropped"} - {lower}).pop(): "above"}


def test_numbers_are_the_lakes(full: Lake, tmp_path: Path) -> None:
    text = page(full, tmp_path)
    dom = Dom(text)
    assert "rows in pool" in dom.text and f"<b>{ROWS}</b><span>rows in pool" in text
    assert "<b>4</b><span>rejected rows" in text and "<b>2</b><span>selections" in text
    assert "truncated image" in dom.text and "the image's data end too early" in dom.text
    half = Dom(card_of(text, "half")).text
    assert "30 of 60 eligible rows kept (50.0%)" in half
    assert "30 kept" in half and "30 dropped" in half and "2 invalid vector" in half and "5 held out" in half
    assert "1.2 s" in half and "effective sample size 12.5" in half
    labels = full.table("pool").to_arrow(["label"]).column("label").to_pylist()
    for label in ("zebra", "lion", "hare"):
        before, after = labels.count(label), labels[::2].count(label)
        assert re.search(rf"{label} {before} {100 * before / 60:.1f}% {after} {100 * after / 30:.1f}% ", half)
    unlabelled = labels.count(None)
    assert f"unlabelled {unlabelled} {100 * unlabelled / 60:.1f}% 0 0.0%" in half


def test_the_leaderboard_is_the_papers_table(full: Lake, tmp_path: Path) -> None:
    text = page(full, tmp_path)
    board = re.search(r'<table class="board">.*?</table>', text, re.S)
    assert board
    words = Dom(board.group(0)).text
    assert "Method north south Mean accuracy size accuracy size" in words
    assert "everything 70.0 60 60.0 ★ 60 65.0" in words
    assert "half 81.2 ★ 30 55.0 30 68.1" in words
    assert board.group(0).count('class="best"') == 2
    assert "batch size 32, learning rate 0.01" in board.group(0)
    panels = re.findall(r"<figure><figcaption>(\w+)</figcaption>(.*?)</figure>", text, re.S)
    assert [name for name, _ in panels] == ["north", "south"]
    assert all('class="reference"' in plot and "half: " in plot for _, plot in panels)


def test_pairs_show_both_pictures_and_the_cosine(full: Lake, tmp_path: Path) -> None:
    card = card_of(page(full, tmp_path), "dedup")
    dom = Dom(card)
    titles = re.findall(r'<h4 class="swatch-[a-z]+">([^<]+) <small>', card)
    assert titles[-3:] == ["Most alike", "Just removed", "Just kept"]
    pairs = re.findall(r'<div class="duo">(.*?)</div><p class="cos">cos <b>([\d.]+)</b>', card, re.S)
    assert [float(cosine) for _, cosine in pairs[:2]] == [
        pytest.approx(59 / 60, abs=1e-4),
        pytest.approx(58 / 60, abs=1e-4),
    ]
    assert float(pairs[6][1]) == pytest.approx(46 / 60, abs=1e-6)
    assert float(pairs[12][1]) == pytest.approx(45 / 60, abs=1e-6)
    assert re.findall(r"<bdi>([^<]+)</bdi>", pairs[0][0]) == ["00000/059", "00000/000"]
    assert all(pair.count("<use ") == 2 for pair, _ in pairs)
    assert f"the cut lies between {45 / 60:.6f} and {np.float32(46 / 60):.6f}" in dom.text


def test_overlap_is_that_of_the_kept_rows(full: Lake, tmp_path: Path) -> None:
    text = page(full, tmp_path)
    half, dedup = (set(full.selection(name).ids().to_pylist()) for name in ("half", "dedup"))
    both = len(half & dedup)
    assert f"{both / len(half | dedup):.2f}" in Dom(text).text
    assert f"half and dedup: {both} rows in both, {100 * both / len(half):.2f}% of half" in text
    assert f"dedup and half: {both} rows in both, {100 * both / len(dedup):.2f}% of dedup" in text


def test_tables_of_vectors_alone_show_ids_and_labels(
    tmp_path: Path, image_rows: Callable[..., pa.Table], select: Callable[..., None]
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.write("pool", image_rows(tmp_path / "data").select(["id", "label", "lite"]), kind="image")
    select(lake, "half", np.arange(ROWS) % 2 == 0)
    card = card_of(page(lake, tmp_path), "half")
    assert "<use " not in card and '<ul class="plain">' in card
    assert "added as vectors: no picture" in card
    assert "00000/0" in card and "lion" in card


def test_a_query_is_shown(pool: Lake, tmp_path: Path, select: Callable[..., None]) -> None:
    pool.write("examples", pool.table("pool").to_arrow(limit=5), kind="image")
    select(pool, "near", np.arange(ROWS) % 2 == 0, query="examples")
    card = Dom(card_of(page(pool, tmp_path), "near")).text
    assert "Query: examples 5 of 5 examples of the deployment" in card


def test_an_empty_lake_is_a_page(tmp_path: Path) -> None:
    dom = Dom(page(Lake(tmp_path / "lake"), tmp_path))
    for sentence in (
        "There is no image table in this lake yet",
        "No model has been trained on these selections yet",
        "There is no selection in this lake yet",
        "Two selections of one table are needed",
        "No table has a vector column.",
    ):
        assert sentence in dom.text


def test_no_rejects_and_no_results_are_sentences(pool: Lake, tmp_path: Path, select: Callable[..., None]) -> None:
    select(pool, "half", np.arange(ROWS) % 2 == 0)
    dom = Dom(page(pool, tmp_path))
    assert "Nothing is in quarantine" in dom.text
    assert "No model has been trained" in dom.text
    assert "The method gives no score." in dom.text


def test_a_selection_that_keeps_nothing_is_a_card(pool: Lake, tmp_path: Path, select: Callable[..., None]) -> None:
    select(pool, "none", np.zeros(ROWS, bool), minutes=1)
    select(pool, "all", np.ones(ROWS, bool), minutes=2)
    dom = Dom(page(pool, tmp_path))
    assert "0 of 60 eligible rows kept (0.0%)" in dom.text


def test_a_selection_outlives_its_table(full: Lake, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(Path(full.uri) / "pool.lance")
    text = page(full, tmp_path)
    assert "The table it chose from, pool, is no longer in the lake." in card_of(text, "half")
    assert "30 of 60 eligible rows kept" in Dom(text).text


def test_labels_are_those_of_the_version_that_was_read(
    pool: Lake, tmp_path: Path, image_rows: Callable[..., pa.Table], select: Callable[..., None]
) -> None:
    select(pool, "half", np.arange(ROWS) % 2 == 0)
    pool.write("pool", image_rows(tmp_path / "data", label=lambda i: "renamed"), kind="image")
    card = card_of(page(pool, tmp_path), "half")
    assert ">zebra</th>" in card and ">renamed</th>" not in card


def test_nothing_is_shown_of_a_table_that_took_the_name_of_the_one_it_chose_from(
    pool: Lake, tmp_path: Path, image_rows: Callable[..., pa.Table], select: Callable[..., None]
) -> None:
    import shutil

    select(pool, "old", np.arange(ROWS) % 2 == 0, minutes=1)
    shutil.rmtree(Path(pool.uri) / "pool.lance")
    pool.write("pool", image_rows(tmp_path / "more", label=lambda i: "other"), kind="image")
    select(pool, "new", np.arange(ROWS) % 2 == 0, minutes=2)
    text = page(pool, tmp_path)
    old, new = card_of(text, "old"), card_of(text, "new")
    assert "was deleted, and pool is another one now" in Dom(old).text
    assert "was deleted" not in Dom(new).text and ">other</th>" in new and ">other</th>" not in old


def test_lineage_that_disagrees_with_the_rows_is_pointed_out(
    pool: Lake, tmp_path: Path, select: Callable[..., None]
) -> None:
    counts = {"kept": 29, "eligible": 60, "shortfall": 7}
    select(pool, "half", np.arange(ROWS) % 2 == 0, counts=counts, size=67)
    card = Dom(card_of(page(pool, tmp_path), "half")).text
    assert "The lineage says 29 rows kept, and the table has 30." in card
    assert "7 fewer rows than the 67 asked for were eligible" in card


def test_the_same_lake_gives_the_same_bytes(full: Lake, tmp_path: Path) -> None:
    first = page(full, tmp_path, seed=1)
    assert first == page(full, tmp_path, seed=1)
    assert first != page(full, tmp_path, seed=2)
    later = write_report(full, tmp_path / "later.html", seed=1, now=NOW + timedelta(days=1)).read_text()
    assert later.replace("2026-01-03", "2026-01-02") == first


def test_order_and_choice_of_selections(full: Lake, tmp_path: Path) -> None:
    names = re.compile(r'<h3 id="selection-\d+-title">([^<]+)</h3>')
    assert names.findall(page(full, tmp_path)) == ["half", "dedup"]
    assert names.findall(page(full, tmp_path, selections=["dedup", "half", "dedup"])) == ["dedup", "half"]
    assert names.findall(page(full, tmp_path, selections=["dedup"])) == ["dedup"]
    assert names.findall(page(full, tmp_path, selections=[])) == ["half", "dedup"]


def test_mistakes_are_told(full: Lake, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pool' is a table of kind image"):
        page(full, tmp_path, selections=["pool"])
    with pytest.raises(UsageError, match="no table 'hlaf'"):
        page(full, tmp_path, selections=["hlaf"])
    with pytest.raises(UsageError, match="samples = -1"):
        page(full, tmp_path, samples=-1)
    with pytest.raises(UsageError, match="it is a folder; name a file"):
        write_report(full, tmp_path)
    assert not (tmp_path / "out" / "report.html").exists()


def test_no_samples_no_pictures(full: Lake, tmp_path: Path, select: Callable[..., None]) -> None:
    select(full, "half", np.arange(ROWS) % 2 == 0, minutes=1)
    assert "<use " not in card_of(page(full, tmp_path, samples=0), "half")


def test_a_replaced_report_leaves_nothing_behind(full: Lake, tmp_path: Path) -> None:
    page(full, tmp_path)
    page(full, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_recipe_step_makes_the_selection_again() -> None:
    from datas3_ray.step_kinds import parse_step
    from datas3_ray.steps import SelectStep

    yaml = pytest.importorskip("yaml")
    lineage: dict[str, Any] = {
        "method": "semdedup",
        "table": "pool",
        "within": "half",
        "query": None,
        "parameters": {"column": "lite", "clusters": 2, "eps": 0.25, "size": None, "keep": "hard", "seed": 0},
    }
    step = parse_step(yaml.safe_load(recipe_step("dedup", lineage))[0], 0, "recipe")
    assert isinstance(step, SelectStep)
    assert (step.name, step.source, step.within, step.selector.method) == ("dedup", "pool", "half", "semdedup")
    assert step.selector.model_dump(mode="json").items() >= lineage["parameters"].items()
    resized = recipe_step("small", {**lineage, "resized_from": "dedup", "size": 10})
    assert resized == "Lake(...).selection('dedup').resize(10, name='small')\n"
