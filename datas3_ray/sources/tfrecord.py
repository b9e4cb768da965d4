"""TFRecord files: their records one by one, with checksums, and the place of each in the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from datas3_ray.sources.crc32c import masked_crc32c

_HEADER = 12  # 8 bytes of length, little-endian, and their checksum
_FOOTER = 4  # the checksum of the data
_BUFFER = 1 << 20


class Record(NamedTuple):
    """The ``length`` bytes at ``offset`` of the file; ``data`` is None where they were not read.

    ``intact`` says whether the data have their checksum: True also where that was not looked at.
    """

    offset: int
    length: int
    data: bytes | None
    intact: bool = True


class RecordFileError(Exception):
    """The file breaks off at byte ``offset``: what follows cannot be found.

    ``reason`` is one of empty_shard (no bytes at all), not_a_table (no TFRecord file from its first byte on),
    truncated_shard, unreadable_shard.
    """

    def __init__(self, reason: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset


def read_tfrecords(file: IO[bytes], max_bytes: int, verify: bool = True) -> Iterator[Record]:
    """The records of ``file``, in order. Those longer than ``max_bytes`` are passed over and have no data.

    The checksum of a length is always looked at, since the places of all that follows hang on it; that of the data
    where ``verify`` says so. One record is in memory at a time. Raises RecordFileError where the file ends inside a
    record, a length is damaged, or the file cannot be read; every record before has been yielded by then.

    >>> length, data = (5).to_bytes(8, "little"), b"a cat"
    >>> sums = [masked_crc32c(part).to_bytes(4, "little") for part in (length, data)]
    >>> list(read_tfrecords(io.BytesIO(length + sums[0] + data + sums[1]), max_bytes=100))
    [Record(offset=12, length=5, data=b'a cat', intact=True)]
    """
    stream = _Stream(file)
    try:
        yield from _records(stream, max_bytes, verify)
    finally:
        stream.release()


def _records(stream: _Stream, max_bytes: int, verify: bool) -> Iterator[Record]:
    at = 0
    while header := stream.take(_HEADER, at):
        if len(header) < _HEADER:
            raise _broken(at, f"the file ends at byte {at + len(header)}, inside a record's length", header)
        if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
            raise _broken(at, f"the length of the record at byte {at} has a wrong checksum", header)
        length = int.from_bytes(header[:8], "little")
        start, end = at + _HEADER, at + _HEADER + length
        data = None
        if length > max_bytes:
            stream.skip_to(end)
        else:
            data = stream.take(length, start)
        checksum = stream.take(_FOOTER, end)
        if len(checksum) < _FOOTER:
            raise _broken(at, f"the file ends inside the record of {length} bytes at byte {start}", b"")
        good = data is None or not verify or masked_crc32c(data) == int.from_bytes(checksum, "little")
        yield Record(start, length, data, good)
        at = end + _FOOTER
    if not at:
        raise RecordFileError("empty_shard", 0, "the file is empty")


def _broken(at: int, message: str, header: bytes) -> RecordFileError:
    if at or not header:
        return RecordFileError("truncated_shard", at, message)
    what = "compressed with gzip; unpack it, because images are fetched by byte range"
    if not header.startswith(b"\x1f\x8b"):
        what = f"no TFRecord file, or damaged from its beginning ({header!r})"
    return RecordFileError("not_a_table", 0, f"the file is {what}")


class _Stream:
    """Reading in large blocks; whatever the store raises is a RecordFileError."""

    def __init__(self, file: IO[bytes]) -> None:
        raw: Any = file
        self._file = io.BufferedReader(raw, _BUFFER)

    def release(self) -> None:
        """Leave the file to whom it belongs."""
        self._file.detach()

    def take(self, size: int, at: int) -> bytes:
        """The next ``size`` bytes, or as many as there are."""
        try:
            return self._file.read(size)
        except Exception as error:  # object stores raise their own kinds, not only OSError
            raise RecordFileError("unreadable_shard", at, f"{type(error).__name__}: {error}") from error

    def skip_to(self, at: int) -> None:
        try:
            self._file.seek(at)
        except (OverflowError, ValueError):  # beyond what any file can have
            raise RecordFileError("truncated_shard", at, f"the file ends before byte {at}") from None
        except OSError as error:
            if error.errno == 22:  # likewise, where the file system says so
                raise RecordFileError("truncated_shard", at, f"the file ends before byte {at}") from None
            raise RecordFileError("unreadable_shard", at, f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise RecordFileError("unreadable_shard", at, f"{type(error).__name__}: {error}") from error
