"""A 64-bit perceptual hash: two pictures that look alike differ in few bits, whatever their size or compression.

The hash of the pHash library (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
section 3.2.1): the luma at 32 x 32 pixels, its DCT-II, of that the 8 x 8 coefficients with the frequencies 1 to 8 in
both directions (so without the mean and without what changes in one direction only), a bit for each that is greater
than their median. The cosines are whole numbers here, so the same pixels give the same bits on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 32
"""The luma's width and height in pixels."""

_KEPT = 8
_SCALE = 1 << 20  # 255 * 32 * 32 * _SCALE**2 fits into 63 bits
_FREQUENCIES = np.arange(1, _KEPT + 1)[:, None]
_PLACES = np.arange(SIDE)[None, :]
_COSINES = np.rint(_SCALE * np.cos(np.pi * _FREQUENCIES * (2 * _PLACES + 1) / (2 * SIDE))).astype(np.int64)


def phash(luma: npt.ArrayLike) -> Any:
    """The hash of one picture, or of each of n.

    The bit of the frequencies (v down, u across), both from 1 to 8, is bit 63 - (8 (v - 1) + (u - 1)). A picture that
    is flat, or changes in one direction only, has the hash 0.

    Args:
        luma: uint8 of shape (32, 32) or (n, 32, 32).

    Returns:
        uint64: one number for one picture, shape (n,) for n.

    Raises:
        ValueError: the luma has another shape or type.

    >>> rows, columns = np.mgrid[:32, :32]
    >>> picture = (4 * np.minimum(rows, columns)).astype(np.uint8)
    >>> int(hamming(phash(picture), phash(picture // 2 + 60))), int(phash(np.zeros((32, 32), np.uint8)))
    (0, 0)
    """
    pixels = np.asarray(luma)
    if pixels.ndim not in (2, 3) or pixels.shape[-2:] != (SIDE, SIDE) or pixels.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 of shape (n, 32, 32), not {pixels.dtype} of shape {pixels.shape}")
    coefficients = (_COSINES @ pixels.astype(np.int64) @ _COSINES.T).reshape(*pixels.shape[:-2], _KEPT * _KEPT)
    low, high = np.moveaxis(np.partition(coefficients, (31, 32), axis=-1)[..., 31:33], -1, 0)
    # Greater than the mean of the two in the middle, without halves: the sum of the two fits into 63 bits.
    bits = 2 * coefficients > (low + high)[..., None]
    return np.packbits(bits, axis=-1).view(">u8")[..., 0].astype(np.uint64)


def hamming(a: npt.ArrayLike, b: npt.ArrayLike) -> Any:
    """How many bits differ, 0 to 64.

    Args:
        a: uint64 of any shape.
        b: uint64 of a shape that broadcasts with it.

    Returns:
        uint8 of the broadcast shape.

    Raises:
        ValueError: one of them is not uint64.

    >>> hamming(np.array([0, 7], np.uint64)[:, None], np.array([1, 3, 2**64 - 1], np.uint64)).tolist()
    [[1, 2, 64], [2, 1, 61]]
    """
    left, right = np.asarray(a), np.asarray(b)
    for words in (left, right):
        if words.dtype != np.uint64:
            raise ValueError(f"hashes must be uint64, not {words.dtype}")
    return np.bitwise_count(left ^ right)
