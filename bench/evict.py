"""What a tier keeps: the shipped `policy.evict` beside LRU, S3-FIFO, ARC, SIEVE, GDSF and the farthest next use.

    python bench/evict.py [--workload NAME] [--traces ../shared/data/traces] [--json]

Replays requests through a tier of each size and counts the prompt tokens in leading blocks that were there. Workloads:
Mooncake's two public traces; made-up conversations and agents with tool calls; and both traces at once as two models
that share a tier. Then a DRAM tier over a disk of append-only segments, with several rules for what is written and
what is written again; and what pins do for agents. About three minutes of CPU for all. Without the traces only the
made-up one runs.
"""

from __future__ import annotations

import argparse
import enum
import gc
import heapq
import json
import random
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jevons.policy.evict import Evictor
from jevons.policy.pins import Pins
from jevons.twin.workload import MOONCAKE_BLOCK, read_trace

TRACES = Path(__file__).parents[2] / "shared/data/traces"
TRACE_FILES = {"conversation": "mooncake_conversation_trace.jsonl", "synthetic": "mooncake_synthetic_trace.jsonl"}
SIZES = (64, 16, 8, 4, 2)  # the tier is one part in so many of all distinct blocks
NEVER = 1 << 60

# An H100 SXM multiplies 989 TFLOP/s in bf16 (NVIDIA's data sheet). GUESS: half of it is reached; it cancels in shares.
FLOP_PER_S = 989e12 / 2


@dataclass(frozen=True)
class Model:
    """What a block costs: 2 FLOP a parameter and token; 4 · layers · heads · head_dim a token and token before it."""

    token_flop: float
    token_context_flop: float
    token_bytes: int  # 2 · layers · kv_heads · head_dim · 2 bytes

    @property
    def block_bytes(self) -> int:
        return MOONCAKE_BLOCK * self.token_bytes

    def seconds(self, start: int, tokens: int) -> float:
        """To compute `tokens` that have `start` tokens before them."""
        context = start + tokens / 2
        return tokens * (self.token_flop + context * self.token_context_flop) / FLOP_PER_S


# Shapes from the models' config.json.
LLAMA_70B = Model(2 * 70.6e9, 4 * 80 * 64 * 128, 327_680)
LLAMA_8B = Model(2 * 8.03e9, 4 * 32 * 32 * 128, 131_072)


class Request(NamedTuple):
    at_s: float
    tokens: int
    blocks: Sequence[int]  # the full blocks of its prompt: only full blocks are ever stored
    model: Model = LLAMA_70B
    keep_s: float = 0.0  # the client's hint that it will be back within so long
    returns: bool = False  # the one before it gave such a hint


# --- workloads ---------------------------------------------------------------------------------------------------


