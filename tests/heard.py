"""What real engines told, byte for byte, between the prompts that they answered one after another.

Told by vLLM itself, `tests/vllm/listen.py` writes them down; `tests/control/test_heard.py` holds intake to them.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent / "control" / "heard"


class Told(msgspec.Struct, frozen=True, tag="told", array_like=True):
    """One batch of KV events."""

    rank: int
    seq: int
    payload: bytes


class Asked(msgspec.Struct, frozen=True, tag="asked", array_like=True):
    """A prompt that it has answered before it told what comes next; nothing else ran meanwhile.

    Attributes:
        cached_tokens: that the engine reported.
    """

    rank: int
    tokens: list[int]
    salt: str
    cached_tokens: int


class Heard(msgspec.Struct, frozen=True):
    """One engine from its start, in the order of time."""

    engine: str
    flags: list[str]
    ranks: int
    steps: list[Told | Asked]


def write(path: Path, heard: Heard) -> None:
    path.write_bytes(zlib.compress(msgspec.msgpack.encode(heard), 9))


def read(name: str) -> Heard:
    return msgspec.msgpack.decode(zlib.decompress((FOLDER / f"{name}.heard").read_bytes()), type=Heard)
