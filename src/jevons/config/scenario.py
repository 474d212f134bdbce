"""A scenario: a fleet, what it serves, what arrives, and what is promised. One TOML file."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError
from jevons.base.names import instead
from jevons.config.convert import convert
from jevons.config.tables import quoted, read_table, replace_in
from jevons.facts.llm import Precision

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]  # infinity too: no limit
Finite = Annotated[float, Meta(gt=0, le=1e30)]
Price = Annotated[float, Meta(ge=0, le=1e12)]  # seconds
Seconds = Annotated[float, Meta(gt=0, le=1e12)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Share = Annotated[float, Meta(gt=0, le=1)]
MOST_BLOCKS = 1 << 27  # of an instance: what is said of each takes gigabytes


class Polynomial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an iteration takes, as published simulators describe a machine."""

    prompt_ms: tuple[float, float, float]  # of T new prompt tokens: constant, T, T²
    decode_ms: tuple[float, float, float]  # of the share of KV tokens in use by decodes: constant, share, share²
    floor_ms: Annotated[float, Meta(ge=0)] = 1.0  # of decodes, at least

    def least_prompt_ms(self, most: int) -> float:
        """Of one to so many new prompt tokens."""
        constant, linear, square = self.prompt_ms
        lowest = min(max(1.0, -linear / (2 * square)), most) if square > 0 else 1.0
        return min(constant + tokens * (linear + tokens * square) for tokens in (1.0, lowest, float(most)))


class StepPrices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long an iteration takes, as a router learned it of a worker: see `jevons calibrate --record`."""

    per_step_s: Price
    per_token_s: Seconds  # of a prompt
    per_token_context_s: Price = 0.0  # token of a prompt, for each token before it
    per_decode_s: Price = 0.0
    per_context_s: Price = 0.0  # token that a decode attends to


class StoreTier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Memory below the chips', which the instances of a node share: what they compute is kept there too."""

    name: Literal["dram", "disk", "remote"] = "dram"
    size_bytes: Finite
    bytes_per_s: Positive  # to all of them together
    latency_s: Annotated[float, Meta(ge=0)] = 0.0
    instances: Count = 1  # that share it
    block_bytes: Annotated[float, Meta(ge=1)] | None = None  # None: as the model has it


class Drafter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who guesses tokens for the instances of a group, which check them: speculative decoding.

    A small model on chips of its own, or with neither model nor chip heads of the model itself.
    """

    model: str = ""  # of the catalog
    chip: str = ""
    tensor: Count = 1  # chips of each instance's own drafter, of each stage of its
    pipeline: Count = 1
    tokens: Count  # guessed each time
    accepted: Annotated[float, Meta(gt=0, lt=1)]  # probability that a guess is taken, if those before it were
    weights: Precision | None = None  # None: as released


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Instances that are alike."""

    instances: Annotated[int, Meta(ge=1, le=65_536)]
    names: list[str] = []  # of the live workers they stand for, one each
    chip: str = ""  # of the catalog; empty with `polynomial` or `prices`
    tensor: Count = 1  # chips that share each layer
    pipeline: Count = 1  # stages that the layers are cut into, of so many chips each
    experts: Count = 1  # ranks the experts are spread over; divides `tensor`
    attention: Count = 1  # copies of attention; divides `tensor`
    ffn_chip: str = ""  # feed-forward layers and experts are on chips of this kind, attention on `chip`
    ffn_chips: Count = 1
    role: Literal["both", "prefill", "decode"] = "both"
    block_size: Count = 64  # tokens
    blocks: Annotated[int, Meta(ge=1, le=MOST_BLOCKS)] | None = None  # None: what memory holds besides the weights
    memory_share: Share = 0.9  # of the chips' memory that is used
    step_tokens: Annotated[int, Meta(ge=1, le=1 << 40)] = 8192  # computed in one iteration at most
    max_running: Annotated[int, Meta(ge=1, le=32_767)] = 256
    engine: Literal["vllm", "jevons"] = "vllm"  # whose way of batching
    polynomial: Polynomial | None = None
    prices: StepPrices | None = None
    tier: StoreTier | None = None
    draft: Drafter | None = None
    power_w: Positive | None = None  # that a chip may draw; None: its TDP
    uplink_bytes_per_s: Positive | None = None  # of a domain of chips to others, that all in it share; None: no limit
    step_scale: Finite = 1.0  # measured over predicted step times, where that is known
    up_after_s: Annotated[float, Meta(ge=0)] = 0.0  # starting takes so long; with `scaling`, all but the first time


class Traffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What arrives: a recorded trace, or made-up sessions."""

    trace: str = ""  # a Mooncake or OpenAI-style .jsonl, or an Azure .csv
    kind: str = ""  # chat, rag, code, agents, documents, video
    rate: Rate = 1.0  # sessions starting a second
    requests: Count | None = None  # at most
    seconds: Seconds | None = None  # at most
    speed: Rate = 1.0  # a trace's times are divided by it
    copies: Annotated[int, Meta(ge=1, le=65_536)] = 1  # of a trace, side by side, sharing nothing
    shape: Literal["steady", "bursts", "diurnal"] = "steady"


# What becomes as usual of the fields of one kind of traffic, where the other is asked for instead.
RECORDED = {"traffic.kind": "", "traffic.rate": 1.0, "traffic.shape": "steady"}
MADE_UP = {"traffic.trace": "", "traffic.speed": 1.0, "traffic.copies": 1}


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is promised to each request."""

    ttft_s: Seconds = 2.0
    tpot_s: Seconds = 0.1


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens to instances, counted through all groups from 0."""

    at_s: Annotated[float, Meta(ge=0)]
    what: Literal["fail", "drain", "up", "cap"]
    first: Annotated[int, Meta(ge=0)]
    count: Count = 1
    power_w: Positive | None = None  # that a chip may draw from then on, where they are capped; None: its TDP


class Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Instances start and stop by what is asked of them: see `policy.scale`. All of the fleet is up at first."""

    every_s: Annotated[float, Meta(ge=0.001)] = 60.0  # from look to look
    least: Count = 1  # of each role; at most there are the instances of the fleet
    headroom: Annotated[float, Meta(ge=0)] = 0.3  # more than is asked for, as a share of it
    hold_s: Annotated[float, Meta(ge=0)] = 600.0  # so long fewer must have been enough before one is stopped


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    fleet: Annotated[list[Group], Meta(min_length=1)]
    traffic: Traffic
    model: str = ""  # of the catalog; empty where all groups are polynomial
    title: str = ""
    weights: Precision | None = None  # None: as released
    kv_bits: Literal[8, 16] = 16
    router: str = "kv"
    event_lag_s: Annotated[float, Meta(ge=0)] = 0.0  # until the router hears of a block
    event_loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share of KV events that are lost on their way
    event_replay: bool = True  # what was lost is asked for when the next event shows it; False: it is never heard of
    slo: Slo = Slo()
    scaling: Scaling | None = None  # None: all instances are there all the time
    events: list[Event] = []
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def instances(self) -> int:
        return sum(group.instances for group in self.fleet)


def read_scenario(path: Path, changes: dict[str, Any] | None = None) -> Scenario:
    """A scenario file, with some of it replaced.

    Args:
        changes: values by dotted name, such as `traffic.rate`.

    Raises:
        ConfigError: names the file, the field, the value and the rule.
    """
    table = read_table(path, "scenario")
    scenario = make_scenario(table, str(path), changes)
    trace = scenario.traffic.trace
    if trace and not (changes or {}).get("traffic.trace") and not Path(trace).is_absolute():
        beside = msgspec.structs.replace(scenario.traffic, trace=str(path.parent / trace))
        return msgspec.structs.replace(scenario, traffic=beside)
    return scenario


