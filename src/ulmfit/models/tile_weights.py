"""An encoder's weights in int8 and in tiles, as a processor's products of int8 want them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.compute import cpu_products
from ulmfit.int8_rows import CODE_OF_ZERO, INT8_PEAK, PAIRED_PEAK, quantise_rows
from ulmfit.models.lstm_products import LstmWeights

GATES = 4
UNITS, ROWS, BLOCK = 16, 16, 64
"""units worked on at once, rows of a tile, and entries of each row"""
FOURS = BLOCK // 4
"""of a block, which a column's numbers are multiplied in"""
PAIR = 2 * ROWS
TILE = ROWS * BLOCK
"""bytes of a tile"""
FETCH_ROWS = 8
"""beside which some of the weights that come next are fetched"""
WEIGHT_PEAK = PAIRED_PEAK if cpu_products() == "avx2" else INT8_PEAK
"""the largest entry of a weight's row"""
EXPONENTS = tuple(-scale * math.log2(math.e) for scale in (1, 1, 1, 2))
"""by which the gates (entry, forget, exit, candidate) are to be multiplied beforehand: with x such a product, and so
2**x = e**-gate, sigmoid is 1 / (1 + 2**x), and tanh (1 - 2**x) / (1 + 2**x), for which the candidate counts twice"""


@dataclass(frozen=True, slots=True)
class TileLayer:
    """One layer's weights, as `read_steps` has them."""

    size: int
    """of the hidden vector"""
    fours: tuple[int, int]
    """that hold a row's numbers, of inputs and of hidden vectors"""
    weight: Tensor
    offsets: Tensor
    constants: Tensor

    @property
    def units(self) -> int:
        """The hidden vector's size as a multiple of 16."""
        return len(self.constants) * UNITS

    @property
    def blocks(self) -> int:
        """Blocks of 64 that hold a hidden vector."""
        return -(-self.units // BLOCK)


@dataclass(frozen=True, slots=True)
class TileStackWeights:
    """An encoder to predict with."""

    table: Tensor
    """(words, 64 * blocks) int8: the embeddings, `CODE_OF_ZERO` more"""
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


def in_tiles(rows: Tensor) -> Tensor:
    """(rows, 64 * blocks) -> (rows / 16, blocks, 16, 64)."""
    return rows.view(-1, ROWS, rows.shape[1] // BLOCK, BLOCK).transpose(1, 2).contiguous()


def signed(rows: Tensor) -> Tensor:
    """Int8 as rows have them, or rows as int8 again: `CODE_OF_ZERO` more, whose carry is lost."""
    return rows ^ -CODE_OF_ZERO


def _quantised(weights: LstmWeights, *, of_embeddings: bool) -> TileLayer:
    """A layer's, with a scale for each row of both weights together where the inputs are hidden vectors as well."""
    size = weights.hidden_weight.shape[1]
    exponents = torch.tensor(EXPONENTS).unsqueeze(1)

    def by_gate(rows: Tensor) -> Tensor:
        """(4 * size, ...) -> (4, units, ...), the gates in the kernel's order, entries of units that fill up zero."""
        entry, forget, candidate, exit_ = rows.detach().float().view(4, size, *rows.shape[1:])
        stacked = torch.stack([entry, forget, exit_, candidate])
        return functional.pad(stacked, (0, 0) * (stacked.dim() - 2) + (0, -size % UNITS))

    def by_unit(parts: Sequence[Tensor]) -> Tensor:
        """Each (4, units) -> (units / 16, parts, 4, 16)."""
        return torch.stack(list(parts)).view(len(parts), GATES, -1, UNITS).permute(2, 0, 1, 3).contiguous()

    both = [by_gate(weight).flatten(0, 1) for weight in (weights.input_weight, weights.hidden_weight)]
    if of_embeddings:
        (inputs, input_scale), (hidden, hidden_scale) = (quantise_rows(rows, peak=WEIGHT_PEAK) for rows in both)
        scales = [hidden_scale / INT8_PEAK, input_scale]
    else:
        rows, scale = quantise_rows(torch.cat(both, 1), peak=WEIGHT_PEAK)
        inputs, hidden = torch.split(rows, [part.shape[1] for part in both], 1)
        scales = [scale / INT8_PEAK]
    filled = [functional.pad(rows, (0, -rows.shape[1] % BLOCK)) for rows in (inputs, hidden)]
    weight = torch.cat(filled, 1)
    tiles = weight.view(GATES, -1, UNITS, weight.shape[1] // BLOCK, BLOCK // 4, 4).permute(1, 3, 0, 4, 2, 5)
    offsets = [rows.sum(1, dtype=torch.int32).mul_(-CODE_OF_ZERO) for rows in (filled if of_embeddings else [weight])]
    bias = by_gate(weights.input_bias + weights.hidden_bias)
    constants = [part.view(GATES, -1) * exponents for part in (bias, *scales)]
    fours = -(-weights.input_weight.shape[1] // 4), -(-size // 4)
    return TileLayer(size, fours, tiles.flatten(4).contiguous(), by_unit(offsets), by_unit(constants))
