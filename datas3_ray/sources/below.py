"""File names that are data: what they mean below their data set's folder, and never anything outside of it."""

from __future__ import annotations

import os
import posixpath
import re

from datas3_ray.sources.base import SampleError
from datas3_ray.sources.remote import Options, filesystem, is_remote, local_path

# fsspec also has schemes that open local files, archives and programs; a row of a table does not get to use those.
_STORES = frozenset(["http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "hf", "oss", "memory"])
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def folder_of(uri: str) -> str:
    """The folder of a file or folder, local or remote; that of a folder without its last ``/``.

    >>> folder_of("s3://bucket/a/b.parquet"), folder_of("/data/b.parquet")
    ('s3://bucket/a', '/data')
    """
    return uri.rstrip("/").rpartition("/")[0] or "/"


def absolute(path: str, storage_options: Options = None) -> str:
    """A folder or file as its uri is listed: an absolute local path, or the remote uri that its file system gives."""
    if is_remote(path):
        fs, inner = filesystem(path, storage_options)
        return str(fs.unstrip_protocol(inner)).rstrip("/")
    return os.path.abspath(os.path.expanduser(local_path(path)))


def located(path: str | None) -> str | None:
    """A local path made absolute, so that it is the same for workers that run elsewhere; a remote one as it is."""
    return path if path is None or is_remote(path) else absolute(path)


def last_folders(folder: str, count: int) -> list[str]:
    """The names of the last ``count`` parts of a folder's path.

    >>> last_folders("s3://bucket/a/b", 2), last_folders("/a", 5), last_folders("/a", 0)
    (['a', 'b'], ['a'], [])
    """
    path = folder.partition("://")[2] if is_remote(folder) else folder
    parts = [part for part in path.split("/") if part]
    return parts[len(parts) - min(count, len(parts)) :]


def options_for(uri: str, home: str, storage_options: Options) -> Options:
    """The options for a file that the data name: a web server or another store does not get to see the keys of ours.

    >>> options_for("https://example.org/1.jpg", "s3://bucket", {"key": "k"})
    >>> options_for("s3://other/1.jpg", "s3://bucket", {"key": "k"})
    {'key': 'k'}
    """
    theirs, ours = _SCHEME.match(uri), _SCHEME.match(home)
    if theirs and ours:
        return storage_options if theirs[1].lower() == ours[1].lower() else None
    return None if uri.lower().startswith(("http://", "https://")) else storage_options


def below(root: str, name: object) -> str:
    """The uri of the file that ``name``, a relative path with ``/``, means below the folder ``root``.

    Raises SampleError with the reason bad_record for what is no such name: empty, absolute, or leading out.

    >>> below("/data/images", "cats/./1.jpg")
    '/data/images/cats/1.jpg'
    >>> below("/data/images", "cats/../../secret.jpg")
    Traceback (most recent call last):
    datas3_ray.sources.base.SampleError: the file name 'cats/../../secret.jpg' leads out of '/data/images'
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise SampleError("bad_record", f"{_short(name)} is no file name")
    path = posixpath.normpath(name)
    # A name with :: would be read by fsspec as one file system inside another.
    if path == ".." or path.startswith(("/", "../")) or _SCHEME.match(name) or "::" in name:
        raise SampleError("bad_record", f"the file name {_short(name)} leads out of {root!r}")
    if path == ".":
        raise SampleError("bad_record", f"{_short(name)} is no file name")
    return f"{root.rstrip('/')}/{path}"


def address(root: str, name: object) -> str:
    """The uri of a file that a row names: one of an object store or the web, or a path below the folder ``root``.

    Raises SampleError with the reason bad_record for anything else.

    >>> address("/data", "s3://bucket/1.jpg"), address("/data", "1.jpg"), address("/data", "/data/a/1.jpg")
    ('s3://bucket/1.jpg', '/data/1.jpg', '/data/a/1.jpg')
    """
    if isinstance(name, str) and "::" not in name and "\0" not in name:
        scheme = _SCHEME.match(name)
        home = _SCHEME.match(root)
        if scheme and (scheme[1].lower() in _STORES or (home and scheme[1] == home[1])):
            return name
        path = name.removeprefix("file://")
        if not home and path.startswith("/"):
            inner = os.path.relpath(os.path.normpath(path), root)
            return below(root, inner if not inner.startswith("..") else name)
    return below(root, name)


def stem(path: str) -> str:
    """A path without the extension of its last part.

    >>> stem("a.b/c.tar.gz"), stem("a.b/c"), stem("a/.hidden")
    ('a.b/c.tar', 'a.b/c', 'a/.hidden')
    """
    return posixpath.splitext(path)[0]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
