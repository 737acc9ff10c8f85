"""Numbers as integers of eight bits with a scale, for products in int8 that learn; each in a pass or two, by Numba.

Codes are without a sign, the code of zero 128; weights have one. bfloat16 is given as int16, as to `gate_kernel`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ulmfit.int8_rows import CODE_OF_ZERO, INT8_PEAK
from ulmfit.models.compiled import intrinsic, kernel, part, signature
from ulmfit.models.vectors import (
    LANES,
    Vector,
    load,
    load_bfloat16,
    load_everywhere,
    load_floats,
    moved,
    store,
    store_bfloat16,
)

_WORD = ir.IntType(64)
PACKED = 64
"""outputs, and inputs, of a block of a weight that oneDNN multiplies by"""
_COLUMNS = 64
"""of bytes that are transposed together: a line of the cache"""
_BY_TURNS = tuple([place + LANES * other for place in range(*half) for other in (0, 1)] for half in ((0, 8), (8, 16)))
"""which bytes of two rows make one of their first halves, and one of their last"""


def _each(build: Any, blocks: Any, work: Any) -> None:
    """Work on each 16 numbers of a row."""
    with cgutils.for_range(build, blocks, intp=_WORD) as loop:
        work(loop.index)


@intrinsic
def _greatest_size(typing, row, blocks):  # type: ignore[no-untyped-def]
    """Of so many times 16 bfloat16; no number where one of them is none or infinite."""

    def make(context: Any, build: Any, signature: Any, operands: Any) -> Any:
        row, blocks = operands
        nothing = load_bfloat16(build, row).like(0.0).value
        so_far, zeros = (cgutils.alloca_once_value(build, nothing) for _ in range(2))

        def add(index: Any) -> None:
            values = load_bfloat16(build, moved(build, row, 2 * LANES, index))
            build.store(Vector(build, build.load(so_far)).greater(values.size()).value, so_far)
            build.store((values * 0 + Vector(build, build.load(zeros))).value, zeros)

        _each(build, blocks, add)
        greatest, zero = (Vector(build, build.load(kept)) for kept in (so_far, zeros))
        return build.fadd(greatest.greatest_number(), zero.sum_of_numbers())

    return types.float32(types.int64, types.int64), make


def _rounded(build: Any, operands: Any, zero: int) -> None:
    row, blocks, factor, codes = operands
    by = load_everywhere(build, factor)

    def write(index: Any) -> None:
        values = (load_bfloat16(build, moved(build, row, 2 * LANES, index)) * by).within(INT8_PEAK)
        store(build, values.nearest_byte(zero), moved(build, codes, LANES, index))

    _each(build, blocks, write)


@intrinsic
def _write_integers(typing, row, blocks, factor, codes):  # type: ignore[no-untyped-def]
    """The integers nearest to so many times 16 bfloat16 times a factor, the address of one float32."""
    return signature(4, lambda build, operands: _rounded(build, operands, 0))


@intrinsic
def _write_codes(typing, row, blocks, factor, codes):  # type: ignore[no-untyped-def]
    """The same as codes."""
    return signature(4, lambda build, operands: _rounded(build, operands, CODE_OF_ZERO))


@intrinsic
def _write_codes_and_add(typing, row, blocks, factor, codes, total):  # type: ignore[no-untyped-def]
    """Codes of float32, which are added to a total."""

    def write(build: Any, operands: Any) -> None:
        row, blocks, factor, codes, total = operands
        by = load_everywhere(build, factor)

        def work(index: Any) -> None:
            values = load_floats(build, moved(build, row, 4 * LANES, index))
            place = moved(build, total, 4 * LANES, index)
            store(build, (load_floats(build, place) + values).value, place)
            store(build, (values * by).nearest_byte(CODE_OF_ZERO), moved(build, codes, LANES, index))

        _each(build, blocks, work)

    return signature(5, write)


@intrinsic
def _raise_peaks(typing, row, blocks, factor, peaks):  # type: ignore[no-untyped-def]
    """Peaks, float32, become the sizes of a row's bfloat16 times its factor where these are greater."""

    def write(build: Any, operands: Any) -> None:
        row, blocks, factor, peaks = operands
        by = load_everywhere(build, factor)

        def work(index: Any) -> None:
            place = moved(build, peaks, 4 * LANES, index)
            size = (load_bfloat16(build, moved(build, row, 2 * LANES, index)) * by).size()
            store(build, load_floats(build, place).greater(size).value, place)

        _each(build, blocks, work)

    return signature(4, write)


