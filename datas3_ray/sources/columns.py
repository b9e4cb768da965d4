"""A recipe's ``columns:`` mapping: which value of a sample becomes which typed column of the image table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.sources.base import Sample, SampleError
from datas3_ray.sources.caption_template import CaptionTemplate
from datas3_ray.texts import finite

RESERVED = ("id", "uri", "offset", "length", "width", "height", "meta", "image")
"""Names the lake gives its own columns; so does anything that begins with an underscore."""

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "strings": pa.list_(pa.string()),
    "ints": pa.list_(pa.int64()),
    "floats": pa.list_(pa.float64()),
}
_FIXED = {"caption": "string", "label": "string", "target": "float"}
_EMPTIED = ("caption", "label", "meta")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_INT = re.compile(r"[+-]?[0-9]+")
_FRACTION = re.compile(r"\.([0-9]+)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class BadValue(SampleError):
    """A value does not fit the type of its column; the message names both."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_value", message)


@dataclass(frozen=True)
class Column:
    """One column: its name, its type, and where its value is.

    That is a place in the sample's record (``json.a.b`` or ``row.a.b``, which are the same), ``txt``, ``cls``, ``key``
    or ``shard``.
    """

    name: str
    source: str
    type: str = "string"

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, TYPES[self.type])


@dataclass(frozen=True)
class Columns:
    """The columns of a source; ``Columns.parse`` makes them from a recipe's mapping.

    ``caption`` is ``json.caption``, else the ``.txt`` member; ``label`` is ``json.label``, else the ``.cls`` member,
    unless the mapping says otherwise. What the record holds beyond the mapped keys goes to ``meta``, without the keys
    in ``dropped``, which are those that the mapping gives as null. Of ``caption``, ``label`` and ``meta`` themselves,
    null leaves the column empty.

    >>> columns = Columns.parse({"region": "json.where.region", "width_cm": {"from": "json.w", "type": "float"}})
    >>> [field.name for field in columns.fields()]
    ['caption', 'label', 'region', 'width_cm', 'meta']
    >>> sample = Sample("s/1", "1", "s.tar", 512, 3, b"...", {"json": {"where": {"region": "N"}, "w": "2.5", "x": 1}})
    >>> columns.extract(sample)
    {'caption': None, 'label': None, 'region': 'N', 'width_cm': 2.5, 'meta': '{"x":1}'}
    """

    mapped: tuple[Column, ...] = ()
    dropped: tuple[str, ...] = ()
    template: CaptionTemplate | None = None
    """Of what the caption is made where it is not found in the sample."""

    @classmethod
    def parse(cls, mapping: Mapping[str, Any] | Columns | None) -> Columns:
        """The columns of a recipe's mapping: ``{name: source}``, ``{name: {from: source, type: type}}``, or null.

        ``{caption: {template: "a photo of {label}"}}`` makes captions from other columns.

        >>> columns = Columns.parse({"site": "row.where.site", "email": None})
        >>> columns.mapped, columns.dropped
        ((Column(name='site', source='row.where.site', type='string'),), ('email',))

        Raises UsageError for a reserved or malformed name, an unknown source or type, or two names that differ only
        in case.
        """
        if isinstance(mapping, Columns):
            return mapping
        if mapping is None:
            return cls()
        if not isinstance(mapping, Mapping):
            raise UsageError(f"columns: expected a mapping such as {{label: json.label}}, got {mapping!r}.")
        columns: dict[str, Column] = {}
        dropped = []
        template = None
        for name, entry in mapping.items():
            if name == "caption" and isinstance(entry, Mapping) and "template" in entry:
                template = _parse_template(entry)
                continue
            if entry is None:
                dropped.append(_parse_dropped(name))
                continue
            column = _parse_column(name, entry)
            twin = columns.setdefault(column.name.lower(), column)
            if twin is not column:
                raise UsageError(f"columns: {twin.name!r} and {column.name!r} differ only in case; rename one.")
        return cls(tuple(columns.values()), tuple(dropped), template)

    def fields_by_name(self) -> dict[str, pa.Field]:
        """The Arrow fields under their names, in table order."""
        return {field.name: field for field in self.fields()}

    def fields(self) -> list[pa.Field]:
        """The Arrow fields, in table order: caption, label, the mapped columns as written, meta."""
        given = {column.name: column.field for column in self.mapped}
        first = [given.pop(name, pa.field(name, pa.string())) for name in ("caption", "label")]
        return [*first, *given.values(), pa.field("meta", pa.string())]

    def check(self, names: Collection[str], where: str) -> None:
        """Raises UsageError where a column is mapped to one that is not among the ``names`` of a table's columns."""
        for column in self.mapped:
            path = _path(column.source)
            if path and path[0] not in names:
                known = ", ".join(names) or "none"
                hint = did_you_mean(path[0], names)
                raise UsageError(f"columns: {column.name}: {where} has no column {path[0]!r}; it has {known}.{hint}")

    def extract(self, sample: Sample) -> dict[str, Any]:
        """The values of one sample, a key for every field; missing and null values are None.

        Raises BadValue where a value does not fit the type of its column.
        """
        values: dict[str, Any] = {"caption": None, "label": None}
        given = set()
        for column in self.mapped:
            values[column.name] = _convert(column, _lookup(sample, column.source))
            given.add(column.name)
        used = [path for column in self.mapped if (path := _path(column.source))]
        used += [name.split(".") for name in self.dropped]
        for name, member in (("caption", "txt"), ("label", "cls")):
            if name not in given and name not in self.dropped:
                used.append([name])
                column = Column(name, f"json.{name}")
                values[name] = _convert(column, _lookup(sample, column.source))
                if values[name] is None:
                    values[name] = _convert(column, _lookup(sample, member))
        if self.template is not None:
            values["caption"] = _render(self.template, {**values, **sample.extra})
        values["meta"] = None if "meta" in self.dropped else _meta(sample.members.get("json"), used)
        return values


