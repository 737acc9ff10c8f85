"""A matrix as int8 rows with a float32 scale each: weights stored small, and what a CPU multiplies fastest."""

from __future__ import annotations

import torch
from torch import Tensor

INT8_PEAK = 127
CODE_OF_ZERO = 128
"""where integers are kept without a sign, each 128 more"""
PAIRED_PEAK = 64
"""of weights whose products with two such codes are added in 16 bits: 2 * 255 * 64 is below 2**15"""


def quantise_rows(matrix: Tensor, *, peak: int = INT8_PEAK, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(rows, ...) -> int8 of the same shape and a float32 scale for each row; a row's largest entry becomes the peak.

    Or less, where the row's scale has to be at `least` so much, (rows,).
    """
    rows = matrix.float().flatten(1)
    scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / peak
    if least is not None:
        scale = torch.maximum(scale, least)
    quantised = (rows / scale.unsqueeze(1)).round_().clamp_(-peak, peak).to(torch.int8)
    return quantised.reshape(matrix.shape), scale


def restore_rows(quantised: Tensor, scale: Tensor) -> Tensor:
    """Float32 again: each row times its scale."""
    return quantised.float() * scale.reshape(-1, *[1] * (quantised.dim() - 1))
