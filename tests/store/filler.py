"""A process that puts blocks until it is killed, and tells of each that is acknowledged.

    python -m tests.store.filler DIRECTORY SIZE_BYTES SEGMENT_BYTES FIRST_NUMBER

Each line: the numbers put, a bar, the numbers removed. Then it goes on at once.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.store.made import block, numbered

from jevons.facts.block import BlockKey
from jevons.store.disk import DiskStore

PAGE_BYTES = 368_640  # as large as real ones, so that a kill finds writes under way
KEPT = (0, 7, 14)  # numbers that are worth keeping: as many as a third of a segment of 10 holds


def is_kept(key: BlockKey) -> bool:
    return numbered([key])[0] in KEPT


def main(directory: Path, size_bytes: int, segment_bytes: int, first: int) -> None:
    store, draw = DiskStore(directory, size_bytes, segment_bytes=segment_bytes), random.Random(first)
    while True:
        numbers = range(first, first + draw.randint(1, 4))
        written = store.put([block(number, PAGE_BYTES) for number in numbers], is_kept)
        assert not written.refused, written.refused
        sys.stdout.write(f"{' '.join(map(str, numbers))} | {' '.join(map(str, numbered(written.removed)))}\n")
        sys.stdout.flush()
        first = numbers.stop


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
