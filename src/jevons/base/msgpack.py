"""Reading msgpack in kernels, without an object for each thing read.

`raw` is the message, `at` where to read. What follows a thing read is told with it; -1: it is cut off, or no such thing
stands there. Reading at -1 gives -1 again, so a reader may look once, at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import compiled

Raw = np.ndarray[Any, np.dtype[np.uint8]]

NIL = 0xC0
_FNV_START, _FNV_PRIME = -3750763034362895579, 1099511628211  # FNV-1a, 64 bits, as signed numbers


@compiled
def first_byte(raw: Raw, at: int) -> int:
    """Which tells what stands there; -1 past the end."""
    return int(np.int64(raw[at])) if 0 <= at < len(raw) else -1


@compiled
def _read_eight(raw: Raw, at: int) -> int:
    """Eight bytes, big endian, as a signed number. An unsigned index is not looked at for being negative."""
    p, number = np.uint64(at), np.uint64(0)
    for i in range(8):
        number = (number << np.uint64(8)) | np.uint64(raw[p + np.uint64(i)])
    return int(np.int64(number))


@compiled
def read_number(raw: Raw, at: int, width: int) -> tuple[int, int]:
    """A number of so many bytes, big endian; of 8, as a signed one."""
    if at < 0 or at + width > len(raw):
        return 0, -1
    if width == 8:
        return _read_eight(raw, at), at + 8
    number = 0
    for i in range(at, at + width):
        number = (number << 8) | int(np.int64(raw[i]))
    return number, at + width


@compiled
def read_int(raw: Raw, at: int) -> tuple[int, int]:
    """An integer of any kind; those of 2^63 and above as if signed."""
    b = first_byte(raw, at)
    if 0 <= b < 0x80:
        return b, at + 1
    if b >= 0xE0:
        return b - 256, at + 1
    if 0xCC <= b <= 0xCF:
        return read_number(raw, at + 1, 1 << (b - 0xCC))
    if 0xD0 <= b <= 0xD3:
        width = 1 << (b - 0xD0)
        number, after = read_number(raw, at + 1, width)
        unused = 64 - 8 * width
        return (number << unused) >> unused, after
    return 0, -1


@compiled
def read_float(raw: Raw, at: int) -> float:
    """A number of 8 bytes with a point, or any integer; 0 if it is neither."""
    if first_byte(raw, at) != 0xCB:
        return float(read_int(raw, at)[0])
    bits, _ = read_number(raw, at + 1, 8)
    sign = -1.0 if bits < 0 else 1.0
    exponent, fraction = (bits >> 52) & 0x7FF, bits & ((1 << 52) - 1)
    if exponent == 0x7FF:
        return 0.0
    if exponent == 0:
        return sign * fraction * 2.0**-1074
    return float(sign * (1.0 + fraction * 2.0**-52) * 2.0 ** float(exponent - 1023))


@compiled
def _read_head(raw: Raw, at: int, fix: int, fix_mask: int, wide: int) -> tuple[int, int]:
    """The count of an array or map: in the low bits of `fix`, or in 2 or 4 bytes after `wide` or the byte after it."""
    b = first_byte(raw, at)
    if b >= 0 and b & ~fix_mask == fix:
        return b & fix_mask, at + 1
    if b == wide:
        return read_number(raw, at + 1, 2)
    if b == wide + 1:
        return read_number(raw, at + 1, 4)
    return 0, -1


@compiled
def read_array(raw: Raw, at: int) -> tuple[int, int]:
    """How many things follow."""
    return _read_head(raw, at, 0x90, 0x0F, 0xDC)


@compiled
def read_map(raw: Raw, at: int) -> tuple[int, int]:
    """How many pairs follow."""
    return _read_head(raw, at, 0x80, 0x0F, 0xDE)


@compiled
def _read_span(raw: Raw, at: int, first: int) -> tuple[int, int]:
    """Length in 1, 2 or 4 bytes after `first` or one of the two after it. Returns the length, and where it begins."""
    b = first_byte(raw, at)
    if b < first or b > first + 2:
        return 0, -1
    length, begin = read_number(raw, at + 1, 1 << (b - first))
    return (length, begin) if 0 <= begin <= len(raw) - length else (0, -1)


@compiled
def read_text(raw: Raw, at: int) -> tuple[int, int]:
    """Its length in bytes, and where it begins."""
    b = first_byte(raw, at)
    if 0xA0 <= b < 0xC0:
        return (b - 0xA0, at + 1) if at + 1 + b - 0xA0 <= len(raw) else (0, -1)
    return _read_span(raw, at, 0xD9)


@compiled
def read_bytes(raw: Raw, at: int) -> tuple[int, int]:
    """The same of bytes."""
    return _read_span(raw, at, 0xC4)


def _size_of(b: int) -> int:
    """What a thing that begins with this byte takes where that is all that tells; 0 where a length follows; -1 for the
    arrays and maps, and for what is no msgpack."""
    if b < 0x80 or b >= 0xE0 or b in (0xC0, 0xC2, 0xC3):
        return 1
    if 0xA0 <= b < 0xC0:
        return 1 + b - 0xA0
    numbers_and_extensions = {0xCA: 5, 0xCB: 9, **{0xCC + i: 1 + (1 << i % 4) for i in range(8)}}
    numbers_and_extensions |= {0xD4 + i: 2 + (1 << i) for i in range(5)}
    spans = (0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD9, 0xDA, 0xDB)
    return 0 if b in spans else numbers_and_extensions.get(b, -1)


_SIZES = np.array([_size_of(b) for b in range(256)], np.int64)


@compiled
def _skip_one(raw: Raw, at: int) -> tuple[int, int]:
    """Things within it that follow still, and where."""
    b = first_byte(raw, at)
    if b < 0:
        return 0, -1
    if _SIZES[b] > 0:
        return 0, at + _SIZES[b]
    if _SIZES[b] == 0:
        first = 0xD9 if b >= 0xD9 else (0xC7 if b >= 0xC7 else 0xC4)
        length, begin = read_number(raw, at + 1, 1 << (b - first))
        return 0, -1 if begin < 0 else begin + length + (first == 0xC7)  # an extension has a byte for its type
    count, begin = read_map(raw, at)
    if begin >= 0:
        return 2 * count, begin
    return read_array(raw, at)


@compiled
def skip(raw: Raw, at: int) -> int:
    """What follows the thing that stands there, whatever it is."""
    left = 1
    while left > 0 and 0 <= at <= len(raw):
        inside, at = _skip_one(raw, at)
        left += inside - 1
        if left > len(raw) - at:  # each takes a byte at least
            return -1
    return at if 0 <= at <= len(raw) else -1


@compiled
def digest(raw: Raw, begin: int, length: int) -> int:
    """FNV-1a of so many bytes: compare it with `digest_of` the text that is meant."""
    found = _FNV_START
    for i in range(begin, begin + length):
        found = (found ^ int(np.int64(raw[i]))) * _FNV_PRIME
    return found


def digest_of(text: str) -> int:
    """The same of a text."""
    found = _FNV_START
    for byte in text.encode():
        found = (found ^ byte) * _FNV_PRIME & (1 << 64) - 1
    return found - (1 << 64) if found >= 1 << 63 else found
