"""A scenario as commands take it: by name, from a file, or from options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from jevons.base.compiled import is_compiled
from jevons.base.errors import ConfigError
from jevons.config.scenario import MADE_UP, RECORDED, Scenario, make_scenario, read_scenario, shipped
from jevons.twin.kernel import run

FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.argument("scenario", required=False),
    click.option("--fleet", help="Instances of one kind: INSTANCESxCHIP or INSTANCESxTENSORxCHIP, such as 8x4xh200."),
    click.option("--model", help="Of the catalog."),
    click.option("--trace", type=FILE, help="Mooncake or OpenAI-style .jsonl, or Azure .csv; packed too, .gz."),
    click.option("--traffic", help="Made-up sessions instead: chat, rag, code, agents, documents, video."),
    click.option("--router", help="kv, round_robin, least_loaded or random."),
    click.option("--rate", type=float, help="Sessions starting a second; of a trace, how much faster it comes."),
    click.option("--requests", type=int, help="At most so many."),
    click.option("--seed", type=int, help="Of made-up traffic and chance; the scenario's by default."),
)
SAYING = ("fleet", "model", "trace", "traffic", "router", "rate", "requests", "seed")  # of them, beside SCENARIO


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command with SCENARIO and the options that say or change one."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def tell_of_compiling() -> bool:
    """Whoever waits a minute wants to know for what. Returns whether that is so."""
    if is_compiled(run):
        return False
    click.echo("Compiling the kernels, once for this version: about a minute ...", err=True)
    return True


def scenario_of(name: str | None, options: Mapping[str, Any]) -> Scenario:
    """What SCENARIO and these options mean together; those of other names are passed over. Raises ConfigError."""
    given = {key: value for key, value in options.items() if value is not None}
    changes: dict[str, Any] = {key: given[key] for key in ("model", "router", "seed") if key in given}
    if "trace" in given and "traffic" in given:
        raise ConfigError("--trace and --traffic: give one of them: what is recorded, or what is made up")
    if "trace" in given:
        changes |= {**RECORDED, "traffic.trace": str(given["trace"])}
    if "traffic" in given:
        changes |= {**MADE_UP, "traffic.kind": given["traffic"]}
    if "requests" in given:
        changes["traffic.requests"] = given["requests"]
    if "fleet" in given:
        changes["fleet"] = [read_group(given["fleet"])]
    if name is None:
        if "fleet" not in given or not ("trace" in given or "traffic" in given):
            raise ConfigError("give a scenario, or --fleet, --model and --trace or --traffic")
        changes |= _rate(given, "trace" in given)
        return make_scenario({"traffic": {}}, "of these options", changes)
    path = Path(name)
    if not path.exists():
        path = shipped(name)
    changes |= _rate(given, "trace" in given or bool(read_scenario(path).traffic.trace and "traffic" not in given))
    return read_scenario(path, changes)


def _rate(given: dict[str, Any], is_trace: bool) -> dict[str, Any]:
    if "rate" not in given:
        return {}
    return {"traffic.speed" if is_trace else "traffic.rate": given["rate"]}


def read_group(text: str) -> dict[str, Any]:
    """The group that INSTANCESxTENSORxCHIP means. Raises ConfigError."""
    read = re.fullmatch(r"([0-9]+)x(?:([0-9]+)x)?(\S+)", text)
    if read is None:
        raise ConfigError(f"--fleet: must be INSTANCESxCHIP or INSTANCESxTENSORxCHIP, such as 8x4xh200, got {text!r}")
    return {"instances": int(read[1]), "tensor": int(read[2] or 1), "chip": read[3]}
