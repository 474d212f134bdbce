"""The first rank of an engine whose model is split over several: it starts the others, and they follow its steps."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import torch

from jevons.base.errors import ConfigError, EngineGone
from jevons.engine.reference.group import Together
from jevons.engine.reference.rank import (
    GO,
    STOP,
    Attach,
    Command,
    CopyIn,
    CopyOut,
    RankConfig,
    encoded,
    rank_device,
)
from jevons.engine.reference.runner import Cache, OnLayer, Runner, Sampled, Slice, ignore, never
from jevons.engine.reference.share import share_of
from jevons.engine.shape import read_shape
from jevons.store.arena import Arena
from jevons.store.node import ALL, Page, Pool

START_S = 120.0  # until a follower has loaded its part, as a worker gets
ANSWER_S = 30.0  # until a follower has read a step, or copied some blocks
LAST_WORDS_S = 1.0  # between a follower's sockets closing and its exit code
END_S = 5.0


class Leader(Runner):
    """Rank 0. A `Runner` like any other, whose `pages` are of its own heads only.

    Args:
        ranks: processes that share the model, this one included; other arguments as for `Runner`.

    Raises:
        ConfigError: the model has fewer kv heads than that, or the device is of a kind that ranks cannot sum on.
        EngineGone: a rank ended. Also from `step` and the copies, and then nothing works any more.
    """

    def __init__(
        self,
        model_dir: Path,
        cache: Cache,
        *,
        ranks: int,
        device: str = "cpu",
        invariant: bool = False,
    ) -> None:
        share_of(read_shape(model_dir), 0, ranks)  # what cannot be split is told before anything starts
        if torch.device(device).type not in ("cpu", "cuda"):
            raise ConfigError(f"device, tensor_parallel: ranks can be on cpu or cuda, got {device} and {ranks} ranks")
        with TemporaryDirectory(prefix="jevons-ranks-") as folder:
            config = RankConfig(
                rank=0,
                ranks=ranks,
                store=str(Path(folder) / "store"),
                steps=-1,
                threads=torch.get_num_threads(),
                model_dir=str(model_dir),
                cache=cache,
                device=device,
                invariant=invariant,
            )
            self._followers = Followers(config)
            try:
                super().__init__(
                    model_dir,
                    cache,
                    device=rank_device(device, 0),
                    invariant=invariant,
                    group=Together(0, ranks, Path(config.store), self._followers.let_meet),
                )
                self._followers.gather()
                self.exchange = SharedExchange(self.exchange, self._followers)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End the other ranks."""
        self._followers.close()

    def watch(self, on_lost: Callable[[EngineGone], None]) -> None:
        """Call `on_lost`, on a thread of its own, if another rank ends before `close`."""
        self._followers.watch(on_lost)

    def step(
        self, slices: Sequence[Slice], is_abandoned: Callable[[], bool] = never, on_layer: OnLayer = ignore
    ) -> list[Sampled | None]:
        """As above. All ranks give a step up before the same layer, since they do what the leader says.

        It says so one layer ahead: were they to wait for its word before each layer, they would fall asleep over it.

        `on_layer` is never called, so blocks leave after the step. That the leader is done with a layer does not say
        that the others are: on GPUs a sum is queued like all else. And a command to each of them for each layer costs
        more than is hidden.
        """
        stop = False

        def decided() -> bool:
            nonlocal stop
            if stop:
                return True
            stop = is_abandoned()
            self._followers.tell(STOP if stop else GO)
            return False

        try:
            self._followers.tell(encoded(slices) + GO)
            return super().step(slices, decided)
        except EngineGone as error:
            raise self._followers.lost(error) from error

    def _prove(self, block_size: int) -> None:
        self._followers.gather()
        super()._prove(block_size)
        self._followers.tell(encoded([]))


class SharedExchange:
    """The blocks of all ranks: when a copy returns, all heads are where they belong."""

    def __init__(self, own: Pool, followers: Followers) -> None:
        self._own = own
        self._followers = followers

    def attach(self, arena: Arena) -> None:
        with self._followers.doing(Attach(), [arena.fd]):
            self._own.attach(arena)

    def copy_out(self, pages: Sequence[Page], layers: slice = ALL) -> None:
        with self._followers.doing(CopyOut(pages, layers.start, layers.stop)):
            self._own.copy_out(pages, layers)

    def copy_in(self, pages: Sequence[Page]) -> None:
        with self._followers.doing(CopyIn(pages)):
            self._own.copy_in(pages)


