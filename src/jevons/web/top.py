"""The page's data in a terminal."""

from __future__ import annotations

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from jevons.base.units import count, milliseconds, si
from jevons.econ.draws import Interval
from jevons.facts.view import HEALTHS, Going, Times, View, Workers
from jevons.web.money import Cost
from jevons.web.site import Told

# What a worker does, and what stands for it: idle, running, then by how long is queued there.
_SIGNS = (("·", "idle"), ("▁", "running"), ("▃", "queue < 0.1 s"), ("▅", "< 0.5 s"), ("▆", "< 2 s"), ("█", "≥ 2 s"))
_ILL = {"stalled": "o", "suspect": "?", "down": "x", "draining": "v"}
_QUEUES_MS = (100, 500, 2_000)
_FEWEST_LINES = 14  # of all but workers, requests and what is wanted
_UNKNOWN = "unknown"
_HEADS = ("worker", "prompt", "cached", "first token", "predicted", "state", "reason")
_DROPPED = ("predicted", "reason", "cached", "prompt", "first token")  # one after another, where there is no room
_LEAST_REASON = 12
_LONGEST_NAME = 16
_GAP = 3  # between names and figures


def read(raw: bytes) -> Told:
    """Raises MsgspecError: it is no such data."""
    return msgspec.json.decode(raw, type=Told)


def screen(told: Told, width: int, height: int) -> RenderableType:
    """All of it on so many columns and lines: workers get a third of them, requests what is left."""
    view = told.view
    cells = "".join(_sign(view.workers, i) for i in range(len(view.workers.health)))
    lines = [cells[at : at + width] for at in range(0, len(cells), width)]
    most = max(1, height // 3)
    if len(lines) > most:
        left = len(cells) - (most - 1) * width
        lines = [*lines[: most - 1], f"… and {count(left)} more workers"]
    rows = max(0, height - _FEWEST_LINES - len(lines) - len(view.scaling))
    latest = list(reversed(view.requests))[:rows]
    return Group(
        _head(view),
        _figures(view, told.cost, width),
        *map(Text, lines),
        _legend(),
        *_wanted(view),
        _requests(latest, width),
    )


def _sign(workers: Workers, at: int) -> str:
    health = HEALTHS[workers.health[at]]
    if health != "up":
        return _ILL[health]
    queue_ms, waiting = workers.queue_ms[at], workers.waiting[at]
    if not (workers.running[at] or waiting):
        return _SIGNS[0][0]
    if not (waiting or queue_ms):
        return _SIGNS[1][0]
    return _SIGNS[2 + sum(queue_ms >= bound for bound in _QUEUES_MS)][0]


def _legend() -> Text:
    signs = [f"{sign} {what}" for sign, what in _SIGNS] + [f"{sign} {what}" for what, sign in _ILL.items()]
    return Text("  ".join(signs), style="dim", no_wrap=True, overflow="ellipsis")


def _wanted(view: View) -> list[Text]:
    """How many workers, and why."""
    return [
        Text(
            f"{each.model} {each.role}: {each.wanted} wanted, {each.up} up: {each.reason}",
            no_wrap=True,
            overflow="ellipsis",
        )
        for each in view.scaling
    ]


def _head(view: View) -> Text:
    kind = "live" if view.source == "live" else "rehearsal, over" if view.is_over else "rehearsal"
    clock = f"{view.now_s:,.0f} s" + ("" if view.source == "live" else " simulated")
    return Text(f"jevons {kind}: {view.title}, policy {view.policy}, {clock}", style="bold", no_wrap=True)


def _figures(view: View, cost: Cost, width: int) -> Table:
    workers, reuse = view.workers, view.reuse
    up = sum(h == HEALTHS.index("up") for h in workers.health)
    busy = sum(r + w > 0 for r, w in zip(workers.running, workers.waiting, strict=True))
    below = sum(reuse.tiers.values())
    told = reuse.computed + reuse.device + below
    shares = {"devices": reuse.device, **reuse.tiers, "computed": reuse.computed}
    table = Table.grid(padding=(0, _GAP))
    rows = {
        "workers": f"{count(up)} of {count(len(workers.health))} up, {count(busy)} busy",
        "requests": f"{view.rates.requests:.1f} /s, {count(view.under_way)} under way, "
        f"{count(view.waiting_in_front)} in front, {count(view.finished)} done",
        "tokens": f"{si(view.rates.output_tokens, '/s')} out, {si(view.rates.prompt_tokens, '/s')} of prompts",
        "TTFT": _times(view.ttft),
        "gap between tokens": _times(view.itl),
        "prompt tokens": ", ".join(f"{name} {n / told:.0%}" for name, n in shares.items()) if told else "none yet",
        "cost": f"{_usd(cost.usd_per_hour)} an hour, {_usd(cost.usd)} so far; reuse saved {_usd(cost.saved_usd)}, "
        f"{cost.saved_s:,.0f} s of {cost.saved_of}",
        "energy of chips": _UNKNOWN
        if cost.joules is None
        else f"{si(cost.joules.low, 'J')} to {si(cost.joules.high, 'J')}",
    }
    names = max(map(len, rows))
    table.add_column(no_wrap=True, width=names)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(1, width - names - _GAP))
    for name, text in rows.items():
        table.add_row(Text(name, style="dim"), Text(text))
    return table


