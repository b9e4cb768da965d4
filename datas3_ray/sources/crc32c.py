"""CRC-32C, the checksum of TFRecord files, at about the speed of a disk without a package for it."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits in reverse
_BLOCK = 16  # bytes whose checksum is looked up at once, two at a time
_CHUNK = 1 << 18  # bytes that are worked on at once, so that the arrays made of them stay in the cache
_FEW = 64  # bytes for which a loop is quicker than arrays
_ENOUGH = 32  # registers that are put together in a loop, likewise
_MASK = 0xA282EAD8

_Numbers = npt.NDArray[np.uint32]


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    state = 0xFFFFFFFF
    view = memoryview(data)
    for at in range(0, len(view), _CHUNK):
        piece = view[at : at + _CHUNK]
        state = _continued(state, piece) if len(piece) >= _FEW else _continued_slowly(state, piece)
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C as TFRecord files keep it: turned and moved, so that it may lie in data that have a CRC again.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _continued_slowly(state: int, data: memoryview) -> int:
    table = _byte_list()
    for byte in data:
        state = table[(state ^ byte) & 255] ^ (state >> 8)
    return state


def _continued(state: int, data: memoryview) -> int:
    """The register after ``data``. It is linear in state and data, so that blocks can be done apart and put together.

    A register of zero stays so through zeros: they fill the first block up.
    """
    padded = np.zeros(-(-len(data) // _BLOCK) * _BLOCK, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[len(padded) - len(data) :][:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    pairs = padded.view("<u2").reshape(-1, _BLOCK // 2)
    tables = _pair_tables()
    registers = tables[0].take(pairs[:, 0])
    for at in range(1, _BLOCK // 2):
        registers ^= tables[at].take(pairs[:, at])
    level = 0
    while len(registers) > _ENOUGH:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        registers = _moved(registers[::2], _moving_tables(level)) ^ registers[1::2]
        level += 1
    first, second, third, fourth = _moving_lists(level)
    state = 0
    for register in registers.tolist():
        state = register ^ (
            first[state & 255] ^ second[state >> 8 & 255] ^ third[state >> 16 & 255] ^ fourth[state >> 24]
        )
    return state


def _moved(registers: _Numbers, tables: _Numbers) -> _Numbers:
    """Registers after as many zeros as the four ``tables`` are made for."""
    moved = tables[0].take(registers & 255)
    for at in (1, 2, 3):
        moved ^= tables[at].take(registers >> np.uint32(8 * at) & 255)
    return moved


@cache
def _byte_table() -> _Numbers:
    """The register after each byte, from zero."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@cache
def _byte_list() -> list[int]:
    values: list[int] = _byte_table().tolist()
    return values


def _zero_byte(registers: _Numbers) -> _Numbers:
    return _byte_table().take(registers & np.uint32(255)) ^ (registers >> np.uint32(8))


@cache
def _pair_tables() -> list[_Numbers]:
    """For each place of two bytes in a block: the register at the block's end for every value of them."""
    by_place = [_byte_table()]
    for _ in range(_BLOCK - 1):
        by_place.append(_zero_byte(by_place[-1]))
    by_place.reverse()
    low, high = np.arange(65536) & 255, np.arange(65536) >> 8
    return [by_place[at].take(low) ^ by_place[at + 1].take(high) for at in range(0, _BLOCK, 2)]


@cache
def _moving_tables(level: int) -> _Numbers:
    """Four tables, one a byte of the register: what becomes of it after 2 ** level blocks of zeros."""
    if level:
        half = _moving_tables(level - 1)
        return np.stack([_moved(table, half) for table in half])
    tables = np.stack([np.arange(256, dtype=np.uint32) << np.uint32(8 * at) for at in range(4)])
    for _ in range(_BLOCK):
        tables = _zero_byte(tables)
    return tables


@cache
def _moving_lists(level: int) -> list[list[int]]:
    tables: list[list[int]] = _moving_tables(level).tolist()
    return tables
