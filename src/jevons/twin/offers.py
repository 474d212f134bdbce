"""What a plan can be made of: instances that hold the model, with their price, and what one can do at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import msgspec
import numpy as np
from msgspec.structs import replace

from jevons.base.compiled import Reals
from jevons.base.errors import ConfigError, UnknownFigure
from jevons.config.catalog import Catalog
from jevons.config.prices import power_of, price_of, rack_of
from jevons.config.scenario import Group, Scenario, StoreTier, Traffic
from jevons.config.wants import Available, OfferedTier, Wants
from jevons.econ.capacity import Demand, Instance, Role, requests_per_s
from jevons.econ.cost import Basis, ChipHour
from jevons.econ.draws import bases
from jevons.econ.purchase import Kind, Offer
from jevons.econ.tiers import figures_of, usd_per_hour
from jevons.facts.economics import Economics
from jevons.facts.hardware import Chip, Figure
from jevons.facts.llm import Llm
from jevons.perf.afd import chips_needed
from jevons.perf.calibration import Calibration, Trust
from jevons.twin.arrivals import Piece, arrivals
from jevons.twin.fleet import make_groups, split_decode_s

PARTS = 24  # of the time, such as hours of a day
_IN_SRAM = "lpu"  # the kind of chips whose weights are in SRAM


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of instances, as a scenario has it and as the bound has it."""

    group: Group
    kind: Kind
    trust: Trust
    rate_p90_error: float | None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives, all together."""

    demand: Demand
    span_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    longest_tokens: int  # of one prompt with its answer
    peak: float = 1.0  # answers' tokens that are asked for in the busiest of `PARTS` parts of the time, over their mean


def load_of(traffic: Traffic, seed: int, share: float) -> Load:
    """Rates and means of a workload; prompts as far as a cache without end would not have them.

    Args:
        share: of requests that must be answered in time: the longest prompt among those is the long one.

    Raises:
        ConfigError: see `arrivals`; requests follow others, so that nobody knows beforehand when they come.
    """
    seen: set[int] = set()
    sums, last_s, requests = np.zeros(3), 0.0, 0  # prompt, context × output, output
    asked, outputs = [], []  # computed, pairs; when, tokens of the answer
    longest = 0
    for piece in arrivals(traffic, seed):
        if len(piece.afters):
            raise ConfigError("traffic: requests of this trace follow others; a plan needs the time of each")
        prompt, output = (piece.requests[name].astype(float) for name in ("prompt", "output"))
        held, longest = _held(piece, seen), max(longest, int((prompt + output).max()))
        asked.append(np.stack([prompt - held, (prompt**2 - held**2) / 2]))
        outputs.append(np.stack([piece.requests["at_s"], output]))
        sums += [prompt.sum(), ((prompt + output / 2) * output).sum(), output.sum()]
        requests, last_s = requests + len(piece.requests), float(piece.requests["at_s"][-1])
    tokens, pairs = np.concatenate(asked, axis=1)
    long = np.argsort(tokens, kind="stable")[int(share * requests)]
    prompt_sum, attended, output_sum = sums.tolist()
    if last_s <= 0:
        raise ConfigError(f"traffic: must go on for some time, got {requests} requests at once")
    demand = Demand(
        requests_per_s=requests / last_s,
        prompt_tokens=float(tokens.mean()),
        prompt_pairs=float(pairs.mean()),
        context_tokens=attended / output_sum,
        output_tokens=output_sum / requests,
        input_tokens=prompt_sum / requests,
        long_tokens=float(tokens[long]),
        long_pairs=float(pairs[long]),
    )
    return Load(
        demand=demand,
        span_s=last_s,
        requests=requests,
        input_tokens=round(prompt_sum),
        output_tokens=round(output_sum),
        longest_tokens=longest,
        peak=_peak(np.concatenate(outputs, axis=1), last_s),
    )


def _peak(outputs: Reals, last_s: float) -> float:
    """Of tokens at their times, [2, requests]."""
    parts, _ = np.histogram(outputs[0], PARTS, (0.0, last_s), weights=outputs[1])
    return float(parts.max() / parts.mean())


def _held(piece: Piece, seen: set[int]) -> Reals:
    """Leading tokens of each prompt that came before, all but the last at most; what comes is added to `seen`."""
    requests, ids = piece.requests, piece.ids.tolist()
    known = np.zeros(len(requests))
    firsts = requests["ids"].tolist()
    for i, count in enumerate(requests["count"].tolist()):
        of = ids[firsts[i] : firsts[i] + count]
        known[i] = next((at for at, name in enumerate(of) if name not in seen), count)
        seen.update(of)
    held: Reals = np.minimum(known * piece.id_tokens, requests["prompt"] - 1)
    return held


def offers_of(wants: Wants, catalog: Catalog) -> tuple[dict[str, Offer], dict[str, str]]:
    """Chips that may be bought or are owned; and why others are not, by name.

    Raises:
        ConfigError: what is named is not in the catalog.
    """
    named = (*wants.chips, *wants.without, *wants.owned, *wants.prices, *(each.chip for each in wants.available))
    for name in named:
        if name not in catalog.chips:
            raise ConfigError(f"plan: {name!r} is not in the catalog; `jevons fleet list` shows what is")
    available = {each.chip: each for each in wants.available}
    offers, why_not = dict[str, Offer](), dict[str, str]()
    for name, chip in catalog.chips.items():
        offer = _offer(name, chip, wants, available.get(name), catalog)
        if isinstance(offer, Offer):
            offers[name] = offer
        elif not wants.chips or name in wants.chips or name in wants.prices:
            why_not[name] = offer
    return offers, why_not


def _offer(name: str, chip: Chip, wants: Wants, there: Available | None, catalog: Catalog) -> Offer | str:
    """The offer, or why there is none."""
    owned = wants.owned.get(name, 0)
    if name in wants.without:
        return "excluded"
    if wants.vendors and chip.vendor not in wants.vendors:
        return f"of {chip.vendor}"
    late = there is not None and wants.at and there.since > wants.at
    is_left = bool(wants.chips) and name not in wants.chips
    hour = None if late or is_left else hour_of(wants.basis, name, catalog, wants.given)
    if hour is None and not owned and is_left and name in wants.prices:
        return "priced, but not among the chips that may be bought"
    if hour is None and not owned:
        return f"there from {there.since} on" if late and there else f"no price ({wants.basis}) known"
    drawn = power_of(catalog, name)
    if owned and drawn is None:
        return "owned, but what it draws is not known"
    economics, power_w = catalog.economics, None if drawn is None else drawn.value
    running = (power_w or 0.0) / 1e3 * economics.pue.value * economics.usd_per_kwh.value
    usd = running if hour is None else float(hour.usd(bases(hour.figures)))
    most = owned if hour is None else None if there is None or there.chips is None else max(there.chips, owned)
    return Offer(
        chip=name,
        usd_per_hour=usd,
        running_usd_per_hour=min(running, usd) if owned else 0.0,  # who has another for less leaves his own off
        owned=owned,
        most=most,
        power_w=power_w,
        capex_usd=_capital(name, chip, catalog),
    )


def hour_of(basis: str, name: str, catalog: Catalog, given: Mapping[str, Figure]) -> ChipHour | None:
    """How an hour of a chip is priced, as given or as published; None where that is not known."""
    try:
        return price_of(catalog, Basis(basis), name, given)
    except UnknownFigure:
        return None


def _capital(name: str, chip: Chip, catalog: Catalog) -> float | None:
    """Of one chip, with its share of the rack where it is bought in one."""
    rack = rack_of(catalog, name)
    if rack is not None:
        return None if rack.price_usd is None else rack.price_usd.value / rack.chips
    return None if chip.price_usd is None else chip.price_usd.value


def candidates(
    wants: Wants, load: Load, offers: dict[str, Offer], catalog: Catalog, calibration: Calibration
) -> list[Candidate]:
    """All kinds of instances that hold the model and can do something within the promise.

    Raises:
        ConfigError: the model is not in the catalog.
    """
    if wants.model not in catalog.models:
        raise ConfigError(f"model: {wants.model!r} is not in the catalog; `jevons fleet list` shows what is")
    model, found = catalog.models[wants.model], []
    for chip, offer in offers.items():
        groups = [*_groups(chip, offer, wants, model), *_splits(chip, offers, wants, catalog)]
        for group in groups:
            candidate = candidate_of(group, wants, load, catalog, calibration)
            if candidate is not None:
                found.append(candidate)
    return found


def _groups(chip: str, offer: Offer, wants: Wants, model: Llm) -> Sequence[Group]:
    roles: list[Role] = ["both"] if "both" in wants.roles else []
    roles += ["prefill", "decode"] if "split" in wants.roles else []
    found = []
    for tensor in wants.tensor:
        if not _is_there(offer, tensor):
            continue
        # Experts and attention are cut like other layers, or each has ranks of its own.
        for copies in sorted({1, tensor}) if model.moe is not None else (1,):
            found += [
                Group(
                    instances=1,
                    chip=chip,
                    tensor=tensor,
                    attention=copies,
                    experts=copies,
                    role=role,
                    memory_share=wants.memory_share,
                )
                for role in roles
            ]
    return found


def _splits(chip: str, offers: Mapping[str, Offer], wants: Wants, catalog: Catalog) -> Iterator[Group]:
    """Attention on this kind of chip, the rest on such as keep weights in SRAM: as few as hold them, and twice those.

    Each chip of attention has all of it and sequences of its own: its weights are little, and no sums are taken.
    """
    if "split" not in wants.roles or catalog.chips[chip].kind == _IN_SRAM:
        return
    model = catalog.models[wants.model]
    for ffn_chip in (name for name in offers if catalog.chips[name].kind == _IN_SRAM):
        least = chips_needed(model, wants.weights or model.weights, catalog.chips[ffn_chip])
        for tensor, ffn_chips in product(wants.tensor, (least, 2 * least)):
            if _is_there(offers[chip], tensor) and _is_there(offers[ffn_chip], ffn_chips):
                yield Group(
                    instances=1,
                    chip=chip,
                    tensor=tensor,
                    attention=tensor,
                    role="decode",
                    ffn_chip=ffn_chip,
                    ffn_chips=ffn_chips,
                    memory_share=wants.memory_share,
                )


def _is_there(offer: Offer, chips: int) -> bool:
    return offer.most is None or chips <= offer.most


def candidate_of(
    group: Group,
    wants: Wants,
    load: Load,
    catalog: Catalog,
    calibration: Calibration,
) -> Candidate | None:
    """One kind of instances with what it can do; None where it cannot compute it, or hold it with any request."""
    scenario = Scenario(
        fleet=[group], traffic=wants.traffic, model=wants.model, weights=wants.weights, kv_bits=wants.kv_bits
    )
    try:
        made = make_groups(scenario, catalog, calibration)[0]
    except ConfigError:
        return None
    assert made.engine is not None, "it has a chip"
    assert made.calibrated is not None, "it has a chip"
    if made.blocks * group.block_size < load.longest_tokens:
        return None
    instance = Instance(
        engine=made.engine,
        role=group.role,
        room_tokens=made.blocks * group.block_size,
        step_tokens=group.step_tokens,
        max_running=group.max_running,
        decode_s=split_decode_s(made, catalog.chips[group.ffn_chip]) if group.ffn_chip else None,
    )
    rate = requests_per_s(instance, load.demand, wants.slo.ttft_s, wants.slo.tpot_s)
    if rate <= 0:
        return None
    chips = {group.chip: group.tensor} | ({group.ffn_chip: group.ffn_chips} if group.ffn_chip else {})
    kind = Kind(role=group.role, chips=chips, requests_per_s=rate)
    error = made.calibrated.errors.get("rate")
    return Candidate(
        group=group,
        kind=kind,
        trust=made.calibrated.trust,
        rate_p90_error=None if error is None else error.p90,
    )


def with_tier(candidate: Candidate, tier: OfferedTier, economics: Economics) -> Candidate:
    """The same with memory below the chips' on each node, at the price it is offered for, or that such memory has."""
    price = tier.usd_per_hour
    if price is None:
        price = float(usd_per_hour(tier.name, tier.size_bytes, bases(figures_of(tier.name, economics))))
    plain = StoreTier(**{name: getattr(tier, name) for name in StoreTier.__struct_fields__})
    kind = replace(candidate.kind, usd_per_hour=price, sharing=tier.instances)
    return replace(candidate, group=replace(candidate.group, tier=plain), kind=kind)
