"""A scenario's fleet as the kernel's arrays: paces from data sheets and calibration, pools from memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace

from jevons.base.compiled import Places, Records
from jevons.base.errors import ConfigError
from jevons.base.hub import Hub
from jevons.config.catalog import Catalog
from jevons.config.scenario import MOST_BLOCKS, Group, Scenario
from jevons.control import board
from jevons.facts.hardware import Chip
from jevons.facts.llm import Llm
from jevons.kv.cache import pool_arrays
from jevons.kv.entries import bound_entries, index_arrays
from jevons.perf import pace as paces
from jevons.perf.afd import GUESS_SRAM_SHARE, Rest, Way, afd_step, chips_needed
from jevons.perf.calibration import Calibrated, Calibration, Key, dense_weights, family_of, look_up
from jevons.perf.cap import capped
from jevons.perf.energy import GUESS_IDLE_SHARE
from jevons.perf.measured import Prices
from jevons.perf.roofline import GUESS_STATIC_SHARES, Engine, Work, iteration
from jevons.perf.roofline import Group as Layout
from jevons.perf.room import attention_bytes, room_tokens, weight_bytes
from jevons.perf.speculate import Drafts, token_s
from jevons.policy.route import ALL
from jevons.twin.hearing import hearing_arrays
from jevons.twin.kernel import loop_arrays, price_context
from jevons.twin.possible import check_computes, check_layout
from jevons.twin.sequences import ENGINE, engine_arrays

# Held by anyone, to begin with: what was never used takes no memory, and growing means a copy, with both there at once.
_MOST_BLOCKS = 1 << 28
_MOST_OF_TIER = 1 << 40  # blocks: more than a rehearsal could ever compute
_LOG = 1 << 21  # changes of pools, to begin with
_SLOTS = 1 << 16  # requests under way at once, to begin with
USUAL_TOKENS = 8_192  # a sequence's length by which windows and states are weighed against full attention
_USUAL_DECODES = 64
_ENGINE = "vllm"  # the program whose calibration is taken: the kernel schedules as it does
Known = TypeVar("Known", Chip, Llm)


class Made(NamedTuple):
    """One group of a fleet as it was made."""

    group: Group
    chip: Chip | None
    engine: Engine | None
    calibrated: Calibrated | None
    blocks: int
    prices: Prices
    drafts: Drafts | None = None


def make_groups(scenario: Scenario, catalog: Catalog, calibration: Calibration) -> list[Made]:
    """Each group's engine, its room and its prices.

    Raises:
        ConfigError: a chip or the model is not in the catalog, cannot compute it, or cannot hold it.
    """
    return [_make(i, group, scenario, catalog, calibration) for i, group in enumerate(scenario.fleet)]


def _make(number: int, group: Group, scenario: Scenario, catalog: Catalog, calibration: Calibration) -> Made:
    where = f"fleet[{number}]"
    if group.polynomial is not None:
        blocks = group.blocks or 16_384
        return Made(group, None, None, None, blocks, _polynomial_prices(group, blocks))
    if group.prices is not None:
        assert group.blocks is not None, "checked when it was read"
        p = group.prices
        learned = Prices(p.per_step_s, p.per_token_s, p.per_token_context_s, p.per_decode_s)
        return Made(group, None, None, None, group.blocks, learned)
    model = _known(catalog.models, scenario.model, "model")
    chip = _known(catalog.chips, group.chip, f"{where}.chip")
    weights = scenario.weights or model.weights
    check_computes(f"{where}.chip", chip, group.chip, weights)
    key = Key(engine=_ENGINE, family=family_of(model), chip=group.chip, weights=weights, split=group.role != "both")
    calibrated = look_up(calibration, key, is_static=chip.kind == "lpu")
    layout = Layout(tensor=group.tensor, pipeline=group.pipeline, experts=group.experts, attention=group.attention)
    engine = Engine(
        model=model,
        chip=chip,
        group=layout,
        shares=calibrated.shares,
        weights=weights,
        kv_bytes=scenario.kv_bits / 8,
        dense_weights=dense_weights(model, weights, chip),
    )
    check_layout(where, engine, group.chip, scenario.model)
    _check_rest(where, group, engine, catalog)
    if group.power_w is not None:
        engine = _capped(f"{where}.power_w", engine, group.power_w)
    drafts = _drafts(where, group, engine, catalog, calibration)
    tokens = _room(group, engine)
    if drafts is not None and drafts.drafter is not None:
        tokens = min(tokens, room_tokens(drafts.drafter, USUAL_TOKENS, group.memory_share))
    blocks = group.blocks or int(tokens // group.block_size)
    if blocks < 1:
        need, has = _held(group)(engine), layout.chips * chip.memory_bytes.value
        raise ConfigError(
            f"{where}: {layout.chips} × {group.chip} hold {has / 1e9:,.0f} GB, {scenario.model} needs "
            f"{need / 1e9:,.0f} GB for its weights and room for keys and values; use more chips (tensor, pipeline) or "
            f"fewer bits (weights)"
        )
    if blocks > MOST_BLOCKS:
        raise ConfigError(
            f"{where}.block_size: must leave at most {MOST_BLOCKS:,} blocks an instance, {group.block_size} makes "
            f"{blocks:,}; raise it, or give blocks"
        )
    rest = catalog.chips[group.ffn_chip] if group.ffn_chip else None
    prices = _prices(group, engine, _decode_s(group, engine, drafts, rest))
    return Made(group, chip, engine, calibrated, blocks, prices, drafts)


def _capped(where: str, engine: Engine, power_w: float) -> Engine:
    tdp = engine.chip.tdp_w
    if tdp is None:
        raise ConfigError(f"{where}: the TDP of the chip is not known; add it to the catalog")
    if power_w <= GUESS_IDLE_SHARE * tdp.value:
        raise ConfigError(
            f"{where}: must be more than what the chip draws idle ({GUESS_IDLE_SHARE * tdp.value:g} W), got {power_w:g}"
        )
    return capped(engine, power_w)


def change_power(number: int, made: Made, power_w: float | None) -> Made:
    """A group when its chips may draw so many watts; None: as the group says.

    Raises:
        ConfigError: its step times are the scenario's own, its experts are elsewhere, or see `Group.power_w`.
    """
    where = f"events: power_w of fleet[{number}]"
    if power_w is None:
        return made
    if made.engine is None or made.calibrated is None or made.group.ffn_chip:
        raise ConfigError(f"{where}: needs a group whose step times come from one kind of chip")
    uncapped = replace(made.engine, shares=made.calibrated.shares)
    engine = _capped(where, uncapped, power_w)
    prices = _prices(made.group, engine, _decode_s(made.group, engine, made.drafts, None))
    return made._replace(engine=engine, prices=prices)


def _drafts(where: str, group: Group, target: Engine, catalog: Catalog, calibration: Calibration) -> Drafts | None:
    drafter = group.draft
    if drafter is None:
        return None
    if not drafter.model:
        return Drafts(tokens=drafter.tokens, acceptance=drafter.accepted)
    model = _known(catalog.models, drafter.model, f"{where}.draft.model")
    chip = _known(catalog.chips, drafter.chip, f"{where}.draft.chip")
    weights = drafter.weights or model.weights
    check_computes(f"{where}.draft", chip, drafter.chip, weights)
    key = Key(engine=_ENGINE, family=family_of(model), chip=drafter.chip, weights=weights)
    shares = look_up(calibration, key, is_static=chip.kind == "lpu").shares
    engine = Engine(
        model=model,
        chip=chip,
        group=Layout(tensor=drafter.tensor, pipeline=drafter.pipeline),
        shares=shares,
        weights=weights,
        kv_bytes=target.kv_bytes,
        dense_weights=dense_weights(model, weights, chip),
    )
    check_layout(f"{where}.draft", engine, drafter.chip, drafter.model)
    if room_tokens(engine, USUAL_TOKENS, group.memory_share) < group.block_size:
        need, has = model.weight_bytes(weights), engine.group.chips * chip.memory_bytes.value
        raise ConfigError(
            f"{where}.draft: {engine.group.chips} × {drafter.chip} hold {has / 1e9:,.1f} GB, {drafter.model} needs "
            f"{need / 1e9:,.1f} GB for its weights and room for keys and values; give it more chips"
        )
    way_s = 2 * shares.link_s if drafter.chip != group.chip else 0.0
    return Drafts(tokens=drafter.tokens, acceptance=drafter.accepted, drafter=engine, way_s=way_s)


def _known(table: dict[str, Known], name: str, what: str) -> Known:
    if name not in table:
        raise ConfigError(f"{what}: {name!r} is not in the catalog; `jevons fleet list` shows what is")
    return table[name]


def _room(group: Group, engine: Engine) -> float:
    return room_tokens(engine, USUAL_TOKENS, group.memory_share, _held(group))


def _held(group: Group) -> Callable[[Engine], float]:
    """Of whose weights the bytes are on the group's own chips."""
    return attention_bytes if group.ffn_chip else weight_bytes


