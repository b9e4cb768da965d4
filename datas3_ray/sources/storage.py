"""What every source that reads files shares: its options, finding files, opening and reading them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from datas3_ray.errors import UsageError
from datas3_ray.retry import is_passing
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.columns import Columns
from datas3_ray.sources.remote import (
    Options,
    StorageOptions,
    filesystem,
    in_words,
    is_remote,
    local_path,
    open_remote,
    persistently,
)
from datas3_ray.sources.shard_patterns import File, find_files, remote_file

__all__ = [
    "IMAGES",
    "MAX_BYTES",
    "File",
    "Files",
    "Options",
    "PassingError",
    "Pattern",
    "Patterns",
    "Root",
    "StorageOptions",
    "find_files",
    "in_words",
    "is_hidden",
    "is_remote",
    "iter_folder",
    "list_folder",
    "open_file",
    "persistently",
    "read_file",
    "unreadable",
]

IMAGES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of images, in lower case."""
MAX_BYTES = 200_000_000
"""Encoded bytes of one image, or of a member, beyond which it is not read."""


def as_list(value: Any) -> Any:
    """One pattern as a list of one."""
    return [value] if isinstance(value, str) else value


Pattern = Annotated[str, Field(min_length=1)]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(as_list), Field(min_length=1)]
"""A pattern or a list of them, as ``find_files`` takes them."""


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(local_path(path)))


Root = Annotated[Pattern, AfterValidator(_absolute)]
"""A folder: a URI, or a local path made absolute, because a worker's current folder is another one."""


class Files(BaseModel):
    """The fields that every source of files has.

    ``storage_options`` goes to fsspec, such as ``{key: ..., secret: ..., endpoint_url: ...}``; its values are in no
    repr, dump, error or fingerprint. What it leaves out comes from the environment (``AWS_*``, ``FSSPEC_*``).
    ``id_prefix`` is put before every id, and images bigger than ``max_bytes`` are rejected unread.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    columns: Annotated[Columns, BeforeValidator(Columns.parse)] = Columns()
    id_prefix: str = ""
    max_bytes: Annotated[int, Field(ge=1)] = MAX_BYTES
    storage_options: Annotated[StorageOptions, BeforeValidator(StorageOptions.parse)] = Field(
        default=StorageOptions(), repr=False, exclude=True
    )

    def id_of(self, key: str) -> str:
        """An id made of the prefix, where there is one, and what is unique below it."""
        prefix = self.id_prefix.rstrip("/")
        return f"{prefix}/{key}" if prefix else key


def open_file(uri: str, storage_options: Options = None) -> IO[bytes]:
    """A local or remote file for reading; reads of a remote one are tried again when they fail.

    Raises what the file system raises (FileNotFoundError, PermissionError, its own kinds), and UsageError for an
    unknown protocol or a package that is not installed.
    """
    if is_remote(uri):
        return open_remote(uri, storage_options)
    return open(local_path(uri), "rb", buffering=0)


def read_file(uri: str, storage_options: Options = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Every byte of a local or remote file.

    Raises SampleError with the reason too_large or unreadable_file, of which a PassingError is one.
    """
    try:
        data = _read_remote(uri, storage_options, max_bytes) if is_remote(uri) else _read_local(uri, max_bytes)
    except Exception as error:  # object stores raise their own kinds, not only OSError
        raise unreadable(uri, error, storage_options) from None
    if len(data) > max_bytes:
        raise SampleError("too_large", f"{uri!r} has more than max_bytes = {max_bytes} bytes")
    return data


class PassingError(SampleError):
    """A store does not answer just now: what is asked of it later may well be there, so that no row is to be lost."""


def unreadable(uri: str, error: BaseException, storage_options: Options = None) -> SampleError:
    """The SampleError for a file that cannot be read; a PassingError where it is the store that fails, not the file."""
    if isinstance(error, FileNotFoundError):
        return SampleError("unreadable_file", f"{uri!r} is not there")
    if isinstance(error, PermissionError):
        return SampleError("unreadable_file", f"no permission to read {uri!r}")
    if isinstance(error, UsageError):
        return SampleError("unreadable_file", str(error).rstrip("."))
    # A web server that fails is one of very many, and may do so for ever.
    passing = is_remote(uri) and not uri.startswith(("http://", "https://")) and is_passing(error)
    kind = PassingError if passing else SampleError
    return kind("unreadable_file", f"{uri!r} cannot be read: {in_words(error, storage_options)}")