def make_scenario(table: dict[str, Any], where: str, changes: dict[str, Any] | None = None) -> Scenario:
    """A scenario from its fields. Raises ConfigError, see `read_scenario`."""
    replace_in(table, changes, f"scenario {where}")
    scenario = convert(table, Scenario, f"scenario {where}")
    try:
        _check(scenario)
    except ConfigError as error:
        raise ConfigError(f"scenario {where}: {error}") from error
    return scenario


def _check(scenario: Scenario) -> None:
    """What one field alone does not tell."""
    check_traffic(scenario.traffic)
    roles = {group.role for group in scenario.fleet}
    if roles == {"prefill"}:
        raise ConfigError("fleet: prefill instances need others to go on after the first token")
    if "prefill" not in roles and any(group.ffn_chip for group in scenario.fleet):
        raise ConfigError("fleet: instances with an ffn_chip compute no prompts; add prefill ones")
    for number, group in enumerate(scenario.fleet):
        _check_group(f"fleet[{number}]", group, scenario.model)
    if scenario.scaling is not None:
        _check_scaling(scenario, scenario.scaling)
    _check_events(scenario)


def check_traffic(traffic: Traffic) -> None:
    """Raises ConfigError: it is neither recorded nor made up, or something is said that is of the other kind."""
    if bool(traffic.trace) == bool(traffic.kind):
        raise ConfigError("traffic: must name either a trace or a kind, exactly one of them")
    of, instead = ("made-up sessions", "speed, copies") if traffic.trace else ("a trace", "rate, shape")
    for name, usual in (RECORDED if traffic.trace else MADE_UP).items():
        field = name.removeprefix("traffic.")
        if getattr(traffic, field) != usual:
            raise ConfigError(f"traffic.{field}: is of {of}, which this is not; it has {instead}")


def _check_events(scenario: Scenario) -> None:
    for event in scenario.events:
        if event.first + event.count > scenario.instances:
            raise ConfigError(
                f"events: instances {event.first} to {event.first + event.count - 1} are meant, "
                f"there are {scenario.instances}, counted from 0"
            )
        if event.power_w is not None and event.what != "cap":
            raise ConfigError(f"events: power_w is for 'cap' alone, got {event.what!r}")


def _check_scaling(scenario: Scenario, scaling: Scaling) -> None:
    roles = [group.role for group in scenario.fleet]
    if len(set(roles)) < len(roles):
        raise ConfigError(f"scaling: must have one group of each role, got {', '.join(roles)}; merge those alike")
    for number, group in enumerate(scenario.fleet):
        if group.instances < scaling.least:
            raise ConfigError(
                f"scaling.least: must be at most fleet[{number}].instances, {group.instances}, got {scaling.least}"
            )
    for event in scenario.events:
        if event.what != "cap":
            raise ConfigError(f"events: must be 'cap' where scaling decides who is up, got {event.what!r}")


def _check_group(where: str, group: Group, model: str) -> None:
    if group.names and len(group.names) != group.instances:
        raise ConfigError(f"{where}.names: must be one for each of {group.instances} instances, got {len(group.names)}")
    given = [name for name in ("polynomial", "prices") if getattr(group, name) is not None]
    if not given and not (group.chip and model):
        raise ConfigError(f"{where}: must have a chip and the scenario a model")
    if len(given) > 1 or (given and group.chip):
        raise ConfigError(f"{where}: must have one of chip, polynomial and prices, got more")
    if given and group.step_scale != 1.0:
        raise ConfigError(f"{where}.step_scale: has no effect with {given[0]}; scale its numbers instead")
    if group.polynomial is not None:
        _check_polynomial(f"{where}.polynomial", group.polynomial, group.step_tokens)
    if group.tier is not None and given and group.tier.block_bytes is None:
        raise ConfigError(f"{where}.tier.block_bytes: must be given with {given[0]}: bytes of a block")
    if group.prices is not None and group.blocks is None:
        raise ConfigError(f"{where}.blocks: must be given with prices: blocks of block_size tokens")
    _check_chips(where, group, given)


