"""Power and energy of an iteration, from how busy it keeps memory or arithmetic."""

from __future__ import annotations

import msgspec

from jevons.perf.roofline import Engine, Shares, Work, iteration

# GUESS: an accelerator that holds a model but does nothing, as a share of its TDP.
GUESS_IDLE_SHARE = 0.15
# Of use, so that decodes of Llama-2-70B and BLOOM-176B on A100, which by data sheet need 38 % and 45 % of the time they
# take, draw the 0.44 and 0.64 of TDP that Splitwise measured (arXiv 2311.18677, profiles at 8f99e7d), by the mean.
EXPONENT = 0.9
_WITHOUT = 1e12  # a share so large that a part takes no time
_FREE = Shares(
    bandwidth=_WITHOUT,
    compute=_WITHOUT,
    kv=_WITHOUT,
    attention=_WITHOUT,
    link=_WITHOUT,
    layer_s=0.0,
    link_s=0.0,
    host_s=0.0,
)


class Draw(msgspec.Struct, frozen=True):
    """What one iteration takes of all chips of the group, without hosts, network and cooling."""

    seconds: float
    power_w: float
    energy_j: float


def use(engine: Engine, work: Work) -> float:
    """Share of the iteration that memory or arithmetic, whichever needs more, would take at the data sheet's rate."""
    memory = msgspec.structs.replace(_FREE, bandwidth=1.0, kv=1.0)
    arithmetic = msgspec.structs.replace(_FREE, compute=1.0, attention=1.0)
    needs = (iteration(msgspec.structs.replace(engine, shares=s), work).seconds for s in (memory, arithmetic))
    return min(1.0, max(needs) / iteration(engine, work).seconds)


def draw(engine: Engine, work: Work) -> Draw | None:
    """Power between idle and TDP; None where the TDP is not known."""
    tdp = engine.chip.tdp_w
    if tdp is None:
        return None
    seconds = iteration(engine, work).seconds
    share = GUESS_IDLE_SHARE + (1 - GUESS_IDLE_SHARE) * use(engine, work) ** EXPONENT
    power_w = share * tdp.value * engine.group.chips
    return Draw(seconds, power_w, power_w * seconds)
