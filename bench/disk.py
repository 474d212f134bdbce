"""The disk store beside plain files: the same pages written and read with no header, checksum or index; and memcpy.

    python bench/disk.py [--blocks 256] [--directory DIRECTORY] [--json]

All sides take turns, block by block. "Cached" reads find the file in memory, as they do soon after it was written;
before "cold" reads all files were synced and dropped from the file cache. Then 100,000 blocks are found again by
opening their directory. Needs 500 MB of disk where --directory says, by default the system's temporary one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from jevons.base.ids import BlockHash
from jevons.facts.block import BlockKey, BlockMeta
from jevons.kv.layout import checksum
from jevons.store.cipher import Cipher
from jevons.store.disk import Block, DiskStore
from jevons.store.header import record_bytes
from jevons.store.segment import HEADERS

PAGE_BYTES = 368_640  # 16 tokens of SmolLM2-135M, bf16: 30 layers, k and v, 3 heads of 64
BATCH = 8  # blocks in one write
SEGMENT_BLOCKS = 181  # as many as 64 MiB hold
REOPENED = 100_000  # blocks
REOPENED_BYTES = 1024  # of a page: reopening reads headers only
FINGERPRINT = bytes(16)
TENANT = b"tenant number 01"
ROUNDS = 3

Turn = tuple[str, Callable[[], object]]  # whose, and what it does


class Cost:
    """Wall and CPU seconds of each turn."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def add(self, work: Callable[[], object]) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        self.cpu_s.append(time.process_time() - cpu_s)
        self.wall_s.append(time.perf_counter() - wall_s)

    def row(self, blocks: int, is_typical: bool) -> dict[str, float]:
        """Of turns of so many blocks: the median one, where only other processes disturb; else all, with all waits."""
        middle = median if is_typical else mean
        gb_per_s = blocks * PAGE_BYTES / middle(self.wall_s) / 1e9
        return {"gb_per_s": gb_per_s, "cpu_us_per_block": 1e6 * middle(self.cpu_s) / blocks}


class Plain:
    """The peer: pages one after another in a file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.blocks = 0

    def write(self, batch: Sequence[Block]) -> None:
        written = os.pwritev(self.fd, [page for _, _, page in batch], self.blocks * PAGE_BYTES)
        assert written == len(batch) * PAGE_BYTES
        self.blocks += len(batch)

    def read(self, place: int, into: memoryview) -> None:
        assert os.preadv(self.fd, [into], place * PAGE_BYTES) == PAGE_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=256)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.directory) as folder:
        record = {"moved": moved(Path(folder), args.blocks), "reopened": reopened(Path(folder))}
    print(json.dumps(record)) if args.json else report(record)


def moved(folder: Path, blocks: int) -> dict[str, Any]:
    """Written in turns, then read in turns, from the file cache and without it."""
    made = pages(blocks)
    costs: dict[str, dict[str, Cost]] = {}
    for round in range(ROUNDS):
        place = folder / str(round)
        place.mkdir()
        one_round(place, made, costs)
        shutil.rmtree(place)
    return {
        kind: {side: cost.row(BATCH if kind == "write" else 1, kind == "read, cached") for side, cost in sides.items()}
        for kind, sides in costs.items()
    }


def one_round(folder: Path, made: list[Block], costs: dict[str, dict[str, Cost]]) -> None:
    plain = Plain(folder / "plain")
    size_bytes = 2 * len(made) * PAGE_BYTES + (1 << 28)
    stores = {
        "jevons": DiskStore(folder / "store", size_bytes, segment_bytes=64 << 20),
        "jevons, encrypted": DiskStore(folder / "sealed", size_bytes, segment_bytes=64 << 20, cipher=Cipher(bytes(32))),
    }
    for at in range(0, len(made), BATCH):
        batch = made[at : at + BATCH]
        turns: list[Turn] = [("plain file", partial(plain.write, batch))]
        turns += [(side, partial(store.put, batch, is_worth)) for side, store in stores.items()]
        take(turns, at // BATCH, costs.setdefault("write", {}))
    into = memoryview(bytearray(PAGE_BYTES))
    for kind in ("read, cached", "read, cold"):
        if kind == "read, cold":
            drop_cache(folder)
        for place, (key, _, page) in enumerate(made):
            turns = [("plain file", partial(plain.read, place, into))]
            if kind == "read, cached":
                turns.append(("memcpy", partial(copy, page, into)))
            turns += [(side, partial(store.get, key, into)) for side, store in stores.items()]
            take(turns, place, costs.setdefault(kind, {}))
    os.close(plain.fd)
    for store in stores.values():
        store.close()


def take(turns: list[Turn], first: int, sides: dict[str, Cost]) -> None:
    """Each side once, beginning with another one each time: the first finds other things in the CPU's caches."""
    first %= len(turns)
    for side, work in turns[first:] + turns[:first]:
        sides.setdefault(side, Cost()).add(work)


