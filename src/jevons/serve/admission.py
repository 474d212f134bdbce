"""Admission at the front: a call is placed at once, after a while, without its promise, or refused.

    promise kept by the forecast ──────────────▶ placed
    missed: serve ─▶ placed    refuse ─▶ 429    downgrade ─▶ placed after others    queue ─▶ waits ─▶ placed, or 429

The order of those who wait is `control.gate`'s, the forecast the router's own. Whenever a worker has more room they are
looked at again, the first ones of each model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

import msgspec

from jevons.base.errors import NoWorker, TooLate
from jevons.base.ids import RequestId, WorkerId
from jevons.control.gate import Gate, Waiter
from jevons.control.router import Router
from jevons.policy.admit import Miss, Promise, again_s
from jevons.policy.route import Placement
from jevons.serve.call import RETURN_S, Call, Placements
from jevons.serve.headers import MISS, TPOT, TTFT
from jevons.serve.metrics import Metrics

LOOKED_AT = 8  # of those that wait for a model: who is first may have a promise that is harder to keep
LOOK_S = 0.1  # they are looked at at least so often, for forecasts fall while nothing happens
JUDGE_S = 1.0  # prices are learned, and workers come
LEAST_LOOK_S = 0.02  # and at most so often: a look costs a forecast each, about 0.1 ms


class _Asked(msgspec.Struct):
    """A call that waits."""

    call: Call
    avoid: Collection[WorkerId]
    placed: asyncio.Future[Placement]
    judge_s: float = 0.0  # when to look again whether its promise could be kept at all


class Admission:
    """Lets calls in. `placements` tell it when there is more room."""

    def __init__(self, router: Router, placements: Placements, metrics: Metrics) -> None:
        self._router = router
        self.placements = placements
        self._gate: Gate = placements.gate
        self._metrics = metrics
        self._asked: dict[RequestId, _Asked] = {}
        self._next_look_s = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        placements.on_room = self.look

    async def enter(self, call: Call, id: RequestId, avoid: Collection[WorkerId] = ()) -> Placement:
        """Place a call, as its promise has it.

        Args:
            id: a name for this placement.
            avoid: workers it may not go to.

        Raises:
            TooLate: it would be late, or has waited for as long as it may, and wants to be told.
            NoWorker: none is there.
        """
        placement = self.enter_now(call, id, avoid)
        return await self.wait(call, id, avoid) if placement is None else placement

    def enter_now(self, call: Call, id: RequestId, avoid: Collection[WorkerId] = ()) -> Placement | None:
        """As `enter` for who need not wait; None: it must `wait`."""
        if call.promise.miss is Miss.QUEUE:
            return None
        self.check(call, avoid)
        return self.placements.place(call, id, call.prompt, avoid)

    def check(self, call: Call, avoid: Collection[WorkerId] = ()) -> None:
        """See what is to become of a call that does not wait: refused, downgraded, or placed as it is.

        Raises:
            TooLate: it would be late, and wants to be told.
            NoWorker: none is there.
        """
        miss = call.promise.miss
        if miss not in (Miss.REFUSE, Miss.DOWNGRADE):
            return
        late = self._late(call, avoid)
        if late is not None and miss is Miss.REFUSE:
            self._metrics.refused.inc()
            raise late
        if late is not None:
            self._metrics.downgraded.inc()
            call.downgrade()

    def rank(self, call: Call, avoid: Collection[WorkerId] = (), most: int | None = None) -> list[Placement]:
        """See `Router.rank`."""
        asked = call.asked
        return self._router.rank(
            call.prompt,
            salt=asked.cache_salt or "",
            model=call.model,
            session=call.session,
            promise=call.promise,
            output_tokens=asked.output_limit,
            avoid=avoid,
            most=most,
            now_s=self.placements.now_s(),
        )

    def look(self) -> None:
        """Place those that wait and whose turn has come."""
        now_s = self.placements.now_s()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LEAST_LOOK_S
            for model in self._gate.models():
                while self._place_one(model):
                    pass

    async def wait(self, call: Call, id: RequestId, avoid: Collection[WorkerId] = ()) -> Placement:
        """Place a call once its promise would be kept. See `enter`."""
        if self._gate.is_full:
            self._metrics.refused.inc()
            raise TooLate("queue: as many requests wait as may; come again in 1 s", 1.0)
        promise, until_s = call.promise, call.arrived_s + call.promise.queue_s
        due_s = until_s if promise.ttft_s is None else call.arrived_s + promise.ttft_s
        asked = self._asked[id] = _Asked(call, avoid, asyncio.get_running_loop().create_future())
        account = self._gate.begin(call.tenant)
        self._gate.enter(Waiter(id, call.model, account, call.priority, due_s, until_s))
        fate = "refused"
        try:
            self._place_one(call.model)
            self._look_on()
            await asyncio.wait([asked.placed], timeout=max(0.0, until_s - self.placements.now_s()))
            if not asked.placed.done():
                self._metrics.refused.inc()
                raise self._late(call, avoid) or TooLate("queue: others went first; come again in 1 s", 1.0)
            fate = "placed"
            return asked.placed.result()
        except asyncio.CancelledError:
            fate = "left"
            if asked.placed.done():
                self.placements.done(id)
            raise
        finally:
            self._gate.leave(id)
            self._gate.end(account)
            del self._asked[id]
            self._metrics.queued.labels(fate).observe(self.placements.now_s() - call.arrived_s)

    def _look_on(self) -> None:
        """Have all that wait looked at now and then, while there are any."""
        if self._ticking is None and self._gate.waiting:
            self._ticking = asyncio.get_running_loop().call_later(LOOK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self._look_on()
        self.look()

    def _place_one(self, model: str) -> bool:
        """Place the first whose promise would be kept. Returns whether there was one."""
        for waiter in self._gate.first(model, LOOKED_AT):
            asked = self._asked[waiter.id]
            with suppress(NoWorker):
                if self._late(asked.call, asked.avoid) is None:
                    call = asked.call
                    asked.placed.set_result(self.placements.place(call, waiter.id, call.prompt, asked.avoid))
                    self._gate.leave(waiter.id)
                    return True
                self._judge(waiter.id, asked)
        return False

    def _judge(self, id: RequestId, asked: _Asked) -> None:
        """Who would be late even where nobody has anything else to do waits in vain, and holds up no others."""
        now_s, call = self.placements.now_s(), asked.call
        if now_s >= asked.judge_s:
            asked.judge_s = now_s + JUDGE_S
            body = call.asked
            first_s, rest_s = self._router.soonest(
                call.prompt,
                salt=body.cache_salt or "",
                model=call.model,
                session=call.session,
                avoid=asked.avoid,
            )
            late_s = call.promise.late_s(first_s, rest_s, self._router.answer_tokens(body.output_limit))
            self._gate.judge(id, late_s > 0)

    def _late(self, call: Call, avoid: Collection[WorkerId]) -> TooLate | None:
        """What to tell a call that would be late even where it is best placed; None: it would not be.

        Raises:
            NoWorker: none is there.
        """
        promise, limit = call.promise, call.asked.output_limit
        best = self.rank(call, avoid, most=1)[0]
        if self._router.is_saturated(best.worker):
            return TooLate("workers: none has been heard of lately that could take this; come again", RETURN_S)
        late_s = promise.late_s(best.ttft_s, best.tpot_s, self._router.answer_tokens(limit))
        if late_s <= 0:
            return None
        hint = f"come again in {again_s(late_s):.0f} s, or ask without {MISS}: {promise.miss}"
        return TooLate(f"{_missed(promise, best)}; {hint}", again_s(late_s))


def _missed(promise: Promise, best: Placement) -> str:
    """Which promise would be missed, and by how much."""
    if promise.ttft_s is not None and best.ttft_s > promise.ttft_s:
        says = f"would be missed, the first token is predicted after {best.ttft_s * 1e3:.0f}"
        return f"{TTFT}: {promise.ttft_s * 1e3:.0f} ms {says}"
    assert promise.tpot_s is not None, "one of them is missed"
    says = f"would be missed, a token after the first is predicted to take {best.tpot_s * 1e3:.1f}"
    return f"{TPOT}: {promise.tpot_s * 1e3:g} ms {says}"
