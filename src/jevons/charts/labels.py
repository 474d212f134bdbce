"""Names beside what they name: each is tried at many places, and stands where it covers least.

Done for a width in pixels, with characters of a fixed width. Beside their points, what stands apart there does so in a
wider window too, since places move apart and texts do not grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from jevons.charts.picture import CHAR_PX, LINE_PX

Places = np.ndarray[Any, np.dtype[np.float64]]

_ANCHORS = tuple((x, y) for y in ("bottom", "top", "middle") for x in ("left", "right", "center"))[:8]
_BELOW = (("center", "top"), ("left", "top"), ("right", "top"))
_AWAY = tuple(
    (x, sign * y)
    for y in (26.0, 46.0, 68.0, 92.0, 116.0)
    for sign in (1, -1)
    for x in (24.0, -24.0, 0.0, 52.0, -52.0, 100.0, -100.0, 150.0, -150.0)
)
_GAP_PX = 5.0
_MARKER = np.array([(x, y) for x in (-4.5, 0.0, 4.5) for y in (-4.5, 0.0, 4.5)])  # within the gap to its own name
_TRIED = 40  # places along a curve
_INK, _NAME, _OUTSIDE = 10.0, 1_000.0, 3_000.0  # what it costs to cover four pixels of a curve, a name; to stick out


class Name(msgspec.Struct, frozen=True):
    """A text to be placed somewhere along `path`, [points, 2] in shares of the picture, best near `prefers` of it."""

    text: str
    path: Places
    prefers: float = 0.5
    may_go: bool = False  # left out where it would cover anything
    is_below: bool = False  # stands below its point only
    may_lead: bool = False  # stands away from its point where there is no room beside it


class Placed(msgspec.Struct, frozen=True):
    """A name at a point of its path: which side of it, and how far off in pixels."""

    name: int
    at: tuple[float, float]  # shares of the picture
    x_anchor: str
    y_anchor: str
    x_shift: float
    y_shift: float
    is_led: bool = False  # away from its point, with a line to it


def place(
    names: Sequence[Name], covered: Sequence[Places], width_px: float, height_px: float, taken: Sequence[Places] = ()
) -> list[Placed]:
    """Where names stand, in their order; the first choose first.

    Args:
        covered: curves that names should not cover, [points, 2] in shares of the picture.
        taken: other texts: left, bottom, right, top in pixels.
    """
    board = _Board(covered, np.array([width_px, height_px]), taken)
    found: list[Placed] = []
    for i, name in enumerate(names):
        anchors = _BELOW if name.is_below else _ANCHORS
        tried = [(at, anchor) for at in _along(name) for anchor in anchors]
        costs = [board.cost(name, at, anchor) for at, anchor in tried]
        best = int(np.argmin(costs))
        if name.may_lead and costs[best] >= _INK and (led := board.led(name, i)) is not None:
            found.append(led)
            continue
        if name.may_go and costs[best] >= _INK:
            continue
        at, anchor = tried[best]
        box, shift = board.box(name, at, anchor)
        board.taken.append(box)
        x, y = name.path[at].tolist()
        found.append(Placed(i, (x, y), *anchor, *shift))
    return found


def text_px(text: str) -> tuple[float, float]:
    """Width and height of a text."""
    parts = text.split("<br>")
    return CHAR_PX * max(len(part) for part in parts), float(LINE_PX * len(parts))


def _along(name: Name) -> list[int]:
    count = len(name.path)
    return sorted({round(share * (count - 1)) for share in np.linspace(0.0, 1.0, min(_TRIED, count))})


class _Board:
    """What is taken already, in pixels."""

    def __init__(self, covered: Sequence[Places], size: Places, taken: Sequence[Places]) -> None:
        self._ink = np.concatenate([_dense(path * size) for path in covered]) if covered else np.zeros((0, 2))
        self._size = size
        self.taken = list(taken)

    def cost(self, name: Name, at: int, anchor: tuple[str, str]) -> float:
        """Of standing there: what it covers, then how far it is from where it would rather be."""
        cost = self.covers(self.box(name, at, anchor)[0])
        cost += 5.0 * abs(at / max(1, len(name.path) - 1) - name.prefers)
        return cost + 0.1 * (_BELOW if name.is_below else _ANCHORS).index(anchor)

    def covers(self, box: Places) -> float:
        cost = _INK * float(((self._ink > box[:2]) & (self._ink < box[2:])).all(axis=1).sum())
        cost += sum(_NAME for other in self.taken if (box[:2] < other[2:]).all() and (other[:2] < box[2:]).all())
        return cost + _OUTSIDE * float((box[:2] < 0).sum() + (box[2:] > self._size).sum())

    def led(self, name: Name, number: int) -> Placed | None:
        """At the nearest place away from its only point where it covers nothing."""
        point, size = name.path[0], np.array(text_px(name.text))
        for shift in sorted(_AWAY, key=lambda shift: np.hypot(*shift)):
            middle = point * self._size + shift
            box = np.concatenate([middle - size / 2, middle + size / 2])
            if self.covers(box) == 0.0:
                self.taken.append(box)
                x, y = point.tolist()
                return Placed(number, (x, y), "center", "middle", *shift, is_led=True)
        return None

    def box(self, name: Name, at: int, anchor: tuple[str, str]) -> tuple[Places, tuple[float, float]]:
        return _box(name.text, name.path[at] * self._size, anchor)


def _box(text: str, point: Places, anchor: tuple[str, str]) -> tuple[Places, tuple[float, float]]:
    """Left, bottom, right, top; y goes up. And how far the text is off its point."""
    width, height = text_px(text)
    x_shift = {"left": _GAP_PX, "right": -_GAP_PX, "center": 0.0}[anchor[0]]
    y_shift = {"bottom": _GAP_PX, "top": -_GAP_PX, "middle": 0.0}[anchor[1]]
    left = point[0] + x_shift - {"left": 0.0, "right": width, "center": width / 2}[anchor[0]]
    bottom = point[1] + y_shift - {"bottom": 0.0, "top": height, "middle": height / 2}[anchor[1]]
    return np.array([left, bottom, left + width, bottom + height]), (x_shift, y_shift)


def evenly(path: Places, count: int) -> Places:
    """So many points along a curve, as far from each other."""
    if len(path) < 2:
        return path
    kept = path[np.isfinite(path).all(axis=1)]
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(kept, axis=0).T))])
    at = np.linspace(0.0, lengths[-1], count)
    return np.column_stack([np.interp(at, lengths, kept[:, 0]), np.interp(at, lengths, kept[:, 1])])


def _dense(path: Places) -> Places:
    """Points along a curve, at most four pixels from one to the next; of a point alone its marker's."""
    if len(path) == 1:
        return np.asarray(path[0] + _MARKER)
    length = float(np.hypot(*np.diff(path, axis=0).T).sum()) if len(path) > 1 else 0.0
    return evenly(path, 2 + int(min(length, 20_000.0) / 4.0))
