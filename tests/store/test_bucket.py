"""The object tier, against a real S3 server and against servers that fail in every way: no wrong page, ever."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from tests.store.s3 import Faulty, Moto, reply

from jevons.base.errors import ConfigError, StoreError
from jevons.base.ids import BlockHash
from jevons.control.breaker import Breaker
from jevons.facts.block import LOST, BlockKey, BlockMeta
from jevons.kv.layout import checksum
from jevons.store.bucket import Bucket
from jevons.store.record import encode_header

T = TypeVar("T")
BOUND_S = 120.0  # of a whole test; only a hang comes near it
PATIENT_S = 60.0  # a deadline that must not be what ends an operation
SHORT_S = 0.2  # a deadline that must
PAGE_BYTES = 512
F = b"F" * 16
BUCKET = "s3://kv-blocks/prefix/of-ours"


class Block:
    """A made-up block: equal numbers, equal blocks."""

    def __init__(self, number: int, fingerprint: bytes = F, size_bytes: int = PAGE_BYTES) -> None:
        draw = random.Random(number)
        self.key = BlockKey(fingerprint, BlockHash(draw.randbytes(16)))
        self.page = draw.randbytes(size_bytes)
        self.meta = BlockMeta(size_bytes, checksum(self.key, self.page), depth=16 * number, tenant=b"T" * 16)

    @property
    def record(self) -> bytes:
        return encode_header(self.key, self.meta) + self.page

    @property
    def path(self) -> str:
        name = self.key.name.hex()
        return f"kv-blocks/prefix/of-ours/{self.key.fingerprint.hex()}/{name[:2]}/{name}"


BLOCK = Block(1)
OTHER = Block(2)


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    server = Moto()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(moto: Moto) -> Moto:
    """The server with one empty bucket, `kv-blocks`."""
    moto.ask("POST", "moto-api/reset")
    moto.ask("PUT", "kv-blocks")
    return moto


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(BOUND_S):
            return await work

    return uvloop.run(bounded())


def bucket_at(url: str, timeout_s: float = PATIENT_S, limit: int = 100_000) -> Bucket:
    return Bucket(BUCKET, endpoint=url, region="us-east-1", timeout_s=timeout_s, limit=limit)


async def put(bucket: Bucket, block: Block) -> None:
    await bucket.put(block.key, block.meta, memoryview(block.page))


async def put_all(bucket: Bucket, blocks: Sequence[Block]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for block in blocks:
            tasks.create_task(put(bucket, block))


async def get(bucket: Bucket, block: Block, timeout_s: float = PATIENT_S) -> tuple[bytes, BlockMeta]:
    """The page and what is told of it, read into the middle of a larger buffer whose rest must stay as it was."""
    guard = b"\xa5" * 64
    arena = bytearray(guard + bytes(len(block.page)) + guard)
    try:
        meta = await bucket.get(block.key, memoryview(arena)[64:-64], timeout_s)
    finally:
        assert [arena[:64], arena[-64:]] == [guard, guard]
    return bytes(arena[64:-64]), meta


async def lost(work: Coroutine[Any, Any, object]) -> str:
    """The reason `work` fails for."""
    with pytest.raises(StoreError) as error:
        await work
    assert error.value.reason in LOST
    return error.value.reason


# Against a real server.


def test_over_a_thousand_blocks_come_back_whole_to_a_node_that_has_only_listed_them(s3: Moto) -> None:
    blocks = [Block(number, size_bytes=64) for number in range(1_050)]

    async def scenario() -> None:
        ours, theirs = bucket_at(s3.url), bucket_at(s3.url)
        await put_all(ours, blocks)
        assert not any(theirs.holds(block.key) for block in blocks)

        assert await theirs.refresh(F) == len(blocks)
        assert all(theirs.holds(block.key) for block in blocks)
        assert not theirs.holds(BLOCK.key._replace(fingerprint=b"G" * 16))
        for block in blocks[::4]:
            assert await get(theirs, block) == (block.page, block.meta)

    run(scenario())


def test_a_page_of_many_megabytes_is_one_object_and_comes_back_whole(s3: Moto) -> None:
    large = Block(3, size_bytes=7 << 20)  # above the 5 MiB at which the client by itself would upload in parts

    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        await put(bucket, large)
        assert await get(bucket, large) == (large.page, large.meta)

    run(scenario())
    assert s3.ask("GET", large.path) == large.record


def test_a_block_that_is_not_there_is_missing_and_not_held_any_more(s3: Moto) -> None:
    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        await put(bucket, BLOCK)
        assert bucket.holds(BLOCK.key)
        s3.ask("DELETE", BLOCK.path)  # somebody else's lifecycle rule

        assert await lost(get(bucket, BLOCK)) == "missing"
        assert not bucket.holds(BLOCK.key)

    run(scenario())


def test_a_dropped_block_is_gone_and_dropping_it_again_is_fine(s3: Moto) -> None:
    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        await put_all(bucket, [BLOCK, OTHER])
        await bucket.drop(BLOCK.key)
        await bucket.drop(BLOCK.key)

        assert (bucket.holds(BLOCK.key), bucket.holds(OTHER.key)) == (False, True)
        assert await lost(get(bucket, BLOCK)) == "missing"
        assert await bucket.refresh(F) == 1

    run(scenario())


def test_a_listing_tells_blocks_of_one_fingerprint_and_overlooks_what_is_none(s3: Moto) -> None:
    elsewhere = Block(7, fingerprint=b"G" * 16)
    folder = f"kv-blocks/prefix/of-ours/{F.hex()}"
    for junk in ("notes.txt", "ab/not-hex", f"ab/{BLOCK.key.name.hex()}", f"{BLOCK.path.rsplit('/', 1)[1]}"):
        s3.ask("PUT", f"{folder}/{junk}", b"junk")

    async def scenario() -> None:
        bucket, reader = bucket_at(s3.url), bucket_at(s3.url)
        await put_all(bucket, [BLOCK, elsewhere])

        assert await reader.refresh(F) == 1
        assert (reader.holds(BLOCK.key), reader.holds(elsewhere.key)) == (True, False)

    run(scenario())


def test_listing_again_learns_of_what_other_nodes_write_and_remove(s3: Moto) -> None:
    async def scenario() -> None:
        ours, theirs = bucket_at(s3.url), bucket_at(s3.url)
        await put(theirs, BLOCK)
        await ours.refresh(F)
        assert ours.names(F) == {BLOCK.key.name}

        await theirs.drop(BLOCK.key)
        await put(theirs, OTHER)
        await ours.refresh(F)
        assert ours.names(F) == {OTHER.key.name}

    run(scenario())


def test_nothing_that_was_changed_in_the_bucket_is_served_and_a_new_copy_heals_it(s3: Moto) -> None:
    draw = random.Random(5)
    blocks = [Block(number) for number in range(40)]

    def spoil(number: int) -> tuple[bytes, set[str]]:
        """What lies under the block's key instead of it, and the reasons it may be refused for."""
        record = bytearray(blocks[number].record)
        match number % 4:
            case 0:
                record[draw.randrange(len(record))] ^= 1 << draw.randrange(8)
                return bytes(record), {"corrupt", "mismatch"}
            case 1:
                return bytes(record[: draw.randrange(len(record))]), {"mismatch"}
            case 2:
                return blocks[number - 1].record, {"mismatch"}
            case _:
                return Block(number, fingerprint=b"stale fingerprint"[:16]).record, {"mismatch"}

    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        await put_all(bucket, blocks)
        for number, block in enumerate(blocks):
            changed, reasons = spoil(number)
            s3.ask("PUT", block.path, changed)
            assert await lost(get(bucket, block)) in reasons

        await bucket.refresh(F)
        assert not any(bucket.holds(block.key) for block in blocks)  # listed, but quarantined
        await put_all(bucket, blocks)
        assert all(bucket.holds(block.key) for block in blocks)
        for block in blocks:
            assert await get(bucket, block) == (block.page, block.meta)

    run(scenario())


