"""What animals are drawn with: colours, an animal's pose, form, coat and build, and a brush.

A brush draws several times too large and averages down, in units of an animal's body length, feet at y = 0, looking
right. Colours are RGB in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


def tint(colour: Colour, gain: float, lift: float = 0.0) -> Colour:
    """``colour`` times ``gain`` plus ``lift``, kept in 0..255.

    >>> tint((100, 50, 200), 1.5)
    (150, 75, 255)
    """
    red, green, blue = (min(255, max(0, round(c * gain + lift))) for c in colour)
    return red, green, blue


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour ``share`` of the way from ``a`` to ``b``.

    >>> mix((0, 100, 200), (100, 100, 0), 0.5)
    (50, 100, 100)
    """
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Pose:
    """How an animal stands: ``phase`` of the walk (radians), ``stride`` and ``head`` (0 lowered, 1 raised) in 0..1."""

    phase: float
    stride: float
    head: float
    right: bool


@dataclass(frozen=True)
class Form:
    """How a race, a sex or an individual departs from its species: factors on its proportions; ``crest``, the size of
    what adorns it (antlers, mane, bristles, a hare's ears), and ``spots``, that of a cat's or dog's, from 0 to 1.5."""

    leg: float = 1.0
    neck: float = 1.0
    depth: float = 1.0
    head: float = 1.0
    tail: float = 1.0
    crest: float = 1.0
    spots: float = 0.0


@dataclass(frozen=True)
class Coat:
    """An animal's colours; ``eye`` shines white under the infra-red flash."""

    base: Colour
    eye: Colour

    @property
    def dark(self) -> Colour:
        return tint(self.base, 0.62)

    @property
    def pale(self) -> Colour:
        return tint(self.base, 0.9, 48)


@dataclass(frozen=True)
class Build:
    """Proportions of a four-legged animal, in lengths of its trunk; angles in radians above the horizontal."""

    depth: float  # height of the trunk
    leg: float
    leg_width: float
    neck: float
    neck_width: float
    raised: float
    lowered: float
    head: float
    head_depth: float
    snout: float  # width of the nose, as a share of head_depth
    ear: float
    tail: float
    tail_width: float
    hump: float = 0.0  # of the shoulders

    def shaped(self, form: Form) -> Build:
        """These proportions as ``form`` has them."""
        return replace(
            self,
            depth=self.depth * form.depth,
            leg=self.leg * form.leg,
            neck=self.neck * form.neck,
            head=self.head * form.head,
            tail=self.tail * form.tail,
        )


class Brush:
    """A transparent layer that takes shapes in body units; ``scale`` is final pixels a unit."""

    WIDTH, HEIGHT, FLOOR = 3.2, 2.5, 0.12

    def __init__(self, scale: float, right: bool, ground: Colour) -> None:
        self.zoom = 3 if scale < 36 else 2
        self.unit, self.sign = scale * self.zoom, 1.0 if right else -1.0
        size = (math.ceil(self.WIDTH * self.unit), math.ceil(self.HEIGHT * self.unit))
        self.layer = Image.new("RGBA", size, (*ground, 0))  # the coat's colour, so that edges do not darken
        self._draw = ImageDraw.Draw(self.layer)

    def _pixels(self, points: NDArray[np.float64]) -> list[float]:
        middle, floor = self.layer.width / 2, self.layer.height - self.FLOOR * self.unit
        pixels = points * (self.sign * self.unit, -self.unit) + (middle, floor)
        flat: list[float] = pixels.ravel().tolist()
        return flat

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        """A polygon."""
        self._draw.polygon(self._pixels(np.asarray(points, float)), fill=(*colour, 255))

    def blob(self, points: Sequence[Point], colour: Colour, steps: int = 5) -> None:
        """The closed smooth curve (Catmull-Rom) through ``points``, filled."""
        p1 = np.asarray(points, float)
        p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
        t = (np.arange(steps) / steps)[:, None, None]
        curve = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
        self._draw.polygon(self._pixels(curve.transpose(1, 0, 2).reshape(-1, 2)), fill=(*colour, 255))

    def disc(self, x: float, y: float, across: float, colour: Colour, high: float | None = None) -> None:
        """An ellipse with half-axes ``across`` and ``high`` (a circle without)."""
        high = across if high is None else high
        a = self._pixels(np.array([(x - across, y - high), (x + across, y + high)]))
        box = (min(a[0], a[2]), min(a[1], a[3]), max(a[0], a[2]), max(a[1], a[3]))
        self._draw.ellipse(box, fill=(*colour, 255))

    def limb(self, points: Sequence[Point], widths: Sequence[float], colour: Colour) -> None:
        """A thick line through ``points`` with a width at each, round at its joints."""
        for (ax, ay), (bx, by), wide, narrow in zip(points, points[1:], widths, widths[1:], strict=False):
            length = math.hypot(bx - ax, by - ay) or 1.0
            nx, ny = (ay - by) / length / 2, (bx - ax) / length / 2
            side = [(ax + nx * wide, ay + ny * wide), (bx + nx * narrow, by + ny * narrow)]
            back = [(bx - nx * narrow, by - ny * narrow), (ax - nx * wide, ay - ny * wide)]
            self.shape(side + back, colour)
        for (x, y), width in zip(points, widths, strict=True):
            self.disc(x, y, width / 2, colour)

    def pattern(self, paint: Callable[[Brush], None]) -> None:
        """Let ``paint`` mark a second layer, and keep only what lies on what is drawn already."""
        plain, self.layer = self.layer, Image.new("RGBA", self.layer.size)
        self._draw = ImageDraw.Draw(self.layer)
        paint(self)
        marks = self.layer.getchannel("A")
        plain.paste(self.layer, mask=ImageChops.darker(marks, plain.getchannel("A")))
        self.layer, self._draw = plain, ImageDraw.Draw(plain)

    def finish(self) -> Image.Image:
        """The layer at its final size."""
        return self.layer.reduce(self.zoom)