def mooncake(path: Path, model: Model = LLAMA_70B, stretch: float = 1.0, first_id: int = 0) -> list[Request]:
    """A trace of Mooncake (FAST'25), as slow as `stretch`."""
    return [
        Request(
            row.at_s * stretch,
            row.input_tokens,
            [first_id + id for id in row.hash_ids[: row.input_tokens // MOONCAKE_BLOCK]],
            model,
        )
        for row in read_trace(path)
    ]


def endless_share(path: Path) -> float:
    """Prompt tokens served if nothing is ever given up, blocks that are not full included, as others count it."""
    seen: set[int] = set()
    served = tokens = 0
    for row in read_trace(path):
        leading = next((i for i, id in enumerate(row.hash_ids) if id not in seen), len(row.hash_ids))
        served += min(row.input_tokens, leading * MOONCAKE_BLOCK)
        tokens += row.input_tokens
        seen.update(row.hash_ids)
    return served / tokens


def two_models(traces: Path) -> list[Request]:
    """The conversations on a small model, the synthetic trace, slowed to the same hour, on a large one."""
    small = mooncake(traces / TRACE_FILES["conversation"], LLAMA_8B)
    large = mooncake(traces / TRACE_FILES["synthetic"], LLAMA_70B, stretch=3.4, first_id=1 << 40)
    return sorted(small + large, key=lambda r: r.at_s)


def made_up(sessions: int = 800, seed: int = 0) -> list[Request]:
    """Sessions that start every 2 s with one of 12 system prompts. 60 % are people: some begin with a document, then
    think for a minute or so between turns. 40 % are agents: a tool call takes seconds, one in ten minutes. Before those
    an agent says that it will be back within 10 minutes.
    """
    draw = random.Random(seed)
    ids = iter(range(NEVER))
    systems = [[next(ids) for _ in range(draw.randint(1, 8))] for _ in range(12)]
    popularity = [1 / (i + 1) for i in range(12)]
    requests, start_s = [], 0.0
    for _ in range(sessions):
        start_s += draw.expovariate(0.5)
        system = draw.choices(systems, popularity)[0]
        requests += _session(draw, ids, system, start_s)
    return sorted(requests, key=lambda r: r.at_s)


def _session(draw: random.Random, ids: Iterable[int], system: list[int], now_s: float) -> list[Request]:
    agent = draw.random() < 0.4
    blocks, tokens = list(system), len(system) * MOONCAKE_BLOCK
    if not agent and draw.random() < 0.3:
        tokens += int(draw.lognormvariate(9.0, 0.8))  # a document
    requests: list[Request] = []
    returns = False
    for _ in range(1 + min(60, int(draw.expovariate(1 / 14 if agent else 1 / 5)))):
        tokens += int(draw.lognormvariate(6.5 if agent else 5.5, 1.0))  # a tool's result, a question
        if tokens > 60_000:
            break
        blocks = blocks + [id for _, id in zip(range(tokens // MOONCAKE_BLOCK - len(blocks)), ids, strict=False)]
        long_call = agent and draw.random() < 0.1
        requests.append(Request(now_s, tokens, blocks, keep_s=600.0 if long_call else 0.0, returns=returns))
        tokens += int(draw.lognormvariate(5.5, 0.7))  # the answer
        now_s += draw.lognormvariate(1.5, 1.2) if agent else draw.lognormvariate(4.3, 1.0)
        now_s += draw.lognormvariate(5.0, 1.0) if long_call else 0.0
        returns = long_call
    return requests


# --- policies to compare with ------------------------------------------------------------------------------------

IsKept = Callable[[int], bool]


class Cache(Protocol):
    """What `Evictor` is to a tier."""

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None: ...
    def hit(self, key: int, now_s: float) -> None: ...
    def victim(self, is_kept: IsKept, now_s: float) -> int | None: ...


def _oldest(queue: OrderedDict[int, Any], is_kept: IsKept) -> int | None:
    return next((key for key in queue if not is_kept(key)), None)


class Lru:
    """Least recently used."""

    def __init__(self) -> None:
        self._queue: OrderedDict[int, None] = OrderedDict()

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        self._queue[key] = None

    def hit(self, key: int, now_s: float) -> None:
        self._queue.move_to_end(key)

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        key = _oldest(self._queue, is_kept)
        if key is not None:
            del self._queue[key]
        return key


class Sieve:
    """Zhang et al., NSDI'24: a hand goes from old to new over a FIFO and spares what was used since it came by."""

    def __init__(self) -> None:
        self._ahead: OrderedDict[int, None] = OrderedDict()  # of the hand
        self._behind: OrderedDict[int, None] = OrderedDict()
        self._used: set[int] = set()

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        self._ahead[key] = None

    def hit(self, key: int, now_s: float) -> None:
        self._used.add(key)

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        for _ in range(2 * (len(self._ahead) + len(self._behind))):
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            key, _ = self._ahead.popitem(last=False)
            if not is_kept(key) and key not in self._used:
                return key
            self._behind[key] = None
            if not is_kept(key):
                self._used.discard(key)
        return None


class S3Fifo:
    """Yang et al., SOSP'23: a small FIFO for what is new, a main one with second chances, ghosts between them."""

    def __init__(self, blocks: int, small_share: float = 0.1) -> None:
        self._blocks = blocks
        self._small_blocks = small_share * blocks
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        (self._main if key in self._ghosts else self._small)[key] = None
        self._ghosts.pop(key, None)
        self._uses[key] = 0

    def hit(self, key: int, now_s: float) -> None:
        self._uses[key] = min(3, self._uses[key] + 1)

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        kept: list[tuple[OrderedDict[int, None], int]] = []
        victim = None
        while victim is None and (self._small or self._main):
            small = bool(self._small) and (len(self._small) >= self._small_blocks or not self._main)
            queue = self._small if small else self._main
            key, _ = queue.popitem(last=False)
            if is_kept(key):
                kept.append((queue, key))
            elif self._uses[key]:
                self._main[key] = None
                self._uses[key] = 0 if small else self._uses[key] - 1
            else:
                victim = key
                del self._uses[key]
                if small:
                    _remember(self._ghosts, key, self._blocks)
        for queue, key in reversed(kept):
            queue[key] = None
            queue.move_to_end(key, last=False)
        return victim


class Arc:
    """Megiddo & Modha, FAST'03: once used against used again, the split moved by hits on ghosts of either."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._target = 0.0  # of `once`
        self._once, self._again, self._once_ghosts, self._again_ghosts = (
            OrderedDict[int, None](),
            OrderedDict[int, None](),
            OrderedDict[int, None](),
            OrderedDict[int, None](),
        )

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        b1, b2 = len(self._once_ghosts), len(self._again_ghosts)
        if key in self._once_ghosts:
            self._target = min(self._blocks, self._target + max(1.0, b2 / b1))
            del self._once_ghosts[key]
            self._again[key] = None
        elif key in self._again_ghosts:
            self._target = max(0.0, self._target - max(1.0, b1 / b2))
            del self._again_ghosts[key]
            self._again[key] = None
        else:
            self._once[key] = None

    def hit(self, key: int, now_s: float) -> None:
        self._once.pop(key, None)
        self._again[key] = None
        self._again.move_to_end(key)

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        sides = [(self._once, self._once_ghosts), (self._again, self._again_ghosts)]
        if len(self._once) <= self._target:
            sides.reverse()
        for queue, ghosts in sides:
            key = _oldest(queue, is_kept)
            if key is not None:
                del queue[key]
                room = self._blocks - len(self._once) if queue is self._once else self._blocks
                _remember(ghosts, key, max(1, room))
                return key
        return None


class Ranked:
    """Gives up the block of the lowest rank."""

    def __init__(self) -> None:
        self._rank: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._turn = 0

    def put(self, key: int, rank: float) -> None:
        self._turn += 1  # of equal ranks the one put first
        self._rank[key] = (rank, self._turn)
        heapq.heappush(self._heap, (rank, self._turn, key))

    def take(self, is_kept: IsKept) -> tuple[float, int] | None:
        """Rank and key of the lowest that is not kept."""
        kept: list[tuple[float, int, int]] = []
        found = None
        while self._heap and found is None:
            rank, turn, key = heapq.heappop(self._heap)
            if self._rank.get(key) != (rank, turn):
                continue  # put again since
            if is_kept(key):
                kept.append((rank, turn, key))
            else:
                del self._rank[key]
                found = (rank, key)
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found


class Gdsf:
    """Cherkasova, HPL-98-69R1: clock + uses · worth / size, the clock being the rank of the last victim."""

    def __init__(self) -> None:
        self._ranked = Ranked()
        self._clock = 0.0
        self._value: dict[int, tuple[int, float]] = {}  # uses, worth / size

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        self._value[key] = (0, worth_s / size_bytes)
        self.hit(key, now_s)

    def hit(self, key: int, now_s: float) -> None:
        uses, density = self._value[key]
        self._value[key] = (uses + 1, density)
        self._ranked.put(key, self._clock + (uses + 1) * density)

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        found = self._ranked.take(is_kept)
        if found is None:
            return None
        self._clock, key = found
        del self._value[key]
        return key


class FarthestNextUse:
    """Knows the future (Belady 1966), and gives up at once what comes back later than all else: how much is left."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._ranked = Ranked()
        self._uses: defaultdict[int, deque[int]] = defaultdict(deque)
        for turn, request in enumerate(requests):
            for block in request.blocks:
                self._uses[block].append(turn)

    def insert(self, key: int, size_bytes: int, worth_s: float, now_s: float) -> None:
        self.hit(key, now_s)

    def hit(self, key: int, now_s: float) -> None:
        uses = self._uses[key]
        uses.popleft()
        self._ranked.put(key, -(uses[0] if uses else NEVER))

    def victim(self, is_kept: IsKept, now_s: float) -> int | None:
        found = self._ranked.take(lambda key: False)
        return None if found is None else found[1]


def _remember(ghosts: OrderedDict[int, None], key: int, at_most: int) -> None:
    ghosts[key] = None
    while len(ghosts) > at_most:
        ghosts.popitem(last=False)


class Worth(enum.Enum):
    """What a block's worth counts."""

    EQUAL = enum.auto()  # nothing: all bytes are worth the same
    MODEL = enum.auto()  # what its model computes for it when it begins a prompt
    DEPTH = enum.auto()  # … and attention to all tokens before it

    def seconds(self, model: Model, depth: int) -> float:
        """Of the block that has `depth` blocks before it."""
        if self is Worth.EQUAL:
            return float(model.block_bytes)
        return model.seconds(depth * MOONCAKE_BLOCK if self is Worth.DEPTH else 0, MOONCAKE_BLOCK)


class Candidate(NamedTuple):
    """One row of the comparison."""

    name: str
    make: Callable[[Sequence[Request], int], Cache]  # from the requests and the tier's blocks
    worth: Worth = Worth.MODEL
    head_first: bool = False  # whether a prompt's blocks are given first to last
    second_offer: bool = False  # whether only what was offered before is taken
    in_mix: bool = True  # whether it is tried where two models share a tier


SHIPPED = Candidate("**shipped**", lambda requests, blocks: Evictor())
CANDIDATES = (
    Candidate("LRU", lambda requests, blocks: Lru()),
    Candidate("LRU, head first", lambda requests, blocks: Lru(), head_first=True, in_mix=False),
    Candidate("SIEVE", lambda requests, blocks: Sieve(), in_mix=False),
    Candidate("S3-FIFO, small 10 %", lambda requests, blocks: S3Fifo(blocks), in_mix=False),
    Candidate("S3-FIFO, small 50 %", lambda requests, blocks: S3Fifo(blocks, 0.5), in_mix=False),
    Candidate("ARC", lambda requests, blocks: Arc(blocks)),
    Candidate("GDSF", lambda requests, blocks: Gdsf()),
    SHIPPED,
    Candidate("shipped, worth by depth", lambda requests, blocks: Evictor(), Worth.DEPTH, in_mix=False),
    Candidate("shipped, worth ignored", lambda requests, blocks: Evictor(), Worth.EQUAL),
    Candidate("shipped, second offer", lambda requests, blocks: Evictor(), second_offer=True, in_mix=False),
    Candidate("farthest next use", lambda requests, blocks: FarthestNextUse(requests), in_mix=False),
)


# --- replays -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What one replay found."""

    tokens: int = 0
    served_tokens: int = 0
    seconds: float = 0.0  # to compute every prompt whole
    saved_s: float = 0.0
    served_bytes: int = 0
    written_bytes: int = 0
    touches: int = 0
    cpu_s: float = 0.0

    def serve(self, request: Request, leading: int) -> None:
        """The request found its first `leading` blocks."""
        served = leading * MOONCAKE_BLOCK
        self.tokens += request.tokens
        self.served_tokens += served
        self.seconds += request.model.seconds(0, request.tokens)
        self.saved_s += request.model.seconds(0, served)
        self.served_bytes += leading * request.model.block_bytes
        self.touches += len(request.blocks)

    def row(self) -> dict[str, float]:
        return {
            "served": self.served_tokens / self.tokens,
            "saved": self.saved_s / self.seconds,
            "written": self.written_bytes / max(1, self.served_bytes),
            "us": 1e6 * self.cpu_s / self.touches,
        }


class Replay:
    """One tier of `size_bytes`, driven as the tier's state machine would."""

    def __init__(self, candidate: Candidate, cache: Cache, size_bytes: int, pins: Pins[int] | None = None) -> None:
        self._candidate = candidate
        self._cache = cache
        self._size_bytes = size_bytes
        self._pins = pins
        self._offered: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, int] = {}  # bytes of each block
        self._held_bytes = 0
        self.tally = Tally()

    def play(self, request: Request) -> int:
        """Returns how many leading blocks were there."""
        held, blocks = self._held, request.blocks
        leading = next((i for i, block in enumerate(blocks) if block not in held), len(blocks))
        self.tally.serve(request, leading)
        depths = range(len(blocks)) if self._candidate.head_first else range(len(blocks) - 1, -1, -1)
        missing = [depth for depth in depths if blocks[depth] not in held]
        for depth in depths:
            if blocks[depth] in held:
                self._cache.hit(blocks[depth], request.at_s)
        self._write(request, missing)
        return leading

    def _write(self, request: Request, missing: Sequence[int]) -> None:
        size = request.model.block_bytes
        is_kept = self._is_kept(request)
        written = [depth for depth in missing if self._admits(request.blocks[depth])]
        for depth in written:
            worth_s = self._candidate.worth.seconds(request.model, depth)
            self._cache.insert(request.blocks[depth], size, worth_s, request.at_s)
            self._held[request.blocks[depth]] = size
            self._held_bytes += size
            while self._held_bytes > self._size_bytes:
                victim = self._cache.victim(is_kept, request.at_s)
                assert victim is not None, "a tier must hold one prompt"
                self._held_bytes -= self._held.pop(victim)
                if self._pins is not None:
                    self._pins.drop(victim)
        self.tally.written_bytes += size * sum(request.blocks[depth] in self._held for depth in written)

    def _is_kept(self, request: Request) -> IsKept:
        own, pins = frozenset(request.blocks), self._pins
        if pins is None:
            return own.__contains__
        return lambda block: block in own or pins.is_kept(block, request.at_s)

    def _admits(self, block: int) -> bool:
        if not self._candidate.second_offer or block in self._offered:
            return True
        _remember(self._offered, block, 2 * len(self._held) + 1000)
        return False


def unique_bytes(requests: Sequence[Request]) -> int:
    return sum({block: r.model.block_bytes for r in requests for block in r.blocks}.values())


def replay(requests: Sequence[Request], candidate: Candidate, size_bytes: int) -> Tally:
    blocks = size_bytes * len(requests) // sum(r.model.block_bytes for r in requests)
    run = Replay(candidate, candidate.make(requests, blocks), size_bytes)
    began = time.process_time()
    for request in requests:
        run.play(request)
    run.tally.cpu_s = time.process_time() - began
    return run.tally


# --- disk --------------------------------------------------------------------------------------------------------


class Segments:
    """A disk of append-only segments: to make room the oldest goes whole, and what was used is appended again."""

    def __init__(self, blocks: int, segments: int = 32) -> None:
        self._segment_blocks = max(1, blocks // segments)
        self._segments = segments
        self._full: deque[list[int]] = deque()
        self._open: list[int] = []
        self._used: dict[int, bool] = {}  # since it was written
        self.appended = 0

    def __contains__(self, block: int) -> bool:
        return block in self._used

    def use(self, block: int) -> None:
        if block in self._used:
            self._used[block] = True

    def append(self, block: int) -> None:
        while len(self._open) >= self._segment_blocks:
            self._full.append(self._open)
            self._open = []
            if len(self._full) == self._segments:
                self._recycle(self._full.popleft())
        self._open.append(block)
        self._used[block] = False
        self.appended += 1

    def _recycle(self, segment: Sequence[int]) -> None:
        for block in segment:
            if self._used.pop(block):
                self._open.append(block)
                self._used[block] = False
                self.appended += 1


class FifoSegments(Segments):
    """… and nothing is appended again."""

    def use(self, block: int) -> None:
        pass


class PerBlock:
    """What the shipped policy would keep if a disk could give up single blocks."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._evictor: Evictor[int] = Evictor()
        self._now_s = 0.0
        self.appended = 0

    def __contains__(self, block: int) -> bool:
        return block in self._evictor

    def use(self, block: int) -> None:
        self._now_s += 1e-3  # the order of use is all it needs
        if block in self._evictor:
            self._evictor.hit(block, self._now_s)

    def append(self, block: int) -> None:
        if len(self._evictor) >= self._blocks:
            self._evictor.victim(lambda key: False, self._now_s)
        self._evictor.insert(block, 1, 1.0, self._now_s)
        self.appended += 1


class DiskRule(NamedTuple):
    """What is written to disk, and when a copy there counts as used."""

    name: str
    disk: Callable[[int], Segments | PerBlock] = Segments
    written: str = (
        "leaving"  # "computed": at once; "leaving": what DRAM gives up; "again": … if it was used again there
    )
    any_use: bool = True  # a use served from DRAM counts for the copy on disk too


DISK_RULES = (
    DiskRule("FIFO: nothing appended again", FifoSegments),
    DiskRule("used since written: read from disk", any_use=False),
    DiskRule("used since written: by anyone"),
    DiskRule("… and written when computed", written="computed"),
    DiskRule("… and written if used again in DRAM", written="again"),
    DiskRule("the shipped policy, block by block", PerBlock),
)


class TwoTiers:
    """DRAM under the shipped policy, and a disk that gets what `rule` says. All blocks are of one size."""

    def __init__(self, rule: DiskRule, dram_blocks: int, disk_blocks: int) -> None:
        self._rule = rule
        self._dram_blocks = dram_blocks
        self._dram: Evictor[int] = Evictor()
        self._again: set[int] = set()  # blocks in DRAM that were used again
        self._disk = rule.disk(disk_blocks)
        self.tokens = 0
        self.dram_hits = 0
        self.disk_hits = 0

    def play(self, request: Request) -> None:
        self.tokens += request.tokens
        from_disk = set()
        for block in request.blocks:
            if block in self._dram:
                self.dram_hits += 1
            elif block in self._disk:
                self.disk_hits += 1
                from_disk.add(block)
                self._disk.use(block)
            else:
                break
        for block in reversed(request.blocks):
            self._touch(block, block in from_disk, request)

    def _touch(self, block: int, from_disk: bool, request: Request) -> None:
        if self._rule.any_use:
            self._disk.use(block)
        if block in self._dram:
            self._dram.hit(block, request.at_s)
            self._again.add(block)
            return
        self._dram.insert(block, 1, 1.0, request.at_s)
        if from_disk:
            self._again.add(block)
        if self._rule.written == "computed" and block not in self._disk:
            self._disk.append(block)
        if len(self._dram) > self._dram_blocks:
            self._demote(self._dram.victim(frozenset(request.blocks).__contains__, request.at_s))

    def _demote(self, block: int | None) -> None:
        assert block is not None, "DRAM must hold one prompt"
        wanted = self._rule.written == "leaving" or (self._rule.written == "again" and block in self._again)
        self._again.discard(block)
        if wanted and block not in self._disk:
            self._disk.append(block)

    def row(self) -> dict[str, float]:
        return {
            "dram": self.dram_hits * MOONCAKE_BLOCK / self.tokens,
            "disk": self.disk_hits * MOONCAKE_BLOCK / self.tokens,
            "written": self._disk.appended / max(1, self.disk_hits),
        }


def disk_table(requests: Sequence[Request]) -> dict[str, dict[str, float]]:
    """DRAM of 1/16 of all distinct blocks, a disk of 1/4."""
    blocks = len({block for r in requests for block in r.blocks})
    rows = {}
    for rule in DISK_RULES:
        tiers = TwoTiers(rule, blocks // 16, blocks // 4)
        for request in requests:
            tiers.play(request)
        rows[rule.name] = tiers.row()
    return rows


# --- pins --------------------------------------------------------------------------------------------------------


def pin_table(requests: Sequence[Request]) -> dict[str, dict[str, float]]:
    """Prompts with a hint pinned, in up to a share of the tier: prompt tokens served to who returns, and to others."""
    rows = {}
    for part in SIZES[1:4]:
        for share in (0.0, 0.25, 0.5):
            pins: Pins[int] = Pins(int(share * unique_bytes(requests) / part))
            rows[f"1/{part}, pins up to {share:.0%}"] = _pinned(requests, unique_bytes(requests) // part, pins)
    return rows


def _pinned(requests: Sequence[Request], size_bytes: int, pins: Pins[int]) -> dict[str, float]:
    run = Replay(SHIPPED, Evictor(), size_bytes, pins)
    served, tokens = {True: 0, False: 0}, {True: 0, False: 0}
    asked = 0
    for request in requests:
        served[request.returns] += run.play(request) * MOONCAKE_BLOCK
        tokens[request.returns] += request.tokens
        if request.keep_s:
            asked += len(request.blocks)
            pins.keep(request.blocks, request.model.block_bytes, request.at_s + request.keep_s, request.at_s)
    return {
        "pinned of asked": 1 - pins.refused / asked,
        "served to who returns": served[True] / tokens[True],
        "to others": served[False] / tokens[False],
        "to all": sum(served.values()) / sum(tokens.values()),
    }


# --- report ------------------------------------------------------------------------------------------------------


def policy_table(requests: Sequence[Request]) -> dict[str, dict[str, dict[str, float]]]:
    """Candidate → size → what `Tally.row` says."""
    whole = unique_bytes(requests)
    mix = len({r.model for r in requests}) > 1
    # Where all blocks are worth the same, ignoring worth changes nothing.
    chosen = [c for c in CANDIDATES if (c.in_mix if mix else c.worth is not Worth.EQUAL)]
    rows = {c.name: {f"1/{part}": replay(requests, c, whole // part).row() for part in SIZES} for c in chosen}
    rows["infinite tier"] = {"1/1": replay(requests, SHIPPED, whole).row()}
    return rows


def report(name: str, record: dict[str, Any]) -> None:
    print(f"\n## {name}\n\n{record['about']}")
    for column, what in COLUMNS.items():
        print(f"\n{what}\n\n| | {' | '.join(f'1/{part}' for part in SIZES)} |\n|---|{'---|' * len(SIZES)}")
        for candidate, sizes in record["policies"].items():
            if len(sizes) == len(SIZES):
                print(f"| {candidate} | {' | '.join(FORMATS[column].format(row[column]) for row in sizes.values())} |")
    for title, key in (("DRAM of 1/16 over a disk of 1/4", "disk"), ("Pins", "pins")):
        if rows := record.get(key):
            heads = next(iter(rows.values()))
            print(f"\n{title}\n\n| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
            for row, cells in rows.items():
                print(f"| {row} | {' | '.join(f'{value:.3f}' for value in cells.values())} |")


COLUMNS = {
    "served": "Prompt tokens served, %",
    "saved": "Recompute seconds saved, % of computing every prompt whole",
    "written": "Bytes written for each byte served",
    "us": "CPU µs a block touched, the replay's own bookkeeping included",
}
FORMATS = {"served": "{:.1%}", "saved": "{:.1%}", "written": "{:.2f}", "us": "{:.1f}"}


def measure(requests: Sequence[Request]) -> dict[str, Any]:
    blocks = len({block for r in requests for block in r.blocks})
    policies = policy_table(requests)
    endless = policies["infinite tier"]["1/1"]
    record: dict[str, Any] = {
        "about": f"{len(requests):,} requests, {blocks:,} distinct full blocks of {MOONCAKE_BLOCK} tokens. An infinite "
        f"tier serves {endless['served']:.1%} of the prompt tokens and saves {endless['saved']:.1%} of the seconds.",
        "policies": policies,
    }
    if len({r.model for r in requests}) == 1:
        record["disk"] = disk_table(requests)
    if any(r.keep_s for r in requests):
        record["pins"] = pin_table(requests)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--workload", choices=("conversation", "synthetic", "made-up", "two models"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    gc.disable()  # nothing here is cyclic, and a collection walks millions of entries
    workloads: dict[str, Callable[[], list[Request]]] = {
        **{name: partial(mooncake, args.traces / file) for name, file in TRACE_FILES.items()},
        "made-up": made_up,
        "two models": partial(two_models, args.traces),
    }
    for name, load in workloads.items():
        if args.workload not in (None, name):
            continue
        if name != "made-up" and not args.traces.is_dir():
            print(f"{name}: skipped, needs the traces at {args.traces}, which are not part of the project")
            continue
        record = measure(load())
        if name in TRACE_FILES:
            share = endless_share(args.traces / TRACE_FILES[name])
            record["about"] += f" With blocks that are not full it would serve {share:.2%}."
        print(json.dumps({name: record})) if args.json else report(name, record)


if __name__ == "__main__":
    main()
