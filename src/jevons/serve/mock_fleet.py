"""A fleet of engines without a model, in one process and one event loop.

    http://HOST:PORT/e/ID/v1/…   an engine, where all share a door; or at a port of its own, http://HOST:ITS-PORT/v1/…
    GET  /engines                each as `jevons serve --engine` takes it, one a line
    GET  /held                   names of the blocks each holds, in hexadecimal: what a router should believe
    GET  /state                  of each: up, load, faults, counts
    POST /chaos                  {"do": "crash", "engines": ["0001"], "faults": {"slowdown": 3}}, see `Chaos`

The names are ours, over tokens: a router that recomputes them from the events must come to the same.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Literal
from weakref import WeakSet

import msgspec
import zmq.asyncio

from jevons.base.errors import ConfigError, JevonsError, RequestError
from jevons.engine.mock_engine import Faults, MockEngine, MockFacts
from jevons.perf.pace import Pace
from jevons.serve.http import Connection, Door, Reply, Request
from jevons.serve.mock import MockServer, Words
from jevons.serve.openai import error_body, refusal
from jevons.wire.events import in_url

TEXT = b"text/plain; charset=utf-8"
PREFIX = "/e/"
_MAX_SOCKETS = 1 << 16  # of ZMQ: its own limit is 1,023
_TRIES = 100  # to find free ports in a row


class Chaos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do to which engines. Of their faults those named are changed, see `mock_engine.Faults`."""

    do: Literal["crash", "start", "restart", "nothing"] = "nothing"
    engines: list[str] | None = None  # None: all
    faults: dict[str, float | bool] = {}


