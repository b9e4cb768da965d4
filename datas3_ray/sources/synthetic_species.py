"""Draw the animals: one painter a species, most of them on the same four-legged body.

An animal is a function of its arguments alone. ``SPECIES`` names them all, ``draw_animal`` draws one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from datas3_ray.sources.synthetic_drawing import Brush, Build, Coat, Colour, Form, Point, Pose, mix, tint


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
    patch = mix(coat.base, (104, 52, 20), 0.75)

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
        brush.blob(edge, mix(coat.base, (86, 48, 22), 0.7))
        brush.limb([(x, y - 0.01), (nx, ny)], [0.23, 0.13], coat.base)
    else:
        _ear(brush, joints, build, coat.dark, -0.2)
    brush.disc(nx + 0.05, ny + 0.02, 0.035, (60, 40, 36))
    brush.disc(-0.74, joints.back - 0.62, 0.06, mix(coat.base, (60, 36, 20), 0.7))  # the tail's tuft
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
    return Image.fromarray(pixels.astype(np.uint8)), foot