def _parse_template(entry: Mapping[str, Any]) -> CaptionTemplate:
    if len(entry) > 1 or not isinstance(entry["template"], str):
        usual = "{template: 'a photo of {label}'}"
        raise UsageError(f"columns: caption: a template is one text, such as {usual}, got {dict(entry)!r}.")
    return CaptionTemplate(entry["template"])


def _render(template: CaptionTemplate, values: Mapping[str, Any]) -> str | None:
    try:
        return template.render(values)
    except ValueError as error:
        raise BadValue(f"the caption's template {template.text!r}: {error}") from None


def _parse_dropped(name: Any) -> str:
    if not isinstance(name, str) or not all(name.split(".")):
        raise UsageError(f"columns: {name!r}: null drops a key of the record, such as {{email: null}}; this is no key.")
    if name.lower() in _EMPTIED and name not in _EMPTIED:
        raise UsageError(f"columns: write {name.lower()!r} instead of {name!r}.")
    return name


def _parse_column(name: Any, entry: Any) -> Column:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        starts = isinstance(name, str) and name.startswith("_")
        why = "names that begin with an underscore are the lake's own" if starts else "use letters, digits and _"
        raise UsageError(f"columns: {name!r} cannot be a column name: {why}; choose another.")
    if name.lower() in RESERVED:
        raise UsageError(f"columns: {name!r} is a column the lake fills itself; choose another name.")
    if name.lower() in _FIXED and name not in _FIXED:
        raise UsageError(f"columns: write {name.lower()!r} instead of {name!r}.")
    fixed = _FIXED.get(name)
    kind = fixed or "string"
    source = entry
    if isinstance(entry, Mapping):
        for key in entry:
            if key not in ("from", "type"):
                hint = did_you_mean(str(key), ["from", "type"])
                raise UsageError(f"columns: {name}: unknown key {key!r}; it takes from and type.{hint}")
        if "from" not in entry:
            raise UsageError(f"columns: {name}: the key 'from' is missing, such as {{from: json.{name}, type: float}}.")
        source, kind = entry["from"], entry.get("type", kind)
    if kind not in TYPES:
        hint = did_you_mean(str(kind), TYPES)
        raise UsageError(f"columns: {name}: unknown type {kind!r}; it is one of {', '.join(TYPES)}.{hint}")
    if fixed is not None and kind != fixed:
        raise UsageError(f"columns: {name} is always a {fixed}, not {kind!r}; map the value to another name.")
    return Column(name, _parse_place(name, source), kind)