def _check_rest(where: str, group: Group, engine: Engine, catalog: Catalog) -> None:
    """Attention on one kind of chip and the rest on another: decode only, and the rest must fit."""
    if not group.ffn_chip:
        return
    if group.role != "decode":
        raise ConfigError(f"{where}.role: must be 'decode' where ffn_chip is given, got {group.role!r}")
    chip = _known(catalog.chips, group.ffn_chip, f"{where}.ffn_chip")
    if chip.scale_up_bytes_per_s is None or not (engine.chip.scale_out_bytes_per_s or engine.chip.scale_up_bytes_per_s):
        raise ConfigError(f"{where}: links of {group.chip} and {group.ffn_chip} must be known; add them to the catalog")
    weights = engine.weights or engine.model.weights
    check_computes(f"{where}.ffn_chip", chip, group.ffn_chip, weights)
    need = chips_needed(engine.model, weights, chip)
    if need > group.ffn_chips:
        raise ConfigError(
            f"{where}.ffn_chips: {group.ffn_chips} × {group.ffn_chip} cannot hold the experts in "
            f"{GUESS_SRAM_SHARE:.0%} of their memory; at least {need} must be given"
        )


def _decode_s(
    group: Group, engine: Engine, drafts: Drafts | None, rest: Chip | None
) -> Callable[[float, float], float]:
    """Seconds of a step by sequences and the tokens each attends to, as the formulas have it."""
    if rest is not None:
        return _apart_s(group, engine, rest)
    if drafts is not None:
        return lambda count, context: token_s(engine, drafts, count, count * context)
    return lambda count, context: iteration(engine, Work(decodes=count, context_tokens=count * context)).seconds


