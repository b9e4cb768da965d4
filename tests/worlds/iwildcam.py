"""A tiny iWildCam in the layout of its WILDS release: cameras of four regions, with places that are made up.

Every region has a deployment of two cameras, which are in the splits ``test`` and ``val`` alone; two cameras of the
pool less than 100 km away; and one that is 200 to 400 km away. A species is a shape of a colour, and the light of its
region turns that colour, so that images from elsewhere mislead.
"""

from __future__ import annotations

import colorsys
import csv
import json
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

NAME = "iwildcam_v2.0"
CATEGORIES = {  # category_id: name; ids are sparse, as in the real one
    0: "empty",
    7: "panthera pardus",
    24: "tapirus bairdii",
    71: "loxodonta africana",
    96: "sus scrofa",
    230: "cuniculus paca",
    317: "aepyceros melampus",
    372: "muntiacus muntjak",
}
NEVER = (570, "homo synthesis")  # y = 99999: a category that no image has
REGIONS = {  # the middle of each deployment, how far the light turns colours, and the categories that do not occur
    "Central America": ((12.0, -85.5), 0.0, (71, 317)),
    "Eastern Africa": ((-1.0, 37.0), 0.12, (24, 372)),
    "Southern Africa": ((-25.5, 26.0), 0.24, (230, 372)),
    "SE Asia": ((8.0, 106.0), 0.36, (71, 230)),
}
CAMERAS = {  # role: degrees from the middle (a degree is about 111 km); the splits of its images by turns
    "test": ((0.0, 0.0), ("test",)),
    "val": ((0.2, 0.1), ("val",)),
    "near": ((0.5, 0.0), ("train", "train", "train", "id_val", "train", "train", "id_test")),
    "near too": ((-0.4, 0.2), ("train", "train", "id_test", "train", "train", "id_val", "train")),
    "far": ((2.6, 0.0), ("train", "train", "train", "id_test", "train", "id_val", "train")),
}
SHARES = {"test": 0.26, "val": 0.14, "near": 0.2, "near too": 0.2, "far": 0.2}
FIRST_LOCATION = {"Central America": 11, "Eastern Africa": 120, "Southern Africa": 233, "SE Asia": 402}
NOWHERE = 555  # a location of the pool without GPS
MINIMUM = 120


def build(root: Path, *, images: int = 480, size: int = 32, seed: int = 0) -> None:
    """Writes ``iwildcam_v2.0``, ``gps_locations.json`` and ``detections.json`` (MegaDetector's) into ``root``.

    A thirtieth of the images is of the location without GPS, the rest is divided evenly among the regions. Nothing is
    broken: every image can be read, and every row agrees with ``categories.csv``.
    """
    assert images >= MINIMUM, f"{images} images are too few for every class in every split"
    random = np.random.default_rng((seed, images))
    home = root / NAME
    (home / "train").mkdir(parents=True, exist_ok=True)
    rows = _rows(images)
    detections = []
    for number, row in enumerate(rows):
        name = str(uuid.UUID(bytes=random.bytes(16)))
        row.update(image_id=name, filename=f"{name}.jpg")
        turn = next((turn for region, (_, turn, _) in REGIONS.items() if region == row["region"]), 0.5)
        picture = draw(int(row["category_id"]), turn, size, random)
        Image.fromarray(picture).save(home / "train" / f"{name}.jpg", quality=92)
        detections.append(_detection(number, row, random))
    _write(home, rows)
    (root / "gps_locations.json").write_text(json.dumps(places()))
    found = {"images": detections, "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"}, "info": {}}
    (root / "detections.json").write_text(json.dumps(found))


def places() -> dict[str, dict[str, float]]:
    """What ``gps_locations.json`` holds."""
    found = {}
    for region, ((latitude, longitude), _, _) in REGIONS.items():
        for at, ((north, east), _) in enumerate(CAMERAS.values()):
            place = {"latitude": round(latitude + north, 4), "longitude": round(longitude + east, 4)}
            found[str(FIRST_LOCATION[region] + at)] = place
    return found


