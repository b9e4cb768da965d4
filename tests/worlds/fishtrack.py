"""A FishTrack23 folder in small: sequences of drawn fish from the programmes of four regions, with every trap.

Fish are bright ellipses on a noisy background whose tint is the region's. Boxes are those of the ellipses.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

REGIONS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "pnw_freshwater_lakes": ("CDFW-LakeCam", (70, 90, 40)),
    "pacific": ("PIFSC-MOUSS", (20, 60, 120)),
    "east_atlantic": ("IFREMER-DropCam", (40, 100, 90)),
    "gulf_of_mexico": ("SEFSC-SeaMap", (30, 110, 150)),
}
"""The programme and the tint of each region."""
SPECIES = ("trout", "snapper", "grouper", "wrasse")

# The sequences of a programme: split, the rest of the name, and whether there is a second camera.
_SEQUENCES = (
    ("Train", "A01", True),
    ("Train", "A02", False),
    ("Train", "A03", False),
    ("Test", "B01", True),
    ("Test", "B02", False),
)

_LEGEND = (
    "# 1: Detection or Track-id,2: Video or Image Identifier,3: Unique Frame Identifier,4-7: Img-bbox,8: Confidence\n"
)


def build(root: Path, *, images: int = 280, size: int = 64, seed: int = 0, videos: bool = False) -> None:
    """``root/FishTrack23-Latest/{Train,Test}`` with about ``images`` annotated frames of ``size`` pixels a side.

    Each region has five sites, two of them with a stereo pair, so seven sequences: four in Train and three in Test.
    Each has as many annotated frames as another (ten by default), and two without rows. The traps: boxes that overhang,
    rows past the end, ``non_fish`` rows, two species, tokens, comments of both kinds, file names that are empty or
    times, rows without species, a line that is none, a sequence without annotations, and in each region one sequence in
    DIVE's COCO. ``videos`` adds a video of eight annotated frames to each split, which needs OpenCV.
    """
    top = root / "FishTrack23-Latest"
    rng = np.random.default_rng(seed)
    folders = [
        (split, region, f"{REGIONS[region][0]}-{rest}{camera}")
        for region in REGIONS
        for split, rest, stereo in _SEQUENCES
        for camera in (("-Cam1", "-Cam2") if stereo else ("",))
    ]
    for at, (split, region, name) in enumerate(folders):
        count = images // len(folders) + (at < images % len(folders))
        _sequence(top / split / name, region, count, size, rng, at)
    for split in ("Train", "Test"):
        (top / split / "labels.txt").write_text("fish " + " ".join(SPECIES) + "\n")
    (top / "Train" / "SEFSC-SeaMap-unlabelled").mkdir()
    (top / "Train" / "SEFSC-SeaMap-unlabelled" / "0.jpg").write_bytes(_jpeg(_scene("gulf_of_mexico", size, [], rng)))
    if videos:
        for split, region in (("Train", "pacific"), ("Test", "gulf_of_mexico")):
            _video(top / split, f"{REGIONS[region][0]}-V01", region, size, rng)


def _sequence(folder: Path, region: str, annotated: int, size: int, rng: np.random.Generator, at: int) -> None:
    """One folder of frames: the first and the last have no rows; ``at`` says how its annotations are written."""
    folder.mkdir(parents=True)
    frames: list[list[list[float]]] = []
    for number in range(annotated + 2):
        fish = _fish(size, rng) if 0 < number <= annotated else []
        (folder / f"frame_{number:06d}.jpg").write_bytes(_jpeg(_scene(region, size, fish, rng)))
        frames.append(fish)
    if at % 7 == 3:
        _write_coco(folder / "annotations.coco.json", folder.name, frames)
        return
    rows: list[list[Any]] = []
    for number, fish in enumerate(frames):
        for track, (left, top, right, bottom) in enumerate(fish):
            named = ("", f"0:0:{number}.000", f"frame_{number:06d}.jpg")[at % 3]
            species = SPECIES[(at + track) % len(SPECIES)]
            row = [track, named, number, left, top, right, bottom, 1, -1]
            row += [[species, 0.9], [species, 0.8, "unknown", 0.2], []][(number + track) % 3]
            row += [[], ["(kp) head 3 4", "(poly) 1 1 9 9 1 9"], ["(atr) length 12", "+kp head 3 4"]][number % 3]
            rows.append(row)
    rows.append([90, "", 1, 2, 2, 8, 8, 1, -1, "non_fish_plant", 1])
    rows.append([91, "", len(frames), 2, 2, 8, 8, 1, -1, "trout", 1])  # one frame past the end
    out = io.StringIO()
    out.write(_LEGEND)
    out.write('# metadata,fps: 10,"exported_by: ""dive:python"""\n' if at % 2 else "#meta fps=5\n")
    csv.writer(out, lineterminator="\n").writerows(rows)
    if at == 0:
        out.write("this is no row\n")
    (folder / (f"{folder.name}.csv" if at % 2 else "annotations.viame.csv")).write_text(out.getvalue())


def _fish(size: int, rng: np.random.Generator) -> list[list[float]]:
    """The corners of one to three fish, some of which swim over the edge."""
    fish = []
    for _ in range(int(rng.integers(1, 4))):
        width, height = rng.uniform(size * 0.25, size * 0.45), rng.uniform(size * 0.15, size * 0.25)
        left, top = rng.uniform(-0.1 * size, size * 0.75), rng.uniform(0, size - height)
        fish.append([round(float(value), 1) for value in (left, top, left + width, top + height)])
    return fish


def _scene(region: str, size: int, fish: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    tint = np.array(REGIONS[region][1])
    noise = rng.normal(0, 12, (size, size, 3))
    image = Image.fromarray(np.clip(tint + noise, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for corners in fish:
        bright = tuple(int(value) for value in rng.integers(190, 250, 3))
        draw.ellipse(corners, fill=bright)
    return np.asarray(image)


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def _write_coco(path: Path, name: str, frames: list[list[list[float]]]) -> None:
    images = [
        {"id": number + 1, "file_name": f"frame_{number:06d}.jpg", "frame_index": number, "video_id": 1}
        for number in range(len(frames))
    ]
    annotations = [
        {
            "id": 100 * number + track,
            "image_id": number + 1,
            "category_id": 1 + track % len(SPECIES),
            "bbox": [left, top, right - left, bottom - top],
            "track_id": track,
            "score": 1.0,
        }
        for number, fish in enumerate(frames)
        for track, (left, top, right, bottom) in enumerate(fish)
    ]
    document = {
        "videos": [{"id": 1, "name": name, "fps": 10}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": at + 1, "name": species} for at, species in enumerate(SPECIES)],
    }
    path.write_text(json.dumps(document))


def _video(folder: Path, name: str, region: str, size: int, rng: np.random.Generator) -> None:
    """20 frames at 10 a second, annotated at 5: of the ten frames that makes, the second to the ninth have fish."""
    import cv2

    writer = cv2.VideoWriter(str(folder / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (size, size))
    rows = ["# metadata,fps: 5\n"]
    for number in range(10):
        fish = _fish(size, rng) if 0 < number < 9 else []
        for _ in range(2):
            writer.write(np.ascontiguousarray(_scene(region, size, fish, rng)[:, :, ::-1]))
        for track, corners in enumerate(fish):
            box = ",".join(map(str, corners))
            rows.append(f"{track},00:00:{number / 5:09.6f},{number},{box},1,-1,snapper,0.9\n")
    writer.release()
    (folder / f"{name}.csv").write_text("".join(rows))
