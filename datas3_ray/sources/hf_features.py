"""What Hugging Face's feature types say about the columns of a table: images, class names, objects with boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from datas3_ray.sources.base import SampleError
from datas3_ray.sources.boxes import Box, BoxFormat, numbers, to_xywh

_CATEGORIES = ("category", "categories", "label", "labels", "category_id", "class")


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """The features that are written into a schema's metadata; empty where there are none.

    >>> told = {b"huggingface": b'{"info": {"features": {"x": {"dtype": "int64", "_type": "Value"}}}}'}
    >>> features_of(pa.schema([("x", pa.int64())], metadata=told))
    {'x': {'dtype': 'int64', '_type': 'Value'}}
    """
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return dict(features) if isinstance(features, dict) else {}


def image_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that are images, in their order."""
    return [name for name, feature in features.items() if _kind(feature) == "Image"]


def class_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that are one class each, in their order."""
    return [name for name, feature in features.items() if _kind(feature) == "ClassLabel" and _names(feature)]


def named(value: Any, feature: Any, place: str) -> Any:
    """A value with the names of its classes in the place of their numbers, however deep; -1 (unlabelled) is None.

    Raises SampleError with the reason bad_record for a number that has no name.

    >>> animal = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    >>> named([1, 0, -1, None], {"_type": "Sequence", "feature": animal}, "animals")
    ['dog', 'cat', None, None]
    >>> named({"kind": [1]}, {"_type": "Sequence", "feature": {"kind": animal}}, "objects")
    {'kind': ['dog']}
    """
    kind = _kind(feature)
    if kind == "ClassLabel" and not isinstance(value, list):
        return _name(value, _names(feature), place)
    inner = _inner(feature)
    if isinstance(value, list):
        return [named(entry, inner if inner is not None else feature, place) for entry in value]
    if isinstance(value, dict):
        # A sequence of objects is kept as an object of sequences.
        fields = inner if isinstance(inner, Mapping) and kind else feature
        if isinstance(fields, Mapping):
            return {key: named(entry, fields.get(key), f"{place}.{key}") for key, entry in value.items()}
    return value


def _kind(feature: Any) -> str:
    kind = feature.get("_type") if isinstance(feature, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _inner(feature: Any) -> Any:
    """The feature of a sequence's elements; None for what is no sequence."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature") if _kind(feature) in ("Sequence", "LargeList", "List") else None


def _names(feature: Mapping[str, Any]) -> Mapping[int, str]:
    """A class feature's names by number; a file's own header may have them as a list or by the text of the number."""
    names = feature.get("names")
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, Mapping) and all(str(number).isdecimal() for number in names):
        return {int(number): str(name) for number, name in names.items()}
    return {}


def _name(value: Any, names: Mapping[int, str], place: str) -> Any:
    if value is None or value == -1 or isinstance(value, str) or not names:
        return None if value == -1 else value
    if value not in names:
        raise SampleError("bad_record", f"column {place!r} has class {value!r}, and {len(names)} classes have names")
    return names[value]


def boxes_of(value: Any, form: BoxFormat, size: tuple[int, int], place: str) -> list[Box]:
    """The boxes of a row's objects, ``{bbox: [...], category: [...]}`` or a list of ``{bbox: ..., category: ...}``.

    Classes have their names already. Raises SampleError with the reason bad_record for anything else.

    >>> boxes_of({"bbox": [[1, 2, 3, 4]], "category": ["cat"]}, "xywh", (9, 9), "objects")
    [Box(label='cat', x=1.0, y=2.0, w=3.0, h=4.0)]
    """
    if value is None:
        return []
    if isinstance(value, dict):
        corners = value.get("bbox")
        classes = next((value[name] for name in _CATEGORIES if name in value), None)
    else:
        entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
        if not isinstance(value, list) or len(entries) < len(value):
            raise SampleError("bad_record", f"column {place!r} has no objects with boxes but {value!r}")
        corners = [entry.get("bbox") for entry in entries]
        classes = [next((entry[name] for name in _CATEGORIES if name in entry), None) for entry in entries]
    if not isinstance(corners, list) or (classes is not None and len(classes) != len(corners)):
        raise SampleError("bad_record", f"column {place!r} has not as many boxes (bbox) as categories")
    boxes = []
    for index, corner in enumerate(corners):
        values = numbers(corner, 4)
        if values is None:
            raise SampleError("bad_record", f"box {index} in column {place!r} is {corner!r}, not four numbers")
        label = classes[index] if classes is not None else None
        boxes.append(Box(None if label is None else str(label), *to_xywh(values, form, size)))
    return boxes
