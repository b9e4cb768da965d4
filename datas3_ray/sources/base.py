"""What every source of images has in common: shards, samples, rejects, and how a recipe's mapping becomes a source."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from datas3_ray.sources.columns import Columns

REASONS: dict[str, str] = {
    # the shard
    "unreadable_shard": "the shard could not be opened or read to its end",
    "not_a_tar": "the file is not an uncompressed tar archive",
    "truncated_shard": "the file is cut off or damaged; the samples before were kept, what follows cannot be found",
    "not_a_table": "the file is not the table it should be, or is cut off or damaged; the rows before were kept",
    "empty_shard": "the shard holds no samples",
    # the sample
    "no_image": "a key has members but none of them is an image",
    "duplicate_key": "the same key came before in this shard",
    "too_large": "a member is bigger than the source's max_bytes and was not read",
    "sparse_member": "a member is stored as a sparse file, whose bytes are not in one piece",
    "link_member": "a member is a link to another file, without bytes of its own",
    "empty_image": "the image has no bytes",
    "bad_json": "the .json member is not JSON, or not an object",
    "bad_text": "the .txt or .cls member is not UTF-8",
    "bad_value": "a value does not fit the type of the column it was mapped to",
    "unreadable_file": "the image's own file could not be opened or read",
    "not_downloaded": "img2dataset did not get the image; its status and message are in the error",
    "bad_record": "a row of the table, or an annotation, is not what the format says it is",
    "not_a_video": "the file is not a video that can be opened; the error says how many frames were wanted of it",
    "no_frame": "an annotation is of a frame that its sequence or video does not have",
    "damaged_record": "the checksum of a record is not that of its bytes",
    "no_can": "the scene of a frame has no CAN bus messages of the steering",
    "no_match": "no steering value is near enough to the time of a frame",
    # the image
    "not_an_image": "the bytes are no image: a web page, text or garbage",
    "unsupported_format": "an image format other than JPEG, PNG, WebP, GIF, BMP and TIFF",
    "truncated_image": "the image's data end too early",
    "too_many_pixels": "the header promises more pixels than are decoded, so nothing was",
    "decode_error": "the image could not be decoded",
    "decode_timeout": "the image was not decoded within decode_seconds",
    # the vector
    "no_id": "a row of ready vectors has no id",
    "no_vector": "a row of ready vectors has none",
    "duplicate_id": "a row of ready vectors has the id of one before it",
    "nan_vector": "an encoder gave a vector with NaN or infinite values",
}
"""Every reason a row can be in quarantine for, each with one line of explanation."""


class SampleError(Exception):
    """One sample cannot become a row: ``reason`` is a key of REASONS, the message says what is wrong with it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Item:
    """One file of a source that is a list of files: the unit that is ingested once.

    ``id`` is the row's id, ``fingerprint`` changes when the file's content does, and ``members`` is the JSON text of
    what is known of the image besides its bytes (the same keys as :class:`Sample` has, and ``extra``).
    """

    id: str
    uri: str
    size: int
    fingerprint: str
    members: str = "{}"