@intrinsic
def _write_by_column(typing, row, blocks, factor, factors, integers):  # type: ignore[no-untyped-def]
    """The integers nearest to bfloat16 times the row's factor and each column's."""

    def write(build: Any, operands: Any) -> None:
        row, blocks, factor, factors, integers = operands
        by = load_everywhere(build, factor)

        def work(index: Any) -> None:
            of_columns = load_floats(build, moved(build, factors, 4 * LANES, index))
            values = load_bfloat16(build, moved(build, row, 2 * LANES, index)) * by * of_columns
            store(build, values.nearest_byte(), moved(build, integers, LANES, index))

        _each(build, blocks, work)

    return signature(5, write)


def _transposed(build: Any, operands: Any, bits: int) -> None:
    """16 rows of 16 numbers of so many bits as columns."""
    source, from_row, target, to_row = operands
    kind = ir.VectorType(ir.IntType(bits), LANES)
    rows = [load(build, moved(build, source, row, from_row), kind) for row in range(LANES)]
    half = LANES // 2
    for _ in range(4):  # numbers of two rows by turns: after four times each row has one of every row
        pairs = [(rows[row], rows[row + half]) for row in range(half)]
        rows = [
            build.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), LANES), places))
            for pair in pairs
            for places in _BY_TURNS
        ]
    for row, value in enumerate(rows):
        store(build, value, moved(build, target, row, to_row))


@intrinsic
def _transpose_16(typing, source, from_row, target, to_row):  # type: ignore[no-untyped-def]
    """16 rows of 16 bytes as columns; from row to row so many bytes there and here."""
    return signature(4, functools.partial(_transposed, bits=8))


@intrinsic
def _transpose_16_words(typing, source, from_row, target, to_row):  # type: ignore[no-untyped-def]
    """The same of words of four bytes."""
    return signature(4, functools.partial(_transposed, bits=32))


@part
def _factor(scale):  # type: ignore[no-untyped-def]
    """What numbers are multiplied by before they are rounded."""
    return np.float32(1) / scale if scale > 0 else np.float32(0)


@kernel
def encode(values, factor, codes):  # type: ignore[no-untyped-def]
    """Codes (rows, columns) of bfloat16 times a factor, float32 (1,); what is beyond 127 is 127."""
    blocks = values.size // LANES
    _write_codes(np.int64(values.ctypes.data), blocks, np.int64(factor.ctypes.data), np.int64(codes.ctypes.data))