class Made(msgspec.Struct, frozen=True):
    """One engine to be made, or data-parallel ranks that share its URL."""

    facts: MockFacts
    pace: Pace
    ranks: int = 1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a fleet is run."""

    host: str = "127.0.0.1"
    port: int = 0  # of the shared door; 0: a free one
    own_ports: bool = False  # each engine has one
    speed: float = 1.0
    seed: int = 0


class _Member:
    """One engine or its ranks, their HTTP side, and their door if they have one of their own."""

    def __init__(self, ranks: Sequence[MockEngine], words: Words) -> None:
        self.ranks = ranks
        self.server = MockServer(ranks, words)
        self.door: Door | None = None
        self.port = 0
        self.connections: WeakSet[Connection] = WeakSet()  # that were used for it, where all share a door

    async def start(self, host: str, own_port: bool) -> None:
        for rank in self.ranks:
            await rank.start()
        if own_port:
            self.door = Door(self._answer, refusal)
            await self.door.listen(host, self.port)
            self.port = self.door.port

    async def crash(self) -> None:
        for rank in self.ranks:
            rank.crash()
        for connection in list(self.connections):
            connection.abort()
        if self.door is not None:
            await self.door.close(0.0)

    async def _answer(self, request: Request, reply: Reply) -> None:
        await self.server.answer(request, reply, request.path)


class MockFleet:
    """The engines of one process."""

    def __init__(self, made: Sequence[Made], plan: Plan, words: Words) -> None:
        self._plan = plan
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._members: dict[str, _Member] = {}
        for each in made:
            self._members[each.facts.id] = _Member(self._ranks(each), words)
        self._door = Door(self._answer, refusal)

    @property
    def url(self) -> str:
        return f"http://{in_url(self._plan.host)}:{self._door.port}"

    @property
    def engines(self) -> dict[str, MockEngine]:
        """By id; a rank's is that of its engine with @ and its number."""
        return {rank.facts.id: rank for member in self._members.values() for rank in member.ranks}

    def specs(self) -> list[str]:
        """Each engine as `jevons serve --engine` takes it."""
        return [self._spec(id, member) for id, member in self._members.items()]

    async def start(self) -> None:
        """Start all engines, then listen.

        Raises:
            ConfigError: an address cannot be had.
        """
        for engine in self.engines.values():
            engine.warm()
        try:
            for member in self._members.values():
                await member.start(self._plan.host, self._plan.own_ports)
            await self._door.listen(self._plan.host, self._plan.port)
        except OSError as error:
            raise ConfigError(f"host, port: cannot listen on {self._plan.host}: {error}") from error

    async def wreak(self, chaos: Chaos) -> None:
        """Do what is asked, to engine after engine.

        Raises:
            ConfigError: no such engine, or no such fault.
        """
        ids = list(self._members) if chaos.engines is None else chaos.engines
        unknown = [id for id in ids if id not in self._members]
        if unknown:
            raise ConfigError(f"engines: must be ids of this fleet, got {unknown[0]!r}")
        for id in ids:
            for rank in self._members[id].ranks:
                self._change(rank, chaos.faults)
        if chaos.do in ("crash", "restart"):
            for id in ids:
                await self._members[id].crash()
        if chaos.do in ("start", "restart"):
            for id in ids:
                if not self._members[id].ranks[0].is_up:
                    await self._members[id].start(self._plan.host, self._plan.own_ports)

    async def close(self) -> None:
        for member in self._members.values():
            await member.crash()
            for rank in member.ranks:
                rank.close()
        await self._door.close(0.0)
        self._context.destroy(linger=0)

    def _spec(self, id: str, member: _Member) -> str:
        url = f"http://{in_url(self._plan.host)}:{member.port}" if self._plan.own_ports else f"{self.url}{PREFIX}{id}"
        live, replay = member.ranks[0].endpoints
        ranks = f",ranks={len(member.ranks)}" if len(member.ranks) > 1 else ""
        return f"{url},kv={live},replay={replay}{ranks}"

    def _ranks(self, made: Made) -> list[MockEngine]:
        """Of several the events are on one port after another, and so are their replays."""
        plan, context, kinds = self._plan, self._context, [made.facts]
        if made.ranks > 1:
            first = _free_run(plan.host, 2 * made.ranks)
            kinds = [
                msgspec.structs.replace(
                    made.facts, id=f"{made.facts.id}@{r}", ports=(first + r, first + made.ranks + r)
                )
                for r in range(made.ranks)
            ]
        return [MockEngine(facts, made.pace, plan.host, context, speed=plan.speed, seed=plan.seed) for facts in kinds]

    def _change(self, engine: MockEngine, faults: dict[str, float | bool]) -> None:
        try:
            changed = {**msgspec.structs.asdict(engine.faults), **faults}
            engine.faults = msgspec.convert(changed, Faults)
        except msgspec.ValidationError as error:
            raise ConfigError(f"faults: {error}, got {faults}") from error

    async def _answer(self, request: Request, reply: Reply) -> None:
        try:
            if request.path.startswith(PREFIX):
                await self._of_one(request, reply)
            elif request.method == "POST" and request.path == "/chaos":
                await self.wreak(msgspec.json.decode(request.body, type=Chaos))
                reply.send(200, b"{}")
            else:
                self._page(request, reply)
        except (JevonsError, msgspec.MsgspecError) as error:
            status = error.status if isinstance(error, RequestError) else 400
            reply.send(status, error_body(str(error), status))

    async def _of_one(self, request: Request, reply: Reply) -> None:
        id, _, path = request.path.removeprefix(PREFIX).partition("/")
        member = self._members.get(id)
        if member is None or self._plan.own_ports:
            raise RequestError(f"path: no engine {id!r} here", status=404)
        member.connections.add(reply.connection)
        await member.server.answer(request, reply, f"/{path}")

    def _page(self, request: Request, reply: Reply) -> None:
        if request.path == "/engines":
            reply.send(200, ("\n".join(self.specs()) + "\n").encode(), TEXT)
        elif request.path == "/held":
            held = {id: [name.hex() for name in engine.held()] for id, engine in self.engines.items()}
            reply.send(200, msgspec.json.encode(held))
        elif request.path == "/state":
            reply.send(200, msgspec.json.encode({id: _state(engine) for id, engine in self.engines.items()}))
        else:
            raise RequestError(f"path: must be {PREFIX}ID/…, /engines, /held, /state or /chaos", status=404)


def _free_run(host: str, count: int) -> int:
    """The first of so many ports in a row that are free.

    Raises:
        ConfigError: none was found.
    """
    for _ in range(_TRIES):
        with ExitStack() as held:
            first = _held(held, host, 0)
            if first is not None and all(_held(held, host, first + more) is not None for more in range(1, count)):
                return first
    raise ConfigError(f"ranks, host: found no {count} free ports in a row on {host}; have fewer ranks")


def _held(held: ExitStack, host: str, port: int) -> int | None:
    """The port, which is taken until `held` is left; None: it cannot be had."""
    probe = held.enter_context(socket.socket())
    try:
        probe.bind((host, port))
    except (OSError, OverflowError):
        return None
    return int(probe.getsockname()[1])


def _state(engine: MockEngine) -> dict[str, Any]:
    running, waiting, usage = engine.load
    return {
        "up": engine.is_up,
        "running": running,
        "waiting": waiting,
        "kv_usage": usage,
        "faults": engine.faults,
        "counts": dict(engine.counts),
    }


@asynccontextmanager
async def mock_fleet(made: Sequence[Made], plan: Plan, words: Words | None = None) -> AsyncIterator[MockFleet]:
    """Run a fleet for as long as the context is open. Raises as `MockFleet.start` does."""
    fleet = MockFleet(made, plan, words or Words())
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.close()
