"""The composition root: settings in, a running server out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from jevons.base.errors import ConfigError, EngineError, ModelError
from jevons.base.ids import WorkerId
from jevons.config import Settings
from jevons.control.ledger import HERE
from jevons.control.router import Router
from jevons.control.sharing import SharingRouter
from jevons.engine.http_client import url_of
from jevons.engine.specs import EngineSpec, read_specs
from jevons.facts.page import Mount
from jevons.facts.worker import IndexMode
from jevons.serve.embedded import Embedded
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.front import Front
from jevons.serve.http import Door, Handler, Limits
from jevons.serve.kept import Kept
from jevons.serve.memory import index_bytes, most_clients, raise_files
from jevons.serve.mounts import Mounts
from jevons.serve.openai import refusal
from jevons.serve.pool import Engines
from jevons.serve.prompts import Prompts, Served, attached_encoder, local_encoder, pseudo_encoder, remote_encoder
from jevons.serve.ready import hasten, ready_kernels
from jevons.serve.record import Recorder, RecordingRouter
from jevons.serve.remote import RemoteNode
from jevons.serve.scaling import Scale, Scaler
from jevons.serve.siblings import Siblings
from jevons.serve.tiers import Tiers, read_secret
from jevons.serve.together import Together
from jevons.serve.tokenizer import Tokenizer
from jevons.serve.workers import fit_tokens, model_shape, worker_configs
from jevons.wire.events import check_endpoint

log = logging.getLogger("jevons")

GOLDEN = 0.618034  # multiples of it, without their whole part, are spread evenly however many there are
_GC_PORTIONS = (350, 4, 700)  # new objects, passes of those, and of the latter: 0.2, 1 and 50 ms
KNOWN_S = 3.0  # engines that live are asked for what they hold within 0.5 s; those that do not are not waited for


Pages = Callable[[Front | Together], Mapping[str, Mount]]
"""Makes the pages of another room about a front, or about all of a port, by path."""


class Server:
    """A running server, for whoever started it."""

    def __init__(self, settings: Settings, door: Door, front: Front) -> None:
        self.url = url_of(settings.host, door.port)
        self.router = front.router
        self.fleet = front.fleet
        self.front = front

    async def ready(self, timeout_s: float, workers: int = 1) -> None:
        """Wait until that many workers are up.

        Raises:
            TimeoutError: they are not.
        """
        async with asyncio.timeout(timeout_s):
            while len(self.router.roster.up()) < workers:  # noqa: ASYNC110 — a few polls at the start
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    settings: Settings,
    model_dir: Path | None,
    kept: Kept | None = None,
    siblings: Siblings | None = None,
    pages: Pages | None = None,
    scale: Scale | None = None,
) -> AsyncIterator[Server]:
    """Run a server for as long as the context is open.

    Args:
        model_dir: the workers' model's directory, here or on other nodes; None where there are none.
        kept: what an earlier server knew of attached engines, and where to keep what this one does.
        siblings: other frontends of the same port, of which this is one.
        pages: what else is served.
        scale: how many workers are wanted is looked at so.

    Raises:
        ConfigError: the settings contradict the model or each other, or the folder for the record is taken.
        EngineError: an embedded worker cannot be started at all (raised as part of an ExceptionGroup).
    """
    recorder, portions = None, gc.get_threshold()
    if settings.record is not None:
        recorder = Recorder(Path(settings.record), settings.policy, time.monotonic)
    try:
        async with _serving(settings, model_dir, _Surroundings(recorder, kept, siblings, pages, scale)) as server:
            yield server
    finally:
        gc.set_threshold(*portions)
        if recorder is not None:
            recorder.close()


class _Surroundings(NamedTuple):
    recorder: Recorder | None
    kept: Kept | None
    siblings: Siblings | None
    pages: Pages | None
    scale: Scale | None


@asynccontextmanager
async def _serving(settings: Settings, model_dir: Path | None, around: _Surroundings) -> AsyncIterator[Server]:
    router = _router(settings, around)
    router.bound_index(index_bytes(1 if around.siblings is None else os.cpu_count() or 1))
    fleet, prompts = Fleet(settings, router, time.monotonic), Prompts()
    front = Front(settings, router, fleet, prompts, time.monotonic, around.recorder)
    specs = _in_turn([_checked(spec) for spec in read_specs(settings.engines)], around.siblings)
    tiers = Tiers(settings, router.node(HERE)) if settings.dram_bytes and settings.embedded_workers else None
    agents = [] if model_dir is None else worker_configs(settings, model_dir, tiers)
    if model_dir is not None:
        _embed(settings, model_dir, fleet, front, prompts)
    for config in agents:
        fleet.add_embedded(config)
    remotes = [RemoteNode(address, read_secret(settings), router, fleet, prompts) for address in settings.nodes]
    memory = _Memory(front, router, around)
    front.mounts = Mounts({} if around.pages is None else around.pages(memory.together or front))
    door = await _bound(settings, memory.together or front, front, most_clients(len(specs)))
    async with asyncio.TaskGroup() as tasks:
        works = [fleet.tick(), *memory.works(), *(fleet.keep(c) for c in agents), *(r.keep() for r in remotes)]
        scaler = None if around.scale is None else Scaler(front, around.scale)
        works += [each.keep() for each in (tiers, scaler) if each is not None]
        chores = [tasks.create_task(work) for work in works]
        try:
            await ready_kernels()
            _freeze()
            # Late, so that engines are asked at once for what they did since: they do not keep it for long.
            engines = Engines(specs, fleet, partial(_on_model, prompts=prompts))
            named = await engines.workers()
            is_recalled = await memory.recall(named)
            chores += [tasks.create_task(watch) for watch in engines.watches()]
            await memory.begin(len(named) if is_recalled else 0)
            await door.open()
            yield Server(settings, door, front)
        finally:
            gc.unfreeze()
            await door.close(settings.drain_s)
            await memory.end()
            for chore in chores:
                chore.cancel()
            fleet.close()
            if tiers is not None:
                tiers.close()


def _freeze() -> None:
    """Modules and kernels stay: a collection that looked at them would take a tenth of a second.

    Of what comes, the young is gone through in small portions, the old seldom: not each time some hundred engines join.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_PORTIONS)