def test_a_page_that_does_not_match_its_checksum_is_not_written(s3: Moto) -> None:
    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        assert await lost(bucket.put(BLOCK.key, BLOCK.meta, memoryview(OTHER.page))) == "corrupt"
        assert await lost(bucket.put(BLOCK.key, BLOCK.meta, memoryview(BLOCK.page)[:-1])) == "mismatch"
        assert await bucket.refresh(F) == 0

    run(scenario())


def test_a_bucket_that_does_not_exist_is_gone_for_every_operation(s3: Moto) -> None:
    s3.ask("DELETE", "kv-blocks")

    async def scenario() -> None:
        bucket = bucket_at(s3.url)
        for work in (put(bucket, BLOCK), get(bucket, BLOCK), bucket.refresh(F)):
            assert await lost(work) == "gone"
        assert await lost(bucket.drop(BLOCK.key)) == "gone"

    run(scenario())


def test_who_does_not_sign_is_denied(s3: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    run(put(bucket_at(s3.url), BLOCK))
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")

    assert run(lost(get(bucket_at(s3.url), BLOCK))) == "denied"


def test_the_endpoint_that_is_given_beats_those_in_the_environment(s3: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_url())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed_url())

    run(put(bucket_at(s3.url), BLOCK))
    assert s3.ask("GET", BLOCK.path) == BLOCK.record


