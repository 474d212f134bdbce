"""Layouts as their publishers write them."""

from __future__ import annotations

import math
import re

from jevons.facts.hardware import Chip
from jevons.facts.llm import Llm
from jevons.perf.roofline import Group
from jevons.twin.names import Layout, Unpredicted

# GUESS, for split layouts that do not say how many workers they have. Of those that do, decode workers of one copy of
# attention serve 2 to 20 users each and are 9 at most; beyond that one of many copies serves hundreds or thousands.
GUESS_USERS_PER_WORKER = 12
GUESS_MOST_WORKERS = 8
GUESS_MANY_USERS = 200
_SLIP = re.compile(r"(?<![\d.])0+(?:\.0*)?(?![\d.])|\d{7}")  # counts that nothing can have
_POOL = r"{}\(tp(\d+)\S* dp(\d+)\S* ep(\d+)\S* x(\d+|nan)"


def layout_of(text: str, chip: Chip, model: Llm, users: float) -> Layout:
    """Groups of chips of TP4 aDP1.0 moeTP4.0 moeEP1.0, TP8, DEP8, EP32, 1 chip, disagg P(…) D(…).

    Raises:
        Unpredicted: none of these.
    """
    if _SLIP.search(text):
        raise Unpredicted(f"layout {text!r} has a count of 0, or one of more than six digits")
    if "disagg" in text:
        return _split(text, model, users)
    spread = re.search(r"\bD?EP(\d+)", text) if not text.startswith("TP") else None
    if spread:
        count = int(spread[1])
        return Layout(group=Group(tensor=count, attention=count, experts=count))
    if re.search(r"\b1 chip\b", text):
        return Layout(group=Group())
    return Layout(group=_possible(_whole(text, chip), model))


def _possible(group: Group, model: Llm) -> Group:
    """The group, or where heads cannot be cut so and no one did, a copy of attention on each chip of a deployment."""
    if model.heads % (group.tensor // group.attention):
        return Group(tensor=group.tensor, attention=group.tensor, experts=group.tensor)
    return group


def _whole(text: str, chip: Chip) -> Group:
    """One kind of engine.

    Some name 64 chips, or 16, of nodes of eight: ranks that share attention times ranks that share experts, which are
    the same 8, or 4, chips twice.
    """
    tensor = re.match(r"TP(\d+)\b", text)
    if tensor is None:
        raise Unpredicted(f"layout {text!r} is not predicted")
    copies = re.search(r"(?:aDP|attention-DP)(\d+)", text)
    experts, sliced = re.search(r"moeEP(\d+)", text), re.search(r"moeTP(\d+)", text)
    attention, spread_over = int(copies[1]) if copies else 1, int(experts[1]) if experts else 1
    chips, across = int(tensor[1]) * attention, spread_over * (int(sliced[1]) if sliced else 1)
    domain = chip.domain_size.value if chip.domain_size else 1.0
    real = math.isqrt(max(chips, across))
    twice = chips > domain or across > chips or (copies and sliced and int(sliced[1]) == spread_over)
    if twice and spread_over > 1 and real * real == max(chips, across):
        return Group(tensor=real, attention=real if attention > 1 else 1, experts=real)
    if across > chips and not copies:  # attention on fewer chips than experts: copies of it
        return Group(tensor=across, attention=across // chips, experts=spread_over)
    return Group(tensor=chips, attention=attention, experts=spread_over)


def _split(text: str, model: Llm, users: float) -> Layout:
    prefill, decode = re.search(_POOL.format("P"), text), re.search(_POOL.format("D"), text)
    if prefill is None or decode is None:
        raise Unpredicted(f"layout {text!r} is not predicted")
    known, many = decode[4] != "nan", users > GUESS_MANY_USERS
    guess = 1 if many else max(1, min(GUESS_MOST_WORKERS, round(users / GUESS_USERS_PER_WORKER)))
    return Layout(
        group=_possible(_pool(decode, not known and many), model),
        prefill=_possible(_pool(prefill, False), model),
        prefill_workers=int(prefill[4]) if prefill[4] != "nan" else None,
        decode_workers=int(decode[4]) if known else guess,
    )


def _pool(found: re.Match[str], spread: bool) -> Group:
    """Layouts without counts do not tell copies of attention either: many users on many ranks have them."""
    tensor, copies, experts = int(found[1]), int(found[2]), int(found[3])
    if spread and experts > 1:
        return Group(tensor=tensor, attention=tensor, experts=tensor)
    return Group(tensor=tensor * copies, attention=copies, experts=experts)
