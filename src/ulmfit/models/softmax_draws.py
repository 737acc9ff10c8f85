"""The gradient of a loss over many classes from probabilities rounded at random to multiples of 1/256; by Numba.

A rounded probability is the right one on average, and all of a row's come to about 1, so at most some 256 of its tens
of thousands are not 0: what they multiply is summed up row by row, a hundredth of the dense products. The rounding of p
has a variance of at most p / 256. The label itself is a draw with variance p (1 - p), so what a step learns from is no
noisier by more than a part in 256 for the rare classes that this is about.

Along a row classes are met by 32 sums, each of every 32nd, which begin at random between 0 and 1: a class is given the
whole steps that its probability brings its sum past (systematic sampling; Madow & Madow 1944).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ulmfit.models.compiled import intrinsic, kernel, part
from ulmfit.models.softmax_rows import AT_ONCE, greatest, in_all_lanes, wide
from ulmfit.models.vectors import LANES, Vector, load_bfloat16, load_floats, moved, store

STEPS = 256
"""that a probability of 1 is rounded to"""
SUMS = AT_ONCE
"""in which a row is added up"""
MOST = STEPS + SUMS + 32
"""classes of a row at most: each sum may begin near 1, and a row's total is off by its rounding; and the label"""
_BYTES = 2
_WORD = ir.IntType(64)
_LINE = 64
"""bytes of the cache"""
_AHEAD = 4
"""rows that are fetched while others are added"""


@intrinsic
def _write_powers(typing, row, blocks, top, into):  # type: ignore[no-untyped-def]
    """e**(x - the row's greatest), of so many times 32 numbers, and the sum of all."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, blocks, top, into = operands
        top = in_all_lanes(build, top)
        total = cgutils.alloca_once_value(build, top.like(0.0).value)
        with cgutils.for_range(build, blocks, intp=_WORD) as loop:
            values = load_bfloat16(build, moved(build, row, AT_ONCE * _BYTES, loop.index), AT_ONCE)
            power = ((values - top) * math.log2(math.e)).power_of_two_up_to()
            store(build, power.value, moved(build, into, AT_ONCE * 4, loop.index))
            build.store((Vector(build, build.load(total)) + power).value, total)
        return Vector(build, build.load(total)).sum_of_numbers()

    return types.float32(types.int64, types.int64, types.float32, types.int64), make


@intrinsic
def _carry(typing, powers, scale, sums):  # type: ignore[no-untyped-def]
    """Add the shares of 32 classes to the sums: a bit for each that is 1 or more then."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        powers, scale, sums = operands
        shares = load_floats(build, powers, AT_ONCE) * in_all_lanes(build, scale)
        total = load_floats(build, sums, AT_ONCE) + shares
        store(build, total.value, sums)
        beyond = build.fcmp_ordered(">=", total.value, total.like(1.0).value)
        return build.zext(build.bitcast(beyond, ir.IntType(AT_ONCE)), _WORD)

    return types.int64(types.int64, types.float32, types.int64), make


@intrinsic
def _lowest(typing, bits):  # type: ignore[no-untyped-def]
    """The place of the lowest bit that is set; there is one."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        return build.cttz(operands[0], ir.IntType(1)(1))

    return types.int64(types.int64), make


@intrinsic
def _add_row(typing, total, row, blocks, factor):  # type: ignore[no-untyped-def]
    """Add so many times 16 bfloat16 times a factor to as many float32."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        total, row, blocks, factor = operands
        by = in_all_lanes(build, factor, LANES)
        with cgutils.for_range(build, blocks, intp=_WORD) as loop:
            place = moved(build, total, 4 * LANES, loop.index)
            values = load_bfloat16(build, moved(build, row, _BYTES * LANES, loop.index))
            store(build, (values * by + load_floats(build, place)).value, place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), make


@intrinsic
def _fetch(typing, row, lines):  # type: ignore[no-untyped-def]
    """So many lines of memory into the cache, which will be read soon."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, lines = operands
        kind = ir.FunctionType(ir.VoidType(), [_WORD])
        with cgutils.for_range(build, lines, intp=_WORD) as loop:
            build.asm(kind, "prefetcht0 ($0)", "r", [moved(build, row, _LINE, loop.index)], side_effect=True)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), make


@part
def _keep(classes, amounts, count, class_, amount):  # type: ignore[no-untyped-def]
    """One more of a row's; how many there are then."""
    if count < MOST:
        classes[count], amounts[count] = class_, amount
        count += 1
    return count


