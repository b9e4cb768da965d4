"""GeoDE: objects of everyday life in six regions of the world, each image with its country."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import yaml
from pydantic import Field

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below, folder_of, last_folders
from datas3_ray.sources.files import is_image, read_items
from datas3_ray.sources.named_files import NamedFile, NamedFiles
from datas3_ray.sources.records import read_records
from datas3_ray.sources.storage import File, Files, Options, Pattern, Root, iter_folder, read_file
from datas3_ray.texts import load_yaml

logger = logging.getLogger(__name__)

PLACES = Path(__file__).with_name("geode_places.yaml")
"""The lists of objects that are found indoors and outdoors, where no others are named."""
_INDEX = "index.csv"
_FIELDS = [pa.field("region", pa.string()), pa.field("country", pa.string()), pa.field("place", pa.string())]
# The columns, and the names that the authors' own earlier tables have for them.
_COLUMNS = {
    "file": ("file_path", "file_name"),
    "object": ("object", "script_name"),
    "country": ("ip_country", "country"),
    "region": ("region",),
}
_MAX_TEXT = 1 << 20


class GeoDE(Files, FileSource):
    """The folder of GeoDE: ``index.csv``, and the images that it names below ``images``.

    A folder of several downloads, by region or country, has these in each of its folders. ``index`` names another
    table of the same columns for the images below the folder. The label is the object; ``place`` is ``indoor`` or
    ``outdoor`` by the lists of objects in the YAML file ``places``, of which the package has one. Ids are
    ``FOLDER/PATH``, the path below ``images`` without its extension.

    >>> GeoDE(geode="s3://bucket/geode").describe()
    'geode s3://bucket/geode; columns caption, label, meta, region, country, place'
    """

    name: ClassVar[str] = "geode"

    geode: Root
    index: Pattern | None = None
    places: Pattern | None = None
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> GeoDE:
        """The source of a recipe's mapping ``{geode: folder, places: file, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    def own_fields(self) -> list[pa.Field]:
        """The region and country that an image comes from, and the kind of place that its object is found in."""
        return list(_FIELDS)

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        index = f" with {self.index}" if self.index else ""
        columns = [*self.columns.fields_by_name(), *(field.name for field in _FIELDS)]
        return f"geode {self.geode}{index}; columns {', '.join(columns)}"

    def items(self) -> list[Item]:
        """Every row, sorted by id.

        Raises UsageError for a folder, table or list of places that is missing or is not what it should be, two rows
        with one file, and where none of the images is there. A row whose file is missing, or that names none, is an
        item whose reading gives a Reject.
        """
        root = absolute(self.geode, self.storage_options)
        places = read_places(self.places, self.storage_options)
        listing: dict[str, File] = {}
        tables: list[str] = []
        for file in iter_folder(root, self.storage_options, self.name):
            if is_image(file.uri):
                listing[file.uri] = file
            elif file.uri.endswith(f"/{_INDEX}"):
                tables.append(file.uri)
        prefix = self.id_of("/".join(last_folders(root, self.id_folders))).strip("/")
        files = NamedFiles(self.name, f"{prefix}/" if prefix else "", listing)
        unknown: Counter[str] = Counter()
        for table, home in self._tables(root, tables):
            part = home[len(root) + 1 :]
            for row in _rows(table, home, f"{part}/" if part else "", places, listing, self.storage_options):
                files.add(row)
                label = row.record.get("label")
                if label is not None and row.extra["place"] is None:
                    unknown[label] += 1
        if unknown:
            some = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
            logger.warning("geode: %d images have no place: no list of places has %s", unknown.total(), some)
        return files.items()

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a group in their order, and a Reject in the place of each that cannot be a sample."""
        yield from read_items(shard, self.id_prefix.rstrip("/"), lambda _: self.storage_options, self.max_bytes)

    def _tables(self, root: str, found: list[str]) -> list[tuple[str, str]]:
        """The tables, each with its folder: that of ``index``, else the root's own, else those of its folders."""
        if self.index is not None:
            return [(absolute(self.index, self.storage_options), root)]
        depths = {table: table.count("/") for table in found}
        if not depths:
            raise UsageError(
                f"geode: there is no {_INDEX} in {root!r}, nor in a folder of it; correct the path, or name the table "
                "with `index:`."
            )
        taken = sorted(table for table in found if depths[table] == min(depths.values()))
        if len(taken) < len(found):
            left = min(set(found) - set(taken))
            logger.warning("geode: %d tables further down are not read, such as %s", len(found) - len(taken), left)
        return [(table, folder_of(table)) for table in taken]


