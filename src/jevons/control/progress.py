"""One request's tokens: how far they are computed, named, and offered to the tiers."""

from __future__ import annotations

from typing import NamedTuple

from jevons.base.ids import BlockHash, BlockId
from jevons.control.restore import Coming, Pages, Restore
from jevons.facts.request import Work
from jevons.kv.hashing import chain, root
from jevons.perf.measured import Prices


class _Ahead(NamedTuple):
    """Pages offered before the step that fills them."""

    id: int
    first: int  # so many were offered before


class Progress:
    """A sequence of a batcher, which moves it on."""

    def __init__(self, work: Work, block_size: int) -> None:
        self.work = work
        self.tokens = [*work.prompt, *work.emitted]
        self.outputs = len(work.emitted)
        self.computed = 0
        self.table: list[BlockId] = []
        self.root = root(block_size, work.salt, work.adapter)
        self.names: list[BlockHash] = chain(self.tokens, block_size, self.root)
        self.sealed = 0  # blocks of `names` that are named in the pool
        self.cached_tokens: int | None = None  # reported once, from the first admission
        self.coming = Coming()
        self.offered = 0  # leading pages the tiers were offered, or gave
        self.saves: list[int] = []
        self._pages: list[BlockHash] = []  # what the tiers call them, as far as they are known
        self._ahead: _Ahead | None = None  # while a step runs

    @property
    def left(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def is_ahead(self) -> bool:
        """Whether pages are offered that the step under way fills."""
        return self._ahead is not None

    def page_names(self, restore: Restore) -> list[BlockHash]:
        """Names of the sequence's full pages."""
        if restore.page_blocks == 1:
            return self.names
        size, known = restore.page_tokens, len(self._pages)
        if known < len(self.tokens) // size:
            parent = self._pages[-1] if self._pages else root(size, self.work.salt, self.work.adapter)
            self._pages += chain(self.tokens[known * size :], size, parent)
        return self._pages

    def wanted(self, restore: Restore) -> list[BlockHash]:
        """The pages that the tiers may give: all but the one with the last token, which is always computed."""
        return self.page_names(restore)[: (len(self.tokens) - 1) // restore.page_tokens]

    def offer(self, restore: Restore, prices: Prices, now_s: float, *, is_computed: bool) -> None:
        """Offer full pages to the tiers, unless they came from there."""
        end = self.sealed // restore.page_blocks
        if self.offered >= end:
            return
        if is_computed:
            saving = restore.save(self._unoffered(restore, end), prices, now_s)
            if saving is not None:
                self.saves.append(saving)
        self.offered = end

    def offer_ahead(self, restore: Restore, computed: int, prices: Prices) -> None:
        """Offer the pages that are full once so many tokens are computed. `book_ahead` or `give_up_ahead` follows."""
        end = min(computed // restore.page_tokens, len(self.page_names(restore)))
        if self.offered < end:
            id = restore.save_ahead(self._unoffered(restore, end), prices)
            if id is not None:
                self._ahead, self.offered = _Ahead(id, self.offered), end

    def book_ahead(self, restore: Restore, now_s: float) -> None:
        """What was offered ahead is computed."""
        if self._ahead is not None:
            restore.computed(self._ahead.id, now_s)
            self.saves.append(self._ahead.id)
            self._ahead = None

    def give_up_ahead(self, restore: Restore) -> None:
        """What was offered ahead is not computed: it was never offered."""
        if self._ahead is not None:
            restore.give_up(self._ahead.id)
            self.offered = self._ahead.first
            self._ahead = None

    def _unoffered(self, restore: Restore, end: int) -> Pages:
        start, size = self.offered, restore.page_blocks
        return Pages(self.page_names(restore)[start:end], self.table[start * size : end * size], start, self.work.salt)
