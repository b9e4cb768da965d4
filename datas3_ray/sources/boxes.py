"""Boxes of a detection data set: as every source hands them on, clipped to the image that they are drawn on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from datas3_ray.sources.base import Reject, Sample, SampleError

BOXES = pa.field(
    "boxes",
    pa.list_(
        pa.struct(
            [
                pa.field("label", pa.string()),
                pa.field("x", pa.float32()),
                pa.field("y", pa.float32()),
                pa.field("w", pa.float32()),
                pa.field("h", pa.float32()),
            ]
        )
    ),
)
"""The column of boxes: upper left corner, width and height in pixels of the upright image."""

BoxFormat = Literal["xywh", "xyxy", "relative_xywh_center"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112


class Box(NamedTuple):
    """One box: upper left corner ``x``, ``y``, width and height; ``label`` is None where the data set names none."""

    label: str | None
    x: float
    y: float
    w: float
    h: float


def numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """``count`` numbers as floats (NaN and infinities pass); None where it is not that.

    >>> numbers([1, 2.5, 3, 4], 4), numbers([1, 2], 4), numbers("abcd", 4), numbers([True, 1, 2, 3], 4)
    ((1.0, 2.5, 3.0, 4.0), None, None, None)
    """
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if not all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
        return None
    try:
        return tuple(math.nan if value is None else float(value) for value in values)
    except OverflowError:  # a whole number beyond every float
        return None


def to_xywh(values: Sequence[float], form: BoxFormat, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Upper left corner, width and height in pixels of four numbers in one of the usual forms.

    >>> to_xywh([10, 20, 30, 60], "xyxy", (100, 100))
    (10, 20, 20, 40)
    >>> to_xywh([0.5, 0.5, 0.2, 0.4], "relative_xywh_center", (100, 50))
    (40.0, 15.0, 20.0, 20.0)
    """
    a, b, c, d = values
    if form == "xyxy":
        return a, b, c - a, d - b
    if form == "relative_xywh_center":
        width, height = size
        return (a - c / 2) * width, (b - d / 2) * height, c * width, d * height
    return a, b, c, d


def clip(boxes: Iterable[Box], size: tuple[int, int]) -> tuple[list[Box], int]:
    """The parts of the boxes that lie on an image of ``size``, and how many have none.

    Boxes without area, with NaN or wholly outside have none.

    >>> clip([Box("cat", -5, 10, 20, 200), Box("dog", 0, 0, 0, 9), Box("elk", 500, 0, 5, 5)], (100, 50))
    ([Box(label='cat', x=0.0, y=10.0, w=15.0, h=40.0)], 2)
    """
    width, height = size
    kept, dropped = [], 0
    for label, x, y, w, h in boxes:
        left, top = max(x, 0.0), max(y, 0.0)
        # A comparison with NaN is false, and so is that of a width below zero.
        if w > 0 and h > 0 and (right := min(x + w, width)) > left and (bottom := min(y + h, height)) > top:
            kept.append(Box(label, float(left), float(top), float(right - left), float(bottom - top)))
        else:
            dropped += 1
    return kept, dropped


def as_values(boxes: Iterable[Box]) -> list[dict[str, Any]]:
    """The value of the column ``boxes`` of one row."""
    return [box._asdict() for box in boxes]


def only_label(labels: Iterable[str | None]) -> str | None:
    """The label that all agree on; None where there are none or several.

    >>> only_label(["cat", "cat"]), only_label(["cat", "dog"]), only_label([])
    ('cat', None, None)
    """
    distinct = {label for label in labels if label is not None}
    return distinct.pop() if len(distinct) == 1 else None


def finished(item: Sample | Reject, finish: Callable[[Sample], Sample]) -> Sample | Reject:
    """A sample as ``finish`` completes it, or a Reject of what that raises as SampleError; a Reject stays one."""
    if isinstance(item, Reject):
        return item
    try:
        return finish(item)
    except SampleError as error:
        return Reject(item.uri, item.offset, error.reason, error.message, item.key, item.id)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image as it is displayed, turned as EXIF says, from its header.

    Raises SampleError with the reason not_an_image, or too_many_pixels where Pillow would not open it for its size.

    >>> from PIL import Image
    >>> buffer, exif = BytesIO(), Image.Exif()
    >>> exif[0x0112] = 6  # a quarter turn
    >>> Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    >>> image_size(buffer.getvalue())
    (20, 30)
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            turned = _orientation(image, data) >= 5
    except Image.DecompressionBombError as error:
        raise SampleError("too_many_pixels", f"the image's header promises too many pixels: {error}") from None
    except Exception as error:  # Pillow's readers raise every kind there is on damaged data
        raise SampleError("not_an_image", f"the image's size cannot be read: {type(error).__name__}: {error}") from None
    return (height, width) if turned else (width, height)


def _orientation(image: Any, data: bytes) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; only do so where there is some.
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing
        return 1
