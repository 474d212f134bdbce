"""The composition root: settings in, a running server out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError, EngineError, ModelError
from jevons.base.ids import WorkerId
from jevons.config import Settings
from jevons.control.router import Router
from jevons.engine.openai import EngineSpec, parse_spec
from jevons.engine.shape import mock_shape, read_shape
from jevons.facts.model import ModelShape
from jevons.facts.worker import Role
from jevons.kv.layout import DTYPE_BYTES
from jevons.serve.embedded import Embedded
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.front import Front
from jevons.serve.http import Door, Limits
from jevons.serve.openai import refusal
from jevons.serve.prompts import Prompts, Served, local_encoder, pseudo_encoder, remote_encoder
from jevons.serve.tiers import Tiers
from jevons.serve.tokenizer import Tokenizer
from jevons.wire.channel import AgentConfig, TierConfig
from jevons.wire.events import check_endpoint

log = logging.getLogger("jevons")


class Server:
    """A running server, for whoever started it."""

    def __init__(self, settings: Settings, door: Door, router: Router, fleet: Fleet) -> None:
        self.url = f"http://{settings.host}:{door.port}"
        self.router = router
        self.fleet = fleet

    async def ready(self, timeout_s: float, workers: int = 1) -> None:
        """Wait until that many workers are up.

        Raises:
            TimeoutError: they are not.
        """
        async with asyncio.timeout(timeout_s):
            while len(self.router.roster.placeable()) < workers:  # noqa: ASYNC110 — a few polls at the start
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(settings: Settings, model_dir: Path | None) -> AsyncIterator[Server]:
    """Run a server for as long as the context is open.

    Args:
        model_dir: the embedded model's directory; None where there are no embedded workers.

    Raises:
        ConfigError: the settings contradict the model or each other.
        EngineError: an embedded worker cannot be started at all (raised as part of an ExceptionGroup).
    """
    router = Router(settings.policy, hang_s=settings.hang_s, shadow_ttl_s=settings.shadow_ttl_s)
    fleet, prompts = Fleet(settings, router, time.monotonic), Prompts()
    front = Front(settings, router, fleet, prompts, time.monotonic)
    specs = [_checked(spec) for spec in settings.engines]
    tiers = Tiers(settings, router) if settings.dram_bytes and settings.embedded_workers else None
    fleet.tiers = tiers
    agents = _embedded(settings, model_dir, fleet, front, prompts) if settings.embedded_workers else []
    door = Door(front, refusal, Limits(body_bytes=settings.max_body_bytes))
    try:
        await door.listen(settings.host, settings.port)
    except OSError as error:
        raise ConfigError(f"host, port: cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    async with asyncio.TaskGroup() as tasks:
        chores = [tasks.create_task(fleet.tick())]
        if tiers is not None:
            chores.append(tasks.create_task(tiers.keep()))
        chores += [tasks.create_task(fleet.keep(config)) for config in agents]
        for spec in specs:
            attached = fleet.add_attached(spec)
            chores.append(tasks.create_task(attached.watch(partial(_on_model, spec=spec, prompts=prompts))))
        try:
            yield Server(settings, door, router, fleet)
        finally:
            await door.close(settings.drain_s)
            for chore in chores:
                chore.cancel()
            fleet.close()
            if tiers is not None:
                tiers.close()


def _embedded(
    settings: Settings, model_dir: Path | None, fleet: Fleet, front: Front, prompts: Prompts
) -> list[AgentConfig]:
    """Set up the embedded model and its workers."""
    assert model_dir is not None, "embedded workers need a model"
    shape, tokenizer = read_shape(model_dir), Tokenizer(model_dir)
    if settings.mock_tokens_per_s:
        shape = mock_shape(shape)
    name = settings.served_name or model_dir.name
    block_bytes = max(_block_bytes(settings, shape, role) for _, role in _roles(settings))
    if settings.kv_bytes < block_bytes:
        raise ConfigError(
            f"kv_bytes: must hold at least one block ({block_bytes} bytes for this model and block_size "
            f"{settings.block_size}), got {settings.kv_bytes}; raise it"
        )
    if 0 < settings.dram_bytes < block_bytes:
        raise ConfigError(
            f"dram_bytes: must hold at least one block ({block_bytes} bytes for this model and block_size "
            f"{settings.block_size}), got {settings.dram_bytes}; raise it or set it to 0"
        )
    fit = min(
        settings.kv_bytes // _block_bytes(settings, shape, role) * _block_size(settings, role)
        for _, role in _roles(settings)
    )
    context = min(shape.context_tokens, fit)
    prompts.serve(Served(name, local_encoder(tokenizer), context))
    front.embedded = Embedded(fleet, front.placements, front.metrics, tokenizer, context)
    tiers = None if fleet.tiers is None else _tier_config(settings, fleet.tiers.config.socket)
    agents = [
        AgentConfig(
            id=WorkerId(id),
            model=name,
            model_dir=str(model_dir),
            device=settings.device,
            threads=settings.threads,
            kv_bytes=settings.kv_bytes,
            block_size=_block_size(settings, role),
            step_tokens=settings.step_tokens,
            max_running=settings.max_running,
            invariant=settings.invariant,
            kv_dtype=_kv_dtype(settings, role),
            role=role,
            mock_tokens_per_s=settings.mock_tokens_per_s,
            tiers=tiers,
            tensor_parallel=settings.tensor_parallel,
        )
        for id, role in _roles(settings)
    ]
    for config in agents:
        fleet.add_embedded(config)
    return agents


def _roles(settings: Settings) -> list[tuple[str, Role]]:
    """Names and roles of the embedded workers."""
    if not settings.prefill:
        return [(f"w{i}", Role.BOTH) for i in range(settings.embedded_workers)]
    prefill = [(f"p{i}", Role.PREFILL) for i in range(settings.prefill)]
    return prefill + [(f"d{i}", Role.DECODE) for i in range(settings.decode)]


def _block_bytes(settings: Settings, shape: ModelShape, role: Role) -> int:
    return shape.kv_bytes_per_token(DTYPE_BYTES[_kv_dtype(settings, role)]) * _block_size(settings, role)


def _block_size(settings: Settings, role: Role) -> int:
    return (settings.prefill_block_size if role is Role.PREFILL else None) or settings.block_size


def _kv_dtype(settings: Settings, role: Role) -> str:
    return (settings.prefill_kv_dtype if role is Role.PREFILL else None) or settings.kv_dtype


def _tier_config(settings: Settings, socket: str) -> TierConfig:
    """Pages hold whole blocks of every worker, in the numbers of those that read most of them."""
    roles = {role for _, role in _roles(settings)}
    return TierConfig(
        socket=socket,
        block_size=max(_block_size(settings, role) for role in roles),
        dtype=settings.kv_dtype,
        is_mixed=len({_kv_dtype(settings, role) for role in roles}) > 1,
    )


def _checked(text: str) -> EngineSpec:
    spec = parse_spec(text)
    if spec.events is not None:
        check_endpoint("engines: kv", spec.events)
    if spec.replays is not None:
        check_endpoint("engines: replay", spec.replays)
    return spec


async def _on_model(attached: Attached, spec: EngineSpec, prompts: Prompts) -> None:
    """An attached engine came up: serve its model, with the best tokenizer there is."""
    assert attached.model is not None
    name, context = attached.model, attached.context_tokens
    root = spec.tokenizer or await attached.engine.model_root(name)
    if root is not None and (Path(root) / "tokenizer.json").is_file():
        try:
            prompts.serve(Served(name, local_encoder(Tokenizer(Path(root))), context))
            return
        except ModelError as error:
            log.warning("engine %s: its tokenizer cannot be used here: %s", spec.url, error)
    if await _tokenizes(attached, name):
        log.warning("engine %s: no local tokenizer for %s: asking its /tokenize for every request", spec.url, name)
        prompts.serve(Served(name, remote_encoder(attached.engine), context))
        return
    log.warning("engine %s: no tokenizer for %s: prompts are matched by their bytes, approximately", spec.url, name)
    prompts.serve(Served(name, pseudo_encoder(), context, exact_tokens=False))


async def _tokenizes(attached: Attached, model: str) -> bool:
    try:
        return bool(await attached.engine.tokenize({"model": model, "prompt": "a"}, 2.0))
    except (EngineError, TimeoutError, msgspec.DecodeError):
        return False


async def run(settings: Settings, model_dir: Path | None, announce: bool = True) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, model_dir) as server:
        if announce:
            log.info("listening on %s", server.url)
        with contextlib.suppress(TimeoutError):
            await _until_ready_or(stop, server, settings)
        await stop.wait()
        log.info("stopping: running answers get %g s", settings.drain_s)


async def _until_ready_or(stop: asyncio.Event, server: Server, settings: Settings) -> None:
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(server.ready(3600.0))]
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if not stop.is_set():
        counts = settings.embedded_workers, len(settings.engines)
        log.info("ready: policy %s, %d embedded workers, %d attached engines", settings.policy, *counts)
