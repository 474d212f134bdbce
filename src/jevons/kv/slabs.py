"""Places for pages of several sizes in one stretch of memory.

The stretch is cut into equal slabs; a slab serves one page size at a time and returns to the common stock when it is
empty. So the pages of one model never fragment what another's needs, and finding a place is O(1).
"""

from __future__ import annotations

from jevons.base.errors import ConfigError

SLABS = 64  # about so many: a slab in use by another page size is 1/64 of the memory at most
MIN_PAGES = 4  # in a slab: what is left over at its end is a quarter of a page on average
ALIGN = 4096


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN) * ALIGN


class _Slab:
    __slots__ = ("free", "page_bytes", "used")

    def __init__(self) -> None:
        self.page_bytes = 0
        self.free: list[int] = []
        self.used = 0


class Slabs:
    """Offsets into a memory of `size_bytes`.

    Args:
        size_bytes: the whole memory.
        page_bytes: the page it is mainly for; slabs are sized by it.

    Raises:
        ConfigError: it cannot hold one page.
    """

    def __init__(self, size_bytes: int, page_bytes: int) -> None:
        if size_bytes < _aligned(page_bytes):
            raise ConfigError(
                f"dram_bytes: must hold at least one block ({page_bytes} bytes for this model), got {size_bytes}; "
                f"raise it or set it to 0"
            )
        page = _aligned(page_bytes)
        pages = min(max(MIN_PAGES, size_bytes // SLABS // page), size_bytes // page)
        self.slab_bytes = pages * page
        self.used_bytes = 0
        self._slabs = [_Slab() for _ in range(size_bytes // self.slab_bytes)]
        self._empty = list(reversed(range(len(self._slabs))))
        self._partial: dict[int, set[int]] = {}  # page size → its slabs that have a place left

    def can_hold(self, page_bytes: int) -> bool:
        """Whether there can be a place for such pages at all."""
        return _aligned(page_bytes) <= self.slab_bytes

    def check(self, page_bytes: int) -> None:
        """Raises ConfigError if such pages cannot be held."""
        if not self.can_hold(page_bytes):
            raise ConfigError(
                f"dram_bytes: its {len(self._slabs)} parts of {self.slab_bytes} bytes cannot hold blocks of "
                f"{page_bytes} bytes; raise it, or start the engine with the larger blocks first"
            )

    def allocate(self, page_bytes: int) -> int | None:
        """A place for a page, or None if there is none left for this size."""
        page = _aligned(page_bytes)
        partial = self._partial.setdefault(page, set())
        if not partial and not self._open(page):
            return None
        number = next(iter(partial))
        slab = self._slabs[number]
        offset = slab.free.pop()
        slab.used += 1
        if not slab.free:
            partial.discard(number)
        self.used_bytes += page
        return offset

    def free(self, offset: int) -> None:
        """Give a place back."""
        number = offset // self.slab_bytes
        slab = self._slabs[number]
        slab.free.append(offset)
        slab.used -= 1
        self.used_bytes -= slab.page_bytes
        partial = self._partial[slab.page_bytes]
        if slab.used:
            partial.add(number)
        else:
            partial.discard(number)
            self._empty.append(number)

    def _open(self, page: int) -> bool:
        """Give an empty slab to pages of this size."""
        if not self._empty or not self.can_hold(page):
            return False
        number = self._empty.pop()
        slab = self._slabs[number]
        start = number * self.slab_bytes
        slab.page_bytes = page
        slab.free = list(range(start + (self.slab_bytes // page - 1) * page, start - 1, -page))
        self._partial[page].add(number)
        return True
