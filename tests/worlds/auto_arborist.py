"""A small Auto Arborist in the layout of its release: trees whose genus can be seen, drawn in nine cities.

Each city has its own light and lacks two of the eight genera. Besides ``images`` trees (three in five of them in
``train``) there are a tree of Surrey without an image from the street, one of New York with a damaged record, and one
of Calgary that is written twice: three rejects.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from worlds.tfrecords import example, framed

CITIES = {
    "surrey": "Surrey",
    "calgary": "Calgary",
    "los_angeles": "LosAngeles",
    "washington_dc": "WashingtonDc",
    "san_francisco": "SanFrancisco",
    "san_jose": "SanJose",
    "charlottesville": "Charlottesville",
    "pittsburgh": "Pittsburgh",
    "new_york": "NewYork",
}
"""Names of folders, and as they are in records and names of CSVs."""

GENERA = {
    "abies": 0,
    "acer": 4,
    "fraxinus": 117,
    "pinus": 230,
    "prunus": 241,
    "quercus": 256,
    "tilia": 301,
    "ziziphus": 325,
}
"""Each genus with its number, counted from zero."""

_SPELLINGS = (
    ("tree/idx", ""),  # as in the data card
    ("tree/tree_locations_idx", "image/"),  # as in the README
)


def genera_of(city: str) -> list[str]:
    """The six genera that grow in a city."""
    at = list(CITIES).index(city)
    return [genus for number, genus in enumerate(GENERA) if number not in (at % 8, (at + 3) % 8)]


def build(root: Path, *, images: int = 540, size: int = 32, seed: int = 0) -> None:
    """Write ``root/auto_arborist/`` with ``tfrecords/`` and ``tree_locations/``: ``images`` rows, a ninth a city."""
    rng = np.random.default_rng(seed)
    top = Path(root) / "auto_arborist"
    (top / "tree_locations").mkdir(parents=True)
    for number, (city, written) in enumerate(CITIES.items()):
        trees = [_tree(city, at, rng, size) for at in range(max(1, round(images / len(CITIES))))]
        splits = {"train": [tree for tree in trees if tree["at"] % 5 < 3], "test": []}
        splits["test"] = [tree for tree in trees if tree["at"] % 5 >= 3]
        for split, members in splits.items():
            records = [framed(example(_features(tree, number), packed=number % 3 > 0)) for tree in members]
            if split == "test":
                records += _traps(city, number, trees, rng, size)
            parts = 2 if city == "surrey" and split == "train" else 1
            folder = top / "tfrecords" / city
            folder.mkdir(parents=True, exist_ok=True)
            for part in range(parts):
                path = folder / f"{split}-{part:05d}-of-{parts:05d}"
                path.write_bytes(b"".join(records[part::parts]))
            _write_csv(top / "tree_locations" / f"{written}Trees_{split}.csv", members)
        _write_csv(top / "tree_locations" / f"{written}Trees.csv", trees)


def draw(genus: str, city: str, rng: np.random.Generator, size: int, above: bool = False) -> bytes:
    """A JPEG of a tree: its crown's colour and shape are those of the genus, the sky and ground those of the city."""
    kind, place = list(GENERA).index(genus), list(CITIES).index(city)
    light = np.array([110 + 12 * (place % 3), 120 + 10 * (place % 5), 130 + 8 * (place % 7)])
    ground = tuple(int(value) for value in (light * (0.55 if above else 1.0)))
    image = Image.new("RGB", (size, size), ground)
    pen = ImageDraw.Draw(image)
    turn = 2 * math.pi * kind / len(GENERA)
    crown = tuple(int(128 + 100 * math.cos(turn + third)) for third in (0.0, 2.1, 4.2))
    x, y = (size / 2 + rng.uniform(-0.08, 0.08, 2) * size).tolist()
    wide = size * (0.28 + 0.05 * rng.random())
    if not above:
        pen.rectangle((x - size / 20, y, x + size / 20, size), fill=(80, 60, 40))
    if kind % 2:
        pen.polygon([(x, y - 1.2 * wide), (x - wide, y + wide), (x + wide, y + wide)], fill=crown)
    else:
        pen.ellipse((x - wide, y - wide, x + wide, y + wide), fill=crown)
    noisy = np.asarray(image, np.int16) + rng.integers(-14, 15, (size, size, 3), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _tree(city: str, at: int, rng: np.random.Generator, size: int) -> dict[str, Any]:
    genera = genera_of(city)
    genus = genera[at % len(genera)]
    return {
        "at": at,
        "idx": f"{city[:2]}-{at:04d}-{int(rng.integers(1 << 32)):08x}",
        "city": CITIES[city],
        "genus": genus,
        "longitude": -10.0 - list(CITIES).index(city) - rng.random() / 10,
        "latitude": 10.0 + list(CITIES).index(city) + rng.random() / 10,
        "street": draw(genus, city, rng, size),
        "aerial": draw(genus, city, rng, size, above=True),
        "captured": f"{('May', 'July', 'October')[at % 3]} {2015 + at % 5}",
    }


def _features(tree: dict[str, Any], number: int) -> dict[str, list[Any]]:
    idx, prefix = _SPELLINGS[number % 2]
    return {
        "tree/id": [f"id-{tree['idx']}".encode()],
        idx: [tree["idx"].encode()],
        "tree/city": [tree["city"].encode()],
        "tree/latitude": [tree["latitude"]],
        "tree/longitude": [tree["longitude"]],
        "tree/genus/label": [GENERA[tree["genus"]]],
        "tree/genus/genus": [tree["genus"].encode()],
        f"{prefix}aerial/encoded": [tree["aerial"]],
        f"{prefix}streetlevel/encoded": [tree["street"]] if tree["street"] else [],
        f"{prefix}streetlevel/capturetime": [tree["captured"].encode()],
        f"{prefix}streetlevel/object/bbox/xmin": [0.25],
        f"{prefix}streetlevel/object/bbox/xmax": [0.75],
        f"{prefix}streetlevel/object/bbox/ymin": [0.125],
        f"{prefix}streetlevel/object/bbox/ymax": [1.0],
        f"{prefix}streetlevel/center/x": [384],
        f"{prefix}streetlevel/center/y": [576],
    }


def _traps(city: str, number: int, trees: list[dict[str, Any]], rng: np.random.Generator, size: int) -> list[bytes]:
    spare = _tree(city, len(trees), rng, size)
    if city == "surrey":
        return [framed(example(_features({**spare, "street": b""}, number)))]
    if city == "calgary":
        last = next(tree for tree in reversed(trees) if tree["at"] % 5 >= 3 or len(trees) < 4)
        return [framed(example(_features(last, number)))]
    if city == "new_york":
        record = bytearray(framed(example(_features(spare, number))))
        record[len(record) // 2] ^= 255
        return [bytes(record)]
    return []


def _write_csv(path: Path, trees: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["IDX", "SHAPE_LNG", "SHAPE_LAT", "GENUS", "TAXONOMY_ID"])
        for tree in trees:
            place = [f"{tree['longitude']:.6f}", f"{tree['latitude']:.6f}"]
            writer.writerow([tree["idx"], *place, tree["genus"], GENERA[tree["genus"]]])
