"""Which endpoints can be picked, and what an exchange may hold, wait for and crowd out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from jevons.base.errors import CapacityError, ConfigError, NoWorker, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.config import make
from jevons.control.router import Router
from jevons.engine.specs import each_rank, parse_spec
from jevons.facts.worker import WorkerFacts
from jevons.serve import gateway, picker
from jevons.serve.exchange import Exchange, Room
from jevons.serve.extproc import SERVICE, Malformed, Part, ProcessingRequest, ProcessingResponse, Said
from jevons.serve.fleet import Fleet
from jevons.serve.front import Front
from jevons.serve.gateway import Gateway, parse_listen
from jevons.serve.http import Limits, Request
from jevons.serve.picker import Endpoints, Picker
from jevons.serve.prompts import Prompts, Served, pseudo_encoder


class House:
    """A front with attached engines that are up, though nobody listens there."""

    def __init__(self, *urls: str) -> None:
        self.router, self.now_s = Router(), 0.0
        settings = make({"engines": list(urls) or ["http://127.0.0.1:1"]}, "test")
        self.fleet, self.prompts = Fleet(settings, self.router, lambda: self.now_s), Prompts()
        self.front = Front(settings, self.router, self.fleet, self.prompts, lambda: self.now_s)
        self.prompts.serve(Served("m", pseudo_encoder(), None, exact_tokens=False))
        for url in urls:
            self.attach(url)
        self.endpoints = Endpoints(self.fleet)

    def attach(self, url: str) -> None:
        attached = self.fleet.add_attached(parse_spec(url))
        self.router.join(WorkerFacts(id=attached.id, model="m", kind="openai"))
        self.router.roster.heard(attached.id, 0.0)
        attached.on_join(attached.id)

    async def picker(self) -> Picker:
        await self.endpoints.refresh()
        return Picker(self.router, self.endpoints, self.prompts, self.front.admission, lambda: self.now_s)


def request(prompt: str, **headers: str) -> Request:
    asked = Request()
    asked.path, asked.headers = "/v1/completions", {k.replace("_", "-"): v for k, v in headers.items()}
    asked.body = json.dumps({"model": "m", "prompt": prompt}).encode()
    return asked


def test_engines_are_told_as_ip_and_port_whatever_they_were_named() -> None:
    house = House("http://10.0.0.1", "http://localhost:8001", "http://[fd00::1]:8002", "http://10.0.0.2:8000/base")
    asyncio.run(house.endpoints.refresh())

    assert list(house.endpoints.of.values()) == ["10.0.0.1:80", "127.0.0.1:8001", "[fd00::1]:8002"]


def test_two_engines_at_one_address_are_one_to_a_gateway(caplog: pytest.LogCaptureFixture) -> None:
    house = House("http://127.0.0.1:8001", "http://localhost:8001")
    asyncio.run(house.endpoints.refresh())
    asyncio.run(house.endpoints.refresh())

    assert list(house.endpoints.of.values()) == ["127.0.0.1:8001"]
    assert len([r for r in caplog.records if "another engine's too" in r.message]) == 1  # said once


def test_a_name_that_is_not_found_any_more_keeps_its_last_address(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House("http://engine-0.pool:8000")
    addresses = iter(["10.0.0.7", "10.0.0.8"])

    async def look_up(*_: Any, **__: Any) -> list[Any]:
        try:
            return [(0, 0, 0, "", (next(addresses), 8000))]
        except StopIteration:
            raise OSError(2, "no such name") from None

    async def refresh() -> str:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        await house.endpoints.refresh()
        return house.endpoints.of[house.router.workers()[0]]

    assert [asyncio.run(refresh()) for _ in range(3)] == ["10.0.0.7:8000", "10.0.0.8:8000", "10.0.0.8:8000"]


def test_a_pick_counts_until_it_is_over_and_the_next_goes_elsewhere() -> None:
    async def go() -> list[str]:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80")
        pick = await house.picker()
        picks = [await pick.pick(request(f"{n} " * 500), None, 0.0) for n in range(3)]
        assert sum(worker.requests for worker in house.router.snapshot().workers) == 3
        for each in picks:
            house.front.placements.done(each.id)
        assert sum(worker.requests for worker in house.router.snapshot().workers) == 0
        return [each.endpoints.split(",")[0] for each in picks]

    assert sorted(asyncio.run(go())) == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]


@pytest.mark.parametrize("is_over", [True, False])
def test_an_engine_that_owes_an_answer_is_expected_to_live_and_one_at_rest_is_let_be(is_over: bool) -> None:
    async def go() -> list[str]:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80")
        for attached in house.fleet.attached.values():
            attached.pulse.heard()
        pick = await house.picker()
        house.now_s = 0.1
        picked = await pick.pick(request("a"), None, 0.1)
        if is_over:
            pick.over(picked)
            house.fleet.attached[picked.worker].pulse.heard()
        house.now_s = 1.5  # more than a worker may hang, less than one at rest is left alone
        return [id for id in house.router.roster.suspects(1.5) if id == picked.worker]

    assert bool(asyncio.run(go())) is not is_over


def test_an_engine_outside_the_subset_is_not_even_a_fallback() -> None:
    async def go() -> list[str]:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80")
        pick = await house.picker()
        subset = frozenset({"10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"})
        told = [(await pick.pick(request("a"), subset, 0.0)).endpoints, pick.pick_by_load(Request(), subset).endpoints]
        with pytest.raises(NoWorker, match=r"none of .*-subset is attached: 10\.0\.0\.4:80"):
            pick.pick_by_load(Request(), frozenset({"10.0.0.4:80"}))
        return told

    for endpoints in asyncio.run(go()):
        assert sorted(endpoints.split(",")) == ["10.0.0.2:80", "10.0.0.3:80"]


@pytest.mark.parametrize("subset", [None, frozenset({"10.0.0.1:80", "10.0.0.2:80"})])
def test_an_engine_that_took_the_place_of_another_is_picked_once_its_endpoint_is_known(
    subset: frozenset[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("10.0.0.3", 80))]

    async def go() -> list[str]:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80")
        pick = await house.picker()
        house.router.place(RequestId("busy"), [1] * 50_000, 0.0, avoid=[WorkerId("10.0.0.2:80")])
        house.fleet.remove_attached(WorkerId("10.0.0.2:80"))
        house.attach("http://engine-3.pool:80")
        told = [(await pick.pick(request("a"), subset, 0.0)).endpoints]
        told += [pick.pick_by_load(Request(), subset).endpoints]
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        await house.endpoints.refresh()
        return [*told, (await pick.pick(request("a"), None, 0.0)).endpoints]

    assert asyncio.run(go()) == ["10.0.0.1:80", "10.0.0.1:80", "10.0.0.3:80,10.0.0.1:80"]


@pytest.mark.parametrize("subset", [None, frozenset({"10.0.0.2:80"})])
def test_when_all_pods_are_replaced_the_new_ones_are_picked_as_soon_as_they_are_up(
    subset: frozenset[str] | None,
) -> None:
    async def go() -> str:
        house = House("http://10.0.0.1:80")
        pick = await house.picker()
        house.fleet.remove_attached(WorkerId("10.0.0.1:80"))
        with pytest.raises(NoWorker):
            await pick.pick(request("a"), subset, 0.0)
        house.attach("http://10.0.0.2:80")
        assert pick.is_ready
        assert pick.pick_by_load(Request(), subset).endpoints == "10.0.0.2:80"
        return (await pick.pick(request("a"), subset, 0.0)).endpoints

    assert asyncio.run(go()) == "10.0.0.2:80"


def test_an_engine_of_a_name_that_comes_up_again_is_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["10.0.0.7"]

    async def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (addresses[-1], 8000))]

    async def go() -> str:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        house = House("http://engine-0.pool:8000")
        pick = await house.picker()
        keeping = asyncio.create_task(house.endpoints.keep())
        addresses.append("10.0.0.8")  # its pod is another
        house.fleet.on_join(house.router.workers()[0])
        while house.endpoints.of[house.router.workers()[0]] == "10.0.0.7:8000":  # noqa: ASYNC110 — a few turns
            await asyncio.sleep(0)
        keeping.cancel()
        return pick.pick_by_load(Request(), None).endpoints

    assert asyncio.run(go()) == "10.0.0.8:8000"


def test_engines_that_come_and_go_while_a_request_waits_in_front_do_not_disturb_it() -> None:
    async def go() -> str:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80")
        pick = await house.picker()
        for id in house.router.workers():
            others = [other for other in house.router.workers() if other != id]
            house.router.place(RequestId(id), [1] * 50_000, 0.0, avoid=others)
        asked = request("a", x_slo_ttft_ms="500", x_slo_miss="queue")
        waits = asyncio.create_task(pick.pick(asked, frozenset({"10.0.0.1:80", "10.0.0.2:80"}), 0.0))
        while not house.front.placements.gate.waiting:  # noqa: ASYNC110 — a few turns of the loop
            await asyncio.sleep(0)
        house.router.done(RequestId("10.0.0.2:80"))
        house.fleet.remove_attached(WorkerId("10.0.0.2:80"))
        house.attach("http://10.0.0.3:80")
        await house.endpoints.refresh()
        house.now_s = 1.0
        house.front.admission.look()
        assert house.front.placements.gate.waiting == 1  # 10.0.0.3 is idle, but outside the subset
        house.router.done(RequestId("10.0.0.1:80"))
        house.now_s = 2.0
        return (await waits).endpoints

    assert asyncio.run(go()) == "10.0.0.1:80"


def test_no_more_than_four_endpoints_are_told() -> None:
    async def go() -> str:
        house = House(*(f"http://10.0.0.{n}:80" for n in range(1, 9)))
        return (await (await house.picker()).pick(request("a"), None, 0.0)).endpoints

    assert len(asyncio.run(go()).split(",")) == 4


def test_bodies_that_come_share_one_bound() -> None:
    room = Room(total_bytes=100, body_bytes=60)
    room.take(0, 60)
    with pytest.raises(RequestError, match="at most 60 bytes") as too_large:
        room.take(60, 1)
    assert too_large.value.status == 413
    with pytest.raises(CapacityError, match="60 bytes of other requests"):
        room.take(0, 50)
    room.free(60)
    room.take(0, 50)
    assert room.held_bytes == 50


def exchange(house: House, limits: Limits, talk: Callable[[Any], Awaitable[Any]]) -> Any:
    """What `talk` makes of a stream to a gateway with these limits."""

    async def go() -> Any:
        served = Gateway(house.front, limits, 60.0)
        await served.listen(parse_listen("127.0.0.1:0"))
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
                return await talk(channel.stream_stream(f"/{SERVICE}/Process"))
        finally:
            await served.close(0)

    return asyncio.run(go())


def faults(house: House, reason: str) -> float:
    value = house.front.metrics.registry.get_sample_value("jevons_picker_faults_total", {"reason": reason})
    return value or 0.0


def test_a_body_that_does_not_come_to_its_end_in_time_is_answered_408() -> None:
    house = House("http://10.0.0.1:80")

    async def talk(process: Any) -> Any:
        call = process(timeout=30)
        await call.write(ProcessingRequest(request_headers={}).SerializeToString())
        await call.write(ProcessingRequest(request_body={"body": b"{"}).SerializeToString())
        answer = ProcessingResponse.FromString(await call.read())
        assert await call.read() is grpc.aio.EOF
        return answer.immediate

    immediate = exchange(house, Limits(body_s=0.2), talk)
    assert immediate.status.code == 408
    assert "body: must arrive within 0.2 s" in json.loads(immediate.body)["error"]["message"]
    assert faults(house, "slow") == 1


def test_it_is_not_ready_before_all_engines_are_met() -> None:
    house = House("http://10.0.0.1:80", "http://10.0.0.2:80")

    async def go() -> list[bytes]:
        served = Gateway(house.front, Limits(), 60.0)
        await served.listen(parse_listen("127.0.0.1:0"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            check: Any = channel.unary_unary(f"/{gateway.HEALTH}/Check")
            told = []
            for id in house.router.workers():
                house.fleet._on_met(id)
                told.append(await check(b"", timeout=30))
        await served.close(0)
        return told

    assert asyncio.run(go()) == [gateway.NOT_SERVING, gateway.SERVING]  # it would pick of those that are


def test_requests_beyond_the_most_are_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House("http://10.0.0.1:80")
    monkeypatch.setattr(gateway, "MAX_STREAMS", 1)

    async def talk(process: Any) -> Any:
        one = process(timeout=30)
        head = ProcessingRequest(request_headers={"end_of_stream": True}).SerializeToString()
        await one.write(head)
        first = ProcessingResponse.FromString(await one.read())
        two = process(timeout=30)
        await two.write(head)
        second = ProcessingResponse.FromString(await two.read())
        assert first.HasField("request_headers")
        await one.done_writing()
        return second.immediate

    immediate = exchange(house, Limits(), talk)
    assert immediate.status.code == 503
    assert faults(house, "full") == 1


def test_what_is_held_too_long_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House("http://10.0.0.1:80")
    monkeypatch.setattr(gateway, "MAX_HOLD_S", 0.2)

    async def talk(process: Any) -> Any:
        call = process(timeout=30)
        await call.write(ProcessingRequest(request_headers={"end_of_stream": True}).SerializeToString())
        await call.read()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    exchange(house, Limits(), talk)
    assert sum(worker.requests for worker in house.router.snapshot().workers) == 0
    assert house.front.metrics.registry.get_sample_value("jevons_placements_expired_total") == 1


@pytest.mark.parametrize("text", ["9002", "host:", ":9002", "host:port", "host:70000"])
def test_an_address_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=f"picker: must look like HOST:PORT, got '{text}'"):
        parse_listen(text)


def test_a_picker_on_a_taken_port_or_without_its_certificate_is_an_error(tmp_path: Any) -> None:
    async def go() -> None:
        front = House("http://10.0.0.1:80").front
        with pytest.raises(ConfigError, match=f"picker-tls: must be a folder with tls.crt and tls.key, got {tmp_path}"):
            await Gateway(front, Limits(), 60.0).listen(parse_listen("127.0.0.1:0", tmp_path))
        one, two = Gateway(front, Limits(), 60.0), Gateway(House("http://10.0.0.1:80").front, Limits(), 60.0)
        await one.listen(parse_listen("127.0.0.1:0"))
        with pytest.raises(ConfigError, match=f"picker: cannot listen on 127.0.0.1:{one.port}"):
            await two.listen(parse_listen(f"127.0.0.1:{one.port}"))
        await one.close(0)
        await two.close(0)

    asyncio.run(go())


def test_an_unknown_prompt_is_weighed_by_its_size() -> None:
    async def go() -> tuple[int, int]:
        house = House("http://10.0.0.1:80")
        pick, asked = await house.picker(), Request()
        asked.headers = {"content-length": "4000"}
        pick.pick_by_load(asked, None)
        first = house.router.snapshot().workers[0].queued_tokens
        asked.headers = {"content-length": "99999999999"}
        pick.pick_by_load(asked, None)
        return first, house.router.snapshot().workers[0].queued_tokens - first

    assert asyncio.run(go()) == (1_000, picker.UNKNOWN_MOST_TOKENS)


@pytest.mark.parametrize("leaves", [True, False], ids=["the client leaves", "the time is over"])
def test_a_request_that_waits_to_be_placed_waits_no_longer_than_it_may(leaves: bool) -> None:
    house = House("http://10.0.0.1:80")
    began, ended = asyncio.Event(), asyncio.Event()

    async def never(_: Any) -> Any:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def go() -> Any:
        house.prompts.serve(Served("m", never, None))
        served = Gateway(house.front, Limits(), 30.0 if leaves else 0.2)
        await served.listen(parse_listen("127.0.0.1:0"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            call: Any = channel.stream_stream(f"/{SERVICE}/Process")(timeout=60)
            path = {"key": b":path", "raw_value": b"/v1/completions"}
            await call.write(ProcessingRequest(request_headers={"headers": {"headers": [path]}}).SerializeToString())
            body = {"body": request("a").body, "end_of_stream": True}
            await call.write(ProcessingRequest(request_body=body).SerializeToString())
            await asyncio.wait_for(began.wait(), 20)
            answer = None
            if leaves:
                call.cancel()
            else:
                answer = ProcessingResponse.FromString(await call.read()).immediate
            await asyncio.wait_for(ended.wait(), 20)
        await served.close(0)
        return answer

    answer = asyncio.run(go())
    assert leaves or answer.status.code == 504
    assert house.front.metrics.registry.get_sample_value("jevons_picker_streams") == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"], ids=["an adapter, maybe", "another path"])
def test_what_goes_by_load_is_rewritten_for_the_model_it_is_for_too(path: str) -> None:
    async def go() -> bytes | None:
        asked = request("a", x_gateway_model_name_rewrite="adapter")
        asked.path = path
        return (await (await House("http://10.0.0.1:80").picker()).pick(asked, None, 0.0)).body

    assert json.loads(asyncio.run(go()) or b"{}") == {"model": "adapter", "prompt": "a"}


def test_a_pick_whose_engine_is_gone_since_it_was_answered_may_be_told_to_be_over() -> None:
    async def go() -> None:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80")
        pick = await house.picker()
        picked = await pick.pick(request("a"), None, 0.0)
        pick.over(picked)
        house.fleet.remove_attached(picked.worker)
        pick.over(picked)  # the gateway ends its stream a while after the answer

    asyncio.run(go())


def test_an_answer_of_an_engine_that_was_let_go_and_what_follows_its_end_pass_by() -> None:
    async def go() -> list[list[bytes]]:
        house = House("http://10.0.0.1:80", "http://10.0.0.2:80")
        placements, metrics = house.front.placements, house.front.metrics
        answered = Exchange(await house.picker(), placements, metrics, Room(1 << 20, 1 << 20), lambda: house.now_s)
        await answered.on(Said(part=Part.REQUEST_HEADERS, headers={":method": "GET", ":path": "/"}, is_last=True))
        assert answered.pick is not None
        house.fleet.remove_attached(answered.pick.worker)
        told = [await answered.on(Said(part=Part.RESPONSE_HEADERS, headers={":status": "200"}, served="10.0.0.2:80"))]
        told += [await answered.on(Said(part=Part.RESPONSE_BODY, body=b"a", is_last=True)) for _ in range(2)]
        with pytest.raises(Malformed, match="response_headers: came twice"):
            await answered.on(Said(part=Part.RESPONSE_HEADERS, headers={":status": "200"}))
        answered.close()
        assert sum(worker.requests for worker in house.router.snapshot().workers) == 0
        return told

    assert [len(each) for each in asyncio.run(go())] == [1, 1, 1]


def test_cached_tokens_count_as_a_share_of_the_prompt_as_the_engine_counts_it() -> None:
    async def saved_s(prompt_tokens: int, cached_tokens: int) -> float:
        house = House("http://10.0.0.1:80")
        placements, metrics = house.front.placements, house.front.metrics
        answered = Exchange(await house.picker(), placements, metrics, Room(1 << 20, 1 << 20), lambda: house.now_s)
        headers = {":method": "POST", ":path": "/v1/completions"}
        await answered.on(Said(part=Part.REQUEST_HEADERS, headers=headers))
        await answered.on(Said(part=Part.REQUEST_BODY, body=request("a" * 400).body, is_last=True))
        details = {"cached_tokens": cached_tokens}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "prompt_tokens_details": details}
        await answered.on(Said(part=Part.RESPONSE_HEADERS, headers={":status": "200"}))
        body = json.dumps({"usage": usage}).encode()
        await answered.on(Said(part=Part.RESPONSE_BODY, body=body, is_last=True))
        return house.router.snapshot().recent[-1].saved_s

    ours = asyncio.run(saved_s(101, 80))  # four bytes each of ["aaa…"]
    assert asyncio.run(saved_s(202, 160)) == ours > 0


def test_a_pick_names_the_rank_and_goes_on_only_where_that_rank_is() -> None:
    async def pick() -> tuple[House, picker.Pick]:
        house = House()
        for url, ranks in (("http://10.0.0.1:80", 2), ("http://10.0.0.2:80", 3), ("http://10.0.0.3:80", 1)):
            for spec in each_rank(parse_spec(f"{url},ranks={ranks}")):
                attached = house.fleet.add_attached(spec)
                house.router.join(WorkerFacts(id=attached.id, model="m", kind="openai", rank=spec.rank))
                house.router.roster.heard(attached.id, 0.0)
        avoid = [id for id in house.router.workers() if not id.endswith("@1")]
        for number, id in enumerate(house.router.workers()):
            if id in avoid:  # those are busy
                others = [other for other in house.router.workers() if other != id]
                house.router.place(RequestId(str(number)), list(range(10_000)), 0.0, avoid=others)
        return house, (await house.picker()).pick_by_load(request("a"), None)

    house, picked = asyncio.run(pick())

    assert picked.worker == "10.0.0.1:80@1"
    assert picked.headers == {"x-data-parallel-rank": "1"}
    assert picked.endpoints == "10.0.0.1:80,10.0.0.2:80"
    assert house.endpoints.workers["10.0.0.2:80"].keys() == {0, 1, 2}
