"""Servers for the object tier: moto's S3 as a process of its own, and one that answers whatever it is told to."""

from __future__ import annotations

import asyncio
import queue
import re
import subprocess
import sys
import threading
import urllib.request
from typing import cast

START_S = 60.0
STOP_S = 20.0
READ_S = 20.0
# moto wants to know who asks, and believes everything.
UNSIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Moto:
    """Listens at `url` once made. It takes a port by itself and tells which, so what answers there is ours."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._urls: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self._urls.get(timeout=START_S)
        except queue.Empty:
            self.stop()
            raise AssertionError("moto's server does not listen") from None

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:  # to its end: a server that logs into a full pipe would stop
            found = re.search(r"Running on (http://\S+)", line)
            if found:
                self._urls.put(found[1])

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Past jevons and obstore: what really lies there, or is to lie there."""
        headers = {"Authorization": UNSIGNED, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=READ_S) as response:
            return cast(bytes, response.read())

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._reader.join(STOP_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


def reply(body: bytes = b"", status: str = "200 OK", *, size_bytes: int | None = None, more: str = "") -> bytes:
    """An HTTP response; `size_bytes` is what it claims of its body, `more` further header lines."""
    size_bytes = len(body) if size_bytes is None else size_bytes
    head = f'HTTP/1.1 {status}\r\nContent-Length: {size_bytes}\r\nETag: "e"\r\nConnection: close\r\n{more}\r\n'
    return head.encode() + body


class Faulty:
    """Sends `answer` to whatever it is asked and closes the connection, or (`hangs`) leaves it at that.

    Use as an async context; leaving it waits until no connection is left, so a client that kept one fails the test.
    """

    def __init__(self, answer: bytes, hangs: bool = False) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self._hangs = hangs
        self._asked = asyncio.Event()
        self._connections = asyncio.TaskGroup()

    async def __aenter__(self) -> Faulty:
        await self._connections.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        async with asyncio.timeout(READ_S):
            await self._connections.__aexit__(None, None, None)

    async def asked(self) -> None:
        """Returns when the first request is here."""
        async with asyncio.timeout(READ_S):
            await self._asked.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.create_task(self._answer(reader, writer))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = re.search(r"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(size[1]) if size else 0)
            self.requests.append(head.partition(" HTTP/")[0])
            self._asked.set()
            writer.write(self.answer)
            await writer.drain()
            if self._hangs:
                await reader.read()  # until the client gives up
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone: as it may
        finally:
            writer.close()
