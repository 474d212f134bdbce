"""The HTTP client for engines: connections that are kept, and closed by the other side."""

from __future__ import annotations

import asyncio

from jevons.engine.http_client import HttpClient, parse_url

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_a_kept_connection_that_is_closed_when_it_is_used_again_is_told_and_its_request_sent_once_more() -> None:
    """As by a server that restarts: to who asked nothing shows."""
    told: list[str] = []
    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        async for line in reader:
            if line == b"\r\n":
                told.append("asked")
                if len(told) == 2:
                    break  # it ends with the request unanswered
                writer.write(ANSWER)
        writer.close()
        await writer.wait_closed()

    async def ask(client: HttpClient) -> bytes:
        async with client.request("GET", "/") as response:
            return await response.body()

    async def run() -> list[bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(parse_url("test", f"http://127.0.0.1:{port}"), lambda: told.append("lost"))
        async with asyncio.timeout(10), server:
            answers = [await ask(client), await ask(client)]
            client.close()
            await asyncio.gather(*(task for task in served if task is not None), return_exceptions=True)
        return answers

    assert asyncio.run(run()) == [b"ok", b"ok"]
    assert told == ["asked", "asked", "lost", "asked"]
