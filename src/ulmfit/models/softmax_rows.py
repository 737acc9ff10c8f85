"""The loss of rows of bfloat16 logits and its gradient on a CPU, row by row while the row is in the cache; by Numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ulmfit.models.compiled import intrinsic, kernel
from ulmfit.models.vectors import (
    LANES,
    LEAST_POWER,
    Vector,
    from_bfloat16,
    load_bfloat16,
    moved,
    spread,
    store_bfloat16,
    to_bfloat16,
)

AT_ONCE = 2 * LANES
_TO_POWERS = math.log2(math.e)
_BYTES = 2
_WORD = ir.IntType(64)


def _powers(build: Any, row: Any, index: Any, top: Vector) -> Vector:
    """e**(x - the row's greatest), for 32 numbers."""
    values = load_bfloat16(build, moved(build, row, AT_ONCE * _BYTES, index), AT_ONCE)
    return ((values - top) * _TO_POWERS).power_of_two(least=LEAST_POWER, most=0.0)


def in_all_lanes(build: Any, number: Any, count: int = AT_ONCE) -> Vector:
    """A float32 so many times."""
    one = build.insert_element(ir.Constant(ir.VectorType(number.type, 1), ir.Undefined), number, ir.IntType(32)(0))
    return spread(build, one).repeated(count // LANES)


def _gathered(build: Any, blocks: Any, begin: Vector, add: Any) -> Vector:
    """What `add` makes of 32 numbers so far and a block's number, block by block."""
    kept = cgutils.alloca_once_value(build, begin.value)
    with cgutils.for_range(build, blocks, intp=_WORD) as loop:
        build.store(add(Vector(build, build.load(kept)), loop.index).value, kept)
    return Vector(build, build.load(kept))


@intrinsic
def greatest(typing, row, blocks):  # type: ignore[no-untyped-def]
    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, blocks = operands
        first = load_bfloat16(build, row, AT_ONCE)

        def add(so_far: Vector, index: Any) -> Vector:
            return so_far.greater(load_bfloat16(build, moved(build, row, AT_ONCE * _BYTES, index), AT_ONCE))

        return _gathered(build, blocks, first, add).greatest_number()

    return types.float32(types.int64, types.int64), make


@intrinsic
def _sum_of_powers(typing, row, blocks, top):  # type: ignore[no-untyped-def]
    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, blocks, top = operands
        top = in_all_lanes(build, top)

        def add(so_far: Vector, index: Any) -> Vector:
            return so_far + _powers(build, row, index, top)

        return _gathered(build, blocks, top.like(0.0), add).sum_of_numbers()

    return types.float32(types.int64, types.int64, types.float32), make


@intrinsic
def _write_shares(typing, row, blocks, top, scale):  # type: ignore[no-untyped-def]
    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, blocks, top, scale = operands
        top, scale = in_all_lanes(build, top), in_all_lanes(build, scale)
        with cgutils.for_range(build, blocks, intp=_WORD) as loop:
            shares = _powers(build, row, loop.index, top) * scale
            store_bfloat16(shares, moved(build, row, AT_ONCE * _BYTES, loop.index))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.float32), make


@intrinsic
def wide(typing, half):  # type: ignore[no-untyped-def]
    """A bfloat16, given as int16."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        halves = build.bitcast(operands[0], ir.VectorType(ir.IntType(16), 1))
        return from_bfloat16(build, halves).numbers()[0]

    return types.float32(types.int16), make


@intrinsic
def _narrow(typing, number):  # type: ignore[no-untyped-def]
    """The nearest bfloat16."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        number = Vector(build, build.bitcast(operands[0], ir.VectorType(ir.FloatType(), 1)))
        return build.bitcast(to_bfloat16(number), ir.IntType(16))

    return types.int16(types.float32), make


@kernel
def softmax_rows(logits, targets, losses):  # type: ignore[no-untyped-def]
    """Cross entropy of each row of (rows, classes), and softmax(logits) - onehot(targets) in its place.

    Rows with a negative target get loss 0 and gradient 0.
    """
    rows, classes = logits.shape
    blocks = classes // AT_ONCE
    whole = blocks * AT_ONCE
    for row in range(rows):
        start = np.int64(logits.ctypes.data) + row * classes * _BYTES
        target = targets[row]
        if target < 0:
            losses[row] = 0
            logits[row] = 0
            continue
        top = greatest(start, blocks) if blocks else np.float32(-np.inf)
        for place in range(whole, classes):
            top = max(top, wide(logits[row, place]))
        total = _sum_of_powers(start, blocks, top)
        for place in range(whole, classes):
            total += np.float32(math.exp(wide(logits[row, place]) - top))
        losses[row] = math.log(total) + (top - wide(logits[row, target]))
        likely = np.float32(math.exp(wide(logits[row, target]) - top)) / total
        scale = np.float32(1) / total
        for place in range(whole, classes):
            logits[row, place] = _narrow(np.float32(math.exp(wide(logits[row, place]) - top)) * scale)
        _write_shares(start, blocks, top, scale)
        logits[row, target] = _narrow(likely - np.float32(1))