def test_a_bucket_that_is_let_go_leaves_no_connection_behind(s3: Moto) -> None:
    async def scenario() -> None:
        before = sockets()
        bucket = bucket_at(s3.url)
        await put_all(bucket, [Block(number) for number in range(20)])
        del bucket
        await until(lambda: sockets() <= before)

    run(scenario())


# Against servers that fail.

GETS_THAT_FAIL = {
    "nothing at all": (b"", "io"),
    "not HTTP": (b"hello\r\n\r\n", "io"),
    "a body cut short": (reply(BLOCK.record[:100], size_bytes=len(BLOCK.record)), "io"),
    "a length above the body's": (reply(BLOCK.record, size_bytes=len(BLOCK.record) + 10), "mismatch"),
    "a length below the body's": (reply(BLOCK.record, size_bytes=len(BLOCK.record) - 10), "mismatch"),
    "no length": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BLOCK.record, "io"),
    "a shorter object": (reply(BLOCK.record[:-1]), "mismatch"),
    "a longer object": (reply(BLOCK.record + bytes(4096)), "mismatch"),
    "an empty object": (reply(), "mismatch"),
    "a length and no content": (reply(status="204 No Content", size_bytes=len(BLOCK.record)), "mismatch"),
    "a part of it": (
        reply(BLOCK.record[:200], "206 Partial Content", more="Content-Range: bytes 0-199/592\r\n"),
        "mismatch",
    ),
    "a web page": (reply(b"<html>".ljust(len(BLOCK.record))), "corrupt"),
    "a flipped bit": (reply(BLOCK.record[:-1] + bytes([BLOCK.record[-1] ^ 1])), "corrupt"),
    "another object": (reply(OTHER.record), "mismatch"),
    "access denied": (reply(b"<Error><Code>AccessDenied</Code></Error>", "403 Forbidden"), "denied"),
    "no authorisation": (reply(status="401 Unauthorized"), "denied"),
    "not found": (reply(b"<Error><Code>NoSuchKey</Code></Error>", "404 Not Found"), "missing"),
    "no such bucket": (reply(b"<Error><Code>NoSuchBucket</Code></Error>", "404 Not Found"), "gone"),
    "a server error": (reply(status="500 Internal Server Error"), "io"),
    "slow down": (reply(b"<Error><Code>SlowDown</Code></Error>", "503 Slow Down"), "io"),
    "a redirect to nowhere": (reply(status="301 Moved Permanently"), "io"),
    "a redirect to itself": (reply(status="307 Temporary Redirect", more="Location: /kv-blocks/x\r\n"), "io"),
}