@kernel
def integers_by_row(matrix, integers, scales, peak, factor):  # type: ignore[no-untyped-def]
    """Of bfloat16 (rows, columns), with a scale for each row, whose largest entry becomes the peak.

    factor    float32 (1,), used up
    """
    rows, columns = matrix.shape
    for row in range(rows):
        start = np.int64(matrix.ctypes.data) + 2 * row * columns
        scales[row] = _greatest_size(start, columns // LANES) / np.float32(peak)
        factor[0] = _factor(scales[row])
        _write_integers(
            start, columns // LANES, np.int64(factor.ctypes.data), np.int64(integers.ctypes.data) + row * columns
        )


@kernel
def integers_by_column(matrix, of_rows, integers, scales, peak, factors):  # type: ignore[no-untyped-def]
    """Of bfloat16 (rows, columns) times a factor for each row, with a scale for each column.

    factors   float32 (columns,), used up
    """
    rows, columns = matrix.shape
    start, blocks = np.int64(matrix.ctypes.data), columns // LANES
    first = np.int64(of_rows.ctypes.data)
    factors[:] = 0
    address = np.int64(factors.ctypes.data)
    for row in range(rows):
        _raise_peaks(start + 2 * row * columns, blocks, first + 4 * row, address)
    for column in range(columns):
        scales[column] = factors[column] / np.float32(peak)
        factors[column] = _factor(scales[column])
    into = np.int64(integers.ctypes.data)
    for row in range(rows):
        _write_by_column(start + 2 * row * columns, blocks, first + 4 * row, address, into + row * columns)


@kernel
def transpose_bytes(matrix, out):  # type: ignore[no-untyped-def]
    """Out (columns, rows) from (rows, columns) of a byte each."""
    rows, columns = matrix.shape
    whole_rows, whole_columns = rows // LANES * LANES, columns // LANES * LANES
    source, target = np.int64(matrix.ctypes.data), np.int64(out.ctypes.data)
    for panel in range(0, whole_columns, _COLUMNS):
        for row in range(0, whole_rows, LANES):
            for column in range(panel, min(panel + _COLUMNS, whole_columns), LANES):
                _transpose_16(source + row * columns + column, columns, target + column * rows + row, rows)
    for row in range(rows):
        for column in range(0 if row >= whole_rows else whole_columns, columns):
            out[column, row] = matrix[row, column]


@kernel
def pack(integers, out, sums, to_outputs, to_fours):  # type: ignore[no-untyped-def]
    """Int8 (outputs, inputs), both multiples of 64, in blocks of 64 by 64, those of the same outputs one after another.

    In a block four inputs of an output lie together, and those of 16 outputs one after another; from these to the next
    16 outputs it is `to_outputs` bytes, to the next four inputs `to_fours`. `sums` (outputs,) become those of each
    output's, times -1.
    """
    outputs, inputs = integers.shape
    source, target = np.int64(integers.ctypes.data), np.int64(out.ctypes.data)
    for output in range(0, outputs, PACKED):
        for first in range(0, inputs, PACKED):
            block = target + output * inputs + first * PACKED
            for some in range(0, PACKED, LANES):
                row = source + (output + some) * inputs + first
                _transpose_16_words(row, inputs, block + some // LANES * to_outputs, to_fours)
    for output in range(outputs):
        sums[output] = -integers[output].sum()


@part
def write_codes_and_add(working, codes, total):  # type: ignore[no-untyped-def]
    """Codes of as many float32, which are added to `total`; their scale. Peaks of their sizes follow them."""
    count = codes.size
    scale = working[count:].max() / np.float32(INT8_PEAK)
    working[count] = _factor(scale)
    start = np.int64(working.ctypes.data)
    _write_codes_and_add(
        start, count // LANES, start + 4 * count, np.int64(codes.ctypes.data), np.int64(total.ctypes.data)
    )
    return scale


@intrinsic
def _scale(typing, row, blocks, factor):  # type: ignore[no-untyped-def]
    """bfloat16 times the factor in place."""

    def write(build: Any, operands: Any) -> None:
        row, blocks, factor = operands
        by = load_everywhere(build, factor)

        def work(index: Any) -> None:
            place = moved(build, row, 2 * LANES, index)
            store_bfloat16(load_bfloat16(build, place) * by, place)

        _each(build, blocks, work)

    return signature(3, write)


@kernel
def scale_rows(matrix, factors):  # type: ignore[no-untyped-def]
    """bfloat16 (rows, columns) times a factor for each row, in place."""
    rows, columns = matrix.shape
    for row in range(rows):
        address = np.int64(matrix.ctypes.data) + 2 * row * columns
        _scale(address, columns // LANES, np.int64(factors.ctypes.data) + 4 * row)
