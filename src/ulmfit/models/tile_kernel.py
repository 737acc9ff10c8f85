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
    """The arithmetic of so many rows of 16 units, where each division serves two of the formulas' quotients."""
    of_inputs, inputs_stride, of_hidden, hidden_stride, constants, scales, cell, hidden, output, output_stride = (
        operands
    )
    many = rows * UNITS
    scale = spread(build, load_floats(build, scales, rows).value)
    exponents = []
    for gate in range(GATES):
        bias, by_inputs, by_hidden = (
            load_floats(build, moved(build, constants, (GATES * part + gate) * UNITS * 4)).repeated(rows)
            for part in range(3)
        )
        from_inputs = load_ints(build, moved(build, of_inputs, gate, inputs_stride), many)
        from_hidden = load_ints(build, moved(build, of_hidden, gate, hidden_stride), many)
        exponents.append(from_hidden * by_hidden + (from_inputs * scale * by_inputs + bias))
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
def _pass_gates(  # type: ignore[no-untyped-def]
    typing, of_inputs, inputs_stride, of_hidden, hidden_stride, constants, scales, cell, hidden, output, output_stride
):
    """A row of 16 units: its cell changes, and its hidden vector is written, in int8 and as it was before."""
    return signature(10, functools.partial(_gates, rows=1))


@intrinsic
def _pass_two_rows(  # type: ignore[no-untyped-def]
    typing, of_inputs, inputs_stride, of_hidden, hidden_stride, constants, scales, cell, hidden, output, output_stride
):
    """Two rows that follow each other."""
    return signature(10, functools.partial(_gates, rows=2))


@kernel
def multiply_inputs(inputs, weight, offsets, sums, tables, first, count):  # type: ignore[no-untyped-def]
    """Tiles of rows by all of a weight: `count` from the `first` on, sums (units / 16, 4, 16 * count, 16) int32."""
    units, blocks = weight.shape[0], weight.shape[1]
    stride = sums.shape[2] * UNITS * 4
    rows = np.int64(inputs.ctypes.data) + first * blocks * TILE
    configure(np.int64(tables.ctypes.data) + ROWS * BLOCK)
    for unit in range(units):
        columns = np.int64(weight.ctypes.data) + unit * blocks * 4 * TILE
        offset = np.int64(offsets.ctypes.data) + unit * GATES * UNITS * 4
        into = np.int64(sums.ctypes.data) + unit * GATES * stride
        for tile in range(0, count - 1, 2):
            multiply_pair(rows + tile * blocks * TILE, blocks, columns, offset, into + tile * ROWS * UNITS * 4, stride)
        if count % 2:
            tile = count - 1
            multiply_few(
                rows + tile * blocks * TILE, ROWS, blocks, columns, offset, into + tile * ROWS * UNITS * 4, stride
            )
    release()


@part
def _place(tiles, row, blocks):  # type: ignore[no-untyped-def]
    """Where a row begins."""
    return tiles + row // ROWS * blocks * TILE + row % ROWS * BLOCK


