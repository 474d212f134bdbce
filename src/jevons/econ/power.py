"""Energy of a token, tokens of a megawatt, racks of a site. Numbers or arrays of draws alike."""

from __future__ import annotations

import numpy as np

from jevons.econ.draws import Amount


def joules_per_token(*, power_w: Amount, tokens_per_s: Amount) -> Amount:
    return power_w / tokens_per_s


def tokens_per_s_per_mw(*, tokens_per_s: Amount, power_w: Amount) -> Amount:
    """Of the megawatts that `power_w` counts: those of chips, of all IT, or (times PUE) of the utility."""
    return tokens_per_s / power_w * 1e6


def racks_within(*, site_w: Amount, rack_w: Amount, pue: Amount) -> Amount:
    """How many whole racks a site's connection feeds, cooling included."""
    return np.floor(site_w / (rack_w * pue))
