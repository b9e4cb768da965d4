"""A trial's images in a folder of its own, in the form that YOLO's readers expect."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datas3_ray.errors import Datas3Error
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.decode import decode_image
from datas3_ray.training.detection_data import DetectionImages
from datas3_ray.training.pixels import CHUNK, cpus

if TYPE_CHECKING:
    from PIL import Image

KEPT_FREE = 1 << 30
"""Bytes of disk that a trial's images leave free."""
SMALLEST = 10
"""Pixels that each side of an image must have: YOLO's readers take no smaller ones."""

_MOST_THREADS = 8
_QUALITY = 95


@dataclass(frozen=True)
class Written:
    """What :func:`write_images` left in a folder: images, boxes on them, and images that cannot be read."""

    images: int
    boxes: int
    unreadable: int


def write_images(folder: Path, images: DetectionImages, positions: np.ndarray, codes: np.ndarray, size: int) -> Written:
    """Write images and their boxes as YOLO's readers expect them: ``images/0000001.jpg``, ``labels/0000001.txt``.

    Names are numbers in the order of ``positions``, and nothing that a table says becomes part of a path. Images are
    upright RGB, scaled down where their longer side has more than ``size`` pixels. What cannot be read is left out.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    images : DetectionImages
    positions : ndarray of int64
        Which images to write.
    codes : ndarray of shape (m,), int64
        The number to write for each of the m boxes' classes.
    size : int
        Pixels.

    Raises
    ------
    Datas3Error
        When the disk has less than :data:`KEPT_FREE` left.
    """
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def write(start: int) -> tuple[int, int]:
        if shutil.disk_usage(folder).free < KEPT_FREE:
            raise _no_room(folder, len(positions), size)
        chunk = positions[start : start + CHUNK]
        written = boxes = 0
        for number, encoded in enumerate(images.rows.take(chunk).encoded(), start):
            image = _readable(encoded, size)
            if image is None:
                continue
            mine = images.boxes_of(int(positions[number]))
            lines = label_lines(codes[mine], images.places[mine], (image.width, image.height))
            (folder / "labels" / f"{number:07d}.txt").write_text("".join(lines))
            image.pixels.save(folder / "images" / f"{number:07d}.jpg", "JPEG", quality=_QUALITY, subsampling=0)
            written, boxes = written + 1, boxes + len(lines)
        return written, boxes

    try:
        with ThreadPoolExecutor(min(cpus(), _MOST_THREADS)) as threads:
            counts = list(threads.map(write, range(0, len(positions), CHUNK)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room(folder, len(positions), size) from error
    written = sum(count for count, _ in counts)
    return Written(written, sum(boxes for _, boxes in counts), len(positions) - written)


def label_lines(codes: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> list[str]:
    """Lines of a YOLO label file: class, and the centre, width and height as shares of the image's.

    Boxes are clipped to the image, and those outside of it are left out.

    >>> label_lines(np.array([3, 0]), np.array([[-10, 10, 30, 20], [200, 0, 5, 5]]), (100, 50))
    ['3 0.1000000 0.4000000 0.2000000 0.4000000\\n']
    """
    low = np.maximum(places[:, :2].astype(np.float64), 0)
    high = np.minimum(places[:, :2].astype(np.float64) + places[:, 2:], size)
    inside = (high > low).all(axis=1)
    centres, sides = (low + high) / 2 / size, (high - low) / size
    return [
        f"{code} {' '.join(f'{value:.7f}' for value in (*centre, *side))}\n"
        for code, centre, side in zip(codes[inside], centres[inside], sides[inside], strict=True)
    ]


@dataclass(frozen=True)
class _Readable:
    """An image ready to be written, and the width and height that its boxes were drawn on."""

    pixels: Image.Image
    width: int
    height: int


def _readable(encoded: bytes | SampleError, size: int) -> _Readable | None:
    if isinstance(encoded, SampleError):
        return None
    try:
        decoded = decode_image(encoded, fit=size)
    except SampleError:
        return None
    image = decoded.image
    shrink = min(1.0, size / max(image.size))
    if shrink < 1:
        from PIL import Image

        image = image.resize(
            (max(1, round(image.width * shrink)), max(1, round(image.height * shrink))), Image.Resampling.BILINEAR
        )
    return _Readable(image, decoded.width, decoded.height) if min(image.size) >= SMALLEST else None


def _no_room(folder: Path, count: int, size: int) -> Datas3Error:
    return Datas3Error(
        f"there is no room for a trial's {count} images of {size} pixels in {folder.parent}, which must keep "
        f"{KEPT_FREE >> 30} GB free; let TMPDIR name a folder on a larger disk."
    )
