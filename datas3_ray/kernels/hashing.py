"""Randomness that belongs to a row: a 64-bit hash of (seed, stream, id), and uniform and Gumbel draws from it.

A draw depends on nothing but the id's bytes, the seed and the name of the stream, so the same row gets the same
number whatever worker, batch or order it was in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Words: TypeAlias = npt.NDArray[np.uint64]

_WORD = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SALT = np.uint64(0xD1B54A32D192ED03)
_LARGEST_BELOW_ONE = 1.0 - 2.0**-53


def id_words(ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> Words:
    """The UTF-8 bytes of each id as big-endian 8-byte words, padded with zeros.

    Rows compare as words exactly as their ids compare as bytes, which is the order that breaks every tie.

    Args:
        ids: n strings: an Arrow string array (sliced, chunked, large, view or dictionary) or a list of ``str``.

    Returns:
        uint64 of shape (n, w), where w is the number of words of the longest id, at least 1.

    Raises:
        ValueError: an id is null, is not a string, or holds a NUL byte (which padding could not be told from).

    >>> [hex(word) for word in id_words(["ab", "abcdefghi"])[:, 0]]
    ['0x6162000000000000', '0x6162636465666768']
    """
    chunks = _string_chunks(ids)
    parts = [_chunk_words(chunk) for chunk in chunks]
    width = max((part.shape[1] for part in parts), default=1)
    words = np.zeros((sum(len(part) for part in parts), width), np.uint64)
    row = 0
    for part in parts:
        words[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return words


def hash64(words: npt.ArrayLike, seed: int, stream: str) -> Words:
    """A 64-bit hash of each id, for one seed and one named stream of draws.

    Words are absorbed one at a time through a multiply-and-shift finaliser; words of zero are passed over, so
    the width to which the batch was padded does not matter.

    Args:
        words: uint64 of shape (n, w) from :func:`id_words`.
        seed: 0 <= seed < 2**64.
        stream: what the draw is for; different names give independent draws.

    Returns:
        uint64 of shape (n,).

    Raises:
        ValueError: the words are not a (n, w) uint64 array, or the seed is out of range.

    >>> one, two = hash64(id_words(["a", "b"]), seed=0, stream="order")
    >>> bool(one == hash64(id_words(["a", "a much longer id"]), seed=0, stream="order")[0])
    True
    """
    words = as_words(words)
    state = np.repeat(_start(seed, stream), len(words))
    for column in words.T:
        state = np.where(column == 0, state, _mix(state ^ _mix(column + _SALT)))
    return _mix(state + _GOLDEN)


def uniform(hashes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(hash + 1/2) / 2^64, strictly between 0 and 1.

    Args:
        hashes: uint64 of any shape.

    Returns:
        float64 of the same shape. The few hashes that would round up to 1 give the largest number below it.

    >>> float(uniform(np.array([2**63], np.uint64))[0])
    0.5
    >>> bool(uniform(np.array([2**64 - 1], np.uint64))[0] < 1.0)
    True
    """
    numbers = np.asarray(hashes, np.uint64).astype(np.float64)
    return np.minimum((numbers + 0.5) * 2.0**-64, _LARGEST_BELOW_ONE)


def gumbel(hashes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Standard Gumbel draws -ln(-ln u): the N largest of log-weight + gumbel are N draws without replacement.

    Args:
        hashes: uint64 of any shape.

    Returns:
        float64 of the same shape, always finite.

    >>> round(float(gumbel(np.array([2**63], np.uint64))[0]), 6)
    0.366513
    """
    return -np.log(-np.log(uniform(hashes)))


def as_words(words: npt.ArrayLike) -> Words:
    """``words`` checked to be a (n, w) uint64 array, as every function on words needs it.

    >>> as_words(np.zeros((2, 1), np.uint64)).shape
    (2, 1)
    """
    array = np.asarray(words)
    if array.ndim != 2 or array.dtype != np.uint64:
        raise ValueError(f"words must be uint64 of shape (rows, words), not {array.dtype} of shape {array.shape}")
    return array


def _mix(x: Words) -> Words:
    """The splitmix64 finaliser: a bijection of 64-bit words in which each input bit flips half of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _start(seed: int, stream: str) -> Words:
    """The (1,) state before the first word. The stream's length is absorbed too, so no two streams share it."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    name = stream.encode("utf-8")
    padded = name + b"\0" * (-len(name) % _WORD)
    # The seed and the words are salted differently: with one salt, seed 1 and length 1 would cancel out.
    state = _mix(np.array([int(seed)], np.uint64) + _GOLDEN)
    for word in [len(name), *np.frombuffer(padded, ">u8").tolist()]:
        state = _mix(state ^ _mix(np.array([word], np.uint64) + _SALT))
    return state


def _string_chunks(ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> list[Any]:
    """``ids`` as Arrow string or large_string arrays."""
    import pyarrow as pa

    if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
        try:
            ids = pa.array(ids, pa.large_string())
        except (pa.ArrowTypeError, pa.ArrowInvalid, TypeError) as error:
            raise ValueError(f"ids must be strings: {error}") from None
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        if not _is_textual(ids.type):
            raise ValueError(f"ids must be strings, not {ids.type}")
        ids = ids.cast(pa.large_string())
    if ids.null_count:
        raise ValueError(f"ids must not be null, and {ids.null_count} of {len(ids)} are")
    return list(ids.chunks) if isinstance(ids, pa.ChunkedArray) else [ids]


def _is_textual(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _chunk_words(chunk: pa.Array) -> Words:
    """The words of one Arrow array, read from its offsets and its data buffer."""
    import pyarrow as pa

    n = len(chunk)
    if n == 0:
        return np.zeros((0, 1), np.uint64)
    _, offset_buffer, data_buffer = chunk.buffers()
    kind = np.dtype(np.int64 if pa.types.is_large_string(chunk.type) else np.int32)
    offsets = np.frombuffer(offset_buffer, kind, n + 1, chunk.offset * kind.itemsize).astype(np.int64)
    lengths = np.diff(offsets)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]] if offsets[-1] > offsets[0] else b""
    text = np.asarray(data, np.uint8) if len(data) else np.zeros(0, np.uint8)
    _refuse_nul(text, offsets - offsets[0])
    width = max(1, -(-int(lengths.max()) // _WORD))
    padded = np.zeros((n, width * _WORD), np.uint8)
    # Row-major assignment through the mask lays the bytes of consecutive ids into consecutive rows.
    padded[np.arange(width * _WORD) < lengths[:, None]] = text
    return padded.view(">u8").astype(np.uint64)


def _refuse_nul(text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
    if text.size and text.min() == 0:
        row = int(np.searchsorted(offsets, int(np.argmin(text)), side="right")) - 1
        raise ValueError(f"ids must not hold NUL bytes, and the id in row {row} does")
