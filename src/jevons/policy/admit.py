"""Admission: refuse now what would be late, by the forecast that places it.

A request may promise itself a time to its first token, and one for each token after it. Where even the best worker is
predicted to miss them, serving it makes others late too and does not help who asked; told at once, and when to come
again, a client can go elsewhere.
"""

from __future__ import annotations

import math

import msgspec


class Promise(msgspec.Struct, frozen=True):
    """What a request asks of its own serving."""

    ttft_s: float | None = None  # to its first token; None: what is usual
    tpot_s: float | None = None  # for each token after it; None: nothing is promised
    refuse_late: bool = False  # rather an error now than an answer that late

    def late_s(self, ttft_s: float, tpot_s: float, output_tokens: float) -> float:
        """Seconds by which its first token, or its last one, would come too late; 0: neither would.

        Args:
            ttft_s, tpot_s: as predicted.
            output_tokens: expected.
        """
        first_s = 0.0 if self.ttft_s is None else ttft_s - self.ttft_s
        rest_s = 0.0 if self.tpot_s is None else (tpot_s - self.tpot_s) * output_tokens
        return max(0.0, first_s, rest_s)

    def verdict(self, ttft_s: float, tpot_s: float, output_tokens: float) -> float | None:
        """Seconds after which to come again, at least 1, where it is to be refused; None: it is admitted.

        What waits or runs now is gone by then: the forecast is so much too long. Arguments as of `late_s`.
        """
        late_s = self.late_s(ttft_s, tpot_s, output_tokens) if self.refuse_late else 0.0
        return float(max(1, math.ceil(late_s))) if late_s > 0 else None


USUAL = Promise()
