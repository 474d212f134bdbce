"""One step as index tensors: made once, used by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from jevons.engine.reference.attention import windowed
from jevons.engine.reference.pages import Pages
from jevons.facts.request import Sampling

# Decodes are attended as padded batches. One more batch costs 60 us a layer, as much as reading 1250 keys (measured).
PADDING_KEYS = 1250


class Slice(msgspec.Struct, frozen=True):
    """Consecutive tokens of one sequence to compute in this step."""

    tokens: Sequence[int]  # at least 1
    start: int  # position of tokens[0]; all before are already in the pages
    table: Sequence[int]  # block ids that hold positions [0, start + len(tokens)), in order
    sampling: Sampling | None  # None: no token wanted; else draw the one after tokens[-1]
    draw: int = 0  # number of the output token drawn: the random draw depends on (seed, draw) alone

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Group:
    """Rows that are attended together: decodes of several sequences, or one prompt's chunk."""

    first: int  # the group's rows are [first, end) of the step's tensors
    end: int
    start: int  # position of the first row
    tail: torch.Tensor | None  # mask of the decodes' last keys, see `Attention.decodes`; None for a prompt
    windowed: torch.Tensor | None  # the same for sliding layers; None where there are none
    rows: torch.Tensor  # where keys and values are, see `Pages.rows`


@dataclass(frozen=True)
class Plan:
    """All tokens of a step in one row of tensors: decodes first, the longest context first, then prompts."""

    tokens: torch.Tensor  # int64 [rows]
    positions: torch.Tensor  # int64 [rows]
    slots: torch.Tensor  # int64 [rows * 2 * kv_heads], see `Pages.slots`
    groups: list[Group]


def step_order(slices: Sequence[Slice]) -> list[int]:
    """Indices of `slices` in the order a plan wants them."""
    return sorted(range(len(slices)), key=lambda i: (len(slices[i].tokens) > 1, -slices[i].end))


def plan_step(slices: Sequence[Slice], pages: Pages, dtype: torch.dtype, window: int | None = None) -> Plan:
    """The plan for `slices`, which are in `step_order`; `window` is that of the model's sliding layers."""
    device = pages.tensor.device
    decodes = [s for s in slices if len(s.tokens) == 1]
    groups, first = [], 0
    for together in _decode_groups(decodes):
        groups.append(_decode_group(first, together, pages, dtype, window))
        first += len(together)
    for s in slices[len(decodes) :]:
        rows = torch.from_numpy(pages.rows([s.table], s.end)).to(device)
        groups.append(Group(first, first + len(s.tokens), s.start, None, None, rows))
        first += len(s.tokens)
    return Plan(
        tokens=torch.from_numpy(np.concatenate([np.asarray(s.tokens, np.int64) for s in slices])).to(device),
        positions=torch.from_numpy(np.concatenate([np.arange(s.start, s.end) for s in slices])).to(device),
        slots=torch.from_numpy(np.concatenate([pages.slots(s.table, s.start, s.end) for s in slices])).to(device),
        groups=groups,
    )


def _decode_groups(decodes: Sequence[Slice]) -> list[list[Slice]]:
    """Cut `decodes`, longest first, where padding to the longest would cost more than another group."""
    groups: list[list[Slice]] = []
    padding = 0
    for s in decodes:
        padding += groups[-1][0].end - s.end if groups else 0
        if groups and padding <= PADDING_KEYS:
            groups[-1].append(s)
        else:
            groups.append([s])
            padding = 0
    return groups


def _decode_group(first: int, decodes: Sequence[Slice], pages: Pages, dtype: torch.dtype, window: int | None) -> Group:
    ends = np.array([s.end for s in decodes])
    keys = pages.padded(int(ends[0]))
    unseen = np.arange(ends.min(), keys) >= ends[:, None]
    tail = torch.from_numpy(np.where(unseen, -np.inf, 0.0))[:, None, None, :].to(pages.tensor.device, dtype)
    rows = torch.from_numpy(pages.rows([s.table for s in decodes], int(ends[0]))).to(pages.tensor.device)
    sliding = None
    if window is not None:
        sliding = windowed(torch.from_numpy(ends - 1).to(rows.device), keys, window, dtype)[:, None, None]
    return Group(first, first + len(decodes), decodes[0].start, tail, sliding, rows)
