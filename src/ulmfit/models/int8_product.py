"""Products of int8 rows with an int8 weight, added up in float32: by oneDNN with a packed weight where that pays.

oneDNN multiplies by a weight in an order of its own. `torch._int_mm` puts it there in every call, which takes as long
as the product of 64 rows; the packed weight is put there once, and the sums leave the product scaled and added up. That
is on a CPU with AMX. On one with AVX-512 VNNI alone oneDNN has nothing but its reference kernel for a packed weight and
signed rows (14 s for 256 rows of 1152 and 4608 outputs on an EPYC), and `torch._int_mm` is as fast as its packed kernel
for unsigned ones.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ulmfit.int8_rows import INT8_PEAK

PACKED_SIZE = 2**19
"""entries of a weight from which on it is packed: the packed product takes some 20 us whatever the size, and far more
for a few rows of a tiny weight, where oneDNN has its reference kernel alone"""


class Int8Product:
    """An int8 weight (outputs, inputs) with a scale for each output, ready to be multiplied by rows of int8.

    Sums of int8 products are exact and what follows is done element by element: a row's result is the same, bit for
    bit, whatever other rows are multiplied with it.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._scale = scale
        self._packed = weight.numel() >= PACKED_SIZE and packs()
        if self._packed:
            self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
            self._zero = torch.zeros(len(weight), dtype=torch.int32)
        else:
            self._weight = weight.t()

    def add_to(self, total: Tensor, rows: Tensor) -> None:
        """Add the product of int8 `rows` (rows, inputs) to float32 `total` (rows, outputs), in place."""
        if self._packed:
            _add_packed(total, rows, self._weight, self._scale, self._zero)
        else:
            total.addcmul_(torch._int_mm(rows, self._weight), self._scale)


def _add_packed(total: Tensor, rows: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> None:
    factors = (rows, 1.0, 0, packed, scale, zero, total, None)
    torch.ops.onednn.qlinear_pointwise.binary(*factors, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")


@cache
def packs() -> bool:
    """Whether the processor has AMX and this PyTorch adds products with packed int8 weights, and rightly, there.

    The operators are private. Asked of a few and of many rows at the edge of what saturates a kernel that adds pairs in
    int16; the sum goes into a tensor that must be changed in place.
    """
    if not getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return False
    size = 64
    weight = torch.full((size, size), -INT8_PEAK, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        for count in (1, 32):
            rows = torch.full((count, size), INT8_PEAK, dtype=torch.int8)
            total = torch.ones(count, size)
            _add_packed(total, rows, packed, torch.full((size,), 0.5), torch.zeros(size, dtype=torch.int32))
            if not torch.equal(total, torch.full_like(total, 1 - size * INT8_PEAK**2 / 2)):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
