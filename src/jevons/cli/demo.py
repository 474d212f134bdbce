"""`jevons demo`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from jevons.cli.options import fetch, log_to_stderr
from jevons.cli.pictures import files, picture_options
from jevons.cli.tables import measured_table, savings, show
from jevons.config import Settings, make
from jevons.engine.openai import OpenAIEngine
from jevons.engine.specs import parse_spec
from jevons.serve.app import serving
from jevons.serve.load import Measured, Talk, Targets, converse, summary
from jevons.twin.workload import Chat, Conversation, conversations

POLICIES = ("round_robin", "kv")
# Two workers whose pools together hold all conversations, and one alone does not: the state most fleets are in.
WORKERS = 2
DEMO = {"workers": WORKERS, "kv_bytes": 102 << 20, "port": 0}  # 4,600 tokens of SmolLM2-135M's KV for each worker
CHAT = Chat(conversations=16, turns=6, groups=8, system_tokens=400, turn_tokens=30, rate=4.0, seed=7)
OUTPUT_TOKENS = 12
RUNNING = 16
THINK_S = 1.5  # a user reads an answer before asking on
START_S = 120.0
TARGETS = Targets(ttft_s=3.0)


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model", default="smollm2-135m", show_default=True, help="Known model name, or a Hugging Face directory."
)
@click.option(
    "--record", type=click.Path(path_type=Path, file_okay=False), help="Folder for a record of each policy's run."
)
@picture_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(model: str, record: Path | None, html: Path | None, png: Path | None, as_json: bool) -> None:
    """See what KV-aware routing saves, on a real model, in under two minutes.

    Starts two workers, holds sixteen conversations with them under round-robin, then again under KV-aware routing, and
    compares what was computed and how long clients waited.
    """
    shown = files(html, png)
    log_to_stderr(verbose=False)
    model_dir = fetch(model)
    began = time.monotonic()
    talks = conversations(CHAT)
    records: dict[str, dict[str, Any]] = {}
    seen: dict[str, list[Measured]] = {}
    for policy in POLICIES:
        click.echo(f"{policy}: {len(talks)} conversations of {CHAT.turns} turns on {WORKERS} workers …", err=True)
        values = {**DEMO, "model": model, "policy": policy}
        if record is not None:
            values["record"] = str(record / policy)
        settings = make(values, "demo")
        records[policy], seen[policy] = asyncio.run(play(settings, str(model_dir), talks))
    told = {"model": model_dir.name, "workers": WORKERS, "seconds": time.monotonic() - began, "policies": records}
    if shown:
        from jevons.cli.pictures.bench import pictures

        told_of = (
            f"Measured on this machine's CPU, in {told['seconds']:.0f} s: one run of each policy, on {WORKERS} workers."
        )
        shown.write(_title(model_dir.name), [told_of], pictures(seen, TARGETS))
    if as_json:
        click.echo(msgspec.json.encode(told))
        return
    _print(told)


async def play(settings: Settings, model_dir: str, talks: list[Conversation]) -> tuple[dict[str, Any], list[Measured]]:
    """Fresh workers, the whole workload, and what came of it: as a record, and each request."""
    async with serving(settings, Path(model_dir)) as server:
        await server.ready(START_S, workers=WORKERS)
        engine = OpenAIEngine(parse_spec(server.url))
        name = next(iter(await engine.models()))
        held = [Talk(talk.start_s, talk.system, talk.turns, THINK_S) for talk in talks]
        measured = await converse(engine, name, held, OUTPUT_TOKENS, RUNNING)
        engine.close()
        snapshot = server.router.snapshot()
    errors = [abs(o.ttft_s / o.predicted_ttft_s - 1) for o in snapshot.recent if o.ttft_s and o.predicted_ttft_s]
    wrong = sum(o.cached_tokens != o.predicted_cached_tokens for o in snapshot.recent)
    record = {
        **summary(measured, TARGETS),
        "ttft_prediction_error_p50": sorted(errors)[len(errors) // 2] if errors else None,
        "cached_tokens_predicted_exactly": 1 - wrong / len(snapshot.recent) if snapshot.recent else None,
    }
    return record, measured


def _title(model: str) -> str:
    return f"{model}: {CHAT.conversations} conversations × {CHAT.turns} turns, {WORKERS} workers, CPU"


def _print(record: dict[str, Any]) -> None:
    base, ours = (record["policies"][policy] for policy in POLICIES)
    show(measured_table(_title(record["model"]), record["policies"], {"kv is better by": savings(base, ours)}))
    saved = base["prefill_tokens_computed"] - ours["prefill_tokens_computed"]
    share = saved / base["prefill_tokens_computed"]
    click.echo(
        f"Saved: {saved:,} prompt tokens not computed again ({share:.0%}). Goodput: first token within "
        f"{TARGETS.ttft_s:g} s. Under kv the router predicted the cached tokens exactly for "
        f"{ours['cached_tokens_predicted_exactly']:.0%} of the requests, and TTFT within "
        f"{ours['ttft_prediction_error_p50']:.0%} for half of them. {record['seconds']:.0f} s in all."
    )
