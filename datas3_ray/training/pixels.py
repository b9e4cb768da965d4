"""Decoded images of one size: square crops of uint8 pixels, kept once a machine where they fit in memory.

The machine's processes share what one of them has decoded through a memory-mapped file. Every process that uses the
file holds a lock on it; a file that nobody holds is removed by the next process that makes one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.decode import decode_image
from datas3_ray.training.image_rows import ImageRows

CHUNK = 32
"""Images that one job reads and decodes."""

_DONE = b"datas3 pixels 1\n"
_ALIGN = 4096
_OVERSIZED = 2  # a JPEG is decoded with at least so many times the pixels a side that are wanted
_MOST_THREADS = 16
_TURN_SECONDS = 0.05
_KEPT = 8  # files that a process holds on to between trials


def margin(size: int) -> int:
    """The shorter side in pixels that images are scaled to before the centre ``size`` is cut out.

    >>> margin(224), margin(64)
    (256, 73)
    """
    return round(size * 8 / 7)


def square(data: bytes | SampleError, size: int, edge: int) -> np.ndarray | None:
    """An encoded image scaled so that its shorter side has ``margin(size)`` pixels, and the centre of it.

    Returns
    -------
    ndarray of shape (edge, edge, 3), uint8 RGB, or None where the image cannot be read.

    >>> import io
    >>> from PIL import Image
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (40, 20), (255, 0, 0)).save(buffer, "PNG")
    >>> square(buffer.getvalue(), 8, 9)[0, 0].tolist(), square(b"no image", 8, 9)
    ([255, 0, 0], None)
    """
    from PIL import Image

    if isinstance(data, SampleError):
        return None
    try:
        image = decode_image(data, fit=_OVERSIZED * margin(size)).image
    except SampleError:
        return None
    # Scaling the part that stays is the same as scaling all of it and cutting the rest off, and costs less.
    side = min(image.size) * edge / margin(size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    resized = image.resize((edge, edge), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(resized)


def decode_rows(rows: ImageRows, size: int, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """The squares of those of n rows that can be read, uint8 (m, edge, edge, 3), and which they are, bool (n,)."""
    squares = [square(data, size, edge) for data in rows.encoded()]
    readable = np.array([one is not None for one in squares], dtype=bool)
    there = [one for one in squares if one is not None]
    return np.stack(there) if there else np.empty((0, edge, edge, 3), np.uint8), readable


@dataclass(frozen=True)
class Pixels:
    """Which of n rows can be read, bool (n,), and their pixels, uint8 (n, edge, edge, 3), where they are kept."""

    readable: np.ndarray
    squares: np.ndarray | None


def pixels(rows: ImageRows, size: int, edge: int, most_bytes: int) -> Pixels:
    """Read every image of ``rows`` once on this machine and keep its pixels where all fit in ``most_bytes``.

    What another process of this machine has read, or is reading, is used and not read again. Where the pixels do not
    fit, the images are decoded all the same, to know which can be read.
    """
    keep = len(rows) * edge * edge * 3 <= most_bytes
    key = _key(rows, size, edge if keep else 0)
    if key in _HELD:
        _HELD.move_to_end(key)
        return _HELD[key]
    folder = Path(tempfile.gettempdir()) / f"datas3-pixels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    try:
        found = _open(folder / key, rows, size, edge, keep)
    except OSError as error:
        if not keep or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return pixels(rows, size, edge, 0)  # no room for the file: decoded again every epoch
    _HELD[key] = found
    while len(_HELD) > _KEPT or (len(_HELD) > 1 and sum(map(_size, _HELD.values())) > most_bytes):
        _HELD.popitem(last=False)
    return found


_HELD: OrderedDict[str, Pixels] = OrderedDict()


def forget() -> None:
    """Let go of the files that this process holds for the next trial."""
    _HELD.clear()


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(one: Pixels) -> int:
    return one.squares.nbytes if one.squares is not None else 0


def _key(rows: ImageRows, size: int, edge: int) -> str:
    """What the pixels depend on: the rows, where their images are, and the sizes."""
    digest = hashlib.blake2b(f"{size} {edge} {len(rows)} {rows.stored}".encode(), digest_size=16)
    digest.update(hash64(id_words(rows.ids), seed=0, stream="pixels").tobytes())
    for column in rows.places.columns:
        values = column.combine_chunks()
        if pa.types.is_string(values.type):
            coded = values.dictionary_encode()
            digest.update("\0".join(map(str, coded.dictionary.to_pylist())).encode("utf-8", "surrogatepass"))
            values = coded.indices
        digest.update(pc.fill_null(values, -1).to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()


def _open(path: Path, rows: ImageRows, size: int, edge: int, keep: bool) -> Pixels:
    """The file's content, read by whoever comes first; the others wait for it."""
    count = len(rows)
    head = -(-(len(_DONE) + count) // _ALIGN) * _ALIGN
    whole = head + (count * edge * edge * 3 if keep else 0)
    file = _locked(path, whole)
    try:
        if not _done(file, whole):
            _remove_abandoned(path.parent, besides=path.name)
            _allocate(file, whole)
            _fill(np.frombuffer(mmap.mmap(file, whole), np.uint8), rows, size, edge, head, keep)
            os.pwrite(file, _DONE, 0)
        fcntl.flock(file, fcntl.LOCK_SH)
        view = np.frombuffer(mmap.mmap(file, whole, access=mmap.ACCESS_READ), np.uint8)
    except BaseException:
        os.close(file)
        raise
    squares = view[head:].reshape(count, edge, edge, 3) if keep else None
    found = Pixels(view[len(_DONE) : len(_DONE) + count].astype(bool), squares)
    # The lock lives as long as the pixels are in use; what is mapped stays readable even when the file is removed.
    weakref.finalize(found, _release, file, str(path))
    return found


def _locked(path: Path, size: int) -> int:
    """The file, made where there is none: shared with others where it is done, else with this process alone in it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for a process that is filling it
        if (_done(file, size) or _alone(file)) and _is_at(file, path):
            return file
        os.close(file)
        time.sleep(_TURN_SECONDS)


def _alone(file: int) -> bool:
    """Whether this process got the file to itself. It never waits for that: who is done shares it for long."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: who used it before may have removed it."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _done(file: int, size: int) -> bool:
    return os.pread(file, len(_DONE), 0) == _DONE and os.fstat(file).st_size == size


def _allocate(file: int, size: int) -> None:
    """Room for ``size`` bytes, all zero; a full disk is told here and not by a signal while pixels are written."""
    os.ftruncate(file, 0)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _release(file: int, path: str) -> None:
    """Remove the file where this process was the last to use it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:  # another process uses it, or has removed it
        pass
    finally:
        os.close(file)


def _remove_abandoned(folder: Path, besides: str) -> None:
    """Remove what killed processes left: the kernel has let go of their locks."""
    for path in folder.iterdir():
        if path.name == besides:
            continue
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        _release(file, str(path))


def _fill(content: np.ndarray, rows: ImageRows, size: int, edge: int, head: int, keep: bool) -> None:
    """Read every image into the file: a byte a row that says whether it can be read, and the pixels."""
    flags = content[len(_DONE) : len(_DONE) + len(rows)]
    squares = content[head:].reshape(len(rows), edge, edge, 3) if keep else None

    def read(start: int) -> None:
        chunk = rows.take(np.arange(start, min(start + CHUNK, len(rows))))
        found, readable = decode_rows(chunk, size, edge)
        flags[start : start + len(chunk)] = readable
        if squares is not None:
            squares[start : start + len(chunk)][readable] = found

    with ThreadPoolExecutor(min(cpus(), _MOST_THREADS)) as threads:
        _exhaust(threads.map(read, range(0, len(rows), CHUNK)))


def _exhaust(results: Iterable[None]) -> None:
    for _ in results:
        pass
