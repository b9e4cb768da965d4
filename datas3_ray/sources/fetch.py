"""Encoded images back from where they are: ranges of files, whole files, or bytes that the table holds itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from datas3_ray.sources.base import SampleError
from datas3_ray.sources.below import options_for
from datas3_ray.sources.remote import ATTEMPTS, PAUSE, filesystem, is_final, is_remote, local_path
from datas3_ray.sources.storage import MAX_BYTES, Options, read_file, unreadable
from datas3_ray.sources.tar_files import is_gzipped, open_tar
from datas3_ray.sources.video import frame_place

WINDOW_BYTES = 32 << 20
"""Bytes of images, as far as their length is known, that are read before the first of them is given out."""
WINDOW_ROWS = 512
GAP = 64 << 10
"""Bytes between two ranges of a file below which one read takes both."""
_SPAN = 8 << 20  # bytes that ranges may be joined to
_ASSUMED = 1 << 20  # bytes of an image whose length is not known
_THREADS = 8  # remote files read at once
_TABLES = (".parquet", ".arrow", ".feather", ".lance")
_STORE = "ingest it with `store: bytes` to have the image at hand"

Found = bytes | SampleError


class Range(NamedTuple):
    """``length`` bytes at ``offset`` of a file; the whole file where the length is None."""

    uri: str
    offset: int = 0
    length: int | None = None


def fetch_images(
    rows: pa.Table, storage_options: Options = None, max_bytes: int = MAX_BYTES
) -> Iterator[bytes | SampleError]:
    """The encoded image of every row, in the order of the rows, or why there is none.

    Rows have the columns ``uri``, ``offset`` and ``length`` of an image table, and perhaps ``image``: where that holds
    bytes, they are the image. A null length stands for the whole file. Reads that lie close together are one, and about
    WINDOW_BYTES are in memory at a time. What is wrong with one row's file is a SampleError in its place.

    >>> rows = pa.table({"uri": ["nowhere.tar"], "offset": [512], "length": [9]})
    >>> [str(image) for image in fetch_images(rows)]
    ["'nowhere.tar' is not there"]
    """
    places = (_place(row) for batch in rows.to_batches(WINDOW_ROWS) for row in _rows(batch))
    return fetch(places, lambda uri: options_for(uri, "", storage_options), max_bytes)


def fetch(
    places: Iterable[Range | Found], options_of: Callable[[str], Options], max_bytes: int = MAX_BYTES
) -> Iterator[Found]:
    """The bytes of every range, in the order given; ``options_of(uri)`` are the storage options for it.

    What is bytes or a SampleError already is passed on.
    """
    with _Reader(options_of, max_bytes) as reader:
        window: list[Range | Found] = []
        size = 0
        for place in places:
            window.append(place)
            size += _expected(place)
            if size >= WINDOW_BYTES or len(window) >= WINDOW_ROWS:
                yield from reader.read(window)
                window, size = [], 0
        yield from reader.read(window)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = [name for name in ("uri", "offset", "length", "image") if name in batch.schema.names]
    columns = [batch.column(name) for name in names]
    for index in range(len(batch)):
        yield {name: column[index].as_py() for name, column in zip(names, columns, strict=True)}


def _place(row: dict[str, Any]) -> Range | Found:
    image, uri = row.get("image"), row.get("uri")
    if image is not None:
        return bytes(image)
    if not uri:
        return SampleError("no_image", f"the row has neither an image nor the place of one; {_STORE}")
    if uri.partition("?")[0].lower().endswith(_TABLES):
        return SampleError("no_image", f"the image is inside the table {uri!r}, which has no byte ranges; {_STORE}")
    if frame_place(uri):
        return SampleError("no_image", f"the image is a frame of a video, {uri!r}, which has no byte ranges; {_STORE}")
    return Range(uri, row.get("offset") or 0, row.get("length"))


def _expected(place: Range | Found) -> int:
    if isinstance(place, Range):
        return _ASSUMED if place.length is None else place.length
    return len(place) if isinstance(place, bytes) else 0


class _Joined(NamedTuple):
    """One read that answers several ranges of a file, which are numbered as in their window."""

    uri: str
    start: int
    end: int
    ranges: list[tuple[int, Range]]


class _Reader:
    """Reads one window after another; keeps the stream of a compressed shard open in between."""

    def __init__(self, options_of: Callable[[str], Options], max_bytes: int) -> None:
        self._options_of = options_of
        self._max_bytes = max_bytes
        self._stream: _Stream | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._pool is not None:
            self._pool.shutdown()

    def read(self, window: Sequence[Range | Found]) -> Iterator[Found]:
        """What was asked for, in its order."""
        found: dict[int, Found] = {}
        asked: list[tuple[int, Range]] = []
        for number, place in enumerate(window):
            if not isinstance(place, Range):
                found[number] = place
            elif place.offset < 0 or (place.length is not None and place.length < 0):
                found[number] = SampleError("bad_record", f"{place} is no place in a file")
            elif place.length is not None and place.length > self._max_bytes:
                message = f"{place.length} bytes of {place.uri!r} are more than max_bytes = {self._max_bytes}"
                found[number] = SampleError("too_large", message)
            else:
                asked.append((number, place))
        packed = [(number, place) for number, place in asked if is_gzipped(place.uri) and place.length is not None]
        whole = [(number, place) for number, place in asked if place.length is None]
        ranged = [(number, place) for number, place in asked if not is_gzipped(place.uri) and place.length is not None]
        found.update(self._whole_files(whole))
        found.update(self._streamed(packed))
        for joined, data in self._joined(join_ranges(ranged)):
            for number, place in joined.ranges:
                found[number] = data if isinstance(data, SampleError) else _cut(place, data, joined.start)
        yield from (found.pop(number) for number in range(len(window)))

    def _whole_files(self, asked: Sequence[tuple[int, Range]]) -> Iterator[tuple[int, Found]]:
        remote = any(is_remote(place.uri) for _, place in asked)
        if remote and self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS)
        mapped = self._pool.map if remote and self._pool is not None else map
        data = mapped(self._whole_file, [place for _, place in asked])
        yield from zip((number for number, _ in asked), data, strict=True)

    def _whole_file(self, place: Range) -> Found:
        try:
            return read_file(place.uri, self._options_of(place.uri), self._max_bytes)[place.offset :]
        except SampleError as error:
            return error

    def _streamed(self, asked: Sequence[tuple[int, Range]]) -> Iterator[tuple[int, Found]]:
        for number, place in sorted(asked, key=lambda one: (one[1].uri, one[1].offset)):
            if self._stream is None or not self._stream.leads_to(place):
                if self._stream is not None:
                    self._stream.close()
                self._stream = _Stream(place.uri, self._options_of(place.uri))
            yield number, self._stream.take(place)

    def _joined(self, reads: list[_Joined]) -> Iterator[tuple[_Joined, Found]]:
        yield from _read_local([read for read in reads if not is_remote(read.uri)])
        by_options: dict[int, tuple[Options, list[_Joined]]] = {}
        for read in reads:
            if is_remote(read.uri):
                options = self._options_of(read.uri)
                by_options.setdefault(id(options), (options, []))[1].append(read)
        for options, remote in by_options.values():
            yield from _read_remote(remote, options)


def join_ranges(asked: Iterable[tuple[int, Range]]) -> list[_Joined]:
    """Ranges of one file that lie close together, or overlap, as one read; sorted by file and offset."""
    reads: list[_Joined] = []
    for number, place in sorted(asked, key=lambda one: (one[1].uri, one[1].offset)):
        end = place.offset + (place.length or 0)
        last = reads[-1] if reads else None
        near = last is not None and last.uri == place.uri and place.offset - last.end < GAP
        if last is not None and near and max(end, last.end) - last.start <= max(_SPAN, last.end - last.start):
            last.ranges.append((number, place))
            reads[-1] = last._replace(end=max(end, last.end))
        else:
            reads.append(_Joined(place.uri, place.offset, end, [(number, place)]))
    return reads


def _cut(place: Range, data: bytes, start: int) -> Found:
    at, length = place.offset - start, place.length or 0
    piece = data[at : at + length] if at or len(data) != length else data
    if len(piece) < length:
        return _too_short(place, len(piece))
    return piece


def _too_short(place: Range, there: int) -> SampleError:
    message = f"{place.uri!r}: {there:,} of {place.length:,} bytes are there at byte {place.offset:,}"
    return SampleError("unreadable_file", message)


def _read_local(reads: Iterable[_Joined]) -> Iterator[tuple[_Joined, Found]]:
    file, opened = -1, ""
    try:
        for read in reads:
            try:
                if opened != read.uri:
                    if file >= 0:
                        os.close(file)
                    file, opened = -1, read.uri
                    file = os.open(local_path(read.uri), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                elif file < 0:
                    file = os.open(local_path(read.uri), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                yield read, _pread(file, read.start, read.end)
            except OSError as error:
                yield read, unreadable(read.uri, error)
    finally:
        if file >= 0:
            os.close(file)


def _pread(file: int, start: int, end: int) -> bytes:
    pieces = []
    while start < end and (piece := os.pread(file, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_remote(reads: list[_Joined], options: Options) -> Iterator[tuple[_Joined, Found]]:
    """Requests of one file system go out together; those that fail for a reason that may pass go out again."""
    by_system: dict[int, tuple[Any, list[tuple[_Joined, str]]]] = {}
    for read in reads:
        try:
            system, path = filesystem(read.uri, options)
        except Exception as error:  # an unknown protocol
            yield read, unreadable(read.uri, error, options)
        else:
            by_system.setdefault(id(system), (system, []))[1].append((read, path))
    for system, members in by_system.values():
        answers = _cat_ranges(system, members)
        for attempt in range(1, ATTEMPTS):
            again = [at for at, data in enumerate(answers) if isinstance(data, Exception) and not is_final(data)]
            if not again:
                break
            time.sleep(PAUSE * 2 ** (attempt - 1))
            for at, data in zip(again, _cat_ranges(system, [members[at] for at in again]), strict=True):
                answers[at] = data
        for (read, _), data in zip(members, answers, strict=True):
            if isinstance(data, BaseException):
                yield read, unreadable(read.uri, data, options)
            elif len(data) > read.end - read.start:
                message = f"{read.uri!r} cannot be read in parts: its server does not know byte ranges"
                yield read, SampleError("unreadable_file", message)
            else:
                yield read, bytes(data)


def _cat_ranges(system: Any, members: list[tuple[_Joined, str]]) -> list[Any]:
    paths = [path for _, path in members]
    starts, ends = [read.start for read, _ in members], [read.end for read, _ in members]
    try:
        return list(system.cat_ranges(paths, starts, ends, on_error="return"))
    except Exception as error:  # every object store raises its own kinds
        return [error] * len(members)


class _Stream:
    """One pass over a compressed shard."""

    def __init__(self, uri: str, options: Options) -> None:
        self._uri, self._options = uri, options
        self._at = 0
        self._file: Any = None
        self._error: SampleError | None = None

    def leads_to(self, place: Range) -> bool:
        return self._uri == place.uri and self._at <= place.offset

    def take(self, place: Range) -> Found:
        """The bytes of a range that begins where the stream is, or later."""
        if self._error is not None:
            return self._error
        try:
            if self._file is None:
                self._file = open_tar(self._uri, self._options)
            self._at = self._file.seek(place.offset)
            data = bytes(self._file.read(place.length))
            self._at += len(data)
        except Exception as error:  # object stores raise their own kinds; damage raises GzipError
            self._error = unreadable(self._uri, error, self._options)
            return self._error
        return _too_short(place, len(data)) if len(data) < (place.length or 0) else data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
