"""Auto Arborist as image files that somebody took out of the release, and the CSVs that say which tree each shows."""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, Field

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.auto_arborist import Trees, city_name
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below
from datas3_ray.sources.files import BAD, is_image, mark, read_items
from datas3_ray.sources.records import read_records
from datas3_ray.sources.storage import File, Pattern, Patterns, find_files, is_remote, list_folder

logger = logging.getLogger(__name__)

_PARTS = ("city", "split", "idx", "genus")
_OFFICIAL = re.compile(r"(?P<city>.+?)[ _-]?Trees(?:[ _-](?P<split>[A-Za-z0-9]+))?\.csv(?:\.gz)?")
_SPLIT = re.compile(r"(?:.*[_-])?(?P<split>train|test|val|query)[0-9_-]*\.csv(?:\.gz)?")
_PATHS = {"streetlevel": ("street_level", "streetlevel"), "aerial": ("aerial",)}
_USED = {"idx", "genus", "label", "city", "split", "taxonomy_id", "capturetime"}
_LATITUDES, _LONGITUDES = ("shape_lat", "latitude"), ("shape_lng", "longitude")


def _template(text: str) -> str:
    """A template of file names as it was given; ValueError says what is wrong with it."""
    names = re.findall(r"\{([^{}]*)\}", text)
    unknown = [name for name in names if name not in _PARTS]
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is none of its parts, which are {{{'}, {'.join(_PARTS)}}} and *")
    if names.count("idx") != 1 or len(set(names)) < len(names):
        raise ValueError("it has to have {idx}, the tree's IDX in the CSV, and no part twice")
    return text


class AutoArboristImages(Trees, FileSource):
    """Image files below ``images`` (a folder or a pattern), told apart by the CSVs ``trees``.

    A CSV has the release's columns (``IDX,SHAPE_LNG,SHAPE_LAT,GENUS,TAXONOMY_ID``), its city and split in its name, and
    an image's path ends as ``file`` says, in which ``*`` stands for anything; or it has the columns ``uid``, ``genus``,
    ``city`` and ``street_level`` (or ``aerial``), the path of the image. Paths count from the data set's folder.

    >>> AutoArboristImages(auto_arborist="/data/trees", images="photos").describe()[:63]
    'auto_arborist /data/trees (images, streetlevel, all cities); co'
    """

    name: ClassVar[str] = "auto_arborist"

    images: Pattern = "."
    trees: Patterns = ("tree_locations/*Trees*.csv",)
    file: Annotated[Pattern, AfterValidator(_template)] = "{city}/{split}/{idx}.jpg"
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> AutoArboristImages:
        """The source of a recipe's mapping ``{auto_arborist: folder, images: folder, trees: CSVs, ...}``."""
        return checked(cls, spec, "source")

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return self.described("images")

    def items(self) -> list[Item]:
        """Every tree of the CSVs that is asked for, sorted by id; one without an image is read as a Reject.

        A city's whole CSV beside those of its splits adds the trees that these lack. Raises UsageError for files,
        folders and columns that are missing, a city or split that is not there, an image that two trees would have,
        and where no tree has an image. Images of no tree are counted in a warning.
        """
        return _Join(self).items()

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a group in their order, and a Reject in the place of each that cannot be a sample."""
        yield from read_items(shard, self.id_of("").rstrip("/"), lambda _: self.storage_options, self.max_bytes)

    def place(self, path: str) -> str:
        """A path of the recipe: counted from the data set's folder, unless it says where it is."""
        if is_remote(path) or path.startswith(("/", "~")):
            return path
        inner = posixpath.normpath(path)
        return self.auto_arborist if inner == "." else f"{self.auto_arborist.rstrip('/')}/{inner}"


class _Table(NamedTuple):
    """A CSV, with the city and the split that its name says."""

    uri: str
    name: str
    city: str | None
    split: str | None


class _File(NamedTuple):
    """An image, whether or not it is there; without a ``uri`` where none is known."""

    uri: str
    file: File | None
    fault: SampleError | None


class _Tree(NamedTuple):
    """A row that could be read."""

    key: str
    uri: str
    file: File | None
    fault: SampleError | None
    record: dict[str, Any]
    extra: dict[str, Any]


