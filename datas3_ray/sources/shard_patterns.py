"""Patterns to files: braces and globs over local paths or object stores; what is missing is said in one sentence."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from datas3_ray.errors import UsageError
from datas3_ray.sources.remote import Options, filesystem, in_words, is_remote, local_path, persistently

MOST = 1_000_000  # paths that one brace pattern may stand for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "LastModified", "last_modified", "mtime", "created")
_LIST_FROM = 16  # shards of one remote folder from which its listing is cheaper than asking for each


class File(NamedTuple):
    """An existing file: ``uri`` is an absolute path or a URI; ``fingerprint`` changes when its content does."""

    uri: str
    size: int
    fingerprint: str


def find_files(patterns: Iterable[str], storage_options: Options = None, what: str = "webdataset") -> list[File]:
    """The files that the patterns name, once each and sorted by uri; errors begin with ``what`` they are for.

    A pattern is a local path or an fsspec URI, with ``~``, braces (``{000..099}``, ``{a,b}``) and globs (``*``, ``?``,
    ``[..]``, ``**``). Raises UsageError where a pattern names nothing, or one of the files it spells out is missing.
    """
    found: dict[str, File] = {}
    for pattern in patterns:
        try:
            files = _find_remote(pattern, storage_options) if is_remote(pattern) else _find_local(pattern)
        except UsageError as error:
            raise UsageError(f"{what}: {error}") from None
        found.update((file.uri, file) for file in files)
    return [found[uri] for uri in sorted(found)]


def expand_braces(pattern: str) -> list[str]:
    """Every pattern that the braces of one stand for.

    >>> expand_braces("{a,b}/{08..10}.tar")
    ['a/08.tar', 'a/09.tar', 'a/10.tar', 'b/08.tar', 'b/09.tar', 'b/10.tar']
    """
    found: dict[str, None] = {}
    for count, text in enumerate(_expand(pattern, pattern)):
        if count >= MOST:
            raise UsageError(f"{pattern!r} stands for more than {MOST:,} paths; use a glob such as *.tar.")
        found[text] = None
    return list(found)


def _expand(text: str, pattern: str) -> Iterator[str]:
    braces = _BRACES.search(text)
    if braces is None:
        yield text
        return
    for word in _words(braces[1], pattern):
        yield from _expand(text[: braces.start()] + word + text[braces.end() :], pattern)


def _words(inside: str, pattern: str) -> Iterable[str]:
    span = _RANGE.fullmatch(inside)
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise UsageError(f"{pattern!r}: {{{inside}}} runs backwards; write {{{span[2]}..{span[1]}}}.")
        return (str(number).zfill(len(span[1])) for number in range(first, last + 1))
    if "," in inside:
        return inside.split(",")
    raise UsageError(f"{pattern!r}: {{{inside}}} is neither a range {{000..099}} nor a list {{a,b}}.")


def _find_local(pattern: str) -> list[File]:
    path = os.path.abspath(os.path.expanduser(local_path(pattern)))
    if os.path.isfile(path):  # a name that only looks like a pattern
        return [_local_file(path)]
    files, missing = [], []
    for name in expand_braces(path):
        if glob.has_magic(name) and not os.path.exists(name):
            for match in glob.iglob(name, recursive=True):
                if os.path.isfile(match):
                    files.append(_local_file(match))
                elif os.path.islink(match) and not os.path.exists(match):
                    target = os.readlink(match)
                    raise UsageError(
                        f"{match!r} is a link to {target!r}, which is not there; bring that, or remove it."
                    )
        elif os.path.isfile(name):
            files.append(_local_file(name))
        elif os.path.isdir(name):
            raise _is_folder(pattern, os.listdir(name))
        else:
            missing.append(name)
    _check(pattern, files, missing, _local_folder(path))
    return files


def _local_file(path: str) -> File:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path!r} is not a regular file.")
    return File(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _local_folder(path: str) -> str:
    """What is known of the deepest folder of a pattern that is spelled out."""
    folder = os.path.dirname(path)
    while glob.has_magic(folder) or "{" in folder:
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        there = folder
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        return f"the folder {folder!r} does not exist ({there!r} does)"
    return f"the folder {folder!r} exists and {_holds(os.listdir(folder))}"


def _holds(names: list[str]) -> str:
    """What is in a folder, in a few words."""
    kind = _kind(names)
    if not kind:
        return f"holds {min(names)!r}" if names else "is empty"
    files = sorted(name for name in names if name.lower().endswith(kind))
    return f"holds {len(files)} {kind} file{'s' if len(files) > 1 else ''}, such as {files[0]!r}"


def _kind(names: Iterable[str]) -> str:
    """The extension that most of the names have, with its dot; empty when none has one."""
    kinds = Counter(PurePosixPath(name).suffix.lower() for name in names)
    del kinds[""]
    return min(kinds, key=lambda kind: (-kinds[kind], kind), default="")


def _is_folder(pattern: str, names: Iterable[str]) -> UsageError:
    inside = f"{pattern.rstrip('/')}/*{_kind(names)}"
    return UsageError(f"{pattern!r} is a folder; write {inside!r} for the files in it.")


def _find_remote(pattern: str, storage_options: Options) -> list[File]:
    names = expand_braces(pattern)
    fs, _ = filesystem(names[0], storage_options)
    fs.invalidate_cache()  # what was listed before in this process may have grown
    try:
        return persistently(lambda: _list_remote(fs, pattern, names))
    except UsageError:
        raise
    except Exception as error:  # every object store raises its own kinds
        raise UsageError(f"{pattern!r} cannot be listed: {in_words(error, storage_options)}.") from None


def _list_remote(fs: Any, pattern: str, names: list[str]) -> list[File]:
    paths = [str(fs._strip_protocol(name)) for name in names]
    # What exists by its name is a name: the ? of a URL's query is no glob.
    globs = {path for path in paths if glob.has_magic(path) and _info(fs, path) is None}
    plain = [path for path in paths if path not in globs]
    known = _listings(fs, plain)
    infos = [known.get(path) or _info(fs, path) for path in plain]
    for path in sorted(globs):
        infos += fs.glob(path, detail=True).values()
    missing = [path for path, info in zip(plain, infos, strict=False) if info is None]
    for path, info in zip(plain, infos, strict=False):
        if info is not None and info["type"] == "directory":
            raise _is_folder(pattern, fs.ls(path, detail=False))
    files = [remote_file(fs, info) for info in infos if info is not None and info["type"] != "directory"]
    parent = str(PurePosixPath(paths[0]).parent)
    exists = not glob.has_magic(parent) and _info(fs, parent) is not None
    _check(pattern, files, missing, f"the folder {parent!r} {'exists' if exists else 'was not found'}")
    return files


def _listings(fs: Any, paths: list[str]) -> dict[str, Any]:
    """What one listing a folder says about the paths, where there are many in it."""
    folders: dict[str, int] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    known: dict[str, Any] = {}
    for folder, count in folders.items():
        if count >= _LIST_FROM:
            try:
                known.update((info["name"], info) for info in fs.ls(folder, detail=True))
            except FileNotFoundError:
                continue
    return known


def _info(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return info


def remote_file(fs: Any, info: dict[str, Any]) -> File:
    """The file of an entry that a file system lists."""
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    size = int(info.get("size") or 0)
    return File(str(fs.unstrip_protocol(info["name"])), size, f"{size}-{tag}".rstrip("-"))


def _check(pattern: str, files: list[File], missing: list[str], folder: str) -> None:
    if missing:
        which = repr(missing[0]) if len(missing) == 1 else f"{missing[0]!r} and {len(missing) - 1} more"
        count = f"{len(missing)} of {len(missing) + len(files)} files are missing" if files else "no such file"
        raise UsageError(f"{pattern!r}: {count}: {which}; {folder}; correct the path or the range.")
    if not files:
        raise UsageError(f"{pattern!r} matches no file; {folder}; correct the pattern.")
