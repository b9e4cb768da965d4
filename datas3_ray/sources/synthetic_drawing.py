"""Draw camera-trap frames: a site's scenery, animals in a pose, the light of the hour and the sensor's noise.

Everything is a function of its arguments and of the ``numpy.random.Generator`` it is handed, so a frame is the same in
any process. Colours are RGB in 0..255. Animals are drawn several times too large and averaged down, in units of their
body length, feet at y = 0, looking right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Floats = NDArray[np.float32]
Random = np.random.Generator

LIGHTS = ("day", "dusk", "night")
_DETAIL = 2  # scenery is drawn this many times too large
_NOISE = {"day": 1.3, "dusk": 1.3, "night": 0.9}  # standard deviation of the sensor's noise, in grey levels


def tint(colour: Colour, gain: float, lift: float = 0.0) -> Colour:
    """``colour`` times ``gain`` plus ``lift``, kept in 0..255.

    >>> tint((100, 50, 200), 1.5)
    (150, 75, 255)
    """
    red, green, blue = (min(255, max(0, round(c * gain + lift))) for c in colour)
    return red, green, blue


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


# ---------------------------------------------------------------------------------------------------------- animals


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


@dataclass(frozen=True)
class _Joints:
    shoulder: Point
    poll: Point  # where the neck ends and the head begins
    nose: Point
    back: float  # height of the back


def _leg(brush: Brush, build: Build, hip: Point, step: Point, colour: Colour, hind: bool) -> None:
    phase, stride = step
    reach = 0.34 * build.leg * stride * math.sin(phase)
    lift = 0.16 * build.leg * stride * max(0.0, math.cos(phase))
    bend = (-0.10 if hind else 0.05) * build.leg
    knee = (hip[0] + reach * 0.45 + bend, hip[1] - (hip[1] - lift) * 0.55)
    foot = (hip[0] + reach, lift + build.leg_width * 0.35)
    width = build.leg_width
    brush.limb([hip, knee, foot], [width * 1.9, width, width * 0.9], colour)


def _quadruped(brush: Brush, build: Build, coat: Coat, pose: Pose) -> _Joints:
    """Draw trunk, legs, tail, neck and head; the joints are for what a species adds."""
    top, middle, low = build.leg + build.depth, build.leg + build.depth / 2, build.leg
    for x, offset, hind in ((0.34, 0.5, False), (-0.36, 0.0, True)):  # the far pair first, in shade
        _leg(brush, build, (x + 0.07, low + 0.12), (pose.phase + math.tau * offset, pose.stride), coat.dark, hind)
    if build.tail:
        root, drop = (-0.47, top - 0.25 * build.depth), 0.4 + 0.15 * math.sin(pose.phase)
        end = (root[0] - build.tail * drop, root[1] - build.tail * 0.85)
        brush.limb([root, end], [build.tail_width, build.tail_width * 0.8], coat.dark)
    d = build.depth
    spine = [(-0.52, middle + 0.12 * d), (-0.42, top - 0.06 * d), (-0.05, top - 0.05 * d), (0.27, top + build.hump)]
    chest = [(0.46, top - 0.1 * d), (0.53, middle), (0.42, low + 0.02 * d)]
    brush.blob([*spine, *chest, (0.0, low + 0.04 * d), (-0.42, low + 0.12 * d)], coat.base)
    angle = build.lowered + (build.raised - build.lowered) * pose.head
    shoulder = (0.4, top - build.neck_width * 0.45)
    poll = (shoulder[0] + build.neck * math.cos(angle), shoulder[1] + build.neck * math.sin(angle))
    tilt = -0.35 - 0.45 * (1 - pose.head)
    nose = (poll[0] + build.head * math.cos(tilt), poll[1] + build.head * math.sin(tilt))
    near = tint(coat.base, 0.88)
    for x, offset, hind in ((0.36, 0.0, False), (-0.38, 0.5, True)):
        _leg(brush, build, (x, low + 0.12), (pose.phase + math.tau * offset, pose.stride), near, hind)
    brush.limb([shoulder, poll], [build.neck_width * 1.25, build.neck_width * 0.8], coat.base)
    brush.limb([poll, nose], [build.head_depth, build.head_depth * build.snout], coat.base)
    return _Joints(shoulder, poll, nose, top)


def _ear(brush: Brush, joints: _Joints, build: Build, colour: Colour, lean: float = -0.35) -> None:
    x, y = joints.poll[0], joints.poll[1] + build.head_depth * 0.3
    wide = build.ear * 0.32
    brush.shape([(x - wide, y), (x + wide, y), (x + lean * build.ear, y + build.ear)], colour)


def _eye(brush: Brush, joints: _Joints, build: Build, coat: Coat) -> None:
    (x, y), (nx, ny) = joints.poll, joints.nose
    deep = build.head_depth
    brush.disc(x + 0.35 * (nx - x), y + 0.35 * (ny - y) + deep * 0.18, 0.024 + 0.03 * deep, coat.eye)


_BUILDS = {
    "elephant": Build(0.62, 0.46, 0.17, 0.10, 0.42, 0.7, 0.1, 0.22, 0.40, 0.7, 0.0, 0.32, 0.04, 0.02),
    "zebra": Build(0.42, 0.50, 0.085, 0.40, 0.21, 0.95, -0.35, 0.28, 0.17, 0.62, 0.13, 0.38, 0.06),
    "giraffe": Build(0.42, 0.80, 0.085, 1.02, 0.17, 1.12, 0.75, 0.24, 0.14, 0.6, 0.10, 0.42, 0.04, 0.08),
    "lion": Build(0.37, 0.37, 0.095, 0.20, 0.24, 0.6, -0.2, 0.20, 0.24, 0.7, 0.09, 0.60, 0.05),
    "leopard": Build(0.36, 0.38, 0.09, 0.18, 0.23, 0.65, -0.15, 0.17, 0.23, 0.72, 0.11, 0.62, 0.065),
    "deer": Build(0.36, 0.55, 0.062, 0.42, 0.16, 1.05, -0.45, 0.24, 0.14, 0.55, 0.13, 0.12, 0.07),
    "elk": Build(0.44, 0.56, 0.075, 0.34, 0.21, 0.8, -0.4, 0.28, 0.17, 0.7, 0.13, 0.10, 0.07, 0.05),
    "boar": Build(0.50, 0.28, 0.085, 0.12, 0.42, 0.15, -0.35, 0.40, 0.32, 0.42, 0.12, 0.22, 0.03, 0.08),
    "bear": Build(0.56, 0.34, 0.16, 0.20, 0.36, 0.35, -0.3, 0.25, 0.29, 0.55, 0.09, 0.06, 0.08, 0.08),
    "wolf": Build(0.34, 0.46, 0.075, 0.26, 0.22, 0.65, -0.3, 0.28, 0.20, 0.4, 0.15, 0.46, 0.13, 0.02),
}


def _elephant(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["elephant"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (x, y), (nx, ny) = joints.poll, joints.nose
    curl = 0.12 * math.sin(pose.phase) + 0.25 * pose.head
    trunk = [(nx, ny), (nx + 0.10, ny - 0.32), (nx + 0.04 + curl, 0.12 + 0.3 * pose.head)]
    brush.limb(trunk, [0.26, 0.16, 0.09], coat.base)
    brush.limb([(nx - 0.02, ny - 0.12), (nx + 0.26, ny - 0.24 + 0.08 * pose.head)], [0.06, 0.03], (238, 230, 208))
    ear = [(x - 0.02, y + 0.22), (x - 0.30, y + 0.18), (x - 0.40, y - 0.14), (x - 0.18, y - 0.38), (x - 0.02, y - 0.10)]
    brush.blob(ear, tint(coat.base, 0.8))
    brush.disc(nx - 0.09, ny + 0.07, 0.03, coat.eye)


def _zebra(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["zebra"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (sx, sy), (px, py) = joints.shoulder, joints.poll
    stripe: Colour = (34, 30, 30)

    def stripes(pen: Brush) -> None:
        for x in np.arange(-0.50, 0.50, 0.115):
            pen.limb([(x + 0.05, joints.back + 0.05), (x - 0.03, build.leg - 0.05)], [0.06, 0.035], stripe)
        for t in np.arange(0.12, 1.0, 0.2):  # across the neck
            x, y, (nx, ny) = sx + t * (px - sx), sy + t * (py - sy), (py - sy, sx - px)
            pen.limb([(x - 0.3 * nx, y - 0.3 * ny), (x + 0.3 * nx, y + 0.3 * ny)], [0.045, 0.045], stripe)
        for y in np.arange(0.1, build.leg, 0.1):
            pen.limb([(-0.8, y), (0.8, y)], [0.04, 0.04], stripe)

    brush.pattern(stripes)
    brush.limb([(sx - 0.12, sy + 0.12), (px - 0.06, py + 0.09)], [0.07, 0.07], stripe)  # mane
    brush.disc(joints.nose[0], joints.nose[1], 0.06, stripe)
    _ear(brush, joints, build, coat.base)
    _eye(brush, joints, build, coat)


def _giraffe(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["giraffe"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (sx, sy), (px, py) = joints.shoulder, joints.poll
    patch = _mix(coat.base, (104, 52, 20), 0.75)

    def patches(pen: Brush) -> None:
        for i, y in enumerate(np.arange(build.leg + 0.02, joints.back + 0.15, 0.15)):
            for x in np.arange(-0.52 + 0.08 * (i % 2), 0.6, 0.165):
                pen.disc(float(x), float(y), 0.066, patch, 0.06)
        for i, t in enumerate(np.arange(0.1, 0.95, 0.13)):
            wobble = 0.04 * (-1) ** i
            pen.disc(sx + t * (px - sx) + wobble, sy + t * (py - sy), 0.052, patch)

    brush.pattern(patches)
    for x in (px - 0.03, px + 0.04):
        brush.limb([(x, py + 0.04), (x - 0.01, py + 0.15)], [0.03, 0.045], tint(patch, 0.6))
    _ear(brush, joints, build, coat.base, -1.0)
    _eye(brush, joints, build, coat)


def _lion(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["lion"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (x, y), (nx, ny) = joints.poll, joints.nose
    mane = [(0.06, 0.22), (-0.16, 0.22), (-0.32, 0.0), (-0.22, -0.28), (0.02, -0.26)]
    if form.crest > 0.3:
        edge = [(x + form.crest * dx, y + form.crest * dy) for dx, dy in mane]
        brush.blob(edge, _mix(coat.base, (86, 48, 22), 0.7))
        brush.limb([(x, y - 0.01), (nx, ny)], [0.23, 0.13], coat.base)
    else:
        _ear(brush, joints, build, coat.dark, -0.2)
    brush.disc(nx + 0.05, ny + 0.02, 0.035, (60, 40, 36))
    brush.disc(-0.74, joints.back - 0.62, 0.06, _mix(coat.base, (60, 36, 20), 0.7))  # the tail's tuft
    _eye(brush, joints, build, coat)


def _spots(brush: Brush, build: Build, form: Form, coat: Coat) -> None:
    def spots(pen: Brush) -> None:
        for i, y in enumerate(np.arange(build.leg + 0.06, build.leg + build.depth, 0.09)):
            for x in np.arange(-0.45 + 0.06 * (i % 2), 0.5, 0.13):
                pen.disc(float(x), float(y), 0.022 * form.spots, coat.dark)

    if form.spots:
        brush.pattern(spots)


def _leopard(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["leopard"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    _spots(brush, build, form, coat)
    _ear(brush, joints, build, coat.dark, -0.2)
    _eye(brush, joints, build, coat)


def _antlered(name: str, brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS[name].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    brush.disc(-0.47, joints.back - 0.12, 0.08, tint(coat.pale, 1.15), 0.11)
    (x, y), horn, size = joints.poll, (112, 88, 62), form.crest
    y += 0.05
    for lean in (-0.10, 0.06) if size > 0.2 else ():
        beam = [(0.0, 0.0), (lean - 0.14, 0.20), (lean - 0.04, 0.42)]
        brush.limb([(x + size * dx, y + size * dy) for dx, dy in beam], [0.045, 0.04, 0.025], horn)
        for t in (0.14, 0.28) if size > 0.7 else ():
            tine = [(x + size * (lean - 0.12), y + size * t), (x + size * (lean + 0.06), y + size * (t + 0.10))]
            brush.limb(tine, [0.032, 0.022], horn)
    _ear(brush, joints, build, coat.dark, -1.0)
    _eye(brush, joints, build, coat)


def _boar(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["boar"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    for x in np.arange(-0.3, 0.5, 0.08):  # bristles along the back
        peak = (x - 0.03, joints.back + 0.11 * form.crest)
        brush.shape([(x, joints.back - 0.04), (x + 0.07, joints.back), peak], coat.dark)
    (nx, ny), horn = joints.nose, (240, 234, 216)
    brush.disc(nx + 0.02, ny, 0.07, tint(coat.base, 0.75))
    if form.crest > 0.3:
        brush.limb([(nx - 0.06, ny - 0.04), (nx, ny + 0.10 * form.crest)], [0.05, 0.02], horn)
    _ear(brush, joints, build, coat.dark)
    _eye(brush, joints, build, coat)


def _bear(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["bear"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (x, y), (nx, ny) = joints.poll, joints.nose
    brush.limb([(nx - 0.04, ny), (nx + 0.04, ny - 0.01)], [0.15, 0.12], coat.pale)
    brush.disc(nx + 0.07, ny + 0.03, 0.04, (30, 26, 26))
    brush.disc(x - 0.03, y + 0.16, 0.075, coat.dark)
    _eye(brush, joints, build, coat)


def _wolf(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    build = _BUILDS["wolf"].shaped(form)
    joints = _quadruped(brush, build, coat, pose)
    (x, y), (nx, ny) = joints.poll, joints.nose
    low = build.leg
    brush.blob([(-0.4, low + 0.1), (0.1, low + 0.1), (0.46, low + 0.16), (0.3, low + 0.02)], coat.pale)  # belly
    _spots(brush, build, form, coat)
    brush.disc(nx, ny + 0.01, 0.04, (30, 28, 28))
    _ear(brush, joints, build, coat.dark, 0.0)
    brush.limb([(x + 0.05, y - 0.05), (nx, ny - 0.02)], [0.07, 0.05], coat.pale)
    _eye(brush, joints, build, coat)


def _hare(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    crouch, hop = 0.10 * (1 - pose.head), 0.10 * pose.stride * abs(math.sin(pose.phase))
    y = hop
    brush.disc(-0.50, y + 0.30, 0.10, coat.pale)
    brush.limb([(0.24, y + 0.30), (0.34, y + 0.05)], [0.13, 0.09], coat.dark)
    back = [(-0.50, y + 0.25), (-0.38, y + 0.58), (0.0, y + 0.64 - crouch), (0.34, y + 0.50)]
    brush.blob([*back, (0.38, y + 0.24), (-0.2, y + 0.10)], coat.base)
    brush.disc(-0.24, y + 0.28, 0.24, tint(coat.base, 0.9), 0.20)
    brush.limb([(-0.34, y + 0.08), (0.02, y + 0.05)], [0.14, 0.10], coat.base)
    brush.limb([(0.32, y + 0.32), (0.40, y + 0.05)], [0.14, 0.09], coat.base)
    hx, hy = 0.46, y + 0.66 - crouch
    for lean in (-0.20, -0.04):  # the ears fold back as the head goes down
        tip = (hx - 0.05 + lean * (2.2 - pose.head), hy + (0.30 + 0.36 * pose.head) * form.crest)
        ear = [(hx - 0.06, hy + 0.10), (hx - 0.06 + lean * 0.7, hy + 0.30 * form.crest), tip]
        brush.limb(ear, [0.09, 0.13, 0.06], coat.base)
        brush.disc(tip[0], tip[1], 0.045, coat.dark)
    brush.disc(hx, hy, 0.19, coat.base, 0.15)
    brush.disc(hx + 0.14, hy - 0.05, 0.08, coat.base)
    brush.disc(hx + 0.07, hy + 0.04, 0.035, coat.eye)


def _bird(brush: Brush, form: Form, coat: Coat, pose: Pose) -> None:
    swing = 0.16 * pose.stride * math.sin(pose.phase)
    leg: Colour = (150, 118, 84)
    y = 0.62 * form.leg
    for x, step in ((0.02, swing), (-0.08, -swing)):
        foot = (x + step, 0.02)
        shin = [(x, y), (x - 0.06 + step / 2, y * 0.55), foot, (foot[0] + 0.12, 0.02)]
        brush.limb(shin, [0.06, 0.04, 0.04, 0.03], leg)
    tail = form.tail
    fan = [(-0.30, y + 0.14), (-0.30 - 0.50 * tail, y + 0.04), (-0.30 - 0.42 * tail, y + 0.24), (-0.30, y + 0.32)]
    brush.blob(fan, coat.dark)
    deep = form.depth
    trunk = [(-0.42, 0.16), (-0.16, 0.36 * deep), (0.22, 0.34 * deep), (0.38, 0.18), (0.12, -0.04), (-0.22, -0.04)]
    brush.blob([(dx, y + dy) for dx, dy in trunk], coat.base)
    brush.blob([(-0.50, y + 0.10), (-0.14, y + 0.28), (0.18, y + 0.22), (-0.04, y + 0.04)], coat.dark)  # wing
    reach = (0.62 - 0.30 * (1 - pose.head)) * form.neck
    x, top = 0.46 + 0.32 * (1 - pose.head) * form.neck, y + 0.18 + reach * (1.5 * pose.head - 0.5)
    brush.limb([(0.26, y + 0.22), (0.40, (y + 0.22 + top) / 2), (x, top)], [0.17, 0.10, 0.09], coat.base)
    brush.disc(x, top, 0.10, coat.base)
    beak = [(x + 0.05, top + 0.06), (x + 0.24 + 0.1 * form.neck, top - 0.05), (x + 0.05, top - 0.05)]
    brush.shape(beak, (206, 146, 52))
    brush.disc(x + 0.03, top + 0.03, 0.035, coat.eye)


_PAINTERS: dict[str, Callable[[Brush, Form, Coat, Pose], None]] = {
    "elephant": _elephant,
    "zebra": _zebra,
    "giraffe": _giraffe,
    "lion": _lion,
    "leopard": _leopard,
    "deer": partial(_antlered, "deer"),
    "elk": partial(_antlered, "elk"),
    "boar": _boar,
    "bear": _bear,
    "wolf": _wolf,
    "hare": _hare,
    "bird": _bird,
}
SPECIES = tuple(_PAINTERS)


def draw_animal(species: str, form: Form, coat: Coat, pose: Pose, scale: float) -> tuple[Image.Image, Point]:
    """One animal on a transparent RGBA layer, cropped; ``scale`` is pixels a body length.

    Returns the layer and the pixel (x, y) in it where the animal's middle touches the ground.

    >>> pose = Pose(phase=0.0, stride=0.5, head=1.0, right=True)
    >>> draw_animal("zebra", Form(), Coat((230, 226, 218), (20, 20, 20)), pose, 30.0)[0].mode
    'RGBA'
    """
    brush = Brush(scale, pose.right, coat.base)
    _PAINTERS[species](brush, form, coat, pose)
    layer = brush.finish()
    left, top, right, bottom = layer.getchannel("A").getbbox() or (0, 0, *layer.size)
    pixels = np.asarray(layer)[top:bottom, left:right].astype(np.float32)
    shade = np.linspace(1.14, 0.70, bottom - top, dtype=np.float32)[:, None, None]  # the light comes from above
    pixels[..., :3] = np.minimum(pixels[..., :3] * shade, 255)
    foot = (layer.width / 2 - left, layer.height - Brush.FLOOR * scale - top)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA"), foot


# ---------------------------------------------------------------------------------------------------------- scenery


@dataclass(frozen=True)
class Scenery:
    """What one camera always sees: the ``view`` (RGB), the stalks before its lens (RGBA), the horizon as a share of the
    height from the top, and ``open``: how much light comes from above the horizon (0 under trees, 1 under the sky)."""

    view: Image.Image
    stalks: Image.Image
    horizon: float
    open: float


def _noise(rng: Random, size: tuple[int, int], cells: Sequence[int]) -> Floats:
    """Fractal noise of about unit spread, shape (height, width); ``cells`` are the octaves' cells across."""
    width, height = size
    total = np.zeros((height, width), np.float32)
    for octave, across in enumerate(cells):
        grid = rng.standard_normal((max(2, across * height // width), across)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)) * 0.7**octave
    return total


def _gradient(top: Colour, bottom: Colour, rows: int) -> Floats:
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    return np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share


@dataclass(frozen=True)
class _Sketch:
    """A view under work: pixels across and down, the row of the horizon, and its own generator."""

    draw: ImageDraw.ImageDraw
    width: int
    height: int
    horizon: int
    rng: Random

    def ground_row(self, nearness: float) -> float:
        return self.horizon + (self.height - self.horizon) * nearness

    def tufts(self, count: int, inks: Sequence[Colour], length: float, start: float = 0.0, lean: float = 0.5) -> None:
        """Blades of grass, ``length`` of the height when nearest, from ``start`` nearness on, the far ones first."""
        for nearness in np.sort(self.rng.uniform(start, 1.05, count)):
            x, y = self.rng.uniform(0, self.width), self.ground_row(nearness)
            colour = inks[int(self.rng.integers(len(inks)))]
            tall = self.height * length * (0.15 + 0.85 * nearness) * self.rng.uniform(0.5, 1.0)
            for blade in self.rng.uniform(-lean, lean, 3):
                ink = (*tint(colour, float(self.rng.uniform(0.8, 1.15))), 255)
                self.draw.line((x, y, x + blade * tall, y - tall), fill=ink, width=1 + int(2 * nearness))

    def ridge(self, height: float, colour: Colour, peaks: int, caps: Colour | None = None) -> None:
        """Hills or mountains that stand ``height`` (a share of the view) above the horizon."""
        xs = np.linspace(0, self.width, peaks * 2 + 1)
        ys = self.horizon - self.height * height * self.rng.uniform(0.25, 1.0, xs.size)
        points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        self.draw.polygon([(0, self.horizon), *points, (self.width, self.horizon)], fill=colour)
        for x, y in points if caps else ():
            drop = (self.horizon - y) * 0.4
            snow = [(x, y), (x - drop * 0.7, y + drop), (x, y + drop * 0.7), (x + drop * 0.8, y + drop)]
            self.draw.polygon(snow, fill=caps)

    def oval(self, x: float, y: float, across: float, high: float, colour: Colour) -> None:
        self.draw.ellipse((x - across, y - high, x + across, y + high), fill=colour)


def _savanna(s: _Sketch) -> None:
    s.ridge(0.12, (150, 152, 130), 4)
    for nearness in np.sort(s.rng.uniform(0.0, 0.35, int(s.rng.integers(2, 6)))):  # umbrella thorns
        x, y, tall = s.rng.uniform(0, s.width), s.ground_row(nearness), s.height * (0.16 + 0.7 * nearness)
        bark, crown = (92, 70, 52), _mix((126, 132, 84), (88, 104, 52), min(1.0, nearness * 3))
        s.draw.line((x, y, x + tall * 0.06, y - tall * 0.8), fill=bark, width=max(2, int(tall * 0.07)))
        for fork in (-0.3, 0.3):
            bough = (x, y - tall * 0.45, x + fork * tall, y - tall * 0.85)
            s.draw.line(bough, fill=bark, width=max(1, int(tall * 0.04)))
        for _ in range(9):
            dx, dy = s.rng.uniform(-0.5, 0.5) * tall, s.rng.uniform(-0.06, 0.06) * tall
            s.oval(x + dx, y - tall * 0.9 + dy, tall * 0.26, tall * 0.08, tint(crown, float(s.rng.uniform(0.85, 1.15))))
    s.tufts(330, [(206, 178, 104), (186, 154, 84), (164, 150, 80)], 0.12)


def _forest(s: _Sketch) -> None:
    for nearness in np.sort(s.rng.uniform(0.0, 0.6, int(s.rng.integers(14, 24)))):
        x, y, thick = s.rng.uniform(0, s.width), s.ground_row(nearness), s.width * (0.008 + 0.06 * nearness)
        bark = tint(_mix((84, 96, 80), (74, 58, 44), min(1.0, nearness * 2.5)), float(s.rng.uniform(0.8, 1.15)))
        sway = s.rng.uniform(-0.5, 0.5) * thick
        trunk = [(x - thick * 0.8, y), (x - thick * 0.4 + sway, -2), (x + thick * 0.4 + sway, -2), (x + thick * 0.8, y)]
        s.draw.polygon(trunk, fill=bark)
        shady = (x + thick * 0.3, y, x + thick * 0.2 + sway, 0)
        s.draw.line(shady, fill=tint(bark, 0.75), width=max(1, int(thick * 0.4)))
    for _ in range(120):  # leaves overhead
        x, y, r = s.rng.uniform(0, s.width), s.rng.exponential(0.09) * s.height, s.width * s.rng.uniform(0.008, 0.03)
        s.oval(x, y, r, r * 0.7, tint((66, 92, 48), float(s.rng.uniform(0.6, 1.4))))
    s.tufts(120, [(64, 96, 48), (86, 112, 52), (52, 76, 44)], 0.10, lean=1.2)


def _tundra(s: _Sketch) -> None:
    s.ridge(0.26, (142, 154, 172), 4, caps=(232, 236, 242))
    s.ridge(0.07, (112, 124, 122), 9)
    for nearness in np.sort(s.rng.uniform(0.0, 0.8, int(s.rng.integers(1, 4)))):  # pools
        x, y, wide = s.rng.uniform(0, s.width), s.ground_row(nearness), s.width * (0.05 + 0.16 * nearness)
        s.oval(x, y, wide, wide * 0.14, (136, 156, 178))
        s.oval(x, y + wide * 0.02, wide * 0.9, wide * 0.09, (164, 182, 202))
    for nearness in np.sort(s.rng.uniform(0.0, 0.4, int(s.rng.integers(0, 9)))):  # stunted spruces
        x, y, tall = s.rng.uniform(0, s.width), s.ground_row(nearness), s.height * (0.08 + 0.5 * nearness)
        for step in range(4):
            half, base = tall * (0.22 - 0.045 * step), y - tall * 0.22 * step
            shade = tint((58, 78, 70), 1 + 0.12 * step)
            s.draw.polygon([(x - half, base), (x, base - tall * 0.42), (x + half, base)], fill=shade)
    for nearness in np.sort(s.rng.uniform(0.05, 1.0, int(s.rng.integers(1, 6)))):  # rocks
        x, y, r = s.rng.uniform(0, s.width), s.ground_row(nearness), s.width * 0.035 * (0.3 + nearness)
        s.oval(x, y, r, r * 0.6, (112, 114, 118))
        s.oval(x - r * 0.1, y - r * 0.2, r * 0.7, r * 0.35, (232, 236, 242))
    s.tufts(50, [(150, 116, 78), (128, 112, 84), (166, 138, 96)], 0.06)


@dataclass(frozen=True)
class _Land:
    sky: tuple[Colour, Colour]
    ground: tuple[Colour, Colour]  # at the horizon, at the camera
    patches: Colour  # what the ground's noise turns to
    open: float
    stalks: tuple[Colour, ...]
    paint: Callable[[_Sketch], None]


_LANDS = {
    "savanna": _Land(
        ((136, 178, 218), (226, 222, 200)), ((198, 176, 118), (176, 138, 80)), (150, 136, 70), 1.0,
        ((196, 164, 92), (170, 140, 76)), _savanna,
    ),
    "forest": _Land(
        ((58, 84, 52), (124, 146, 104)), ((92, 96, 64), (84, 66, 46)), (62, 74, 38), 0.25,
        ((58, 92, 44), (78, 106, 50)), _forest,
    ),
    "tundra": _Land(
        ((176, 190, 208), (230, 226, 226)), ((190, 198, 208), (206, 210, 216)), (142, 128, 104), 0.8,
        ((142, 116, 84), (200, 196, 188)), _tundra,
    ),
}  # fmt: skip
REGIONS = tuple(_LANDS)


def build_scenery(region: str, size: tuple[int, int], rng: Random) -> Scenery:
    """The fixed view of one camera in ``region``; ``size`` is (width, height) in pixels."""
    land = _LANDS[region]
    width, height = size[0] * _DETAIL, size[1] * _DETAIL
    horizon = float(rng.uniform(0.26, 0.48))
    row = int(height * horizon)
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:row] = _gradient(*land.sky, row)
    pixels[row:] = _gradient(*land.ground, height - row)
    patch = np.clip(0.5 * _noise(rng, (width, height), (5, 11, 27)) - 0.1, 0, 1)[..., None]
    pixels[row:] += (np.asarray(land.patches, np.float32) - pixels[row:]) * patch[row:]
    pixels[row:] += _noise(rng, (width, height - row), (width // 6, width // 3))[..., None] * 7
    pixels[:row] += _noise(rng, (width, row), (4, 9, 40))[..., None] * (3 if land.open > 0.5 else 12)
    pixels *= rng.uniform(0.95, 1.05, 3)  # no two cameras have quite the same colours
    view = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    land.paint(_Sketch(ImageDraw.Draw(view), width, height, row, rng))
    stalks = Image.new("RGBA", view.size, (*land.stalks[0], 0))
    count = int(rng.integers(0, 18))
    _Sketch(ImageDraw.Draw(stalks), width, height, row, rng).tufts(count, land.stalks, 0.24, start=0.98, lean=0.35)
    return Scenery(view.reduce(_DETAIL), stalks.reduce(_DETAIL), horizon, land.open)


# ------------------------------------------------------------------------------------------------------------ frames


@dataclass(frozen=True)
class Actor:
    """An animal in a frame: where its feet are (``x``, ``y`` as shares of width and height) and how large it is there
    (``scale``: pixels a body length)."""

    species: str
    form: Form
    coat: Coat
    pose: Pose
    x: float
    y: float
    scale: float


@dataclass(frozen=True)
class Shot:
    """One press of the shutter: the light of the hour, the exposure (about 1) and who is there."""

    light: str
    exposure: float
    actors: tuple[Actor, ...] = ()


def _flash(scenery: Scenery, size: tuple[int, int]) -> Floats:
    """How bright the infra-red flash is over the view, shape (height, width, 1): it fades far off and to the edges."""
    width, height = size
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    near = np.clip((down - scenery.horizon) / (1 - scenery.horizon), 0, 1)
    far = 0.10 + 0.10 * (1 - scenery.open)
    vignette = np.clip(1.1 - 0.55 * (across**2 + (down * 1.6 - 0.9) ** 2), 0.15, 1)
    bright: Floats = ((far + (0.95 - far) * near**0.7) * vignette)[..., None]
    return bright


def _lit(pixels: Floats, mask: Floats, scenery: Scenery, shot: Shot) -> Floats:
    height, width = pixels.shape[:2]
    if shot.light == "night":
        flash = _flash(scenery, (width, height))
        reach = [float(flash[min(height - 1, int(actor.y * height)), width // 2, 0]) for actor in shot.actors]
        # A body is as bright as the ground it stands on, however far up the view it reaches.
        flash = flash + (max(reach, default=0.0) * 1.15 + 0.06 - flash) * mask
        grey = pixels @ np.array([0.45, 0.40, 0.15], np.float32)
        return (grey[..., None] * 0.95 + 40) * flash * shot.exposure
    if shot.light == "dusk":
        glow = np.linspace(0.92, 0.72, height, dtype=np.float32)[:, None, None] * shot.exposure
        return pixels * glow * np.array([1.04, 0.88, 0.80], np.float32) + np.array([6, 2, 8], np.float32)
    return pixels * shot.exposure


def shoot(scenery: Scenery, shot: Shot, rng: Random) -> Image.Image:
    """The frame that the camera saves, RGB of the scenery's size; ``rng`` gives the sensor's noise of this frame.

    >>> rng = np.random.default_rng(0)
    >>> shoot(build_scenery("forest", (160, 120), rng), Shot("night", 1.0), rng).size
    (160, 120)
    """
    view, mask = scenery.view.copy(), Image.new("L", scenery.view.size)
    width, height = view.size
    for actor in sorted(shot.actors, key=lambda one: one.y):
        layer, foot = draw_animal(actor.species, actor.form, actor.coat, actor.pose, actor.scale)
        x, y = actor.x * width, actor.y * height
        shadow = Image.new("L", view.size)
        box = (x - actor.scale * 0.6, y - actor.scale * 0.07, x + actor.scale * 0.6, y + actor.scale * 0.07)
        ImageDraw.Draw(shadow).ellipse(box, fill=90 if shot.light == "day" else 50)
        view.paste((28, 26, 24), mask=shadow)
        corner = (round(x - foot[0]), round(y - foot[1]))
        view.paste(layer, corner, layer)
        mask.paste(255, corner, layer)
    view.paste(scenery.stalks, mask=scenery.stalks)
    if shot.light == "night":  # the lens is wide open
        view = view.filter(ImageFilter.GaussianBlur(0.8 * width / 160))
    alpha: Floats = np.asarray(mask, np.float32)[..., None] / np.float32(255)
    pixels = _lit(np.asarray(view, np.float32), alpha, scenery, shot)
    grain = rng.standard_normal((height, width, 1 if shot.light == "night" else 3), np.float32)
    pixels = pixels + grain * _NOISE[shot.light]
    frame = np.clip(pixels, 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(frame, (height, width, 3)).copy())
