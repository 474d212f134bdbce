"""One index for all tiers and groups of layers: a block has another name in each, so none is taken for another.

    the first group in hbm     name
    any other part             name XOR a random number that stands for tier and group

Copies are counted for each (worker, tier, group). A prompt can be gone on from after a block where every group with
full attention has all blocks up to it, and every group with a sliding window those that its window reaches back to:

    full     ■ ■ ■ ■ ■ ■ □         window of 2 blocks     □ □ ■ □ ■ ■ □        gone on from after the sixth
"""

from __future__ import annotations

from jevons.base.compiled import Ints, Places, Records, compiled
from jevons.facts.block import Tier
from jevons.kv.entries import print_of
from jevons.kv.overlaps import depth_on, holds

FULL = 0  # what is said of a group whose layers look back at everything
_TIERS = tuple(Tier)
TIERS = len(_TIERS)


def part_of(tier: Tier, group: int) -> int:
    """The number of a tier and a group; 0 is the first group in hbm."""
    return _TIERS.index(tier) + len(_TIERS) * group


def group_part(group: int, tier: Tier = Tier.HBM) -> int:
    """Of an engine's group that is not the first one here, by the engine's number."""
    return part_of(tier, group + 1)


@compiled
def salt_of(part: int) -> int:
    return print_of(-1 - part) if part > 0 else 0


def names_in(names: Ints, tier: Tier = Tier.HBM, group: int = 0) -> Ints:
    """What blocks are known by there, from what they are known by in the first group in hbm."""
    part = part_of(tier, group)
    return names ^ salt_of(part) if part else names


def window_blocks(window_tokens: int, block_size: int) -> int:
    """Blocks before the next token that a sliding window of so many tokens, that one among them, can reach back to."""
    return -(-(window_tokens - 1) // block_size)


@compiled
def reach(h: Records, worker: int, names: Ints, parts: Ints, windows: Places) -> int:
    """Leading blocks of `names` after which `worker` can go on, by all its groups.

    Args:
        parts: of each group, see `part_of`.
        windows: of each group, blocks its window reaches back to; FULL.
    """
    depth = len(names)
    for group in range(len(parts)):
        if windows[group] == FULL:
            depth = _depth_in(h, worker, names[:depth], parts[group])
    while depth > 0:
        hole = -1
        for group in range(len(parts)):
            if windows[group] != FULL:
                hole = max(
                    hole, _hole_in(h, worker, names[max(0, depth - windows[group]) : depth], parts[group], depth)
                )
        if hole < 0:
            break
        depth = hole  # further on, every window reaches back to the hole, or to what lies behind `depth`
    return depth


@compiled
def _depth_in(h: Records, worker: int, names: Ints, part: int) -> int:
    if part == 0:
        return int(depth_on(h, worker, names))
    depth, salt = 0, salt_of(part)
    while depth < len(names) and holds(h, worker, names[depth] ^ salt):
        depth += 1
    return depth


@compiled
def _hole_in(h: Records, worker: int, names: Ints, part: int, depth: int) -> int:
    """The last of `names`, which end before `depth`, that is missing; -1: none is."""
    salt = salt_of(part)
    for back in range(1, len(names) + 1):
        if not holds(h, worker, names[len(names) - back] ^ salt):
            return depth - back
    return -1