def is_worth(_: BlockKey) -> bool:
    return False


def copy(page: memoryview, into: memoryview) -> None:
    into[:] = page


def drop_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pages(blocks: int) -> list[Block]:
    draw = random.Random(0)
    made: list[Block] = []
    for number in range(blocks):
        key = BlockKey(FINGERPRINT, BlockHash(number.to_bytes(16, "big")))
        page = memoryview(draw.randbytes(PAGE_BYTES))
        made.append((key, BlockMeta(PAGE_BYTES, checksum(key, page), 16 * number, TENANT), page))
    return made


def reopened(folder: Path) -> dict[str, float]:
    """Seconds until 100,000 blocks are found again: from the lists of headers, and from the blocks without them."""
    segment_bytes = SEGMENT_BLOCKS * record_bytes(REOPENED_BYTES)
    size_bytes = 2 * REOPENED * record_bytes(REOPENED_BYTES)
    page = memoryview(bytes(REOPENED_BYTES))
    keys = [BlockKey(FINGERPRINT, BlockHash(number.to_bytes(16, "big"))) for number in range(REOPENED)]
    store = DiskStore(folder, size_bytes, segment_bytes=segment_bytes)
    store.put([(key, BlockMeta(REOPENED_BYTES, 0), page) for key in keys], is_worth)
    store.close()
    found: dict[str, float] = {"blocks": REOPENED, "segments": len(list(folder.glob(f"*{HEADERS}")))}
    listed, walked = Cost(), Cost()
    for _ in range(ROUNDS):
        listed.add(partial(reopen, folder, size_bytes, segment_bytes))
        for path in folder.glob(f"*{HEADERS}"):
            path.unlink()
        walked.add(partial(reopen, folder, size_bytes, segment_bytes))
    for name, cost in (("", listed), ("without_lists_", walked)):
        found |= {f"{name}s": median(cost.wall_s), f"{name}cpu_s": median(cost.cpu_s)}
    return found


def reopen(folder: Path, size_bytes: int, segment_bytes: int) -> None:
    store = DiskStore(folder, size_bytes, segment_bytes=segment_bytes)
    assert len(store) == REOPENED
    store.close()


def report(record: dict[str, Any]) -> None:
    for kind, sides in record["moved"].items():
        print(f"{kind}: blocks of {PAGE_BYTES:,} bytes")
        plain = sides["plain file"]["gb_per_s"]
        for side, row in sides.items():
            share = f"{row['gb_per_s'] / plain:6.0%} of a plain file"
            if "memcpy" in sides:
                share += f" {row['gb_per_s'] / sides['memcpy']['gb_per_s']:6.0%} of memcpy"
            print(f"  {side:20}{row['gb_per_s']:6.2f} GB/s {share}, {row['cpu_us_per_block']:5.0f} us CPU a block")
    again = record["reopened"]
    print(f"reopened: {again['blocks']:,} blocks in {again['segments']} segments; medians of {ROUNDS}:")
    for how, name in (("from the lists of headers", ""), ("from the blocks, lists gone", "without_lists_")):
        print(f"  {how:30}{again[name + 's']:6.2f} s, {again[name + 'cpu_s']:.2f} s of CPU")


if __name__ == "__main__":
    main()
