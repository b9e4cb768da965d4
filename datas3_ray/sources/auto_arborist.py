"""Auto Arborist: street trees of many cities, in TFRecord files as released, or in image files of one's own."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.base import Reject, Sample, SampleError, Shard, Source
from datas3_ray.sources.below import absolute, folder_of, last_folders
from datas3_ray.sources.files import mark
from datas3_ray.sources.storage import Files, Pattern, Root, in_words, iter_folder, open_file
from datas3_ray.sources.tf_example import ExampleError, Feature, byte_spans, first_text, numbers, parse_example
from datas3_ray.sources.tfrecord import Record, RecordFileError, read_tfrecords

logger = logging.getLogger(__name__)

FIELDS = (
    pa.field("city", pa.string()),
    pa.field("split", pa.string()),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("taxonomy_id", pa.int64()),
    pa.field("captured", pa.string()),
)
"""The columns that are filled besides those of a recipe."""

View = Literal["streetlevel", "aerial"]

_SHARD = re.compile(
    r"(?:.*/)?(?P<city>[^/]+)/(?P<split>[a-z]+)-(?P<at>[0-9]{5,9})-of-(?P<of>[0-9]{5,9})(\.tfrecords?)?"
)
_SEAM = re.compile(r"(?<=[a-z])(?=[A-Z])")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LONGEST = 1000  # characters of a tree's name beyond which it is damage


def city_name(text: str) -> str:
    """A city's name in lower case with underscores, however it is spelled.

    >>> [city_name(text) for text in ("WashingtonDc", "Washington D.C.", "washington_dc", "Montréal")]
    ['washington_dc', 'washington_dc', 'washington_dc', 'montreal']
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().replace(".", "")
    return re.sub(r"[^a-z0-9]+", "_", _SEAM.sub("_", plain).lower()).strip("_")


