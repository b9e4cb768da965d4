"""A table of files: each row names an image, anywhere, and the rest of the row is its record."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, folder_of, options_for, stem
from datas3_ray.sources.fetch import Range
from datas3_ray.sources.files import mark, members_text, read_items
from datas3_ray.sources.records import Row, kind_of, read_records
from datas3_ray.sources.remote import local_path
from datas3_ray.sources.storage import Files, Options, Pattern, Patterns, find_files, is_remote

URI_NAMES = ("uri", "url", "path", "file_name", "image")
"""Columns that are taken for that of the files, the first that is there, in any case of letters."""
_JSON = (".jsonl", ".ndjson")


class Manifest(Files, FileSource):
    """Files named by the rows of CSV, TSV, JSON Lines or Parquet files.

    ``uri`` is the column with a file's path or URI; relative paths count from ``root``, by default the manifest's own
    folder. ``offset`` and ``length`` are the columns of a byte range in a packed file; columns of these names are
    taken for them where both are there. Ids are the column ``id``, else the path without its extension. All other
    columns are the record. Storage options go to the files' store, but not to web servers.

    >>> Manifest(manifest="images.csv", id="sha256").describe()
    'manifest images.csv; columns caption, label, meta'
    """

    name: ClassVar[str] = "manifest"

    manifest: Patterns
    uri: str | None = None
    id: str | None = None
    offset: str | None = None
    length: str | None = None
    root: Pattern | None = None
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Manifest:
        """The source of a recipe's mapping ``{manifest: file or files, uri: column, columns: {...}, ...}``."""
        source = checked(cls, spec, "source")
        if (source.offset is None) != (source.length is None):
            raise UsageError("source: `offset:` and `length:` name the two columns of a byte range; give both.")
        return source

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return f"manifest {', '.join(self.manifest)}; columns {', '.join(self.columns.fields_by_name())}"

    def items(self) -> list[Item]:
        """Every row, sorted by id.

        Raises UsageError for a manifest that cannot be read, a column that is not there, and rows with the same id.
        A row that names no file is an item whose reading gives a Reject.
        """
        entries: list[_Entry] = []
        known: dict[str, None] = {}
        files = find_files(self.manifest, self.storage_options, self.name)
        for file in files:
            root = absolute(self.root, self.storage_options) if self.root else folder_of(file.uri)
            rows = _Rows(self, file.uri, root)
            entries += rows
            known.update(dict.fromkeys(rows.known))
        if not entries:
            raise UsageError(f"manifest: {', '.join(self.manifest)!r} has no rows.")
        if known and not any(kind_of(file.uri) in _JSON for file in files):  # whose rows have keys of their own
            self.columns.check(known, f"manifest {files[0].uri!r}")
        stems = Counter(stem(path) for path in {entry.path for entry in entries if entry.path})
        items: list[Item] = []
        first: dict[str, int] = {}
        for at, entry in enumerate(entries):
            id = self.id_of(_key_of(entry, stems))
            twin = entries[first.setdefault(id, at)]
            if twin is not entry:
                raise UsageError(
                    f"manifest: row {twin.number} of {twin.manifest!r} and row {entry.number} of {entry.manifest!r} "
                    f"have the same id {id!r}; name a column that tells them apart with `id:`, or remove one."
                )
            items.append(Item(id, entry.uri, entry.size, entry.fingerprint, entry.members))
        items.sort(key=lambda item: item.id)
        return items

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The files of one group in their order, and a Reject in the place of each that cannot be a sample."""
        yield from read_items(shard, self.id_of("").rstrip("/"), self._options_of, self.max_bytes)

    def _options_of(self, uri: str) -> Options:
        return options_for(uri, self.manifest[0], self.storage_options)


class _Entry(NamedTuple):
    """A row: its place in the manifest, its key or else its file's path, and what becomes of it in an Item."""

    manifest: str
    number: int
    key: str
    path: str
    offset: int | None
    uri: str
    size: int
    fingerprint: str
    members: str


def _key_of(entry: _Entry, stems: Counter[str]) -> str:
    """The key given, else the path, with its extension where two rows differ in nothing else."""
    if not entry.path:
        return entry.key
    key = entry.path if stems[stem(entry.path)] > 1 else stem(entry.path)
    return key if entry.offset is None else f"{key}/{entry.offset}"


