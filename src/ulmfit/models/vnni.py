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
from ulmfit.models.tile_weights import BLOCK, GATES, ROWS, TILE, UNITS
from ulmfit.models.vectors import load, moved, store

_TOGETHER = 8
"""rows multiplied at once by the units of two gates: their sums fill half of the registers"""
_FOURS = BLOCK // 4
_WORD = ir.IntType(64)
_SUMS = ir.VectorType(ir.IntType(32), UNITS)


def configurations() -> NDArray[np.uint8]:
    """Nothing that is asked for here."""
    return np.zeros((ROWS + 1, 64), dtype=np.uint8)


@part
def configure(table):  # type: ignore[no-untyped-def]
    """There is nothing to configure."""


@part
def release():  # type: ignore[no-untyped-def]
    """Nor to give up."""


def _multiply(build: Any, operands: Any, rows: int, gates: Sequence[int]) -> None:
    """So many rows by 16 units of some gates."""
    read, blocks, weight, offsets, sums, stride = operands
    added: dict[tuple[int, int], Any] = {
        (row, gate): cgutils.alloca_once_value(build, load(build, moved(build, offsets, gate * UNITS * 4), _SUMS))
        for row in range(rows)
        for gate in gates
    }
    dot = ir.FunctionType(_SUMS, [_SUMS] * 3)
    everywhere = ir.FunctionType(_SUMS, [_WORD])
    with cgutils.for_range(build, blocks, intp=_WORD) as block:
        of_block, columns = moved(build, read, TILE, block.index), moved(build, weight, GATES * TILE, block.index)
        with cgutils.for_range(build, _WORD(_FOURS), intp=_WORD) as four:
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
    for (row, gate), total in added.items():
        into = moved(build, moved(build, sums, gate, stride), row * UNITS * 4)
        store(build, build.load(total), into)


@intrinsic
def _first_gates_of_rows(typing, rows, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(_multiply, rows=_TOGETHER, gates=(0, 1)))


@intrinsic
def _last_gates_of_rows(typing, rows, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(_multiply, rows=_TOGETHER, gates=(2, 3)))


@intrinsic
def _all_gates_of_a_row(typing, rows, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    return signature(6, functools.partial(_multiply, rows=1, gates=range(GATES)))


@part
def multiply_few(rows, count, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    """Up to 16 rows by 16 units of all gates: sums (4, ..., 16) int32, one gate's `stride` bytes after the other's."""
    whole = count // _TOGETHER * _TOGETHER
    for row in range(0, whole, _TOGETHER):
        _first_gates_of_rows(rows + row * BLOCK, blocks, weight, offsets, sums + row * UNITS * 4, stride)
        _last_gates_of_rows(rows + row * BLOCK, blocks, weight, offsets, sums + row * UNITS * 4, stride)
    for row in range(whole, count):
        _all_gates_of_a_row(rows + row * BLOCK, blocks, weight, offsets, sums + row * UNITS * 4, stride)


@part
def multiply_pair(rows, blocks, weight, offsets, sums, stride):  # type: ignore[no-untyped-def]
    """The same of 32 rows, in two tiles."""
    multiply_few(rows, ROWS, blocks, weight, offsets, sums, stride)
    multiply_few(rows + blocks * TILE, ROWS, blocks, weight, offsets, sums + ROWS * UNITS * 4, stride)
