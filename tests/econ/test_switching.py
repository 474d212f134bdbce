"""Lock-in: what leaving costs and when a chip of one's own pays, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.econ.switching import (
    break_even_chips,
    break_even_tokens,
    fabric_usd,
    merchant_usd_per_token,
    removed,
    silicon_usd,
    software_usd,
)

BY_HAND = {
    "chip_usd": 100_000.0,
    "capex_overhead": 1.2,
    "software_port_usd": 40e6,
    "neutral_layer_share": 0.5,
    "chip_generation_usd": 1e9,
    "wacc": 0.10,
    "life_years": 2.0,
    "merchant_usd_per_hour": 3.6,
    "merchant_tokens_per_s": 1000.0,
    "custom_usd_over_merchant": 0.5,
    "custom_tokens_over_merchant": 0.8,
    "utilisation": 0.5,
}


def test_ten_thousand_chips_by_layer() -> None:
    """A billion of chips: half is written off, a fifth is fabric; software costs the same for any fleet."""
    assert silicon_usd(BY_HAND, 10_000) == pytest.approx(500e6)
    assert fabric_usd(BY_HAND, 10_000) == pytest.approx(200e6)
    assert software_usd(BY_HAND, neutral=False) == 40e6
    assert software_usd(BY_HAND, neutral=True) == 20e6
    assert removed(BY_HAND, 10_000) == pytest.approx(20 / 240)


def test_a_chip_of_ones_own_pays_where_its_design_is_saved() -> None:
    """$3.6 an hour for 1.8 million tokens is $2 a million, of which half is saved; 10 % over 2 years pay 576.19 million
    a year, and half of the port 20: 596 trillion tokens a year, 1.26e13 by each chip: 47.2 thousand of them."""
    assert merchant_usd_per_token(BY_HAND) == pytest.approx(2e-6)
    assert break_even_tokens(BY_HAND) == pytest.approx(596.19e12, rel=1e-4)
    assert break_even_chips(BY_HAND) == pytest.approx(596.19e12 / (400 * 8760 * 3600), rel=1e-4)


@given(st.floats(0.1, 10.0), st.floats(1.0, 3.0))
def test_the_dearer_the_design_and_the_cheaper_merchants_the_more_tokens_it_takes(
    dearer: float, cheaper: float
) -> None:
    dear = {**BY_HAND, "chip_generation_usd": 1e9 * (1 + dearer)}
    cheap = {**BY_HAND, "merchant_usd_per_hour": 3.6 / cheaper}
    assert break_even_tokens(dear) > break_even_tokens(BY_HAND)
    assert break_even_tokens(cheap) >= break_even_tokens(BY_HAND)
