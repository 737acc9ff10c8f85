"""Products of int8 rows with an int8 weight, in float32: by oneDNN with a packed weight where that pays.

oneDNN multiplies by a weight in an order of its own. `torch._int_mm` puts it there in every call, which takes as long
as the product of 64 rows; the packed weight is put there once, and the sums leave the product scaled and added up.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ulmfit.int8_rows import INT8_PEAK

PACKED_SIZE = 2**19
"""entries of a weight from which on it is packed: the packed product takes some 20 us whatever the size, and far more
for a few rows of a tiny weight, where oneDNN has its reference kernel alone"""

_NOTHING_AFTER: tuple[str, list[float], str] = ("none", [], "")


class Int8Product:
    """An int8 weight (outputs, inputs) with a scale for each output, ready to be multiplied by rows of int8.

    Sums of int8 products are exact and what follows is done element by element: a row's result is the same, bit for
    bit, whatever other rows are multiplied with it.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        self._scale = scale
        self._packed = weight.numel() >= PACKED_SIZE and packs()
        if self._packed:
            self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
            self._zero = torch.zeros(self.outputs, dtype=torch.int32)
        else:
            self._weight = weight.t()

    def __call__(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """(rows, inputs) int8 -> (rows, outputs) float32."""
        if self._packed:
            factors = (rows, 1.0, 0, self._weight, self._scale, self._zero)
            result: Tensor = torch.ops.onednn.qlinear_pointwise(*factors, bias, 1.0, 0, torch.float32, *_NOTHING_AFTER)
            return result
        product = torch._int_mm(rows, self._weight)
        return product * self._scale if bias is None else torch.addcmul(bias, product, self._scale)

    def add_to(self, total: Tensor, rows: Tensor) -> None:
        """Add the product to `total` (rows, outputs), in place."""
        if self._packed:
            factors = (rows, 1.0, 0, self._weight, self._scale, self._zero)
            torch.ops.onednn.qlinear_pointwise.binary(
                *factors, total, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, *_NOTHING_AFTER
            )
        else:
            total.addcmul_(torch._int_mm(rows, self._weight), self._scale)


@cache
def packs() -> bool:
    """Whether this PyTorch multiplies by packed int8 weights, and rightly on this processor.

    The operators are private. Asked of a few and of many rows at the edge of what saturates a kernel that adds pairs in
    int16, with a sum into a tensor that must be changed in place.
    """
    size = 64
    weight = torch.full((size, size), -INT8_PEAK, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        for count in (1, 32):
            rows = torch.full((count, size), INT8_PEAK, dtype=torch.int8)
            total = torch.ones(count, size)
            factors = (rows, 1.0, 0, packed, torch.full((size,), 0.5), torch.zeros(size, dtype=torch.int32))
            after = (1.0, 0, torch.float32)
            found = torch.ops.onednn.qlinear_pointwise(*factors, torch.ones(size), *after, *_NOTHING_AFTER)
            torch.ops.onednn.qlinear_pointwise.binary(
                *factors, total, None, *after, 1.0, 0, "sum", 1.0, *_NOTHING_AFTER
            )
            expected = torch.full_like(total, 1 - size * INT8_PEAK**2 / 2)
            if not (torch.equal(found, expected) and torch.equal(total, expected)):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