class _Rows:
    """The rows of one manifest."""

    def __init__(self, source: Manifest, manifest: str, root: str) -> None:
        self._source, self._manifest, self._root = source, manifest, root
        self._names: dict[str, str] = {}
        self.known: list[str] = []
        """The columns of the record, as the first row has them."""

    def __iter__(self) -> Iterator[_Entry]:
        for number, row in read_records(self._manifest, self._source.storage_options, "manifest"):
            yield self._entry(number, row)

    def _entry(self, number: int, row: Row) -> _Entry:
        key = f"{stem(PurePosixPath(self._manifest).name)}/row-{number}"
        if isinstance(row, SampleError):
            return self._bad(number, key, {}, row)
        if not self._names:
            self._names = self._columns(row)
        if "offset" not in self._names and "offset" in row and "length" in row:  # JSON's first row may have neither
            self._names.update(offset="offset", length="length")
        record = dict(row)
        taken = {option: record.pop(name, None) for option, name in self._names.items()}
        where = f"row {number} of {self._manifest!r}"
        try:
            if "id" in taken:
                key = _key(taken["id"], self._names["id"], where)
            uri, path = self._resolve(taken["uri"], f"{where}: the column {self._names['uri']!r}")
            span = _span(uri, taken, where)
        except SampleError as error:
            return self._bad(number, key, record, error)
        members = members_text(record, span=span)
        size, written = _status(uri)
        if span is not None:
            size = span.length or 0
        path = "" if "id" in taken else path
        fingerprint = mark(uri, written, members)
        return _Entry(self._manifest, number, key, path, span.offset if span else None, uri, size, fingerprint, members)

    def _bad(self, number: int, key: str, record: dict[str, Any], error: SampleError) -> _Entry:
        members = members_text(record, bad=error)
        return _Entry(self._manifest, number, key, "", None, self._manifest, 0, mark(members), members)

    def _columns(self, row: dict[str, Any]) -> dict[str, str]:
        """The columns that the options name or that are taken for them, all of which the first row has to have."""
        options = {option: getattr(self._source, option) for option in ("uri", "id", "offset", "length")}
        names: dict[str, str] = {option: name for option, name in options.items() if name is not None}
        if "uri" not in names:
            lowered = {name.lower(): name for name in reversed(row)}
            usual = next((lowered[name] for name in URI_NAMES if name in lowered), None)
            if usual is None:
                raise UsageError(
                    f"manifest: {self._manifest!r} has none of the columns {', '.join(URI_NAMES)}, but "
                    f"{', '.join(row) or 'none'}; name the one with the files' paths with `uri:`."
                )
            names["uri"] = usual
        for option, name in names.items():
            if name not in row:
                raise UsageError(
                    f"manifest: {option}: {self._manifest!r} has no column {name!r}; it has {', '.join(row)}."
                    f"{did_you_mean(name, row)}"
                )
        taken = names.values()
        self.known = [name for name in row if name not in taken]
        return names

    def _resolve(self, value: Any, where: str) -> tuple[str, str]:
        """The uri of a row's file, and its path as ids have it."""
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            shown = "is empty" if value is None or value == "" else f"is {value!r}, which is no path"
            raise SampleError("bad_record", f"{where} {shown}")
        if is_remote(value):
            inner = value.partition("?")[0] if value.startswith(("http://", "https://")) else value
            return value, inner.partition("://")[2].strip("/")
        if is_remote(self._root):
            uri = f"{self._root.rstrip('/')}/{posixpath.normpath(value).lstrip('/')}"
            return uri, posixpath.normpath(value).strip("/")
        path = os.path.expanduser(local_path(value))
        uri = os.path.normpath(os.path.join(self._root, path))
        inside = uri.startswith(self._root.rstrip("/") + "/")
        return uri, (uri[len(self._root.rstrip("/")) :] if inside else uri).strip("/")


def _key(value: Any, column: str, where: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what pandas makes of whole numbers beside missing ones
    if value is None or value == "" or isinstance(value, (dict, list)):
        raise SampleError("bad_record", f"{where}: the id in column {column!r} is missing or no text")
    return str(value)


def _span(uri: str, taken: dict[str, Any], where: str) -> Range | None:
    values = []
    for option in ("offset", "length"):
        value = taken.get(option)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:20])
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63):
            raise SampleError("bad_record", f"{where}: {option} = {value!r} is no place in a file")
        values.append(value)
    offset, length = values
    if offset is None and length is None:
        return None
    if length is None:
        raise SampleError("bad_record", f"{where}: the range at {offset} has no length")
    return Range(uri, offset or 0, length)


def _status(uri: str) -> tuple[int, str]:
    """Size and time of a local file; nothing of one that is not there, or elsewhere: asking would take too long."""
    if is_remote(uri):
        return 0, ""
    try:
        status = os.stat(uri)
    except (OSError, ValueError):
        return 0, ""
    return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
