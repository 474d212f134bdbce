"""A hub: the arrays and numbers that kernels work on, as one record of pointers.

A kernel that is given forty arrays takes a minute to compile and a microsecond to call. A hub is one pointer: kernels
take it as `h`, read its numbers as `h.name`, and its arrays by `view(h.name, h.name_n, DTYPE)`. Python owns the arrays;
one that has grown is put in the place of the old.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from jevons.base.compiled import grown

__all__ = ["Hub", "fetch", "view"]


def _view(typing: Any, address: Any, count: Any, dtype: Any) -> Any:
    kind = types.Array(dtype.dtype, 1, "C", aligned=True)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = make_array(kind)(context, builder)  # type: ignore[no-untyped-call]
        element = context.get_data_type(kind.dtype)
        size = context.get_constant(types.intp, context.get_abi_sizeof(element))
        data = builder.inttoptr(args[0], element.as_pointer())
        parts = {"data": data, "shape": [args[1]], "strides": [size], "itemsize": size, "meminfo": None}
        populate_array(made, **parts)  # type: ignore[no-untyped-call]
        return made._getvalue()

    return kind(types.int64, types.int64, dtype), build


# view(address, count, dtype): the array of so many elements that lies there; for kernels, while its owner lives.
view: Callable[[Any, Any, Any], Any] = intrinsic(_view)  # type: ignore[assignment]


def _fetch(typing: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, flag, ir = builder.inttoptr(args[0], cgutils.voidptr_t), cgutils.int32_t, cgutils.ir  # type: ignore[attr-defined]
        kind = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(ask, [place, flag(0), flag(3), flag(1)])  # data, to be read, and again soon
        return context.get_dummy_value()

    return types.none(types.int64), build


# fetch(address): what lies there will be read soon. It changes nothing, and nobody waits for it; it may lie nowhere.
fetch: Callable[[int], None] = intrinsic(_fetch)  # type: ignore[assignment]


@functools.cache
def _dtype(fields: tuple[tuple[str, Any], ...]) -> Any:
    """Of all hubs with these fields one object: Numba knows it again at once, others it looks through, which takes a
    microsecond a call."""
    return np.dtype(list(fields))


class Hub:
    """Arrays and numbers by name.

    Args:
        arrays: one-dimensional, contiguous.
        numbers: ints and floats.
    """

    def __init__(self, arrays: Mapping[str, Any], numbers: Mapping[str, int | float]) -> None:
        fields: list[tuple[str, Any]] = []
        for name in arrays:
            fields += [(name, np.int64), (f"{name}_n", np.int64)]
        fields += [(name, np.float64 if isinstance(value, float) else np.int64) for name, value in numbers.items()]
        # Where its fields end it has one by their number: of two hubs, of which one begins like the other, Numba would
        # take the longer for a kind of the shorter, and warn.
        fields.append((f"after_{len(fields)}", np.int64))
        self.record = np.zeros(1, _dtype(tuple(fields)))  # [1] what kernels get
        self._fields = {name: self.record[name] for name, _ in fields}  # finding one in the record takes longer
        self._arrays: dict[str, Any] = {}
        for name, array in arrays.items():
            self.put(name, array)
        for name, value in numbers.items():
            self.record[name] = value

    def put(self, name: str, array: Any) -> None:
        """`array` is what is meant by `name` from now on."""
        assert array.ndim == 1, "kernels see arrays of one dimension"
        assert array.flags.c_contiguous, "kernels see contiguous arrays"
        self._arrays[name] = array
        self._fields[name][0], self._fields[f"{name}_n"][0] = array.ctypes.data, len(array)

    def __getitem__(self, name: str) -> Any:
        """The array of that name."""
        return self._arrays[name]

    def number(self, name: str) -> Any:
        return self._fields[name].item()

    def set(self, name: str, value: int | float) -> None:
        self._fields[name][0] = value

    def grow(self, name: str, size: int) -> None:
        """Room for `size` elements; what is new is zero."""
        self.put(name, grown(self._arrays[name], size))
