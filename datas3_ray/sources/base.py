"""What every source of images has in common: shards, samples, rejects, and how a recipe's mapping becomes a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from datas3_ray.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from datas3_ray.sources.columns import Columns

REASONS: dict[str, str] = {
    # the shard
    "unreadable_shard": "the shard could not be opened or read to its end; the rows before were kept",
    "not_a_tar": "the file is not an uncompressed tar archive",
    "truncated_shard": "the tar is cut off or damaged; the samples before were kept, what follows cannot be found",
    "empty_shard": "the tar holds no samples",
    # the sample
    "no_image": "a key has members but none of them is a .jpg, .jpeg, .png or .webp",
    "duplicate_key": "the same key came before in this shard",
    "too_large": "a member is bigger than the source's max_bytes and was not read",
    "sparse_member": "a member is stored as a sparse file, whose bytes are not in one piece",
    "empty_image": "the image has no bytes",
    "bad_json": "the .json member is not JSON, or not an object",
    "bad_text": "the .txt or .cls member is not UTF-8",
    "bad_value": "a value does not fit the type of the column it was mapped to",
    # the image
    "not_an_image": "the bytes are no image: a web page, text or garbage",
    "unsupported_format": "an image format other than JPEG, PNG or WebP",
    "truncated_image": "the image's data end too early",
    "too_many_pixels": "the header promises more pixels than are decoded, so nothing was",
    "decode_error": "the image could not be decoded",
    # the vector
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
class Shard:
    """One unit of reading; ``fingerprint`` changes when its content does, ids are ``f"{prefix}/{key}"``."""

    uri: str
    size: int
    fingerprint: str
    prefix: str


@dataclass(frozen=True)
class Sample:
    """One image with what came beside it; its bytes are ``length`` bytes at ``offset`` of ``uri``.

    ``members`` holds what was present of ``{"json": dict, "txt": str, "cls": str}``.
    """

    id: str
    key: str
    uri: str
    offset: int
    length: int
    image: bytes
    members: dict[str, Any]


@dataclass(frozen=True)
class Reject:
    """What could not become a row; ``reason`` is a key of REASONS, ``key`` is empty when it concerns a whole shard."""

    uri: str
    offset: int
    reason: str
    error: str
    key: str


class Source(ABC):
    """Where images come from. Picklable: it travels to the workers, which call ``read`` on a shard each.

    Implementations have the class variable ``name`` (the recipe's word for them), the attribute ``columns`` and a
    class method ``from_spec`` that takes the recipe's mapping.
    """

    name: ClassVar[str]
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


_SOURCES = {
    "webdataset": ("datas3_ray.sources.webdataset", "WebDataset"),
}


def parse_source(spec: Mapping[str, Any]) -> Source:
    """The source that a recipe's ``source:`` mapping describes.

    The mapping has one key that names the kind (``webdataset``), optionally ``columns``, and the options of that kind.
    Nothing is opened. Raises UsageError for an unknown kind or option, or a value that cannot be meant.

    >>> parse_source({"webdatset": "a.tar"})
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: source: unknown kind 'webdatset'; it is one of webdataset. Did you mean 'webdataset'?
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
    return source