def _read_local(uri: str, max_bytes: int) -> bytes:
    with open(local_path(uri), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        return file.read(max_bytes + 1)


def _read_remote(uri: str, storage_options: Options, max_bytes: int) -> bytes:
    fs, path = filesystem(uri, storage_options)
    if uri.startswith(("http://", "https://")):  # a web server need not know ranges, nor the size
        return persistently(lambda: _read_stream(fs, path, max_bytes + 1))
    return persistently(lambda: _read_start(fs, path, max_bytes + 1))


def _read_stream(fs: Any, path: str, most: int) -> bytes:
    pieces: list[bytes] = []
    with fs.open(path, "rb", block_size=0) as file:
        while most > 0 and (piece := file.read(most)):
            pieces.append(piece)
            most -= len(piece)
    return b"".join(pieces)


def _read_start(fs: Any, path: str, most: int) -> bytes:
    try:
        return bytes(fs.cat_file(path, start=0, end=most))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:
        if fs.info(path)["size"] == 0:  # stores refuse any range of an empty object
            return b""
        raise


def list_folder(root: str, storage_options: Options = None, what: str = "folder") -> list[File]:
    """Every file below ``root``, sorted by uri; see :func:`iter_folder`."""
    return sorted(iter_folder(root, storage_options, what))


def iter_folder(root: str, storage_options: Options = None, what: str = "folder", deep: bool = True) -> Iterator[File]:
    """Every file below ``root`` (only right in it, unless ``deep``), in no order.

    What is hidden is left out: names that begin with a dot, and ``__MACOSX``. Links to files and folders are followed,
    a folder is entered once: under its own name where it has one here, else under that of the first link by name. A
    link that leads nowhere is listed as a file of no bytes, for its reading to tell. Raises UsageError, its sentence
    beginning with ``what``, where the folder does not exist, is a file, or cannot be listed.
    """
    if is_remote(root):
        yield from _iter_remote(root, storage_options, what, deep)
        return
    top = _absolute(root)
    if not os.path.isdir(top):
        why = "is a file, not a folder" if os.path.exists(top) else "does not exist"
        raise UsageError(f"{what}: the folder {top!r} {why}; correct the path.")
    try:
        yield from _iter_local(top, deep)
    except OSError as error:
        raise UsageError(f"{what}: the folder {top!r} cannot be listed: {in_words(error)}.") from None


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is no content of it.

    >>> is_hidden(".DS_Store"), is_hidden("__MACOSX"), is_hidden("cat.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def _iter_local(top: str, deep: bool) -> Iterator[File]:
    waiting: list[str] = [top]
    links: list[str] = []  # to folders, which come after all that have their own name here
    entered = set()
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
        folder = (waiting or links).pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    if deep:
                        (links if entry.is_symlink() else waiting).append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield File(entry.path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    yield File(entry.path, 0, "missing")


def _iter_remote(root: str, storage_options: Options, what: str, deep: bool) -> Iterator[File]:
    fs, path = filesystem(root, storage_options)
    try:
        fs.invalidate_cache()  # what was listed before in this process may have grown
        found = persistently(lambda: fs.find(path, maxdepth=None if deep else 1, detail=True))
    except Exception as error:  # every object store raises its own kinds
        raise UsageError(f"{what}: {root!r} cannot be listed: {in_words(error, storage_options)}.") from None
    start = path.rstrip("/") + "/"
    inside = {name: info for name, info in found.items() if name.startswith(start)}
    if not inside:
        why = "is a file, not a folder" if found else "holds no file or does not exist"
        raise UsageError(f"{what}: the folder {root!r} {why}; correct the path.")
    for name, info in inside.items():
        if not any(is_hidden(part) for part in name[len(start) :].split("/")):
            yield remote_file(fs, info)
