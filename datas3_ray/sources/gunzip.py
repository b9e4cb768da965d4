"""A gzip file as a stream that loses nothing of what comes before damage."""

from __future__ import annotations

import io
import zlib
from typing import IO, Any

_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's number for a window of 32 KiB with gzip's header and trailer
_INPUT = 1 << 18
_OUTPUT = 1 << 16  # bytes that one call may inflate: what a damaged call has to do again


class GzipError(Exception):
    """The compressed bytes end too early or are damaged; ``begun`` tells whether any of them was gzip's."""

    def __init__(self, message: str, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class GunzipFile(io.RawIOBase):
    """The bytes that a gzip file (of one or several parts) stands for, forward only.

    ``read`` raises GzipError where the file breaks off, after every byte before the break has been given out:
    Python's own reader would lose what it had buffered.

    >>> import gzip
    >>> GunzipFile(io.BytesIO(gzip.compress(b"a cat"))).read(100)
    b'a cat'
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP)
        self._waiting = b""  # compressed
        self._at = 0
        self._begun = self._started = False  # any part; the present one
        self._error: GzipError | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end or before a break."""
        pieces: list[bytes] = []
        while size and (piece := self._piece(_OUTPUT if size < 0 else min(size, _OUTPUT), bool(pieces))):
            pieces.append(piece)
            self._at += len(piece)
            size = max(size - len(piece), 0) if size > 0 else size
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on to ``offset``, or to the end; there is no way back."""
        goal = {io.SEEK_SET: offset, io.SEEK_CUR: self._at + offset}.get(whence)
        if goal is not None and goal < self._at:
            raise io.UnsupportedOperation("a gzip stream only goes forward")
        while goal is None or self._at < goal:
            if not self.read(_OUTPUT if goal is None else min(_OUTPUT, goal - self._at)):
                break
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _piece(self, most: int, given: bool) -> bytes:
        """The next bytes; empty at the end, or before an error that is raised once there is nothing more to give."""
        while self._error is None:
            if not self._waiting:
                self._waiting = self._file.read(_INPUT)
            ended = not self._waiting
            if not self._started:
                if ended:
                    return b""
                self._next_part()
                continue
            data = self._inflated(most)  # zlib itself may hold something back, even at the end
            if self._inflate.eof:
                self._waiting, self._started = self._inflate.unused_data, False
            if data:
                return data
            if ended and self._started:
                self._error = self._error or GzipError("the gzip file ends too early", True)
        if given:
            return b""
        assert self._error is not None
        raise self._error

    def _next_part(self) -> None:
        """Begin with a part where its mark is; zeros may pad the end of the file."""
        if self._begun:
            self._waiting = self._waiting.lstrip(b"\0")
            if not self._waiting:
                return
        while len(self._waiting) < len(_MAGIC) and (more := self._file.read(_INPUT)):
            self._waiting += more
        if self._waiting.startswith(_MAGIC):
            self._inflate = zlib.decompressobj(_GZIP)
            self._begun = self._started = True
        else:
            where = "goes on with" if self._begun else "begins with"
            self._error = GzipError(f"the file {where} {self._waiting[:16]!r}, which is not gzip", self._begun)

    def _inflated(self, most: int) -> bytes:
        before = self._inflate.copy()
        try:
            data = self._inflate.decompress(self._waiting, most)
        except zlib.error as error:
            self._error = GzipError(f"the gzip data are damaged: {error}", True)
            return _until_damage(before, self._waiting, most)
        self._waiting = self._inflate.unconsumed_tail
        return data


def _until_damage(inflate: zlib._Decompress, waiting: bytes, most: int) -> bytes:
    pieces: list[bytes] = []
    while len(pieces) < most:
        try:
            data = inflate.decompress(waiting, 1)
        except zlib.error:
            break
        if not data:
            break
        pieces.append(data)
        waiting = inflate.unconsumed_tail
    return b"".join(pieces)
