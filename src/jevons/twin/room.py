"""Room in the arrays of a rehearsal under way."""

from __future__ import annotations

from jevons.base.hub import Hub
from jevons.kv.cache import grow_log, grow_places
from jevons.kv.entries import grow_index
from jevons.twin.hearing import grow_withheld, unheard
from jevons.twin.segments import room_left


def make_room(hub: Hub, promised: int = 0) -> None:
    """Double what is short; so many blocks more may be promised before it is asked for again."""
    number, margin = hub.number, int(hub.number("margin"))
    entries = int(number("log_end") - number("log_read"))
    if number("places_n") - number("places_used") + number("places_spares") < margin:
        grow_places(hub, 2 * int(number("places_n")) + margin)
    if number("log_name_n") - number("log_end") < 2 * margin:
        grow_log(hub, max(int(number("log_name_n")), 2 * entries + 4 * margin))
    if number("uses_index"):
        grow_index(hub, unheard(hub.record[0]) + margin + promised, large_pages=True)
        grow_withheld(hub, margin)
    for name, least in (("stems", 2 * margin), ("tables", int(number("tables_margin")))):
        if room_left(len(hub[name]), hub[f"{name}_spare"]) < least:
            hub.grow(name, 2 * len(hub[name]) + least)
    if number("slots_spare") == 0 and number("slots_used") >= len(hub["sequences"]):
        for name in ("sequences", "waits", "slots"):
            hub.grow(name, 2 * len(hub[name]))
        make_move_room(hub)


def make_move_room(hub: Hub) -> None:
    """Every sequence may be on its way to another engine, and every arrival may wait for its time."""
    for name in ("moves_at_s", "moves_order", "moves_slot"):
        most = len(hub["sequences"]) + len(hub["afters"])
        if len(hub[name]) < most:
            hub.grow(name, most)