@pytest.mark.parametrize("fault", GETS_THAT_FAIL)
def test_a_get_that_is_answered_wrongly_fails_for_the_right_reason(fault: str) -> None:
    answer, reason = GETS_THAT_FAIL[fault]

    async def scenario() -> None:
        async with Faulty(answer) as server:
            assert await lost(get(bucket_at(server.url), BLOCK)) == reason

    run(scenario())


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\n", reply(size_bytes=len(BLOCK.record)), reply(BLOCK.record[:300], size_bytes=592)],
    ids=["nothing", "half a head", "no body", "half a body"],
)
def test_a_get_from_a_server_that_hangs_ends_at_its_deadline(sent: bytes) -> None:
    async def scenario() -> None:
        async with Faulty(sent, hangs=True) as server:
            assert await lost(get(bucket_at(server.url), BLOCK, SHORT_S)) == "timeout"

    run(scenario())


def test_bytes_after_the_announced_end_are_not_read() -> None:
    async def scenario() -> None:
        async with Faulty(reply(BLOCK.record + b"\xff" * 10_000, size_bytes=len(BLOCK.record))) as server:
            assert await get(bucket_at(server.url), BLOCK) == (BLOCK.page, BLOCK.meta)

    run(scenario())


@pytest.mark.parametrize(("found", "reason"), [(BLOCK, None), (OTHER, "mismatch")], ids=["the block", "another"])
def test_what_a_redirect_leads_to_is_believed_as_little(found: Block, reason: str | None) -> None:
    async def scenario() -> None:
        async with Faulty(reply(found.record)) as there:
            here = reply(status="307 Temporary Redirect", more=f"Location: {there.url}/kv-blocks/x\r\n")
            async with Faulty(here) as server:
                if reason is None:
                    assert await get(bucket_at(server.url), BLOCK) == (BLOCK.page, BLOCK.meta)
                else:
                    assert await lost(get(bucket_at(server.url), BLOCK)) == reason

    run(scenario())


