"""What an LSTM layer's gates do in a time step of training, there and back, each in one pass compiled by Numba.

Operation by operation PyTorch goes over a step's gates a dozen times, and 16 rows are so few that calling it takes as
long as the work. Products stay oneDNN's. Gates and hidden vectors are bfloat16, given as int16 since NumPy knows no
other name for them; cells are float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ulmfit.int8_rows import CODE_OF_ZERO, INT8_PEAK
from ulmfit.models.compiled import intrinsic, kernel, signature
from ulmfit.models.vectors import (
    LANES,
    Vector,
    load_bfloat16,
    load_floats,
    moved,
    store,
    store_bfloat16,
)

GATES = 4
_TO_POWERS = -math.log2(math.e)
"""e**-x = 2**(_TO_POWERS * x)"""


def _tanh(values: Vector) -> Vector:
    power = (values * (2 * _TO_POWERS)).power_of_two()
    return (1 - power) / (power + 1)


def _reciprocals(one: Vector, other: Vector) -> tuple[Vector, Vector]:
    """Of both by one division, which takes as long as a dozen products."""
    both = 1 / (one * other)
    return both * other, both * one


def forward(build: Any, operands: Any, count: int) -> None:
    """With two more operands, sums are of two parts, and hidden vectors are written as codes too."""
    sums, kept, stride, before, after, hidden, *in_int8 = operands
    powers = []
    for gate, scale in enumerate((1, 1, 2, 1)):
        total = load_bfloat16(build, moved(build, sums, gate, stride), count)
        if in_int8:
            total = total + load_bfloat16(build, moved(build, in_int8[0], gate, stride), count)
        powers.append((total * (scale * _TO_POWERS)).power_of_two())
    entry, forget = _reciprocals(powers[0] + 1, powers[1] + 1)
    candidate, exit_ = _reciprocals(powers[2] + 1, powers[3] + 1)
    candidate = candidate * (1 - powers[2])
    for gate, values in enumerate((entry, forget, candidate, exit_)):
        store_bfloat16(values, moved(build, kept, gate, stride))
    cell = load_floats(build, before, count) * forget + entry * candidate
    store(build, cell.value, after)
    value = _tanh(cell) * exit_
    store_bfloat16(value, hidden)
    if in_int8:
        store(build, (value * INT8_PEAK).nearest_byte(CODE_OF_ZERO), in_int8[1])


def _backward(build: Any, operands: Any, count: int) -> None:
    gates, stride, before, after, to_hidden, to_cell = operands
    arriving = load_bfloat16(build, to_hidden, count)
    for gate, gradient in enumerate(gradients(build, gates, stride, before, after, arriving, to_cell)):
        store_bfloat16(gradient, moved(build, gates, gate, stride))


def gradients(
    build: Any, gates: Any, stride: Any, before: Any, after: Any, arriving: Vector, to_cell: Any
) -> tuple[Vector, ...]:
    """Of what goes into the four gates; the gradient of the cell is moved on a step."""
    count = arriving.count
    entry, forget, candidate, exit_ = (
        load_bfloat16(build, moved(build, gates, gate, stride), count) for gate in range(GATES)
    )
    squashed = _tanh(load_floats(build, after, count))
    of_cell = load_floats(build, to_cell, count) + arriving * exit_ * (1 - squashed * squashed)
    store(build, (of_cell * forget).value, to_cell)
    return (
        of_cell * candidate * entry * (1 - entry),
        of_cell * load_floats(build, before, count) * forget * (1 - forget),
        of_cell * entry * (1 - candidate * candidate),
        arriving * squashed * exit_ * (1 - exit_),
    )


@intrinsic
def _forward_some(typing, sums, kept, stride, before, after, hidden):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(forward, count=LANES))


@intrinsic
def _forward_many(typing, sums, kept, stride, before, after, hidden):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(forward, count=2 * LANES))


@intrinsic
def _backward_some(typing, gates, stride, before, after, to_hidden, to_cell):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(_backward, count=LANES))


@intrinsic
def _backward_many(typing, gates, stride, before, after, to_hidden, to_cell):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(_backward, count=2 * LANES))


@kernel
def pass_gates(sums, kept, cells, hiddens, step):  # type: ignore[no-untyped-def]
    """From what goes into the gates of a step, (rows, 4 * units), to the cells and hidden vectors after it.

    The gates (entry, forget, candidate, exit) are written to `kept`, of the same shape. Cells and hiddens are (steps +
    1, rows, units), those before step 0 first. The units are a multiple of 16.
    """
    _, rows, units = cells.shape
    stride = 2 * units
    for row in range(rows):
        gates = np.int64(sums.ctypes.data) + row * GATES * stride
        keep = np.int64(kept.ctypes.data) + row * GATES * stride
        before = np.int64(cells.ctypes.data) + 4 * (step * rows + row) * units
        after = before + 4 * rows * units
        hidden = np.int64(hiddens.ctypes.data) + 2 * ((step + 1) * rows + row) * units
        whole = units // (2 * LANES) * (2 * LANES)
        for unit in range(0, whole, 2 * LANES):
            two, four = 2 * unit, 4 * unit
            _forward_many(gates + two, keep + two, stride, before + four, after + four, hidden + two)
        if whole < units:
            two, four = 2 * whole, 4 * whole
            _forward_some(gates + two, keep + two, stride, before + four, after + four, hidden + two)


@kernel
def gradients_of_gates(gates, cells, to_hidden, to_cell, step):  # type: ignore[no-untyped-def]
    """Back over a step: gradients of what went into its gates take their place in (steps, rows, 4 * units).

    `to_hidden` (rows, units) is the gradient of the hidden vectors after the step; that of the cells after it, float32,
    becomes that of the cells before it.
    """
    _, rows, units = cells.shape
    stride = 2 * units
    for row in range(rows):
        own = np.int64(gates.ctypes.data) + (step * rows + row) * GATES * stride
        before = np.int64(cells.ctypes.data) + 4 * (step * rows + row) * units
        after = before + 4 * rows * units
        hidden = np.int64(to_hidden.ctypes.data) + 2 * row * units
        cell = np.int64(to_cell.ctypes.data) + 4 * row * units
        whole = units // (2 * LANES) * (2 * LANES)
        for unit in range(0, whole, 2 * LANES):
            two, four = 2 * unit, 4 * unit
            _backward_many(own + two, stride, before + four, after + four, hidden + two, cell + four)
        if whole < units:
            two, four = 2 * whole, 4 * whole
            _backward_some(own + two, stride, before + four, after + four, hidden + two, cell + four)
