"""Shards by their names: which are compressed, and how they are opened."""

from __future__ import annotations

from typing import IO, Any

from datas3_ray.sources.gunzip import GunzipFile
from datas3_ray.sources.storage import Options, open_file

GZIPPED = (".tar.gz", ".tgz")


def without_query(path: str, uri: str) -> str:
    """A web address without its query: a signature in it is not the same tomorrow."""
    return path.partition("?")[0] if uri.startswith(("http://", "https://")) else path


def name_of(uri: str) -> str:
    return without_query(uri, uri).rpartition("/")[2]


def is_gzipped(uri: str) -> bool:
    """Whether a shard's name says that it is compressed with gzip.

    >>> is_gzipped("s3://bucket/00000.tar.gz"), is_gzipped("00000.tar")
    (True, False)
    """
    return name_of(uri).lower().endswith(GZIPPED)


def open_tar(uri: str, storage_options: Options = None) -> IO[bytes]:
    """A shard as the stream of its tar, whether compressed with gzip or not. Raises what ``open_file`` raises."""
    file = open_file(uri, storage_options)
    plain: Any = GunzipFile(file) if is_gzipped(uri) else file
    opened: IO[bytes] = plain
    return opened