def draw(category_id: int, turn: float, size: int, random: np.random.Generator) -> np.ndarray:
    """A shape of the category's colour, turned by the light of its place, on that place's ground."""
    number = list(CATEGORIES).index(category_id)
    ground = np.array(colorsys.hsv_to_rgb(turn + 0.3, 0.35, 0.45))
    pixels = np.broadcast_to(ground, (size, size, 3)).copy()
    if category_id:
        down, right = np.mgrid[0:size, 0:size] / size - 0.5
        down, right = down + random.uniform(-0.1, 0.1), right + random.uniform(-0.1, 0.1)
        shapes = (down**2 + right**2 < 0.1, np.maximum(abs(down), abs(right)) < 0.28, abs(down) + abs(right) < 0.38)
        colour = colorsys.hsv_to_rgb((number / len(CATEGORIES) + turn) % 1, 0.9, 0.95)
        pixels[shapes[number % len(shapes)]] = colour
    pixels += random.normal(0, 0.05, pixels.shape)
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def _rows(images: int) -> list[dict[str, object]]:
    nowhere = max(images // 30, len(CATEGORIES))
    plan: list[tuple[str, int, str, int]] = []  # region, location, split, category_id
    for at, region in enumerate(REGIONS):
        mine = (images - nowhere) // len(REGIONS) + (at < (images - nowhere) % len(REGIONS))
        ids = [key for key in CATEGORIES if key not in REGIONS[region][2]]
        counts = {role: int(mine * share) for role, share in SHARES.items()}
        counts["near"] += mine - sum(counts.values())
        for camera, (role, (_, splits)) in enumerate(CAMERAS.items()):
            for n in range(counts[role]):
                # Every class in turn, shifted from round to round so that it meets every split.
                split = splits[(n + 2 * (n // len(ids))) % len(splits)]
                plan.append((region, FIRST_LOCATION[region] + camera, split, ids[n % len(ids)]))
    for n in range(nowhere):
        plan.append(("", NOWHERE, "train", list(CATEGORIES)[n % len(CATEGORIES)]))
    locations = sorted({location for _, location, _, _ in plan})
    return [
        {
            "region": region,
            "split": split,
            "location_remapped": locations.index(location),
            "location": location,
            "sequence_remapped": number // 2,
            "seq_id": str(uuid.UUID(int=number // 2 + (1 << 100))),
            "y": list(CATEGORIES).index(category_id),
            "category_id": category_id,
            "datetime": f"2014-{1 + number % 12:02d}-{1 + number % 28:02d} {number % 24:02d}:30:00.000",
        }
        for number, (region, location, split, category_id) in enumerate(plan)
    ]


def _detection(number: int, row: dict[str, object], random: np.random.Generator) -> dict[str, object]:
    """An entry of MegaDetector's: an animal, nothing, a failure, or no detections at all."""
    entry: dict[str, object] = {"file": f"train/{row['filename']}"}
    if number % 40 == 3:
        return entry | {"detections": None, "failure": "Failure image access"}
    if number % 40 == 4:
        return entry
    box = {"category": "1", "bbox": [0.25, 0.25, 0.5, 0.5], "conf": round(float(random.uniform(0.6, 1)), 3)}
    return entry | {"max_detection_conf": 0, "detections": [box] if row["category_id"] else []}


def _write(home: Path, rows: list[dict[str, object]]) -> None:
    names = [name for name in rows[0] if name not in ("region", "image_id", "filename")]
    with open(home / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *names, "filename", "image_id"])
        for number, row in enumerate(rows):
            writer.writerow([number, *(row[name] for name in (*names, "filename", "image_id"))])
    with open(home / "categories.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["y", "category_id", "name"])
        writer.writerows([y, key, name] for y, (key, name) in enumerate(CATEGORIES.items()))
        writer.writerow([99999, *NEVER])
    (home / "RELEASE_v2.0.txt").write_text("A synthetic stand-in for the release.\n")