def _prices(group: Group, engine: Engine, decode_s: Callable[[float, float], float]) -> Prices:
    """What the router begins with: its sum of four parts, fitted to a full step of prompts and a usual batch."""
    step_tokens, scale = group.step_tokens, group.step_scale
    nothing = iteration(engine, Work()).overhead_s
    prompt = iteration(engine, Work(prompt_tokens=step_tokens, prompt_pairs=step_tokens * step_tokens / 2))
    decodes, one = (decode_s(count, 2_048.0) for count in (_USUAL_DECODES, 1))
    return Prices(
        per_step_s=scale * nothing,
        per_token_s=scale * (prompt.seconds - prompt.attention_s - nothing) / step_tokens,
        per_token_context_s=scale * prompt.attention_s / (step_tokens * step_tokens / 2),
        per_decode_s=scale * max(0.0, decodes - one) / (_USUAL_DECODES - 1),
    )


def _polynomial_prices(group: Group, blocks: int) -> Prices:
    assert group.polynomial is not None, "asked of polynomial groups"
    constant, linear, square = group.polynomial.prompt_ms
    a_share = USUAL_TOKENS / (blocks * group.block_size)
    return Prices(
        constant / 1e3, (linear + square * group.step_tokens) / 1e3, 0.0, group.polynomial.decode_ms[1] * a_share / 1e3
    )


def set_pace(arrays: dict[str, Any], at: int, made: Made, catalog: Catalog) -> None:
    """Pace `at` is that of this group's instances."""
    group, engine = made.group, made.engine
    if group.polynomial is not None:
        p, tokens = group.polynomial, float(made.blocks * group.block_size)
        prompt_s, decode_s = ([ms / 1e3 for ms in part] for part in (p.prompt_ms, p.decode_ms))
        paces.set_polynomial(arrays["paces"], at, prompt_s, decode_s, (p.floor_ms / 1e3, tokens))
        return
    if group.prices is not None:
        paces.set_prices(arrays["paces"], at, made.prices, group.prices.per_context_s)
        return
    assert engine is not None, "others have an engine"
    if group.ffn_chip:
        paces.set_grid(arrays, at, split_decode_s(made, catalog.chips[group.ffn_chip]))
        return
    each_s = engine.shares.sequence_s / engine.group.attention

    scale = group.step_scale

    def layers(tokens: float) -> float:
        parts = iteration(engine, Work(prompt_tokens=tokens))
        return scale * (parts.linear_s + parts.link_s + parts.overhead_s)

    def kv(context: float) -> float:
        return scale * (iteration(engine, Work(decodes=1, context_tokens=context)).kv_s + each_s)

    def attention(pairs: float) -> float:
        return scale * iteration(engine, Work(prompt_tokens=1, prompt_pairs=pairs)).attention_s

    paces.set_curves(arrays, at, paces.Curves(layers, kv, attention), engine.group.pipeline)
    if made.drafts is not None:
        drafts = made.drafts
        paces.set_grid(arrays, at, lambda count, context: scale * token_s(engine, drafts, count, count * context))


