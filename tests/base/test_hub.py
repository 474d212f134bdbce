"""Hubs are apart for Numba, however alike they begin."""

from __future__ import annotations

import numba
import numpy as np

from jevons.base.hub import Hub


def test_a_hub_that_begins_like_another_is_no_kind_of_it() -> None:
    arrays = {"paces": np.zeros(2)}
    short, long = Hub(arrays, {}), Hub(arrays, {"now_s": 0.0})

    kinds = [numba.typeof(hub.record).dtype for hub in (short, long)]  # type: ignore[no-untyped-call]

    assert not kinds[1].can_convert_to(None, kinds[0])
