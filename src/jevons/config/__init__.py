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
from jevons.config.convert import convert
from jevons.kv.layout import DTYPE_BYTES


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `jevons serve` goes by."""

    host: Annotated[str, Meta(description="Address to listen on; loopback only unless you say so.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")] = 8000
    model: Annotated[str, Meta(description="Known model name, or a Hugging Face directory.")] = "smollm2-135m"
    served_name: Annotated[str | None, Meta(description="Name clients ask for; the model's own by default.")] = None
    workers: Annotated[
        Annotated[int, Meta(ge=0, le=256)] | None,
        Meta(description="Embedded engines to start, one process each; 2, or none with engines or nodes."),
    ] = None
    prefill: Annotated[
        int, Meta(ge=0, le=256, description="Embedded engines for prompts alone; needs decode and dram_bytes.")
    ] = 0
    decode: Annotated[
        int, Meta(ge=0, le=256, description="Embedded engines for what follows, and for prompts not worth moving.")
    ] = 0
    engines: Annotated[
        list[str],
        Meta(description="Engines: http://HOST:PORT[,kv=tcp://HOST:PORT[,replay=tcp://HOST:PORT]], or @FILE of lines."),
    ] = []
    nodes: Annotated[
        list[str], Meta(description="Other hosts' HOST:PORT (their node_listen) whose workers serve too.")
    ] = []
    node_listen: Annotated[
        str, Meta(description="HOST:PORT where `jevons node` lets servers in that know the secret.")
    ] = "127.0.0.1:7100"
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
    kv_dtype: Annotated[str, Meta(description="Numbers in that pool: bfloat16, float16 or float32.")] = "bfloat16"
    prefill_block_size: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Tokens in one block of the prefill engines' pools; block_size by default."),
    ] = None
    prefill_kv_dtype: Annotated[
        str | None, Meta(description="Numbers in the prefill engines' pools; kv_dtype by default.")
    ] = None
    step_tokens: Annotated[int, Meta(ge=1, description="Tokens an embedded engine computes in one step at most.")] = 128
    max_running: Annotated[int, Meta(ge=1, description="Sequences an embedded engine advances together at most.")] = 16
    invariant: Annotated[
        bool, Meta(description="Same tokens whatever the batch, chunking and cache: slower, for tests and audits.")
    ] = False
    dram_bytes: Annotated[
        int, Meta(ge=0, description="Memory that all embedded engines share for KV blocks, in bytes; 0: none.")
    ] = 0
    disk_path: Annotated[str | None, Meta(description="Directory where KV blocks outlive the server.")] = None
    disk_bytes: Annotated[int, Meta(ge=1, description="Size of what is kept there at most, in bytes.")] = 16 << 30
    disk_key_file: Annotated[
        str | None, Meta(description="File with a 32-byte key: blocks on disk are encrypted, tenants apart.")
    ] = None
    object_url: Annotated[str | None, Meta(description="S3 bucket for KV blocks: s3://BUCKET/PREFIX.")] = None
    object_endpoint: Annotated[str | None, Meta(description="URL of an S3-compatible server; AWS by default.")] = None
    peers: Annotated[
        list[str], Meta(description="Other nodes' HOST:PORT (their peer_listen) whose KV blocks may be fetched.")
    ] = []
    peer_listen: Annotated[str | None, Meta(description="HOST:PORT where other nodes may fetch KV blocks.")] = None
    peer_secret_file: Annotated[
        str | None, Meta(description="File with the secret that all nodes share, at least 16 bytes.")
    ] = None
    peer_link: Annotated[str, Meta(description="How this node's blocks travel to others: tcp, or nixl for RDMA.")] = (
        "tcp"
    )
    mock_tokens_per_s: Annotated[
        float, Meta(ge=0, description="Above 0: no model; tokens drawn from the cache at this rate, in real seconds.")
    ] = 0.0
    record: Annotated[
        str | None, Meta(description="Folder to write requests, steps and workers to, for `jevons calibrate --record`.")
    ] = None
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
        if self.prefill or self.decode:
            return self.prefill + self.decode
        if self.workers is None:
            return 0 if self.engines or self.nodes else 2
        return self.workers


def make(values: dict[str, Any], source: str, *, is_node: bool = False) -> Settings:
    """Settings from plain values, defaults for the rest.

    Args:
        values: by key.
        source: where they come from, for the error.
        is_node: for `jevons node`, whose workers are one part of what serves.

    Raises:
        ConfigError: names the key, quotes the value, says the rule.
    """
    settings = convert(values, Settings, source)
    _check(settings, is_node)
    return settings


def read(path: Path) -> dict[str, Any]:
    """The values of a TOML file, unchecked.

    Raises:
        ConfigError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: is not TOML: {error}") from error


def _check(settings: Settings, is_node: bool) -> None:
    if not (settings.embedded_workers or settings.engines or settings.nodes):
        raise ConfigError("workers, engines, nodes: there must be at least one of any, got 0 workers and none")
    if is_node and (settings.engines or settings.nodes):
        raise ConfigError("engines, nodes: a node has only workers of its own; give these to `jevons serve`")
    if (is_node or settings.nodes) and settings.peer_secret_file is None:
        raise ConfigError("nodes, peer_secret_file: nodes need a secret to share, give them the same file")
    _check_cache(settings)
    if settings.prefill or settings.decode:
        _check_split(settings, is_part=is_node or bool(settings.nodes))
    _check_tiers(settings)
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


def _check_tiers(settings: Settings) -> None:
    if not settings.dram_bytes:
        for key in ("disk_path", "object_url", "peer_listen", "peers"):
            if getattr(settings, key):
                raise ConfigError(f"{key}, dram_bytes: blocks pass through shared memory, got dram_bytes 0; raise it")
    if (settings.peers or settings.peer_listen) and settings.peer_secret_file is None:
        raise ConfigError("peers, peer_listen, peer_secret_file: nodes need a secret to share, give them the same file")
    if settings.peer_link not in ("tcp", "nixl"):
        raise ConfigError(f"peer_link: must be tcp or nixl, got {settings.peer_link!r}")
    if settings.disk_key_file is not None and settings.disk_path is None:
        raise ConfigError("disk_key_file, disk_path: there is nothing to encrypt without a disk_path; give one")


def _check_cache(settings: Settings) -> None:
    for key in ("kv_dtype", "prefill_kv_dtype"):
        value = getattr(settings, key)
        if value is not None and value not in DTYPE_BYTES:
            raise ConfigError(f"{key}: must be one of {', '.join(DTYPE_BYTES)}, got {value!r}")
    prefill = settings.prefill_block_size
    if prefill is not None and max(prefill, settings.block_size) % min(prefill, settings.block_size):
        raise ConfigError(
            f"prefill_block_size, block_size: one must be a multiple of the other, got {prefill} and "
            f"{settings.block_size}"
        )
    for key in ("prefill_block_size", "prefill_kv_dtype"):
        if getattr(settings, key) is not None and not settings.prefill:
            raise ConfigError(f"{key}, prefill: there are no prefill engines, give prefill and decode")


def _check_split(settings: Settings, *, is_part: bool) -> None:
    if not is_part and not (settings.prefill and settings.decode):
        raise ConfigError(
            f"prefill, decode: one needs the other, got {settings.prefill} and {settings.decode}; give both, or workers"
        )
    if settings.workers is not None:
        raise ConfigError("workers, prefill, decode: workers do both, give either them or the two others")
    if not settings.dram_bytes:
        raise ConfigError("prefill, dram_bytes: prompts are handed over in shared memory, got dram_bytes 0; raise it")
