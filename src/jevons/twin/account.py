"""What a rehearsal's groups did, for whoever prices it: where their seconds, memory and joules went."""

from __future__ import annotations

import numpy as np

from jevons.base.compiled import Records
from jevons.facts.usage import GroupUsage
from jevons.perf.energy import GUESS_IDLE_SHARE, draw
from jevons.perf.roofline import Engine, Work
from jevons.perf.room import room_tokens, weight_bytes
from jevons.twin.fleet import USUAL_TOKENS, Made


def account(made: Made, engines: Records, simulated_s: float, paid_s: float, is_capped: bool) -> GroupUsage:
    """What one group did.

    Args:
        engines: of its instances, `twin.engine.ENGINE`.
        paid_s: instance-seconds, at most those of all instances all the time.
        is_capped: what its chips may draw changed on the way: what they drew is not known by its mean.
    """
    busy_s = float(engines["busy_s"].sum())
    error = None if made.calibrated is None or is_unlike(made) else made.calibrated.errors.get("rate")
    return GroupUsage(
        chip=kind_of(made),
        chips=chips_of(made),
        busy_s=busy_s,
        prompt_s=_prompt_s(made, engines, busy_s),
        cache_share=_cache_share(made, engines, busy_s / simulated_s),
        energy_j=None if is_capped else _energy_j(made, engines, busy_s, paid_s),
        trust="given" if made.calibrated is None else str(made.calibrated.trust),
        rate_p90_error=None if error is None else error.p90,
        paid_share=paid_s / (simulated_s * len(engines)),
        tier_bytes=_tier_bytes(made),
    )


def kind_of(made: Made) -> str:
    """Whose step times these are."""
    return made.group.chip or ("polynomial" if made.group.polynomial else "prices")


def is_unlike(made: Made) -> bool:
    """Ways of computing of which nothing was ever measured here."""
    return bool(made.group.ffn_chip) or made.drafts is not None


def chips_of(made: Made) -> dict[str, int]:
    """Of all instances, by kind: those of experts and drafters too."""
    group = made.group
    found = {kind_of(made): group.tensor * group.pipeline}
    if group.ffn_chip:
        found[group.ffn_chip] = found.get(group.ffn_chip, 0) + group.ffn_chips
    if made.drafts is not None and made.drafts.drafter is not None:
        assert group.draft is not None, "who has a drafter says on which chips"
        found[group.draft.chip] = found.get(group.draft.chip, 0) + made.drafts.drafter.group.chips
    return {name: count * group.instances for name, count in found.items()}


def _tier_bytes(made: Made) -> dict[str, float]:
    """Of all its nodes; one that fewer instances share than may has all of it."""
    tier = made.group.tier
    return {} if tier is None else {tier.name: tier.size_bytes * -(-made.group.instances // tier.instances)}


def _prompt_s(made: Made, engines: Records, busy_s: float) -> float:
    """Seconds that prompts took at the router's prices, those of full steps; the rest went to decodes."""
    if made.group.role == "prefill":
        return busy_s
    tokens, pairs = float(engines["sum_prompt_tokens"].sum()), float(engines["sum_prompt_pairs"].sum())
    return min(busy_s, tokens * made.prices.per_token_s + pairs * made.prices.per_token_context_s)


def _cache_share(made: Made, engines: Records, busy: float) -> float:
    """A pool is always full of what may be asked again, but for what sequences that run hold.

    Args:
        busy: instances, by the mean.
    """
    if made.engine is None or made.group.role == "decode":
        return 0.0
    pool = made.blocks * made.group.block_size
    running = float(engines["sum_context"].sum()) / max(1, int(engines["iterations"].sum())) * busy / len(engines)
    return _pool_share(made.engine, pool) * max(0.0, 1.0 - running / pool)


def _pool_share(engine: Engine, pool_tokens: float) -> float:
    """Of the chips' memory."""
    free = engine.group.chips * engine.chip.memory_bytes.value - weight_bytes(engine)
    tokens = room_tokens(engine, USUAL_TOKENS, 1.0)
    memory = engine.group.chips * engine.chip.memory_bytes.value
    return min(1.0, free * pool_tokens / tokens / memory) if tokens else 0.0


def _energy_j(made: Made, engines: Records, busy_s: float, paid_s: float) -> float | None:
    """Chips alone, at the power of their mean iteration or idle; None where that is not known."""
    engine, chip = made.engine, made.chip
    if engine is None or chip is None or chip.tdp_w is None or is_unlike(made):
        return None
    iterations = max(1, int(engines["iterations"].sum()))
    names = ("prompt_tokens", "prompt_pairs", "decodes", "context")
    sums = [float(engines[f"sum_{name}"].sum()) / iterations for name in names]
    drawn = draw(engine, Work(prompt_tokens=sums[0], prompt_pairs=sums[1], decodes=sums[2], context_tokens=sums[3]))
    assert drawn is not None, "its TDP is known"
    idle_w = chip.tdp_w.value * engine.group.chips * GUESS_IDLE_SHARE
    power_w = min(drawn.power_w, (made.group.power_w or np.inf) * engine.group.chips)
    return float(power_w * busy_s + idle_w * (paid_s - busy_s))
