"""NumPy's .npy and .npz files, array by array and block by block; nothing is unpickled, headers are not believed."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.sources.arrow_tables import TableError
from datas3_ray.sources.remote import Options, in_words, is_remote, local_path
from datas3_ray.sources.storage import open_file

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name
_LONGEST_ID = 4096  # bytes of one id in an array


@dataclass(frozen=True)
class StoredArray:
    """One array of a file: the whole of a .npy, or the ``member`` of a .npz.

    Its values begin ``header`` bytes into the array's own bytes. ``start`` is where they begin in the file, None where
    the member is deflated.
    """

    uri: str
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header: int
    start: int | None

    @property
    def is_vectors(self) -> bool:
        """Whether it is a matrix of half, single or double floats: a vector a row."""
        return len(self.shape) == 2 and self.shape[1] > 0 and self.dtype.kind == "f" and self.dtype.itemsize <= 8

    def blocks(self, rows: int, storage_options: Options = None) -> Iterator[np.ndarray]:
        """The vectors as C-ordered float32 matrices of ``rows`` rows, the last of fewer.

        What lies uncompressed on a local disk is mapped, and passed on without a copy where it is float32 already;
        anything else is streamed once from front to back. Raises TableError.
        """
        if self.start is not None and not is_remote(self.uri):
            yield from self._mapped(rows, self.start)
        elif self.fortran:
            raise TableError(
                "not_a_table",
                f"{self._words()} is stored column by column and cannot be streamed; save it with "
                "np.ascontiguousarray(array), or uncompressed on a local disk",
            )
        else:
            yield from self._streamed(rows, storage_options)

    def ids(self, storage_options: Options = None) -> pa.Array:
        """The text of every element of a one-dimensional array of text, bytes in UTF-8 or whole numbers."""
        if len(self.shape) != 1 or self.dtype.kind not in "USiu" or self.dtype.itemsize > _LONGEST_ID:
            raise TableError(
                "not_a_table",
                f"{self._words()} is {self.dtype} of shape {self.shape}; ids are a row of text or of whole numbers",
            )
        with _told(self.uri, storage_options), self._data(storage_options) as file:
            values = np.empty(self.shape, self.dtype)
            self._fill(file, values)
            if self.dtype.kind == "S":
                values = np.char.decode(values, "utf-8")
            return pa.array(values.tolist(), pa.string()) if values.dtype.kind == "U" else _numbers(values)

    def _mapped(self, rows: int, start: int) -> Iterator[np.ndarray]:
        if not self.shape[0]:
            return
        with _told(self.uri, None):
            order: Any = "F" if self.fortran else "C"
            matrix = np.memmap(local_path(self.uri), self.dtype, "r", start, self.shape, order)
        for first in range(0, self.shape[0], rows):
            yield _single(matrix[first : first + rows])

    def _streamed(self, rows: int, storage_options: Options) -> Iterator[np.ndarray]:
        with _told(self.uri, storage_options), self._data(storage_options) as file:
            for first in range(0, self.shape[0], rows):
                block = np.empty((min(rows, self.shape[0] - first), self.shape[1]), self.dtype)
                self._fill(file, block)
                yield _single(block)

    @contextmanager
    def _data(self, storage_options: Options) -> Iterator[IO[bytes]]:
        """The array's values as a file of their own."""
        with ExitStack() as stack:
            file = stack.enter_context(open_file(self.uri, storage_options))
            if self.member is not None:
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = stack.enter_context(archive.open(self.member))
            _fill(file, memoryview(bytearray(self.header)))
            yield file

    def _fill(self, file: IO[bytes], values: np.ndarray) -> None:
        data: Any = values.view(np.uint8).reshape(-1)
        if values.size and not _fill(file, memoryview(data)):
            raise TableError("not_a_table", f"{self._words()} is cut off: its header promises more values")

    def _words(self) -> str:
        return repr(self.uri) if self.member is None else f"{self.member.removesuffix('.npy')!r} in {self.uri!r}"


def _single(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is then found
        return np.require(block, np.float32, ["C", "A"])


def _numbers(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(values.dtype.newbyteorder("="))).cast(pa.string())


def _fill(file: IO[bytes], view: memoryview) -> bool:
    """Read until the view is full; False where the file ends before."""
    reader: Any = file
    while len(view):
        count = reader.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def read_arrays(uri: str, storage_options: Options = None) -> dict[str, StoredArray]:
    """Every array of a .npz by its name, or that of a .npy under the empty name, from the headers alone.

    Raises TableError for what is no such file, an array of Python objects, and a header that promises more than there
    is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(folder + "/a.npy", np.zeros((5, 3), np.float16))
    ...     array = read_arrays(folder + "/a.npy")[""]
    ...     array.shape, array.dtype, [block.shape for block in array.blocks(4)]
    ((5, 3), dtype('float16'), [(4, 3), (1, 3)])
    """
    with _told(uri, storage_options), open_file(uri, storage_options) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not uri.lower().endswith(".npz"):
            return {"": _array(file, uri, None, size, start=0)}
        with zipfile.ZipFile(file) as archive:
            return dict(_members(archive, file, uri, size))


def _members(archive: zipfile.ZipFile, file: IO[bytes], uri: str, size: int) -> Iterator[tuple[str, StoredArray]]:
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        start = None
        if info.compress_type == zipfile.ZIP_STORED:
            start = _begin(file, info)
            if start + info.file_size > size:
                raise ValueError(f"the member {info.filename!r} goes beyond the file's end")
        with archive.open(info) as member:
            name = info.filename.removesuffix(".npy")
            yield name, _array(member, uri, info.filename, info.file_size, start)


def _begin(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin; its own header may be of another length than the directory's entry."""
    file.seek(info.header_offset)
    header = bytearray(_LOCAL_HEADER)
    if not _fill(file, memoryview(header)) or header[:4] != b"PK\x03\x04":
        raise ValueError(f"the member {info.filename!r} is not where the archive's directory says")
    name, extra = struct.unpack_from("<HH", header, 26)
    return info.header_offset + _LOCAL_HEADER + int(name) + int(extra)


class _Counted:
    """A file that knows how far it has been read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        return data


def _array(file: IO[bytes], uri: str, member: str | None, size: int, start: int | None) -> StoredArray:
    counted: Any = _Counted(file)
    version = np.lib.format.read_magic(counted)
    if version not in _HEADERS:
        raise ValueError(f"it has fields or a format of version {version}; save a plain array")
    shape, fortran, dtype = _HEADERS[version](counted)
    array = StoredArray(
        uri, member, shape, dtype, fortran, counted.count, None if start is None else start + counted.count
    )
    if dtype.hasobject:
        raise ValueError(f"{array._words()} holds Python objects, which are never unpickled; save text with dtype str")
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised > size - counted.count:
        raise ValueError(
            f"{array._words()} is cut off: its header promises {shape} of {dtype}, {promised} bytes, and "
            f"{size - counted.count} are there"
        )
    return array


@contextmanager
def _told(uri: str, storage_options: Options) -> Iterator[None]:
    try:
        yield
    except (TableError, UsageError):
        raise
    except FileNotFoundError:
        raise TableError("unreadable_shard", f"{uri!r} is not there") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        message = f"{uri!r} is not a NumPy file that can be read: {in_words(error, storage_options)}"
        raise TableError("not_a_table", message) from None
    except Exception as error:  # object stores raise their own kinds
        raise TableError("unreadable_shard", f"{uri!r}: {in_words(error, storage_options)}") from None