class _Memory:
    """What is known of the engines beyond the life of this process: by its siblings, and in a file."""

    def __init__(self, front: Front, router: Router, around: _Surroundings) -> None:
        self._router = router
        self._kept = around.kept
        self._is_read = asyncio.Event()  # what is kept: from then on it may be written
        self.together: Together | None = None
        if around.siblings is not None:
            assert isinstance(router, SharingRouter), "who has siblings shares"
            self.together = Together(front, router, around.siblings)
        if self._kept is not None:
            front.metrics.registry.register(self._kept)
            front.state = self._kept.counts

    def works(self) -> list[Coroutine[None, None, None]]:
        """What is done now and then, so that little is lost when this process ends."""
        keeps = [self._keep(self._kept)] if self._kept is not None and self._kept.saves else []
        return keeps + ([self.together.keep()] if self.together is not None else [])

    async def _keep(self, kept: Kept) -> None:
        await self._is_read.wait()
        await kept.keep(self._router)

    async def recall(self, workers: list[WorkerId]) -> bool:
        """Learn of engines that are still to join. Returns whether others answer at this port, or anything is known."""
        is_told = self.together is not None and await self.together.recall(workers)
        found = 0 if is_told or self._kept is None else self._kept.load(self._router, workers)
        self._is_read.set()
        return found > 0 or self.together is not None

    async def begin(self, workers: int) -> None:
        """Wait until so many are known as they were, for a moment: who answers before that places blindly."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_S):
                while self._known() < workers:  # noqa: ASYNC110 — a few polls at the start
                    await asyncio.sleep(0.02)
        if self.together is not None:
            self.together.begin()

    async def end(self) -> None:
        if self._kept is not None and self._is_read.is_set():
            await self._kept.save(self._router)
        if self.together is not None:
            self.together.end()

    def _known(self) -> int:
        roster, router = self._router.roster, self._router
        return sum(router.index_mode(id) is not IndexMode.NONE for id in roster.up())


def _in_turn(specs: list[EngineSpec], siblings: Siblings | None) -> list[EngineSpec]:
    """Engines in the order in which they join, so in which equals are preferred: another one for each frontend, or what
    arrives at all of them at once would go to the same engines before they have heard of each other."""
    start = 0 if siblings is None else round(len(specs) * (siblings.number * GOLDEN % 1.0))
    return specs[start:] + specs[:start]


async def _bound(settings: Settings, handler: Handler, front: Front, clients: int) -> Door:
    """The door at its port, still closed; shared where others than the front handle what comes."""
    limits = Limits(body_bytes=settings.max_body_bytes, connections=clients)
    door = Door(handler, refusal, limits, front.count)
    try:
        await door.bind(settings.host, settings.port, is_shared=handler is not front)
    except OSError as error:
        raise ConfigError(f"host, port: cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return door


def _router(settings: Settings, around: _Surroundings) -> Router:
    policy, hang_s, shadow_ttl_s = settings.policy, settings.hang_s, settings.shadow_ttl_s
    if around.siblings is not None:
        on_news = around.siblings.on_news
        return SharingRouter(policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s, on_news=on_news)
    if around.recorder is not None:
        return RecordingRouter(around.recorder, policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s)
    return Router(policy, hang_s=hang_s, shadow_ttl_s=shadow_ttl_s)


def _embed(settings: Settings, model_dir: Path, fleet: Fleet, front: Front, prompts: Prompts) -> None:
    """Serve the model of our workers, wherever they are."""
    tokenizer, shape = Tokenizer(model_dir), model_shape(settings, model_dir)
    _hasten(tokenizer, model_dir.name)
    context = shape.context_tokens
    if settings.embedded_workers:
        context = min(context, fit_tokens(settings, shape))
    prompts.serve(Served(settings.served_name or model_dir.name, local_encoder(tokenizer), context))
    front.embedded = Embedded(fleet, front.placements, front.metrics, tokenizer, prompts)


def _hasten(tokenizer: Tokenizer, name: str) -> None:
    """Beside the loop: reading and proving the fast one takes a second, in which the slow one encodes."""
    loop = asyncio.get_running_loop()
    work = loop.run_in_executor(None, hasten, tokenizer)

    def told(done: asyncio.Future[str]) -> None:
        if done.cancelled():
            return
        by = done.exception() or done.result()
        log.log(logging.DEBUG if by == "fastokens" else logging.WARNING, "%s is tokenized by %s", name, by)

    work.add_done_callback(told)


def _checked(spec: EngineSpec) -> EngineSpec:
    if spec.events is not None:
        check_endpoint("engines: kv", spec.events)
    if spec.replays is not None:
        check_endpoint("engines: replay", spec.replays)
    return spec


async def _on_model(attached: Attached, spec: EngineSpec, prompts: Prompts) -> None:
    """An attached engine came up, or has other adapters: serve its model and them."""
    assert attached.model is not None
    await _serve_model(attached, spec, prompts)
    prompts.serve_aliases(attached.model, attached.engine.aliases)
    prompts.serve_adapters(attached.model, attached.engine.adapters)


async def _serve_model(attached: Attached, spec: EngineSpec, prompts: Prompts) -> None:
    """With the best tokenizer there is."""
    assert attached.model is not None
    name, context = attached.model, attached.context_tokens
    root, known = spec.tokenizer or attached.engine.model_root(name), prompts.served(name)
    if known is not None and known.source and known.source == root:  # as of the thousand others
        prompts.serve(msgspec.structs.replace(known, context_tokens=context, alias_of=""))
        return
    if root is not None and (Path(root) / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer(Path(root))
            rest = tokenizer.encode_rest
            prompts.serve(Served(name, attached_encoder(tokenizer), context, encode_rest=rest, source=root))
            _hasten(tokenizer, name)
            return
        except ModelError as error:
            log.warning("engine %s: its tokenizer cannot be used here: %s", spec.url, error)
    if await _tokenizes(attached, name):
        log.warning("engine %s: no local tokenizer for %s: asking its /tokenize for every request", spec.url, name)
        prompts.serve(Served(name, remote_encoder(attached.engine), context))
        return
    if known is None or known.exact_tokens:
        log.warning("engine %s: no tokenizer for %s: prompts are matched by their bytes, approximately", spec.url, name)
    prompts.serve(Served(name, pseudo_encoder(), context, exact_tokens=False))


async def _tokenizes(attached: Attached, model: str) -> bool:
    try:
        return bool(await attached.engine.tokenize({"model": model, "prompt": "a"}, 2.0))
    except (EngineError, TimeoutError, msgspec.DecodeError):
        return False


@asynccontextmanager
async def picking(
    server: Server, settings: Settings, at: str, tls: Path | None = None, *, is_shared: bool = False
) -> AsyncIterator[None]:
    """Pick endpoints for gateways at HOST:PORT for as long as the context is open; see `gateway.Listen`.

    Raises:
        ConfigError: it cannot listen as told.
    """
    from jevons.serve.gateway import Gateway, parse_listen

    gateway = Gateway(server.front, Limits(body_bytes=settings.max_body_bytes), settings.request_timeout_s)
    listen = parse_listen(at, tls, is_shared=is_shared)
    await gateway.listen(listen)
    log.info("picking endpoints for gateways at %s:%d", listen.host, gateway.port)
    try:
        yield
    finally:
        await gateway.close(settings.drain_s)


def check_picker(settings: Settings, at: str) -> None:
    """Raises ConfigError if it could not pick, before anything is started."""
    if not settings.engines:
        raise ConfigError("picker, engines: a gateway sends to attached engines, got none; attach at least one")
    try:
        from jevons.serve.gateway import parse_listen
    except ImportError as error:
        hint = "pip install 'jevons[gateway]'"
        raise ConfigError(f"picker: needs a package that is not installed: {error}: {hint}") from error
    parse_listen(at)


async def run(
    settings: Settings,
    model_dir: Path | None,
    picker: tuple[str, Path | None] | None = None,
    kept: Kept | None = None,
    pages: Pages | None = None,
    scale: Scale | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; see `serving`, and `picking` for `picker`: HOST:PORT, and a folder or none."""
    raise_files()
    if picker is not None:
        check_picker(settings, picker[0])
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as open_now:
        async with cut_short(stop):
            server = await open_now.enter_async_context(serving(settings, model_dir, kept, None, pages, scale))
            log.info("listening on %s", server.url)
            if picker is not None:
                await open_now.enter_async_context(picking(server, settings, *picker))
            with contextlib.suppress(TimeoutError):
                await server.ready(3600.0)
                engines = {attached.url for attached in server.fleet.attached.values()}  # one may have ranks
                counts = settings.embedded_workers, len(settings.nodes), len(engines)
                how = "ready: policy %s, %d embedded workers, %d other nodes, %d attached engines"
                log.info(how, settings.policy, *counts)
        await stop.wait()
        log.info("stopping: running answers get %g s", settings.drain_s)


@asynccontextmanager
async def cut_short(stop: asyncio.Event) -> AsyncIterator[None]:
    """What is done in it is given up as soon as `stop` is set: a start may take a minute."""

    async def cut(until: asyncio.Timeout) -> None:
        await stop.wait()
        until.reschedule(0.0)

    try:
        async with asyncio.timeout(None) as until:
            cutting = asyncio.create_task(cut(until))
            try:
                yield
            finally:
                cutting.cancel()
    except TimeoutError:
        if not stop.is_set():
            raise
