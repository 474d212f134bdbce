"""The worker process: one embedded engine behind a channel, and its KV events.

    main thread      EngineLoop: the model
    channel thread   messages of the fronts, beats, KV events

Started by `serve.substrate` as `python -m jevons.serve.agent`, with its settings as one line of JSON on standard
input; when it can be connected to it prints one line of JSON. It ends when its standard input closes: no orphan
outlives the server that started it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
import torch
import uvloop

from jevons.base.errors import ConfigError, EngineGone, JevonsError
from jevons.base.ids import RequestId
from jevons.control.batch import Batcher
from jevons.control.restore import Restore
from jevons.engine.digest import weights_digest
from jevons.engine.mock import MockRunner
from jevons.engine.reference.leader import Leader
from jevons.engine.reference.loop import Done, EngineLoop
from jevons.engine.reference.runner import Cache, Runner
from jevons.engine.shape import mock_shape, read_shape
from jevons.facts.model import ModelShape
from jevons.facts.request import Step
from jevons.facts.worker import PageFacts, WorkerFacts
from jevons.kv.layout import DTYPE_BYTES, Identity, Layout, fingerprint
from jevons.kv.pool import BlockPool
from jevons.serve.stdio import stdin_closed, tell
from jevons.store.node import Introduction, Node, Pool
from jevons.wire.channel import (
    TO_WORKER,
    AgentConfig,
    Beat,
    Cancel,
    Channel,
    Failed,
    Hello,
    Ready,
    Steps,
    Submit,
    TierConfig,
    ToWorker,
)
from jevons.wire.events import Publisher

BEAT_S = 0.15
HOST = "127.0.0.1"


class Agent:
    """Between the channel's messages and the engine's loop."""

    def __init__(
        self, config: AgentConfig, batcher: Batcher, runner: Runner | MockRunner, identity: Identity | None
    ) -> None:
        self._config = config
        self._batcher = batcher
        self._pages: PageFacts | None = None
        ask = None
        if config.tiers is not None and identity is not None:
            layout = identity.layout
            self._pages = PageFacts(fingerprint(identity), layout.block_size, layout.page_bytes)
            ask = self._to_tiers(config.tiers, runner.exchange, self._pages).ask
        self.engine = EngineLoop(batcher, runner, self._from_engine, ask)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher: Publisher | None = None
        self._hello: Hello | None = None
        self._fronts: set[Channel[ToWorker]] = set()
        self._owner: dict[RequestId, Channel[ToWorker]] = {}

    def _to_tiers(self, tiers: TierConfig, exchange: Pool, pages: PageFacts) -> Node:
        blocks = tiers.block_size // self._config.block_size
        own = Introduction(self._config.id, pages.fingerprint, pages.size_bytes, blocks)
        return Node(Path(tiers.socket), own, exchange, lambda answer: self.engine.answer(answer))

    async def serve(self, ready: int) -> None:
        """Listen, tell the port on file descriptor `ready`, and serve until standard input closes."""
        self._loop = asyncio.get_running_loop()
        self._publisher = publisher = Publisher(HOST, f"kv@{self._config.id}@{self._config.model}")
        self._hello = self._introduction(publisher)
        server = await self._loop.create_server(
            lambda: Channel(TO_WORKER, self._on_message, self._on_lost, self._on_made), HOST, 0
        )
        tell(ready, Ready(server.sockets[0].getsockname()[1]))
        chores = [asyncio.create_task(publisher.serve_replays()), asyncio.create_task(self._beat())]
        await stdin_closed()
        for chore in chores:
            chore.cancel()

    def _introduction(self, publisher: Publisher) -> Hello:
        config, batcher = self._config, self._batcher
        facts = WorkerFacts(
            id=config.id,
            model=config.model,
            kind="reference",
            block_size=config.block_size,
            blocks=batcher.pool.blocks,
            step_tokens=config.step_tokens,
            max_running=config.max_running,
            pid=os.getpid(),
            role=config.role,
            pages=self._pages,
        )
        return Hello(facts, batcher.context_tokens, publisher.endpoint, publisher.replay_endpoint)

    def _from_engine(self, done: Done) -> None:
        """Runs on the engine's thread."""
        assert self._loop is not None, "work comes through the channel, so the loop is there"
        self._loop.call_soon_threadsafe(self._on_done, done)

    def _on_done(self, done: Done) -> None:
        """Events go first, so that who has read the answer can already be routed by them."""
        assert self._publisher is not None
        if done.events:
            self._publisher.publish(time.time(), done.events)
        own: dict[Channel[ToWorker], list[Step]] = {front: [] for front in self._fronts}
        for step in done.steps:
            owner = self._owner.get(step.id)
            if step.finish is not None:
                self._owner.pop(step.id, None)
            if owner in own:
                own[owner].append(step)
        for front, mine in own.items():
            front.send(Steps(mine, done.report, done.moves))

    async def _beat(self) -> None:
        while True:
            restore = self._batcher.restore
            beat = Beat(self.engine.in_progress, {} if restore is None else dict(restore.counts))
            for front in self._fronts:
                front.send(beat)
            await asyncio.sleep(BEAT_S)

    def _on_made(self, channel: Channel[ToWorker]) -> None:
        assert self._hello is not None
        self._fronts.add(channel)
        channel.send(self._hello)

    def _on_message(self, channel: Channel[ToWorker], message: ToWorker) -> None:
        match message:
            case Submit(work):
                self._owner[work.id] = channel
                self.engine.submit(work)
            case Cancel(id):
                if self._owner.pop(id, None) is not None:
                    self.engine.cancel(id)

    def _on_lost(self, channel: Channel[ToWorker], reason: str) -> None:
        """A front left: nobody reads what it asked for."""
        self._fronts.discard(channel)
        for id in [id for id, owner in self._owner.items() if owner is channel]:
            del self._owner[id]
            self.engine.cancel(id)


