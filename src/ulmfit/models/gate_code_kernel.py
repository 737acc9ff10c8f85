"""What an LSTM layer's gates do in a time step of training in int8, there and back: `gate_kernel` with codes.

Hidden vectors leave as codes for the next product, and so do the gradients of the gates.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ulmfit.models.code_kernel import write_codes_and_add
from ulmfit.models.compiled import intrinsic, kernel, signature
from ulmfit.models.gate_kernel import GATES, forward, gradients
from ulmfit.models.vectors import LANES, load_bfloat16, load_everywhere, load_floats, moved, store


def _gradients_in_float32(build: Any, operands: Any) -> None:
    gates, stride, before, after, to_hidden, of_row, addend, to_cell, into, peak = operands
    arriving = load_bfloat16(build, to_hidden) * load_everywhere(build, of_row)
    arriving = arriving + load_bfloat16(build, addend)
    greatest = load_floats(build, peak)
    for gate, gradient in enumerate(gradients(build, gates, stride, before, after, arriving, to_cell)):
        store(build, gradient.value, moved(build, moved(build, into, gate, stride), gate, stride))
        greatest = greatest.greater(gradient.size())
    store(build, greatest.value, peak)


@intrinsic
def _forward(typing, sums, kept, stride, before, after, hidden, more, codes):  # type: ignore[no-untyped-def]
    return signature(8, functools.partial(forward, count=LANES))


@intrinsic
def _backward(  # type: ignore[no-untyped-def]
    typing, gates, stride, before, after, to_hidden, of_row, addend, to_cell, into, peak
):
    return signature(10, _gradients_in_float32)


@kernel
def pass_gates_to_codes(sums, more, kept, cells, hiddens, codes, step):  # type: ignore[no-untyped-def]
    """As `pass_gates`, of sums in two parts; hidden vectors are written as codes (rows, units) as well."""
    _, rows, units = cells.shape
    stride = 2 * units
    for row in range(rows):
        gates = np.int64(sums.ctypes.data) + row * GATES * stride
        other = np.int64(more.ctypes.data) + row * GATES * stride
        keep = np.int64(kept.ctypes.data) + row * GATES * stride
        before = np.int64(cells.ctypes.data) + 4 * (step * rows + row) * units
        after = before + 4 * rows * units
        hidden = np.int64(hiddens.ctypes.data) + 2 * ((step + 1) * rows + row) * units
        code = np.int64(codes.ctypes.data) + row * units
        for unit in range(0, units, LANES):
            two, four = 2 * unit, 4 * unit
            _forward(
                gates + two, keep + two, stride, before + four, after + four, hidden + two, other + two, code + unit
            )


@kernel
def codes_of_gradients(  # type: ignore[no-untyped-def]
    gates, cells, to_hidden, of_rows, addend, to_cell, codes, scales, bias, working, step
):
    """Back over a step in int8: gradients of what went into its gates as codes (steps, rows, 4 * units), and scales.

    The gradient of the hidden vectors after the step is `to_hidden` (rows, units) times `of_rows` (rows,), plus
    `addend`; that of the cells after it, float32, becomes that of the cells before it. Codes have a scale for each row,
    (steps, rows). Gradients are added to `bias` (4 * units,). `working` has room for a row and 16 numbers more.
    """
    _, rows, units = cells.shape
    stride = 2 * units
    into = np.int64(working.ctypes.data)
    peak = into + GATES * 4 * units
    for row in range(rows):
        own = np.int64(gates.ctypes.data) + (step * rows + row) * GATES * stride
        before = np.int64(cells.ctypes.data) + 4 * (step * rows + row) * units
        after = before + 4 * rows * units
        hidden = np.int64(to_hidden.ctypes.data) + 2 * row * units
        other = np.int64(addend.ctypes.data) + 2 * row * units
        of_row = np.int64(of_rows.ctypes.data) + 4 * row
        cell = np.int64(to_cell.ctypes.data) + 4 * row * units
        working[GATES * units :] = 0
        for unit in range(0, units, LANES):
            two, four = 2 * unit, 4 * unit
            _backward(
                own + two,
                stride,
                before + four,
                after + four,
                hidden + two,
                of_row,
                other + two,
                cell + four,
                into + four,
                peak,
            )
        scales[step, row] = write_codes_and_add(working, codes[step, row], bias)