def _as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _city_names(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(city_name(value) for value in values)


_Words = Annotated[tuple[Pattern, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Trees(Files):
    """What both forms take: which picture of a tree, of which cities and splits, and what its number counts from."""

    auto_arborist: Root
    view: View = "streetlevel"
    cities: Annotated[_Words | None, AfterValidator(_city_names)] = None
    without_cities: Annotated[_Words | None, AfterValidator(_city_names)] = None
    splits: _Words | None = None
    label_base: Literal[0, 1] = 0
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1

    def own_fields(self) -> list[pa.Field]:
        """The columns of FIELDS."""
        return list(FIELDS)

    def described(self, form: str) -> str:
        """One line for the plan."""
        cities = "all cities" if self.cities is None else ", ".join(self.cities)
        cities += f" but {', '.join(self.without_cities)}" if self.without_cities else ""
        names = ", ".join([*self.columns.fields_by_name(), *(field.name for field in FIELDS)])
        return f"auto_arborist {self.auto_arborist} ({form}, {self.view}, {cities}); columns {names}"

    def root(self) -> str:
        """The data set's folder as files below it are listed."""
        return absolute(self.auto_arborist, self.storage_options)

    def prefix(self) -> str:
        """What all ids begin with."""
        parts = [self.id_prefix.rstrip("/"), *last_folders(self.root(), self.id_folders)]
        return "/".join(part for part in parts if part)

    def check_chosen(self, cities: Iterable[str], splits: Iterable[str]) -> None:
        """Raises UsageError for a city or split that is asked for and is not there."""
        there_are = list(cities)
        for option, wanted, there in (
            ("cities", self.cities, there_are),
            ("without_cities", self.without_cities, there_are),
            ("splits", self.splits, splits),
        ):
            known = sorted(set(there))
            for name in wanted or ():
                if name not in known:
                    raise UsageError(
                        f"auto_arborist: {option}: there is no {name!r} below {self.auto_arborist!r}, but "
                        f"{', '.join(known) or 'nothing'}.{did_you_mean(name, known)}"
                    )

    def chosen(self, city: str, split: str | None) -> bool:
        """Whether the recipe asks for trees of this city and split."""
        wanted = self.cities is None or city in self.cities
        unwanted = self.without_cities is not None and city in self.without_cities
        return wanted and not unwanted and (self.splits is None or split in self.splits)

    def taxonomy_id(self, written: int | None) -> int | None:
        """A genus' number counted from zero.

        Raises SampleError with the reason bad_record for one below what the recipe says numbers begin with.
        """
        if written is None:
            return None
        if not self.label_base <= written < 2**63:
            message = f"the genus' number is {written}, and numbers begin with label_base = {self.label_base}"
            raise SampleError("bad_record", message)
        return written - self.label_base


class AutoArborist(Trees, Source):
    """The release: ``tfrecords/<city>/{train,test}-NNNNN-of-NNNNN`` below the folder.

    A row is one tree: its ``view`` from the street or from above. Images stay where they are, in ranges of the TFRecord
    files. The label is the genus in lower case. With ``images:`` or ``trees:`` image files of one's own are read
    instead, see :class:`~datas3_ray.sources.auto_arborist_images.AutoArboristImages`.

    >>> AutoArborist(auto_arborist="s3://bucket/trees", cities=["LosAngeles"], view="aerial").describe()[:65]
    'auto_arborist s3://bucket/trees (TFRecords, aerial, los_angeles);'
    """

    name: ClassVar[str] = "auto_arborist"
    own_prefix: ClassVar[bool] = False

    verify: bool = True

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Source:
        """The source of a recipe's mapping ``{auto_arborist: folder, view: streetlevel, ...}``, in either form."""
        from datas3_ray.sources.auto_arborist_images import AutoArboristImages

        if any(key in spec for key in ("images", "trees", "file")):
            return checked(AutoArboristImages, spec, "source")
        return checked(AutoArborist, spec, "source")

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return self.described("TFRecords")

    def shards(self) -> list[Shard]:
        """Every TFRecord file of the cities and splits asked for, sorted by uri.

        Raises UsageError where there is none, a city or split is not there, or a file is there twice. Of cities whose
        files are not all there, and of files with other names, a warning gives the number.
        """
        folder = f"{self.root().rstrip('/')}/tfrecords"
        found: dict[tuple[str, str, int], Shard] = {}
        totals: dict[tuple[str, str], int] = {}
        others = 0
        prefix = self.prefix()
        for file in sorted(iter_folder(folder, self.storage_options, "auto_arborist")):
            place = _place(file.uri)
            if place is None or folder_of(folder_of(file.uri)) != folder:
                others += 1
                continue
            fingerprint = mark(file.fingerprint, self.view, self.label_base)
            shard = Shard(file.uri, file.size, fingerprint, prefix)
            twin = found.setdefault((place.city, place.split, place.number), shard)
            if twin is not shard:
                raise UsageError(
                    f"auto_arborist: {twin.uri!r} and {file.uri!r} are the same part of one city; remove one."
                )
            totals[place.city, place.split] = max(place.total, totals.get((place.city, place.split), 0))
        self.check_chosen((city for city, _ in totals), (split for _, split in totals))
        shards = [shard for (city, split, _), shard in found.items() if self.chosen(city, split)]
        if not shards:
            raise UsageError(
                f"auto_arborist: {folder!r} holds no file such as calgary/train-00000-of-00025 of the cities and "
                "splits asked for; correct the path, or name image files with `images:`."
            )
        if others:
            logger.warning("auto_arborist: %d files below %s are no TFRecord files by their names", others, folder)
        for (city, split), total in sorted(totals.items()):
            there = sum(key[:2] == (city, split) for key in found)
            if there < total and self.chosen(city, split):
                logger.warning("auto_arborist: %d of the %d files of %s, %s, are there", there, total, city, split)
        return sorted(shards, key=lambda shard: shard.uri)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The trees of one file in their order, and a Reject in the place of each that cannot be a row.

        The file is streamed once, a record at a time. Never raises for what is in it.
        """
        try:
            file = open_file(shard.uri, self.storage_options)
        except Exception as error:  # object stores raise their own kinds, not only OSError
            yield Reject(shard.uri, 0, "unreadable_shard", in_words(error, self.storage_options), "")
            return
        place = _place(shard.uri)
        assert place is not None, shard.uri
        trees = _Reading(self, shard, place)
        with file:
            try:
                for number, record in enumerate(read_tfrecords(file, self.max_bytes, self.verify)):
                    yield trees.row(number, record)
            except RecordFileError as error:
                yield Reject(shard.uri, error.offset, error.reason, self.storage_options.scrub(str(error)), "")


class _Place(NamedTuple):
    """What the path of a TFRecord file says."""

    city: str
    split: str
    number: int
    total: int
    name: str


def _place(uri: str) -> _Place | None:
    found = _SHARD.fullmatch(uri)
    if found is None:
        return None
    name = uri.rpartition("/")[2]
    return _Place(city_name(found["city"]), found["split"], int(found["at"]), int(found["of"]), name)


class _Reading:
    """One pass over a file of records."""

    def __init__(self, source: AutoArborist, shard: Shard, place: _Place) -> None:
        self._source, self._shard, self._place = source, shard, place
        self._seen: set[str] = set()

    def row(self, number: int, record: Record) -> Sample | Reject:
        """The sample of one record, or why it is none."""
        key = f"{self._place.city}/{self._place.name}/{number}"
        try:
            if record.data is None:
                limit = f"more than max_bytes = {self._source.max_bytes}"
                raise SampleError("too_large", f"the record at byte {record.offset} has {record.length} bytes, {limit}")
            if not record.intact:
                message = f"the checksum of the record at byte {record.offset} is not that of its {record.length} bytes"
                raise SampleError("damaged_record", message)
            features = parse_example(record.data)
            idx = first_text(record.data, features, "tree/idx", "tree/tree_locations_idx", "tree/id")
            if idx is None or len(idx) > _LONGEST:
                raise SampleError("bad_record", f"the record at byte {record.offset} has no usable tree/idx")
            key = f"{self._place.city}/{idx}"
            if key in self._seen:
                raise SampleError("duplicate_key", f"the tree {idx!r} came before in this file")
            self._seen.add(key)
            return self._sample(key, idx, record, record.data, features)
        except SampleError as error:
            return Reject(self._shard.uri, record.offset, error.reason, error.message, key)
        except ExampleError as error:
            message = f"the record at byte {record.offset} is no tf.train.Example of a tree: {error}"
            return Reject(self._shard.uri, record.offset, "bad_record", message, key)

    def _sample(self, key: str, idx: str, record: Record, data: bytes, features: dict[str, Feature]) -> Sample:
        view = self._source.view
        names = (f"{view}/encoded", f"image/{view}/encoded")
        spans = [span for name in names for span in byte_spans(data, features.get(name)) if span.end > span.start]
        if not spans:
            raise SampleError("no_image", f"the tree {idx!r} has no {view} image")
        start, end = spans[0]
        id = f"{self._shard.prefix}/{key}" if self._shard.prefix else key
        street = _Street(data, features)
        taxonomy = _first(numbers(data, features.get("tree/genus/label")))
        extra = {
            "city": self._place.city,
            "split": self._place.split,
            "latitude": _finite(_first(numbers(data, features.get("tree/latitude")))),
            "longitude": _finite(_first(numbers(data, features.get("tree/longitude")))),
            "taxonomy_id": self._source.taxonomy_id(None if taxonomy is None else int(taxonomy)),
            "captured": street.captured() if view == "streetlevel" else None,
        }
        genus = first_text(data, features, "tree/genus/genus")
        known: dict[str, Any] = {
            "label": genus.lower() if genus else None,
            "idx": idx,
            "tree_id": first_text(data, features, "tree/id"),
            "tree_city": first_text(data, features, "tree/city"),
            "view": view,
        }
        if view == "streetlevel":
            known |= street.places()
        members = {"json": {name: value for name, value in known.items() if value is not None}}
        uri, offset = self._shard.uri, record.offset + start
        return Sample(id, key, uri, offset, end - start, data[start:end], members, extra)


class _Street:
    """What a record says of its picture from the street, in either spelling of the features."""

    def __init__(self, data: bytes, features: dict[str, Feature]) -> None:
        self._data, self._features = data, features

    def captured(self) -> str | None:
        """The month the picture is from, such as ``July 2019``."""
        names = ("streetlevel/capturetime", "image/streetlevel/capturetime")
        return first_text(self._data, self._features, *names)

    def places(self) -> dict[str, Any]:
        """Where the tree is in it: ``bbox``, its edges as lists of shares of the image, and ``center`` in pixels."""
        edges = {edge: [_finite(value) for value in self._numbers(f"object/bbox/{edge}")] for edge in _EDGES}
        center = {axis: _first(self._numbers(f"center/{axis}")) for axis in "xy"}
        return {
            "bbox": edges if any(edges.values()) else None,
            "center": center if None not in center.values() else None,
        }

    def _numbers(self, name: str) -> list[float] | list[int]:
        feature = self._features.get(f"streetlevel/{name}") or self._features.get(f"image/streetlevel/{name}")
        return numbers(self._data, feature)


def _first(values: list[float] | list[int]) -> float | int | None:
    return values[0] if values else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
