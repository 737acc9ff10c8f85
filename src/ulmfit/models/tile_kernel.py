"""An LSTM layer in int8 on a CPU, compiled by Numba: products of tiles, and the gates while their sums are at hand.

A product by a library writes its sums to memory, and the gates' arithmetic reads them from there again, an operation at
a time. Here sixteen units of up to 32 rows go from products to gates to the hidden vector within the first-level cache;
weights stream by once a step.

Rows of int8, each number `SIGN` more, lie in tiles, (tiles, blocks, 16, 64): row r of tile t is row 16 t + r of all,
with its entries in blocks of 64. Rows of a step follow those of the step before.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ulmfit.compute import cpu_has_tiles
from ulmfit.int8_rows import INT8_PEAK
from ulmfit.models.compiled import intrinsic, kernel, part, signature
from ulmfit.models.tile_weights import BLOCK, EXPONENTS, GATES, PAIR, ROWS, SIGN, TILE, UNITS
from ulmfit.models.vectors import Vector, load_floats, load_ints, moved, nth_row, spread, store

if cpu_has_tiles():
    from ulmfit.models.amx import configurations, configure, multiply_few, multiply_pair, release
else:
    from ulmfit.models.vnni import configurations, configure, multiply_few, multiply_pair, release

TABLES = configurations()
"""for `configure`"""


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
    entry, forget, exit_, candidate = (exponent.power_of_two() for exponent in exponents)
    to_candidate, to_forget = (entry + 1) * (candidate + 1), forget + 1
    before = load_floats(build, cell, many)
    after = (before * to_candidate + (1 - candidate) * to_forget) / (to_candidate * to_forget)
    store(build, after.value, cell)
    squashed = (after * EXPONENTS[-1]).power_of_two()
    value: Vector = (1 - squashed) / ((exit_ + 1) * (squashed + 1))
    rounded = (value * INT8_PEAK + SIGN).nearest_byte()
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


@kernel
def multiply_inputs(inputs, weight, offsets, sums, tables, first, count):  # type: ignore[no-untyped-def]
    """Tiles of rows by the inputs' part of a weight: `count` tiles from the `first` on.

    sums      int32 (units / 16, 4, 16 * count, 16)
    """
    units, all_blocks, blocks = weight.shape[0], weight.shape[1], inputs.shape[1]
    stride = sums.shape[2] * UNITS * 4
    rows = np.int64(inputs.ctypes.data) + first * blocks * TILE
    configure(np.int64(tables.ctypes.data) + ROWS * BLOCK)
    for unit in range(units):
        columns = np.int64(weight.ctypes.data) + unit * all_blocks * 4 * TILE
        offset = np.int64(offsets.ctypes.data) + unit * offsets.shape[1] * GATES * UNITS * 4
        for tile in range(0, count, 2):
            read, into = rows + tile * blocks * TILE, np.int64(sums.ctypes.data) + unit * GATES * stride
            into += tile * ROWS * UNITS * 4
            both = PAIR if count - tile > 1 else ROWS
            _multiply(read, both, blocks, read, 0, columns, offset, UNITS * 4, 0, into, stride)
    release()


@part
def _place(tiles, row, blocks):  # type: ignore[no-untyped-def]
    """Where a row begins."""
    return tiles + row // ROWS * blocks * TILE + row % ROWS * BLOCK


@part
def _multiply(  # type: ignore[no-untyped-def]
    rows, count, blocks, more, more_blocks, weight, begin, begin_stride, each, sums, stride
):
    """32 rows or up to 16."""
    if count == PAIR:
        multiply_pair(rows, blocks, more, more_blocks, weight, begin, begin_stride, each, sums, stride)
    else:
        multiply_few(rows, count, blocks, more, more_blocks, weight, begin, begin_stride, each, sums, stride)


@part
def _pass_all(  # type: ignore[no-untyped-def]
    sums,
    stride,
    constants,
    cell,
    hidden,
    output,
    output_stride,
    of_inputs,
    inputs_stride,
    scales,
    count,
    blocks,
):
    """One row, or an even number up to 32 that fill two tiles, each of so many blocks."""
    if count == 1:
        if of_inputs:
            _pass_row_apart(
                sums, stride, constants, cell, hidden, output, output_stride, of_inputs, inputs_stride, scales
            )
        else:
            _pass_row(sums, stride, constants, cell, hidden, output, output_stride)
    for row in range(0, count - 1, 2):
        one = row * UNITS * 4
        into, vector = _place(hidden, row, blocks), output + row * output_stride
        if of_inputs:
            _pass_two_rows_apart(
                sums + one,
                stride,
                constants,
                cell + one,
                into,
                vector,
                output_stride,
                of_inputs + one,
                inputs_stride,
                scales + row * 4,
            )
        else:
            _pass_two_rows(sums + one, stride, constants, cell + one, into, vector, output_stride)


@kernel
def read_steps(  # type: ignore[no-untyped-def]
    inputs,
    scales,
    weight,
    offsets,
    constants,
    before,
    outputs,
    cells,
    exact,
    sums,
    space,
    tables,
    first,
    last,
):
    """Time steps from `first` to before `last`, each of as many rows as `cells` has: one, or an even number.

    inputs    int8 (tiles, blocks, 16, 64), with float32 `scales` (16 * tiles,) of their rows
    weight    int8 (units / 16, blocks of inputs and of hidden vectors, 4, 16, 64), the gates entry, forget, exit and
              candidate: each tile has, for 16 units, in row k the entries 4 k to 4 k + 3 of all
    offsets   int32 (units / 16, 1 or 2, 4, 16), what sums begin with, as rows have `SIGN` more: of all products in one
              sum, or of those with inputs and with hidden vectors in two
    constants float32 (units / 16, 2 or 3, 4, 16), all times `EXPONENTS`: bias, scale of the sum, or of that with hidden
              vectors, and scale of that with inputs, with which alone the `scales` are used
    before    int8 (tiles, blocks, 16, 64), the hidden vectors before step 0
    outputs   int8 (tiles, blocks, 16, 64), the hidden vectors of all steps
    cells     float32 (units / 16, rows, 16), changed
    exact     float32 (16 * tiles, units), what outputs are rounded from; with no rows where nobody asks for it
    sums      int32 (units / 16, 4, rows of these steps, 16), products of the inputs; with no rows if to be made here
    space     int32 (3, 4, 32, 16)
    """
    units, rows, blocks = cells.shape[0], cells.shape[1], weight.shape[1]
    input_blocks, hidden_blocks = inputs.shape[1], before.shape[1]
    given, kept, apart = sums.shape[2] > 0, exact.shape[0] > 0, offsets.shape[1] > 1
    own, own_stride = np.int64(space.ctypes.data), PAIR * UNITS * 4
    input_sums, output = own + GATES * own_stride, own + 2 * GATES * own_stride
    output_stride = units * UNITS * 4 if kept else 0
    configured = 0
    for step in range(first, last):
        for turn in range(units):
            # From either end in turns, as the last weights of a step are in the cache still.
            unit = turn if step % 2 == 0 else units - 1 - turn
            columns = np.int64(weight.ctypes.data) + unit * blocks * 4 * TILE
            offset = np.int64(offsets.ctypes.data) + unit * offsets.shape[1] * GATES * UNITS * 4
            of_unit = np.int64(constants.ctypes.data) + unit * constants.shape[1] * GATES * UNITS * 4
            row = 0
            while row < rows:
                count = PAIR if rows - row >= PAIR else min(ROWS, rows - row)
                if configured != min(ROWS, count):
                    configured = min(ROWS, count)
                    configure(np.int64(tables.ctypes.data) + configured * BLOCK)
                place = step * rows + row
                read = _place(np.int64(inputs.ctypes.data), place, input_blocks)
                if step == 0:
                    hidden = _place(np.int64(before.ctypes.data), row, hidden_blocks)
                else:
                    hidden = _place(np.int64(outputs.ctypes.data), place - rows, hidden_blocks)
                begin, begin_stride, each, to_add = offset, UNITS * 4, 0, input_blocks
                if given:
                    begin_stride, each, to_add = sums.shape[2] * UNITS * 4, UNITS * 4, 0
                    begin = np.int64(sums.ctypes.data) + unit * GATES * begin_stride
                    begin += (place - first * rows) * UNITS * 4
                of_inputs, inputs_stride = np.int64(0), 0
                if apart:
                    of_inputs, inputs_stride = begin, begin_stride
                    if not given:
                        of_inputs, inputs_stride = input_sums, own_stride
                        _multiply(
                            read, count, input_blocks, read, 0, columns, begin, begin_stride, 0, of_inputs, own_stride
                        )
                    begin, begin_stride, each, to_add = offset + GATES * UNITS * 4, UNITS * 4, 0, 0
                of_both = columns + (input_blocks - to_add) * 4 * TILE
                _multiply(
                    read, count, to_add, hidden, hidden_blocks, of_both, begin, begin_stride, each, own, own_stride
                )
                into = _place(np.int64(outputs.ctypes.data), place, hidden_blocks)
                if kept:
                    output = np.int64(exact.ctypes.data) + (place * units + unit) * UNITS * 4
                _pass_all(
                    own,
                    own_stride,
                    of_unit,
                    np.int64(cells.ctypes.data) + (unit * rows + row) * UNITS * 4,
                    into + unit // 4 * TILE + unit % 4 * UNITS,
                    output,
                    output_stride,
                    of_inputs,
                    inputs_stride,
                    np.int64(scales.ctypes.data) + place * 4,
                    count,
                    hidden_blocks,
                )
                row += count
    release()
