"""The gate: who waits in front of the workers, in which order, and how much each tenant was served.

    late everywhere, may wait ──enter──▶ waiting ──its promise would be kept──▶ placed
                                           └── its time is over ──▶ refused

Requests go by priority, then by whose tenant was served least, then by when their first token is due; who waits for
what nobody could keep goes last, or a few of them would keep all others from being looked at. Served is counted
in predicted seconds of devices: a token on a slow device is dearer than one on a quick one, and one that was cached is
free. Who comes back after doing nothing starts where the least served of those at work is (Sheng et al., Fairness in
Serving Large Language Models, 2024, algorithm 2): being away saves up no claims, and being alone no debts.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import nsmallest

import msgspec

from jevons.base.ids import RequestId
from jevons.facts.snapshot import GateSnapshot, TenantSnapshot

MOST_WAITING = 4_096  # requests; more would be refused before their turn came anyway
MOST_TENANTS = 256  # remembered; the one that has done nothing for longest is forgotten first
OTHERS = "others"  # who comes while so many are at work


class Waiter(msgspec.Struct, frozen=True):
    """A request that waits in front."""

    id: RequestId
    model: str
    tenant: str
    priority: int  # the lower, the earlier
    due_s: float  # when its first token is promised
    until_s: float  # when it gives up


class _Tenant(msgspec.Struct):
    """What is known of one tenant."""

    served_s: float = 0.0  # of devices, predicted; as if it had always been there
    spent_s: float = 0.0  # of devices, in truth
    placements: int = 0
    at_work: int = 0  # requests that wait or run


class Gate:
    """The state of the gate. It decides nothing about workers: who drives it knows the forecast."""

    def __init__(self, most_waiting: int = MOST_WAITING, most_tenants: int = MOST_TENANTS) -> None:
        self._most_waiting, self._most_tenants = most_waiting, most_tenants
        self._waiting: dict[RequestId, Waiter] = {}
        self._vain: set[RequestId] = set()  # of those
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()  # who was at work last is last
        self._at_work: dict[str, _Tenant] = {}
        self._floor_s = 0.0  # what the last one at work had been served
        self.forgotten = 0  # tenants

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._most_waiting

    def enter(self, waiter: Waiter) -> None:
        """It waits from now on. Its tenant must have begun."""
        assert not self.is_full, "who drives the gate refuses what it has no room for"
        self._waiting[waiter.id] = waiter

    def leave(self, id: RequestId) -> None:
        """It does not wait any more, whatever became of it."""
        self._waiting.pop(id, None)
        self._vain.discard(id)

    def judge(self, id: RequestId, is_vain: bool) -> None:
        """Whether it waits for what nobody could keep, and so goes after all others of its model."""
        (self._vain.add if is_vain else self._vain.discard)(id)

    def first(self, model: str, count: int) -> list[Waiter]:
        """The first so many that wait for a model. Costs O(waiting)."""
        those = [waiter for waiter in self._waiting.values() if waiter.model == model]
        return nsmallest(count, those, key=self._place_of)

    def models(self) -> set[str]:
        """That somebody waits for."""
        return {waiter.model for waiter in self._waiting.values()}

    def _place_of(self, waiter: Waiter) -> tuple[bool, int, float, float]:
        return waiter.id in self._vain, waiter.priority, self._tenants[waiter.tenant].served_s, waiter.due_s

    # Tenants

    def begin(self, name: str) -> str:
        """A request of this tenant waits or runs from now on. Returns the name it is counted under."""
        if name not in self._tenants and len(self._tenants) >= self._most_tenants and not self._forget():
            name = OTHERS
        tenant = self._tenants.setdefault(name, _Tenant())
        if not tenant.at_work:
            least_s = min((t.served_s for t in self._at_work.values()), default=self._floor_s)
            tenant.served_s = max(tenant.served_s, least_s)
            self._at_work[name] = tenant
        tenant.at_work += 1
        return name

    def charge(self, name: str, seconds: float, placements: int = 0) -> None:
        """So many seconds of devices are foreseen for this tenant, or were taken beside those foreseen."""
        tenant = self._tenants[name]
        tenant.served_s += seconds
        tenant.spent_s += seconds
        tenant.placements += placements

    def end(self, name: str) -> None:
        """A request that had begun neither waits nor runs any more."""
        tenant = self._tenants[name]
        tenant.at_work -= 1
        if not tenant.at_work:
            self._floor_s = tenant.served_s
            del self._at_work[name]
            self._tenants.move_to_end(name)

    def _forget(self) -> bool:
        """The tenant that has done nothing for longest. Returns False where all are at work."""
        idle = next((name for name, tenant in self._tenants.items() if not tenant.at_work), None)
        if idle is not None:
            del self._tenants[idle]
            self.forgotten += 1
        return idle is not None

    def snapshot(self) -> GateSnapshot:
        """The state now. Costs O(waiting + tenants)."""
        waiting: dict[str, int] = {}
        for waiter in self._waiting.values():
            waiting[waiter.tenant] = waiting.get(waiter.tenant, 0) + 1
        tenants = [
            TenantSnapshot(id=name, placements=t.placements, device_s=t.spent_s, waiting=waiting.get(name, 0))
            for name, t in self._tenants.items()
        ]
        return GateSnapshot(waiting=len(self._waiting), tenants=tenants, forgotten_tenants=self.forgotten)
