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
from pathlib import Path
from typing import NoReturn

import msgspec
import torch
import uvloop

from jevons.base.errors import ConfigError, EngineGone, JevonsError
from jevons.base.ids import RequestId
from jevons.control.batch import Batcher
from jevons.engine.reference.leader import Leader
from jevons.engine.reference.loop import EngineLoop
from jevons.engine.reference.runner import Runner
from jevons.engine.shape import read_shape
from jevons.facts.event import KvEvent
from jevons.facts.request import Step
from jevons.facts.worker import StepReport, WorkerFacts
from jevons.kv.pool import BlockPool
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
    ToWorker,
)
from jevons.wire.events import Publisher

BEAT_S = 0.15
HOST = "127.0.0.1"


class Agent:
    """Between the channel's messages and the engine's loop."""

    def __init__(self, config: AgentConfig, batcher: Batcher, runner: Runner) -> None:
        self.engine = EngineLoop(batcher, runner, self._from_engine)
        self._config = config
        self._batcher = batcher
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher: Publisher | None = None
        self._hello: Hello | None = None
        self._fronts: set[Channel[ToWorker]] = set()
        self._owner: dict[RequestId, Channel[ToWorker]] = {}

    async def serve(self, ready: int) -> None:
        """Listen, tell the port on file descriptor `ready`, and serve until standard input closes."""
        self._loop = asyncio.get_running_loop()
        self._publisher = publisher = Publisher(HOST, f"kv@{self._config.id}@{self._config.model}")
        self._hello = self._introduction(publisher)
        server = await self._loop.create_server(
            lambda: Channel(TO_WORKER, self._on_message, self._on_lost, self._on_made), HOST, 0
        )
        _tell(ready, Ready(server.sockets[0].getsockname()[1]))
        chores = [asyncio.create_task(publisher.serve_replays()), asyncio.create_task(self._beat())]
        await _stdin_closed()
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
            pid=os.getpid(),
        )
        return Hello(facts, batcher.context_tokens, publisher.endpoint, publisher.replay_endpoint)

    def _from_engine(self, report: StepReport | None, steps: list[Step], events: list[KvEvent]) -> None:
        """Runs on the engine's thread."""
        assert self._loop is not None, "work comes through the channel, so the loop is there"
        self._loop.call_soon_threadsafe(self._on_step, report, steps, events)

    def _on_step(self, report: StepReport | None, steps: list[Step], events: list[KvEvent]) -> None:
        """Events go first, so that who has read the answer can already be routed by them."""
        assert self._publisher is not None
        if events:
            self._publisher.publish(time.time(), events)
        own: dict[Channel[ToWorker], list[Step]] = {front: [] for front in self._fronts}
        for step in steps:
            owner = self._owner.get(step.id)
            if step.finish is not None:
                self._owner.pop(step.id, None)
            if owner in own:
                own[owner].append(step)
        for front, mine in own.items():
            front.send(Steps(mine, report))

    async def _beat(self) -> None:
        while True:
            beat = Beat(self.engine.in_progress)
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
    shape = read_shape(model_dir)
    block_bytes = shape.kv_bytes_per_token() * config.block_size
    blocks = config.kv_bytes // block_bytes
    if not blocks:
        raise ConfigError(
            f"kv_bytes: must hold at least one block ({block_bytes} bytes for this model), got {config.kv_bytes}"
        )
    runner = _runner(config, model_dir, blocks)
    batcher = Batcher(
        BlockPool(blocks, config.block_size),
        step_tokens=config.step_tokens,
        max_running=config.max_running,
        context_tokens=shape.context_tokens,
    )
    return Agent(config, batcher, runner)


def _runner(config: AgentConfig, model_dir: Path, blocks: int) -> Runner:
    if config.tensor_parallel == 1:
        return Runner(
            model_dir, blocks=blocks, block_size=config.block_size, device=config.device, invariant=config.invariant
        )
    leader = Leader(
        model_dir,
        ranks=config.tensor_parallel,
        blocks=blocks,
        block_size=config.block_size,
        device=config.device,
        invariant=config.invariant,
    )
    leader.watch(_end_without)
    return leader


def _end_without(lost: EngineGone) -> NoReturn:
    """A part of the model is gone: the fleet starts us again."""
    print(f"jevons.agent: {lost}", file=sys.stderr, flush=True)  # noqa: T201 — a worker has no other voice
    os._exit(1)


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=AgentConfig)
    ready = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the line we promise
    try:
        agent = build(config)
    except JevonsError as error:
        _tell(ready, Failed(str(error)))
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


def _tell(ready: int, message: Ready | Failed) -> None:
    os.write(ready, msgspec.json.encode(message) + b"\n")


async def _stdin_closed() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    main()
