"""Admission: what becomes of a request that would be late, by the forecast that places it.

A request may promise itself a time to its first token, and one for each token after it. Where even the best worker is
predicted to miss them, serving it makes others late too and does not help who asked. It says itself what it would
rather: be served late all the same, be told at once and go elsewhere, wait in front until a worker would keep the
promise, or be served after all others with nothing promised.
"""

from __future__ import annotations

import enum
import math

import msgspec


class Miss(enum.StrEnum):
    """What is to become of a request whose promise would be missed."""

    SERVE = "serve"  # late
    REFUSE = "refuse"  # told at once when to come again
    QUEUE = "queue"  # waits in front for a while, then is refused
    DOWNGRADE = "downgrade"  # goes after others, and nothing is promised


class Promise(msgspec.Struct, frozen=True):
    """What a request asks of its own serving."""

    ttft_s: float | None = None  # to its first token; None: what is usual
    tpot_s: float | None = None  # for each token after it; None: nothing is promised
    miss: Miss = Miss.SERVE
    queue_s: float = 0.0  # so long it may wait in front, where it queues

    def late_s(self, ttft_s: float, tpot_s: float, output_tokens: float) -> float:
        """Seconds by which its first token, or its last one, would come too late; 0: neither would.

        Args:
            ttft_s, tpot_s: as predicted.
            output_tokens: expected.
        """
        first_s = 0.0 if self.ttft_s is None else ttft_s - self.ttft_s
        rest_s = 0.0 if self.tpot_s is None else (tpot_s - self.tpot_s) * output_tokens
        return max(0.0, first_s, rest_s)


USUAL = Promise()


def again_s(late_s: float) -> float:
    """Seconds after which to come again, at least 1: what waits or runs now is gone by then.

    Args:
        late_s: by which the forecast is too long.
    """
    return float(max(1, math.ceil(late_s)))
