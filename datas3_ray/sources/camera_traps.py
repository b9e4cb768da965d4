"""What the two layouts of iWildCam say of their images: the CSV files of WILDS, and COCO Camera Traps JSON.

Also the two files beside them: where the cameras are, and what MegaDetector saw.
"""

from __future__ import annotations

import logging
import math
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.below import stem
from datas3_ray.sources.json_stream import read_list, read_pairs, read_value
from datas3_ray.sources.named_files import whole_number
from datas3_ray.sources.records import read_records
from datas3_ray.sources.remote import Options

logger = logging.getLogger(__name__)

NEVER = 99999
"""The ``y`` of a category that no image has."""
_METADATA = ("split", "location", "seq_id", "y", "category_id", "datetime", "filename")
_UNNAMED = ("", "Unnamed: 0")  # the row numbers that pandas writes


class Shot(NamedTuple):
    """One image, as either layout describes it; ``record`` is what has no place of its own here.

    ``name`` is the file below the folder of images. ``fault`` says what is wrong with the entry.
    """

    number: int | str
    name: Any
    split: str | None = None
    location: int | None = None
    sub_location: int | None = None
    datetime: str | None = None
    sequence: str | None = None
    category_id: int | None = None
    record: dict[str, Any] = {}
    fault: str = ""


def read_wilds(root: str, storage_options: Options) -> Iterator[Shot]:
    """The rows of ``metadata.csv`` below the folder ``root``, with the names of ``categories.csv``.

    A row whose category is not there, or has another ``y`` there, has a fault. Raises UsageError for a file that is
    missing or lacks a column, and where no row at all has its category.
    """
    uri = f"{root}/metadata.csv"
    categories = _wilds_categories(f"{root}/categories.csv", storage_options)
    checked = fits = 0
    fault = ""
    for number, row in read_records(uri, storage_options, "iwildcam"):
        if isinstance(row, SampleError):
            yield Shot(number, None, fault=row.message)
            continue
        if not checked:
            _check_columns(uri, row, _METADATA)
        checked += 1
        shot = _wilds_shot(number, uri, row, categories)
        fits += "label" in shot.record
        fault = fault or shot.fault
        yield shot
    if checked and not fits:
        raise UsageError(
            f"iwildcam: none of the {checked} rows of {uri!r} has a category of categories.csv: {fault}; take both "
            "files from one release."
        )


def _wilds_shot(number: int, uri: str, row: dict[str, Any], categories: Mapping[int, tuple[int, str]]) -> Shot:
    fault = ""
    numbers = []
    for name in ("location", "sub_location", "category_id", "y"):
        value = row.pop(name, None)
        try:
            numbers.append(whole_number(value))
        except ValueError:
            numbers.append(None)
            fault = fault or f"row {number} of {uri!r}: {name} = {value!r} is no whole number"
    location, sub_location, category_id, y = numbers
    split, name = row.pop("split", None), row.pop("filename", None)
    moment, sequence = row.pop("datetime", None), row.pop("seq_id", None)
    if split is None:
        fault = fault or f"row {number} of {uri!r} has no split"
    record = {key: value for key, value in row.items() if value is not None and key not in _UNNAMED}
    if y is not None:
        record["y"] = y
    if sub_location is not None:
        record["sub_location"] = sub_location
    known = categories.get(category_id) if category_id is not None else None
    if known is not None and known[0] == y:
        record["label"] = known[1]
    else:
        there = f"category {category_id} has y = {known[0]} there" if known else f"it has no category {category_id}"
        fault = fault or f"row {number} of {uri!r} does not agree with categories.csv: y = {y}, and {there}"
        category_id = None
    return Shot(number, name, split, location, sub_location, moment, sequence, category_id, record, fault)


