"""A server over a fleet, as a process that can be killed, with a page that holds its index to the engines' truth.

python -m tests.chaos.router ENGINES_FILE PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
import uvloop

from jevons.base.ids import BlockHash, WorkerId
from jevons.config import make
from jevons.control.router import Router
from jevons.serve.app import serving
from jevons.serve.http import Door, Limits, Reply, Request
from jevons.serve.openai import refusal

# All engines are one process: where a busy machine lets that wait for a second they are silent together, and none of
# them hangs. Who ends is noticed by its connections, however long this is.
HANG_S = 10.0


def differences(router: Router, truth: dict[str, list[str]]) -> dict[str, Any]:
    """By worker where they differ: blocks believed, blocks held, held ones that are not known of."""
    found = {}
    for id, names in truth.items():
        holding = router._workers[WorkerId(id)].holding
        missing = sum(not holding.holds(BlockHash(bytes.fromhex(name))) for name in names)
        if missing or len(holding) != len(names):
            found[id] = [len(holding), len(names), missing]
    return found


async def serve(file: str, port: int) -> None:
    settings = make({"engines": [f"@{file}"], "port": port, "hang_s": HANG_S}, "test")
    async with serving(settings, None) as server:

        async def check(request: Request, reply: Reply) -> None:
            if request.method == "GET":
                reply.send(200, msgspec.json.encode({"up": len(server.router.roster.up())}))
                return
            truth = msgspec.json.decode(request.body, type=dict[str, list[str]])
            reply.send(200, msgspec.json.encode(differences(server.router, truth)))

        door = Door(check, refusal, Limits(body_bytes=1 << 30))
        await door.listen("127.0.0.1", 0)
        print(msgspec.json.encode({"url": server.url, "check": f"http://127.0.0.1:{door.port}"}).decode(), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