@dataclass(frozen=True)
class Shard:
    """One unit of reading: a file that holds many samples, or a list of files (``items``).

    ``fingerprint`` changes when its content does; ids are ``f"{prefix}/{key}"``. The rows of a shard without items
    have the shard's ``uri`` as theirs.
    """

    uri: str
    size: int
    fingerprint: str
    prefix: str
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image with what came beside it; its bytes are ``length`` bytes at ``offset`` of ``uri``.

    ``members`` holds what was present of ``{"json": dict, "txt": str, "cls": str}``; ``json`` is the sample's record
    whatever the format it came in (a JSON member, a row of a table, an annotation). ``extra`` holds the values of the
    columns that the source itself adds (``Source.own_fields``), such as boxes.
    """

    id: str
    key: str
    uri: str
    offset: int
    length: int
    image: bytes
    members: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """What could not become a row; ``reason`` is a key of REASONS, ``key`` is empty when it concerns a whole shard.

    ``id`` is that of the item, by which its line goes when the item is replaced.
    """

    uri: str
    offset: int
    reason: str
    error: str
    key: str
    id: str | None = None


class Source(ABC):
    """Where images come from. Picklable: it travels to the workers, which call ``read`` on a shard each.

    Implementations have the class variable ``name`` (the recipe's word for them), the attribute ``columns`` and a
    class method ``from_spec`` that takes the recipe's mapping. ``ranged`` says whether an image can be fetched again
    by its byte range; where it cannot, its bytes are stored in the table unless the recipe says otherwise.
    ``rows_elsewhere`` says that rows may have another uri than their shard, whose ids then begin with its prefix, and
    ``own_prefix`` that no two shards have the same one.
    """

    name: ClassVar[str]
    ranged: ClassVar[bool] = True
    rows_elsewhere: ClassVar[bool] = False
    own_prefix: ClassVar[bool] = True
    columns: Columns

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Source:
        """The source a recipe's mapping describes; a UsageError says what is wrong with the mapping."""

    @abstractmethod
    def shards(self) -> list[Shard]:
        """Every shard, sorted by uri; a UsageError names what is missing."""

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one shard in their order, and a Reject in the place of each that cannot be one."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the plan; reads nothing."""

    def own_fields(self) -> list[pa.Field]:
        """Columns that the source adds to those of the recipe; their values are in ``Sample.extra``."""
        return []


BAD = "bad"
"""In an item's members: the reason and message for which it is rejected."""


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: not that of a file in other bytes, nor half a surrogate pair of JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(item: Item) -> Item:
    id, uri = (text.encode("utf-8", "backslashreplace").decode() for text in (item.id, item.uri))
    which = ("id", id) if is_text(item.uri) else ("file name", uri)
    message = f"the {which[0]} {which[1]!r} is not UTF-8 and cannot be stored; rename it"
    reason = "bad_record" if is_text(item.uri) else "unreadable_file"
    return replace(item, id=id, uri=uri, members=json.dumps({BAD: [reason, message]}))


class FileSource(Source):
    """A source whose images are files of their own. Files, not groups of them, are what is ingested once.

    So a folder may grow: only the new files are read. ``shards`` groups the files that are asked for.
    """

    items_per_shard: int

    @abstractmethod
    def items(self) -> list[Item]:
        """Every file, sorted by id; a UsageError names what is missing or would have the id of another."""

    def storable(self) -> list[Item]:
        """Every file; one whose id or uri cannot be stored is there with both escaped, and rejected when it is read."""
        return [item if is_text(item.id) and is_text(item.uri) else _escaped(item) for item in self.items()]

    def shards(self) -> list[Shard]:
        """Every file, in groups."""
        return self.group(self.storable())

    def group(self, items: Sequence[Item]) -> list[Shard]:
        """Shards of at most ``items_per_shard`` files, in the order given."""
        groups = [items[at : at + self.items_per_shard] for at in range(0, len(items), self.items_per_shard)]
        return [as_shard(group) for group in groups]


def as_shard(items: Sequence[Item]) -> Shard:
    """Files as one shard, whose name and fingerprint change when one of them does."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(f"{item.id}\0{item.fingerprint}\0".encode())
    name = f"{items[0].uri}#{len(items)}-{digest.hexdigest()}"
    return Shard(name, sum(item.size for item in items), digest.hexdigest(), "", tuple(items))


class VectorSource(Source):
    """A source of ready vectors instead of images: whole tables pass through without being taken apart."""

    ranged: ClassVar[bool] = False

    @abstractmethod
    def vector_fields(self) -> list[pa.Field]:
        """The vector columns, from the headers of the first shard; a UsageError names what is missing or odd."""

    @abstractmethod
    def read_rows(self, shard: Shard) -> Iterator[pa.Table | Reject]:
        """Tables of ``id``, ``offset``, the columns' fields and the vectors, of bounded size, in the shard's order.

        ``offset`` is a row's number in its shard. Vectors may hold NaN and ids may repeat: the ingest sets those rows
        aside. A Reject with a key stands for a row, another for a shard, or the rest of one, that cannot be read.
        """

    @abstractmethod
    def read_ids(self, shard: Shard) -> Iterator[pa.Array]:
        """The ids of all rows of :meth:`read_rows`, and of those it rejects, in the shard's order, without vectors.

        Nothing where the ids begin with the shard's prefix, so that no other shard can have them, and nothing more
        where the shard cannot be read.
        """

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """There are no images here."""
        raise TypeError(f"{self.name} has vectors, not images")


_SOURCES = {
    "webdataset": ("datas3_ray.sources.webdataset", "WebDataset"),
    "img2dataset": ("datas3_ray.sources.img2dataset", "Img2Dataset"),
    "folder": ("datas3_ray.sources.folder", "Folder"),
    "manifest": ("datas3_ray.sources.manifest", "Manifest"),
    "parquet": ("datas3_ray.sources.parquet", "Parquet"),
    "hf": ("datas3_ray.sources.hf", "HF"),
    "coco": ("datas3_ray.sources.coco", "Coco"),
    "yolo": ("datas3_ray.sources.yolo", "Yolo"),
    "auto_arborist": ("datas3_ray.sources.auto_arborist", "AutoArborist"),
    "nuscenes": ("datas3_ray.sources.nuscenes", "NuScenes"),
    "vectors": ("datas3_ray.sources.vectors", "Vectors"),
    "fishtrack": ("datas3_ray.sources.fishtrack", "FishTrack"),
    "iwildcam": ("datas3_ray.sources.iwildcam", "IWildCam"),
    "geode": ("datas3_ray.sources.geode", "GeoDE"),
}


def parse_source(spec: Mapping[str, Any]) -> Source:
    """The source that a recipe's ``source:`` mapping describes.

    The mapping has one key that names the kind (``webdataset``), optionally ``columns``, and the options of that kind.
    Nothing is opened. Raises UsageError for an unknown kind or option, or a value that cannot be meant.

    >>> parse_source({"webdatset": "a.tar"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: source: unknown kind 'webdatset'; it is one of webdataset... mean 'webdataset'?
    """
    if not isinstance(spec, Mapping):
        raise UsageError(f"source: expected a mapping such as {{webdataset: 'shards/*.tar'}}, got {spec!r}.")
    kinds = [key for key in spec if key in _SOURCES]
    if len(kinds) > 1:
        raise UsageError(f"source: both {kinds[0]!r} and {kinds[1]!r} are given; a source has one kind.")
    if not kinds:
        named = next((str(key) for key in spec if did_you_mean(str(key), _SOURCES)), str(next(iter(spec), "")))
        known = ", ".join(_SOURCES)
        raise UsageError(f"source: unknown kind {named!r}; it is one of {known}.{did_you_mean(named, _SOURCES)}")
    module, attribute = _SOURCES[kinds[0]]
    source: Source = getattr(import_module(module), attribute).from_spec(spec)
    _check_columns(source)
    return source


def _check_columns(source: Source) -> None:
    """Nothing is mapped to a column that the source fills; a caption's template may read any column but itself."""
    own = [field.name for field in source.own_fields()]
    for column in source.columns.mapped:
        if column.name.lower() in own:
            raise UsageError(
                f"columns: {column.name!r} is a column that this source fills itself; choose another name."
            )
    template = source.columns.template
    if template is None:
        return
    if isinstance(source, VectorSource):
        raise UsageError(f"columns: caption: a template is for sources of images; {source.name} brings its captions.")
    names = [*source.columns.fields_by_name(), *own]
    template.check([name for name in names if name not in ("caption", "meta")])
