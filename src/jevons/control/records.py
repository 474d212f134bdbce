"""Events as records, taken the long way: what payloads of shapes that kernels do not know are decoded into.

What it does, kernels do too (`control.naming`), with the same results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby

from jevons.base.ids import BlockHash
from jevons.control.beside import FULL_KINDS, Beside
from jevons.facts.event import BlocksRemoved, BlocksStored, KvEvent
from jevons.kv.engine_names import EngineNames
from jevons.kv.hashing import chain, root
from jevons.kv.index import Holding


class Records:
    """What one source tells goes into its names, its holding and its counts."""

    def __init__(self, names: EngineNames, holding: Holding, beside: Beside, counts: Counter[str]) -> None:
        self.adapters: Mapping[int, str] = {}  # by the numbers that its engine has for them
        self._names = names
        self._holding = holding
        self._beside = beside
        self._counts = counts

    def adapter(self, name: str | None, number: int) -> str | None:
        """Whose blocks they are, "" the model's own; None: of a number that the engine's list does not tell. vLLM's
        numbers begin with 1."""
        return name or ("" if number < 1 else self.adapters.get(number))

    def in_order(self, events: list[KvEvent]) -> Iterator[KvEvent]:
        """Of those that store, one after another, the followed group's first: they tell tokens, and of a group with a
        window vLLM tells the names alone that it has kept, perhaps before."""
        for are_stored, alike in groupby(events, lambda event: isinstance(event, BlocksStored)):
            if not are_stored:
                yield from alike
                continue
            stored = [event for event in alike if isinstance(event, BlocksStored)]
            yield from sorted(stored, key=lambda event: self._beside.part(event) > 0)

    def stored(self, event: BlocksStored) -> str:
        """Returns what became of its blocks."""
        if self.adapter(event.adapter, event.adapter_number or 0) is None:
            self._counts["ignored_adapter"] += len(event.hashes)
            return "ignored_adapter"
        part = self._beside.part(event)
        if part:
            salt, extra = _salt_and_extra(event)
            self._counts.update(self._beside.stored(event, part, self._parent_of(event, salt, part), extra))
            return "stored_beside"
        reason = self._reject(event)
        if reason is not None:
            self._counts[reason] += len(event.hashes)
            return reason
        salt, extra = _salt_and_extra(event)
        parent = self._parent_of(event, salt)
        assert parent is not None, "or it is an orphan"
        ours = chain(event.tokens, event.block_size, parent, extra)
        for theirs, name in zip(event.hashes, ours, strict=True):
            self._names.put(theirs, name)
        self._holding.store(ours)
        self._names.hub.set("size", event.block_size)
        self._counts["stored"] += len(ours)
        return "stored"

    def _parent_of(self, event: BlocksStored, salt: str, part: int = 0) -> BlockHash | None:
        """What we call what blocks go on from; None: it is not known, or they are told without their size."""
        if event.parent is not None:
            return self._beside.known_as(event.parent, part)
        adapter = self.adapter(event.adapter, event.adapter_number or 0)
        return root(event.block_size, salt, adapter or "") if event.block_size > 0 else None

    def _reject(self, event: BlocksStored) -> str | None:
        """Why these blocks cannot serve as a prefix here, or None."""
        if event.medium not in (None, "GPU"):
            return "ignored_tier"
        if event.kind not in FULL_KINDS or not self._follows(event):
            return "ignored_group"
        if event.block_size < 1 or len(event.tokens) != len(event.hashes) * event.block_size:
            return "misshapen"
        if not all(0 <= token < 1 << 32 for token in event.tokens):
            return "misshapen"
        if event.extra is not None and len(event.extra) != len(event.hashes):
            return "misshapen"
        if event.block_size < self._names.hub.number("size"):
            return "partial"
        if event.parent is not None and self._beside.known_as(event.parent) is None:
            return "orphan"
        return None

    def _follows(self, event: BlocksStored) -> bool:
        """Whether the event is of the group that is followed: the first one said to keep all tokens."""
        if event.kind is not None and self._names.hub.number("group") < 0:
            self._names.hub.set("group", event.group)
        return bool(event.group == max(self._names.hub.number("group"), 0))

    def removed(self, event: BlocksRemoved) -> None:
        """One copy less of each of its blocks."""
        part = self._beside.part(event)
        if part:
            self._counts.update(self._beside.removed(event, part))
            return
        is_ignored = event.group != max(self._names.hub.number("group"), 0)
        if event.medium not in (None, "GPU") or is_ignored:
            reason = "ignored_tier" if event.medium not in (None, "GPU") else "ignored_group"
            self._counts[reason] += len(event.hashes)
            return
        gone: list[BlockHash] = []
        for theirs in event.hashes:
            ours = self._names.take(theirs)
            if ours is not None:
                gone.append(ours)
        self._holding.remove(gone)
        self._counts["removed"] += len(gone)
        self._counts["unknown_removed"] += len(event.hashes) - len(gone)


def _salt_and_extra(event: BlocksStored) -> tuple[str, list[bytes] | None]:
    """The salt of a prompt, and what makes each block differ besides tokens, salt and adapter: images, embeddings.

    The salt is the only text key of a prompt's first block, beside the adapter's name, which vLLM tells of every block.
    """
    if event.extra is None:
        return "", None
    keys = [_without_adapter(of_block, event.adapter) for of_block in event.extra]
    salt = ""
    if event.parent is None and keys and len(keys[0]) == 1 and isinstance(keys[0][0], str):
        salt = keys[0][0]
        keys[0] = []
    return salt, [repr(of_block).encode() if of_block else b"" for of_block in keys]


def _without_adapter(keys: list[object] | None, adapter: str | None) -> list[object]:
    return keys[1:] if keys and adapter and keys[0] == adapter else keys or []
