"""The text files of boxes that ultralytics reads, and its data.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.boxes import Box, clip, to_xywh


def parse_labels(text: str, names: Mapping[int, str], size: tuple[int, int], where: str) -> tuple[list[Box], int]:
    """The boxes of a label file, clipped to the image, and how many had no area on it or came twice.

    A line is ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon, which becomes the box around it;
    all relative to the image's ``size``. Raises SampleError with the reason bad_record and the line's number.

    >>> parse_labels("0 0.5 0.5 0.2 0.4", {0: "cat"}, (100, 50), "1.txt")
    ([Box(label='cat', x=40.0, y=15.0, w=20.0, h=20.0)], 0)
    >>> parse_labels("0 0.5 0.5 x 0.4", {0: "cat"}, (100, 50), "1.txt")
    Traceback (most recent call last):
    datas3_ray.sources.base.SampleError: line 1 of '1.txt': 'x' is not a number
    """
    boxes: list[Box] = []
    seen: set[tuple[float, ...]] = set()
    twice = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        values = _numbers(words, f"line {number} of {where!r}")
        if values in seen:
            twice += 1
            continue
        seen.add(values)
        boxes.append(_box(values, names, size, f"line {number} of {where!r}"))
    kept, dropped = clip(boxes, size)
    return kept, dropped + twice


def _numbers(words: list[str], place: str) -> tuple[float, ...]:
    values = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in word:
            raise SampleError("bad_record", f"{place}: {word[:40]!r} is not a number")
        values.append(value)
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise SampleError(
            "bad_record", f"{place} has {len(values)} numbers; it takes 5, or a class and the points of a polygon"
        )
    return tuple(values)


def _box(values: tuple[float, ...], names: Mapping[int, str], size: tuple[int, int], place: str) -> Box:
    kind, *rest = values
    if kind not in names:  # 1.0 is 1
        raise SampleError("bad_record", f"{place}: class {kind:g} has no name; {len(names)} classes have one")
    if len(rest) == 4:
        return Box(names[int(kind)], *to_xywh(rest, "relative_xywh_center", size))
    xs, ys = [x * size[0] for x in rest[::2]], [y * size[1] for y in rest[1::2]]
    return Box(names[int(kind)], min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def parse_data_yaml(text: bytes, uri: str) -> tuple[dict[str, Any], dict[int, str]]:
    """What a data.yaml holds, and its classes' names by number. Raises UsageError for what is no such file."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"yolo: {uri!r} is not YAML: {' '.join(str(error).split())}.") from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(number) is int and number >= 0 for number in names):
        raise UsageError(f"yolo: {uri!r} has no `names:`, a list of classes or a mapping of numbers to them.")
    odd = next((name for name in names.values() if name is None or isinstance(name, bool)), "")
    if odd != "":
        raise UsageError(
            f"yolo: {uri!r}: names: a class is {odd!r}, which is what YAML makes of words such as yes, no, on, off and "
            "null; put it in quotes."
        )
    return document, {number: str(name) for number, name in names.items()}
