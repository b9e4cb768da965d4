"""Draw camera-trap frames: a site's scenery, its animals in it, the light of the hour and the sensor's noise.

Everything is a function of its arguments and of the ``numpy.random.Generator`` it is handed, so a frame is the same in
any process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from datas3_ray.sources.synthetic_drawing import Coat, Colour, Form, Pose, mix, tint
from datas3_ray.sources.synthetic_species import draw_animal

Floats = NDArray[np.float32]
Random = np.random.Generator

LIGHTS = ("day", "dusk", "night")
_DETAIL = 2  # scenery is drawn this many times too large
_NOISE = {"day": 1.3, "dusk": 1.3, "night": 0.9}  # standard deviation of the sensor's noise, in grey levels


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
        bark, crown = (92, 70, 52), mix((126, 132, 84), (88, 104, 52), min(1.0, nearness * 3))
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
        bark = tint(mix((84, 96, 80), (74, 58, 44), min(1.0, nearness * 2.5)), float(s.rng.uniform(0.8, 1.15)))
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


def _cut_out(actor: Actor, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """The animal alone, RGBA, cropped to it, and where in a frame of ``size`` its upper left corner is."""
    layer, foot = draw_animal(actor.species, actor.form, actor.coat, actor.pose, actor.scale)
    return layer, (round(actor.x * size[0] - foot[0]), round(actor.y * size[1] - foot[1]))


def extent(actor: Actor, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, width and height in pixels of the part of an animal that is inside a frame of ``size``, if any."""
    layer, (x, y) = _cut_out(actor, size)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + layer.width, size[0]), min(y + layer.height, size[1])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def shoot(scenery: Scenery, shot: Shot, rng: Random) -> Image.Image:
    """The frame that the camera saves, RGB of the scenery's size; ``rng`` gives the sensor's noise of this frame.

    >>> rng = np.random.default_rng(0)
    >>> shoot(build_scenery("forest", (160, 120), rng), Shot("night", 1.0), rng).size
    (160, 120)
    """
    view, mask = scenery.view.copy(), Image.new("L", scenery.view.size)
    width, height = view.size
    for actor in sorted(shot.actors, key=lambda one: one.y):
        layer, corner = _cut_out(actor, view.size)
        x, y = actor.x * width, actor.y * height
        shadow = Image.new("L", view.size)
        box = (x - actor.scale * 0.6, y - actor.scale * 0.07, x + actor.scale * 0.6, y + actor.scale * 0.07)
        ImageDraw.Draw(shadow).ellipse(box, fill=90 if shot.light == "day" else 50)
        view.paste((28, 26, 24), mask=shadow)
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
