"""The other frontends of this port, as one of them sees them: what they place, and what they are asked."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from itertools import count

import msgspec

from jevons.control.sharing import SharingRouter
from jevons.facts.news import News
from jevons.wire.channel import Channel
from jevons.wire.gossip import ALL, HUB, LETTERS, Answer, Ask, Body, Everything, Letter, Page, Peers, Told, read, write

log = logging.getLogger("jevons.siblings")

# News go at once where none went for so long, else together then: a letter costs all frontends and the hub some 60 us.
# Who goes on with a conversation asks within a millisecond, maybe a frontend that still has its last turn as running.
PAUSE_S = 0.002
MOST_WAITING_BYTES = 8 << 20  # of letters the hub has not taken; news beyond that are lost, and noticed by their number
ASK_AGAIN_S = 1.0
MEET_S = 10.0  # the hub says at once who is there
OPEN = "open"  # what is under way at a sibling

Clock = Callable[[], float]


class _Awaited:
    """Answers to one question."""

    def __init__(self, whom: set[int]) -> None:
        self.whom = whom
        self.found: dict[int, bytes | None] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(self) -> None:
        """All that are still there may have answered."""
        if self.whom <= self.found.keys() and not self.done.done():
            self.done.set_result(None)


class Siblings:
    """One frontend's end of the line to its hub.

    Args:
        number: its own.
        now_s: a monotonic clock.
    """

    def __init__(self, number: int, now_s: Clock) -> None:
        self.number = number
        self.counts: Counter[str] = Counter()  # of letters, by fate
        self.answers: dict[str, Callable[[bytes], bytes | None]] = {}  # what others may ask, and who answers
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # the hub is gone: why
        self._now_s = now_s
        self._router: SharingRouter | None = None
        self._channel: Channel[Letter] = Channel(LETTERS, self._on_letter, self._on_lost)
        self.peers: set[int] = set()
        self._met = asyncio.Event()
        self._heard: dict[int, int] = {}  # the last letter of each, where none was missed
        self._asked_s: dict[int, float] = {}
        self._seq = 0
        self._flushed_s = -PAUSE_S  # by the loop's clock
        self._ids = count(1)
        self._awaited: dict[int, _Awaited] = {}

    async def connect(self, end: socket.socket) -> None:
        """Meet the others; `end` comes from `Hub.invite`."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, sock=end)
        async with asyncio.timeout(MEET_S):
            await self._met.wait()

    def share(self, router: SharingRouter) -> None:
        """From now on the others hear of what `router` does, and it of what they do."""
        self._router = router
        self._asked_s = dict.fromkeys(self.peers, self._now_s())
        self._post(ALL, Ask(0, OPEN))

    def on_news(self) -> None:
        """The router has news."""
        asyncio.get_running_loop().call_at(self._flushed_s + PAUSE_S, self._flush)

    async def ask(self, to: int, what: str, body: bytes = b"", timeout_s: float = 1.0) -> bytes | None:
        """What one sibling, or the hub, says; None: it does not know, or not in time."""
        return (await self._gather({to}, to, Ask(next(self._ids), what, body), timeout_s)).get(to)

    async def gather(self, what: str, body: bytes = b"", timeout_s: float = 1.0) -> dict[int, bytes]:
        """What all siblings that know say in time."""
        found = await self._gather(set(self.peers), ALL, Ask(next(self._ids), what, body), timeout_s)
        return {number: answer for number, answer in found.items() if answer is not None}

    def reassure(self) -> None:
        """Tell how many letters there were: the last of them may be lost, and nothing may follow it for long."""
        if self._router is not None and self._channel.backlog_bytes <= MOST_WAITING_BYTES:
            self._post(ALL, Told(self._seq, []))

    def keep_page(self, page: bytes) -> None:
        """What is counted here so far; the hub keeps it for when we are gone."""
        self._post(HUB, Page(page))

    def close(self) -> None:
        self._flush()
        self._channel.close_when_sent()

    def _flush(self) -> None:
        news = self._router.take_news() if self._router is not None else []
        if not news:
            return
        self._seq += 1
        self._flushed_s = asyncio.get_running_loop().time()
        if self._channel.backlog_bytes > MOST_WAITING_BYTES:
            self.counts["news_lost"] += len(news)
            return
        self._post(ALL, Told(self._seq, news))
        self.counts["news_told"] += len(news)

    def _post(self, to: int, body: Body) -> None:
        self._channel.send(write(self.number, to, body))

    async def _gather(self, whom: set[int], to: int, ask: Ask, timeout_s: float) -> dict[int, bytes | None]:
        if not whom:
            return {}
        self._awaited[ask.id] = awaited = _Awaited(whom)
        self._post(to, ask)
        try:
            async with asyncio.timeout(timeout_s):
                await awaited.done
        except TimeoutError:
            self.counts["answers_late"] += len(awaited.whom - awaited.found.keys())
        finally:
            del self._awaited[ask.id]
        return awaited.found

    def _on_lost(self, channel: Channel[Letter], reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def _on_letter(self, channel: Channel[Letter], letter: Letter) -> None:
        try:
            body = read(letter)
        except msgspec.MsgspecError as error:
            self.counts["letters_unread"] += 1
            log.warning("frontend %d: a letter that cannot be read: %s", letter.sender, error)
            return
        match body:
            case Told():
                self._on_told(letter.sender, body)
            case Everything(seq, news):
                self._on_everything(letter.sender, seq, news)
            case Ask():
                self._on_ask(letter.sender, body)
            case Answer(id, said):
                self._on_answer(letter.sender, id, said)
            case Peers(numbers):
                self._on_peers(set(numbers))

    def _on_told(self, sender: int, told: Told) -> None:
        if self._router is None:
            return
        if self._heard.get(sender) == told.seq - bool(told.news):
            self._heard[sender] = told.seq
            self._router.hear(sender, told.news, self._now_s())
            return
        self._forget(sender)
        now_s = self._now_s()
        if now_s - self._asked_s.get(sender, -ASK_AGAIN_S) >= ASK_AGAIN_S:
            self._asked_s[sender] = now_s
            self.counts["asked_for_everything"] += 1
            self._post(sender, Ask(0, OPEN))

    def _on_everything(self, sender: int, seq: int, news: list[News]) -> None:
        if self._router is not None:
            self._forget(sender)
            self._heard[sender] = seq
            self._asked_s.pop(sender, None)
            self._router.hear(sender, news, self._now_s())

    def _on_ask(self, sender: int, ask: Ask) -> None:
        if ask.what == OPEN:
            if self._router is not None:
                self._flush()
                self._post(sender, Everything(self._seq, self._router.open_news()))
            return
        answer = self.answers.get(ask.what)
        self._post(sender, Answer(ask.id, None if answer is None else answer(ask.body)))

    def _on_answer(self, sender: int, id: int, said: bytes | None) -> None:
        awaited = self._awaited.get(id)
        if awaited is not None:
            awaited.found[sender] = said
            awaited.look()

    def _on_peers(self, numbers: set[int]) -> None:
        for number in self.peers - numbers:
            self._forget(number)
            self._asked_s.pop(number, None)
        if self._met.is_set():
            self._heard.update(
                dict.fromkeys(numbers - self.peers, 0)
            )  # who comes after us is heard from its first letter
        self.peers = numbers
        self._met.set()
        for awaited in list(self._awaited.values()):
            awaited.whom &= numbers | {HUB}
            awaited.look()

    def _forget(self, sender: int) -> None:
        self._heard.pop(sender, None)
        if self._router is not None:
            self._router.forget(sender)