def _times(times: Times) -> str:
    """Of the last minute."""
    if times.p50 is None or times.p90 is None or times.p99 is None or times.within is None:
        return "nothing in the last minute"
    p50, p90, p99 = (milliseconds(value) for value in (times.p50, times.p90, times.p99))
    within = f"{times.within:.1%} within {milliseconds(times.target_s)}"
    return f"p50 {p50}, p90 {p90}, p99 {p99}; {within}"


def _usd(sum_of: Interval | None) -> str:
    return _UNKNOWN if sum_of is None else f"${sum_of.base:,.2f}" if sum_of.base >= 0.01 else f"${sum_of.base:.2g}"


def _requests(latest: list[Going], width: int) -> Table:
    """As many of the columns as there is room for; reasons get what is left."""
    rows = [_cells(g) for g in latest]
    sizes = {head: max(len(head), *(len(row[head]) for row in rows), 0) for head in _HEADS}
    reason, sizes["reason"] = sizes["reason"], _LEAST_REASON
    heads = list(_HEADS)
    for head in _DROPPED:
        if _taken(heads, sizes) > width:
            heads.remove(head)
    sizes["reason"] = min(reason, _LEAST_REASON + width - _taken(heads, sizes))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        is_text = head in ("worker", "state", "reason")
        side: JustifyMethod = "left" if is_text else "right"
        table.add_column(head, justify=side, no_wrap=True, overflow="ellipsis", width=sizes[head])
    for row in rows:
        table.add_row(*(Text(row[head]) for head in heads))
    return table


def _taken(heads: list[str], sizes: dict[str, int]) -> int:
    return sum(sizes[head] + 2 for head in heads)


def _cells(g: Going) -> dict[str, str]:
    names = [_tail(name) for name in (g.worker, g.decode) if name is not None]
    return {
        "worker": " → ".join(names),
        "prompt": f"{g.prompt_tokens:,}",
        "cached": f"{g.predicted_cached:,}?" if g.cached_tokens is None else f"{g.cached_tokens:,}",
        "first token": "" if g.ttft_s is None else milliseconds(g.ttft_s),
        "predicted": milliseconds(g.predicted_ttft_s),
        "state": _state(g),
        "reason": g.reason,
    }


def _tail(name: str) -> str:
    """What tells workers of one host apart stands at the end."""
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _state(g: Going) -> str:
    if g.done_s is None:
        return "waiting" if g.ttft_s is None else "running"
    return "ended" if g.ttft_s is None and not g.output_tokens else f"done, {g.output_tokens:,} out"