def _wilds_categories(uri: str, storage_options: Options) -> dict[int, tuple[int, str]]:
    """``y`` and name of each category that occurs, by its id."""
    categories: dict[int, tuple[int, str]] = {}
    for number, row in read_records(uri, storage_options, "iwildcam"):
        if isinstance(row, SampleError):
            raise UsageError(f"iwildcam: {row.message}.")
        _check_columns(uri, row, ("y", "category_id", "name"))
        try:
            y, category_id = whole_number(row["y"]), whole_number(row["category_id"])
        except ValueError:
            y = category_id = None
        if y is None or category_id is None or row["name"] is None:
            raise UsageError(f"iwildcam: row {number} of {uri!r} has no y, category_id and name: {row}.")
        if y == NEVER:
            continue
        if categories.setdefault(category_id, (y, row["name"])) != (y, row["name"]):
            raise UsageError(f"iwildcam: {uri!r}: two categories have the category_id {category_id}; keep one.")
    return categories


def _check_columns(uri: str, row: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in row]
    if missing:
        there = ", ".join(name for name in row if name) or "none"
        raise UsageError(f"iwildcam: {uri!r} has no column {missing[0]!r}; its columns are {there}.")


def read_camera_traps(uri: str, split: str, storage_options: Options) -> Iterator[Shot]:
    """The images of a COCO Camera Traps file in its order; one without the list ``annotations`` gives no labels.

    The file is read as a stream, once for each of its lists. An image whose annotations name several categories has
    the list of their ids in its record instead of a label. Raises UsageError for a file that is none, and where no
    annotation is of an image in it; annotations of other images are counted in a warning.
    """
    names = _names(uri, storage_options)
    labels = _annotations(uri, storage_options)
    annotated = len(labels)
    several = without = 0
    first: Any = None
    for number, entry in enumerate(read_list(uri, "images", storage_options, "iwildcam"), start=1):
        if not isinstance(entry, dict):
            yield Shot(number, None, split, fault=f"image {number} of {uri!r} is no object but {entry!r:.80}")
            continue
        key = entry.get("id")
        first = key if first is None else first
        said = labels.pop(key, None) if isinstance(key, (str, int)) else None
        several += isinstance(said, list)
        without += said is None
        yield _trap_shot(number, uri, split, entry, said, names)
    if labels and len(labels) == annotated:
        raise UsageError(
            f"iwildcam: {uri!r}: none of its annotations is of an image that it lists: the first has image_id "
            f"{next(iter(labels))!r}, and images have ids such as {first!r}; correct the file."
        )
    for count, what in (
        (len(labels), "images have annotations and are not listed; those are left out"),
        (several, "images have several categories, and so no label"),
        (without if annotated else 0, "images have no annotation, and so no label"),
    ):
        if count:
            logger.warning("%s: %d %s", uri, count, what)


def _trap_shot(number: int, uri: str, split: str, entry: dict[str, Any], said: Any, names: Mapping[Any, str]) -> Shot:
    key = entry.get("id")
    where = f"the image {key!r} of {uri!r}"
    fault = ""
    record = {name: value for name, value in entry.items() if name not in _TYPED and value is not None}
    if key is not None:
        record["image_id"] = key
    numbers: dict[str, int | None] = {"location": None, "sub_location": None}
    for name in numbers:
        try:
            numbers[name] = whole_number(entry.get(name))
        except ValueError:
            fault = fault or f"{where}: {name} = {entry.get(name)!r:.80} is no whole number"
    if numbers["sub_location"] is not None:
        record["sub_location"] = numbers["sub_location"]
    category_id = None
    if isinstance(said, list):
        record["category_ids"] = said
    elif said is not None and said in names:
        category_id, record["label"] = said, names[said]
    elif said is not None:
        fault = fault or f"{where} is annotated with category {said!r:.80}, which the file does not list"
    moment, sequence = entry.get("datetime"), entry.get("seq_id")
    return Shot(
        number if key is None else str(key),
        entry.get("file_name"),
        split,
        numbers["location"],
        numbers["sub_location"],
        moment if isinstance(moment, str) else None,
        str(sequence) if isinstance(sequence, (str, int)) else None,
        category_id,
        record,
        fault,
    )


_TYPED = ("id", "file_name", "location", "sub_location", "datetime", "seq_id")


