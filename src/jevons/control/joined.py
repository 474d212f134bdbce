"""What the frontends of one port show together: each watches the requests it placed itself, all the same workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from jevons.control.watch import SCATTERED, SHOWN, span_s, times_of
from jevons.facts.view import Going, Rates, Reuse, View, Workers

PIDS = 1 << 22  # Linux has no higher process number; with 31 bits of a version it is exact in JavaScript
NOBODY = Workers(version=0, who=None, health=[], running=[], waiting=[], queue_ms=[], held=[])


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one frontend knows."""

    view: View  # a sibling's tells no workers
    began_s: float  # by the machine's monotonic clock: they are all on one
    ttft: list[int]  # by bin, see `control.watch.Minute`
    itl: list[int]


def joined(own: Part, others: Sequence[Part], chips: Mapping[str, int]) -> View:
    """One view of all: of the workers what the one that answers believes, of requests what each saw of its own.

    It begins when the oldest did, so whoever answers next shows the same run.

    Args:
        chips: of the workers, by kind.
    """
    parts = [own, *others]
    views = [part.view for part in parts]
    oldest = min(parts, key=lambda part: part.began_s)
    now_s = own.began_s + own.view.now_s - oldest.began_s
    return msgspec.structs.replace(
        own.view,
        title=f"{own.view.title}, by {len(parts)} frontends",
        began=f"{oldest.began_s:.6f}",
        now_s=now_s,
        requests=sorted(_requests(parts, oldest.began_s), key=lambda going: going.placed_s)[-SHOWN:],
        scatter=[point for view in views for point in view.scatter[-max(1, SCATTERED // len(views)) :]],
        ttft=times_of(np.sum([part.ttft for part in parts], axis=0), own.view.ttft.target_s),
        itl=times_of(np.sum([part.itl for part in parts], axis=0), own.view.itl.target_s),
        rates=_rates(views, now_s),
        reuse=_reuse([view.reuse for view in views]),
        placed=sum(view.placed for view in views),
        under_way=sum(view.under_way for view in views),
        finished=sum(view.finished for view in views),
        waiting_in_front=sum(view.waiting_in_front for view in views),
        chip_s={chip: count * now_s for chip, count in chips.items()},
        saved_chip_s=_added(view.saved_chip_s for view in views),
    )


def columns(of: Callable[[int | None], Workers], pid: int, seen: int | None) -> Workers:
    """The workers, in a version that no other frontend tells: each counts its own, and has an order of its own.

    Args:
        of: `Router.columns`.
        pid: the frontend's process.
        seen: the version that the reader has seen, of whichever frontend.
    """
    version, seen_of = (None, None) if seen is None else divmod(seen, PIDS)
    workers = of(version if seen_of == pid else None)
    return msgspec.structs.replace(workers, version=workers.version * PIDS + pid)


def _requests(parts: Sequence[Part], began_s: float) -> Iterable[Going]:
    """By the clock that begins then."""
    for part in parts:
        off_s = part.began_s - began_s
        for going in part.view.requests:
            done_s = None if going.done_s is None else going.done_s + off_s
            yield msgspec.structs.replace(going, placed_s=going.placed_s + off_s, done_s=done_s)


def _rates(views: Sequence[View], now_s: float) -> Rates:
    """One that began later told its own over less time."""
    weights = [span_s(view.now_s) / span_s(now_s) for view in views]

    def rate(name: str) -> float:
        return sum(weight * float(getattr(view.rates, name)) for weight, view in zip(weights, views, strict=True))

    return Rates(**{name: rate(name) for name in Rates.__struct_fields__})


def _reuse(reuses: Sequence[Reuse]) -> Reuse:
    return Reuse(
        computed=sum(reuse.computed for reuse in reuses),
        device=sum(reuse.device for reuse in reuses),
        tiers={tier: int(tokens) for tier, tokens in _added(reuse.tiers for reuse in reuses).items()},
        untold=sum(reuse.untold for reuse in reuses),
    )


def _added(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for each in amounts:
        for name, amount in each.items():
            total[name] += amount  # type: ignore[assignment]  # typed for whole numbers, it adds any
    return dict(total)
