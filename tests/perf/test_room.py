"""Room for keys and values beside the weights."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.roofline import Engine, Group
from jevons.perf.room import GUESS_ACTIVATION_BYTES, room_tokens, weight_bytes

CATALOG = read_catalog()
H200, V3 = CATALOG.chips["h200"], CATALOG.models["deepseek-v3"]


def test_what_weights_leave_is_shared_by_keys_and_values() -> None:
    llama = CATALOG.models["llama-3.1-70b"]
    engine = Engine(model=llama, chip=H200, group=Group(tensor=4), weights="fp8")
    left = 4 * (141e9 - GUESS_ACTIVATION_BYTES) - llama.params

    assert weight_bytes(engine) == llama.params
    assert room_tokens(engine, 1_000, 0.9) == pytest.approx(0.9 * left / llama.kv_bytes(1))


def test_latent_attention_is_held_by_every_chip_unless_sequences_are_spread() -> None:
    cut = Engine(model=V3, chip=H200, group=Group(tensor=8))
    spread = Engine(model=V3, chip=H200, group=Group(tensor=8, attention=8, experts=8))

    assert weight_bytes(spread) > weight_bytes(cut) == V3.params
    assert room_tokens(spread, 1_000, 0.9) > 6 * room_tokens(cut, 1_000, 0.9)


def test_weights_that_do_not_fit_leave_no_room() -> None:
    assert room_tokens(Engine(model=V3, chip=H200, group=Group(tensor=4)), 1_000, 0.9) == 0.0


def test_keys_that_sparse_attention_looks_at_take_room_too() -> None:
    """8,052 bytes of a token, DeepSeek-V3.2's, beside 35,136 of keys and values in 8 bits; each chip has them all."""
    sparse = CATALOG.models["deepseek-v3.2"]
    engine = Engine(model=sparse, chip=H200, group=Group(tensor=8), kv_bytes=1.0)
    with_index, without = (
        room_tokens(msgspec.structs.replace(engine, model=model), 8_000, 0.9)
        for model in (sparse, msgspec.structs.replace(sparse, index=None))
    )

    assert with_index / without == pytest.approx(35_136 / (35_136 + 8_052))
