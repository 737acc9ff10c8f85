"""Products of int8 by oneDNN on a CPU, for what learns: at twice the rate of what else is fastest there.

That is of bfloat16 with AVX-512 VNNI and with AMX, and of float32 with AVX2. A code is a number without a sign, 128
more than the nearest integer to a value over its scale: processors multiply such by weights with a sign, and the
operator takes what is too much off the sums. AVX2 adds two products in 16 bits, so that sums are right of weights
within `PAIRED_PEAK` alone. Operators are private to PyTorch, so whether they are there, and within what they are right,
is looked at once (`weight_peak`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ulmfit.compute import choose_dtype, cpu_products
from ulmfit.config import TrainingPrecision
from ulmfit.errors import ConfigError
from ulmfit.int8_rows import CODE_OF_ZERO, INT8_PEAK, PAIRED_PEAK
from ulmfit.models.cpu_products import as_integers

_LEAST = 1e-30
"""whose reciprocal is a float32"""
FEW_ROWS, FEW_ROWS_OF_THREADS = 256, 32
"""up to which the kernel of `code_products` is the faster: on one thread, and where oneDNN has more"""
Product = Callable[[Tensor, float], Tensor]
"""(codes (rows, inputs), their scale) -> (rows, outputs) in bfloat16"""


def bound_of(matrix: Tensor) -> float:
    """The greatest size in it, of zeros a little more; no number where it holds what is none."""
    return max(float(matrix.abs().max()), _LEAST) if matrix.numel() else 1.0


def codes_of(matrix: Tensor, factor: float) -> Tensor:
    """Of bfloat16 times a factor; what is beyond 127 is 127."""
    from ulmfit.models.code_kernel import encode

    codes = torch.empty(matrix.shape, dtype=torch.uint8)
    encode(as_integers(matrix.contiguous()), np.array([factor], dtype=np.float32), codes.numpy())
    return codes


def transposed_bytes(matrix: Tensor) -> Tensor:
    """The transpose of codes or int8 (rows, columns), row-major; of bytes in blocks that registers hold."""
    from ulmfit.models.code_kernel import transpose_bytes

    out = matrix.new_empty(matrix.shape[::-1])
    transpose_bytes(matrix.contiguous().view(torch.int8).numpy(), out.view(torch.int8).numpy())
    return out


def by_row(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 (rows, columns) in int8, and a scale for each row."""
    from ulmfit.models.code_kernel import integers_by_row

    integers, scales = torch.empty(matrix.shape, dtype=torch.int8), torch.empty(len(matrix))
    factor = np.empty(1, np.float32)
    integers_by_row(as_integers(matrix.contiguous()), integers.numpy(), scales.numpy(), weight_peak(), factor)
    return integers, scales