@kernel
def draw_rows(logits, targets, losses, begin, classes, amounts, counts, powers):  # type: ignore[no-untyped-def]
    """Cross entropy of each row of bfloat16 (rows, classes), and what its gradient is made of.

    begin     (rows, 32) float32, what sums begin with; used up
    classes, amounts
              (rows, `MOST`) of each row the first `counts`: classes and their gradients, in steps of 1 / `STEPS`
    powers    (classes,) float32, used up

    Rows with a negative target get loss 0 and nothing else.
    """
    rows, width = logits.shape
    blocks = width // AT_ONCE
    whole = blocks * AT_ONCE
    into = np.int64(powers.ctypes.data)
    for row in range(rows):
        start = np.int64(logits.ctypes.data) + row * width * _BYTES
        target, count = targets[row], 0
        if target < 0:
            losses[row], counts[row] = 0, 0
            continue
        top = greatest(start, blocks) if blocks else np.float32(-np.inf)
        for place in range(whole, width):
            top = max(top, wide(logits[row, place]))
        total = _write_powers(start, blocks, top, into)
        for place in range(whole, width):
            powers[place] = math.exp(wide(logits[row, place]) - top)
            total += powers[place]
        losses[row] = math.log(total) + (top - wide(logits[row, target]))
        scale = np.float32(STEPS) / total
        sums = begin[row]
        address = np.int64(sums.ctypes.data)
        for block in range(blocks):
            beyond = _carry(into + block * AT_ONCE * 4, scale, address)
            while beyond:
                lane = _lowest(beyond)
                beyond &= beyond - 1
                amount = int(sums[lane])
                sums[lane] -= amount
                count = _keep(classes[row], amounts[row], count, block * AT_ONCE + lane, amount)
        for place in range(whole, width):
            lane = place - whole
            sums[lane] += powers[place] * scale
            amount = int(sums[lane])
            if amount:
                sums[lane] -= amount
                count = _keep(classes[row], amounts[row], count, place, amount)
        counts[row] = _keep(classes[row], amounts[row], count, target, -STEPS)


@kernel
def order_by_class(classes, amounts, counts, starts, rows_of, amounts_of, totals):  # type: ignore[no-untyped-def]
    """The same drawn by class: of class c the rows and amounts from starts[c] to starts[c + 1], and the sum of these.

    starts    (classes + 1,)
    rows_of, amounts_of
              as many as all counts
    totals    (classes,)
    """
    starts[:] = 0
    totals[:] = 0
    for row in range(len(counts)):
        for place in range(counts[row]):
            starts[classes[row, place] + 1] += 1
    for class_ in range(len(totals)):
        starts[class_ + 1] += starts[class_]
    following = starts.copy()
    for row in range(len(counts)):
        for place in range(counts[row]):
            class_, amount = classes[row, place], amounts[row, place]
            to = following[class_]
            rows_of[to], amounts_of[to] = row, amount
            following[class_] = to + 1
            totals[class_] += amount


@kernel
def weighted_sums(starts, ends, places, amounts, table, out):  # type: ignore[no-untyped-def]
    """Of rows of bfloat16 (rows, size), each with an amount of 1 / `STEPS`: out (sums, size) in float32.

    Sum s is of the places and amounts from starts[s] to ends[s].
    """
    size = table.shape[1]
    first, into = np.int64(table.ctypes.data), np.int64(out.ctypes.data)
    lines = (size * _BYTES + _LINE - 1) // _LINE + 1
    for number in range(len(starts)):
        out[number] = 0
        for place in range(starts[number], ends[number]):
            if place + _AHEAD < ends[number]:
                _fetch(first + np.int64(places[place + _AHEAD]) * size * _BYTES, lines)
            row = first + np.int64(places[place]) * size * _BYTES
            _add_row(into + number * size * 4, row, size // LANES, np.float32(amounts[place]) / np.float32(STEPS))
