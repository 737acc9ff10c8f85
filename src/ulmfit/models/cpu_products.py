"""Around matrix products on a CPU: what makes oneDNN fast.

It multiplies row-major factors two to three times as fast as transposed ones. So the smaller factor is transposed
beforehand, and what comes out transposed is put right at the end, both in blocks that stay in the cache: whole, a
matrix of tens of megabytes takes two to three times as long. A factor that meets many others is put in oneDNN's own
order once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ulmfit.models.bias_column import COLUMNS

LANES = 16
"""numbers that kernels work on at once: sizes that they serve are multiples of it"""
_ROWS_TO_PACK_FOR = 64
"""oneDNN orders a weight for a number of rows in the other factor; this order serves any number"""
_ROWS_AT_ONCE = 128
"""of a matrix that is transposed"""
_ADDED_AT_ONCE = 2**18
"""entries of a sum"""


def as_integers(tensor: Tensor) -> Any:
    """A tensor of bfloat16 for NumPy, which has no such numbers."""
    return tensor.view(torch.int16).numpy()


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


def product_by(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """(rows, inputs) -> rows @ weight.T + bias, to be called more than once; the weight (outputs, inputs).

    oneDNN puts a weight in an order of its own in every call, which at 16 rows is a third of the call and at hundreds a
    fifth to a third; here it does so once.
    """
    if not weights_pack(weight.dtype):
        factor = transposed(weight)
        return lambda rows: rows @ factor if bias is None else torch.addmm(bias, rows, factor)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_TO_PACK_FOR)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda rows: cast(Tensor, product(rows, packed, bias, "none", [], ""))


def product_with(factor: Tensor) -> Callable[[Tensor], Tensor]:
    """(rows, inputs) -> rows @ factor, the same of a row-major factor (inputs, outputs)."""
    return product_by(transposed(factor)) if weights_pack(factor.dtype) else lambda rows: rows @ factor


def product_and_sum_by(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(rows, addend) -> rows @ weight.T + addend + bias; see `product_by`."""
    if not weights_pack(weight.dtype):
        factor = weight.t()

        def plain(rows: Tensor, addend: Tensor) -> Tensor:
            result = torch.addmm(addend, rows, factor)
            return result if bias is None else result.add_(bias)

        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_TO_PACK_FOR)
    product = torch.ops.mkldnn._linear_pointwise.binary
    return lambda rows, addend: cast(Tensor, product(rows, addend, packed, bias, "add"))


def weights_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch packs weights of that dtype on this processor; its operators for it are private."""
    operators = ("_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight")
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
