"""What our own request headers say, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jevons.base.errors import RequestError
from jevons.policy.admit import USUAL, Promise

KEEP, HOLD = "x-jevons-keep-s", "x-jevons-hold-s"
TTFT, TPOT, MISS = "x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-miss"
REFUSE, SERVE = "refuse", "serve"
MAX_KEEP_S, MAX_HOLD_S, MAX_SLO_S = 86_400.0, 3_600.0, 3_600.0


def read_seconds(headers: Mapping[str, str], name: str, most_s: float) -> float:
    """Seconds from 0 on; 0 where the header is missing.

    Raises:
        RequestError: names the header, quotes the value, says the rule. So do the others.
    """
    seconds = _number(headers.get(name, "0"))
    if not 0 <= seconds <= most_s:
        raise RequestError(f"{name}: must be seconds from 0 to {most_s:.0f}, got {headers[name][:40]!r}")
    return seconds


def read_promise(headers: Mapping[str, str]) -> Promise:
    """What a request asks of its own serving."""
    miss = headers.get(MISS)
    if miss not in (None, REFUSE, SERVE):
        raise RequestError(f"{MISS}: must be {SERVE} or {REFUSE}, got {miss[:40]!r}")
    ttft_s, tpot_s = _promised(headers, TTFT), _promised(headers, TPOT)
    if ttft_s is None and tpot_s is None:
        if miss == REFUSE:
            raise RequestError(f"{MISS}: {REFUSE} goes with {TTFT} or {TPOT}, which say what is late")
        return USUAL
    return Promise(ttft_s, tpot_s, miss == REFUSE)


def _promised(headers: Mapping[str, str], name: str) -> float | None:
    """Seconds; None where the header is missing."""
    told_ms = headers.get(name)
    if told_ms is None:
        return None
    seconds = _number(told_ms) / 1e3
    if not 0 < seconds <= MAX_SLO_S:
        rule = f"must be milliseconds above 0, at most {MAX_SLO_S * 1e3:.0f}"
        raise RequestError(f"{name}: {rule}, got {told_ms[:40]!r}")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
