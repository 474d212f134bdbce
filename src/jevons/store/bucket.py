"""The object tier: one object per block in an S3-compatible bucket, which many nodes write and read.

    s3://BUCKET/PREFIX/  fingerprint, hex /  first byte of the name, hex /  name, hex     →   header, page

Nothing that comes back is believed: the size is compared before the body is read, then the header's key, then the
checksum over key and page, and only then are bytes written where the caller wants them. Retries, signatures and TLS
are obstore's; deadlines are ours, whatever it does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jevons.base.errors import ConfigError, StoreError
from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.store.contents import Contents
from jevons.store.record import HEADER_BYTES, check, decode_header, encode_header

if TYPE_CHECKING:
    from obstore.store import S3Store

_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[\w=-][\w.=-]*)*)/?", re.ASCII)
_PATH = re.compile(r"[0-9a-f]{32}/([0-9a-f]{2})/(\1[0-9a-f]{30})")
_CONNECT_S = 2.0
_LISTED_AT_ONCE = 1000  # names in one answer, S3's own limit
# One more try, for a kept-alive connection that the server closed just now. Whoever waits for a block has no time for
# obstore's own ten tries in three minutes.
_RETRY: Any = {
    "max_retries": 1,
    "backoff": {"init_backoff": timedelta(seconds=0.02), "max_backoff": timedelta(seconds=0.1), "base": 2},
    "retry_timeout": timedelta(seconds=5),
}
# obstore tells most failures by their text only; the first sign that is found counts.
_SIGNS = (
    ("/latest/api/token", "denied"),  # no credentials anywhere: the cloud's metadata service is asked last
    ("NoSuchBucket", "gone"),
    ("status code: 401", "denied"),
    ("status code: 403", "denied"),
    ("status code: 404", "gone"),  # of a list or a drop
    ("kind: Connect", "gone"),
    ("TimedOut", "timeout"),
)


class Bucket:
    """Blocks in a bucket. Every failure is a StoreError with its reason; none outlasts its deadline.

    Credentials come from where obstore looks: AWS_ACCESS_KEY_ID and its kin, web identity, container or instance role.
    Connections are kept for reuse and end with the object.

    Args:
        url: s3://BUCKET[/PREFIX].
        endpoint: http(s)://HOST[:PORT] of the server, or None: AWS_ENDPOINT_URL, or AWS itself. Plain HTTP is spoken
            only if this says so.
        region: None takes AWS_REGION, or us-east-1.
        timeout_s: the longest that putting, getting or dropping a block may take, waiting for its turn included.
        concurrency: gets on their way at once, and as many puts; others wait.
        limit: names remembered at most, see `Contents`.

    Raises:
        ConfigError: obstore is not installed, or one of these is not usable.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        timeout_s: float = 10.0,
        concurrency: int = 16,
        limit: int = 1_000_000,
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._client, client_error = _connect(url, endpoint, region, timeout_s)
        self._failures = (client_error, OSError, ValueError)  # obstore raises some of Python's own, too
        self._contents = Contents(limit)
        self._gets = asyncio.Semaphore(concurrency)
        self._puts = asyncio.Semaphore(concurrency)
        self._lists = asyncio.Semaphore(1)

    def holds(self, key: BlockKey) -> bool:
        """Whether the block is there, as far as this node knows: by listings, puts and gets. Asks nobody."""
        return self._contents.holds(key)

    def names(self, fingerprint: bytes) -> set[BlockHash]:
        """Every block it is known to hold under `fingerprint`."""
        return self._contents.names(fingerprint)

    async def put(self, key: BlockKey, meta: BlockMeta, page: memoryview) -> None:
        """Write a block, in place of an older copy. `page` must not change until this returns.

        Its checksum is verified first, on the bytes that are sent: what is bad here would be bad for every node.

        Raises:
            StoreError: it was not written or, after timeout, gone and io, perhaps not.
        """
        path = _path(key)
        async with self._call(f"put {path}", self._timeout_s, self._puts):
            # Parts would outlive a put that is given up, and cost their storage; so one request, however large.
            await self._client.put_async(path, _pack(key, meta, page), use_multipart=False)
        self._contents.add(key)

    async def get(self, key: BlockKey, into: memoryview, timeout_s: float) -> BlockMeta:
        """Read a block into `into`, which must have the size of its page. If it fails, nothing has been written there.

        `timeout_s` is from now on, waiting for its turn included, and never more than the bucket's own.

        Raises:
            StoreError: it cannot be had; "missing" and what is unfit for use are not held any more.
        """
        path = _path(key)
        try:
            async with self._call(f"get {path}", min(timeout_s, self._timeout_s), self._gets, absent="missing"):
                answer = await self._client.get_async(path)
                _check_size(answer.meta["size"], into)  # before a byte of the body is awaited
                raw = memoryview(await answer.bytes_async())
            meta = _unpack(key, raw, into)
        except StoreError as lost:
            self._learn(key, lost.reason)
            raise
        self._contents.add(key)
        return meta

    async def drop(self, key: BlockKey) -> None:
        """Remove a block; nothing happens if it is not there."""
        self._contents.discard(key)
        path = _path(key)
        async with self._call(f"drop {path}", self._timeout_s, self._puts):
            await self._client.delete_async(path)

    async def refresh(self, fingerprint: bytes, timeout_s: float = 120.0) -> int:
        """List the blocks of `fingerprint`, so that `holds` knows of them. One request per 1,000 blocks.

        What is found counts at once, by the 1,000. What is not found any more is forgotten at the end, unless the list
        was cut short by a failure or by the limit.

        Returns:
            Blocks listed.

        Raises:
            StoreError: the list could not be read to its end in time.
        """
        listed, is_whole = 0, False
        async with self._call(f"list {fingerprint.hex()}", timeout_s, self._lists):
            self._contents.begin(fingerprint)
            try:
                async for entries in self._client.list(fingerprint.hex(), chunk_size=_LISTED_AT_ONCE):
                    names = _names(entry["path"] for entry in entries)
                    listed += len(names)
                    if not self._contents.found(fingerprint, names):
                        break
                else:
                    is_whole = True
            finally:
                self._contents.end(fingerprint, is_whole)
        return listed

    @asynccontextmanager
    async def _call(
        self, doing: str, timeout_s: float, turn: AbstractAsyncContextManager[None], absent: str = "gone"
    ) -> AsyncIterator[None]:
        """One operation: in its turn, within its time, with the client's failures told as ours.

        `absent` is the reason for a 404 that does not say whether the object or the bucket is missing.
        """
        try:
            async with asyncio.timeout(timeout_s), turn:
                yield
        except TimeoutError as error:
            raise StoreError("timeout", f"{self.url}: {doing}: not within {timeout_s} s") from error
        except self._failures as error:
            summary = str(error).partition("\n")[0][:300]
            raise StoreError(_reason(error, absent), f"{self.url}: {doing}: {summary}") from error

    def _learn(self, key: BlockKey, reason: str) -> None:
        if reason == "missing":
            self._contents.discard(key)
        elif reason in ("corrupt", "mismatch"):
            self._contents.quarantine(key)


