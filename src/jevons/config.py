"""All settings, in one place: each with its default, its unit and one sentence.

Config never changes itself; a value out of range, or two that contradict, is one ConfigError that names the keys.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from jevons.base.errors import ConfigError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `jevons serve` goes by."""

    host: Annotated[str, Meta(description="Address to listen on; loopback only unless you say so.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")] = 8000
    model: Annotated[str, Meta(description="Known model name, or a Hugging Face directory.")] = "smollm2-135m"
    served_name: Annotated[str | None, Meta(description="Name clients ask for; the model's own by default.")] = None
    workers: Annotated[
        Annotated[int, Meta(ge=0, le=256)] | None,
        Meta(description="Embedded engines to start, one process each; 2, or none where engines are attached."),
    ] = None
    engines: Annotated[
        list[str],
        Meta(description="Engines to attach: http://HOST:PORT[,kv=tcp://HOST:PORT[,replay=tcp://HOST:PORT]]."),
    ] = []
    policy: Annotated[str, Meta(description="How requests find a worker: kv, round_robin, least_loaded, random.")] = (
        "kv"
    )
    device: Annotated[str, Meta(description="Torch device of the embedded engines.")] = "cpu"
    threads: Annotated[int, Meta(ge=1, le=256, description="CPU threads of one embedded engine.")] = 1
    tensor_parallel: Annotated[
        int, Meta(ge=1, le=8, description="Ranks one embedded engine is split over, each with its own threads.")
    ] = 1
    kv_bytes: Annotated[int, Meta(ge=1, description="Memory of one embedded engine's KV pool, in bytes.")] = 192 << 20
    block_size: Annotated[int, Meta(ge=1, le=1024, description="Tokens in one block of that pool.")] = 16
    step_tokens: Annotated[int, Meta(ge=1, description="Tokens an embedded engine computes in one step at most.")] = 128
    max_running: Annotated[int, Meta(ge=1, description="Sequences an embedded engine advances together at most.")] = 16
    invariant: Annotated[
        bool, Meta(description="Same tokens whatever the batch, chunking and cache: slower, for tests and audits.")
    ] = False
    max_body_bytes: Annotated[int, Meta(ge=1024, description="Largest request body, in bytes.")] = 16 << 20
    request_timeout_s: Annotated[float, Meta(gt=0, description="Longest life of one request, in seconds.")] = 600.0
    hang_s: Annotated[float, Meta(gt=0, description="Seconds of silence after which a worker gets no new work.")] = 0.8
    dead_s: Annotated[
        float, Meta(gt=0, description="Seconds of silence after which a worker's streams are given up.")
    ] = 15.0
    shadow_ttl_s: Annotated[
        float, Meta(gt=0, description="Seconds a prompt counts as cached on an engine that sends no KV events.")
    ] = 120.0
    drain_s: Annotated[
        float, Meta(ge=0, description="Seconds that running answers get to finish when the server stops.")
    ] = 10.0

    @property
    def embedded_workers(self) -> int:
        if self.workers is None:
            return 0 if self.engines else 2
        return self.workers


def make(values: dict[str, Any], source: str) -> Settings:
    """Settings from plain values, defaults for the rest.

    Args:
        values: by key.
        source: where they come from, for the error.

    Raises:
        ConfigError: names the key, quotes the value, says the rule.
    """
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        rule, _, at = str(error).partition(" - at `$.")
        key = at.rstrip("`")
        where = f"{source}: {key}" if key else source
        got = f", got {values[key]!r}" if key in values and ", got" not in rule else ""
        raise ConfigError(f"{where}: {rule.replace('Expected', 'must be').replace('`', '')}{got}") from error
    _check(settings)
    return settings


def read(path: Path) -> dict[str, Any]:
    """The values of a TOML file, unchecked.

    Raises:
        ConfigError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: is not TOML: {error}") from error


def _check(settings: Settings) -> None:
    if not settings.embedded_workers and not settings.engines:
        raise ConfigError("workers, engines: there must be at least one worker or one attached engine, got 0 and none")
    if settings.max_running > settings.step_tokens:
        raise ConfigError(
            f"max_running, step_tokens: each running sequence needs a token of every step, "
            f"got max_running {settings.max_running} > step_tokens {settings.step_tokens}; lower one or raise the other"
        )
    if settings.dead_s <= settings.hang_s:
        raise ConfigError(
            f"dead_s, hang_s: a worker is suspect before it is given up, got dead_s {settings.dead_s} <= "
            f"hang_s {settings.hang_s}"
        )