def _check_polynomial(where: str, polynomial: Polynomial, step_tokens: int) -> None:
    for name in ("prompt_ms", "decode_ms"):
        if not all(map(isfinite, getattr(polynomial, name))):
            raise ConfigError(f"{where}.{name}: must be finite, got {list(getattr(polynomial, name))}")
    least = polynomial.least_prompt_ms(step_tokens)
    if least < 0:
        raise ConfigError(
            f"{where}.prompt_ms: must not be below 0 for 1 to {step_tokens} tokens, is {least:g} for some"
        )


def _check_chips(where: str, group: Group, given: list[str]) -> None:
    """What is said of a group's chips. `given` names where its step times come from, if not from them."""
    for name in ("power_w", "draft", "uplink_bytes_per_s"):
        if given and getattr(group, name) is not None:
            raise ConfigError(f"{where}.{name}: needs a chip, got {given[0]}")
    for name in ("attention", "experts"):
        if group.tensor % getattr(group, name):
            raise ConfigError(
                f"{where}.{name}: must divide the {group.tensor} chips that share each layer (tensor), "
                f"got {getattr(group, name)}"
            )
    if group.ffn_chip and group.pipeline > 1:
        raise ConfigError(f"{where}.pipeline: must be 1 where ffn_chip is given, got {group.pipeline}")
    if group.draft is not None and (group.role != "decode" or group.ffn_chip):
        raise ConfigError(f"{where}.draft: is for instances of role 'decode' on one kind of chip")
    if group.draft is not None and bool(group.draft.model) != bool(group.draft.chip):
        raise ConfigError(f"{where}.draft: must have both a model and a chip, or neither: heads of the model itself")


def as_toml(scenario: Scenario) -> str:
    """The file that reads as this; what is as usual is left out."""
    tables: dict[str, msgspec.Struct] = {"traffic": scenario.traffic, "slo": scenario.slo}
    if scenario.scaling is not None:
        tables["scaling"] = scenario.scaling
    told = _told(scenario)
    lines = [f"{key} = {quoted(value)}" for key, value in told.items() if key not in (*tables, "fleet", "events")]
    for name, table in tables.items():
        if _told(table) or name == "scaling":
            lines += ["", f"[{name}]", *(f"{key} = {quoted(value)}" for key, value in _told(table).items())]
    for name in ("fleet", "events"):
        for each in getattr(scenario, name):
            lines += ["", f"[[{name}]]"]
            for key, value in _told(each).items():
                text = quoted(value)
                if isinstance(value, dict):
                    pairs = (f"{k} = {quoted(v)}" for k, v in value.items() if v is not None)
                    text = "{ " + ", ".join(pairs) + " }"
                lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def _told(table: msgspec.Struct) -> dict[str, Any]:
    """What is not as usual."""
    all_of: dict[str, Any] = msgspec.to_builtins(table)
    plain = {field.name: field.default for field in msgspec.structs.fields(table)}
    usual = {name: msgspec.to_builtins(value) for name, value in plain.items() if value is not msgspec.NODEFAULT}
    return {key: value for key, value in all_of.items() if value not in (None, []) and value != usual.get(key)}


def shipped(name: str) -> Path:
    """The file of a scenario that ships with jevons.

    Raises:
        ConfigError: there is none of that name; names those there are.
    """
    folder = Path(__file__).parent / "scenarios"
    path = folder / f"{name}.toml"
    if not path.exists():
        names = sorted(file.stem for file in folder.glob("*.toml"))
        raise ConfigError(f"scenario {name!r}: neither a file nor one of {', '.join(names)}{instead(name, names)}")
    return path
