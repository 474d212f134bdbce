"""BLAKE2b (RFC 7693) of a block of tokens, as a kernel: the names that `kv.hashing` gives, 130 ns a block of 16.

A name is 16 bytes, here two 64-bit numbers, little endian. What is hashed is the name of the block before and the
tokens, 4 bytes each, little endian: 80 bytes for 16 tokens, so one compression of 128. `hashlib` is the oracle.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from jevons.base.compiled import Ints, alike, compiled
from jevons.kv.hashing import root

U64 = Any  # an unsigned 64-bit number, wrapping; mixed with a signed one it would become a float
Words = Any  # sixteen of them
Tokens = np.ndarray[Any, np.dtype[np.uint32]]

_IV0, _IV1, _IV2, _IV3 = (
    np.uint64(n) for n in (0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1)
)
_IV4, _IV5, _IV6, _IV7 = (
    np.uint64(n) for n in (0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)
)
_START = np.uint64(int(_IV0) ^ 0x01010010)  # no key, 16 bytes out
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_R32, _R24, _R16, _R63 = np.uint64(32), np.uint64(24), np.uint64(16), np.uint64(63)
_L32, _L40, _L48, _L1 = np.uint64(32), np.uint64(40), np.uint64(48), np.uint64(1)


@compiled
def _mix(a: U64, b: U64, c: U64, d: U64, x: U64, y: U64) -> tuple[U64, U64, U64, U64]:
    """The function G of RFC 7693, 3.1."""
    a = a + b + x
    d ^= a
    d = (d >> _R32) | (d << _L32)
    c = c + d
    b ^= c
    b = (b >> _R24) | (b << _L40)
    a = a + b + y
    d ^= a
    d = (d >> _R16) | (d << _L48)
    c = c + d
    b ^= c
    b = (b >> _R63) | (b << _L1)
    return a, b, c, d


@compiled
def _round(v: Words, m: Words) -> Words:
    a0, b0, c0, d0 = _mix(v[0], v[4], v[8], v[12], m[0], m[1])
    a1, b1, c1, d1 = _mix(v[1], v[5], v[9], v[13], m[2], m[3])
    a2, b2, c2, d2 = _mix(v[2], v[6], v[10], v[14], m[4], m[5])
    a3, b3, c3, d3 = _mix(v[3], v[7], v[11], v[15], m[6], m[7])
    a0, b1, c2, d3 = _mix(a0, b1, c2, d3, m[8], m[9])
    a1, b2, c3, d0 = _mix(a1, b2, c3, d0, m[10], m[11])
    a2, b3, c0, d1 = _mix(a2, b3, c0, d1, m[12], m[13])
    a3, b0, c1, d2 = _mix(a3, b0, c1, d2, m[14], m[15])
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3


@compiled
def _rounds(v: Words, m: Words) -> Words:
    """All twelve; the orders of the words are RFC 7693, 2.7."""
    m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15 = m
    v = _round(v, m)
    v = _round(v, (m14, m10, m4, m8, m9, m15, m13, m6, m1, m12, m0, m2, m11, m7, m5, m3))
    v = _round(v, (m11, m8, m12, m0, m5, m2, m15, m13, m10, m14, m3, m6, m7, m1, m9, m4))
    v = _round(v, (m7, m9, m3, m1, m13, m12, m11, m14, m2, m6, m5, m10, m4, m0, m15, m8))
    v = _round(v, (m9, m0, m5, m7, m2, m4, m10, m15, m14, m1, m11, m12, m6, m8, m3, m13))
    v = _round(v, (m2, m12, m6, m10, m0, m11, m8, m3, m4, m13, m7, m5, m15, m14, m1, m9))
    v = _round(v, (m12, m5, m1, m15, m14, m13, m4, m10, m0, m7, m6, m3, m9, m2, m8, m11))
    v = _round(v, (m13, m11, m7, m14, m12, m1, m3, m9, m5, m0, m15, m4, m8, m6, m2, m10))
    v = _round(v, (m6, m15, m14, m9, m11, m3, m0, m8, m12, m2, m13, m7, m1, m4, m10, m5))
    v = _round(v, (m10, m2, m8, m4, m7, m6, m1, m5, m15, m11, m9, m14, m3, m12, m13, m0))
    v = _round(v, m)
    return _round(v, (m14, m10, m4, m8, m9, m15, m13, m6, m1, m12, m0, m2, m11, m7, m5, m3))


@compiled
def _pair(tokens: Tokens, at: int, end: int) -> U64:
    """Two tokens as one word, zeros from `end` on."""
    low = np.uint64(tokens[at]) if at < end else _ZERO
    high = np.uint64(tokens[at + 1]) if at + 1 < end else _ZERO
    return low | (high << _L32)


@compiled
def _word(first: U64, second: U64, tokens: Tokens, span: tuple[int, int], word: int) -> U64:
    """One word of the message: the name before, then the tokens in `span`."""
    if word == 0:
        return first
    return second if word == 1 else _pair(tokens, span[0] + 2 * (word - 2), span[1])


@compiled
def _words(first: U64, second: U64, tokens: Tokens, span: tuple[int, int], at: int) -> Words:
    """Sixteen words of the message, from number `at` on."""
    w = (first, second, tokens, span)
    return (
        _word(w[0], w[1], w[2], w[3], at),
        _word(w[0], w[1], w[2], w[3], at + 1),
        _word(w[0], w[1], w[2], w[3], at + 2),
        _word(w[0], w[1], w[2], w[3], at + 3),
        _word(w[0], w[1], w[2], w[3], at + 4),
        _word(w[0], w[1], w[2], w[3], at + 5),
        _word(w[0], w[1], w[2], w[3], at + 6),
        _word(w[0], w[1], w[2], w[3], at + 7),
        _word(w[0], w[1], w[2], w[3], at + 8),
        _word(w[0], w[1], w[2], w[3], at + 9),
        _word(w[0], w[1], w[2], w[3], at + 10),
        _word(w[0], w[1], w[2], w[3], at + 11),
        _word(w[0], w[1], w[2], w[3], at + 12),
        _word(w[0], w[1], w[2], w[3], at + 13),
        _word(w[0], w[1], w[2], w[3], at + 14),
        _word(w[0], w[1], w[2], w[3], at + 15),
    )


@compiled
def _two(tokens: Tokens, at: U64) -> U64:
    return np.uint64(tokens[at]) | (np.uint64(tokens[at + _ONE]) << _L32)


@compiled
def _name_16(first: U64, second: U64, t: Tokens, at: U64) -> tuple[U64, U64]:
    """The usual block, of 16 tokens: its words need no bounds, and an unsigned index no look at its sign."""
    w2, w3, w4 = _two(t, at), _two(t, at + np.uint64(2)), _two(t, at + np.uint64(4))
    w5, w6, w7 = _two(t, at + np.uint64(6)), _two(t, at + np.uint64(8)), _two(t, at + np.uint64(10))
    w8, w9 = _two(t, at + np.uint64(12)), _two(t, at + np.uint64(14))
    m = (first, second, w2, w3, w4, w5, w6, w7, w8, w9, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO)
    size = np.uint64(80)
    v = (_START, _IV1, _IV2, _IV3, _IV4, _IV5, _IV6, _IV7)
    v = _rounds((*v, _IV0, _IV1, _IV2, _IV3, _IV4 ^ size, _IV5, _IV6 ^ _ALL, _IV7), m)
    return _START ^ v[0] ^ v[8], _IV1 ^ v[1] ^ v[9]


@compiled
def name(first: U64, second: U64, tokens: Tokens, at: int, size: int) -> tuple[U64, U64]:
    """The name of the block of `size` tokens at `at`, after the block named (`first`, `second`)."""
    if size == 16:
        return _name_16(first, second, tokens, np.uint64(at))
    size_bytes = 16 + 4 * size
    h = (_START, _IV1, _IV2, _IV3, _IV4, _IV5, _IV6, _IV7)
    word = 0
    while True:
        m = _words(first, second, tokens, (at, at + size), word)
        word += 16
        is_last = 8 * word >= size_bytes
        done, last = np.uint64(min(8 * word, size_bytes)), _ALL if is_last else _ZERO
        v = _rounds((*h, _IV0, _IV1, _IV2, _IV3, _IV4 ^ done, _IV5, _IV6 ^ last, _IV7), m)
        h = (
            h[0] ^ v[0] ^ v[8],
            h[1] ^ v[1] ^ v[9],
            h[2] ^ v[2] ^ v[10],
            h[3] ^ v[3] ^ v[11],
            h[4] ^ v[4] ^ v[12],
            h[5] ^ v[5] ^ v[13],
            h[6] ^ v[6] ^ v[14],
            h[7] ^ v[7] ^ v[15],
        )
        if is_last:
            return h[0], h[1]


@compiled
def name_chain(parent: Ints, tokens: Tokens, size: int, names: Ints) -> None:
    """Name the full blocks of `tokens`, going on from `parent`: two numbers each, into `names`."""
    first, second = np.uint64(parent[0]), np.uint64(parent[1])
    for block in range(len(tokens) // size):
        first, second = name(first, second, tokens, block * size, size)
        names[2 * block], names[2 * block + 1] = first, second


_name_chain = alike(name_chain)


def name_prompt(tokens: Sequence[int], size: int, salt: str = "", adapter: str = "") -> tuple[Tokens, Ints]:
    """A prompt's tokens as an array, and the names of its full blocks, two numbers each: as `hashing.block_hashes`.

    Costs 14 ns a token from a list, 8 from an `array("I")`.
    """
    buffer = tokens if isinstance(tokens, array) and tokens.typecode == "I" else array("I", tokens)
    numbers = np.zeros(2 * (len(buffer) // size), np.int64)
    raw = np.frombuffer(buffer, np.uint32) if len(buffer) else np.zeros(0, np.uint32)
    _name_chain(np.frombuffer(root(size, salt, adapter), np.int64), raw, size, numbers)
    return raw, numbers
