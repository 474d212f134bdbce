"""What our own request headers say, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jevons.base.errors import RequestError
from jevons.policy.admit import Promise

KEEP, HOLD, TTFT, MISS = "x-jevons-keep-s", "x-jevons-hold-s", "x-slo-ttft-ms", "x-slo-miss"
REFUSE, SERVE = "refuse", "serve"
MAX_KEEP_S, MAX_HOLD_S, MAX_TTFT_S = 86_400.0, 3_600.0, 3_600.0


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
    ttft_ms, miss = headers.get(TTFT), headers.get(MISS)
    if miss not in (None, REFUSE, SERVE):
        raise RequestError(f"{MISS}: must be {SERVE} or {REFUSE}, got {miss[:40]!r}")
    if ttft_ms is None:
        if miss == REFUSE:
            raise RequestError(f"{MISS}: {REFUSE} goes with {TTFT}, which says what is late")
        return Promise()
    ttft_s = _number(ttft_ms) / 1e3
    if not 0 < ttft_s <= MAX_TTFT_S:
        rule = f"must be milliseconds above 0, at most {MAX_TTFT_S * 1e3:.0f}"
        raise RequestError(f"{TTFT}: {rule}, got {ttft_ms[:40]!r}")
    return Promise(ttft_s, miss == REFUSE)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
