"""Score against subset size for one deployment: a marker a method, intervals as bars, and both scorings.

A method has one colour and one shape in every panel of a board, which its legend shows. Filled markers are honest
scores, hollow ones of the same shape paper-style ones, crosses published ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from datas3_ray.report import formats
from datas3_ray.report.scatter import HEIGHT, LEFT, RIGHT, WIDTH, Axes, frame

COLOURS = 8
SHAPES = 4
RADIUS = 5.0
_NEAR = 7.0
_APART = 9.0
_WIDE = 90.0


@dataclass(frozen=True)
class Mark:
    """One method in a panel. ``look`` numbers its colour and shape; None for a published row.

    ``score`` is the honest score, ``paper_style`` the other one; either may be None. ``low`` and ``high`` are the ends
    of the bar through the honest score. ``best`` is of the honest scores, or of the others where only those are shown.
    """

    name: str
    look: int | None
    size: int
    score: float | None
    paper_style: float | None = None
    low: float | None = None
    high: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a small picture and what it stands for. ``look`` is empty for what is no method."""

    picture: Markup
    text: str
    look: str = ""


def versus(marks: Sequence[Mark], *, reference: float | None, metric: str, deployment: str) -> Markup:
    """One panel.

    Args:
        marks: methods with at least one score.
        reference: the honest score of the whole pool, for the dashed line.
        metric: name of the score, for the axis.
        deployment: name of the panel, for its text alternative.
    """
    values = [v for m in marks for v in (m.score, m.paper_style, m.low, m.high) if v is not None]
    axes = Axes([m.size for m in marks], values)
    body = frame(axes, metric)
    if reference is not None:
        y = axes.y(reference)
        body += Markup('<line class="reference" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, y, y
        )
    places = _apart([axes.x(m.size) for m in marks])
    # The best are drawn last, above the others.
    for mark, x in sorted(zip(marks, places, strict=True), key=lambda pair: (pair[0].best, -pair[0].size)):
        body += _mark(axes, mark, x)
    words = "; ".join(_words(mark) for mark in marks)
    return Markup('<svg class="plot versus" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{metric} against subset size for {deployment}: {words}", body
    )


def legend(
    names: Sequence[str], *, both: bool, published: bool = False, bars: str = "", reference: bool = False
) -> list[Key]:
    """Methods by their looks, in order, then what the kinds of marker mean.

    Args:
        names: of the methods; each one's place is its look.
        both: whether panels show paper-style scores too.
        published: whether panels have published rows.
        bars: what the bars are; empty where there are none.
        reference: whether panels have the dashed line of the whole pool.
    """
    keys = [Key(_picture(_shape(8, 8, look)), name, f"m{look}") for look, name in enumerate(names)]
    if published:
        keys.append(Key(_picture(_cross(8, 8)), "cross: published (paper)"))
    if both:
        filled = Markup('<circle class="plain" cx="8" cy="8" r="{}"/>').format(RADIUS)
        hollow = Markup('<circle class="plain hollow" cx="8" cy="8" r="{}"/>').format(RADIUS - 0.8)
        keys += [Key(_picture(filled), "filled: honest"), Key(_picture(hollow), "hollow: paper-style")]
    if bars:
        keys.append(Key(_picture(Markup('<line class="bar plain" x1="8" x2="8" y1="1" y2="15"/>')), bars))
    halo = Markup('<circle class="halo" cx="8" cy="8" r="6.5"/>')
    keys.append(Key(_picture(halo), "ring: the best"))
    if reference:
        line = Markup('<line class="reference" x1="0" x2="16" y1="8" y2="8"/>')
        keys.append(Key(_picture(line), "dashed: the whole pool"))
    return keys


