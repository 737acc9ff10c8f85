"""Products of int8 row by row, for kernels that Numba compiles: the same as by AMX, by what else a processor has.

Four numbers without a sign are multiplied by four with one, in each of 8 or 16 columns, and added to as many sums,
int32. AVX-512 VNNI and AVX-VNNI do so in one instruction. AVX2 takes three, the first of which adds two products in 16
bits: weights within `PAIRED_PEAK` leave them room, so that sums are exact here too. So that rows have no sign each
number is kept as 128 more; sums begin with what that is too much.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from ulmfit.compute import CpuProducts, cpu_products
from ulmfit.models.compiled import intrinsic, part, signature
from ulmfit.models.tile_weights import BLOCK, FETCH_ROWS, FOURS, GATES, PAIR, ROWS, TILE, UNITS
from ulmfit.models.vectors import load, moved, store

MEANWHILE, BY_VECTORS = False, PAIR
"""no gates are passed beside products, which leave them none of the core's units; all rows are multiplied so"""
_WORD = ir.IntType(64)
_FETCH = ir.FunctionType(ir.VoidType(), [_WORD])


def _whole_numbers(count: int, bits: int = 32) -> Any:
    return ir.VectorType(ir.IntType(bits), count)


def _dot_by(instruction: str, build: Any, sums: Any, numbers: Any, by: Any) -> Any:
    kind = ir.FunctionType(sums.type, [sums.type] * 3)
    return build.asm(kind, f"{instruction} $2, $1, $0", "=v,v,v,0", [numbers, by, sums], side_effect=False)


def _dot_by_avx2(build: Any, sums: Any, numbers: Any, by: Any) -> Any:
    bytes_, pairs = _whole_numbers(32, 8), _whole_numbers(16, 16)

    def called(name: str, result: Any, given: Any, *values: Any) -> Any:
        function = cgutils.get_or_insert_function(build.module, ir.FunctionType(result, [given] * 2), name)
        return build.call(function, [build.bitcast(value, given) for value in values])

    added = called("llvm.x86.avx2.pmadd.ub.sw", pairs, bytes_, numbers, by)
    ones = ir.Constant(pairs, [1] * pairs.count)
    return build.add(sums, called("llvm.x86.avx2.pmadd.wd", sums.type, pairs, added, ones))


class _Registers(NamedTuple):
    """What a processor multiplies with."""

    columns: int
    """of one register"""
    rows: int
    """multiplied at once"""
    gates: int
    """that these meet at once, of 16 units each: as many sums as registers hold beside what is multiplied"""
    dot: Callable[..., Any]


_KINDS: dict[CpuProducts, _Registers] = {
    "avx512_vnni": _Registers(16, 8, 2, functools.partial(_dot_by, "vpdpbusd")),
    "avx_vnni": _Registers(8, 4, 1, functools.partial(_dot_by, "{vex} vpdpbusd")),
    "avx2": _Registers(8, 4, 1, _dot_by_avx2),
}
_HERE = _KINDS.get(cpu_products() or "avx2", _KINDS["avx512_vnni"])  # what has AMX has that as well
_TOGETHER = _HERE.rows
_COLUMNS = _whole_numbers(_HERE.columns)


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


def _multiply(build: Any, operands: Any, rows: int, at_once: int) -> None:
    """So many rows by 16 units of all gates, so many of them at once."""
    for first in range(0, GATES, at_once):
        _multiply_gates(build, operands, rows, range(first, first + at_once))


def _multiply_gates(build: Any, operands: Any, rows: int, gates: Sequence[int]) -> None:
    read, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride, *ahead = operands
    parts = range(0, UNITS, _HERE.columns)

    def placed(address: Any, gate_stride: Any, gate: int, row_stride: Any, row: int, part: int) -> Any:
        return moved(build, moved(build, moved(build, address, gate, gate_stride), row, row_stride), part * 4)

    added: dict[tuple[int, int, int], Any] = {
        (row, gate, part): cgutils.alloca_once_value(
            build, load(build, placed(begin, begin_stride, gate, each, row, part), _COLUMNS)
        )
        for row in range(rows)
        for gate in gates
        for part in parts
    }
    everywhere = ir.FunctionType(_COLUMNS, [_WORD])
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
                by = {
                    (gate, part): load(build, moved(build, four_columns, gate * TILE + part * 4), _COLUMNS)
                    for gate in gates
                    for part in parts
                }
                four_numbers = moved(build, of_block, 4, four.index)
                for row in range(rows):
                    text = f"vpbroadcastd {row * BLOCK}($1), $0"
                    numbers = build.asm(everywhere, text, "=v,r,~{memory}", [four_numbers], side_effect=True)
                    for (gate, part), factor in by.items():
                        so_far = added[row, gate, part]
                        build.store(_HERE.dot(build, build.load(so_far), numbers, factor), so_far)
    row_stride = _WORD(UNITS * 4)
    for (row, gate, part), total in added.items():
        store(build, build.load(total), placed(sums, stride, gate, row_stride, row, part))


@intrinsic
def _gates_of_rows(  # type: ignore[no-untyped-def]
    typing, rows, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride, ahead, lines
):
    return signature(12, functools.partial(_multiply, rows=_TOGETHER, at_once=_HERE.gates))


@intrinsic
def _gates_of_a_row(  # type: ignore[no-untyped-def]
    typing, rows, fours, more, more_fours, weight, begin, begin_stride, each, sums, stride
):
    return signature(10, functools.partial(_multiply, rows=1, at_once=GATES))


@part
def multiply_few(rows, count, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """Up to 16 rows by 16 units of all gates: sums (4, ..., 16) int32; of rows that wait, how many are passed then.

    rows, more  (address, fours), where the rows' first entries lie and where the others, maybe none, and a row's length
    begin       (address, from gate to gate, from row to row), what sums begin with
    into        (address, from gate to gate), of the sums
    waiting, passed
                for AMX: here none are passed
    ahead       (how far on weights lie that are wanted next, lines of each of their tiles to fetch for `FETCH_ROWS`)
    """
    (first, fours), (second, more_fours) = rows, more
    from_, from_stride, each = begin
    sums, stride = into
    far, lines = ahead
    whole = count // _TOGETHER * _TOGETHER
    for row in range(0, whole, _TOGETHER):
        own, other = first + row * BLOCK, second + row * BLOCK
        start, end = from_ + row * each, sums + row * UNITS * 4
        wanted = far + row // FETCH_ROWS * lines * UNITS * 4
        _gates_of_rows(
            own,
            fours,
            other,
            more_fours,
            weight,
            start,
            from_stride,
            each,
            end,
            stride,
            wanted,
            lines if row % FETCH_ROWS == 0 else 0,
        )
    for row in range(whole, count):
        own, other = first + row * BLOCK, second + row * BLOCK
        start, end = from_ + row * each, sums + row * UNITS * 4
        _gates_of_a_row(own, fours, other, more_fours, weight, start, from_stride, each, end, stride)
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
            (far + tile * ROWS // FETCH_ROWS * lines * UNITS * 4, lines),
        )
    return passed
