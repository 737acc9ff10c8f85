"""Products of int8 by AMX, for kernels that Numba compiles: of whole tiles, which no library gives piece by piece.

A tile is a register of 16 rows of 64 bytes, and there are eight. One instruction multiplies two tiles of int8, the
first without a sign, and adds the 16 x 16 sums, int32, to a third: of the second factor each row holds four numbers of
each of 16 columns. See Intel's "Architecture Instruction Set Extensions Programming Reference", chapter 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ulmfit.models.compiled import intrinsic, part, signature
from ulmfit.models.row_products import multiply_few as multiply_rows
from ulmfit.models.tile_gates import COUNT, pass_two
from ulmfit.models.tile_weights import BLOCK, FOURS, ROWS, TILE

MEANWHILE = True
"""whether gates are passed beside products: these wait for tiles, and other units of the core are free"""
BY_VECTORS = 1
"""rows that AVX-512 VNNI multiplies faster: a lone one, for which a tile is loaded as for two, and slower"""
_BLOCKS_A_PAIR = 2
"""blocks of products for the gates of two rows, which take as long at most"""
_TILES = 8
_FACTOR_OR_SUM = 5
"""the first tiles: four of sums and one of rows to multiply, which may hold fewer rows than 16"""


def configurations() -> NDArray[np.uint8]:
    """What `configure` takes for each number of rows, (17, 64) bytes: the first number is not used."""
    tables = np.zeros((ROWS + 1, 64), dtype=np.uint8)
    tables[:, 0] = 1  # the only palette
    tables[:, 16 : 16 + 2 * _TILES].view(np.uint16)[:] = BLOCK
    tables[:, 48 : 48 + _TILES] = ROWS
    tables[:, 48 : 48 + _FACTOR_OR_SUM] = np.arange(ROWS + 1)[:, None]
    return tables


def _instructions(count: int, text: str) -> Any:
    """Of an intrinsic with so many operands, each an int64: what Numba asks of it."""
    constraints = ",".join(["r"] * count + ["~{memory}"])
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * count)

    def write(builder: Any, operands: Any) -> None:
        builder.asm(kind, text, constraints, list(operands), side_effect=True)

    return signature(count, write)


@intrinsic
def configure(typing, table):  # type: ignore[no-untyped-def]
    """Say how many rows tiles have, at an address of `configurations`; all tiles are empty then."""
    return _instructions(1, "ldtilecfg ($0)")


@intrinsic
def release(typing):  # type: ignore[no-untyped-def]
    """Give all tiles up: what the system keeps of a thread is small again."""
    return _instructions(0, "tilerelease")


@intrinsic
def load_sums(typing, first, second, third, fourth, stride):  # type: ignore[no-untyped-def]
    """Begin with sums that lie so far from row to row, or where it is 0 with the same for all rows."""
    return _instructions(
        5,
        """tileloadd ($0,$4), %tmm0
        tileloadd ($1,$4), %tmm1
        tileloadd ($2,$4), %tmm2
        tileloadd ($3,$4), %tmm3""",
    )


@intrinsic
def add_two_by_two(typing, upper, lower, columns, stride):  # type: ignore[no-untyped-def]
    """Add the products of two tiles of rows, 32 rows, with two of columns that follow each other; the stride is 64."""
    return _instructions(
        4,
        """tileloadd ($0,$3), %tmm4
        tileloadd ($2,$3), %tmm6
        tdpbusd %tmm6, %tmm4, %tmm0
        tileloadd 1024($2,$3), %tmm7
        tdpbusd %tmm7, %tmm4, %tmm1
        tileloadd ($1,$3), %tmm5
        tdpbusd %tmm6, %tmm5, %tmm2
        tdpbusd %tmm7, %tmm5, %tmm3""",
    )


@intrinsic
def store_two_by_two(typing, first, second, stride):  # type: ignore[no-untyped-def]
    """Write the sums, 32 rows of 64 bytes of the first columns and as many of the second."""
    return _instructions(
        3,
        """tilestored %tmm0, ($0,$2)
        tilestored %tmm1, ($1,$2)
        tilestored %tmm2, 1024($0,$2)
        tilestored %tmm3, 1024($1,$2)""",
    )


@intrinsic
def add_one_by_four(typing, rows, columns, stride):  # type: ignore[no-untyped-def]
    """Add the products of one tile of rows with four of columns that follow each other; the stride is 64."""
    return _instructions(
        3,
        """tileloadd ($0,$2), %tmm4
        tileloadd ($1,$2), %tmm5
        tdpbusd %tmm5, %tmm4, %tmm0
        tileloadd 1024($1,$2), %tmm6
        tdpbusd %tmm6, %tmm4, %tmm1
        tileloadd 2048($1,$2), %tmm7
        tdpbusd %tmm7, %tmm4, %tmm2
        tileloadd 3072($1,$2), %tmm5
        tdpbusd %tmm5, %tmm4, %tmm3""",
    )


@intrinsic
def store_one_by_four(typing, first, second, third, fourth, stride):  # type: ignore[no-untyped-def]
    """Write the sums, up to 16 rows of 64 bytes of each of the columns."""
    return _instructions(
        5,
        """tilestored %tmm0, ($0,$4)
        tilestored %tmm1, ($1,$4)
        tilestored %tmm2, ($2,$4)
        tilestored %tmm3, ($3,$4)""",
    )


@part
def _blocks(fours):  # type: ignore[no-untyped-def]
    """That hold so many fours."""
    return (fours + FOURS - 1) // FOURS


@part
def _pass_meanwhile(block, waiting, passed):  # type: ignore[no-untyped-def]
    """Gates of two rows that wait, if there are any, beside every few blocks; how many rows are passed then."""
    if block % _BLOCKS_A_PAIR == 0 and passed + 1 < waiting[COUNT]:
        pass_two(waiting, passed)
        passed += 2
    return passed


@part
def _add_pair(rows, columns, waiting, passed):  # type: ignore[no-untyped-def]
    """Add products of 32 rows with half of the gates, while gates of rows that wait are passed."""
    first, fours = rows
    blocks = _blocks(fours)
    for block in range(blocks):
        upper = first + block * TILE
        add_two_by_two(upper, upper + blocks * TILE, columns + block * 4 * TILE, BLOCK)
        passed = _pass_meanwhile(block, waiting, passed)
    return passed


@part
def _add_few(rows, columns, waiting, passed):  # type: ignore[no-untyped-def]
    """The same of up to 16 rows and all gates."""
    first, fours = rows
    blocks = _blocks(fours)
    for block in range(blocks):
        add_one_by_four(first + block * TILE, columns + block * 4 * TILE, BLOCK)
        passed = _pass_meanwhile(block, waiting, passed)
    return passed


@part
def multiply_pair(rows, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """32 rows by 16 units of all gates: sums (4, ..., 16) int32; of rows that wait, how many are passed then.

    rows, more  (address, fours), where the rows' first entries lie and where the others, maybe none, and a row's length
    begin       (address, from gate to gate, from row to row), what sums begin with
    into        (address, from gate to gate), of the sums
    waiting, passed
                rows whose gates are passed meanwhile, and how many of them are already
    ahead       for VNNI: here nothing is asked for beforehand
    """
    from_, from_stride, each = begin
    sums, stride = into
    for half in range(2):
        one, other = from_ + half * 2 * from_stride, from_ + (half * 2 + 1) * from_stride
        load_sums(one, other, one + ROWS * each, other + ROWS * each, each)
        columns = weight + half * 2 * TILE
        passed = _add_pair(rows, columns, waiting, passed)
        passed = _add_pair(more, columns + _blocks(rows[1]) * 4 * TILE, waiting, passed)
        store_two_by_two(sums + half * 2 * stride, sums + (half * 2 + 1) * stride, BLOCK)
    return passed


@part
def multiply_few(rows, count, more, weight, begin, into, waiting, passed, ahead):  # type: ignore[no-untyped-def]
    """The same of up to 16 rows, for which tiles are configured where there are more than `BY_VECTORS`."""
    from_, from_stride, each = begin
    sums, stride = into
    if count <= BY_VECTORS:
        return multiply_rows(rows, count, more, weight, begin, into, waiting, passed, ahead)
    load_sums(from_, from_ + from_stride, from_ + 2 * from_stride, from_ + 3 * from_stride, each)
    passed = _add_few(rows, weight, waiting, passed)
    passed = _add_few(more, weight + _blocks(rows[1]) * 4 * TILE, waiting, passed)
    store_one_by_four(sums, sums + stride, sums + 2 * stride, sums + 3 * stride, BLOCK)
    return passed
