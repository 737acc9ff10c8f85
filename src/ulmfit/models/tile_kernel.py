"""An LSTM layer in int8 on a CPU, compiled by Numba: products of tiles, and the gates while their sums are at hand.

A product by a library writes its sums to memory, and the gates' arithmetic reads them from there again, an operation at
a time. Here sixteen units of up to 32 rows go from products to gates to the hidden vector within the first-level cache;
weights stream by once a step.

Rows of int8, each number 128 more, lie in tiles, (tiles, blocks, 16, 64): row r of tile t is row 16 t + r of all,
with its entries in blocks of 64. Rows of a step follow those of the step before.
"""

from __future__ import annotations

import numpy as np

from ulmfit.compute import cpu_products
from ulmfit.models.compiled import kernel, part
from ulmfit.models.fetching import ahead_of
from ulmfit.models.tile_gates import NONE_WAIT, pass_rest
from ulmfit.models.tile_weights import BLOCK, GATES, PAIR, ROWS, TILE, UNITS

if cpu_products() == "amx":
    from ulmfit.models.amx import BY_VECTORS, MEANWHILE, configurations, configure, multiply_few, multiply_pair, release
else:
    from ulmfit.models.row_products import (
        BY_VECTORS,
        MEANWHILE,
        configurations,
        configure,
        multiply_few,
        multiply_pair,
        release,
    )

TABLES = configurations()
"""for `configure`"""


@kernel
def multiply_inputs(inputs, weight, offsets, sums, tables, fours, first, count):  # type: ignore[no-untyped-def]
    """Tiles of rows of so many fours by the inputs' part of a weight: `count` tiles from the `first` on.

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
            _multiply(
                (read, fours), both, (read, 0), columns, (offset, UNITS * 4, 0), (into, stride), NONE_WAIT, 0, (0, 0)
            )
    release()


@part
def _place(tiles, row, blocks):  # type: ignore[no-untyped-def]
    """Where a row begins."""
    return tiles + row // ROWS * blocks * TILE + row % ROWS * BLOCK


@part
def _multiply(rows, count, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """32 rows or up to 16."""
    if count == PAIR:
        return multiply_pair(rows, more, weight, begin, into, waiting, passed, ahead)
    return multiply_few(rows, count, more, weight, begin, into, waiting, passed, ahead)


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
    input_fours,
    hidden_fours,
    first,
    last,
):
    """Time steps from `first` to before `last`, each of as many rows as `cells` has: one, or an even number.

    inputs    int8 (tiles, blocks, 16, 64), with float32 `scales` (16 * tiles,) of their rows
    weight    int8 (units / 16, blocks of inputs and of hidden vectors, 4, 16, 64), the gates entry, forget, exit and
              candidate: each tile has, for 16 units, in row k the entries 4 k to 4 k + 3 of all
    offsets   int32 (units / 16, 1 or 2, 4, 16), what sums begin with, as rows have 128 more: of all products in one
              sum, or of those with inputs and with hidden vectors in two
    constants float32 (units / 16, 2 or 3, 4, 16), all times `EXPONENTS`: bias, scale of the sum, or of that with hidden
              vectors, and scale of that with inputs, with which alone the `scales` are used
    before    int8 (tiles, blocks, 16, 64), the hidden vectors before step 0
    outputs   int8 (tiles, blocks, 16, 64), the hidden vectors of all steps
    cells     float32 (units / 16, rows, 16), changed
    exact     float32 (16 * tiles, units), what outputs are rounded from; with no rows where nobody asks for it
    sums      int32 (units / 16, 4, rows of these steps, 16), products of the inputs; with no rows if to be made here
    space     int32 (5, 4, 32, 16)
    input_fours, hidden_fours
              fours that hold a row's numbers, of inputs and of hidden vectors; the rest of its blocks is zero
    """
    units, rows, blocks = cells.shape[0], cells.shape[1], weight.shape[1]
    input_blocks, hidden_blocks = inputs.shape[1], before.shape[1]
    given, kept, apart = sums.shape[2] > 0, exact.shape[0] > 0, offsets.shape[1] > 1
    own_stride, given_stride = PAIR * UNITS * 4, sums.shape[2] * UNITS * 4
    buffer = GATES * own_stride
    own = np.int64(space.ctypes.data)
    output, output_stride = own + 4 * buffer, units * UNITS * 4 if kept else 0
    configured, waiting = 0, NONE_WAIT
    for step in range(first, last):
        for turn in range(units):
            # From either end in turns, as the last weights of a step are in the cache still.
            unit = turn if step % 2 == 0 else units - 1 - turn
            columns = np.int64(weight.ctypes.data) + unit * blocks * 4 * TILE
            offset = np.int64(offsets.ctypes.data) + unit * offsets.shape[1] * GATES * UNITS * 4
            of_unit = np.int64(constants.ctypes.data) + unit * constants.shape[1] * GATES * UNITS * 4
            far = (1 - step % 2 * 2) * (turn < units - 1) * blocks * 4 * TILE
            row = 0
            while row < rows:
                count = PAIR if rows - row >= PAIR else min(ROWS, rows - row)
                if count > BY_VECTORS and configured != min(ROWS, count):
                    configured = min(ROWS, count)
                    configure(np.int64(tables.ctypes.data) + configured * BLOCK)
                place, ahead = step * rows + row, ahead_of(far, row, rows)
                read = _place(np.int64(inputs.ctypes.data), place, input_blocks)
                earlier = np.int64(before.ctypes.data if step == 0 else outputs.ctypes.data)
                hidden = _place(earlier, row if step == 0 else place - rows, hidden_blocks)
                # Gates of the rows before are passed while these are multiplied, so the sums of both are there.
                own = np.int64(space.ctypes.data) + (MEANWHILE and own == np.int64(space.ctypes.data)) * 2 * buffer
                begin, to_add, passed = (offset, UNITS * 4, 0), input_fours, 0
                if given:
                    given_sums = np.int64(sums.ctypes.data) + unit * GATES * given_stride
                    begin, to_add = (given_sums + (place - first * rows) * UNITS * 4, given_stride, UNITS * 4), 0
                of_inputs, inputs_stride = np.int64(0), 0
                if apart:
                    of_inputs, inputs_stride, _ = begin
                    if not given:
                        of_inputs, inputs_stride = own + buffer, own_stride
                        both = (read, input_fours), count, (read, 0)
                        passed = _multiply(*both, columns, begin, (of_inputs, own_stride), waiting, passed, ahead)
                    begin, to_add = (offset + GATES * UNITS * 4, UNITS * 4, 0), 0
                both = (read, to_add), count, (hidden, hidden_fours)
                of_both = columns if to_add else columns + input_blocks * 4 * TILE
                passed = _multiply(*both, of_both, begin, (own, own_stride), waiting, passed, ahead)
                if MEANWHILE:
                    pass_rest(waiting, passed)
                if kept:
                    output = np.int64(exact.ctypes.data) + (place * units + unit) * UNITS * 4
                waiting = (
                    own,
                    own_stride,
                    of_unit,
                    np.int64(cells.ctypes.data) + (unit * rows + row) * UNITS * 4,
                    _place(np.int64(outputs.ctypes.data), place, hidden_blocks) + unit // 4 * TILE + unit % 4 * UNITS,
                    output,
                    output_stride,
                    of_inputs,
                    inputs_stride,
                    np.int64(scales.ctypes.data) + place * 4,
                    count,
                    hidden_blocks,
                )
                row += count
                if not MEANWHILE or (row == rows and turn == units - 1):  # the next step reads what they give
                    pass_rest(waiting, 0)
                    waiting = NONE_WAIT
    release()
