"""The ranks that compute one model together: sums over them, by Gloo between processes, by NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed

from jevons.base.errors import EngineGone

# The groups themselves and not `init_process_group`: that knows one group a process, and finds its network interface
# in the environment. Any, for torch's type stubs leave out what a group does.
dist: Any = torch.distributed

HOST = "127.0.0.1"  # all ranks of an engine are on one host
DEADLINE = timedelta(seconds=30)  # of a sum: ranks differ by parts of a step, the longest of which takes seconds


class RankGroup(Protocol):
    """The ranks that share a model, as one of them sees it."""

    rank: int  # its own number, 0 to `size` - 1
    size: int

    def meet(self, device: torch.device) -> None:
        """Connect to the others, who come too once they have loaded their part.

        Raises:
            EngineGone: some rank does not come.
        """
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, hidden] summed over all ranks, the same bits on each; may be computed in place.

        Raises:
            EngineGone: another rank has ended, or does not come to this sum within `DEADLINE`.
        """
        ...


class Alone:
    """A model on one rank: nobody to meet, and sums are what they are."""

    rank, size = 0, 1

    def meet(self, device: torch.device) -> None: ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x


ALONE = Alone()


class Together:
    """One of several ranks.

    Args:
        rank: 0 to `size` - 1.
        size: ranks in all.
        store: path of a file, not there yet, through which they find each other; no longer needed once all have met.
        gather: called when this rank is ready to meet; returns when all are.
    """

    def __init__(self, rank: int, size: int, store: Path, gather: Callable[[], None]) -> None:
        self.rank, self.size = rank, size
        self._store, self._gather = store, gather
        self._others = [other for other in range(size) if other != rank]
        self._links: Any = None
        self._received = torch.empty(size, 0)

    def meet(self, device: torch.device) -> None:
        self._gather()
        store = dist.FileStore(str(self._store), self.size)
        try:
            connect = _nccl if device.type == "cuda" else _gloo
            self._links = connect(store, self.rank, self.size)
            self.sum(torch.zeros(1, device=device))  # NCCL connects no sooner
        except RuntimeError as error:
            raise EngineGone(f"{self.size} ranks cannot meet: {error}") from error

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        try:
            if x.device.type == "cpu":
                return self._exchange(x)
            self._links.allreduce([x]).wait()
        except RuntimeError as error:
            raise EngineGone(f"a sum over {self.size} ranks failed: {error}") from error
        return x

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        """Send x to everybody, receive theirs, add all in order of rank.

        Gloo's own allreduce works on another thread: 580 to 920 us for 2 ranks and 576 numbers, this 250 to 330 in the
        same run. From 3 ranks on it also adds in an order that depends on the place in the tensor: a row's bits would
        depend on the batch (seen in every row of 8).
        """
        parts = self._buffers(x)
        work = [self._links.send([x], other, 0) for other in self._others]
        work += [self._links.recv([parts[other]], other, 0) for other in self._others]
        for each in work:
            each.wait()
        parts[self.rank] = x
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        return total

    def _buffers(self, x: torch.Tensor) -> list[torch.Tensor]:
        """A tensor like x for each rank, good until the next call."""
        if self._received.shape[1] < x.numel() or self._received.dtype != x.dtype:
            self._received = x.new_empty(self.size, x.numel())
        return [flat[: x.numel()].view_as(x) for flat in self._received]


def _gloo(store: Any, rank: int, size: int) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=HOST)]
    options._threads = 1  # sends and receives need none
    options._timeout = DEADLINE
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = DEADLINE
    return dist.ProcessGroupNCCL(store, rank, size, options)
