"""Read a tar archive front to back as a stream: each member's name, where its bytes are, and the bytes.

Reads what real archives hold: POSIX ustar with its name prefix, GNU long names, pax headers (path and size, for one
member or for all that follow), base-256 sizes and pre-POSIX headers. Every header's checksum is verified. Directories
and devices are passed over, and links are told, but not followed. Names are data: nothing is ever written, so that
``..`` and ``/`` mean nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from datas3_ray.sources.gunzip import GzipError

RECORD = 512
_BLOCK = 4 << 20  # bytes asked of the file at a time
_SEEK = 1 << 20  # skip by seeking beyond this, by reading below it
_MOST = 1 << 42  # a member beyond this is damage, and beyond what can be sought
_LONGEST = 1 << 20  # a long name or pax header beyond this is damage
_ZEROS = bytes(RECORD)
_REGULAR = b"0\x007"
_LINKS = b"12"
_NO_DATA = b"123456"  # links, devices, directories and pipes have no data, whatever their size field says
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class Member(NamedTuple):
    """A regular file of the archive, or a ``link`` to one; ``data`` is None when it was not wanted, for a link, and for
    what is ``sparse`` (not in one piece)."""

    name: str
    offset: int
    size: int
    data: bytes | None
    sparse: bool
    link: bool = False


class TarError(Exception):
    """The archive breaks off at ``offset``, inside the member ``name`` where that is known.

    ``reason`` is one of empty_shard (no bytes at all), not_a_tar, truncated_shard, unreadable_shard. ``ended`` where
    the end mark came before: a compressed archive can be damaged behind it, and every member is complete.
    """

    def __init__(self, reason: str, offset: int, message: str, name: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset
        self.name = name
        self.ended = False


def read_tar(file: IO[bytes], wanted: Callable[[str, int], bool] = lambda name, size: True) -> Iterator[Member]:
    """The regular members and links of the tar in ``file``, in order; ``wanted(name, size)`` says whose bytes to read.

    At most one block and the members' own bytes are in memory. Raises TarError where the archive ends before its end
    mark, is damaged, is no tar at all, or cannot be read; every member before has been yielded by then.

    >>> import io, tarfile
    >>> with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
    ...     info = tarfile.TarInfo("0001.txt")
    ...     info.size = 5
    ...     tar.addfile(info, io.BytesIO(b"a cat"))
    >>> [tuple(member) for member in read_tar(io.BytesIO(file.getvalue()))]
    [('0001.txt', 512, 5, b'a cat', False, False)]
    """
    stream = _Stream(file)
    pending = _Pending()
    begun = ended = False
    while True:
        at = stream.position
        try:
            header = stream.header()
        except TarError as error:
            error.ended = ended
            raise
        if len(header) < RECORD:
            if ended:
                return
            raise _broken_off(header, at, begun)
        if header == _ZEROS:
            begun = ended = True
            continue
        if not _checksum_holds(header):
            if ended:
                return  # what follows the end mark is no second archive, so it is none of ours
            raise _damaged(header, at, begun)
        begun, ended = True, False
        try:
            member = pending.apply(header, stream)
        except ValueError as error:
            raise TarError("truncated_shard", at, f"damaged header at byte {at}: {error}") from None
        if member is None:
            continue
        offset = stream.position
        if member.link:
            yield Member(member.name, offset, 0, None, sparse=False, link=True)
            continue
        if member.sparse or not wanted(member.name, member.size):
            stream.skip(member.size, member.name)
            yield Member(member.name, offset, member.size, None, member.sparse)
        else:
            yield Member(member.name, offset, member.size, stream.take(member.size, member.name), False)
        stream.skip(-member.size % RECORD, member.name)


class _Entry(NamedTuple):
    name: str
    size: int
    sparse: bool
    link: bool = False


class _Pending:
    """What headers said about the members that follow them: long names, pax records."""

    def __init__(self) -> None:
        self._always: dict[str, bytes] = {}
        self._next: dict[str, bytes] = {}

    def apply(self, header: bytes, stream: _Stream) -> _Entry | None:
        """The regular file whose data come next, a link, or None, with the stream at the next header.

        Raises ValueError for a field that cannot be read.
        """
        kind = header[156:157]
        size = _number(header[124:136])
        if kind in b"xXgLK":
            self._note(kind, stream, size)
            return None
        records = {**self._always, **self._next} if self._always else self._next
        self._next = {}
        if "size" in records:
            size = _decimal(records["size"])
        sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in records)
        raw = records.get("GNU.sparse.name") or records.get("path") or records.get("longname") or _plain_name(header)
        if kind in _LINKS:
            return _Entry(_text(raw), 0, sparse=False, link=True)
        if kind in _NO_DATA or (kind == b"\0" and raw.endswith(b"/")):
            return None
        name = _text(raw)
        if kind == b"S" and header[482]:
            while stream.take(RECORD, name)[504]:
                pass
        if kind not in _REGULAR and not sparse:
            stream.skip(size + -size % RECORD, name)
            return None
        return _Entry(name, size, sparse)

    def _note(self, kind: bytes, stream: _Stream, size: int) -> None:
        if size > _LONGEST:
            raise ValueError(f"a name or pax header of {size} bytes")
        data = stream.take(size, "a name or pax header")
        stream.skip(-size % RECORD, "a name or pax header")
        if kind == b"L":
            self._next["longname"] = data.split(b"\0", 1)[0]
        elif kind == b"g":
            _read_pax(data, self._always)
        elif kind != b"K":
            _read_pax(data, self._next)


def _read_pax(data: bytes, into: dict[str, bytes]) -> None:
    """Add the records ``b"LENGTH KEY=VALUE\\n"`` that matter here; an empty value takes the key back."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        if space < 0:
            raise ValueError("a pax record without its length")
        end = at + _decimal(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or not equals or data[end - 1 : end] != b"\n":
            raise ValueError("a pax record that does not end where it says")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            into[key.decode("ascii", "replace")] = value
            if not value:
                del into[key.decode("ascii", "replace")]
        at = end


def _plain_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(name: bytes) -> str:
    """UTF-8, with bytes that are not as ``\\xNN``: distinct, readable, and text that any table can hold."""
    return name.decode("utf-8", "backslashreplace")


def _number(field: bytes) -> int:
    """An octal field, or one in base 256 when its first byte is 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(f"{digits!r} is no octal number")
    return int(digits, 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise ValueError(f"{digits[:20]!r} is no decimal number")
    return int(digits)


def _checksum_holds(header: bytes) -> bool:
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    rest = header[:148] + header[156:]
    total = sum(rest) + 8 * 32  # the field itself counts as spaces
    return total == stored or total - 256 * sum(byte > 127 for byte in rest) == stored  # some summed signed bytes


def _broken_off(header: bytes, at: int, begun: bool) -> TarError:
    end = at + len(header)
    if not begun:
        if not end:
            return TarError("empty_shard", 0, "the file is empty")
        return TarError("not_a_tar", 0, f"{_looks_like(header)} ({end} bytes)")
    if header:
        return TarError("truncated_shard", at, f"the file ends at byte {end}, inside a header")
    return TarError("truncated_shard", at, f"the file ends at byte {end} without the end mark of a tar")


def _damaged(header: bytes, at: int, begun: bool) -> TarError:
    if not begun:
        return TarError("not_a_tar", 0, _looks_like(header))
    return TarError("truncated_shard", at, f"damaged header at byte {at}: its checksum is wrong")


def _looks_like(header: bytes) -> str:
    for magic, packer in _PACKED.items():
        if header.startswith(magic):
            how = "end its name with .tar.gz, or unpack it" if packer == "gzip" else "unpack it"
            return f"the file is compressed with {packer}; {how}, because images are fetched by byte range"
    return f"the file begins with {header[:16]!r}, which is no tar header"


class _Stream:
    """Sequential reading in large blocks; ``take`` and ``skip`` raise TarError when the file ends first."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._block = b""
        self._at = 0  # of the block
        self._start = 0  # of the block in the file
        self._name = ""  # the member being read, where one is

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, size: int, name: str) -> bytes:
        """The next ``size`` bytes, which belong to the member ``name``."""
        self._name = name
        end = self._at + size
        if end <= len(self._block):
            piece = self._block[self._at : end]
            self._at = end
            return piece
        begun, pieces, missing = self.position, [], size
        while missing:
            piece = self._block[self._at : self._at + missing]
            if not piece and not self._fill():
                raise _ends_inside(name, begun, missing)
            pieces.append(piece)
            missing -= len(piece)
            self._at += len(piece)
        return b"".join(pieces)

    def header(self) -> bytes:
        """The next record, or what is left of the file: fewer than 512 bytes only at its end."""
        self._name = ""
        if len(self._block) - self._at >= RECORD:
            return self.take(RECORD, "")
        at, rest = self.position, self._block[self._at :]
        while len(rest) < RECORD and self._fill():
            rest += self._block
        self._block, self._start, self._at = rest, at, min(RECORD, len(rest))
        return rest[:RECORD]

    def skip(self, size: int, name: str) -> None:
        """Move on by ``size`` bytes, which belong to the member ``name`` and have to be there."""
        self._name = name
        begun, ahead = self.position, len(self._block) - self._at
        if size > _MOST:
            raise TarError("truncated_shard", begun, f"{name!r} claims {size} bytes, more than any file has", name)
        if size <= ahead:
            self._at += size
        elif size > ahead + _SEEK:
            last = begun + size - 1
            self._call(self._file.seek, last)
            self._block, self._start, self._at = b"", last, 0
            if not self._fill():
                end = self._call(self._file.seek, 0, 2)
                raise _ends_inside(name, begun, begun + size - end)
            self._at = 1
        else:
            while size:
                step = min(size, len(self._block) - self._at)
                self._at += step
                size -= step
                if size and not self._fill():
                    raise _ends_inside(name, begun, size)

    def _fill(self) -> bool:
        self._start += len(self._block)
        self._at = 0
        self._block = self._call(self._file.read, _BLOCK)
        return bool(self._block)

    def _call(self, method: Callable[..., Any], *arguments: int) -> Any:
        try:
            return method(*arguments)
        except GzipError as error:
            raise TarError(
                "truncated_shard" if error.begun else "not_a_tar", self._start, str(error), self._name
            ) from None
        except Exception as error:  # object stores raise their own kinds, not only OSError
            message = f"{type(error).__name__}: {error}"
            raise TarError("unreadable_shard", self._start, message, self._name) from error


def _ends_inside(name: str, begun: int, missing: int) -> TarError:
    return TarError("truncated_shard", begun, f"the file ends {missing} bytes before the end of {name!r}", name)
