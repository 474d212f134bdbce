"""One poller for many sources: real sockets, engines that come and go, bursts, garbage."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio

from jevons.base.errors import EngineError
from jevons.facts.event import AllCleared, KvPayload
from jevons.wire import sources as wire
from jevons.wire.codec import encode_seq
from jevons.wire.events import Publisher
from jevons.wire.sources import Sources

WAIT_S = 20.0


def live(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 3 * WAIT_S))


@asynccontextmanager
async def listening() -> AsyncIterator[Sources]:
    made = Sources()
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def publishing(count: int = 1) -> AsyncIterator[list[Publisher]]:
    """Engines that publish, all on the same topic."""
    context = zmq.asyncio.Context()
    made = [Publisher("127.0.0.1", "kv", context=context) for _ in range(count)]
    try:
        yield made
    finally:
        for engine in made:
            engine.close()
        context.destroy(linger=0)


def nothing(*_: object) -> None:
    pass


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 — sockets tell nobody else
            await asyncio.sleep(0.005)


async def until_heard(publisher: Publisher, heard: list[KvPayload]) -> None:
    """A subscription takes a moment to hold: publish until something comes."""
    async with asyncio.timeout(WAIT_S):
        while not heard:
            publisher.publish(0.0, [AllCleared()])
            await asyncio.sleep(0.01)


def test_each_of_many_sources_hears_its_own_engine_in_order() -> None:
    async def test() -> None:
        async with listening() as sources, publishing(40) as engines:
            heard: list[list[KvPayload]] = [[] for _ in engines]
            threads = threading.active_count()
            for engine, batches in zip(engines, heard, strict=True):
                sources.listen(engine.endpoint, batches.append, nothing)
            for engine, batches in zip(engines, heard, strict=True):
                await until_heard(engine, batches)
            for n, engine in enumerate(engines):
                for _ in range(n):
                    engine.publish(1.0, [])
            await until(lambda: all(b[-1].seq == e._next - 1 for b, e in zip(heard, engines, strict=True)))

            assert threading.active_count() == threads
            assert len(sources) == 40
            for batches in heard:
                assert [b.seq for b in batches] == list(range(batches[0].seq, batches[-1].seq + 1))

    live(test)


def test_an_engine_with_an_ipv6_address_is_heard_and_replays() -> None:
    async def test() -> None:
        publisher, heard, replayed = Publisher("::1", "kv"), list[KvPayload](), list[KvPayload]()
        answering = asyncio.create_task(publisher.serve_replays())
        try:
            async with listening() as sources:
                with sources.listen(publisher.endpoint, heard.append, nothing):
                    await until_heard(publisher, heard)
                assert await sources.replay(publisher.replay_endpoint, 0, WAIT_S, replayed.append)
                assert heard[-1] in replayed
        finally:
            answering.cancel()
            publisher.close()

    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    live(test)


def test_an_engine_that_connects_finds_a_bound_source_and_a_port_taken_is_an_error() -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        heard: list[KvPayload] = []
        async with listening() as sources:
            sources.listen(f"tcp://*:{port}", heard.append, nothing)
            with pytest.raises(EngineError, match="Address already in use"):
                sources.listen(f"tcp://*:{port}", heard.append, nothing)
            engine: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.PUB)
            engine.connect(f"tcp://127.0.0.1:{port}")
            async with asyncio.timeout(WAIT_S):
                while not heard:
                    engine.send_multipart([b"kv", encode_seq(7), b"payload"])
                    await asyncio.sleep(0.01)
            engine.close(linger=0)
        assert (heard[0].seq, heard[0].payload) == (7, b"payload")
        context.destroy(linger=0)

    live(test)


def test_what_is_no_batch_is_told_and_the_rest_is_heard() -> None:
    async def test() -> None:
        context = zmq.Context[Any]()
        engine = context.socket(zmq.PUB)
        port = engine.bind_to_random_port("tcp://127.0.0.1")
        heard: list[KvPayload] = []
        garbage: list[int] = []
        async with listening() as sources:
            sources.listen(f"tcp://127.0.0.1:{port}", heard.append, lambda: garbage.append(1))
            async with asyncio.timeout(WAIT_S):
                while not heard:
                    engine.send_multipart([b"alone"])
                    engine.send_multipart([b"kv", b"no number", b"payload"])
                    engine.send_multipart([encode_seq(1), b"payload"])  # without a topic, as old replays are
                    await asyncio.sleep(0.01)
        assert len(garbage) >= 2
        context.destroy(linger=0)

    live(test)


def test_a_burst_lets_the_loop_go_on_and_other_sources_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "TURN_S", 0.0)  # a batch a turn

    async def test() -> None:
        turns = 0
        async with listening() as sources, publishing(2) as (loud, calm):
            heard: list[KvPayload] = []
            other: list[KvPayload] = []
            seen_when_calm: list[int] = []

            def on_calm(batch: KvPayload) -> None:
                other.append(batch)
                seen_when_calm.append(heard[-1].seq)

            sources.listen(loud.endpoint, heard.append, nothing)
            await until_heard(loud, heard)
            sources.listen(calm.endpoint, on_calm, nothing)
            await until_heard(calm, other)
            known = len(other)
            for _ in range(2_000):
                loud.publish(0.0, [])
            calm.publish(0.0, [])
            async with asyncio.timeout(WAIT_S):
                while heard[-1].seq < loud._next - 1 or len(other) == known:
                    turns += 1
                    await asyncio.sleep(0)

            assert turns >= 1_000
            assert seen_when_calm[-1] < loud._next - 1

    live(test)


def test_a_batch_that_cannot_be_taken_does_not_silence_its_source(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        heard: list[KvPayload] = []
        raised: list[int] = []

        def take(batch: KvPayload) -> None:
            heard.append(batch)
            if len(heard) == 2:
                raised.append(batch.seq)
                raise RuntimeError("a fault of ours")

        async with listening() as sources, publishing() as (engine,):
            sources.listen(engine.endpoint, take, nothing)
            await until_heard(engine, heard)
            for _ in range(5):
                engine.publish(0.0, [])
            await until(lambda: heard[-1].seq == engine._next - 1)
        assert raised

    live(test)


def test_a_source_that_is_closed_gives_back_what_it_took_and_hears_nothing() -> None:
    async def test() -> None:
        async with listening() as sources, publishing() as (engine,):
            first: list[KvPayload] = []
            with sources.listen(engine.endpoint, first.append, nothing):
                await until_heard(engine, first)
            open_files = len(os.listdir("/proc/self/fd"))
            for _ in range(30):
                with sources.listen(engine.endpoint, first.append, nothing, nothing):
                    await asyncio.sleep(0)
            known = len(first)
            engine.publish(0.0, [])
            gc.collect()
            await until(lambda: len(os.listdir("/proc/self/fd")) <= open_files + 2)

            assert (len(first), len(sources)) == (known, 0)

    live(test)


def test_a_source_tells_that_its_connection_has_ended_before_anything_of_the_next() -> None:
    async def test() -> None:
        told: list[object] = []
        async with listening() as sources, publishing() as (engine,):
            sources.listen(engine.endpoint, lambda batch: told.append(batch.payload), nothing, told.append)
            await until_heard(engine, told)  # type: ignore[arg-type]
            engine.close()
            await until(lambda: told[-1] is False)
            context = zmq.Context[Any]()
            again = context.socket(zmq.PUB)
            await until(lambda: is_bound(again, engine.endpoint))
            async with asyncio.timeout(WAIT_S):
                while told[-1] != b"anew":
                    again.send_multipart([b"kv", encode_seq(0), b"anew"])
                    await asyncio.sleep(0.01)
            context.destroy(linger=0)

        assert True in told[: told.index(False)]
        assert told.index(False) < told.index(b"anew")

    live(test)


def is_bound(socket: zmq.Socket[bytes], endpoint: str) -> bool:
    """Once the port is free."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        return False
    return True