def split_decode_s(made: Made, chip: Chip) -> Callable[[float, float], float]:
    """Seconds of a step by sequences and the tokens each attends to, with all but attention on chips of this kind."""
    assert made.engine is not None, "who is not polynomial has an engine"
    scale, seconds = made.group.step_scale, _apart_s(made.group, made.engine, chip)
    return lambda sequences, context: scale * seconds(sequences, context)


def _apart_s(group: Group, engine: Engine, chip: Chip) -> Callable[[float, float], float]:
    assert chip.scale_up_bytes_per_s is not None, "checked when it was made"
    shares = GUESS_STATIC_SHARES if chip.kind == "lpu" else engine.shares
    rest = Rest(chip=chip, chips=group.ffn_chips, weights=engine.weights or engine.model.weights, shares=shares)
    near = engine.chip.scale_out_bytes_per_s or engine.chip.scale_up_bytes_per_s
    assert near is not None, "checked when it was made"
    far = chip.scale_out_bytes_per_s or chip.scale_up_bytes_per_s
    rate = min(near.value * group.tensor, far.value * group.ffn_chips)
    way = Way(bytes_per_s=rate * engine.shares.link, latency_s=engine.shares.link_s)

    def decode_s(sequences: float, context: float) -> float:
        step = afd_step(engine, rest, way, sequences, sequences * context)
        assert step is not None, "checked when it was made"
        return step.seconds

    return decode_s


