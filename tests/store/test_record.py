"""A record tells which block it is; whatever is changed in it, it is not taken for that block any more."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.base.errors import StoreError
from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.kv.layout import checksum
from jevons.store.record import HEADER_BYTES, VERSION, check, decode_header, encode_header

KEY = BlockKey(b"F" * 16, BlockHash(b"N" * 16))
PAGE = random.Random(1).randbytes(512)
META = BlockMeta(size_bytes=len(PAGE), checksum=checksum(KEY, PAGE), depth=48, tenant=b"T" * 16)
RECORD = encode_header(KEY, META) + PAGE


def opened(record: bytes, wanted: BlockKey = KEY) -> BlockMeta:
    key, meta = decode_header(record)
    check(wanted, key, meta, memoryview(record)[HEADER_BYTES:])
    return meta


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.builds(
        BlockMeta,
        size_bytes=st.integers(0, 2**63),
        checksum=st.integers(0, 2**64 - 1),
        depth=st.integers(0, 2**32 - 1),
        tenant=st.just(b"") | st.binary(min_size=16, max_size=16),
    ),
)
def test_a_header_is_read_back_as_it_was_written(fingerprint: bytes, name: bytes, meta: BlockMeta) -> None:
    key = BlockKey(fingerprint, BlockHash(name))
    header = encode_header(key, meta)

    assert len(header) == HEADER_BYTES
    assert decode_header(header) == (key, meta)


def test_a_whole_record_passes() -> None:
    assert opened(RECORD) == META


def test_every_flipped_bit_is_found() -> None:
    for bit in range(8 * len(RECORD)):
        changed = bytearray(RECORD)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError) as lost:
            opened(bytes(changed))
        assert lost.value.reason in ("corrupt", "mismatch")


def test_every_cut_is_found() -> None:
    for size in range(len(RECORD)):
        with pytest.raises(StoreError):
            opened(RECORD[:size])


def test_another_version_is_a_mismatch_not_corruption() -> None:
    other = RECORD[:4] + (VERSION + 1).to_bytes(2, "little") + RECORD[6:]

    with pytest.raises(StoreError, match=f"version {VERSION + 1}") as lost:
        opened(other)
    assert lost.value.reason == "mismatch"


@pytest.mark.parametrize(
    "wanted", [BlockKey(b"f" * 16, KEY.name), BlockKey(KEY.fingerprint, BlockHash(b"n" * 16))], ids=["layout", "block"]
)
def test_a_good_record_of_another_key_is_a_mismatch(wanted: BlockKey) -> None:
    with pytest.raises(StoreError) as lost:
        opened(RECORD, wanted)
    assert lost.value.reason == "mismatch"
