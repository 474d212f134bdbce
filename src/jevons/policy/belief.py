"""How far an index is believed: what it claimed that a worker holds, against what the worker then had.

An index errs where events are late or lost, or where it is only a guess from our own placements. What it claims too
much makes a worker look quick that is not, so its claims count for the share of them that was there of late.
"""

from __future__ import annotations

from jevons.base.compiled import Records, compiled

CLAIMS_FADE = 0.98  # weight of the past after one more claim was checked: the last 50 count
# Tokens that an index is taken to have been right about before it is checked: GUESS, a long prompt's, so that a block
# evicted in a bad moment takes little, and who makes things up loses half its word with its first long claim.
GUESS_CLAIMED_TOKENS = 2_048.0
# Of what an honest index claims, so much is evicted between placement and start: GUESS. Only what is missing beyond it
# is held against a worker.
GUESS_EVICTED_SHARE = 0.05


@compiled
def confirm(w: Records, claimed: int, cached: int) -> None:
    """A request is over for which the index claimed so many cached tokens, and the worker had so many.

    Args:
        w: of the worker, with `claimed` and `confirmed`: tokens of late.
    """
    if claimed > 0:
        w.claimed = w.claimed * CLAIMS_FADE + claimed
        w.confirmed = w.confirmed * CLAIMS_FADE + min(claimed, max(cached, 0))


@compiled
def confidence(w: Records) -> float:
    """The share of the tokens claimed that is expected to be there, above 0, at most 1."""
    found = (GUESS_CLAIMED_TOKENS + w.confirmed) / (GUESS_CLAIMED_TOKENS + w.claimed)
    return float(min(1.0, found / (1.0 - GUESS_EVICTED_SHARE)))
