"""Object stores: options that stay secret, the file system of a URI, and another try where one may help."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

from datas3_ray.errors import UsageError

T = TypeVar("T")

ATTEMPTS = 3
PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*(?:::[a-zA-Z0-9+.-]+)*)://")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, UsageError)
_PACKAGES = {
    "s3": "pip install 'datas3-ray[s3]'",
    "s3a": "pip install 'datas3-ray[s3]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "abfs": "pip install adlfs",
    "abfss": "pip install adlfs",
    "az": "pip install adlfs",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
    "hf": "pip install huggingface_hub",
}
_BLOCK = 4 << 20
_HIDDEN_FROM = 4  # a shorter value, such as a region's number, is in too many sentences to be blotted out of them


class StorageOptions(Mapping[str, Any]):
    """What a file system is opened with, such as keys: names may be shown, values never are.

    >>> StorageOptions.parse({"key": "AKIA...", "secret": "..."})
    StorageOptions(key, secret)
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})

    @classmethod
    def parse(cls, values: Any) -> StorageOptions:
        """The options of a recipe's mapping; a UsageError names the option that is wrong, not its value."""
        if isinstance(values, StorageOptions):
            return values
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise UsageError(
                f"storage_options: expected a mapping such as {{key: ..., secret: ...}}, got {type(values).__name__}."
            )
        for name, value in values.items():
            _check(str(name), name, value)
        return cls(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values))

    def __repr__(self) -> str:
        return f"StorageOptions({', '.join(self._values)})"

    def scrub(self, text: str) -> str:
        """The text without any of the options' values.

        >>> StorageOptions({"secret": "open sesame"}).scrub("the key 'open sesame' is wrong")
        "the key '***' is wrong"
        """
        for value in sorted(_texts(self._values), key=len, reverse=True):
            text = text.replace(value, "***")
        return text


Options = Mapping[str, Any] | None


def _check(place: str, name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise UsageError(f"storage_options: the name {place!r} is not text; quote it.")
    if isinstance(value, Mapping):
        for inner, item in value.items():
            _check(f"{place}.{inner}", inner, item)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise UsageError(
            f"storage_options: {place} is {type(value).__name__}; options are text, numbers, true or false, or a "
            "mapping of them."
        )


def _texts(values: Mapping[str, Any]) -> Iterator[str]:
    for value in values.values():
        if isinstance(value, Mapping):
            yield from _texts(value)
        elif not isinstance(value, bool) and value is not None and len(str(value)) >= _HIDDEN_FROM:
            yield str(value)


def is_remote(uri: str) -> bool:
    """Whether a path is fsspec's to open; ``file://`` is as local as a plain path.

    >>> is_remote("s3://bucket/a.tar"), is_remote("file:///data/a.tar"), is_remote("data/a.tar")
    (True, False, False)
    """
    scheme = _SCHEME.match(uri)
    return scheme is not None and scheme[1] not in ("file", "local")


def local_path(uri: str) -> str:
    """A local path without its ``file://``."""
    scheme = _SCHEME.match(uri)
    return uri[scheme.end() :] if scheme else uri


def filesystem(uri: str, storage_options: Options = None) -> tuple[Any, str]:
    """fsspec's file system of a URI, and the path in it.

    Raises UsageError for an unknown protocol, a package that is not installed, and options that it does not take.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri, **(storage_options or {}))
    except ImportError as error:
        scheme = _SCHEME.match(uri)
        install = _PACKAGES.get(scheme[1] if scheme else "")
        how = f"its package is not installed; {install}" if install else in_words(error)
        raise UsageError(f"{uri!r} cannot be opened: {how}.") from None
    except Exception as error:  # every file system has its own idea of a wrong option
        raise UsageError(f"{uri!r} cannot be opened: {in_words(error, storage_options)}.") from None
    return fs, str(path)


def in_words(error: BaseException, storage_options: Options = None) -> str:
    """An error's kind and message on one line, without the values of the options."""
    text = " ".join(str(error).split())
    text = StorageOptions(storage_options).scrub(text).rstrip(".")
    if len(text) > 300:
        text = text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_final(error: BaseException) -> bool:
    """Whether an error will be the same when it is tried again, such as that of a missing file."""
    return isinstance(error, _FINAL)


def persistently(call: Callable[[], T], pause: float = 0.0) -> T:
    """``call()``, up to three times, unless its error is one that stays. It begins with a ``pause`` of seconds."""
    for attempt in range(ATTEMPTS):
        time.sleep(pause)
        pause = 2 * pause or PAUSE
        try:
            return call()
        except Exception as error:  # every object store raises its own kinds
            if is_final(error) or attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class PersistentFile(io.RawIOBase):
    """A remote file that reads again from where it was when a read fails."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        begun, failed = self._at, False

        def attempt() -> bytes:
            nonlocal failed
            if failed:
                self._file.seek(begun)
            failed = True
            return self._file.read(size)

        data = persistently(attempt)
        self._at = begun + len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = self._file.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_remote(uri: str, storage_options: Options = None) -> IO[bytes]:
    """A remote file for reading, in large blocks and with retries."""
    fs, path = filesystem(uri, storage_options)
    file: Any = PersistentFile(persistently(lambda: fs.open(path, "rb", block_size=_BLOCK)))
    opened: IO[bytes] = file
    return opened
