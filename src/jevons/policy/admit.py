"""Admission: refuse now what would be late, by the forecast that places it.

A request may promise itself a time to its first token. Where even the best worker is predicted to miss it, serving it
makes others late too and does not help who asked; told at once, and when to come again, a client can go elsewhere.
"""

from __future__ import annotations

import math

import msgspec

from jevons.base.errors import RequestError

LATE, REFUSE, SERVE = "x-slo-miss", "refuse", "serve"
TTFT = "x-slo-ttft-ms"
MAX_TTFT_S = 3_600.0


class Promise(msgspec.Struct, frozen=True):
    """What a request asks of its own serving."""

    ttft_s: float | None = None  # to its first token; None: what is usual
    refuse_late: bool = False  # rather an error now than an answer that late

    def verdict(self, predicted_s: float) -> float | None:
        """Seconds after which to come again, at least 1, where it is to be refused; None: it is admitted.

        What waits now is gone by then: the forecast is so much too long.

        Args:
            predicted_s: to its first token, on the best worker.
        """
        if self.ttft_s is None or not self.refuse_late or predicted_s <= self.ttft_s:
            return None
        return float(max(1, math.ceil(predicted_s - self.ttft_s)))


def read_promise(ttft_ms: str | None, miss: str | None) -> Promise:
    """From the headers' values.

    Raises:
        RequestError: names the header, quotes the value, says the rule.
    """
    if miss not in (None, REFUSE, SERVE):
        raise RequestError(f"{LATE}: must be {SERVE} or {REFUSE}, got {miss[:40]!r}")
    if ttft_ms is None:
        if miss == REFUSE:
            raise RequestError(f"{LATE}: {REFUSE} goes with {TTFT}, which says what is late")
        return Promise()
    try:
        ttft_s = float(ttft_ms) / 1e3
    except ValueError:
        ttft_s = math.nan
    if not 0 < ttft_s <= MAX_TTFT_S:
        raise RequestError(
            f"{TTFT}: must be milliseconds above 0, at most {MAX_TTFT_S * 1e3:.0f}, got {ttft_ms[:40]!r}"
        )
    return Promise(ttft_s, miss == REFUSE)
