"""Cheap columns of an image, computed while its pixels are at hand: digests, how bright and sharp it is, a thumbnail.

Everything that is about brightness is computed on the *luma*: grey as ITU-R 601 weighs it (0.299 R + 0.587 G +
0.114 B, rounded to 0..255), scaled down to 256 pixels on the longest side where the image is larger (the mean of
pixel blocks), and left as it is where it is smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.kernels.phash import SIDE, phash

LUMA_EDGE = 256
"""The longest side of the luma, in pixels."""

FEATURES: dict[str, pa.Field] = {
    "sha256": pa.field("sha256", pa.string()),
    "phash": pa.field("phash", pa.uint64()),
    "brightness": pa.field("brightness", pa.float32()),
    "contrast": pa.field("contrast", pa.float32()),
    "sharpness": pa.field("sharpness", pa.float32()),
    "entropy": pa.field("entropy", pa.float32()),
    "aspect": pa.field("aspect", pa.float32()),
}
"""The columns there are. Their definitions are those of :func:`compute`."""

THUMBNAIL = pa.field("thumbnail", pa.large_binary())
"""The column of :func:`thumbnail`."""

_OF_HISTOGRAM = ("brightness", "contrast", "entropy")
_OF_LUMA = ("phash", "sharpness", *_OF_HISTOGRAM)
_QUALITIES = (85, 75, 65, 55, 45, 35, 25, 15, 5)
_LEAST_BYTES = 1024  # a JPEG's tables alone take 600
_LEVELS = np.arange(256)


def feature_fields(names: Sequence[str]) -> list[pa.Field]:
    """The Arrow fields of these columns, in their order.

    Raises:
        UsageError: a name is unknown or comes twice.

    >>> [str(field.type) for field in feature_fields(["phash", "aspect"])]
    ['uint64', 'float']
    >>> feature_fields(["sharpnes"])
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: features: unknown column 'sharpnes'; there are: sha256, phash, brightness, contrast, \
sharpness, entropy, aspect. Did you mean 'sharpness'?
    """
    for name in names:
        if name not in FEATURES:
            there = ", ".join(FEATURES)
            hint = did_you_mean(str(name), FEATURES)
            raise UsageError(f"features: unknown column {name!r}; there are: {there}.{hint}")
        if list(names).count(name) > 1:
            raise UsageError(f"features: {name!r} is there twice; name it once.")
    return [FEATURES[name] for name in names]


def compute(names: Sequence[str], data: bytes, image: Image.Image) -> dict[str, Any]:
    """The values of these columns for one image.

    ``sha256`` is the digest of the encoded bytes in hexadecimal; ``phash`` the hash of
    :func:`datas3_ray.kernels.phash.phash` of the luma scaled to 32 x 32; ``brightness`` and ``contrast`` the mean and
    the standard deviation of the luma, as shares of 255; ``entropy`` that of the luma's histogram, 0 to 8 bits;
    ``sharpness`` the variance of the luma's Laplacian (above + below + left + right - 4 x centre, luma 0..255, without
    the border; 0 where a side is below 3 pixels); ``aspect`` width / height.

    Args:
        names: keys of FEATURES.
        data: the encoded image.
        image: the decoded one, upright RGB.

    Raises:
        UsageError: as :func:`feature_fields`.

    >>> compute(["brightness", "contrast", "aspect"], b"", Image.new("RGB", (30, 20), "white"))
    {'brightness': 1.0, 'contrast': 0.0, 'aspect': 1.5}
    """
    feature_fields(names)
    values: dict[str, Any] = {}
    if any(name in _OF_LUMA for name in names):
        luma = _luma(image)
        if any(name in _OF_HISTOGRAM for name in names):
            values.update(_of_histogram(np.asarray(luma.histogram())))
        if "phash" in names:
            small = luma.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            values["phash"] = int(phash(np.asarray(small)))
        if "sharpness" in names:
            values["sharpness"] = _sharpness(np.asarray(luma))
    if "sha256" in names:
        values["sha256"] = hashlib.sha256(data).hexdigest()
    if "aspect" in names:
        values["aspect"] = image.width / image.height
    return {name: values[name] for name in names}


def thumbnail(image: Image.Image, edge: int) -> bytes:
    """A JPEG of the image with at most ``edge`` pixels on its longest side; smaller images keep their size.

    Its quality is 85, or as much lower as it takes to stay within edge x edge / 2 bytes (1 KiB at least); the same
    pixels give the same bytes. It carries no metadata of the image.

    Raises:
        UsageError: ``edge`` is less than 1.

    >>> with Image.open(BytesIO(thumbnail(Image.new("RGB", (300, 200)), 96))) as small:
    ...     small.format, small.size
    ('JPEG', (96, 64))
    """
    if edge < 1:
        raise UsageError(f"thumbnail = {edge!r} is not allowed: it is a side in pixels, at least 1.")
    small = image.resize(_within(image.size, edge), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info = {}  # a comment in the image would be written again
    most = max(edge * edge // 2, _LEAST_BYTES)
    for quality in _QUALITIES:
        buffer = BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


def _within(size: tuple[int, int], edge: int) -> tuple[int, int]:
    width, height = size
    longest = max(size)
    if longest <= edge:
        return width, height
    return max(1, round(width * edge / longest)), max(1, round(height * edge / longest))


def _luma(image: Image.Image) -> Image.Image:
    size = _within(image.size, LUMA_EDGE)
    grey = image.convert("L")
    return grey if size == grey.size else grey.resize(size, Image.Resampling.BOX, reducing_gap=1.0)


def _of_histogram(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Mean, standard deviation and entropy from the counts of the 256 levels; sums of whole numbers, so exact."""
    pixels = int(counts.sum())
    total, squares = int(counts @ _LEVELS), int(counts @ _LEVELS**2)
    share = counts[counts > 0] / pixels
    return {
        "brightness": total / pixels / 255,
        "contrast": float(max(0, squares * pixels - total**2)) ** 0.5 / pixels / 255,
        "entropy": max(0.0, float(-(share * np.log2(share)).sum())),
    }


def _sharpness(luma: npt.NDArray[np.uint8]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    grey = luma.astype(np.int16)
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = (sides - 4 * grey[1:-1, 1:-1]).astype(np.int32)
    total, squares = int(laplacian.sum(dtype=np.int64)), int((laplacian * laplacian).sum(dtype=np.int64))
    return (squares - total**2 / laplacian.size) / laplacian.size