def _connect(url: str, endpoint: str | None, region: str | None, timeout_s: float) -> tuple[S3Store, type[Exception]]:
    """A client, and the type of its errors."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise ConfigError(f"{url}: an object store needs obstore; pip install 'jevons[object]'") from error
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ConfigError(f"object store: must look like s3://BUCKET or s3://BUCKET/PREFIX, got {url!r}")
    options: Any = {"connect_timeout": timedelta(seconds=_CONNECT_S), "timeout": timedelta(seconds=timeout_s)}
    config: Any = {"disable_bulk_delete": True}  # not every S3-compatible server has it
    if endpoint is not None:
        options["allow_http"] = _is_plain(endpoint)
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}  # the second beats AWS_ENDPOINT_URL_S3
    if region is not None:
        config["region"] = region
    try:
        prefix = parts[2].strip("/") or None
        client = S3Store(parts[1], prefix=prefix, config=config, client_options=options, retry_config=_RETRY)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{url}: {error}") from error
    return client, BaseError


def _is_plain(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"object store's endpoint: must look like https://HOST[:PORT], got {endpoint!r}")
    return parts.scheme == "http"


def _path(key: BlockKey) -> str:
    """Names are spread over 256 folders, which people's tools can list."""
    name = key.name.hex()
    return f"{key.fingerprint.hex()}/{name[:2]}/{name}"


def _names(paths: Iterable[str]) -> set[BlockHash]:
    """Names of blocks; what is not a block of ours is left alone."""
    found = (_PATH.fullmatch(path) for path in paths)
    return {BlockHash(bytes.fromhex(match[2])) for match in found if match}


def _pack(key: BlockKey, meta: BlockMeta, page: memoryview) -> bytes:
    """The object: a copy, since obstore may hold its bytes for a while after a put has been given up."""
    raw = b"".join((encode_header(key, meta), page))
    check(key, key, meta, memoryview(raw)[HEADER_BYTES:])
    return raw


def _unpack(wanted: BlockKey, raw: memoryview, into: memoryview) -> BlockMeta:
    _check_size(len(raw), into)  # again: a body need not be as long as its head has said
    key, meta = decode_header(raw)
    page = raw[HEADER_BYTES:]
    check(wanted, key, meta, page)
    into[:] = page
    return meta


def _check_size(size_bytes: int, into: memoryview) -> None:
    if size_bytes != HEADER_BYTES + into.nbytes:
        raise StoreError("mismatch", f"an object of {size_bytes} bytes, {HEADER_BYTES + into.nbytes} expected")


def _reason(error: Exception, absent: str) -> str:
    text = str(error)
    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
        return absent
    return next((reason for sign, reason in _SIGNS if sign in text), "io")
