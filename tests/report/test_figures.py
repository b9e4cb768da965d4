"""Figures are pure functions: proportions, ticks, and labels that never cover each other."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.report import scatter as sc
from datas3_ray.report.figures import Segment, heat_class, histogram, log_ticks, paired_bar, stacked_bar, ticks

HOSTILE = '"><script>alert(1)</script>&'


def rects(markup: str, css: str) -> list[float]:
    """Widths of a figure's rectangles of one class."""
    return [
        float(rect.get("width", "0"))
        for rect in ElementTree.fromstring(markup).iter("rect")
        if rect.get("class") == css
    ]


def test_stacked_bar_is_in_proportion_and_fills_the_width() -> None:
    bar = stacked_bar(
        [Segment("kept", 300, "kept"), Segment("dropped", 100, "dropped"), Segment("held out", 0, "heldout")]
    )
    assert rects(bar, "kept") == [750.0]
    assert rects(bar, "dropped") == [250.0]
    assert rects(bar, "heldout") == []


def test_stacked_bar_keeps_one_row_in_a_million_visible() -> None:
    bar = stacked_bar([Segment("kept", 999_999, "kept"), Segment("invalid", 1, "invalid")])
    assert rects(bar, "invalid")[0] > 3
    assert rects(bar, "invalid")[0] + rects(bar, "kept")[0] == pytest.approx(1000, abs=0.1)


def test_stacked_bar_of_nothing_says_so() -> None:
    assert 'aria-label="no rows"' in stacked_bar([])
    assert "kept: 0" in stacked_bar([Segment("kept", 0, "kept")])


def test_names_in_figures_are_escaped() -> None:
    point = sc.Point(HOSTILE, 10, 0.5)
    for markup in (
        stacked_bar([Segment(HOSTILE, 1, "kept")]),
        histogram(np.array([0.0, 1.0]), np.array([1]), np.array([0]), title=HOSTILE),
        sc.scatter([point], reference=point, metric=HOSTILE, deployment=HOSTILE),
    ):
        assert "<script" not in markup
        ElementTree.fromstring(markup)


def test_paired_bar_stays_inside_its_box() -> None:
    bar = paired_bar(2.0, -1.0)
    assert rects(bar, "before") == [100.0]
    assert rects(bar, "kept") == [0.0]


def test_histogram_says_every_count() -> None:
    markup = histogram(np.array([0.0, 0.5, 1.0]), np.array([0, 7]), np.array([5, 2]), title="Scores of dedup")
    titles = [title.text for title in ElementTree.fromstring(markup).iter("title")]
    assert titles == ["0 to 0.5: 0 kept, 5 dropped", "0.5 to 1: 7 kept, 2 dropped"]
    assert "Scores of dedup: 7 kept and 7 dropped rows between 0 and 1" in markup


def test_histogram_of_one_score_is_drawn() -> None:
    ElementTree.fromstring(histogram(np.array([3.0, 3.0]), np.array([4]), np.array([0]), title="x"))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_inside_ascending_and_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 9
    assert found == sorted(set(found))
    slack = 1e-6 * max(abs(low), abs(low + span), span)
    assert low - slack <= found[0] and found[-1] <= low + span + slack


@given(st.floats(1, 1e6), st.floats(1.5, 1e6))
def test_log_ticks_are_inside_and_few(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert len(found) <= 6
    assert all(low <= value <= low * ratio for value in found)


def test_heat_classes_are_in_the_stylesheet() -> None:
    from datas3_ray.report import page

    style = (page.TEMPLATES / "report.css").read_text()
    for step in np.linspace(0, 1, 23):
        assert f".{heat_class(float(step))} {{" in style


@st.composite
def methods(draw: st.DrawFn) -> list[sc.Point]:
    """Methods as leaderboards have them: few distinct sizes, scores close together."""
    count = draw(st.integers(1, 16))
    sizes = draw(st.lists(st.sampled_from([120, 2500, 2500, 5000, 10_000]), min_size=count, max_size=count))
    scores = draw(st.lists(st.floats(0.6, 0.7), min_size=count, max_size=count))
    names = draw(st.lists(st.text("abcdefgh -", min_size=1, max_size=24), min_size=count, max_size=count))
    return [sc.Point(name, size, score) for name, size, score in zip(names, sizes, scores, strict=True)]


@settings(max_examples=40, deadline=None)
@given(methods())
def test_labels_cover_no_label_and_no_marker(points: list[sc.Point]) -> None:
    axes = sc.Axes([p.size for p in points], [p.score for p in points])
    anchors = [(axes.x(p.size), axes.y(p.score), p.name) for p in points]
    markers = [sc.Box(x - 6, y - 6, x + 6, y + 6) for x, y, _ in anchors]
    labels = [label for label in sc.place(anchors, markers) if label is not None]
    assert labels
    for i, label in enumerate(labels):
        assert label.box.left >= sc.LEFT and label.box.right <= sc.WIDTH and label.box.top >= 0
        assert not any(label.box.hits(marker) for marker in markers)
        assert not any(label.box.hits(other.box) for other in labels[:i])


def test_seven_methods_all_get_their_names() -> None:
    points = [sc.Point(f"method {i}", 2500 if i % 2 else 5000, 0.70 - 0.001 * i, best=i == 0) for i in range(7)]
    markup = sc.scatter(points, reference=points[3], metric="accuracy (%)", deployment="north")
    texts = re.findall(r'class="label[^"]*"[^>]*>([^<]+)<', markup)
    assert sorted(texts) == [f"method {i}" for i in range(7)]
    assert markup.count('class="dot best"') == 1
    assert markup.count('class="reference"') == 1


def test_every_point_is_inside_the_panel() -> None:
    axes = sc.Axes([1, 1_000_000], [0.0, 1.0])
    assert axes.log
    for size, score in ((0, 0.0), (1, 1.0), (1_000_000, 0.5)):
        assert sc.LEFT <= axes.x(size) <= sc.WIDTH - sc.RIGHT
        assert sc.TOP <= axes.y(score) <= sc.HEIGHT - sc.BOTTOM


def test_a_score_far_from_the_others_is_drawn_at_the_edge_and_said() -> None:
    scores = [80.0, 81.0, 82.0, 83.0, 80.5, 81.5, 82.5, 79.0, 14.0]
    axes = sc.Axes([100] * 9, scores)
    assert axes.scores[0] > 70 and axes.beyond(14.0) == "↓" and axes.beyond(79.0) == ""
    assert axes.y(14.0) == axes.y(axes.scores[0]) == sc.HEIGHT - sc.BOTTOM
    points = [sc.Point(f"m{i}", 100 + i, score) for i, score in enumerate(scores)]
    assert "m8 ↓ 14" in sc.scatter(points, reference=None, metric="accuracy", deployment="d")
    # Few scores, and scores of which half are the same, are all shown as they are.
    assert sc.Axes([1] * 7, scores[-7:]).scores[0] < 14
    assert sc.Axes([1] * 9, [80.0] * 8 + [14.0]).scores[0] < 14