def test_a_replay_whose_request_was_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ASK_AGAIN_S", (0.02,))

    async def test() -> None:
        engine = Publisher("127.0.0.1", "kv")
        engine.publish(0.0, [])
        heard: list[KvPayload] = []
        async with listening() as sources:
            waiting = asyncio.create_task(sources.replay(engine.replay_endpoint, 0, WAIT_S, heard.append))
            await engine._replay.recv_multipart()  # as an engine does that just ends
            answering = asyncio.create_task(engine.serve_replays())

            assert await waiting
            assert [batch.seq for batch in heard] == [0]
            answering.cancel()
        engine.close()

    live(test)


def test_replays_are_answered_a_few_at_a_time_and_a_cancelled_one_gives_its_turn_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "REPLAYS_AT_ONCE", 2)

    async def test() -> None:
        engine = Publisher("127.0.0.1", "kv")
        for _ in range(300):
            engine.publish(0.0, [])
        async with listening() as sources:
            nobody = [asyncio.create_task(sources.replay("tcp://127.0.0.1:9", 0, WAIT_S, nothing)) for _ in range(2)]
            await asyncio.sleep(0.05)
            heard: list[KvPayload] = []
            waiting = asyncio.create_task(sources.replay(engine.replay_endpoint, 40, WAIT_S, heard.append))
            answering = asyncio.create_task(engine.serve_replays())
            await asyncio.sleep(0.05)
            assert not heard
            nobody[0].cancel()

            assert await waiting
            assert [batch.seq for batch in heard] == list(range(40, 300))
            nobody[1].cancel()
            answering.cancel()
        engine.close()

    live(test)