def _picture(inside: Markup) -> Markup:
    return Markup('<svg viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(inside)


def _mark(axes: Axes, mark: Mark, x: float) -> Markup:
    body = Markup()
    if mark.look is None:
        if mark.score is None:
            return body
        y = axes.y(mark.score)
        left = x > (LEFT + WIDTH - RIGHT) / 2
        name = Markup('<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
            x - 8 if left else x + 8, y - 5, "end" if left else "start", formats.shorten(mark.name, 26)
        )
        shapes = _cross(x, y) + name
        return Markup('<g class="mark"><title>{}</title>{}</g>').format(_words(mark), shapes)
    if mark.score is not None and mark.paper_style is not None and mark.score != mark.paper_style:
        body += Markup('<line class="link" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
            x, axes.y(mark.score), axes.y(mark.paper_style)
        )
    if mark.low is not None and mark.high is not None:
        top, bottom = axes.y(mark.high), axes.y(mark.low)
        lines = [(x, x, top, bottom), (x - 3, x + 3, top, top), (x - 3, x + 3, bottom, bottom)]
        for x1, x2, y1, y2 in lines:
            body += Markup('<line class="bar" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(x1, x2, y1, y2)
    shown = mark.paper_style if mark.score is None else mark.score
    if mark.best and shown is not None:
        ring = '<circle class="halo" cx="{:.1f}" cy="{:.1f}" r="{}"/>'
        body += Markup(ring).format(x, axes.y(shown), RADIUS + 3.5)
    if mark.paper_style is not None and mark.paper_style != mark.score:
        body += _shape(x, axes.y(mark.paper_style), mark.look, hollow=True)
    if mark.score is not None:
        y = axes.y(mark.score)
        body += _shape(x, y, mark.look)
        if arrow := axes.beyond(mark.score):
            body += Markup('<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                x, y - 9 if arrow == "↓" else y + 17, f"{arrow} {formats.score(mark.score)}"
            )
    return Markup('<g class="mark m{}"><title>{}</title>{}</g>').format(mark.look, _words(mark), body)


def _shape(x: float, y: float, look: int, hollow: bool = False) -> Markup:
    r = RADIUS - 0.8 if hollow else RADIUS
    css = f"c{look % COLOURS}{' hollow' if hollow else ''}"
    shape = (look + look // COLOURS) % SHAPES  # so that 32 looks differ
    if shape == 0:
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(css, x, y, r)
    if shape == 1:
        s = r * 0.9
        return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{w:.1f}" height="{w:.1f}"/>').format(
            css, x - s, y - s, w=2 * s
        )
    corners = {2: ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)), 3: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0))}[shape]
    points = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in corners)
    return Markup('<polygon class="{}" points="{}"/>').format(css, points)


def _cross(x: float, y: float) -> Markup:
    d = RADIUS - 0.5
    path = f"M{x - d:.1f} {y - d:.1f}L{x + d:.1f} {y + d:.1f}M{x + d:.1f} {y - d:.1f}L{x - d:.1f} {y + d:.1f}"
    return Markup('<path class="cross" d="{}"/>').format(path)


def _words(mark: Mark) -> str:
    said = [mark.name + (" (paper)" if mark.look is None else "")]
    best = " (best)" if mark.best else ""
    if mark.score is not None:
        bar = f" [{formats.score(mark.low)} to {formats.score(mark.high)}]" if mark.low is not None else ""
        said.append(f"{formats.score(mark.score)}{bar}{best}")
    if mark.paper_style is not None:
        said.append(f"paper-style {formats.score(mark.paper_style)}{best if mark.score is None else ''}")
    return f"{', '.join(said)}, with {mark.size:,} rows"


def _apart(places: Sequence[float]) -> list[float]:
    """Markers of nearly one size side by side, so that bars do not lie on each other.

    However many there are they stay near their size, inside the panel, and on their side of larger and smaller ones.
    """
    moved = list(places)
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and places[i] - places[groups[-1][-1]] < _NEAR:
            groups[-1].append(i)
        else:
            groups.append([i])
    borders = [(places[a[-1]] + places[b[0]]) / 2 for a, b in pairwise(groups)]
    ends = pairwise([LEFT + 8, *borders, WIDTH - RIGHT - 8])
    for group, (left, right) in zip(groups, ends, strict=True):
        middle = math.fsum(places[i] for i in group) / len(group)
        wide = min((len(group) - 1) * _APART, _WIDE, right - left) / 2
        middle = min(max(middle, left + wide), right - wide)
        for place, i in enumerate(group):
            moved[i] = middle - wide + 2 * wide * place / max(len(group) - 1, 1)
    return moved