def read_places(uri: str | None = None, storage_options: Options = None) -> dict[str, str]:
    """The kind of place of each object, from a YAML file of lists such as ``{indoor: [chair], outdoor: [tree]}``.

    >>> places = read_places()
    >>> places["stove"], places["bicycle"], len(places)
    ('indoor', 'outdoor', 40)

    Raises UsageError for a file that is missing or is none, and an object that is in two lists.
    """
    try:
        uri, options = (absolute(uri, storage_options), storage_options) if uri else (str(PLACES), None)
        lists = load_yaml(read_file(uri, options, _MAX_TEXT))
    except SampleError as error:
        raise UsageError(f"geode: places: {error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"geode: places: {uri!r} is not YAML: {' '.join(str(error).split())}.") from None
    places: dict[str, str] = {}
    if not isinstance(lists, dict) or not lists:
        raise UsageError(f"geode: places: {uri!r} has no lists such as `indoor: [chair, hat]`; write some.")
    for place, objects in lists.items():
        if not isinstance(place, str) or not isinstance(objects, list) or not all(isinstance(o, str) for o in objects):
            raise UsageError(f"geode: places: {uri!r}: {place!r} is no list of objects such as `indoor: [chair, hat]`.")
        for name in objects:
            if places.setdefault(name, place) != place:
                raise UsageError(f"geode: places: {uri!r}: {name!r} is in {places[name]!r} and in {place!r}; keep one.")
    return places


def _rows(
    table: str, home: str, part: str, places: Mapping[str, str], listing: Mapping[str, File], storage_options: Options
) -> Iterator[NamedFile]:
    names: dict[str, str | None] = {}
    folder = f"{home}/images"
    for number, row in read_records(table, storage_options, "geode"):
        if isinstance(row, SampleError):
            empty = dict.fromkeys(field.name for field in _FIELDS)
            yield NamedFile(table, number, folder, None, {}, empty, row.message, part)
            continue
        names = names or _names(table, row)
        taken = {name: row.pop(column, None) if column else None for name, column in names.items()}
        region, country, label = (_text(taken[name]) for name in ("region", "country", "object"))
        extra = {
            "region": region,
            "country": country.replace("_", " ") if country else None,
            "place": places.get(label) if label else None,
        }
        record = {name: value for name, value in row.items() if name and value is not None}
        if label:
            record["label"] = label
        where = _folder(home, folder, taken["file"], listing)
        yield NamedFile(table, number, where, taken["file"], record, extra, part=part)


def _text(value: Any) -> str | None:
    return str(value).strip() or None if value is not None else None


def _names(table: str, row: Mapping[str, Any]) -> dict[str, str | None]:
    """The names that the columns have in a table."""
    names: dict[str, str | None] = {}
    for column, usual in _COLUMNS.items():
        names[column] = next((name for name in usual if name in row), None)
        if names[column] is None and column != "region":
            there = ", ".join(name for name in row if name) or "none"
            raise UsageError(
                f"geode: {table!r} has no column {usual[0]!r}; its columns are {there}.{did_you_mean(usual[0], row)}"
            )
    if names["region"] is None:
        logger.warning("geode: %s has no column 'region', which is empty then", table)
    return names


def _folder(home: str, folder: str, name: Any, listing: Mapping[str, File]) -> str:
    """The folder that a file's name counts from: ``images``, or the table's own where the file is there instead."""
    try:
        return home if below(folder, name) not in listing and below(home, name) in listing else folder
    except SampleError:
        return folder
