"""Reads a submission's zip archive that anyone may have made: bounded, in memory, and never a path of this machine."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

from datas3_ray.errors import UsageError

MAX_FILE = 512 << 20
MAX_MEMBERS = 2000
MAX_IDS = 256 << 20
MAX_MEMBER = 64 << 20
"""Bytes that a member unpacks to at most: one of ids, and any other."""
MAX_ALL = 512 << 20

_MEMBER = re.compile(r"manifest\.json|trials\.jsonl|selections/[A-Za-z0-9][A-Za-z0-9_.\-]*/(ids\.jsonl|lineage\.json)")


class Fault(Exception):
    """What is wrong with a submission, in one sentence."""


def read_members(path: Path) -> dict[str, bytes]:
    """The archive's members by name.

    Raises
    ------
    UsageError
        When there is no such file.
    Fault
        When it is no zip archive, larger than a submission can be, or has members that a submission cannot have.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"no file {path}: {error.strerror}.") from None
    if size > MAX_FILE:
        raise Fault(f"the file has {size:,} bytes; a submission has {MAX_FILE:,} at most")
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: _read(archive, info) for info in _checked(archive)}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise Fault(f"it is no zip archive that can be read: {' '.join(str(error).split())}") from None
    except (ValueError, zlib.error) as error:
        raise Fault(f"a member cannot be unpacked: {error}") from None


def _checked(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members, when all may be read: everything is known before a byte is unpacked."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise Fault(f"it has {len(members):,} members; a submission has {MAX_MEMBERS:,} at most")
    seen: set[str] = set()
    for info in members:
        if not _MEMBER.fullmatch(info.orig_filename):
            raise Fault(f"it has a member {info.orig_filename!r}, which no submission has")
        if info.filename in seen:
            raise Fault(f"its member {info.filename} is there twice")
        seen.add(info.filename)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 0x1:
            raise Fault(f"its member {info.filename} is encrypted, or packed otherwise than by deflation")
        most = MAX_IDS if info.filename.endswith("/ids.jsonl") else MAX_MEMBER
        if info.file_size > most:
            raise Fault(f"its member {info.filename} unpacks to {info.file_size:,} bytes; {most:,} are allowed")
    total = sum(info.file_size for info in members)
    if total > MAX_ALL:
        raise Fault(f"its members unpack to {total:,} bytes; {MAX_ALL:,} are allowed")
    return members


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, never more than it says it has: a size that is too small ends it early, and its checksum then fails."""
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise Fault(f"its member {info.filename} unpacks to another size than it says")
    return data