def make_hub(made: Sequence[Made], later: Sequence[Made], catalog: Catalog, policy: int) -> Hub:
    """The fleet before anything arrives. Instances are numbered through the groups, in the order of `made`.

    Args:
        later: groups as some will be: their paces come after those of `made`.
    """
    count = sum(m.group.instances for m in made)
    pace_table = paces.pace_arrays(len(made) + len(later))
    for at, m in enumerate(later, len(made)):
        set_pace(pace_table, at, m, catalog)
    engines, workers = np.zeros(count, ENGINE), np.zeros(count, board.WORKER)
    for name in ("first", "last", "next", "final"):
        engines[name] = -1
    engines["ends_s"] = np.inf
    engines["pool"] = np.arange(count)
    first = 0
    for at, m in enumerate(made):
        set_pace(pace_table, at, m, catalog)
        here = slice(first, first + m.group.instances)
        _fill_engines(engines[here], m, at)
        _fill_workers(workers[here], m, engines[here])
        workers["kind"][here] = at
        first += m.group.instances
    workers["holder"] = np.arange(count)
    kinds = board.kinds_of([(0, m.group.role == "prefill", m.group.block_size) for m in made])
    blocks = [m.blocks for m in made for _ in range(m.group.instances)]
    most = max(blocks)  # that one pool can give up at once; a tier gives up none
    blocks += _set_tiers(engines, made)
    _set_uplinks(engines, made)
    room = min(_MOST_BLOCKS, 2 * sum(blocks))
    parts = (
        pool_arrays(blocks, room, max(min(room // 2, _LOG), 4 * most)),
        index_arrays(count, 1),
        board.board_arrays(kinds, workers, _SLOTS),
        engine_arrays(engines, _SLOTS, 2 * max(m.group.max_running for m in made) + 2),
        hearing_arrays(count),
        loop_arrays(count, _SLOTS, max(1 << 15, 8 * max(m.group.max_running for m in made))),
    )
    arrays, numbers = dict(pace_table), dict[str, int | float]()
    for some, more in parts:
        arrays |= some
        numbers |= more
    hub = Hub(arrays, numbers)
    for name in ("block", "set", "pair"):
        bound_entries(hub, name, room, large_pages=True)
    hub.set("policy", policy)
    hub.set("has_tiers", int(len(blocks) > count))
    board.seat(hub)
    price_context(hub.record)
    return hub


def _fill_engines(engines: Records, m: Made, pace: int) -> None:
    group, engine = m.group, m.engine
    engines["pace"], engines["block_size"] = pace, group.block_size
    engines["step_tokens"], engines["max_running"] = group.step_tokens, group.max_running
    engines["up"], engines["layers"] = 1, 1
    engines["waits_for_prefix"] = group.engine == "jevons"
    engines["near_bytes_per_s"] = engines["far_bytes_per_s"] = np.inf
    if engine is None:
        return
    engines["layers"] = engine.model.layers
    engines["kv_fixed_bytes"] = engine.model.state_bytes
    tokens = USUAL_TOKENS
    engines["kv_token_bytes"] = (engine.model.kv_bytes(tokens, engine.kv_bytes) - engine.model.state_bytes) / tokens
    chips, share = engine.group.chips, engine.shares.link
    up, out = engine.chip.scale_up_bytes_per_s, engine.chip.scale_out_bytes_per_s
    if up is not None:
        engines["near_bytes_per_s"] = up.value * chips * share
    beyond = out or up
    engines["far_bytes_per_s"] = np.inf if beyond is None else beyond.value * chips * share
    engines["link_s"] = engine.shares.link_s
    domain = int(engine.chip.domain_size.value) if engine.chip.domain_size is not None else chips
    each = max(1, domain // chips)
    engines["domain"] = pace * (1 << 16) + np.arange(len(engines)) // each


def _set_uplinks(engines: Records, made: Sequence[Made]) -> None:
    """Tell engines which line to other domains is theirs."""
    engines["uplink"], first = -1, 0
    lines = np.unique(engines["domain"], return_inverse=True)[1]
    for m in made:
        here = slice(first, first + m.group.instances)
        first += m.group.instances
        if m.group.uplink_bytes_per_s is not None:
            engines["uplink"][here], engines["uplink_byte_s"][here] = lines[here], 1 / m.group.uplink_bytes_per_s


def _set_tiers(engines: Records, made: Sequence[Made]) -> list[int]:
    """Tell engines which pool is the tier of their node. Returns the blocks of each, numbered after their own pools."""
    engines["tier"], first, found = -1, 0, list[int]()
    for number, m in enumerate(made):
        here, tier = engines[first : first + m.group.instances], m.group.tier
        first += m.group.instances
        if tier is None:
            continue
        block_bytes = tier.block_bytes or float(here["kv_token_bytes"][0]) * m.group.block_size
        if tier.size_bytes < block_bytes:
            raise ConfigError(
                f"fleet[{number}].tier.size_bytes: must hold at least one block ({block_bytes:,.0f} bytes), "
                f"got {tier.size_bytes:,.0f}"
            )
        node = np.arange(len(here)) // tier.instances
        here["tier_line"] = len(found) + node
        here["tier"] = len(engines) + here["tier_line"]
        here["tier_s"], here["tier_block_s"] = tier.latency_s, block_bytes / tier.bytes_per_s
        found += [int(min(tier.size_bytes // block_bytes, _MOST_OF_TIER))] * (int(node[-1]) + 1)
    return found


def _fill_workers(workers: Records, m: Made, engines: Records) -> None:
    for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"):
        workers[name] = getattr(m.prices, name)
    # Whose programs are laid out in time for decoding, or who has no experts, computes no prompts.
    decodes_only = m.group.role == "decode" and m.chip is not None and m.chip.kind == "lpu"
    workers["step_tokens"], workers["whole"] = m.group.step_tokens, not (m.group.ffn_chip or decodes_only)
    workers["up"], workers["takes"] = m.group.up_after_s == 0, ALL
    if m.engine is None:
        return
    workers["node"] = engines["domain"]
    each = m.engine.model.kv_bytes(USUAL_TOKENS, m.engine.kv_bytes) / USUAL_TOKENS / m.engine.model.layers
    for far, rate in (("near", "near_bytes_per_s"), ("far", "far_bytes_per_s")):
        workers[f"{far}_s"], workers[f"{far}_token_s"] = m.engine.shares.link_s, each / engines[rate]


def decoders_first(scenario: Scenario) -> tuple[Scenario, Places]:
    """The same with the groups that compute prompts alone at the end, as the kernel wants them.

    Returns:
        it, and of each instance the number it had.
    """
    groups = np.argsort([group.role == "prefill" for group in scenario.fleet], kind="stable")
    sizes = np.array([group.instances for group in scenario.fleet])
    numbers = np.split(np.arange(sizes.sum(), dtype=np.int32), np.cumsum(sizes)[:-1])
    fleet = [scenario.fleet[group] for group in groups]
    return replace(scenario, fleet=fleet), np.concatenate([numbers[group] for group in groups])
