"""Products of codes by int8 weights for what learns, by the kernel that predicts: where oneDNN has none for few rows.

With AVX2 it multiplies 16 rows at a third of the rate of hundreds. Here they take as long each, and what comes out is
scaled and rounded to bfloat16 while it is at hand. Weights and codes lie in tiles, as in `tile_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.int8_rows import CODE_OF_ZERO
from ulmfit.models.code_kernel import pack
from ulmfit.models.compiled import intrinsic, kernel, signature
from ulmfit.models.cpu_products import as_integers
from ulmfit.models.fetching import ahead_of
from ulmfit.models.row_products import multiply_few
from ulmfit.models.tile_gates import NONE_WAIT
from ulmfit.models.tile_weights import BLOCK, GATES, ROWS, TILE, UNITS, in_tiles
from ulmfit.models.vectors import load_everywhere, load_floats, load_ints, store_bfloat16

GROUP = GATES * UNITS
"""outputs that are worked on at once"""


def product_of_few_rows(integers: Tensor, scales: Tensor, bias: Tensor | None) -> Callable[[Tensor, float], Tensor]:
    """(codes, scale) -> (rows, outputs) by int8 (outputs, inputs) with a scale for each output, plus a bias."""
    return _TiledWeight(integers, scales, bias).multiplied


class _TiledWeight:
    """Int8 (outputs, inputs) in tiles with a scale for each output, and what sums begin with as codes are 128 more."""

    def __init__(self, integers: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = integers.shape
        groups, blocks = -(-self.outputs // GROUP), -(-self.inputs // BLOCK)
        tiles, sums = np.empty((groups, blocks, GATES, UNITS, BLOCK), np.int8), np.empty(groups * GROUP, np.int32)
        filled = functional.pad(integers, (0, -self.inputs % BLOCK, 0, -self.outputs % GROUP)).contiguous()
        pack(filled.numpy(), tiles.reshape(-1), sums, TILE, UNITS * 4)
        begin = (sums * CODE_OF_ZERO).reshape(groups, GATES, UNITS)
        added = torch.zeros(self.outputs) if bias is None else bias
        per_output = (functional.pad(part, (0, -self.outputs % GROUP)).contiguous().numpy() for part in (scales, added))
        self._of_weight = tiles, begin, *per_output

    def multiplied(self, codes: Tensor, scale: float) -> Tensor:
        """Codes (rows, inputs), worth `scale` each, to (rows, outputs) in bfloat16."""
        rows = len(codes)
        if rows % ROWS or self.inputs % BLOCK:
            codes = functional.pad(codes, (0, -self.inputs % BLOCK, 0, -rows % ROWS))
        out = torch.empty(rows, self.outputs, dtype=torch.bfloat16)
        space, last = np.empty((GATES, ROWS, UNITS), np.int32), np.empty(UNITS, np.int16)
        worth, fours = np.array([scale], np.float32), -(-self.inputs // 4)
        _multiply(in_tiles(codes).numpy(), *self._of_weight, as_integers(out), worth, fours, space, last)
        return out


@intrinsic
def _write_scaled(typing, sums, scales, bias, scale, out):  # type: ignore[no-untyped-def]
    """16 sums times their scales and one of all, the address of a float32, plus a bias, as bfloat16."""

    def write(build: Any, operands: Any) -> None:
        sums, scales, bias, scale, out = operands
        factors = load_floats(build, scales) * load_everywhere(build, scale)
        store_bfloat16(load_ints(build, sums) * factors + load_floats(build, bias), out)

    return signature(5, write)


@kernel
def _multiply(tiles, weight, begin, scales, bias, out, worth, fours, space, last):  # type: ignore[no-untyped-def]
    """Rows of codes (tiles, blocks, 16, 64), worth so much each, by a weight.

    weight    int8 (groups, blocks, 4, 16, 64)
    begin     int32 (groups, 4, 16), what sums begin with
    scales, bias
              float32 (64 * groups,)
    out       bfloat16 (rows, outputs)
    worth     float32 (1,)
    fours     that hold a row's codes
    space     int32 (4, 16, 16)
    last      (16,) bfloat16
    """
    rows, outputs = out.shape
    blocks = weight.shape[1]
    sums, stride, each = np.int64(space.ctypes.data), ROWS * UNITS * 4, np.int64(worth.ctypes.data)
    for group in range(len(weight)):
        columns = np.int64(weight.ctypes.data) + group * blocks * GATES * TILE
        offset = np.int64(begin.ctypes.data) + group * GATES * UNITS * 4
        far = (group < len(weight) - 1) * blocks * GATES * TILE
        for tile in range(len(tiles)):
            read, count = np.int64(tiles.ctypes.data) + tile * blocks * TILE, min(ROWS, rows - tile * ROWS)
            ahead = ahead_of(far, tile * ROWS, len(tiles) * ROWS)
            multiply_few(
                (read, fours), count, (read, 0), columns, (offset, UNITS * 4, 0), (sums, stride), NONE_WAIT, 0, ahead
            )
            for gate in range(GATES):
                column = (group * GATES + gate) * UNITS
                by, more = np.int64(scales.ctypes.data) + column * 4, np.int64(bias.ctypes.data) + column * 4
                for row in range(tile * ROWS, tile * ROWS + count):
                    found = sums + gate * stride + row % ROWS * UNITS * 4
                    if column + UNITS <= outputs:
                        _write_scaled(found, by, more, each, np.int64(out.ctypes.data) + (row * outputs + column) * 2)
                    elif column < outputs:
                        _write_scaled(found, by, more, each, np.int64(last.ctypes.data))
                        out[row, column:] = last[: outputs - column]
