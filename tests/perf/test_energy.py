"""Power lies between idle and TDP, and energy follows what is done."""

from __future__ import annotations

import msgspec
import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.energy import GUESS_IDLE_SHARE, draw, use
from jevons.perf.roofline import Engine, Group, Work

CATALOG = read_catalog()
ENGINE = Engine(model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h100"], group=Group(tensor=8), weights="fp8")


def decode(sequences: int) -> Work:
    return Work(decodes=sequences, context_tokens=1_000 * sequences)


def test_power_lies_between_idle_and_what_the_chips_may_draw() -> None:
    for work in (decode(1), decode(256), Work(prompt_tokens=8_192, prompt_pairs=8_192 * 4_096)):
        found = draw(ENGINE, work)
        assert found is not None
        assert GUESS_IDLE_SHARE * 8 * 700 < found.power_w <= 8 * 700
        assert found.energy_j == pytest.approx(found.power_w * found.seconds)


def test_a_batch_takes_less_energy_a_token_than_one_sequence() -> None:
    one, many = draw(ENGINE, decode(1)), draw(ENGINE, decode(64))

    assert one is not None
    assert many is not None
    assert many.energy_j / 64 < 0.1 * one.energy_j


def test_use_is_the_share_that_memory_would_take_where_memory_bounds() -> None:
    perfect = msgspec.structs.replace(ENGINE.shares, bandwidth=1.0, kv=1.0, layer_s=0.0, host_s=0.0, sequence_s=0.0)
    busy = msgspec.structs.replace(ENGINE, shares=perfect, group=Group())

    assert use(busy, decode(1)) == pytest.approx(1.0, rel=0.01)
    assert use(ENGINE, decode(1)) < 0.7


def test_a_chip_whose_power_is_not_known_draws_nothing_that_could_be_told() -> None:
    assert draw(msgspec.structs.replace(ENGINE, chip=CATALOG.chips["trainium3"]), decode(1)) is None