OPERATIONS: dict[str, Callable[[Bucket], Coroutine[Any, Any, object]]] = {
    "put": lambda bucket: put(bucket, BLOCK),
    "get": lambda bucket: get(bucket, BLOCK),
    "drop": lambda bucket: bucket.drop(BLOCK.key),
    "refresh": lambda bucket: bucket.refresh(F, SHORT_S),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(status="403 Forbidden"), "denied"),
        (reply(status="500 Internal Server Error"), "io"),
        (b"", "io"),
        (reply(b"<Error><Code>NoSuchBucket</Code></Error>", "404 Not Found"), "gone"),
    ],
    ids=["denied", "error", "closed", "no bucket"],
)
def test_every_operation_fails_for_the_right_reason(operation: str, answer: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with Faulty(answer) as server:
            assert await lost(OPERATIONS[operation](bucket_at(server.url))) == reason

    run(scenario())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_on_a_server_that_hangs_ends_at_its_deadline(operation: str) -> None:
    async def scenario() -> None:
        async with Faulty(b"", hangs=True) as server:
            assert await lost(OPERATIONS[operation](bucket_at(server.url, SHORT_S))) == "timeout"

    run(scenario())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_can_be_cancelled_and_then_lets_its_connection_go(operation: str) -> None:
    async def scenario() -> None:
        async with Faulty(b"", hangs=True) as server:
            task = asyncio.ensure_future(OPERATIONS[operation](bucket_at(server.url)))
            await server.asked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(scenario())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_where_nobody_listens_the_store_is_gone(operation: str) -> None:
    assert run(lost(OPERATIONS[operation](bucket_at(closed_url())))) == "gone"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_without_credentials_access_is_denied(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", closed_url())

    assert run(lost(OPERATIONS[operation](bucket_at(closed_url())))) == "denied"


def test_a_listing_that_fails_forgets_nothing() -> None:
    async def scenario() -> None:
        async with Faulty(reply()) as server:
            bucket = bucket_at(server.url)
            await put(bucket, BLOCK)
            server.answer = reply(status="403 Forbidden")

            assert await lost(bucket.refresh(F)) == "denied"
            assert bucket.holds(BLOCK.key)

    run(scenario())


def listing(*blocks: Block) -> bytes:
    """A page of a list that says there is more."""
    entries = "".join(
        f"<Contents><Key>{block.path.removeprefix('kv-blocks/')}</Key><Size>1</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for block in blocks
    )
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>"
    return reply(f"<ListBucketResult>{more}{entries}</ListBucketResult>".encode())


def test_a_listing_without_end_ends_at_its_deadline() -> None:
    async def scenario() -> None:
        async with Faulty(listing(BLOCK, OTHER)) as server:
            assert await lost(bucket_at(server.url).refresh(F, SHORT_S)) == "timeout"

    run(scenario())


def test_what_a_listing_has_found_counts_at_once_and_stays_when_it_is_cancelled() -> None:
    async def scenario() -> None:
        async with Faulty(listing(*[Block(number, size_bytes=1) for number in range(1_000)])) as server:
            bucket = bucket_at(server.url)
            refreshing = asyncio.create_task(bucket.refresh(F))
            await until(lambda: bucket.holds(BLOCK.key))
            refreshing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await refreshing
            assert bucket.holds(BLOCK.key)

    run(scenario())


def test_a_listing_of_more_than_may_be_remembered_ends_there() -> None:
    async def scenario() -> None:
        async with Faulty(listing(*[Block(number) for number in range(5)])) as server:
            bucket = bucket_at(server.url, limit=3)
            await bucket.refresh(F)
            assert sum(bucket.holds(Block(number).key) for number in range(5)) == 3

    run(scenario())


def test_gets_and_puts_wait_for_their_turns_apart() -> None:
    async def scenario() -> None:
        async with Faulty(b"", hangs=True) as server:
            bucket = Bucket(BUCKET, endpoint=server.url, region="us-east-1", timeout_s=PATIENT_S, concurrency=2)
            blocks = [Block(number) for number in range(6)]
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(get(bucket, block)) for block in blocks]
            await until(lambda: len(server.requests) == 2)
            tasks += [asyncio.create_task(put(bucket, block)) for block in blocks]
            await until(lambda: len(server.requests) >= 4)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert [request[:3] for request in server.requests] == ["GET", "GET", "PUT", "PUT"]

    run(scenario())


def test_behind_a_breaker_a_dead_bucket_is_not_even_asked() -> None:
    async def scenario() -> None:
        breaker = Breaker(failures=3, rest_s=1.0)
        async with Faulty(reply(status="403 Forbidden")) as server:
            bucket = bucket_at(server.url)
            for number in range(100):
                now_s = number / 200  # all within the first rest
                if breaker.admit(now_s):
                    breaker.record(now_s, await lost(get(bucket, BLOCK)))
            assert (len(server.requests), breaker.skipped) == (3, 97)

    run(scenario())


# What it is made with.


@pytest.mark.parametrize(
    "url",
    [
        "kv",
        "s3://",
        "s3://KV-blocks",
        "http://kv-blocks",
        "s3://kv-blocks/../x",
        "s3://kv-blocks?versions",
        "s3://kv blocks",
    ],
)
def test_a_url_of_another_shape_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must look like s3://BUCKET"):
        Bucket(url)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "https://"])
def test_an_endpoint_of_another_shape_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        Bucket(BUCKET, endpoint=endpoint)


def test_plain_http_is_not_spoken_unless_the_endpoint_that_is_given_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Faulty(reply()) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            assert await lost(put(Bucket(BUCKET), BLOCK)) == "io"
            assert server.requests == []

    run(scenario())


def test_without_obstore_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)

    with pytest.raises(ConfigError, match=r"jevons\[object\]"):
        Bucket(BUCKET)


def test_importing_the_room_does_not_import_obstore() -> None:
    code = "import sys, jevons.store.bucket; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=BOUND_S, check=False).returncode == 0


# Small things they share.


def closed_url() -> str:
    """Where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def sockets() -> int:
    """Open sockets of this process."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            count += os.readlink(entry).startswith("socket:")
    return count


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 nobody tells when
        await asyncio.sleep(0.005)
