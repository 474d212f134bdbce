"""What the frontends of one port tell each other, through a hub that passes letters on without reading them.

Told        what a frontend placed, began and ended, in numbered letters; who misses a number asks for everything
Ask, Answer one question to one or to all of them
Peers       from the hub: who is there now; a frontend that starts again is away in between
Page        to the hub: what a frontend counts, which must not be lost when it ends
"""

from __future__ import annotations

import msgspec

from jevons.facts.news import News

HUB, ALL = -1, -2  # addresses, beside the frontends' numbers


class Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    """Letter `seq`; without news it is the last one that there was."""

    seq: int
    news: list[News]


class Everything(msgspec.Struct, frozen=True, array_like=True, tag="everything"):
    """All that is under way at the sender after its letter `seq`."""

    seq: int
    news: list[News]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """`id` is the asker's name for it."""

    id: int
    what: str
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """What came of it; None: not known here."""

    id: int
    body: bytes | None


class Peers(msgspec.Struct, frozen=True, array_like=True, tag="peers"):
    numbers: list[int]


class Page(msgspec.Struct, frozen=True, array_like=True, tag="page"):
    body: bytes


Body = Told | Everything | Ask | Answer | Peers | Page


class Letter(msgspec.Struct, frozen=True, array_like=True):
    sender: int
    to: int
    body: msgspec.Raw


LETTERS: msgspec.msgpack.Decoder[Letter] = msgspec.msgpack.Decoder(Letter)
_BODIES: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)


def write(sender: int, to: int, body: Body) -> Letter:
    return Letter(sender, to, msgspec.Raw(msgspec.msgpack.encode(body)))


def read(letter: Letter) -> Body:
    """Raises MsgspecError: it is none of ours."""
    return _BODIES.decode(letter.body)
