"""KV events as bytes: as vLLM sends them, in every shape seen."""

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.control.shapes import Malformed, decode_batch
from jevons.facts.event import AllCleared, BlocksRemoved, BlocksStored, KvEvent
from jevons.kv.hashing import block_hashes, wire_hash
from jevons.wire.codec import decode_seq, encode_batch, encode_seq

TOKENS = list(range(32))
NAMES = block_hashes(TOKENS, 16)
CAPTURES = ("kv_events_capture.jsonl", "kv_events_capture_cbor_evict.jsonl")

stored_events = st.builds(
    lambda blocks, parent, adapter: BlocksStored(
        hashes=list(range(1, blocks + 1)),
        parent=parent,
        tokens=list(range(blocks * 4)),
        block_size=4,
        medium="GPU",
        kind="full_attention",
        adapter=adapter,
        extra=[None] * blocks,
    ),
    st.integers(1, 5),
    st.none() | st.integers(0, 2**64 - 1) | st.binary(min_size=32, max_size=32),
    st.none() | st.text(min_size=1, max_size=8),
)
removed_events = st.builds(
    lambda hashes: BlocksRemoved(hashes=hashes, medium="GPU"), st.lists(st.integers(0, 2**64 - 1), max_size=4)
)
events = st.lists(st.one_of(stored_events, removed_events, st.just(AllCleared())), max_size=5)


@given(events)
def test_what_was_written_is_read_back(written: list[KvEvent]) -> None:
    batch = decode_batch(7, encode_batch(1.5, written, rank=3))

    assert (batch.seq, batch.ts, batch.rank, batch.unread) == (7, 1.5, 3, 0)
    assert batch.events == written


@given(events)
def test_a_batch_beside_an_event_we_do_not_know_reads_the_same(written: list[KvEvent]) -> None:
    ts, rows, rank = msgspec.msgpack.decode(encode_batch(1.5, written, rank=3))
    batch = decode_batch(7, msgspec.msgpack.encode([ts, [*rows, {"type": "BlockPinned"}], rank]))

    assert (batch.events, batch.unread) == (written, 1)


def test_our_own_names_go_out_as_vllms_64_bit_numbers() -> None:
    payload = encode_batch(0.0, [BlocksStored(hashes=list(NAMES), tokens=TOKENS, block_size=16, medium="GPU")])
    _, [event], _ = msgspec.msgpack.decode(payload)

    assert event["block_hashes"] == [wire_hash(name) for name in NAMES]
    assert list(event)[:2] == ["type", "block_hashes"]


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_vllm_batches_are_written_again_byte_for_byte(shared: Path, name: str) -> None:
    for line in (shared / "data" / name).read_text().splitlines():
        row = json.loads(line)
        payload = bytes.fromhex(row["payload_hex"])
        batch = decode_batch(row["seq"], payload)

        assert batch.unread == 0
        assert decode_seq(bytes.fromhex(row["seq_raw"])) == row["seq"]
        assert encode_batch(batch.ts, batch.events, batch.rank) == payload


STORED_MAP = {
    "type": "BlockStored",
    "block_hashes": [5],
    "parent_block_hash": None,
    "token_ids": [1, 2],
    "block_size": 2,
}
STORED = BlocksStored(hashes=[5], tokens=[1, 2], block_size=2)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ([0.0, [STORED_MAP], 0], STORED),
        ([0.0, [STORED_MAP]], STORED),  # no rank: vLLM leaves a default out
        ({"ts": 0.0, "events": [STORED_MAP], "data_parallel_rank": 0}, STORED),
        ([0.0, [["BlockStored", [5], None, [1, 2], 2, None]], 0], STORED),  # SGLang: by position, ends at lora_id
        ([0.0, [["BlockStored", [5], None, [1, 2], 2, 3, "GPU"]], 0], BlocksStored(
            hashes=[5], tokens=[1, 2], block_size=2, medium="GPU", adapter_number=3)),
        ([0.0, [["BlockRemoved", [5, -7], "CPU"]], None], BlocksRemoved(hashes=[5, -7], medium="CPU")),
        ([0.0, [{"type": "BlockRemoved", "block_hashes": [b"x" * 32]}], 0], BlocksRemoved(hashes=[b"x" * 32])),
        ([0.0, [["AllBlocksCleared"]], 0], AllCleared()),
    ],
)  # fmt: skip
def test_every_shape_seen_in_the_wild_is_read(payload: Any, expected: KvEvent) -> None:
    batch = decode_batch(0, msgspec.msgpack.encode(payload))

    assert (batch.events, batch.unread) == ([expected], 0)


def test_an_event_we_do_not_know_is_counted_and_the_rest_is_kept() -> None:
    payload = msgspec.msgpack.encode([0.0, [{"type": "BlockMoved"}, STORED_MAP, 7, ["BlockStored", "x"]], 0])
    batch = decode_batch(0, payload)

    assert (batch.events, batch.unread) == ([STORED], 3)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x07", msgspec.msgpack.encode([1.0]), msgspec.msgpack.encode("x")])
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(Malformed):
        decode_batch(0, payload)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(payload: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert decode_batch(0, payload).seq == 0


def test_sequence_numbers_are_eight_bytes_and_minus_one_ends_a_replay() -> None:
    assert decode_seq(encode_seq(2**40)) == 2**40
    assert decode_seq(b"\xff" * 8) == -1
    with pytest.raises(Malformed, match="must be 8 bytes, got 3"):
        decode_seq(b"abc")
