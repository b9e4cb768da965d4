"""Score against subset size, one panel a deployment, with labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from markupsafe import Markup

from datas3_ray.report import formats
from datas3_ray.report.figures import log_ticks, text_width, ticks

WIDTH, HEIGHT = 380.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 14.0, 12.0, 38.0
FONT = 10.5
RADIUS = 4.5
MAX_LABEL = 26
MAX_LABELS = 24


@dataclass(frozen=True)
class Point:
    """One method in one deployment."""

    name: str
    size: int
    score: float
    best: bool = False


@dataclass(frozen=True)
class Box:
    """A rectangle that something occupies."""

    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Label:
    """Where a point's name goes; ``leader`` is the line (x1, y1, x2, y2) to its point when it stands apart."""

    text: str
    box: Box
    anchor: str
    leader: tuple[float, float, float, float] | None


class Axes:
    """The mapping from sizes and scores to the panel's coordinates. Sizes are logarithmic when they span a decade.

    A score far from all others would flatten them: it is drawn at the edge, and ``beyond`` says so.
    """

    def __init__(self, sizes: Sequence[float], scores: Sequence[float]) -> None:
        low, high = max(min(sizes), 1.0), max(max(sizes), 1.0)
        self.log = high / low > 8
        if self.log:
            pad = (high / low) ** 0.08
            self.sizes = (low / pad, high * pad)
        else:
            pad = 0.08 * (high - low) or 0.1 * high
            self.sizes = (max(low - pad, 0.0), high + pad)
        near = _near(scores)
        bottom, top = min(near), max(near)
        margin = 0.12 * (top - bottom) or max(abs(top) * 0.05, 1e-6)
        self.scores = (bottom - margin, top + margin)

    def x(self, size: float) -> float:
        """Horizontal coordinate of a subset size."""
        low, high = self.sizes
        size = max(size, 1.0)
        part = math.log(size / low) / math.log(high / low) if self.log else (size - low) / (high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, score: float) -> float:
        """Vertical coordinate of a score."""
        low, high = self.scores
        score = _clamp(score, low, high)
        return TOP + (1 - (score - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)

    def beyond(self, score: float) -> str:
        """An arrow where a score lies beyond the edge that it is drawn at; otherwise nothing."""
        low, high = self.scores
        return "↓" if score < low else "↑" if score > high else ""

    def size_ticks(self) -> list[float]:
        """Sizes to mark."""
        return log_ticks(*self.sizes) if self.log else ticks(*self.sizes)


def _near(scores: Sequence[float]) -> list[float]:
    """The scores without those that are further off than three times the width of the middle half."""
    if len(scores) < 8:
        return list(scores)
    first, _, third = quantiles(scores, n=4)
    reach = 3 * (third - first)
    return [score for score in scores if first - reach <= score <= third + reach] if reach else list(scores)


def scatter(points: Sequence[Point], *, reference: Point | None, metric: str, deployment: str) -> Markup:
    """One panel: a marker and a name a method, the reference (the whole pool) as a dashed line.

    Args:
        points: methods with a finite score, best first; the reference may be among them.
        reference: the method that trained on everything, if it ran.
        metric: name of the score, for the axis.
        deployment: name of the panel, for its text alternative.
    """
    axes = Axes([p.size for p in points], [p.score for p in points])
    body = frame(axes, metric)
    obstacles = [Box(axes.x(p.size) - 6, axes.y(p.score) - 6, axes.x(p.size) + 6, axes.y(p.score) + 6) for p in points]
    if reference is not None:
        y = axes.y(reference.score)
        body += Markup('<line class="reference" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, y, y
        )
        obstacles.append(Box(LEFT, y - 1, WIDTH - RIGHT, y + 1))
    # Points come best first, so the first are named where there is no room for all.
    texts = [formats.shorten(p.name, MAX_LABEL) if i < MAX_LABELS else "" for i, p in enumerate(points)]
    arrows = [axes.beyond(p.score) for p in points]
    texts = [
        f"{text or formats.shorten(p.name, MAX_LABEL)} {arrow} {formats.score(p.score)}" if arrow else text
        for p, text, arrow in zip(points, texts, arrows, strict=True)
    ]
    labels = place([(axes.x(p.size), axes.y(p.score), text) for p, text in zip(points, texts, strict=True)], obstacles)
    for point, label in reversed(list(zip(points, labels, strict=True))):
        body += _marker(axes, point, label)
    for point, label in zip(points, labels, strict=True):
        body += _name(label, point.best) if label is not None else Markup()
    words = "; ".join(f"{p.name} {formats.score(p.score)} with {p.size:,} rows" for p in points)
    return Markup('<svg class="plot" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{metric} against subset size for {deployment}: {words}", body
    )


def place(anchors: Sequence[tuple[float, float, str]], obstacles: Sequence[Box]) -> list[Label | None]:
    """A place for each text beside its anchor that covers no marker and no other text.

    Crowded anchors choose first. A text with no free place keeps none (its marker has a tooltip); an empty text
    wants none.

    Args:
        anchors: (x, y, text) each.
        obstacles: what must stay visible.
    """
    taken = list(obstacles)
    names: list[Box] = []
    labels: list[Label | None] = [None] * len(anchors)

    def crowding(i: int) -> float:
        x, y, _ = anchors[i]
        return sum(1 / (4 + math.hypot(x - a, y - b)) for j, (a, b, _) in enumerate(anchors) if j != i)

    for i in sorted(range(len(anchors)), key=lambda i: (-crowding(i), i)):
        x, y, text = anchors[i]
        for box, far in _candidates(x, y, text_width(text, FONT)) if text else ():
            inside = box.left >= LEFT + 1 and box.right <= WIDTH - 1 and box.top >= 1 and box.bottom <= HEIGHT - BOTTOM
            if not inside or any(box.hits(other) for other in taken):
                continue
            leader = (x, y, _clamp(x, box.left, box.right), _clamp(y, box.top, box.bottom)) if far else None
            trail = _trail(leader) if leader else []
            if any(step.hits(name) for step in trail for name in names):
                continue
            labels[i] = Label(text, box, "end" if box.right < x else "start" if box.left > x else "middle", leader)
            names.append(box)
            taken += [box, *trail]
            break
    return labels


def _trail(leader: tuple[float, float, float, float]) -> list[Box]:
    """Small boxes along a leader, the part beside its point left out: no name may lie on it."""
    x1, y1, x2, y2 = leader
    steps = max(2, int(math.hypot(x2 - x1, y2 - y1) / 4))
    points = [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(2, steps)]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in points]


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _candidates(x: float, y: float, wide: float) -> Iterator[tuple[Box, bool]]:
    """Boxes for a text of width ``wide``, nearest and most readable first."""
    tall = FONT + 2
    near = RADIUS + 3
    for left, top in (
        (x + near, y - tall / 2),
        (x - near - wide, y - tall / 2),
        (x - wide / 2, y - near - tall),
        (x - wide / 2, y + near),
        (x + near, y - tall),
        (x - near - wide, y - tall),
        (x + near, y),
        (x - near - wide, y),
    ):
        yield Box(left, top, left + wide, top + tall), False
    for ring in range(1, 15):
        distance = 8 + 9 * ring
        for turn in range(16):
            angle = 2 * math.pi * turn / 16
            middle, height = x + distance * math.cos(angle) * 1.3, y - distance * math.sin(angle)
            left = middle if math.cos(angle) > 0.3 else middle - wide if math.cos(angle) < -0.3 else middle - wide / 2
            yield Box(left, height - tall / 2, left + wide, height + tall / 2), True


