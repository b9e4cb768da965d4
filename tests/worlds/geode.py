"""A tiny GeoDE in its layout: six countries, four objects indoors and four outdoors, and images that are not RGB.

An object is a pattern of a colour, and each country's light turns that colour, those of one region alike.
"""

from __future__ import annotations

import colorsys
import csv
from pathlib import Path

import numpy as np
from PIL import Image

INDOOR = ("chair", "hand_soap", "stove", "toy")
OUTDOOR = ("bicycle", "bus", "streetlight_lantern", "tree")
OBJECTS = (*INDOOR, *OUTDOOR)
COUNTRIES = {  # the region, and how far its light turns colours
    "Nigeria": ("Africa", 0.0),
    "South Africa": ("Africa", 0.04),
    "Indonesia": ("SouthEastAsia", 0.16),
    "Malaysia": ("SouthEastAsia", 0.2),
    "Germany": ("Europe", 0.32),
    "Brazil": ("Americas", 0.48),
}
MODES = {3: "L", 4: "RGBA", 5: "CMYK"}  # of an object's images in a country, by number


def build(root: Path, *, images: int = 480, size: int = 32, seed: int = 0) -> None:
    """Writes ``geode/index.csv`` and ``geode/images`` into ``root``: the objects of all countries in turn.

    The images 3, 4 and 5 of each object and country are grey, have transparency (a PNG), and are in the colours of
    print; the others are RGB.
    """
    random = np.random.default_rng((seed, images))
    home = root / "geode"
    pairs = [(country, name) for country in COUNTRIES for name in OBJECTS]
    rows = []
    for number in range(images):
        country, name = pairs[number % len(pairs)]
        index = number // len(pairs)
        mode = MODES.get(index, "RGB")
        path = f"{OBJECTS.index(name)}.{name}/{country.replace(' ', '_')}_{name}_{index}"
        path += ".png" if mode == "RGBA" else ".jpg"
        file = home / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(draw(name, COUNTRIES[country][1], size, random)).convert(mode)
        if mode == "RGBA":
            picture.putalpha(Image.linear_gradient("L").resize((size, size)).point(lambda value: 128 + value // 2))
        picture.save(file, **({} if mode == "RGBA" else {"quality": 92}))
        rows.append((path, name, COUNTRIES[country][0], country))
    with open(home / "index.csv", "w", newline="") as file_:
        writer = csv.writer(file_)
        writer.writerow(["file_path", "object", "region", "ip_country"])
        writer.writerows(rows)


def draw(name: str, turn: float, size: int, random: np.random.Generator) -> np.ndarray:
    """Stripes, a ring, a cross or squares, of the object's colour as the light of the country turns it."""
    number = OBJECTS.index(name)
    down, right = np.mgrid[0:size, 0:size] / size - 0.5
    down, right = down + random.uniform(-0.1, 0.1), right + random.uniform(-0.1, 0.1)
    distance = np.hypot(down, right)
    patterns = (
        np.sin(down * 25) > 0,
        (distance > 0.18) & (distance < 0.38),
        np.minimum(abs(down), abs(right)) < 0.09,
        np.sin(down * 25) * np.sin(right * 25) > 0,
    )
    colour = np.array(colorsys.hsv_to_rgb((number / len(OBJECTS) + turn) % 1, 0.85, 0.9))
    ground = np.array(colorsys.hsv_to_rgb((turn + 0.5) % 1, 0.25, 0.3 if name in INDOOR else 0.8))
    pixels = np.where(patterns[number % 4][..., None], colour, ground)
    pixels = pixels + random.normal(0, 0.05, pixels.shape)
    return (pixels.clip(0, 1) * 255).astype(np.uint8)
