"""What kernels make of a payload is what the long way makes of it: decoded into records, named by hashlib."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.control.intake import Intake
from jevons.control.orphans import Prompted
from jevons.control.shapes import Malformed, decode_batch
from jevons.facts.event import KvPayload
from jevons.kv.blake2b import name_prompt
from jevons.kv.index import PrefixIndex

HASHES = st.integers(0, 12) | st.sampled_from([2**64 - 1, -1, -200, 40_000, 2**33]) | st.sampled_from([b"a" * 32, b"k"])
TOKENS = st.integers(0, 3) | st.sampled_from([127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, -1])
FIELDS = ("lora_id", "medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind")
WINDOW = "kv_cache_spec_sliding_window"


@st.composite
def stored(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.sampled_from([1, 2, 2, 2, 16, 33]))
    blocks = draw(st.integers(0, 3))
    odd = draw(st.sampled_from([0] * 8 + [1]))
    few = st.integers(0, 2) if draw(st.booleans()) else TOKENS
    keys = st.none() | st.just(["sql"]) | st.just(["salt"]) | st.just(["sql", "salt"]) | st.just([["image", 3]])
    return {
        "type": "BlockStored",
        "block_hashes": draw(st.lists(HASHES, min_size=blocks, max_size=blocks)),
        "parent_block_hash": draw(st.none() | HASHES),
        "token_ids": draw(st.lists(few, min_size=blocks * size + odd, max_size=blocks * size + odd)),
        "block_size": size,
        "lora_id": draw(st.none() | st.integers(0, 2)),
        "medium": draw(st.sampled_from([None, "GPU", "GPU", "CPU", "CPU_PINNED", "STORAGE"])),
        "lora_name": draw(st.sampled_from([None, None, "sql", ""])),
        "extra_keys": draw(st.none() | st.lists(keys, min_size=blocks, max_size=blocks + odd)),
        "group_idx": draw(st.sampled_from([None, 0, 0, 1])),
        "kv_cache_spec_kind": draw(st.sampled_from([None, "full_attention", "mla_attention", "sliding_window", "ssm"])),
    }


@st.composite
def offloaded(draw: st.DrawFn) -> dict[str, Any]:
    """As vLLM tells of what it offloads where it is not told to say more."""
    hashes = draw(st.lists(HASHES, min_size=1, max_size=1))
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": [],
        "block_size": 0,
        "lora_id": None,
        "medium": "CPU",
        "lora_name": None,
        "extra_keys": None,
        "group_idx": draw(st.sampled_from([None, 0, 1])),
    }


@st.composite
def removed(draw: st.DrawFn) -> dict[str, Any]:
    medium, group = draw(st.sampled_from([None, "GPU", "CPU"])), draw(st.sampled_from([None, 0, 1]))
    hashes = draw(st.lists(HASHES, max_size=4))
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium, "group_idx": group}


@st.composite
def events(draw: st.DrawFn) -> Any:
    event = draw(st.one_of(stored(), stored(), offloaded(), removed(), st.just({"type": "AllBlocksCleared"})))
    if event.get("kv_cache_spec_kind") == "sliding_window" and draw(st.booleans()):
        return {**event, WINDOW: draw(st.sampled_from([None, 0, 1, 3, 5]))}
    if draw(st.booleans()):
        optional = [field for field in event if field in FIELDS]
        end = len(event) - draw(st.integers(0, len(optional)))  # by position; the last may be missing
        return list(event.values())[:end]
    return {key: value for key, value in event.items() if key not in FIELDS or draw(st.booleans())}


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    several = draw(st.lists(events(), max_size=4))
    if draw(st.booleans()):
        several.append(draw(st.sampled_from([7, {"type": "BlockPinned"}, ["BlockStored", "x"], {"session_id": "x"}])))
    ts, rank = draw(st.sampled_from([1795419841.6795914, -0.5, 0.0, 3, None])), draw(st.none() | st.integers(0, 3))
    shape = draw(st.sampled_from(["whole", "short", "map"]))
    if shape == "map":
        return msgspec.msgpack.encode({"ts": ts, "events": several, "data_parallel_rank": rank})
    return msgspec.msgpack.encode([ts, several, rank][: 3 if shape == "whole" else 2])


def state(intake: Intake, index: PrefixIndex) -> Any:
    slots = intake._contents._names.hub["slots"]
    held = sorted((int(slot["second"]), int(slot["key"]) & 1023) for slot in slots if slot["key"])
    beside = intake.beside.windows, intake.beside.in_dram, intake.beside.in_groups
    return (
        held,
        beside,
        len(index),
        +intake.counts,
        float(intake._contents._names.hub.number("ts")),
        intake.mode,
        intake.block_size,
    )


@settings(max_examples=300, deadline=None)  # the first call compiles
@given(st.lists(payloads(), max_size=6))
def test_kernels_and_the_long_way_come_to_the_same(several: list[bytes]) -> None:
    near, far = PrefixIndex(), PrefixIndex()
    short, long = Intake(near.holding(0)), Intake(far.holding(0))
    for intake in (short, long):
        intake.name_adapters({1: "sql"})
    for seq, payload in enumerate(several):
        short.on_batch(KvPayload(seq, payload))
        long.on_batch(decode_batch(seq, payload))

        assert state(short, near) == state(long, far)


def chained(draw: random.Random) -> dict[str, Any]:
    """An event of an engine with two chains of blocks, of which any may come first and go first."""
    first, at, medium = 10 * draw.randrange(2), draw.randrange(4), draw.choice([None, "GPU", "GPU", "CPU"])
    told: dict[str, Any] = {"medium": medium, "group_idx": draw.choice([None, 0, 0, 1])}
    if draw.random() < 0.4:
        gone = [10 * draw.randrange(2) + draw.randrange(5) for _ in range(draw.randrange(1, 3))]
        return {"type": draw.choice(["BlockRemoved"] * 9 + ["AllBlocksCleared"]), "block_hashes": gone, **told}
    hashes = [first + at + i for i in range(draw.randrange(1, 3))]
    kind = draw.choice(
        [{}, {"kv_cache_spec_kind": draw.choice(["full_attention", "full_attention", "sliding_window"])}]
    )
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": first + at - 1 if at else None,
        "token_ids": [number for number in hashes for _ in range(2)],
        "block_size": 2,
        "lora_id": draw.choice([None, None, 0, 1]),
        "extra_keys": draw.choice([None, [None] * len(hashes)]),
        **told,
        **({} if kind is None else {"kv_cache_spec_kind": kind}),
    }


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_kernels_and_the_long_way_come_to_the_same_of_a_source_that_lost_batches(seed: int) -> None:
    draw, near, far = random.Random(seed), PrefixIndex(), PrefixIndex()
    short, long = Intake(near.holding(0)), Intake(far.holding(0))
    for seq in range(2, 2 + draw.randrange(1, 8)):
        payload = msgspec.msgpack.encode([float(seq), [chained(draw) for _ in range(draw.randrange(5))], 0])
        short.on_batch(KvPayload(seq, payload))
        long.on_batch(decode_batch(seq, payload))
        first, is_prompted = draw.choice([0, 10]), draw.random() < 0.2
        for intake in (short, long):
            if seq == 2:
                intake.on_replay_end(complete=False)
            if is_prompted:
                prompt = [first + number for number in range(4) for _ in range(2)]
                intake.on_prompted(Prompted(*name_prompt(prompt, 2)))

        assert state(short, near) == state(long, far)


@settings(max_examples=300, deadline=None)  # the first call compiles
@given(payloads(), st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_payload_with_wrong_bytes_is_read_or_refused_and_never_breaks_the_next(
    payload: bytes, at: int, wrong: bytes
) -> None:
    at %= len(payload)
    intake = Intake(PrefixIndex().holding(0))
    intake.on_batch(KvPayload(0, payload[:at] + wrong + payload[at + len(wrong) :]))
    intake.on_batch(KvPayload(1, payload[:at]))
    intake.on_batch(KvPayload(2, wrong))

    fine = {"block_hashes": [77], "parent_block_hash": None, "token_ids": [1] * 64, "block_size": 64}
    known = intake.counts["stored"]
    intake.on_batch(KvPayload(0, msgspec.msgpack.encode([0.0, [{"type": "BlockStored", **fine}], 0])))  # it restarted
    assert intake.counts["stored"] == known + 1


@pytest.mark.parametrize("payload", [b"\x92\xc0" + b"\x91" * 9_000, b"\x93\xc0\xdd\xff\xff\xff\xff", b"\x92\xc0\xdc"])
def test_deep_and_endless_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(Malformed):
        decode_batch(0, payload)
    intake = Intake(PrefixIndex().holding(0))
    intake.on_batch(KvPayload(0, payload))

    assert intake.counts["malformed"] == 1
