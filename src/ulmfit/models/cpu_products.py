"""Around matrix products on a CPU: oneDNN multiplies row-major factors two to three times as fast as transposed ones.

So the smaller factor is transposed beforehand, and what comes out transposed is put right at the end, both in blocks
that stay in the cache: whole, a matrix of tens of megabytes takes two to three times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit.models.bias_column import COLUMNS

_ROWS_AT_ONCE = 128
"""of a matrix that is transposed"""
_ADDED_AT_ONCE = 2**18
"""entries of a sum"""


def transpose_into(out: Tensor, matrix: Tensor) -> Tensor:
    """Out (columns, rows) from matrix (rows, columns); the first comes back."""
    for into, block in zip(torch.split(out, _ROWS_AT_ONCE, 1), torch.split(matrix, _ROWS_AT_ONCE), strict=True):
        into.copy_(block.t())
    return out


def transposed(matrix: Tensor) -> Tensor:
    """The transpose of (rows, columns), row-major."""
    return transpose_into(matrix.new_empty(matrix.shape[::-1]), matrix)


def transposed_with_ones(matrix: Tensor) -> Tensor:
    """(rows, columns) -> (columns + 8, rows), the last 8 rows ones: a bias's gradient comes with its weight's."""
    rows, columns = matrix.shape
    out = matrix.new_ones(columns + COLUMNS, rows)
    transpose_into(out[:columns], matrix)
    return out


def added(total: Tensor | None, part: Tensor) -> Tensor:
    """Their sum, in place of the total where it can be: a lone part as it is, several in float32 at least."""
    if total is None:
        return part
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    rows = max(1, _ADDED_AT_ONCE // part.shape[1])
    block = total.new_empty(rows, part.shape[1])
    for into, piece in zip(torch.split(total, rows), torch.split(part, rows), strict=True):
        into.add_(block[: len(piece)].copy_(piece))  # PyTorch adds a mixture of dtypes several times slower
    return total
