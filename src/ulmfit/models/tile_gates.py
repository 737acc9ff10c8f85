"""The gates of an LSTM layer in int8 on a CPU, from the sums of products to the hidden vector, for `tile_kernel`."""

from __future__ import annotations

import functools
import math
from typing import Any

from ulmfit.int8_rows import CODE_OF_ZERO, INT8_PEAK
from ulmfit.models.compiled import intrinsic, part, signature
from ulmfit.models.tile_weights import BLOCK, EXPONENTS, GATES, ROWS, TILE, UNITS
from ulmfit.models.vectors import MOST_POWER, Vector, load_floats, load_ints, moved, nth_row, spread, store

NONE_WAIT: tuple[Any, ...] = (0,) * 12
"""what `pass_rest` takes where there is nothing to do; else of up to 32 rows of 16 units, that lie as in `read_steps`,
the addresses of sums, constants, cells, hidden vectors in int8 and exact ones, all sums of inputs and their scales, or
0, with strides from gate to gate or row to row: (sums, stride, constants, cell, hidden, output, output_stride,
of_inputs, inputs_stride, scales, count, blocks); how many rows, and how many blocks a tile of hidden vectors has"""
COUNT = 10
"""where among these the number of rows is"""


def _gates(build: Any, operands: Any, rows: int) -> None:
    """The arithmetic of so many rows of 16 units, where each division serves two of the formulas' quotients.

    Sums are of all products, or of those with hidden vectors where operands go on with sums of those with inputs.
    """
    sums, stride, constants, cell, hidden, output, output_stride, *apart = operands
    many = rows * UNITS

    def constant(part: int, gate: int) -> Vector:
        return load_floats(build, moved(build, constants, (GATES * part + gate) * UNITS * 4)).repeated(rows)

    exponents = []
    for gate in range(GATES):
        exponent = constant(0, gate)
        if apart:
            of_inputs, inputs_stride, scales = apart
            scale = spread(build, load_floats(build, scales, rows).value)
            from_inputs = load_ints(build, moved(build, of_inputs, gate, inputs_stride), many)
            exponent = from_inputs * scale * constant(2, gate) + exponent
        exponents.append(load_ints(build, moved(build, sums, gate, stride), many) * constant(1, gate) + exponent)
    # What is divided by may be beyond all float32, for a quotient of 0, where there is no product with it.
    entry, forget, exit_, candidate = (
        exponent.power_of_two_up_to(most)
        for exponent, most in zip(exponents, (MOST_POWER, MOST_POWER, math.inf, MOST_POWER), strict=True)
    )
    both, to_forget = candidate + 1, forget + 1
    to_candidate = entry * both + both
    before = load_floats(build, cell, many)
    after = (before * to_candidate + (1 - candidate) * to_forget) / (to_candidate * to_forget)
    store(build, after.value, cell)
    squashed = (after * EXPONENTS[-1]).power_of_two_up_to(MOST_POWER)
    both = squashed + 1
    value: Vector = (1 - squashed) / (exit_ * both + both)
    rounded = (value * INT8_PEAK).nearest_byte(CODE_OF_ZERO)
    for number in range(rows):
        store(build, nth_row(build, rounded, number), moved(build, hidden, number * BLOCK))
        store(build, nth_row(build, value.value, number), moved(build, output, number, output_stride))


@intrinsic
def _pass_row(typing, sums, stride, constants, cell, hidden, output, output_stride):  # type: ignore[no-untyped-def]
    """A row of 16 units: its cell changes, and its hidden vector is written, in int8 and as it was before."""
    return signature(7, functools.partial(_gates, rows=1))


@intrinsic
def _pass_two_rows(  # type: ignore[no-untyped-def]
    typing, sums, stride, constants, cell, hidden, output, output_stride
):
    """Two rows that follow each other."""
    return signature(7, functools.partial(_gates, rows=2))


@intrinsic
def _pass_row_apart(  # type: ignore[no-untyped-def]
    typing, sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales
):
    """A row with sums of inputs and their scale by themselves."""
    return signature(10, functools.partial(_gates, rows=1))


@intrinsic
def _pass_two_rows_apart(  # type: ignore[no-untyped-def]
    typing, sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales
):
    """Two such rows."""
    return signature(10, functools.partial(_gates, rows=2))


@part
def pass_two(waiting, row):  # type: ignore[no-untyped-def]
    """Two rows of those that wait, from `row` on."""
    sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales, _, blocks = waiting
    sums, cell, output = sums + row * UNITS * 4, cell + row * UNITS * 4, output + row * output_stride
    hidden += row // ROWS * blocks * TILE + row % ROWS * BLOCK
    if of_inputs:
        of_inputs, scales = of_inputs + row * UNITS * 4, scales + row * 4
        _pass_two_rows_apart(
            sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales
        )
    else:
        _pass_two_rows(sums, stride, constants, cell, hidden, output, output_stride)


@part
def pass_rest(waiting, passed):  # type: ignore[no-untyped-def]
    """All rows that wait but those passed: one, or an even number."""
    sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales, count, _ = waiting
    if count == 1 and of_inputs:
        _pass_row_apart(sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales)
    elif count == 1:
        _pass_row(sums, stride, constants, cell, hidden, output, output_stride)
    for row in range(passed, count - 1, 2):
        pass_two(waiting, row)