def _parse_place(name: str, source: Any) -> str:
    places = ("json.KEY", "row.KEY", "txt", "cls", "key", "shard")
    if isinstance(source, str) and (source in ("txt", "cls", "key", "shard") or all(_path(source) or [""])):
        return source
    hint = did_you_mean(str(source), places)
    raise UsageError(f"columns: {name}: unknown source {source!r}; it is one of {', '.join(places)}.{hint}")


def _path(source: str) -> list[str]:
    """The keys that lead to a place in the record; none for a place elsewhere."""
    root, *keys = source.split(".")
    return keys if root in ("json", "row") else []


def _lookup(sample: Sample, source: str) -> Any:
    if source == "key":
        return sample.key
    if source == "shard":
        return sample.id[: -len(sample.key) - 1] or None
    if source in ("txt", "cls"):
        text = sample.members.get(source)
        return (text.strip() or None) if text is not None else None
    value: Any = sample.members.get("json")
    for part in _path(source):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _convert(column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.type != "string" and isinstance(value, str):
        value = value.strip()
        if not value:
            return None
    try:
        return _CONVERT[column.type](value)
    except (ValueError, OverflowError) as error:
        message = f"column {column.name!r} ({column.type}) from {column.source}: {_short(value)} {error}"
        raise BadValue(message) from None


def _string(value: Any) -> str:
    return _clean(value if isinstance(value, str) else _json(value))


def _int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and _INT.fullmatch(value):
        value = int(value[:25])  # longer than any int64, and short enough never to be slow
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number")
    if not -(2**63) <= value < 2**63:
        raise ValueError("does not fit into 64 bits")
    return value


def _float(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError("is not finite")
    return value


def _bool(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else value
    if word in (True, "true", "1"):
        return True
    if word in (False, "false", "0"):
        return False
    raise ValueError("is neither true nor false")


def _timestamp(value: Any) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is neither an ISO 8601 time nor seconds since 1970")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        # Python 3.10 reads neither Z nor fractions of other than three or six digits.
        plain = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", re.sub(r"[zZ]$", "+00:00", value))
        try:
            moment = datetime.fromisoformat(plain)
        except ValueError:
            raise ValueError("is neither an ISO 8601 time nor seconds since 1970") from None
        return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    try:
        return _EPOCH + timedelta(seconds=_float(value))
    except OverflowError:
        raise ValueError("is beyond the year 9999; times are in seconds since 1970") from None


def _list_of(convert: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def convert_all(values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise ValueError("is not a list")
        return [None if value is None else convert(value) for value in values]

    return convert_all


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "timestamp": _timestamp,
    "strings": _list_of(_string),
    "ints": _list_of(_int),
    "floats": _list_of(_float),
}


def _meta(document: dict[str, Any] | None, used: list[list[str]]) -> str | None:
    """The record without the values at the paths in ``used``, compact and with sorted keys; None for an empty one."""
    if not document:
        return None
    rest = document
    for path in used:
        rest = _without(rest, path)
    return _clean(_json(rest)) if rest else None


def _without(value: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """A copy of ``value`` lacking what is at ``path``, and lacking objects that become empty by it."""
    head, tail = path[0], path[1:]
    if head not in value:
        return value
    copy = dict(value)
    inner = copy.pop(head)
    if tail:
        left = _without(inner, tail) if isinstance(inner, dict) else inner
        if left or left is inner:
            copy[head] = left
    return copy


def _json(value: Any) -> str:
    try:
        try:
            return _dumps(value)
        except ValueError:  # 1e999 is a number in JSON, infinity in Python, and none when it is written again
            return _dumps(finite(value))
    except RecursionError:
        raise BadValue("the .json member is nested too deeply to be kept") from None


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _clean(text: str) -> str:
    r"""Text that Arrow can hold: a lone half of a surrogate pair, which JSON's ``\ud83d`` can give, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
