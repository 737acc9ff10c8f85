"""An encoder's weights in int8 and in tiles, as AMX and AVX-512 VNNI multiply them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.compute import cpu_has_tiles
from ulmfit.int8_rows import INT8_PEAK, quantise_rows
from ulmfit.models.lstm_products import LstmWeights

GATES = 4
UNITS, ROWS, BLOCK = 16, 16, 64
"""units worked on at once, rows of a tile, and entries of each row"""
PAIR = 2 * ROWS
TILE = ROWS * BLOCK
"""bytes of a tile"""
SIGN = 0 if cpu_has_tiles() else 128
"""what rows' numbers are kept as more than they are: AVX-512 VNNI wants them without a sign"""
EXPONENTS = tuple(-scale * math.log2(math.e) for scale in (1, 1, 1, 2))
"""by which the gates (entry, forget, exit, candidate) are to be multiplied beforehand: with x such a product, and so
2**x = e**-gate, sigmoid is 1 / (1 + 2**x), and tanh (1 - 2**x) / (1 + 2**x), for which the candidate counts twice"""


@dataclass(frozen=True, slots=True)
class TileLayer:
    """One layer's weights, as `read_steps` has them."""

    size: int
    """of the hidden vector"""
    from_inputs: Tensor
    from_hidden: Tensor
    input_offsets: Tensor
    hidden_offsets: Tensor
    constants: Tensor

    @property
    def units(self) -> int:
        """The hidden vector's size as a multiple of 16."""
        return len(self.constants) * UNITS

    @property
    def blocks(self) -> int:
        """Blocks of 64 that hold a hidden vector."""
        return self.from_hidden.shape[1]


@dataclass(frozen=True, slots=True)
class TileStackWeights:
    """An encoder to predict with."""

    table: Tensor
    """(words, 64 * blocks) int8: the embeddings, `SIGN` more"""
    scales: Tensor
    """(words,) of their rows"""
    layers: tuple[TileLayer, ...]


def quantise_for_tiles(embeddings: Tensor, layers: Sequence[LstmWeights]) -> TileStackWeights:
    """An encoder's weights in int8, in the order in which they are multiplied."""
    table, scales = quantise_rows(embeddings.detach())
    table = signed(table)
    table = functional.pad(table, (0, -table.shape[1] % BLOCK))
    made = tuple(_quantised(layer, of_embeddings=depth == 0) for depth, layer in enumerate(layers))
    return TileStackWeights(table, scales, made)


def signed(rows: Tensor) -> Tensor:
    """Int8 as rows have them, or rows as int8 again: `SIGN` more, whose carry is lost."""
    return rows ^ -SIGN if SIGN else rows


def _quantised(weights: LstmWeights, *, of_embeddings: bool) -> TileLayer:
    size = weights.hidden_weight.shape[1]
    exponents = torch.tensor(EXPONENTS).unsqueeze(1)

    def by_gate(rows: Tensor) -> Tensor:
        """(4 * size, ...) -> (4, units, ...), the gates in the kernel's order, entries of units that fill up zero."""
        entry, forget, candidate, exit_ = rows.detach().float().view(4, size, *rows.shape[1:])
        stacked = torch.stack([entry, forget, exit_, candidate])
        return functional.pad(stacked, (0, 0) * (stacked.dim() - 2) + (0, -size % UNITS))

    def in_tiles(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(4 * size, columns) -> int8 (units / 16, blocks, 4, 16, 64), offsets, and scales (4, units)."""
        rows, scale = quantise_rows(by_gate(weight).flatten(0, 1))
        rows = functional.pad(rows, (0, -rows.shape[1] % BLOCK))
        tiles = rows.view(GATES, -1, UNITS, rows.shape[1] // BLOCK, BLOCK // 4, 4).permute(1, 3, 0, 4, 2, 5)
        offsets = rows.sum(1, dtype=torch.int32).mul_(-SIGN).view(GATES, -1, UNITS).transpose(0, 1)
        return tiles.flatten(4).contiguous(), offsets.contiguous(), scale.view(GATES, -1)

    from_inputs, input_offsets, input_scale = in_tiles(weights.input_weight)
    from_hidden, hidden_offsets, hidden_scale = in_tiles(weights.hidden_weight)
    bias = by_gate(weights.input_bias + weights.hidden_bias)
    by_part = [bias, input_scale / (1 if of_embeddings else INT8_PEAK), hidden_scale / INT8_PEAK]
    constants = torch.stack([part * exponents for part in by_part])  # (3, 4, units)
    constants = constants.view(3, GATES, -1, UNITS).permute(2, 0, 1, 3).contiguous()
    return TileLayer(size, from_inputs, from_hidden, input_offsets, hidden_offsets, constants)