class _Images:
    """The image files, by their paths and by the city and tree that these name."""

    def __init__(self, source: AutoArboristImages) -> None:
        given = source.place(source.images)
        if any(sign in source.images for sign in "*?[{"):
            found = find_files([given], source.storage_options, "auto_arborist: images")
            self.folder = source.root()
        else:
            found = list_folder(given, source.storage_options, "auto_arborist: images")
            self.folder = absolute(given, source.storage_options)
        self.shape = source.file
        self._with_city = "{city}" in source.file
        self._pattern = re.compile("(?:.*/)?" + "".join(map(_as_regex, re.split(r"(\{\w+\}|\*)", source.file))))
        self.by_path = {file.uri: file for file in found if is_image(file.uri)}
        self._by_tree: dict[tuple[str, str], list[str]] | None = None
        self.taken: dict[str, str] = {}

    def of(self, city: str, idx: str) -> list[File]:
        """The images whose names say that they are of this tree."""
        if self._by_tree is None:
            self._by_tree = {}
            for uri in self.by_path:
                found = self._pattern.fullmatch(uri)
                if found:
                    key = (city_name(found["city"]) if self._with_city else "", found["idx"])
                    self._by_tree.setdefault(key, []).append(uri)
        return [self.by_path[uri] for uri in self._by_tree.get((city if self._with_city else "", idx), ())]

    def take(self, uri: str, tree: str) -> None:
        """Note whose image a file is. Raises UsageError where it is another tree's too."""
        other = self.taken.setdefault(uri, tree)
        if other != tree:
            raise UsageError(
                f"auto_arborist: the trees {other!r} and {tree!r} both have the image {uri!r}; put {{city}} into "
                "`file:`, or correct the CSVs."
            )


def _as_regex(part: str) -> str:
    if part == "*":
        return "[^/]*"
    return f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part)


