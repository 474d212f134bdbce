"""Kernels that hand out pieces of one array: a piece's size is a power of two, and pieces given back are used again."""

from __future__ import annotations

from typing import Any

import numpy as np

from jevons.base.compiled import Ints, compiled

_CLASSES = 40
_USED = _CLASSES  # of `spare`: elements ever used


def new_spare() -> Ints:
    """Of an array of which nothing is in use: of each size the first piece given back, which names the next."""
    spare = np.full(_CLASSES + 1, -1, np.int64)
    spare[_USED] = 0
    return spare


@compiled
def size_class(count: int) -> int:
    """The class of the pieces that hold `count` elements."""
    kind = 0
    while (1 << kind) < count:
        kind += 1
    return kind


@compiled
def room_left(size: int, spare: Ints) -> int:
    """Elements never used yet, of an array of this size."""
    return int(size - spare[_USED])


@compiled
def cut(data: Any, spare: Ints, kind: int) -> int:
    """A piece of this class: where it begins. There must be room for it."""
    at = spare[kind]
    if at >= 0:
        spare[kind] = data[at]
        return int(at)
    at = spare[_USED]
    spare[_USED] += 1 << kind
    return int(at)


@compiled
def give_back(data: Any, spare: Ints, at: int, kind: int) -> None:
    """The piece that begins there is not needed any more."""
    data[at] = spare[kind]
    spare[kind] = at
