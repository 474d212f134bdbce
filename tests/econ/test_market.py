"""The market: dollars by hand, and sums that must come out whatever is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.econ.market import GUESS_MOST_CUSTOM, SEGMENTS, VENDORS, Split, custom_share, split

SINCE = np.arange(5.0)[:, np.newaxis]
BY_HAND = {
    "accelerator_spend_2026_usd": 200e9,
    "inference_share_2026": 0.5,
    "hyperscaler_share": 0.6,
    "custom_silicon_share_2026": 0.2,
    "custom_silicon_share_2028": 0.4,
    "custom_usd_over_merchant": 0.5,
    "custom_tokens_over_merchant": 0.8,
    "nvidia_inference_revenue_share_2026": 0.7,
}
share = st.floats(0.01, 0.99)


def of(**changed: float) -> Split:
    return split({**BY_HAND, **changed}, np.ones((5, 1)), SINCE)


def test_the_first_year_by_hand() -> None:
    """12 % of tokens at half the price: 0.06 of 0.94 dollars; NVIDIA has 70 of 100 billion, of 93.6 by merchants."""
    found = of()

    assert found.silicon_usd[0, 0] == pytest.approx(100e9)
    assert found.custom_tokens[0, 0] == pytest.approx(0.12)
    assert found.custom_revenue[0, 0] == pytest.approx(0.06 / 0.94)
    assert found.custom_units[0, 0] == pytest.approx(0.15 / 1.03)  # 0.12 / 0.8 beside 0.88
    assert found.vendor_usd["NVIDIA"][0, 0] == pytest.approx(70e9)


def test_who_has_silicon_of_his_own_pays_less_for_a_token() -> None:
    """2026: a fifth of hyperscalers' tokens at half the price, 0.9; 2030: 0.6 of them, 0.7. Others pay 1."""
    found = of()

    assert found.hyperscaler_price[:, 0] == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7])
    theirs, others = (found.segment_usd[name][-1, 0] for name in SEGMENTS)
    assert theirs / others == pytest.approx(0.6 / 0.4 * 0.7)


def test_custom_silicon_goes_on_as_it_went() -> None:
    assert custom_share(BY_HAND, SINCE)[:, 0] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert custom_share({**BY_HAND, "custom_silicon_share_2028": 0.9}, SINCE)[-1, 0] == GUESS_MOST_CUSTOM


def test_moving_tokens_to_cheaper_silicon_shrinks_what_all_vendors_earn() -> None:
    """2028: 24 % of tokens at half the price, 0.88 dollars where there were 0.94."""
    assert of().silicon_usd[2, 0] == pytest.approx(100e9 * 0.88 / 0.94)


@given(share, share, share, st.floats(0.1, 1.5), st.floats(0.1, 2.0), share)
def test_shares_sum_to_one_and_vendors_and_buyers_to_what_is_spent(
    big: float, now: float, then: float, price: float, each: float, nvidia: float
) -> None:
    found = of(
        hyperscaler_share=big,
        custom_silicon_share_2026=now,
        custom_silicon_share_2028=then,
        custom_usd_over_merchant=price,
        custom_tokens_over_merchant=each,
        nvidia_inference_revenue_share_2026=nvidia,
    )

    assert sum(found.vendor_usd[name] for name in VENDORS) == pytest.approx(found.silicon_usd)
    assert sum(found.segment_usd[name] for name in SEGMENTS) == pytest.approx(found.silicon_usd)
    assert all((found.vendor_usd[name] >= 0.0).all() for name in VENDORS)
    for part in (found.custom_tokens, found.custom_units, found.custom_revenue):
        assert (part >= 0.0).all()
        assert (part <= 1.0).all()


@given(share, share)
def test_the_more_custom_silicon_the_less_nvidia_earns(one: float, other: float) -> None:
    low, high = sorted((one, other))
    fewer, more = (of(custom_silicon_share_2028=s).vendor_usd["NVIDIA"][-1, 0] for s in (low, high))
    assert more <= fewer * (1 + 1e-12)
