"""Where the frontends of one port meet: in the process that started them.

Letters are passed on unread. A frontend that does not take its letters loses some, and asks its siblings for everything
when it sees that; who is there, and what those that ended had counted, is known here alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter

import msgspec

from jevons.serve.pages import Family, Sample, added, decode, encode
from jevons.wire.channel import Channel
from jevons.wire.gossip import ALL, HUB, LETTERS, Answer, Ask, Letter, Page, Peers, read, write

log = logging.getLogger("jevons.hub")

MOST_WAITING_BYTES = 64 << 20  # of letters that one frontend has not taken; an answer may be as long
COUNTED = "counted"  # what the hub is asked: counts of frontends that ended


class Hub:
    """For one event loop."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # of frontends and letters, by what became of them
        self._channels: dict[int, Channel[Letter]] = {}
        self._latest: dict[int, list[Family]] = {}
        self._ended: list[Family] = []

    async def invite(self, number: int) -> socket.socket:
        """A place for frontend `number`, whose process before has ended. Returns its end of the line, to inherit."""
        before = self._channels.get(number)
        if before is not None:
            self._end(number)
            before.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def on_letter(channel: Channel[Letter], letter: Letter) -> None:
            self._pass_on(number, letter)

        def on_lost(channel: Channel[Letter], reason: str) -> None:
            if self._channels.get(number) is channel:
                self._end(number)

        channel = Channel(LETTERS, on_letter, on_lost)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        self._channels[number] = channel
        self._tell_peers()
        return theirs

    def restarted(self) -> None:
        """A frontend is started again."""
        self.counts["restarts"] += 1

    def close(self) -> None:
        for channel in list(self._channels.values()):
            channel.close()

    def _end(self, number: int) -> None:
        del self._channels[number]
        self._ended = added([self._ended, self._latest.pop(number, [])])
        self._tell_peers()

    def _tell_peers(self) -> None:
        for number, channel in self._channels.items():
            channel.send(write(HUB, number, Peers([other for other in self._channels if other != number])))

    def _pass_on(self, sender: int, letter: Letter) -> None:
        if letter.to == HUB:
            self._take(sender, letter)
            return
        for number in self._channels if letter.to == ALL else (letter.to,):
            channel = self._channels.get(number)
            if channel is None or number == sender:
                continue
            if channel.backlog_bytes > MOST_WAITING_BYTES:
                self.counts["letters_dropped"] += 1
            else:
                channel.send(letter)

    def _take(self, sender: int, letter: Letter) -> None:
        try:
            match read(letter):
                case Page(body):
                    self._latest[sender] = decode(body)
                case Ask(id, what) if what == COUNTED:
                    answer = Answer(id, encode([*self._ended, self._own()]))
                    self._channels[sender].send(write(HUB, sender, answer))
        except msgspec.MsgspecError as error:
            self.counts["letters_unread"] += 1
            log.warning("frontend %d: a letter that cannot be read: %s", sender, error)

    def _own(self) -> Family:
        samples = [Sample("jevons_hub_total", {"fate": fate}, count) for fate, count in self.counts.items()]
        return Family("jevons_hub", "Frontends started again; letters between them lost.", "counter", samples)
