"""WebDataset shards: tars whose consecutive members with one key (``0001.jpg``, ``0001.json``) are one sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import IO, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.base import Reject, Sample, SampleError, Shard, Source
from datas3_ray.sources.storage import IMAGES, Files, Patterns, find_files, in_words, is_remote
from datas3_ray.sources.tar_files import GZIPPED, is_gzipped, name_of, open_tar, without_query
from datas3_ray.sources.tarfile_reader import Member, TarError, read_tar

MEMBERS = ("json", "txt", "cls")
_PACKED = (".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_SHOWN = 60  # characters of a wrong member that an error quotes


class WebDataset(Files, Source):
    """Shards named by patterns; see ``find_files`` for what a pattern can be.

    ``id_folders`` says how many folders above the shard its ids begin with, and members bigger than ``max_bytes`` are
    rejected unread. Shards may be compressed with gzip; the offsets of their images are then those in the
    uncompressed tar, which can only be read from its beginning.

    >>> WebDataset(webdataset="shards/{000..009}.tar").describe()
    'webdataset shards/{000..009}.tar; columns caption, label, meta'
    """

    name: ClassVar[str] = "webdataset"

    webdataset: Patterns
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1

    _ranged: bool | None = PrivateAttr(default=None)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> WebDataset:
        """The source of a recipe's mapping ``{webdataset: pattern or patterns, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    @property
    def ranged(self) -> bool:  # type: ignore[override]
        """Whether images can be fetched by byte range: not where one of the shards is compressed."""
        if self._ranged is None:
            files = find_files(self.webdataset, self.storage_options)
            self._ranged = not any(is_gzipped(file.uri) for file in files)
        return self._ranged

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return f"webdataset {', '.join(self.webdataset)}; columns {', '.join(self.columns.fields_by_name())}"

    def shards(self) -> list[Shard]:
        """Every shard, sorted by uri.

        Raises UsageError for a pattern that names nothing, an archive compressed with anything but gzip, and two shards
        whose ids would clash.
        """
        by_prefix: dict[str, Shard] = {}
        for file in find_files(self.webdataset, self.storage_options):
            if name_of(file.uri).lower().endswith(_PACKED):
                raise UsageError(
                    f"webdataset: {file.uri!r} is compressed, and images are fetched from their shards by byte range, "
                    "which needs an uncompressed tar; unpack it first (of compressed ones, .tar.gz and .tgz are read)."
                )
            shard = Shard(file.uri, file.size, file.fingerprint, self._prefix(file.uri))
            twin = by_prefix.setdefault(shard.prefix, shard)
            if twin is not shard:
                raise UsageError(
                    f"webdataset: {twin.uri!r} and {shard.uri!r} would both give ids that begin with {shard.prefix!r}; "
                    f"set `id_folders: {self.id_folders + 1}` so that ids keep more of the path, or ingest them in "
                    "steps of their own with an `id_prefix:` each."
                )
        self._ranged = not any(is_gzipped(shard.uri) for shard in by_prefix.values())
        return sorted(by_prefix.values(), key=lambda shard: shard.uri)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one shard in their order, and a Reject in the place of each that cannot be one.

        The shard is streamed once, from front to back. Never raises for what is in the data or for a file that cannot
        be read: that is a Reject with its reason.
        """
        try:
            file = open_tar(shard.uri, self.storage_options)
        except Exception as error:  # object stores raise their own kinds, not only OSError
            yield Reject(shard.uri, 0, "unreadable_shard", in_words(error, self.storage_options), "")
            return
        with file:
            for item in _Grouping(shard, self.max_bytes).samples(file):
                if isinstance(item, Reject) and item.reason == "unreadable_shard":
                    item = replace(item, error=self.storage_options.scrub(item.error))
                yield item

    def _prefix(self, uri: str) -> str:
        """What the ids of a shard begin with: the last folders of its path, and its name without the extension."""
        path = PurePosixPath(without_query(uri.partition("://")[2] if is_remote(uri) else uri, uri))
        folders = [part for part in path.parts[:-1] if part != "/"]
        kept = folders[len(folders) - min(self.id_folders, len(folders)) :]
        return self.id_of("/".join([*kept, _stem(path.name)]))


def _stem(name: str) -> str:
    ending = next((ending for ending in (*GZIPPED, ".tar") if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def split_name(name: str) -> tuple[str, str] | None:
    """A member's key and its extension in lower case; None for names that belong to no sample.

    >>> split_name("a.b/0001.seg.PNG"), split_name("README"), split_name("a/.DS_Store")
    (('a.b/0001', 'seg.png'), None, None)
    """
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot <= base or dot == len(name) - 1:
        return None
    return name[:dot], name[dot + 1 :].lower()


@dataclass
class _Group:
    """The members of one key so far."""

    key: str
    first: Member
    members: dict[str, Member] = field(default_factory=dict)


class _Grouping:
    """One pass over a shard: members to groups, groups to samples."""

    def __init__(self, shard: Shard, max_bytes: int) -> None:
        self._shard = shard
        self._max_bytes = max_bytes
        self._seen: set[str] = set()

    def samples(self, file: IO[bytes]) -> Iterator[Sample | Reject]:
        group: _Group | None = None
        try:
            for member in read_tar(file, self._wanted):
                split = split_name(member.name)
                if split is None or (member.link and not self._wanted(member.name, 0)):
                    continue
                key, extension = split
                if group is None or group.key != key or extension in group.members:
                    if group is not None:
                        yield self._finish(group)
                    group = _Group(key, member)
                group.members[extension] = member
        except TarError as error:
            yield from self._broken_off(group, error)
            return
        if group is not None:
            yield self._finish(group)
        if not self._seen:
            yield Reject(self._shard.uri, 0, "empty_shard", "the tar holds no member with a key and an extension", "")

    def _wanted(self, name: str, size: int) -> bool:
        split = split_name(name)
        return split is not None and size <= self._max_bytes and (split[1] in IMAGES or split[1] in MEMBERS)

    def _broken_off(self, group: _Group | None, error: TarError) -> Iterator[Sample | Reject]:
        """Keep the group before the break only when the break is in another one: else a member of it may be lost."""
        split = split_name(error.name)
        key = split[0] if split else ""
        message = str(error)
        if group is not None:
            if error.ended or (key and key != group.key):
                yield self._finish(group)
            else:
                key = group.key
                message += f"; the sample {key!r} may be incomplete and is left out"
        yield Reject(self._shard.uri, error.offset, error.reason, message, key)

    def _finish(self, group: _Group) -> Sample | Reject:
        image = next((group.members[ext] for ext in group.members if ext in IMAGES), None)
        at = image or group.first
        try:
            return self._sample(group, image)
        except SampleError as error:
            return Reject(self._shard.uri, at.offset, error.reason, error.message, group.key)

    def _sample(self, group: _Group, image: Member | None) -> Sample:
        key = group.key
        duplicate = key in self._seen
        self._seen.add(key)
        if duplicate:
            raise SampleError("duplicate_key", f"the key {key!r} came before in this shard")
        if image is None:
            raise SampleError("no_image", f"the key {key!r} has no image, only .{', .'.join(group.members)}")
        if not image.size and not image.link:
            raise SampleError("empty_image", f"{image.name!r} has no bytes")
        data = self._data(image)
        members = {ext: parse_member(self._data(group.members[ext]), ext) for ext in MEMBERS if ext in group.members}
        sample_id = f"{self._shard.prefix}/{key}"
        return Sample(sample_id, key, self._shard.uri, image.offset, image.size, data, members)

    def _data(self, member: Member) -> bytes:
        if member.sparse:
            raise SampleError("sparse_member", f"{member.name!r} is stored as a sparse file; pack the tar without -S")
        if member.link:
            how = "pack the tar with --dereference and --hard-dereference"
            raise SampleError("link_member", f"{member.name!r} is stored as a link to another file; {how}")
        if member.data is None:
            raise SampleError(
                "too_large", f"{member.name!r} has {member.size} bytes, more than max_bytes = {self._max_bytes}"
            )
        return member.data


def parse_member(data: bytes, extension: str) -> Any:
    """What a .json, .txt or .cls member holds: an object, or text.

    Raises SampleError with the reason bad_json or bad_text.

    >>> parse_member(b'{"w": NaN}', "json"), parse_member(b"a cat", "txt")
    ({'w': None}, 'a cat')
    """
    if extension != "json":
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError("bad_text", f"the .{extension} member is not UTF-8: {error}") from None
    try:
        # NaN and infinities, which JSON does not have but some writers emit, are missing values.
        document = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        start = data[:_SHOWN].decode("utf-8", "backslashreplace")
        raise SampleError("bad_json", f"the .json member is not JSON: {error}; it begins with {start!r}") from None
    if not isinstance(document, dict):
        raise SampleError("bad_json", f"the .json member is not an object but {type(document).__name__}")
    return document
