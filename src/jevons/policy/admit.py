"""Admission: refuse now what would be late, by the forecast that places it.

A request may promise itself a time to its first token. Where even the best worker is predicted to miss it, serving it
makes others late too and does not help who asked; told at once, and when to come again, a client can go elsewhere.
"""

from __future__ import annotations

import math

import msgspec


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
