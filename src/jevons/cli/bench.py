"""`jevons bench`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from jevons.base.errors import ConfigError, EngineError
from jevons.cli.pictures import files, picture_options
from jevons.cli.ranges import Finite
from jevons.cli.tables import measured_table, show
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import parse_spec
from jevons.serve.load import Measured, Talk, Targets, converse, replay, summary
from jevons.twin.workload import Chat, conversations, read_trace, trace_tokens

TRACE_VOCAB = 30_000  # token ids of made-up prompts stay below it: every model of today has more


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--model", help="Model to ask for; the first one served by default.")
@click.option("--conversations", "count", type=click.IntRange(1), default=8, show_default=True, help="In all.")
@click.option("--turns", type=click.IntRange(1), default=4, show_default=True, help="Turns of each conversation.")
@click.option("--groups", type=click.IntRange(1), default=2, show_default=True, help="Groups sharing a system prompt.")
@click.option("--system-tokens", type=click.IntRange(1), default=200, show_default=True, help="Of a system prompt.")
@click.option("--turn-tokens", type=click.IntRange(1), default=60, show_default=True, help="That a turn adds.")
@click.option("--output-tokens", type=click.IntRange(1), default=32, show_default=True, help="Of an answer.")
@click.option("--running", type=click.IntRange(1), default=8, show_default=True, help="Conversations at a time.")
@click.option("--think-s", type=Finite(0), default=0.0, show_default=True, help="Seconds before each next turn.")
@click.option("--rate", type=Finite(0, min_open=True), help="Conversations starting a second (Poisson).")
@click.option("--trace", type=click.Path(path_type=Path), help="Replay this trace instead (Mooncake or Azure).")
@click.option("--requests", type=click.IntRange(1), help="At most so many requests of the trace.")
@click.option(
    "--speed", type=Finite(0, min_open=True), default=1.0, show_default=True, help="Of its clock; 2: twice as fast."
)
@click.option("--max-prompt", type=click.IntRange(1), help="Leave out the trace's prompts longer than this, in tokens.")
@click.option("--slo-ttft-ms", type=Finite(0, min_open=True), help="For goodput: first token within, milliseconds.")
@click.option("--slo-tpot-ms", type=Finite(0, min_open=True), help="For goodput: milliseconds per output token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the words and of --rate.")
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(url: str, as_json: bool, slo_ttft_ms: float | None, slo_tpot_ms: float | None, **flags: Any) -> None:
    """Drive the OpenAI endpoint at URL with a workload and measure what a client sees."""
    shown = files(flags.pop("html"), flags.pop("png"))
    targets = Targets(_seconds(slo_ttft_ms), _seconds(slo_tpot_ms))
    model, measured = asyncio.run(_drive(url, flags))
    record = {"url": url, "model": model, "targets": targets, **summary(measured, targets)}
    if shown:
        from jevons.cli.pictures.bench import pictures

        told = [f"Measured by the client: {record['requests']} requests, {record['errors']} of them failed."]
        shown.write(f"{model} at {url}", told, pictures({model: measured}, targets))
    if as_json:
        click.echo(msgspec.json.encode(record))
    else:
        show(measured_table(f"{model} at {url}", {"measured": record}))
    if record["errors"]:
        raise EngineError(f"{record['errors']} of {record['requests']} requests failed, first: {record['first_error']}")


async def _drive(url: str, flags: dict[str, Any]) -> tuple[str, list[Measured]]:
    engine = OpenAIEngine(parse_spec(url if "://" in url else f"http://{url}"))
    try:
        model = flags["model"] or await _first_model(engine, url)
        if flags["trace"] is not None:
            return model, await replay(engine, model, _timed(flags))
        chat = Chat(
            conversations=flags["count"],
            turns=flags["turns"],
            groups=flags["groups"],
            system_tokens=flags["system_tokens"],
            turn_tokens=flags["turn_tokens"],
            rate=flags["rate"],
            seed=flags["seed"],
        )
        talks = [Talk(c.start_s, c.system, c.turns, flags["think_s"]) for c in conversations(chat)]
        return model, await converse(engine, model, talks, flags["output_tokens"], flags["running"])
    finally:
        engine.close()


async def _first_model(engine: OpenAIEngine, url: str) -> str:
    models = await engine.models()
    if not models:
        raise EngineError(f"{url}: serves no model yet; wait until /ready answers 200")
    return next(iter(models))


def _timed(flags: dict[str, Any]) -> list[tuple[float, list[int], int]]:
    """The trace's requests as (seconds, tokens, output tokens)."""
    longest = flags["max_prompt"] or 1 << 62
    rows = [r for r in read_trace(flags["trace"]) if 0 < r.input_tokens <= longest][: flags["requests"]]
    if not rows:
        raise ConfigError(f"max-prompt: the trace has no prompt of at most {longest} tokens; raise it")
    began = rows[0].at_s
    return [((r.at_s - began) / flags["speed"], trace_tokens(r, TRACE_VOCAB), max(1, r.output_tokens)) for r in rows]


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000.0