def build(config: AgentConfig) -> Agent:
    """Load the model and set up its pool.

    Raises:
        ConfigError: the pool cannot hold a block, or the model not be split over so many ranks.
        ModelError: the model cannot be loaded.
    """
    torch.set_num_threads(config.threads)
    model_dir = Path(config.model_dir)
    shape = mock_shape(read_shape(model_dir)) if config.mock_tokens_per_s else read_shape(model_dir)
    block_bytes = shape.kv_bytes_per_token(DTYPE_BYTES[config.kv_dtype]) * config.block_size
    blocks = config.kv_bytes // block_bytes
    if not blocks:
        raise ConfigError(
            f"kv_bytes: must hold at least one block ({block_bytes} bytes for this model), got {config.kv_bytes}"
        )
    layout = None if config.tiers is None else _layout(config.tiers, shape)
    runner = _runner(config, shape, Cache(blocks, config.block_size, config.kv_dtype, layout))
    pool = BlockPool(blocks, config.block_size)
    identity, restore = None, None
    if config.tiers is not None and layout is not None:
        identity = Identity(weights_digest(model_dir), layout, "" if config.tiers.is_mixed else runner.numerics)
        page_blocks = layout.block_size // config.block_size
        restore = Restore(pool, page_bytes=layout.page_bytes, page_blocks=page_blocks, step_tokens=config.step_tokens)
    batcher = Batcher(
        pool,
        step_tokens=config.step_tokens,
        max_running=config.max_running,
        context_tokens=shape.context_tokens,
        restore=restore,
    )
    return Agent(config, batcher, runner, identity)


def _layout(tiers: TierConfig, shape: ModelShape) -> Layout:
    return Layout(shape.layers, shape.kv_heads, shape.head_dim, tiers.block_size, tiers.dtype)


def _runner(config: AgentConfig, shape: ModelShape, cache: Cache) -> Runner | MockRunner:
    model_dir = Path(config.model_dir)
    if config.mock_tokens_per_s:
        return MockRunner(shape, cache, config.mock_tokens_per_s)
    if config.tensor_parallel == 1:
        return Runner(model_dir, cache, device=config.device, invariant=config.invariant)
    leader = Leader(model_dir, cache, ranks=config.tensor_parallel, device=config.device, invariant=config.invariant)
    leader.watch(_end_without)
    return leader


def _end_without(lost: EngineGone) -> NoReturn:
    """A part of the model is gone: the fleet starts us again."""
    print(f"jevons.agent: {lost}", file=sys.stderr, flush=True)  # noqa: T201 — a worker has no other voice
    os._exit(1)


def _end_with(args: threading.ExceptHookArgs) -> None:
    """A thread of ours failed: without it the others would wait for ever. The fleet starts us again."""
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    os._exit(1)


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=AgentConfig)
    threading.excepthook = _end_with
    ready = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the line we promise
    try:
        agent = build(config)
    except JevonsError as error:
        tell(ready, Failed(str(error)))
        sys.exit(1)
    threading.Thread(target=_serve, args=(agent, ready), name="channel", daemon=True).start()
    try:
        agent.engine.run()
    except EngineGone as lost:
        _end_without(lost)


def _serve(agent: Agent, ready: int) -> None:
    try:
        uvloop.run(agent.serve(ready))
    finally:
        os._exit(0)  # the channel is the process's purpose, and the engine may be deep in a step


if __name__ == "__main__":
    main()
