"""What happens next: a tournament of the engines' next events, and a heap of what else has a time."""

from __future__ import annotations

from jevons.base.compiled import FLOAT, INT, Reals, Records, compiled
from jevons.base.hub import view


@compiled
def _comes_before(h: Records, i: int, j: int) -> bool:
    at_s, order = view(h.moves_at_s, h.moves_at_s_n, FLOAT), view(h.moves_order, h.moves_order_n, INT)
    return bool(at_s[i] < at_s[j] or (at_s[i] == at_s[j] and order[i] < order[j]))


@compiled
def _swap(h: Records, i: int, j: int) -> None:
    at_s, order = view(h.moves_at_s, h.moves_at_s_n, FLOAT), view(h.moves_order, h.moves_order_n, INT)
    slots = view(h.moves_slot, h.moves_slot_n, INT)
    at_s[i], at_s[j] = at_s[j], at_s[i]
    order[i], order[j] = order[j], order[i]
    slots[i], slots[j] = slots[j], slots[i]


@compiled
def begin_move(h: Records, at_s: float, slot: int) -> None:
    """At that time `slot` is at the other engine, or an arrival comes."""
    i = h.moves_end
    view(h.moves_at_s, h.moves_at_s_n, FLOAT)[i] = at_s
    view(h.moves_order, h.moves_order_n, INT)[i] = h.moves_begun
    view(h.moves_slot, h.moves_slot_n, INT)[i] = slot
    h.moves_end += 1
    h.moves_begun += 1
    while i > 0 and _comes_before(h, i, (i - 1) // 2):
        _swap(h, i, (i - 1) // 2)
        i = (i - 1) // 2


@compiled
def end_move(h: Records) -> int:
    """Take the first off the heap. Returns its slot, or -1 - the number of an arrival."""
    slot = view(h.moves_slot, h.moves_slot_n, INT)[0]
    h.moves_end -= 1
    count, i = h.moves_end, 0
    _swap(h, 0, count)
    while True:
        least = i
        for child in range(2 * i + 1, min(2 * i + 3, count)):
            if _comes_before(h, child, least):
                least = child
        if least == i:
            return int(slot)
        _swap(h, i, least)
        i = least


@compiled
def set_due(h: Records, engine: int, at_s: float) -> None:
    """The next event of `engine` is at that time; infinite: none."""
    due = view(h.due, h.due_n, FLOAT)
    node = h.due_n // 2 + engine
    due[node] = at_s
    node >>= 1
    while node >= 1:
        soonest = min(due[2 * node], due[2 * node + 1])
        if due[node] == soonest:
            return
        due[node] = soonest
        node >>= 1


@compiled
def soonest(due: Reals) -> int:
    """The engine whose event is next, the first of equals."""
    leaves, node = len(due) // 2, 1
    while node < leaves:
        node = 2 * node if due[2 * node] <= due[2 * node + 1] else 2 * node + 1
    return node - leaves
