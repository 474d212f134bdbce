"""Prefill here or there: one worker for all of a request, or one for the prompt and another for what follows.

    whole    decode worker   │ queue │ bring │ compute the prompt: its running streams wait │ ...
    split    prefill worker  │ queue │ bring │ compute the prompt │
             decode worker                                        │ hand over │ ...

Both are predicted in seconds, whoever waits them: our client for the first token and, where it is handed over, for the
second; the streams running on a worker for as long as it computes our prompt. So short and mostly cached prompts stay
whole, and long ones go where they disturb nobody.
"""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Records, compiled
from jevons.policy.route import ANEW, BLOCKS, Limits, Weights, is_late, own_s, weigh

LATE_S = 1e6  # more than anything costs that is not late


@compiled
def handover_s(c: Records, prompt_tokens: int, is_near: bool) -> float:
    """Seconds until a worker can go on with a prompt that another has computed.

    Args:
        is_near: the other is of its node.
    """
    missing = max(prompt_tokens - c.cached, 0)
    if c.takes == ANEW:
        return own_s(c, prompt_tokens, max(missing, 1.0))
    fixed_s, token_s = (c.near_s, c.near_token_s) if is_near else (c.far_s, c.far_token_s)
    if c.takes != BLOCKS:
        return float(fixed_s + missing * token_s)
    tail = prompt_tokens % c.block_size + 1.0
    last_s = c.per_step_s + own_s(c, prompt_tokens, tail)
    return float(fixed_s + missing // c.block_size * c.block_size * token_s + last_s)


@compiled
def choose_apart(
    whole: Records, apart: Records, prompt_tokens: int, weights: tuple[Weights, Weights], limits: Limits
) -> tuple[int, int]:
    """Choose worker or workers for a prompt: the least waiting, all together; of equals one for all of it, then the
    lowest workers.

    Args:
        whole: [n], CANDIDATE: may do all of it, or what follows the first token.
        apart: [m], CANDIDATE: may do the prompt alone.
        weights: of each, see `route.weigh`.
        limits: who would be later than that is chosen only where all would.

    Returns:
        (-1, d): all on whole[d]; (p, d): the prompt on apart[p]; (-1, -1): there is nobody.
    """
    whole_weights, apart_weights = weights
    one, two, best_s = -1, -1, np.inf
    for p in range(len(apart)):
        weigh(apart[p], prompt_tokens, apart_weights)
    for d in range(len(whole)):
        c = whole[d]
        weigh(c, prompt_tokens, whole_weights)
        cost_s = c.waiting_s + c.answer_s + (LATE_S if is_late(c.seconds, c.tpot_s, limits) else 0.0)
        if c.whole and (two < 0 or cost_s < best_s or (cost_s == best_s and c.worker < whole[two].worker)):
            one, two, best_s = -1, d, cost_s
    for d in range(len(whole) if len(apart) else 0):
        c = whole[d]
        join_s = c.answer_s + c.requests * c.per_decode_s  # one more to advance, for all that are there
        near_s, far_s = handover_s(c, prompt_tokens, True) + join_s, handover_s(c, prompt_tokens, False) + join_s
        for p in range(len(apart)):
            cost_s = apart[p].waiting_s + (near_s if apart[p].node == c.node else far_s)
            cost_s += LATE_S if is_late(apart[p].seconds, c.tpot_s, limits) else 0.0
            if two < 0 or cost_s < best_s or (cost_s == best_s and _are_lower(whole, apart, (p, d), (one, two))):
                one, two, best_s = p, d, cost_s
    return one, two


@compiled
def _are_lower(whole: Records, apart: Records, new: tuple[int, int], best: tuple[int, int]) -> bool:
    """Whether these two workers go before the best so far, of equal cost."""
    if best[0] < 0:
        return False
    p, q = apart[new[0]].worker, apart[best[0]].worker
    return bool(p < q or (p == q and whole[new[1]].worker < whole[best[1]].worker))