@part
def _multiply(rows, count, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    """32 rows or up to 16."""
    if count == PAIR:
        multiply_pair(rows, blocks, weight, offsets, sums, stride)
    else:
        multiply_few(rows, count, blocks, weight, offsets, sums, stride)


@part
def _pass_all(  # type: ignore[no-untyped-def]
    of_inputs,
    inputs_stride,
    of_hidden,
    hidden_stride,
    constants,
    scales,
    cell,
    hidden,
    output,
    output_stride,
    count,
    blocks,
):
    """One row, or an even number up to 32 that fill two tiles, each of so many blocks."""
    if count == 1:
        _pass_gates(
            of_inputs, inputs_stride, of_hidden, hidden_stride, constants, scales, cell, hidden, output, output_stride
        )
    for row in range(0, count - 1, 2):
        one = row * UNITS * 4
        _pass_two_rows(
            of_inputs + one,
            inputs_stride,
            of_hidden + one,
            hidden_stride,
            constants,
            scales + row * 4,
            cell + one,
            _place(hidden, row, blocks),
            output + row * output_stride,
            output_stride,
        )


@kernel
def read_steps(  # type: ignore[no-untyped-def]
    inputs,
    scales,
    from_inputs,
    from_hidden,
    input_offsets,
    hidden_offsets,
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
    from_inputs, from_hidden
              int8 (units / 16, blocks, 4, 16, 64), the gates entry, forget, exit and candidate: each tile has, for 16
              units, in row k the entries 4 k to 4 k + 3 of all
    input_offsets, hidden_offsets
              int32 (units / 16, 4, 16), what sums begin with, as rows have `SIGN` more
    constants float32 (units / 16, 3, 4, 16): bias, and scales of the products with inputs and hidden vectors, all
              times `EXPONENTS`
    before    int8 (tiles, blocks, 16, 64), the hidden vectors before step 0
    outputs   int8 (tiles, blocks, 16, 64), the hidden vectors of all steps
    cells     float32 (units / 16, rows, 16), changed
    exact     float32 (16 * tiles, units), what outputs are rounded from; with no rows where nobody asks for it
    sums      int32 (units / 16, 4, rows of these steps, 16), products of the inputs; with no rows if to be made here
    space     int32 (3, 4, 32, 16)
    """
    units, rows = cells.shape[0], cells.shape[1]
    of_inputs, of_hidden = from_inputs.shape[1], from_hidden.shape[1]
    given, kept = sums.shape[2] > 0, exact.shape[0] > 0
    own, own_stride = np.int64(space.ctypes.data), PAIR * UNITS * 4
    hidden_sums, output = own + GATES * own_stride, own + 2 * GATES * own_stride
    input_sums, inputs_stride = own, own_stride
    output_stride = units * UNITS * 4 if kept else 0
    configured = 0
    for step in range(first, last):
        for turn in range(units):
            # From either end in turns, as the last weights of a step are in the cache still.
            unit = turn if step % 2 == 0 else units - 1 - turn
            input_columns = np.int64(from_inputs.ctypes.data) + unit * of_inputs * 4 * TILE
            hidden_columns = np.int64(from_hidden.ctypes.data) + unit * of_hidden * 4 * TILE
            input_offset = np.int64(input_offsets.ctypes.data) + unit * GATES * UNITS * 4
            hidden_offset = np.int64(hidden_offsets.ctypes.data) + unit * GATES * UNITS * 4
            of_unit = np.int64(constants.ctypes.data) + unit * 3 * GATES * UNITS * 4
            row = 0
            while row < rows:
                count = PAIR if rows - row >= PAIR else min(ROWS, rows - row)
                if configured != min(ROWS, count):
                    configured = min(ROWS, count)
                    configure(np.int64(tables.ctypes.data) + configured * BLOCK)
                place = step * rows + row
                read = _place(np.int64(inputs.ctypes.data), place, of_inputs)
                if step == 0:
                    hidden = _place(np.int64(before.ctypes.data), row, of_hidden)
                else:
                    hidden = _place(np.int64(outputs.ctypes.data), place - rows, of_hidden)
                if given:
                    inputs_stride = sums.shape[2] * UNITS * 4
                    input_sums = np.int64(sums.ctypes.data) + unit * GATES * inputs_stride
                    input_sums += (place - first * rows) * UNITS * 4
                else:
                    _multiply(read, count, of_inputs, input_columns, input_offset, own, own_stride)
                _multiply(hidden, count, of_hidden, hidden_columns, hidden_offset, hidden_sums, own_stride)
                into = _place(np.int64(outputs.ctypes.data), place, of_hidden) + unit // 4 * TILE + unit % 4 * UNITS
                cell = np.int64(cells.ctypes.data) + (unit * rows + row) * UNITS * 4
                scale = np.int64(scales.ctypes.data) + place * 4
                if kept:
                    output = np.int64(exact.ctypes.data) + (place * units + unit) * UNITS * 4
                _pass_all(
                    input_sums,
                    inputs_stride,
                    hidden_sums,
                    own_stride,
                    of_unit,
                    scale,
                    cell,
                    into,
                    output,
                    output_stride,
                    count,
                    of_hidden,
                )
                row += count
    release()