def _names(uri: str, storage_options: Options) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for entry in read_list(uri, "categories", storage_options, "iwildcam"):
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if isinstance(key, bool) or not isinstance(key, int) or not isinstance(name, str):
            raise UsageError(f"iwildcam: {uri!r}: the category {entry!r:.80} has no whole number as id and no name.")
        if names.setdefault(key, name) != name:
            raise UsageError(f"iwildcam: {uri!r}: two categories have the id {key}: {names[key]!r} and {name!r}.")
    return names


def _annotations(uri: str, storage_options: Options) -> dict[Any, Any]:
    """The category of each image by its id, or the sorted list where there are several."""
    found: dict[Any, Any] = {}
    for entry in read_list(uri, "annotations", storage_options, "iwildcam", optional=True):
        key, category = (entry.get("image_id"), entry.get("category_id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, (str, int)) or isinstance(category, bool) or not isinstance(category, int):
            raise UsageError(
                f"iwildcam: {uri!r}: the annotation {entry!r:.80} has no image_id, or no whole number as category_id."
            )
        known = found.setdefault(key, category)
        if known != category:
            found[key] = sorted({category, *(known if isinstance(known, list) else [known])})
    return found


def read_gps(uri: str, storage_options: Options) -> dict[str, tuple[float, float]]:
    """Latitude and longitude in degrees by the text of a location's or sub-location's id.

    An entry that is null, or has null for both, is passed over. Raises UsageError for one that is no place on earth.
    """
    places: dict[str, tuple[float, float]] = {}
    for key, value in read_pairs(uri, storage_options, "iwildcam: gps"):
        pair = (value.get("latitude"), value.get("longitude")) if isinstance(value, dict) else value
        if pair is None or pair == (None, None):
            continue
        if not isinstance(pair, tuple) or not _degrees(pair[0], 90) or not _degrees(pair[1], 180):
            raise UsageError(
                f"iwildcam: gps: {uri!r}: the location {key!r} has {value!r:.80}, which is no latitude (-90 to 90) and "
                "longitude (-180 to 180) in degrees; correct it."
            )
        places[key] = (float(pair[0]), float(pair[1]))
    return places


def _degrees(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -most <= value <= most


def read_animals(uri: str, storage_options: Options) -> dict[str, float | None]:
    """The highest confidence with which MegaDetector saw an animal, by the image's id; None where it saw none.

    An entry has the image's ``id`` (2020, 2021), or its ``file`` (2022), whose name is the id. Entries without
    detections, as failures have, say nothing. Raises UsageError for a file that is none of MegaDetector's; entries and
    detections that are not as they should be are counted in a warning.
    """
    what = "iwildcam: detections"
    categories = read_value(uri, "detection_categories", storage_options, what)
    named = categories.items() if isinstance(categories, dict) else ()
    animal = {str(key) for key, name in named if name == "animal"}
    if not animal:
        raise UsageError(f"{what}: {uri!r} names no category 'animal' in detection_categories; is it MegaDetector's?")
    found: dict[str, float | None] = {}
    odd = 0
    for entry in read_list(uri, "images", storage_options, what):
        key = _detected(entry)
        seen = entry.get("detections") if key is not None else None
        if key is None or not isinstance(seen, (list, type(None))):
            odd += 1
            continue
        best = found.setdefault(key, None)
        for detection in seen or ():
            confidence = detection.get("conf") if isinstance(detection, dict) else None
            if (
                isinstance(confidence, bool)
                or not isinstance(confidence, (int, float))
                or not math.isfinite(confidence)
            ):
                odd += 1
            elif str(detection.get("category")) in animal and (best is None or confidence > best):
                best = found[key] = float(confidence)
    if odd:
        logger.warning("%s: %d entries or detections are left out: they have no file or no confidence", uri, odd)
    return found


def _detected(entry: Any) -> str | None:
    """The id of the image that an entry is of."""
    if isinstance(entry, dict):
        key, file = entry.get("id"), entry.get("file")
        if isinstance(key, (str, int)) and not isinstance(key, bool):
            return str(key)
        if isinstance(file, str):
            return stem(posixpath.basename(file))
    return None
