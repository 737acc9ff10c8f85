"""How kernels for a CPU are compiled: by Numba, when first called, and kept on disk for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding
from numba import types
from numba.extending import intrinsic

__all__ = ["intrinsic", "kernel", "part", "signature"]

binding.initialize_native_asmparser()  # for instructions that are written out; Numba itself has no need of one


def kernel(function: Callable[..., Any]) -> Any:
    """Compiled; other threads of Python go on meanwhile.

    It is kept beside the source, or in the user's cache; where neither can be written to it is compiled by each
    process, for some five seconds. Arguments are arrays and numbers, and what they hold is not checked. An array whose
    address is taken is an argument: one that a kernel makes is gone once its name is last used, address or not.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # Numba finds no place to keep it
        return numba.njit(nogil=True)(function)


def part(function: Callable[..., Any]) -> Any:
    """The same for what only kernels call, put in at every call: with a dozen numbers a call costs as much as a row."""
    return numba.njit(nogil=True, forceinline=True)(function)


def signature(addresses: int, write: Callable[[Any, Any], None]) -> Any:
    """Of an intrinsic that takes so many int64, addresses and such, and gives nothing: what Numba asks of it.

    `write` is called with the builder of the code and the operands.
    """

    def make(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        write(builder, operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * addresses), make
