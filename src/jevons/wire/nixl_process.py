"""The process that runs NIXL, one for each source and each link: it registers one stretch of shared memory.

    starter → process   Peer, then Get again and again
    process → starter   Serving first; Over for each Get; Failed as its last word

Why a process of its own (nixl 1.5.1 and its UCX, each seen here): the end of a peer in mid-read over TCP aborts the
process that serves it, 4 times of 20; and no transfer can be taken back: "releasing" one reports success, and
23 MB were written afterwards. A process that ended writes nothing, and takes nobody along. It ends with its starter,
whose end of the socket closes then.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import mmap
import os
import select
import socket
import sys
import uuid
from typing import Any

import msgspec
import numpy as np

from jevons.wire.channel import framed, take_messages

PACKAGES = ("nixl_cu13", "nixl_cu12")  # builds of NIXL; for memory of the host either will do
# NIXL's progress thread sleeps until UCX wakes it, or so long, "for a UCX bug" (NIXL's words): 0.5 % of a core idle.
# 0, which NIXL's own Python class sets, spins on a whole core: hence its bindings below are used directly.
PROGRESS_US = 10_000
POLL_S, POLL_MOST_S = 50e-6, 10e-3  # between looks at transfers: the longer nothing ends, the rarer
_READ_BYTES = 1 << 18


class Peer(msgspec.Struct, frozen=True, tag="peer"):
    """Whom to read from, once."""

    metadata: bytes
    base: int  # address of its memory, there


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Read ranges of the peer's memory, offset and size, one after the other into ours."""

    id: int
    offset: int  # in ours
    ranges: list[tuple[int, int]]


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """The memory is registered; what a peer needs to read it."""

    metadata: bytes
    base: int
    size_bytes: int


class Over(msgspec.Struct, frozen=True, tag="over"):
    """A transfer is done: its bytes are in place, and nothing more is written for it."""

    id: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The process ends: parts of a failed transfer may still be under way, and only its end stops them."""

    reason: str  # a word of facts.block.LOST
    error: str


ToProcess = Peer | Get
ToStarter = Serving | Over | Failed
TO_PROCESS: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
TO_STARTER: msgspec.msgpack.Decoder[ToStarter] = msgspec.msgpack.Decoder(ToStarter)


def installed() -> str | None:
    """The package that holds NIXL, if there is one. Not `nixl` itself: that imports torch to ask which CUDA it has."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is not None), None)


class Agent:
    """NIXL with one piece of memory registered, and at most one peer."""

    def __init__(self, bindings: Any, memory: mmap.mmap) -> None:
        self._nixl = bindings
        self._memory = np.frombuffer(memory, np.uint8)  # keeps it mapped
        self._base, self._size_bytes = self._memory.ctypes.data, self._memory.nbytes
        self._peer, self._peer_base = "", 0
        self._pending: dict[int, Any] = {}  # by id of their Get
        config = bindings.nixlAgentConfig()
        config.useProgThread, config.pthrDelay = True, PROGRESS_US
        config.syncMode = bindings.NIXL_THREAD_SYNC_STRICT
        self._agent = bindings.nixlAgent(uuid.uuid4().hex, config)
        self._backends = [self._agent.createBackend("UCX", {})]
        whole = bindings.nixlRegDList(bindings.DRAM_SEG, [(self._base, self._size_bytes, 0, "")])
        self._agent.registerMem(whole, self._backends)

    @property
    def is_busy(self) -> bool:
        return bool(self._pending)

    def serving(self) -> Serving:
        return Serving(self._agent.getLocalMD(), self._base, self._size_bytes)

    def take(self, message: ToProcess) -> None:
        match message:
            case Peer(metadata, base):
                self._peer, self._peer_base = self._agent.loadRemoteMD(metadata).decode(), base
            case Get():
                self._start(message)

    def ended(self) -> list[int]:
        """Transfers that are done since the last call."""
        done = [id for id, transfer in self._pending.items() if self._is_done(self._agent.getXferStatus(transfer))]
        for id in done:
            self._agent.releaseXferReq(self._pending.pop(id))
        return done

    def _start(self, get: Get) -> None:
        local, remote, at = [], [], self._base + get.offset
        for offset, size_bytes in get.ranges:
            local.append((at, size_bytes, 0))
            remote.append((self._peer_base + offset, size_bytes, 0))
            at += size_bytes
        memory, lists = self._nixl.DRAM_SEG, self._nixl.nixlXferDList
        transfer = self._agent.createXferReq(
            self._nixl.NIXL_READ, lists(memory, local), lists(memory, remote), self._peer, "", self._backends
        )
        self._agent.postXferReq(transfer)
        self._pending[get.id] = transfer

    def _is_done(self, status: Any) -> bool:
        return bool(status == self._nixl.NIXL_SUCCESS)  # an error is raised, not returned


def run(line: socket.socket, agent: Agent) -> None:
    """Do what the starter says until it closes the line."""
    received, wait_s = bytearray(), POLL_S
    while True:
        ready, _, _ = select.select([line], [], [], wait_s if agent.is_busy else None)
        if ready:
            read = line.recv(_READ_BYTES)
            if not read:
                return
            received += read
            for message in take_messages(received, TO_PROCESS):
                agent.take(message)
                tell_ended(line, agent)  # at once: over shared memory, to start a transfer is to copy
        wait_s = POLL_S if tell_ended(line, agent) or ready else min(2 * wait_s, POLL_MOST_S)


def tell_ended(line: socket.socket, agent: Agent) -> bool:
    """Whether there was anything to tell."""
    ended = agent.ended()
    if ended:
        line.sendall(b"".join(framed(Over(id)) for id in ended))
    return bool(ended)


def main() -> None:
    line_fd, memory_fd, size_bytes = map(int, sys.argv[1:])
    with socket.socket(fileno=line_fd) as line, contextlib.suppress(OSError):  # the starter has left
        try:
            bindings: Any = importlib.import_module(f"{installed()}._bindings")
        except ImportError as error:
            line.sendall(framed(Failed("io", f"nixl: {error}")))
            return
        try:
            agent = Agent(bindings, mmap.mmap(memory_fd, size_bytes))
            line.sendall(framed(agent.serving()))
            run(line, agent)
        except bindings.nixlRemoteDisconnectError as error:
            line.sendall(framed(Failed("gone", f"nixl: {error}")))
        except Exception as error:  # a process edge; NIXL's errors share no class
            line.sendall(framed(Failed("io", f"nixl: {error}")))
    os._exit(0)  # UCX would clear away what is under way, and complain of each


if __name__ == "__main__":
    main()
