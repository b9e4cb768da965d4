"""A COCO file of annotations: what it says about each of its images."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datas3_ray.errors import UsageError
from datas3_ray.sources.boxes import numbers

_SPLIT = re.compile(r"(?<![a-z])(train|valid|validation|val|test|dev)(?![a-z])", re.IGNORECASE)


@dataclass
class CocoImage:
    """One image: its entry, its boxes as ``[label, x, y, w, h]``, and the categories that were given without a box."""

    entry: dict[str, Any]
    boxes: list[list[Any]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    crowd: int = 0
    dropped: int = 0
    fault: str = ""


@dataclass
class CocoFile:
    """The images of one file in its order, and how many annotations belong to none of them, or to no category."""

    uri: str
    split: str
    images: list[CocoImage]
    unknown_image: int = 0
    unknown_category: int = 0


def parse_coco(text: bytes, uri: str, name: str) -> CocoFile:
    """The images of a COCO document; ``name`` is the file's without extension, which tells the split.

    Segmentations are left out, but for polygons that have no ``bbox``: those give the box around them. Boxes without
    area, or with NaN, and masks in other forms without ``bbox`` are counted as dropped, those of crowds as crowd; a
    ``bbox`` that is not four numbers is the image's fault. Raises UsageError for what is no such document, two images
    or categories with one id, and where no annotation belongs to an image and a category.
    """
    try:
        # NaN and infinities, which JSON does not have but some writers emit, are missing values.
        document = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"coco: {uri!r} is not JSON: {error}.") from None
    images = _entries(document, "images", uri)
    if not images:
        raise UsageError(f"coco: {uri!r} lists no images.")
    names = _names(_entries(document, "categories", uri), uri)
    by_id: dict[Any, CocoImage] = {}
    for entry in images:
        key = _id(entry, "id")
        if key is None:
            raise UsageError(f"coco: {uri!r}: the image {_short(entry)} has no id.")
        if key in by_id:
            one, other = by_id[key].entry.get("file_name"), entry.get("file_name")
            raise UsageError(f"coco: {uri!r}: two images have the id {key[1]!r}: {one!r} and {other!r}; correct one.")
        by_id[key] = CocoImage(entry)
    found = CocoFile(uri, split_of(name), list(by_id.values()))
    annotations = _entries(document, "annotations", uri)
    for annotation in annotations:
        image, label = by_id.get(_id(annotation, "image_id")), names.get(_id(annotation, "category_id"))
        if image is None:
            found.unknown_image += 1
        elif label is None:
            found.unknown_category += 1
        else:
            _take(annotation, label, image)
    _check_known(found, annotations, images)
    return found


def split_of(name: str) -> str:
    """The split that a file's name tells: the word for one in it, else the name.

    >>> split_of("instances_val2017"), split_of("train"), split_of("_annotations.coco"), split_of("train_and_val")
    ('val', 'train', '_annotations.coco', 'train_and_val')
    """
    words = {word.lower() for word in _SPLIT.findall(name)}
    return words.pop() if len(words) == 1 else name


def _entries(document: Any, name: str, uri: str) -> list[dict[str, Any]]:
    entries = document.get(name, []) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"coco: {uri!r} is no COCO file: it has no list {name!r} of objects.")
    return entries


def _names(categories: list[dict[str, Any]], uri: str) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for category in categories:
        key = _id(category, "id")
        given = category.get("name")
        name = str(given if given is not None else key[1] if key else "")
        if names.setdefault(key, name) != name:
            raise UsageError(
                f"coco: {uri!r}: two categories have the id {key and key[1]!r}: {names[key]!r} and {name!r}."
            )
    return names


def _id(entry: Mapping[str, Any], name: str) -> tuple[type, Any] | None:
    """An id that is text or a whole number, with its type: 1 and "1" are two, 1 and 1.0 one, true is none."""
    value = entry.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (type(value), value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _take(annotation: Mapping[str, Any], label: str, image: CocoImage) -> None:
    box = annotation.get("bbox") or _around(annotation.get("segmentation"))
    if annotation.get("iscrowd"):
        image.crowd += 1
    elif box is None:
        image.labels.add(label)  # the category is said of the whole image, as camera traps do
    elif (values := numbers(box, 4)) is None:
        image.fault = f"the bbox {_short(box)} of annotation {annotation.get('id')!r} is not four numbers"
    elif not all(map(math.isfinite, values)) or values[2] <= 0 or values[3] <= 0:
        image.dropped += 1
    else:
        image.boxes.append([label, *values])


def _around(segmentation: Any) -> list[Any] | None:
    """The box around polygons, without area for a mask in another form; None where there is no segmentation."""
    if not segmentation:
        return None
    lists = segmentation if isinstance(segmentation, list) else [segmentation]
    polygons = [numbers(one, len(one)) if isinstance(one, list) else None for one in lists]
    xs, ys = ([value for one in polygons for value in (one or ())[start::2]] for start in (0, 1))
    if None in polygons or len(xs) != len(ys) or not xs:
        return [None] * 4
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _check_known(found: CocoFile, annotations: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
    if not annotations or found.unknown_image + found.unknown_category < len(annotations):
        return
    first = annotations[0]
    why = Counter({"image_id": found.unknown_image, "category_id": found.unknown_category}).most_common(1)[0][0]
    there = f"images have ids such as {images[0].get('id')!r}" if why == "image_id" else "no category has that id"
    raise UsageError(
        f"coco: {found.uri!r}: none of its {len(annotations)} annotations belongs to an image and a category: the "
        f"first has {why} {first.get(why)!r}, and {there}; correct the file."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
