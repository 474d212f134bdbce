"""Copies on purpose: compute a prefix once more where it is not held, because those who want it next gain more by that.

    gain = who will want it, each holder's part · (seconds where it is held − seconds where it would be) − what the copy
           costs this one request

Who will want it is who wanted it in the last half minute: a rate is expected to last as long as it was seen to. So a
system prompt that thousands share gets more holders while those it has are filling up, and a conversation, which nobody
else asks for, gets none.
"""

from __future__ import annotations

from jevons.base.compiled import Records, compiled
from jevons.policy.route import Weights, weigh


@compiled
def where_to_copy(candidates: Records, chosen: int, prompt_tokens: int, weights: Weights, wanted: float) -> int:
    """The candidate to compute the prompt on so that later ones find what they share there too; -1: none gains by it.

    Args:
        candidates: as `route.choose` has weighed them.
        chosen: by it.
        weights: see `route.weigh`.
        wanted: requests of late that share with this one what the chosen holds of it.
    """
    held = candidates[chosen]
    cached, there_s = held.cached, held.waiting_s + held.answer_s
    holders = 0
    for i in range(len(candidates)):
        holders += candidates[i].cached >= cached
    best, most_s, each = -1, 0.0, wanted / (holders + 1)
    for i in range(len(candidates) if each > 0.0 else 0):
        c = candidates[i]
        if c.cached < cached:
            costs_s = c.waiting_s + c.answer_s - there_s
            gain_s = each * (there_s - _with_copy_s(c, cached, prompt_tokens, weights)) - costs_s
            if gain_s > most_s:
                best, most_s = i, gain_s
    return best


@compiled
def _with_copy_s(c: Records, cached: int, prompt_tokens: int, weights: Weights) -> float:
    """What a candidate would cost all concerned if it held so many tokens of the prompt."""
    had = c.cached
    c.cached = cached
    weigh(c, prompt_tokens, weights)
    seconds = c.waiting_s + c.answer_s
    c.cached = had
    weigh(c, prompt_tokens, weights)
    return float(seconds)
