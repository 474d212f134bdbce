"""Affinities that no index of blocks tells of: where a session was last, who serves an adapter, and has it loaded."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jevons.base.ids import WorkerId

MOST_SESSIONS = 65_536  # remembered; the one unused for longest is forgotten first
# Adapters that an engine has room for beside each other, until it tells: vLLM's default of `max_loras`.
DEFAULT_SLOTS = 1
# To bring an adapter from the host's memory to the device: GUESS, 100 MB in hundreds of small copies.
GUESS_ADAPTER_LOAD_S = 0.05


class Last(NamedTuple):
    """Where a session was last."""

    worker: WorkerId
    life: int  # of that worker: what it held is lost with it
    tokens: int  # of its conversation, prompt and answer


class Sessions:
    """Where each session was last, the latest `most`."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._last: OrderedDict[str, Last] = OrderedDict()

    def note(self, session: str, last: Last) -> None:
        """It is there now; "" is no session."""
        if session:
            self._last[session] = last
            self._last.move_to_end(session)
            if len(self._last) > self._most:
                self._last.popitem(last=False)

    def last(self, session: str) -> Last | None:
        """None where it is new, or forgotten."""
        return self._last.get(session)


class Bases:
    """Of which model each adapter is, as long as a worker serves it."""

    def __init__(self) -> None:
        self._models: dict[str, Counter[str]] = {}  # of each adapter: workers that serve it, by their model

    def count(self, model: str, adapters: Collection[str], change: int) -> None:
        """A worker of this model serves these from now on (1), or no more (-1)."""
        for name in adapters:
            models = self._models.setdefault(name, Counter())
            models[model] += change
            if not models[model]:
                del models[model]
            if not models:
                del self._models[name]

    def model_of(self, adapter: str) -> str | None:
        """None: nobody serves it. Of several the one that was told last and is served still."""
        models = self._models.get(adapter)
        return None if models is None else next(reversed(models))


class Adapters:
    """Those of a worker's model that it serves, and which of them it has loaded: the last used, as many as fit."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self._slots = DEFAULT_SLOTS
        self._loaded: OrderedDict[str, None] = OrderedDict()  # the last used is last

    @property
    def loaded(self) -> list[str]:
        return list(self._loaded)

    def use(self, name: str) -> None:
        """A request for it goes there."""
        self._loaded[name] = None
        self._loaded.move_to_end(name)
        while len(self._loaded) > self._slots:
            self._loaded.popitem(last=False)

    def tell(self, running: Sequence[str], slots: int) -> None:
        """The worker says which run, and how many have room."""
        self._slots = max(slots, 1)
        for name in running:
            self.use(name)

    def load_s(self, name: str) -> float:
        """Seconds until it is loaded."""
        return 0.0 if name in self._loaded else GUESS_ADAPTER_LOAD_S
