"""Kernels: functions over arrays, written in Python and compiled when they are first called.

A kernel is plain Python that Numba can compile: arrays, records, numbers, loops. It allocates nothing and returns no
array, so its arrays are counted by nobody: counting costs a microsecond a call.

What it compiles to is kept on disk, in a directory named after the kernels' sources: Numba itself looks at one file
only, and would go on with an old version of what a kernel calls. Several processes may fill it at the same time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile

from jevons.base.errors import ConfigError

__all__ = [
    "FLOAT",
    "INT",
    "SMALL",
    "Ints",
    "Places",
    "Reals",
    "Records",
    "alike",
    "compiled",
    "grown",
    "is_compiled",
    "kept_in",
    "reserved",
]

F = TypeVar("F", bound=Callable[..., Any])

Ints = np.ndarray[Any, np.dtype[np.int64]]
Places = np.ndarray[Any, np.dtype[np.int32]]
Reals = np.ndarray[Any, np.dtype[np.float64]]
Records = Any  # an array of a record dtype, which is named where it is made; its fields are attributes of its elements
INT, SMALL, FLOAT = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float64)

_ROOMS = ("base", "kv", "perf", "policy", "control", "twin")


def _kernels_of(package: Path) -> str:
    """A name for the kernels as they are."""
    digest = blake2b(numba.__version__.encode(), digest_size=8)
    for room in _ROOMS:
        for file in sorted((package / room).glob("*.py")):
            text = file.read_bytes()
            if b"@compiled" in text:
                digest.update(text)
    return digest.hexdigest()


def kept_in(package: Path) -> Path:
    """Where what the kernels of `package` are compiled to is kept, made if it is not there.

    Raises:
        ConfigError: there is no such place. Numba would say that it cannot cache a function.
    """
    try:
        folder = Path.home() / ".cache" / "jevons" / "kernels" / _kernels_of(package)
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        hint = "set NUMBA_CACHE_DIR to a folder that may be written"
        raise ConfigError(f"kernels: what they are compiled to cannot be kept: {error}; {hint}") from error
    return folder


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(kept_in(Path(__file__).resolve().parents[1]))  # type: ignore[attr-defined]


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


# In the names of what it compiles, Numba tells records apart by numbers that it gives as they come. Two processes give
# one number to different records; who then loads what both have left gets functions under one name, of which the first
# serves for both: it crashed. So records are told apart by what they are.
types.Record.mangling_args = property(lambda record: ("Record", (_digest(record.name),)))  # type: ignore[assignment]


class _Files(IndexDataCacheFile):
    """What one kernel was compiled to, a file for each kind of arguments.

    Numba numbers these as they come, too, so that what one process writes may stand where another said that its own is.
    Named after the arguments they cannot be mixed up; what is lost of the index by chance is compiled again.
    """

    def __init__(self, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        super().__init__(cache_path, filename_base, source_stamp)  # type: ignore[no-untyped-call]
        self._stem = filename_base

    def save(self, key: Any, data: Any) -> None:
        name = f"{self._stem}.{_digest(repr(key))}.nbc"
        self._save_data(name, data)  # type: ignore[no-untyped-call] # first: whoever finds it in the index finds it
        self._save_index({**self._load_index(), key: name})  # type: ignore[no-untyped-call]


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)


def is_compiled(kernel: Callable[..., Any]) -> bool:
    """Whether it, and so all that it calls, was compiled on this machine before, for whatever arguments."""
    its = kernel if hasattr(kernel, "_cache") else kernel.__wrapped__  # type: ignore[attr-defined] # of `alike`
    return bool(its._cache._cache_file._load_index())


def compiled(function: F) -> F:
    """`function` compiled when it is first called. Integers wrap at 64 bits, indices are not checked."""
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
    kernel = numba.njit(**options)(function)
    kernel._cache = _Cache(function)
    return cast(F, kernel)


def alike(kernel: F) -> F:
    """`kernel`, for calls that always have the same types: Numba looks at them in the first one only. With a hub that
    look takes longer than a small kernel. Where hubs are of several kinds, each is to have one of its own."""
    entry: Callable[..., Any] | None = None

    def call(*args: Any) -> Any:
        nonlocal entry
        if entry is not None:
            return entry(*args)
        found = kernel(*args)
        entry = kernel.overloads[tuple(map(numba.typeof, args))].entry_point  # type: ignore[attr-defined]
        return found

    call.__wrapped__ = kernel  # type: ignore[attr-defined]
    return cast(F, call)


def grown(array: Any, size: int) -> Any:
    """`array` with room for `size` elements, its own first; what is new is zero."""
    wider = np.zeros(size, array.dtype)
    wider[: len(array)] = array
    return wider


def reserved(array: Any, size: int, *, large_pages: bool = False) -> Any:
    """As `grown`, for far more than may ever be used: what was never touched takes no memory.

    Args:
        large_pages: of 2 MB, as Numpy asks for. To clear one took 5 ms where memory was fragmented, which is too long
            where somebody waits; but kernels that jump about in hundreds of megabytes are a fifth faster by them.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, max(1, size) * array.dtype.itemsize, flags=flags)
    wish = "MADV_HUGEPAGE" if large_pages else "MADV_NOHUGEPAGE"
    if hasattr(mmap, wish):
        pages.madvise(getattr(mmap, wish))
    wider = np.frombuffer(pages, array.dtype, size)
    wider[: len(array)] = array
    return wider