def by_column(matrix: Tensor, of_rows: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 (rows, columns) times a factor for each row in int8, and a scale for each column."""
    from ulmfit.models.code_kernel import integers_by_column

    integers, scales = torch.empty(matrix.shape, dtype=torch.int8), torch.empty(matrix.shape[1])
    of_rows_, integers_, scales_ = (tensor.contiguous().numpy() for tensor in (of_rows, integers, scales))
    factors = np.empty(matrix.shape[1], np.float32)
    integers_by_column(as_integers(matrix.contiguous()), of_rows_, integers_, scales_, weight_peak(), factors)
    return integers, scales


def product_by_integers(integers: Tensor, scales: Tensor, bias: Tensor | None = None) -> Product:
    """By a weight's int8 (outputs, inputs), put in order for it, with a scale for each output; plus a bias."""
    if cpu_products() in {"avx2", "avx_vnni"}:
        return _OneOfTwo(integers, scales, bias).product
    return _product_by_onednn(integers, scales, bias)


def _product_by_onednn(integers: Tensor, scales: Tensor, bias: Tensor | None) -> Product:
    from ulmfit.models.packed_weights import PackedWeight

    weight, zeros = PackedWeight(integers), torch.zeros(len(scales), dtype=torch.int64)
    return lambda codes, scale: _product(weight.tensor, scales, zeros, codes, scale, bias=bias)


class _OneOfTwo:
    """A product by oneDNN or by the kernel of `code_products`, whichever is faster; put in order when first wanted."""

    def __init__(self, integers: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._of_weight = integers, scales, bias
        self._made: dict[bool, Product] = {}

    def product(self, codes: Tensor, scale: float) -> Tensor:
        """Codes (rows, inputs) to (rows, outputs) in bfloat16."""
        from ulmfit.models.code_products import product_of_few_rows

        few = len(codes) <= (FEW_ROWS if torch.get_num_threads() == 1 else FEW_ROWS_OF_THREADS)
        if few not in self._made:
            self._made[few] = (product_of_few_rows if few else _product_by_onednn)(*self._of_weight)
        return self._made[few](codes, scale)


def exact_product(codes: Tensor, rows: Tensor, scales: Tensor) -> Tensor:
    """Codes (outer, rows) by int8 (rows, inner) with a scale for each column: (outer, inner) in float32."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return _product(rows.to_mkldnn(), scales, zeros, codes, 1.0, bias=None, dtype=torch.float32)


def _product(
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor,
    codes: Tensor,
    scale: float,
    *,
    bias: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    linear: Any = torch.ops.onednn.qlinear_pointwise
    # Where bfloat16 is not native oneDNN writes it a number at a time.
    written = dtype if choose_dtype("auto", codes.device) == torch.bfloat16 else torch.float32
    product = linear(codes, scale, CODE_OF_ZERO, weight, scales, zeros, bias, 1.0, 0, written, "none", [], "")
    return cast(Tensor, product.to(dtype))


def choose_learning_dtype(precision: TrainingPrecision, device: torch.device) -> torch.dtype:
    """What products are computed in to learn: `auto` is int8 on a CPU where that is fastest, beside bfloat16.

    Raises ConfigError where int8 is asked for and cannot be learned in.
    """
    serve = device.type == "cpu" and products_serve()
    if precision == "int8" and not serve:
        raise ConfigError(
            f"precision 'int8' on {device.type!r}: learning in it takes a CPU with AMX, AVX-512 VNNI or AVX2, "
            "and Numba. Leave the precision to auto."
        )
    return torch.int8 if serve and precision in ("auto", "int8") else choose_dtype(precision, device)


def products_serve() -> bool:
    """Whether this processor multiplies int8 faster than all else, kernels can be made, and each product is right."""
    return weight_peak() is not None


@functools.cache
def weight_peak() -> int | None:
    """The largest integer of weights whose products come out right; None where there is none, or nothing is gained."""
    peaks = (INT8_PEAK, PAIRED_PEAK) if cpu_products() else ()
    return next((peak for peak in peaks if _come_out_right(peak)), None)


def _come_out_right(peak: int) -> bool:
    """At sums that saturate where pairs are added in 16 bits, and where codes' sign is off."""
    inner, outputs = 128, 32
    weight = torch.full((outputs, inner), -peak, dtype=torch.int8)
    weight[::2, ::3] = peak
    scales = torch.linspace(0.5, 2, outputs)
    for rows in (1, 48):
        codes = torch.full((rows, inner), 255, dtype=torch.uint8)
        codes[:, ::5] = 0
        wanted = ((codes.double() - CODE_OF_ZERO) @ weight.double().t()) * scales.double()
        try:
            found = [
                product_by_integers(weight, scales)(codes, 1.0),
                exact_product(codes, weight.t().contiguous(), scales),
            ]
        except (AttributeError, RuntimeError):  # this PyTorch has no such operator, or another signature
            return False
        for tolerance, result in zip((2**-8, 1e-6), found, strict=True):
            if not torch.allclose(result.double(), wanted, rtol=tolerance, atol=0):
                return False
    return True
