"""Who may take a prompt, and what of it each has, or would bring from its host's memory or its node's tiers.

the index, the least busy ──▶ candidates ──▶ the last of its session ──▶ other tiers and groups ──▶ a node's tiers
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Any, NamedTuple

from jevons.base.ids import WorkerId
from jevons.control.affinity import Last
from jevons.control.board import APART, WHOLE
from jevons.control.book import Book
from jevons.control.ledger import Member, NodeTiers, Prompt
from jevons.facts.block import Tier
from jevons.facts.worker import IndexMode
from jevons.kv.groups import names_in
from jevons.policy.belief import confidence
from jevons.policy.route import KV
from jevons.policy.source import NOTHING, Compute, Plan, Supply, plan

# What an attached engine loads from its host's memory is not told in bytes: GUESS, Llama-3.1-8B's, in 16 bits. What is
# learned of how long it takes makes up for it.
GUESS_TOKEN_BYTES = 131_072


class Wish(NamedTuple):
    """Where a prompt may go."""

    prompt: Prompt
    model: str | None
    avoid: Collection[WorkerId]
    last: Last | None  # where its session was


class Crew(NamedTuple):
    """Those whom a router knows; it keeps them up to date."""

    workers: dict[WorkerId, Member]
    members: dict[int, Member]  # by number
    resorts: dict[WorkerId, Member]  # suspects and stalled ones
    nodes: dict[str, NodeTiers]


class Candidates:
    """Puts them on the desks of a book.

    Args:
        policy: see `policy.route`.
    """

    def __init__(self, book: Book, policy: int, crew: Crew) -> None:
        self._book = book
        self._is_kv = policy == KV
        self._crew = crew
        self._chunks = {1}  # blocks that engines keep as one in their hosts' memory; those few sizes that were seen

    def both(self, wish: Wish) -> tuple[int, int]:
        """Candidates of both desks, how many of each: of those that are up, else of suspects and stalled ones, for work
        on a slow worker beats none at all. Where somebody is up who may do all of a request, no suspect computes its
        prompt."""
        whole, apart = self._gather_up(WHOLE, wish), self._gather_up(APART, wish)
        if whole:
            return whole, apart
        return self._gather_late(WHOLE, wish), apart or self._gather_late(APART, wish)

    def gather(self, desk: int, wish: Wish) -> int:
        """As `both`, of one desk."""
        return self._gather_up(desk, wish) or self._gather_late(desk, wish)

    def _gather_late(self, desk: int, wish: Wish) -> int:
        """Of suspects and stalled ones."""
        suspects = [
            worker.number for id, worker in self._crew.resorts.items() if worker.desk == desk and id not in wish.avoid
        ]
        self._book.set_all_up(suspects, True)
        count = self._gather_up(desk, wish) if suspects else 0
        self._book.set_all_up(suspects, False)
        return count

    def _gather_up(self, desk: int, wish: Wish) -> int:
        if not self._book.block_sizes(wish.model, desk):
            return 0  # nobody of this kind ever joined
        count, prompt, model = 0, wish.prompt, wish.model
        if self._is_kv:
            for size in self._book.block_sizes(model, desk):
                count = self._book.gather(desk, count, prompt.names(size), model, size)
            count = self._recall(desk, count, wish)
            if self._book.beside:
                count = self._look_beside(desk, count, wish)
        else:
            worker = self._book.pick(desk, model)
            if worker >= 0:
                self._book.put_alone(desk, worker, prompt.names(self._crew.members[worker].block_size or 0))
                count = 1
        if any(len(node.holdings) for node in self._crew.nodes.values()):
            for candidate in self._book.candidates(desk, count):
                self._add_tiers(candidate, prompt)
        for candidate in self._book.candidates(desk, count) if prompt.adapter else ():
            candidate["bring_s"] += self._crew.members[int(candidate["worker"])].adapters.load_s(prompt.adapter)
        return count

    def _recall(self, desk: int, count: int, wish: Wish) -> int:
        """Where no index is known of the worker where its session was last, that is taken to hold what was said there.
        Returns how many candidates there are then."""
        worker = None if wish.last is None else self._crew.workers.get(wish.last.worker)
        if worker is None or wish.last is None or worker.life != wish.last.life:
            return count
        if worker.index_mode is not IndexMode.NONE or worker.desk != desk:
            return count
        if wish.model not in (None, worker.facts.model) or not self._book.hub["workers"][worker.number]["up"]:
            return count
        at, count = self._book.candidate_of(desk, count, worker.number)
        c = self._book.candidates(desk, count)[at]
        c["cached"] = max(int(c["cached"]), min(wish.last.tokens, len(wish.prompt.tokens) - 1))
        return count

    def _look_beside(self, desk: int, count: int, wish: Wish) -> int:
        """What their other tiers and groups of layers make of candidates, and who is one by these alone. Returns how
        many there are then."""
        sizes = self._book.block_sizes(wish.model, desk)
        for size, chunk in product(sizes, sorted(self._chunks)):
            found, _ = self._book.index.find(names_in(wish.prompt.names(size)[chunk - 1 :: chunk], Tier.DRAM))
            for number in found.tolist():
                if (
                    number >= 0
                    and self._may_take(self._crew.members[number], desk, size, wish)
                    and self._book.has_room(desk, count)
                ):
                    _, count = self._book.candidate_of(desk, count, number)
        rows = self._book.candidates(desk, count)
        for c, number, depth in zip(rows, rows["worker"].tolist(), rows["depth"].tolist(), strict=True):
            if number in self._book.beside:
                self._add_beside(c, self._crew.members[number], depth, wish.prompt)
        return count

    def _add_beside(self, c: Any, member: Member, depth: int, prompt: Prompt) -> None:
        """What its other tiers and groups make of a candidate of whom the followed one has `depth` blocks."""
        size = member.block_size or 0
        held, loaded = member.reach(prompt.names(size), depth)
        self._chunks.add(max(member.chunk_blocks, 1))
        if loaded == 0 and held == depth:
            return
        share = float(confidence(self._book.hub["workers"][member.number]))
        c["depth"], c["cached"] = held, int((held + loaded) * share + 0.5) * size
        if loaded:
            c["bring_s"] = member.learned.kin.loads.prices.seconds(loaded * size * GUESS_TOKEN_BYTES)

    def _may_take(self, worker: Member, desk: int, block_size: int, wish: Wish) -> bool:
        return (
            worker.desk == desk
            and worker.block_size == block_size
            and wish.model in (None, worker.facts.model)
            and bool(self._book.hub["workers"][worker.number]["up"])
        )

    def _add_tiers(self, candidate: Any, prompt: Prompt) -> None:
        """What it would bring from its node's tiers counts as cached, and is waited for."""
        worker = self._crew.members[int(candidate["worker"])]
        coming = self._from_tiers(worker, prompt, int(candidate["cached"]))
        if coming.blocks:
            assert worker.facts.pages is not None, "it brings blocks"
            candidate["cached"] += len(coming.blocks) * worker.facts.pages.block_size
            candidate["bring_s"] = coming.seconds if coming.wait_s else 0.0  # otherwise it computes meanwhile

    def _from_tiers(self, worker: Member, prompt: Prompt, held_tokens: int) -> Plan:
        """What `worker` would bring from its node's tiers, by the rule it goes by itself."""
        pages, holdings = worker.facts.pages, self._crew.nodes[worker.node].holdings
        if pages is None or not len(holdings):
            return NOTHING
        named = prompt.named(pages.block_size)
        names = named.hashes[: named.reusable]
        start = -(-held_tokens // pages.block_size)
        supply = Supply({tier: learned.prices for tier, learned in worker.moves.items()}, {})
        is_measured = worker.learned.samples > 0
        prices, step_tokens = worker.learned.prices, worker.facts.step_tokens
        compute = Compute(prices, step_tokens, pages.block_size, pages.size_bytes, is_measured)
        return plan(holdings.nearest(pages.fingerprint, names[start:]), start, supply, compute)