def frame(axes: Axes, metric: str) -> Markup:
    """Grid, ticks and names of the axes."""
    out = Markup()
    for value in ticks(*axes.scores):
        y = axes.y(value)
        out += Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, y, y
        ) + Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
            LEFT - 6, y + 3.5, f"{value:.6g}"
        )
    for value in axes.size_ticks():
        x = axes.x(value)
        out += Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            x, x, TOP, HEIGHT - BOTTOM
        ) + Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            x, HEIGHT - BOTTOM + 14, formats.compact(value)
        )
    out += Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
        LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM
    )
    out += Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="middle">subset size{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, " (rows, log scale)" if axes.log else " (rows)"
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out += Markup(
        '<text class="name" x="11" y="{:.1f}" text-anchor="middle" transform="rotate(-90 11 {:.1f})">{}</text>'
    ).format(middle, middle, formats.shorten(metric, 30))
    return out


def _marker(axes: Axes, point: Point, label: Label | None) -> Markup:
    x, y = axes.x(point.size), axes.y(point.score)
    title = f"{point.name}: {formats.score(point.score)} with {point.size:,} rows" + (" (best)" if point.best else "")
    line = Markup()
    if label is not None and label.leader is not None:
        ends = '<line class="leader" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        line = Markup(ends).format(*label.leader)
    if point.best:
        d = RADIUS + 2.5
        shape = Markup('<path class="dot best" d="M{:.1f} {:.1f}l{d} {d}l-{d} {d}l-{d} -{d}z"/>').format(x, y - d, d=d)
    else:
        shape = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, RADIUS)
    return Markup("<g><title>{}</title>{}{}</g>").format(title, line, shape)


def _name(label: Label, best: bool) -> Markup:
    box = label.box
    x = {"start": box.left, "end": box.right, "middle": (box.left + box.right) / 2}[label.anchor]
    css = "label best" if best else "label"
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        css, x, box.bottom - 3, label.anchor, label.text
    )
