"""What the router keeps: of each prompt, of each worker and what waits there, of each node's tiers."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import msgspec

from jevons.base.ids import BlockHash, RequestId
from jevons.control.intake import Intake
from jevons.control.shadow import SHADOW_BLOCK_SIZE, Shadow
from jevons.facts.snapshot import TierSnapshot
from jevons.facts.worker import IndexMode, WorkerFacts
from jevons.kv.hashing import block_hashes
from jevons.kv.index import PrefixIndex
from jevons.kv.tiers import Holdings
from jevons.perf.measured import GUESS_MOVES, Load, MoveSeconds, StepSeconds
from jevons.policy.route import Placement

HERE = ""  # the node the router runs on


class Placed(msgspec.Struct):
    """A request on its worker, until it is done."""

    placement: Placement
    prompt_tokens: int
    hashes: list[BlockHash]  # in the worker's block size
    placed_s: float
    ahead: Load  # queued before it, and its own part
    decoding: int  # sequences decoding when it was placed
    first_s: float | None = None
    cached_tokens: int | None = None


class _Named:
    """A prompt in blocks of one size, and how many leading ones each worker holds."""

    def __init__(self, tokens: Sequence[int], size: int, salt: str, index: PrefixIndex) -> None:
        self.hashes = block_hashes(tokens, size, salt)
        self.reusable = self.hashes[: (len(tokens) - 1) // size]  # the last token is always computed
        self.depths = index.overlaps(self.reusable)


class Prompt:
    """A prompt, cut into blocks of every size that is asked for, once."""

    def __init__(self, tokens: Sequence[int], salt: str, index: PrefixIndex) -> None:
        self.tokens = tokens
        self._salt = salt
        self._index = index
        self._named: dict[int, _Named] = {}

    def named(self, size: int) -> _Named:
        if size not in self._named:
            self._named[size] = _Named(self.tokens, size, self._salt, self._index)
        return self._named[size]


class Member:
    """What the router keeps of one worker."""

    def __init__(self, facts: WorkerFacts, node: str, index: PrefixIndex, shadow_ttl_s: float) -> None:
        self.facts = facts
        self.node = node
        self.intake = Intake(facts.id, index) if facts.sends_events else None
        self.shadow = None if facts.sends_events else Shadow(facts.id, index, shadow_ttl_s)
        self.learned = StepSeconds()
        self.moves = {tier: MoveSeconds(prior) for tier, prior in GUESS_MOVES.items()}
        self.reports_steps = False
        self.waiting: OrderedDict[RequestId, Load] = OrderedDict()  # prompt work placed and not yet computed
        self.queued = Load()  # the sum of `waiting`
        self.running: set[RequestId] = set()  # past their first token
        self.tier_counts: dict[str, int] = {}
        self.promised: set[RequestId] = set()  # running elsewhere until their first token, then here
        self._names: dict[RequestId, list[BlockHash]] = {}  # blocks of each of `waiting`
        self._coming: Counter[BlockHash] = Counter()  # how many of `waiting` will have computed a block

    @property
    def block_size(self) -> int | None:
        if self.shadow is not None:
            return SHADOW_BLOCK_SIZE
        assert self.intake is not None
        return self.intake.block_size or self.facts.block_size

    @property
    def index_mode(self) -> IndexMode:
        return IndexMode.APPROXIMATE if self.intake is None else self.intake.mode

    def wait(self, request: RequestId, load: Load, hashes: list[BlockHash]) -> None:
        self.waiting[request] = load
        self._names[request] = hashes
        self._coming.update(hashes)
        self._add(load, 1)

    def unwait(self, request: RequestId) -> None:
        load = self.waiting.pop(request, None)
        if load is None:
            return
        self._add(load, -1)
        coming = self._coming
        for name in self._names.pop(request):
            left = coming[name] - 1
            if left:
                coming[name] = left
            else:
                del coming[name]

    def will_hold(self, hashes: Sequence[BlockHash], depth: int, index: PrefixIndex) -> int:
        """Leading blocks of `hashes` that are here when what waits is computed; `depth` of them are here now."""
        while depth < len(hashes) and (hashes[depth] in self._coming or index.holds(self.facts.id, hashes[depth])):
            depth += 1
        return depth

    def computed(self, tokens: float) -> None:
        """That many prompt tokens were computed: they come off the oldest waiting requests, all but the last token
        (which the request's own first token takes off)."""
        for request, load in self.waiting.items():
            done = min(tokens, load.tokens - 1)
            if done <= 0:
                continue
            left = _share(load, 1 - done / load.tokens)
            self._add(load, -1)
            self._add(left, 1)
            self.waiting[request] = left
            tokens -= done
            if tokens <= 0:
                return

    def _add(self, load: Load, sign: int) -> None:
        self.queued = Load(
            tokens=max(0.0, self.queued.tokens + sign * load.tokens),
            token_context=max(0.0, self.queued.token_context + sign * load.token_context),
        )
        if not self.waiting:
            self.queued = Load()  # rounding must not pile up


class NodeTiers:
    """What is known of a node's tiers."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.state: TierSnapshot | None = None  # as their keeper told last

    def lost(self) -> None:
        """Their keeper is away."""
        self.holdings.clear()
        self.state = None


def _share(load: Load, part: float) -> Load:
    return Load(tokens=load.tokens * part, token_context=load.token_context * part)