class _Join:
    """One pass over the CSVs: rows to items."""

    def __init__(self, source: AutoArboristImages) -> None:
        self._source = source
        self._images = _Images(source)
        self._prefix = source.prefix()
        self._items: dict[str, Item] = {}
        self._first: dict[str, _Table] = {}
        self._cities: set[str] = set()
        self._splits: set[str] = set()

    def items(self) -> list[Item]:
        source = self._source
        patterns = [source.place(pattern) for pattern in source.trees]
        tables = [_table(file.uri) for file in find_files(patterns, source.storage_options, "auto_arborist: trees")]
        tables.sort(key=lambda table: (table.split is None, table.uri))  # a city's whole CSV behind those of its splits
        for table in tables:
            self._read(table)
        source.check_chosen(self._cities, self._splits)
        if not self._images.taken:
            raise UsageError(
                f"auto_arborist: none of the trees, {len(self._items)} of which are asked for, has an image below "
                f"{self._images.folder!r}, where {len(self._images.by_path)} images are; correct `images:`, or "
                f"`file:`, which is {self._images.shape!r}."
            )
        spare = len(self._images.by_path) - len(self._images.taken)
        if spare:
            logger.warning(
                "auto_arborist: %d images below %s are left out: they are of no tree in the CSVs",
                spare,
                self._images.folder,
            )
        return [self._items[id] for id in sorted(self._items)]

    def _read(self, table: _Table) -> None:
        names: set[str] = set()
        for number, row in read_records(table.uri, self._source.storage_options, "auto_arborist"):
            key = f"{table.name}/row-{number}"
            if isinstance(row, SampleError):
                self._add(_bad(key, table, row), table)
                continue
            lowered = {name.lower(): None if value is None else str(value) for name, value in row.items()}
            if not names:
                names = set(lowered)
                self._check(table, names)
            try:
                for tree in self._trees(table, number, lowered):
                    self._add(tree, table)
            except SampleError as error:
                self._add(_bad(key, table, error), table)

    def _check(self, table: _Table, names: set[str]) -> None:
        """Raises UsageError where a CSV lacks a column that its rows cannot do without."""
        missing = [" or ".join(some) for some in (("idx", "uid"), ("genus",)) if not names.intersection(some)]
        if table.city is None and "city" not in names:
            missing.append("city")
        view = self._source.view
        others = [name for kind, some in _PATHS.items() if kind != view for name in some if name in names]
        if others and not names.intersection(_PATHS[view]):
            missing.append(" or ".join(_PATHS[view]))
        if missing:
            raise UsageError(
                f"auto_arborist: trees: {table.uri!r} has no column {missing[0]} (view: {view}), but "
                f"{', '.join(sorted(names))}; correct `trees:`."
            )

    def _trees(self, table: _Table, number: int, row: dict[str, str | None]) -> Iterator[_Tree]:
        """The tree of a row, and again with a fault for each further image that it has.

        Nothing where the recipe does not ask for it, or the CSV of a split had it before that of the whole city.
        """
        source = self._source
        where = f"line {number} of {table.uri!r}"
        idx = (row.get("idx") or row.get("uid") or "").strip()
        if not idx:
            raise SampleError("bad_record", f"{where} has no IDX")
        city = city_name(row.get("city") or table.city or "")
        if not city:
            raise SampleError("bad_record", f"{where} has no city")
        split = row.get("split") or table.split
        self._cities.add(city)
        self._splits.update([split] if split else [])
        key = f"{city}/{idx}"
        paths = [name for name in _PATHS[source.view] if name in row]
        files = self._named(row[paths[0]], where) if paths else self._found(key, city, idx)
        before = self._first.get(key)
        if not source.chosen(city, split) or (split is None and before is not None and before.split is not None):
            return
        extra = {
            "city": city,
            "split": split,
            "latitude": _number(row, _LATITUDES, where),
            "longitude": _number(row, _LONGITUDES, where),
            "taxonomy_id": source.taxonomy_id(_whole(row.get("taxonomy_id"), where)),
            "captured": row.get("capturetime") if source.view == "streetlevel" else None,
        }
        genus = (row.get("genus") or "").strip().lower()
        known = {"label": genus or None, "idx": idx, "class": row.get("label"), "tree_city": row.get("city")}
        used = {*_USED, *_LATITUDES, *_LONGITUDES, *paths}
        known |= {name: value for name, value in row.items() if name not in used}
        record = {name: value for name, value in known.items() if value is not None}
        for uri, file, fault in files:
            yield _Tree(key, uri or f"{table.uri}#{idx}", file, fault, record, extra)

    def _found(self, key: str, city: str, idx: str) -> list[_File]:
        """The images of a tree by their names: one, and a fault for each more of them."""
        files = self._images.of(city, idx)
        for file in files:
            self._images.take(file.uri, key)
        if not files:
            message = f"no file below {self._images.folder!r} is the image of {key!r} ({self._images.shape})"
            return [_File("", None, SampleError("unreadable_file", message))]
        again = SampleError("duplicate_key", f"the tree {key!r} has another image, {files[0].uri!r}")
        return [_File(file.uri, file, again if at else None) for at, file in enumerate(files)]

    def _named(self, path: str | None, where: str) -> list[_File]:
        """The image that a row names, whether or not it is there."""
        try:
            if not path:
                raise SampleError("no_image", f"{where} names no {self._source.view} image")
            uri = below(self._images.folder, path)
        except SampleError as error:
            return [_File("", None, error)]
        file = self._images.by_path.get(uri)
        if file is not None:
            self._images.taken.setdefault(uri, uri)  # several rows may name one image
        return [_File(uri, file, None)]

    def _add(self, tree: _Tree, table: _Table) -> None:
        fault, key, count = tree.fault, tree.key, 2
        if key in self._first:
            if fault is None or fault.reason != "duplicate_key":
                fault = SampleError("duplicate_key", f"the tree {key!r} is in {self._first[key].uri!r} before")
            while f"{key}#{count}" in self._first:
                count += 1
            key = f"{key}#{count}"
        self._first[key] = table
        members: dict[str, Any] = {"json": tree.record, "extra": tree.extra}
        if fault is not None:
            members = {BAD: [fault.reason, fault.message]}
        text = json.dumps(members, separators=(",", ":"), ensure_ascii=False)
        written = tree.file.fingerprint if tree.file else "missing"
        id = f"{self._prefix}/{key}" if self._prefix else key
        size = tree.file.size if tree.file else 0
        self._items[id] = Item(id, tree.uri, size, mark(written, text), text)


def _table(uri: str) -> _Table:
    name = uri.rpartition("/")[2]
    found = _OFFICIAL.fullmatch(name)
    if found:
        return _Table(uri, name, found["city"], found["split"])
    split = _SPLIT.fullmatch(name)
    return _Table(uri, name, None, split["split"] if split else None)


def _bad(key: str, table: _Table, error: SampleError) -> _Tree:
    return _Tree(key, table.uri, None, error, {}, {})


def _number(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> float | None:
    text = next((row[name] for name in names if row.get(name)), None)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise SampleError("bad_record", f"{where}: {text!r} is no place on Earth") from None
    if not abs(value) <= 360:  # NaN, too
        raise SampleError("bad_record", f"{where}: {text!r} is no place on Earth")
    return value


def _whole(text: str | None, where: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"-?[0-9]{1,18}(\.0)?", text):
        raise SampleError("bad_record", f"{where}: the TAXONOMY_ID {text!r} is no whole number")
    return int(text.removesuffix(".0"))
