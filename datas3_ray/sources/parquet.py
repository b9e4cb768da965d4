"""Parquet files with an image a row: its bytes, Hugging Face's struct of bytes and path, or the address of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, PrivateAttr

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.arrow_rows import BATCH_ROWS, Layout, find_layout, samples
from datas3_ray.sources.arrow_tables import ParquetTable, TableError
from datas3_ray.sources.base import Reject, Sample, SampleError, Shard, Source
from datas3_ray.sources.below import absolute, address, folder_of, last_folders, located, options_for, stem
from datas3_ray.sources.storage import (
    File,
    Files,
    Patterns,
    StorageOptions,
    find_files,
    is_remote,
    open_file,
    read_file,
    unreadable,
)


class Parquet(Files, Source):
    """Parquet files named by patterns, a shard each; see ``find_files`` for what a pattern can be.

    ``image`` names the column with the images' bytes, ``uri`` instead one with the addresses of their files (below
    ``root``, by default the Parquet file's folder, or in an object store), of which ``offset`` and ``length`` may name
    a range. Without either, the usual names are looked for. A row's key is the text of its column ``id``, else its
    number; ids begin with ``id_folders`` folders and the file's name. All other columns are the record.

    >>> Parquet(parquet="rows/*.parquet", image="jpg").describe()
    'parquet rows/*.parquet; columns caption, label, meta'
    """

    name: ClassVar[str] = "parquet"
    rows_elsewhere: ClassVar[bool] = True

    parquet: Patterns
    image: str | None = None
    uri: str | None = None
    id: str | None = None
    offset: str | None = None
    length: str | None = None
    root: Annotated[str | None, AfterValidator(located)] = None
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1

    _ranged: bool | None = PrivateAttr(default=None)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Parquet:
        """The source of a recipe's mapping ``{parquet: pattern or patterns, image: column, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    @property
    def ranged(self) -> bool:  # type: ignore[override]
        """Whether the images are files of their own. Where no column is named, the first file's schema tells."""
        if self.image or self.uri:
            return not self.image
        if self._ranged is None:
            layout = self._layout_of(find_files(self.parquet, self.storage_options, self.name)[0])
            self._ranged = layout is not None and layout.uri is not None
        return self._ranged

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return f"parquet {', '.join(self.parquet)}; columns {', '.join(self.columns.fields_by_name())}"

    def shards(self) -> list[Shard]:
        """Every file, sorted by uri.

        Raises UsageError for a pattern that names nothing, two files whose ids would clash, a column that the first
        file does not have, and one that ``columns`` maps and none of the files has.
        """
        files = find_files(self.parquet, self.storage_options, self.name)
        layout = self._layout_of(files[0])
        if layout is not None:
            self._ranged = layout.uri is not None
            self._check_columns(files)
        return shards_of(files, self.id_of, self.id_folders, self.name)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of one file in their order, and a Reject in the place of each that cannot be a sample.

        Never raises for what is in the data or for a file that cannot be read: that is a Reject with its reason.
        """
        root = absolute(self.root, self.storage_options) if self.root else folder_of(shard.uri)
        files = NamedFiles(root, self.storage_options, self.max_bytes)
        count = 0
        try:
            with ParquetTable(shard.uri, self.storage_options) as table:
                layout = find_layout(table.schema, self._wanted(), f"parquet {shard.uri!r}")
                layout = replace(layout, record=self._used(layout.record))
                batches = table.batches(layout.names, BATCH_ROWS)
                for item in samples(shard, batches, layout, files.read, self.max_bytes):
                    count += 1
                    yield item
        except TableError as error:
            yield Reject(shard.uri, count, error.reason, error.message, "")
        except UsageError as error:
            yield Reject(shard.uri, 0, "not_a_table", str(error), "")
        else:
            if not count:
                yield Reject(shard.uri, 0, "empty_shard", "the table has no rows", "")

    def _check_columns(self, files: Sequence[File]) -> None:
        names: dict[str, None] = {}
        error = None
        for file in files:
            with suppress(TableError), ParquetTable(file.uri, self.storage_options) as table:
                names.update(dict.fromkeys(table.schema.names))
            try:
                return self.columns.check(names, f"parquet {files[0].uri!r}")
            except UsageError as missing:
                error = error or missing
        if error:
            raise error

    def _used(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of a table's columns that go anywhere; the others are not read."""
        if "meta" not in self.columns.dropped:
            return tuple(name for name in names if name not in self.columns.dropped)
        paths = (column.source.split(".") for column in self.columns.mapped)
        tops = {path[1] for path in paths if len(path) > 1} | {"caption", "label"}
        return tuple(name for name in names if name in tops)

    def _wanted(self) -> Layout:
        return Layout(self.image, self.uri, self.id, self.offset, self.length)

    def _layout_of(self, file: File) -> Layout | None:
        """The layout of a file, None where it cannot be read: that is the reading's to tell."""
        try:
            with ParquetTable(file.uri, self.storage_options) as table:
                return find_layout(table.schema, self._wanted(), f"parquet {file.uri!r}")
        except TableError:
            return None


class NamedFiles:
    """The files that rows name: below a folder, or in an object store."""

    def __init__(self, root: str, storage_options: StorageOptions, max_bytes: int) -> None:
        self._root, self._options, self._max_bytes = root, storage_options, max_bytes

    def read(self, name: str, offset: int | None = None, length: int | None = None) -> tuple[str, int, bytes]:
        """The uri, offset and bytes of a file, or of the range of it. Raises SampleError."""
        uri = address(self._root, name)
        options = options_for(uri, self._root, self._options)
        if length is None:
            return uri, 0, read_file(uri, options, self._max_bytes)
        if length > self._max_bytes:
            raise SampleError("too_large", f"the range of {uri!r} has {length} bytes, more than {self._max_bytes}")
        try:
            with open_file(uri, options) as file:
                file.seek(offset or 0)
                data = _read_exactly(file.read, length)
        except Exception as error:  # object stores raise their own kinds
            raise unreadable(uri, error, options) from None
        if len(data) < length:
            raise SampleError("unreadable_file", f"{uri!r} ends before {length} bytes at {offset or 0}")
        return uri, offset or 0, data


def _read_exactly(read: Callable[[int], bytes], length: int) -> bytes:
    pieces = []
    while length > 0 and (piece := read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def shards_of(files: Iterable[File], id_of: Callable[[str], str], id_folders: int, what: str) -> list[Shard]:
    """A shard a file; its prefix is the last folders and the file's name. Raises UsageError where two are the same."""
    by_prefix: dict[str, Shard] = {}
    for file in files:
        uri = file.uri
        if uri.startswith(("http://", "https://")):
            uri = uri.partition("?")[0]  # a signature in the query is not the same tomorrow
        name = stem(PurePosixPath(uri.partition("://")[2] if is_remote(uri) else uri).name)
        prefix = id_of("/".join([*last_folders(folder_of(uri), id_folders), name]))
        shard = Shard(file.uri, file.size, file.fingerprint, prefix)
        twin = by_prefix.setdefault(prefix, shard)
        if twin is not shard:
            raise UsageError(
                f"{what}: {twin.uri!r} and {shard.uri!r} would both give ids that begin with {prefix!r}; set "
                f"`id_folders: {id_folders + 1}` so that ids keep more of the path, or ingest them in steps of their "
                "own with an `id_prefix:` each."
            )
    return sorted(by_prefix.values(), key=lambda shard: shard.uri)
