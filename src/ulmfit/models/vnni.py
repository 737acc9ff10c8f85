"""Products of int8 by AVX-512 VNNI, for kernels that Numba compiles: the same as by AMX, row by row.

One instruction multiplies four numbers without a sign by four with one, in each of 16 columns, and adds all to 16 sums,
int32. So that rows have no sign each number is kept as 128 more; sums begin with what that is too much.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from ulmfit.models.compiled import intrinsic, part, signature
from ulmfit.models.tile_weights import BLOCK, FOURS, GATES, ROWS, TILE, UNITS
from ulmfit.models.vectors import load, moved, store

MEANWHILE = False
"""no gates are passed beside products, which leave them none of the core's units"""
_TOGETHER = 8
"""rows multiplied at once by the units of two gates: their sums fill half of the registers"""
_WORD = ir.IntType(64)
_SUMS = ir.VectorType(ir.IntType(32), UNITS)
_FETCH = ir.FunctionType(ir.VoidType(), [_WORD])


def configurations() -> NDArray[np.uint8]:
    """Nothing that is asked for here."""
    return np.zeros((ROWS + 1, 64), dtype=np.uint8)


@part
def configure(table):  # type: ignore[no-untyped-def]
    """There is nothing to configure."""


@part
def release():  # type: ignore[no-untyped-def]
    """Nor to give up."""


def _blocks(build: Any, fours: Any) -> Any:
    """That hold so many fours."""
    return build.udiv(build.add(fours, _WORD(FOURS - 1)), _WORD(FOURS))


def _multiply(build: Any, operands: Any, rows: int, gates: Sequence[int]) -> None:
    """So many rows by 16 units of some gates."""
    read, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride, *ahead = operands

    def placed(address: Any, gate_stride: Any, gate: int, row_stride: Any, row: int) -> Any:
        return moved(build, moved(build, address, gate, gate_stride), row, row_stride)

    added: dict[tuple[int, int], Any] = {
        (row, gate): cgutils.alloca_once_value(build, load(build, placed(begin, begin_stride, gate, each, row), _SUMS))
        for row in range(rows)
        for gate in gates
    }
    dot = ir.FunctionType(_SUMS, [_SUMS] * 3)
    everywhere = ir.FunctionType(_SUMS, [_WORD])
    after = moved(build, weight, GATES * TILE, _blocks(build, fours))
    for part_read, part_fours, part_weight in ((read, fours, weight), (more, more_fours, after)):
        with cgutils.for_range(build, _blocks(build, part_fours), intp=_WORD) as block:
            left = build.sub(part_fours, build.mul(block.index, _WORD(FOURS)))
            of_this = build.select(build.icmp_signed("<", left, _WORD(FOURS)), left, _WORD(FOURS))
            of_block = moved(build, part_read, TILE, block.index)
            columns = moved(build, part_weight, GATES * TILE, block.index)
            if ahead:
                wanted = build.add(columns, ahead[0])
                with cgutils.for_range(build, ahead[1], intp=_WORD) as line:
                    for gate in gates:
                        address = moved(build, moved(build, wanted, gate * TILE), UNITS * 4, line.index)
                        build.asm(_FETCH, "prefetcht1 ($0)", "r", [address], side_effect=True)
            with cgutils.for_range(build, of_this, intp=_WORD) as four:
                four_columns = moved(build, columns, UNITS * 4, four.index)
                by = {gate: load(build, moved(build, four_columns, gate * TILE), _SUMS) for gate in gates}
                four_numbers = moved(build, of_block, 4, four.index)
                for row in range(rows):
                    text = f"vpbroadcastd {row * BLOCK}($1), $0"
                    numbers = build.asm(everywhere, text, "=v,r,~{memory}", [four_numbers], side_effect=True)
                    for gate in gates:
                        so_far = added[row, gate]
                        given = [numbers, by[gate], build.load(so_far)]
                        build.store(build.asm(dot, "vpdpbusd $2, $1, $0", "=v,v,v,0", given, side_effect=False), so_far)
    row_stride = _WORD(UNITS * 4)
    for (row, gate), total in added.items():
        store(build, build.load(total), placed(sums, stride, gate, row_stride, row))


@intrinsic
def _first_gates_of_rows(  # type: ignore[no-untyped-def]
    typing, rows, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride, ahead, lines
):
    return signature(12, functools.partial(_multiply, rows=_TOGETHER, gates=(0, 1)))


@intrinsic
def _last_gates_of_rows(  # type: ignore[no-untyped-def]
    typing, rows, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride, ahead, lines
):
    return signature(12, functools.partial(_multiply, rows=_TOGETHER, gates=(2, 3)))


@intrinsic
def _all_gates_of_a_row(  # type: ignore[no-untyped-def]
    typing, rows, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride
):
    return signature(10, functools.partial(_multiply, rows=1, gates=range(GATES)))


@part
def multiply_few(rows, count, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """Up to 16 rows by 16 units of all gates: sums (4, ..., 16) int32; of rows that wait, how many are passed then.

    rows, more  (address, fours), where the rows' first entries lie and where the others, maybe none, and a row's length
    begin       (address, from gate to gate, from row to row), what sums begin with
    into        (address, from gate to gate), of the sums
    waiting, passed
                for AMX: here none are passed
    ahead       (how far on weights lie that are wanted next, lines of each of their tiles to fetch for eight rows)
    """
    (first, fours), (second, more_fours) = rows, more
    from_, from_stride, each = begin
    sums, stride = into
    far, lines = ahead
    whole = count // _TOGETHER * _TOGETHER
    for row in range(0, whole, _TOGETHER):
        own, other = first + row * BLOCK, second + row * BLOCK
        start, end = from_ + row * each, sums + row * UNITS * 4
        wanted = far + row // _TOGETHER * lines * UNITS * 4
        _first_gates_of_rows(
            own, fours, other, more_fours, weight, start, from_stride, each, end, stride, wanted, lines
        )
        _last_gates_of_rows(own, fours, other, more_fours, weight, start, from_stride, each, end, stride, wanted, lines)
    for row in range(whole, count):
        own, other = first + row * BLOCK, second + row * BLOCK
        start, end = from_ + row * each, sums + row * UNITS * 4
        _all_gates_of_a_row(own, fours, other, more_fours, weight, start, from_stride, each, end, stride)
    return passed


@part
def multiply_pair(rows, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """The same of 32 rows, in two tiles."""
    (first, fours), (second, more_fours) = rows, more
    from_, from_stride, each = begin
    sums, stride = into
    far, lines = ahead
    blocks, more_blocks = (fours + FOURS - 1) // FOURS, (more_fours + FOURS - 1) // FOURS
    for tile in range(2):
        own, other = first + tile * blocks * TILE, second + tile * more_blocks * TILE
        start, end = from_ + tile * ROWS * each, sums + tile * ROWS * UNITS * 4
        multiply_few(
            (own, fours),
            ROWS,
            (other, more_fours),
            weight,
            (start, from_stride, each),
            (end, stride),
            waiting,
            passed,
            (far + tile * ROWS // _TOGETHER * lines * UNITS * 4, lines),
        )
    return passed
