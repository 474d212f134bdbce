"""How long an engine's iteration takes, as a kernel: several kinds of physics, one question.

POLYNOMIAL is how published simulators describe a machine. PRICES are what a router learns of a worker. TABLES hold any
model whose iteration is a sum of three parts, each of one variable:

    seconds = layers(tokens) + decodes · kv(context of each) + prompt tokens · attention(tokens before each)

Where layers are cut into stages, decodes are those of one micro-batch, at least one.

A GRID holds decodes of any model: seconds over the number of sequences and the context of each. Prompts come on top,
by the curves of the tables, where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jevons.base.compiled import FLOAT, Records, compiled
from jevons.base.hub import Hub, view
from jevons.perf.measured import Prices

POLYNOMIAL, PRICES, TABLES, GRID = 0, 1, 2, 3
_LAYERS, _KV, _ATTENTION = 0, 1, 2
_STEPS = 32  # nodes an octave: an interpolated power is right to 0.01 %
_NODES = _STEPS * 24  # up to 16 million tokens
_GRID_STEPS = 4  # nodes an octave, of logarithms: what lies between is right to a percent
_ROWS, _COLUMNS = _GRID_STEPS * 15 + 1, _GRID_STEPS * 20 + 1  # up to 32,768 sequences of a million tokens
_TABLE, _GRID = 3 * _NODES, _ROWS * _COLUMNS

PACE = np.dtype(
    [
        ("kind", np.int64),
        ("prompt0_s", np.float64),  # POLYNOMIAL: of new prompt tokens
        ("prompt1_s", np.float64),
        ("prompt2_s", np.float64),
        ("decode0_s", np.float64),  # of the share of KV tokens that running decodes hold
        ("decode1_s", np.float64),
        ("decode2_s", np.float64),
        ("floor_s", np.float64),
        ("kv_tokens", np.float64),  # all of them
        ("per_step_s", np.float64),  # PRICES
        ("per_token_s", np.float64),
        ("per_token_context_s", np.float64),
        ("per_decode_s", np.float64),
        ("per_context_s", np.float64),  # a token that a decode attends to
        ("stages", np.float64),  # TABLES: that as many micro-batches pass
    ]
)


def pace_arrays(count: int) -> dict[str, Any]:
    """For a hub: paces of so many kinds of engine."""
    return {
        "paces": np.zeros(count, PACE),
        "pace_tables": np.zeros(count * _TABLE),  # of each, three curves over the same nodes
        "pace_grids": np.zeros(count * _GRID),  # of each, rows of logarithms of seconds
    }


def set_polynomial(
    paces: Records, at: int, prompt_s: Sequence[float], decode_s: Sequence[float], of: tuple[float, float]
) -> None:
    """Pace `at` is a polynomial of new prompt tokens, and one of the share of KV tokens that running decodes hold.

    Args:
        of: least seconds of decoding, and KV tokens in all.
    """
    record = paces[at]
    record["kind"] = POLYNOMIAL
    for i in range(3):
        record[f"prompt{i}_s"], record[f"decode{i}_s"] = prompt_s[i], decode_s[i]
    record["floor_s"], record["kv_tokens"] = of


def set_prices(paces: Records, at: int, prices: Prices, per_context_s: float = 0.0) -> None:
    """Pace `at` is that of a worker of which these prices were learned."""
    record = paces[at]
    record["kind"], record["per_context_s"] = PRICES, per_context_s
    for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"):
        record[name] = getattr(prices, name)


class Curves(NamedTuple):
    """Seconds, each of one variable. See the module."""

    layers: Callable[[float], float]
    kv: Callable[[float], float]
    attention: Callable[[float], float]


def set_curves(arrays: dict[str, Any], at: int, curves: Curves, stages: int = 1) -> None:
    """Pace `at` is the sum of these curves.

    Args:
        stages: that layers are cut into. Curves of tokens are of all of an iteration's, `kv` is of one sequence.
    """
    arrays["paces"][at]["kind"], arrays["paces"][at]["stages"] = TABLES, stages
    values = [2.0 ** (node / _STEPS) - 1.0 for node in range(_NODES)]
    table = np.array([[curve(value) for value in values] for curve in curves])
    arrays["pace_tables"][at * _TABLE : (at + 1) * _TABLE] = table.ravel()


def set_grid(arrays: dict[str, Any], at: int, decode_s: Callable[[float, float], float]) -> None:
    """Pace `at` decodes so: an iteration of so many sequences of so many tokens each takes `decode_s` of both.

    Where it has curves too, they are of its prompts.
    """
    arrays["paces"][at]["kind"] = GRID
    rows = [2.0 ** (row / _GRID_STEPS) for row in range(_ROWS)]
    columns = [2.0 ** (column / _GRID_STEPS) for column in range(_COLUMNS)]
    grid = np.log([[decode_s(sequences, context) for context in columns] for sequences in rows])
    arrays["pace_grids"][at * _GRID : (at + 1) * _GRID] = grid.ravel()


@compiled
def look_up(h: Records, at: int, table: int, value: float) -> float:
    """A curve at `value` ≥ 0, linear between nodes."""
    tables = view(h.pace_tables, h.pace_tables_n, FLOAT)
    place = np.log2(value + 1.0) * _STEPS
    node = min(int(place), _NODES - 2)
    low = 2.0 ** (node / _STEPS) - 1.0
    high = 2.0 ** ((node + 1) / _STEPS) - 1.0
    first = at * _TABLE + table * _NODES + node
    below, above = tables[first], tables[first + 1]
    return float(below + (above - below) * (value - low) / (high - low))


@compiled
def step_s(h: Records, at: int, prompt_tokens: float, prompt_pairs: float, decodes: float, context: float) -> float:
    """Seconds of one iteration.

    Args:
        at: whose pace.
        prompt_tokens: computed in it.
        prompt_pairs: sum over those of the tokens each attends to.
        decodes: sequences advanced by one token.
        context: tokens of those sequences, all together.
    """
    pace = view(h.paces, h.paces_n, PACE)[at]
    if pace.kind == POLYNOMIAL:
        return _polynomial_s(pace, prompt_tokens, decodes, context)
    if pace.kind == PRICES:
        return float(
            pace.per_step_s
            + prompt_tokens * pace.per_token_s
            + prompt_pairs * pace.per_token_context_s
            + decodes * pace.per_decode_s
            + context * pace.per_context_s
        )
    attention_s = 0.0
    if prompt_tokens > 0.0:
        attention_s = prompt_tokens * look_up(h, at, _ATTENTION, prompt_pairs / prompt_tokens)
    if pace.kind == GRID:
        seconds = look_up(h, at, _LAYERS, prompt_tokens) if prompt_tokens > 0.0 else 0.0
        if decodes > 0.0 or seconds == 0.0:
            seconds += _on_grid(h, at, decodes, context / max(decodes, 1.0))
        return seconds + attention_s
    each = max(min(decodes, 1.0), decodes / pace.stages)  # of one micro-batch; a sequence is not cut
    seconds = look_up(h, at, _LAYERS, prompt_tokens + each * pace.stages)
    if decodes > 0.0:
        seconds += each * look_up(h, at, _KV, context / decodes)
    return seconds + attention_s


@compiled
def _on_grid(h: Records, at: int, sequences: float, context: float) -> float:
    """Linear between nodes in logarithms of all three, and beyond the last."""
    x, y = np.log2(max(sequences, 1.0)) * _GRID_STEPS, np.log2(max(context, 1.0)) * _GRID_STEPS
    row, column = min(int(x), _ROWS - 2), min(int(y), _COLUMNS - 2)
    fx, fy = x - row, y - column
    grids, first = view(h.pace_grids, h.pace_grids_n, FLOAT), at * _GRID + row * _COLUMNS + column
    low = grids[first] * (1 - fx) + grids[first + _COLUMNS] * fx
    high = grids[first + 1] * (1 - fx) + grids[first + _COLUMNS + 1] * fx
    return float(np.exp(low * (1 - fy) + high * fy))


@compiled
def _polynomial_s(pace: Records, prompt_tokens: float, decodes: float, context: float) -> float:
    seconds = 0.0
    if prompt_tokens > 0.0:
        seconds += pace.prompt0_s + prompt_tokens * (pace.prompt1_s + prompt_tokens * pace.prompt2_s)
    if decodes > 0.0:
        share = context / pace.kv_tokens
        seconds += max(pace.floor_s, pace.decode0_s + share * (pace.decode1_s + share * pace.decode2_s))
    return seconds


@compiled
def _step_s(hubs: Records, at: int, prompt_tokens: float, prompt_pairs: float, decodes: float, context: float) -> float:
    return step_s(hubs[0], at, prompt_tokens, prompt_pairs, decodes, context)


class Pace:
    """One of a hub's paces, for who is no kernel. The first question of a process takes a second or two."""

    def __init__(self, hub: Hub, at: int) -> None:
        self._hub, self._at = hub, at

    def seconds(self, prompt_tokens: int, prompt_pairs: int, decodes: int, context: int) -> float:
        """Of one iteration; see `step_s`."""
        parts = float(prompt_tokens), float(prompt_pairs), float(decodes), float(context)
        return float(_step_s(self._hub.record, self._at, *parts))


def pace_of(prices: Prices) -> Pace:
    """The pace of an engine of which these prices are known."""
    arrays = pace_arrays(1)
    set_prices(arrays["paces"], 0, prices)
    return Pace(Hub(arrays, {}), 0)