class _Process(NamedTuple):
    """A follower, seen from the leader."""

    process: subprocess.Popen[bytes]
    control: socket.socket  # its standard input: commands, and their answers
    steps: socket.socket


class Followers:
    """The processes of all ranks but the first, started with the leader's configuration but for rank and socket."""

    def __init__(self, leader: RankConfig) -> None:
        self._processes = [_start(leader, rank) for rank in range(1, leader.ranks)]
        self._is_closed = False

    def gather(self) -> None:
        """Wait until all are ready for the next phase, see `Follower`."""
        self._await_answers(START_S)

    def let_meet(self) -> None:
        """Wait until all have loaded their part, and send them to meet."""
        self.gather()
        self.tell(encoded([]))

    def tell(self, message: bytes) -> None:
        """Send a step, or whether to go on with it."""
        try:
            for each in self._processes:
                each.steps.sendall(message)
        except OSError as error:
            raise self.lost(error) from error

    @contextlib.contextmanager
    def doing(self, command: Command, descriptors: Sequence[int] = ()) -> Iterator[None]:
        """Have all follow a command while the caller does the same; on leaving, all have."""
        line = msgspec.json.encode(command) + b"\n"
        try:
            for each in self._processes:
                sent = socket.send_fds(each.control, [line], descriptors)
                each.control.sendall(line[sent:])
        except OSError as error:
            raise self.lost(error) from error
        try:
            yield
        finally:
            self._await_answers(ANSWER_S)  # always: one left over would be taken for the next command's

    def lost(self, error: Exception) -> EngineGone:
        """Why it cannot go on: the first rank that has ended, or else `error`."""
        for rank, each in enumerate(self._processes, 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._ended(rank, each.process.wait(LAST_WORDS_S / len(self._processes)))
        return EngineGone(f"the ranks lost each other: {error}")

    def watch(self, on_lost: Callable[[EngineGone], None]) -> None:
        """See `Leader.watch`."""

        def wait(rank: int, each: _Process) -> None:
            code = each.process.wait()
            if not self._is_closed:
                on_lost(self._ended(rank, code))

        for rank, each in enumerate(self._processes, 1):
            threading.Thread(target=wait, args=(rank, each), name=f"rank {rank}", daemon=True).start()

    def close(self) -> None:
        """Close their sockets, wait until they have ended, or make them."""
        self._is_closed = True
        for each in self._processes:
            each.control.close()
            each.steps.close()
        for each in self._processes:
            try:
                each.process.wait(END_S)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()

    def _await_answers(self, timeout_s: float) -> None:
        try:
            for each in self._processes:
                each.control.settimeout(timeout_s)
                if not each.control.recv(1):
                    raise EOFError("connection closed")
        except (OSError, EOFError) as error:
            raise self.lost(error) from error

    def _ended(self, rank: int, code: int) -> EngineGone:
        return EngineGone(f"rank {rank} of {len(self._processes) + 1} ended with code {code}")


def _start(leader: RankConfig, rank: int) -> _Process:
    """Start a follower; a socket's end that it inherits closes with it, and ours with us."""
    (control, its_control), (steps, its_steps) = socket.socketpair(), socket.socketpair()
    with its_control, its_steps:
        process = subprocess.Popen(
            [sys.executable, "-m", "jevons.engine.reference.rank"],
            stdin=its_control.fileno(),
            pass_fds=[its_steps.fileno()],
            start_new_session=True,  # a Ctrl-C at the terminal is the leader's to handle
        )
        config = msgspec.structs.replace(leader, rank=rank, steps=its_steps.fileno())
    with contextlib.suppress(BrokenPipeError):  # if it has ended already: the first wait for it tells
        control.sendall(msgspec.json.encode(config) + b"\n")
    steps.settimeout(ANSWER_S)
    return _Process(process, control, steps)
