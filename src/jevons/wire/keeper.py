"""What engines and the keeper of a node's tiers say to each other, over a Unix socket in the frames of `wire.channel`.

    keeper → client   Welcome first, with the arena's file descriptor
    peer → keeper     over TCP: Admit first, answered by Admitted; pages are then read over a link, see `wire.link`
    client → keeper   Attach once;  Find → Found;  Fetch → Here and Lost, a block in exactly one of them, Took of those;
                      Reserve → Places, then Filled;  Done ends a fetch or a reservation and its leases

Block names of one message share a fingerprint and travel as one string of bytes, 16 each: a prompt of 10,000 tokens
costs one small write.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from jevons.base.ids import BlockHash
from jevons.facts.block import Tier
from jevons.facts.snapshot import TierSnapshot
from jevons.kv.hashing import HASH_BYTES
from jevons.wire.link import LinkAddress

TIER_CODES = (None, Tier.DRAM, Tier.DISK, Tier.REMOTE, Tier.PEER)
CODE_OF = {tier: code for code, tier in enumerate(TIER_CODES)}


def pack(names: Iterable[bytes]) -> bytes:
    return b"".join(names)


def unpack(names: bytes) -> list[BlockHash]:
    return [BlockHash(names[i : i + HASH_BYTES]) for i in range(0, len(names), HASH_BYTES)]


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """A keeper of another node knocks. `secret` is what all keepers of a cluster share."""

    secret: bytes


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """A client introduces itself; answered by Attached or Refused."""

    who: str
    fingerprint: bytes
    page_bytes: int


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Tell what the tiers hold, now and from now on; answered by Holding, again and again."""


class Find(msgspec.Struct, frozen=True, tag="find"):
    id: int
    fingerprint: bytes
    names: bytes


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Bring these into the arena, in this order, and lend them until Done."""

    id: int
    fingerprint: bytes
    names: bytes


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Give places for these blocks, as far as they are wanted."""

    id: int
    fingerprint: bytes
    names: bytes
    page_bytes: int
    depths: list[int]  # tokens before each
    tenant: bytes
    worth_s: float  # seconds to compute one


class Filled(msgspec.Struct, frozen=True, tag="filled"):
    """Places of a reservation hold their blocks now: index in it, checksum."""

    id: int
    blocks: list[tuple[int, int]]


class Took(msgspec.Struct, frozen=True, tag="took"):
    """Of a fetch these are copied, by their index in it: what it still waits for may have their places."""

    id: int
    blocks: list[int]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A fetch or reservation is over, whatever of it is outstanding."""

    id: int


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """These blocks' user will be back: do not give them up for so long."""

    fingerprint: bytes
    names: bytes
    seconds: float


class Corrupt(msgspec.Struct, frozen=True, tag="corrupt"):
    """Copies in the arena that do not match their checksums."""

    fingerprint: bytes
    names: bytes


ToKeeper = Admit | Attach | Watch | Find | Fetch | Reserve | Filled | Took | Done | Keep | Corrupt


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """First message of a keeper; the arena's descriptor comes with its bytes."""

    pid: int


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """Where to read this keeper's arena."""

    link: LinkAddress


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """Blocks of this size are welcome."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    error: str


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The nearest tier of each block, a code of TIER_CODES each, and what is queued there before a new fetch."""

    id: int
    tiers: bytes
    queued_bytes: list[int]  # by code


class Here(msgspec.Struct, frozen=True, tag="here"):
    """Blocks of a fetch: index in it, offset in the arena, checksum, code of the tier it came from."""

    id: int
    blocks: list[tuple[int, int, int, int]]


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """Blocks of a fetch that cannot be had: index in it, reason."""

    id: int
    blocks: list[tuple[int, str]]


class Places(msgspec.Struct, frozen=True, tag="places"):
    """An offset in the arena for each block of a reservation; -1: not wanted."""

    id: int
    offsets: list[int]


class Holding(msgspec.Struct, frozen=True, tag="holding"):
    """What tiers hold now, by fingerprint and tier code, and what they hold no more. `fresh`: nothing that was told
    before is so any more; where they hold much, more of it follows."""

    stored: list[tuple[bytes, int, bytes]]
    removed: list[tuple[bytes, int, bytes]]
    state: TierSnapshot
    fresh: bool = False


ToClient = Welcome | Admitted | Attached | Refused | Found | Here | Lost | Places | Holding

TO_KEEPER: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
TO_CLIENT: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
