"""What lies before each page on disk: where it belongs and what it is, in 128 bytes with a checksum of their own."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

import msgspec
import xxhash

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.store.cipher import NONCE_BYTES, TAG_BYTES

MAGIC = b"jevons\x00\x01"  # the last byte is the version of all that follows
HEADER_BYTES = 128  # pages of a multiple of 64 bytes then start at one too
NO_NONCE = bytes(NONCE_BYTES)

_WHERE = Struct("<8sQQI")  # magic, segment, offset, bytes stored
_WHAT = Struct("<IQQ16s16s16s")  # page bytes, depth, checksum, fingerprint, name, tenant
_REST = Struct(f"<{NONCE_BYTES}s12x")
_HEADER = Struct(_WHERE.format + _WHAT.format[1:] + _REST.format[1:] + "Q")  # and a checksum over all before it
_CHECKED_BYTES = HEADER_BYTES - 8
_NO_TENANT = bytes(16)


class Header(msgspec.Struct, frozen=True):
    """Where a block lies, and what it is."""

    segment: int
    offset: int  # of the header; the page follows it
    stored_bytes: int  # of the page as it lies there: a sealed one is longer
    key: BlockKey
    meta: BlockMeta
    nonce: bytes = NO_NONCE

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + self.stored_bytes

    @property
    def is_sealed(self) -> bool:
        return self.stored_bytes != self.meta.size_bytes


class Record(msgspec.Struct, frozen=True):
    """A block as it will lie on disk, wherever that is."""

    key: BlockKey
    meta: BlockMeta
    stored: memoryview
    nonce: bytes = NO_NONCE


def record_bytes(stored_bytes: int) -> int:
    """What a block takes of a segment, both files together."""
    return stored_bytes + 2 * HEADER_BYTES


def what(key: BlockKey, meta: BlockMeta) -> bytes:
    """The part of a header that says what its page is, wherever it lies. What a sealed page is sealed with."""
    assert len(key.fingerprint) == len(key.name) == 16, "keys are two times 16 bytes"
    assert len(meta.tenant) in (0, 16), "a tenant's tag is 16 bytes"
    tenant = meta.tenant or _NO_TENANT
    return _WHAT.pack(meta.size_bytes, meta.depth, meta.checksum, key.fingerprint, key.name, tenant)


def encode(header: Header) -> bytes:
    """128 bytes."""
    where = _WHERE.pack(MAGIC, header.segment, header.offset, header.stored_bytes)
    raw = where + what(header.key, header.meta) + _REST.pack(header.nonce)
    return raw + xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little")


def decode(raw: bytes | bytearray) -> Iterator[Header | None]:
    """Headers in a row; None for one that is none. About 2 µs each; bytes too few for a whole one are left out."""
    view = memoryview(raw)[: len(raw) - len(raw) % HEADER_BYTES]
    for at, fields in zip(range(0, len(view), HEADER_BYTES), _HEADER.iter_unpack(view), strict=True):
        magic, segment, offset, stored, size, depth, checksum, fingerprint, name, tenant, nonce, check = fields
        is_sound = check == xxhash.xxh3_64_intdigest(view[at : at + _CHECKED_BYTES])
        if magic != MAGIC or not is_sound or stored not in (size, size + TAG_BYTES):
            yield None
            continue
        key = BlockKey(fingerprint, BlockHash(name))
        meta = BlockMeta(size, checksum, depth, b"" if tenant == _NO_TENANT else tenant)
        yield Header(segment, offset, stored, key, meta, nonce)
