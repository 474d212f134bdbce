"""The object tier beside the bare client it stands on (PyPI `obstore`), against one server in the same run.

    python bench/bucket.py [--blocks 80] [--rounds 4] [--json]

Both sides put and get the same pages, eight at a time, in turns, against moto's S3 server on loopback; medians count.
The difference is what we add: header, checksum both ways, a copy each way, deadline, bookkeeping. CPU is that of this
process, the client's own threads included. The server is Python and shares the machine, so rates say little about S3:
read the ratios, and the CPU per block.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from obstore.store import S3Store

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.kv.layout import Layout, checksum
from jevons.store.bucket import Bucket

RUNNING = 8
TIMEOUT_S = 30.0
SMOL = Layout(layers=30, kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")  # SmolLM2-135M: 369 KB
LLAMA = Layout(layers=32, kv_heads=8, head_dim=128, block_size=16, dtype="bfloat16")  # Llama 3 8B: 2.1 MB
BUCKET = "bench-blocks"

Work = Callable[[int], Awaitable[object]]  # on one block, by its number


class Blocks:
    """Made-up blocks of one layout, all with the same page."""

    def __init__(self, layout: Layout, count: int) -> None:
        draw = random.Random(layout.page_bytes)
        self.page = draw.randbytes(layout.page_bytes)
        self.keys = [BlockKey(b"F" * 16, BlockHash(draw.randbytes(16))) for _ in range(count)]
        self.metas = [BlockMeta(len(self.page), checksum(key, self.page)) for key in self.keys]
        self.arena = [bytearray(len(self.page)) for _ in range(RUNNING)]

    def jevons(self, url: str) -> dict[str, Work]:
        bucket = Bucket(f"s3://{BUCKET}/ours", endpoint=url, region="us-east-1", timeout_s=TIMEOUT_S)

        async def put(number: int) -> None:
            await bucket.put(self.keys[number], self.metas[number], memoryview(self.page))

        async def get(number: int) -> None:
            await bucket.get(self.keys[number], memoryview(self.arena[number % RUNNING]), TIMEOUT_S)

        return {"put": put, "get": get}

    def bare(self, url: str) -> dict[str, Work]:
        """The same client, and no more than putting and getting bytes takes."""
        options: Any = {"allow_http": True, "timeout": timedelta(seconds=TIMEOUT_S)}
        client = S3Store(BUCKET, prefix="bare", endpoint=url, region="us-east-1", client_options=options)

        async def put(number: int) -> None:
            await client.put_async(self.keys[number].name.hex(), self.page, use_multipart=False)

        async def get(number: int) -> None:
            answer = await client.get_async(self.keys[number].name.hex())
            assert len(await answer.bytes_async()) == len(self.page)

        return {"put": put, "get": get}


@contextmanager
def moto() -> Iterator[str]:
    """A server of ours with one empty bucket; gives its URL."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with tempfile.NamedTemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as running:
        try:
            url = listening(Path(log.name))
            make = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            urllib.request.urlopen(make, timeout=TIMEOUT_S).close()
            yield url
        finally:
            running.terminate()


def listening(log: Path) -> str:
    for _ in range(300):
        found = re.search(r"Running on (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise SystemExit(f"moto's server does not listen:\n{log.read_text()}")


async def timed(work: Work, count: int) -> tuple[float, float]:
    """Wall and CPU seconds of `work` on `count` blocks, `RUNNING` at a time."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await work(number)

    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(RUNNING):
            tasks.create_task(client())
    return time.perf_counter() - began_s, time.process_time() - cpu_began_s


async def measure(url: str, layout: Layout, count: int, rounds: int) -> dict[str, Any]:
    blocks = Blocks(layout, count)
    sides = {"jevons": blocks.jevons(url), "bare": blocks.bare(url)}
    seconds: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(rounds + 1):  # the first one warms both up
        for verb in ("put", "get"):
            for side in sorted(sides, reverse=bool(round_ % 2)):
                spent = await timed(sides[side][verb], count)
                if round_:
                    seconds.setdefault(f"{verb} {side}", []).append(spent)
    return {"page_bytes": layout.page_bytes} | {
        name: {
            "mb_per_s": count * layout.page_bytes / 1e6 / median(wall for wall, _ in spent),
            "cpu_us_per_block": 1e6 * median(cpu for _, cpu in spent) / count,
        }
        for name, spent in seconds.items()
    }


def report(rows: list[dict[str, Any]]) -> None:
    print("MB/s through the server, and CPU us a block in this process; median of the rounds")
    for row in rows:
        for verb in ("put", "get"):
            ours, bare = row[f"{verb} jevons"], row[f"{verb} bare"]
            rate, cpu = ours["mb_per_s"] / bare["mb_per_s"], ours["cpu_us_per_block"] - bare["cpu_us_per_block"]
            print(
                f"  {verb} of {row['page_bytes']:>9,} bytes: {ours['mb_per_s']:6.0f} MB/s, {rate:4.0%} of bare"
                f"   {ours['cpu_us_per_block']:7.0f} us, {cpu:+5.0f} to bare"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with moto() as url:
        rows = [uvloop.run(measure(url, layout, args.blocks, args.rounds)) for layout in (SMOL, LLAMA)]
    print(json.dumps(rows)) if args.json else report(rows)


if __name__ == "__main__":
    main()
