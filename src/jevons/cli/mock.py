"""`jevons mock`."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import uvloop
from msgspec.structs import replace

from jevons.base.errors import ConfigError
from jevons.cli.options import fetch, log_to_stderr
from jevons.cli.ranges import Finite
from jevons.config.scenario import Group, Scenario, make_scenario, read_scenario, shipped
from jevons.engine.mock_engine import MockFacts
from jevons.perf.measured import Prices
from jevons.perf.pace import Pace, pace_arrays, pace_of
from jevons.serve.memory import raise_files
from jevons.serve.mock import Words
from jevons.serve.mock_fleet import Chaos, Made, Plan, mock_fleet
from jevons.serve.prompts import local_encoder
from jevons.serve.tokenizer import Tokenizer

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("mock", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Engines that are alike.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Data-parallel, of each engine.")
@click.option("--fleet", help="Timed by chips instead: INSTANCESxCHIP or INSTANCESxTENSORxCHIP, such as 1000xh100.")
@click.option("--model", help="With --fleet: the model of the catalog that sets times and room.")
@click.option("--scenario", help="Timed by a scenario's groups: a TOML file, or the name of one that ships.")
@click.option(
    "--prefill-tokens-per-s", type=Finite(0, min_open=True), default=8000.0, show_default=True, help="Of one engine."
)
@click.option("--step-ms", type=Finite(0), default=5.0, show_default=True, help="Milliseconds of each step, besides.")
@click.option(
    "--decode-ms", type=Finite(0), default=0.1, show_default=True, help="Milliseconds of a sequence in a step."
)
@click.option("--blocks", type=click.IntRange(1), help="Of one engine's pool; 4096, or what the chips' memory holds.")
@click.option("--block-size", type=click.IntRange(1), default=16, show_default=True, help="Tokens of a block.")
@click.option(
    "--step-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Tokens in one step at most."
)
@click.option(
    "--max-running", type=click.IntRange(1), default=256, show_default=True, help="Sequences of one engine at most."
)
@click.option("--served-name", default="mock", show_default=True, help="Model that clients ask for.")
@click.option("--adapter", "adapters", multiple=True, help="Another model they serve, an adapter of that; repeatable.")
@click.option("--tokenizer", help="Known model or directory whose tokenizer reads text; without, bytes are tokens.")
@click.option(
    "--speed", type=Finite(0, min_open=True), default=1.0, show_default=True, help="Of their clocks; 2: twice as fast."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 takes a free one.")
@click.option("--own-ports", is_flag=True, help="A port for each engine, instead of a path of that one.")
@click.option(
    "--event-loss", type=Finite(0, 1), default=0.0, show_default=True, help="Share of event batches that are lost."
)
@click.option(
    "--event-lag-ms", type=Finite(0), default=0.0, show_default=True, help="Milliseconds until events are sent."
)
@click.option("--replay-batches", type=click.IntRange(0), default=10_000, show_default=True, help="Kept for replays.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of which events are lost.")
@click.option("--out", type=_FILE, help="Write the engines there, for `jevons serve --engine @FILE`.")
def command(**flags: Any) -> None:
    """Run engines without a model: real HTTP, KV events and block pools, timed by chips or by constants.

    For whoever tests routers at fleet scale. One process runs a thousand.
    """
    log_to_stderr(False)
    raise_files()
    uvloop.run(_run(engines_of(flags), flags))


def engines_of(flags: dict[str, Any]) -> list[Made]:
    """The engines asked for, numbered from 0.

    Raises:
        ConfigError: options that do not go together, or of a fleet that cannot be.
    """
    if flags["fleet"] is not None and flags["scenario"] is not None:
        raise ConfigError("--fleet and --scenario: give one of them")
    if (flags["fleet"] is None) != (flags["model"] is None):
        raise ConfigError("--fleet and --model: one needs the other: times come from both")
    _check_said_once(flags)
    if flags["fleet"] is None and flags["scenario"] is None:
        facts = _facts(flags, flags["blocks"] or 4096)
        prices = Prices(flags["step_ms"] / 1e3, 1 / flags["prefill_tokens_per_s"], 0.0, flags["decode_ms"] / 1e3)
        return _numbered([(facts, pace_of(prices), flags["count"])], flags["ranks"])
    return _by_groups(_scenario(flags), flags)


def _check_said_once(flags: dict[str, Any]) -> None:
    """Raises ConfigError where an option would be passed over, as the fleet says that itself."""
    by = next((name for name in ("fleet", "scenario") if flags[name] is not None), None)
    told = () if by is None else (*_CONSTANTS, *(_SHAPE if by == "scenario" else ()))
    usual = {parameter.name: parameter.default for parameter in command.params}
    for name in told:
        if flags[name] != usual[name]:
            both = f"--{name.replace('_', '-')} and --{by}"
            raise ConfigError(f"{both}: give one of them, the latter says that itself, got {flags[name]}")


def _by_groups(scenario: Scenario, flags: dict[str, Any]) -> list[Made]:
    """Engines timed as the twin times its instances: by data sheets and what was measured, or as a scenario says."""
    from jevons.base.hub import Hub
    from jevons.config.calibration import read_calibration
    from jevons.config.catalog import read_catalog
    from jevons.twin.fleet import make_groups, set_pace

    catalog = read_catalog()
    groups = make_groups(scenario, catalog, read_calibration())
    arrays = pace_arrays(len(groups))
    for at, made in enumerate(groups):
        set_pace(arrays, at, made, catalog)
    hub = Hub(arrays, {})
    kinds = [
        (_facts(_shaped(flags, made.group), flags["blocks"] or made.blocks), Pace(hub, at), made.group.instances)
        for at, made in enumerate(groups)
    ]
    return _numbered(kinds, flags["ranks"])


def _scenario(flags: dict[str, Any]) -> Scenario:
    from jevons.cli.scenarios import read_group

    if flags["scenario"] is not None:
        path = Path(flags["scenario"])
        scenario = read_scenario(path if path.exists() else shipped(flags["scenario"]))
    else:
        group = read_group(flags["fleet"]) | {name: flags[name] for name in _SHAPE}
        table = {"model": flags["model"], "fleet": [group], "traffic": {"kind": "chat"}}
        scenario = make_scenario(table, "of these options")
    for at, told in enumerate(scenario.fleet):
        if told.role != "both":
            raise ConfigError(f"fleet[{at}].role: a mock engine computes whole requests, got {told.role!r}")
    return scenario


_CONSTANTS = ("count", "prefill_tokens_per_s", "step_ms", "decode_ms")
_SHAPE = ("block_size", "step_tokens", "max_running")


def _shaped(flags: dict[str, Any], group: Group) -> dict[str, Any]:
    return flags | {name: getattr(group, name) for name in _SHAPE}


def _facts(flags: dict[str, Any], blocks: int) -> MockFacts:
    shape = {name: flags[name] for name in _SHAPE}
    more = {"replay_batches": flags["replay_batches"], "adapters": tuple(flags["adapters"])}
    return MockFacts(id="", model=flags["served_name"], blocks=blocks, **more, **shape)


def _numbered(kinds: Iterable[tuple[MockFacts, Pace, int]], ranks: int) -> list[Made]:
    """So many of each kind, each with so many ranks."""
    all_of = [(facts, pace) for facts, pace, count in kinds for _ in range(count)]
    return [Made(replace(facts, id=f"{number:04}"), pace, ranks) for number, (facts, pace) in enumerate(all_of)]


async def _run(made: list[Made], flags: dict[str, Any]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    plan = Plan(
        host=flags["host"],
        port=flags["port"],
        own_ports=flags["own_ports"],
        speed=flags["speed"],
        seed=flags["seed"],
    )
    faults = {"event_loss": flags["event_loss"], "event_lag_s": flags["event_lag_ms"] / 1e3}
    async with mock_fleet(made, plan, _words(flags["tokenizer"])) as fleet:
        await fleet.wreak(Chaos(faults=faults))
        if flags["out"] is not None:
            _write(flags["out"], fleet.specs())
        logging.getLogger("jevons").info("%d engines, listening on %s", len(made), fleet.url)
        await stop.wait()


def _write(path: Path, specs: list[str]) -> None:
    try:
        path.write_text("\n".join(specs) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from error


def _words(name: str | None) -> Words:
    if name is None:
        return Words()
    path = fetch(name)
    tokenizer = Tokenizer(path)
    tokenizer.hasten()
    return Words(local_encoder(tokenizer), tokenizer.token_text, str(path))
