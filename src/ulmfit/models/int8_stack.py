"""A stack of LSTM layers in int8 on a GPU, a window of it by one kernel, to predict.

cuDNN writes the gates of a step to memory and reads them again, launches several kernels a step, and works on one layer
at a time. Here programs that are all on the GPU at once go through one list of tiles, some rows of some units of a
layer at a time step, in an order in which each waits for none but those before it: where a step fills the GPU there is
hardly a pause between steps, and where it does not the layers work side by side, each a step ahead of the one above.
Products are of int8, at twice the rate of bfloat16 and half the bytes, and gates never leave the processor.

The numbers are those of `int8_lstm`: int8 weights with a scale for each row, hidden vectors of which 127 is 1, sums of
products exact in int32, so that no document's numbers depend on its company or on where windows end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.int8_rows import INT8_PEAK, quantise_rows
from ulmfit.models.gpu_programs import MOST_REGISTERS, programs_at_once
from ulmfit.models.lstm_products import LstmWeights

try:
    import triton
    import triton.language as tl

    from ulmfit.models.gpu_programs import seen, tanh
except ImportError:
    triton = None

UNITS = 32
"""hidden units of a tile"""
DEPTH = 128
"""values multiplied at once; inputs and hidden vectors are filled up to a multiple of it with zeros"""
TOGETHER = 8
"""units whose gates lie side by side: all four gates of a unit then end in the registers of one thread"""
LARGE_FROM = 320
"""rows from which on the larger tile pays, on an H100"""


class Tile(NamedTuple):
    """What a program computes at once."""

    rows: int
    stages: int
    """loads under way at once"""
    warps: int
    registers: int
    """a thread may have"""

    def programs(self, device: torch.device) -> int:
        """How many work at once."""
        shared_memory = (self.rows + 4 * UNITS) * DEPTH * self.stages
        return programs_at_once(device, shared_memory=shared_memory, warps=self.warps, registers=self.registers)


SMALL, LARGE = Tile(64, 4, 4, MOST_REGISTERS), Tile(128, 3, 8, 128)


class LayerPlace(NamedTuple):
    """What the kernel must know of a layer; all of them together are part of its code."""

    inputs_depths: int
    """width of its inputs, as a multiple of DEPTH"""
    depths: int
    """width of its hidden vector"""
    size: int
    """of that what is not filled up"""
    first_weight: int
    """where its weights begin, as a multiple of DEPTH"""
    lower: int
    """depths of all layers below"""
    last_tile: int
    """tiles of a time step of some rows, of this layer and all below"""


@dataclass(frozen=True, slots=True)
class Int8StackWeights:
    """All layers' weights, and where each layer's lie."""

    table: Tensor
    """(vocabulary, widths[0]) int8, the embedding"""
    table_scale: Tensor
    """(vocabulary,) float32"""
    weights: Tensor
    """int8, of each layer (4 * units, inputs and hidden), rows in the order of `_in_tiles`"""
    numbers: Tensor
    """(tiles, 3, 4 * UNITS) float32, of each output what its sums over inputs and over the hidden vector are worth, and
    its bias"""
    layers: tuple[LayerPlace, ...]


def quantise_stack(embedding: Tensor, layers: Sequence[LstmWeights]) -> Int8StackWeights:
    """The embedding (vocabulary, size) and the layers above it; nothing of their history is kept."""
    table, table_scale = quantise_rows(embedding.detach())
    weights: list[Tensor] = []
    numbers: list[Tensor] = []
    places: list[LayerPlace] = []
    for depth, layer in enumerate(layers):
        input_weight, input_scale = quantise_rows(_in_tiles(layer.input_weight))
        # Sums over the inputs are put in units of those over the hidden vector, which must not be too fine for them.
        of_inputs = input_scale if depth == 0 else input_scale / INT8_PEAK
        highest = table_scale.max() * INT8_PEAK if depth == 0 else INT8_PEAK
        least = input_weight.abs().sum(1, dtype=torch.float32) * of_inputs * highest / 2**30 * INT8_PEAK
        hidden_weight, hidden_scale = quantise_rows(_in_tiles(layer.hidden_weight), least=least)
        bias = _in_tiles((layer.input_bias + layer.hidden_bias).unsqueeze(1)).squeeze(1)
        parts = [_filled(input_weight), _filled(hidden_weight)]
        of_outputs = hidden_scale / INT8_PEAK
        of_inputs = of_inputs / of_outputs
        own = torch.stack([of_inputs, of_outputs, bias]).view(3, -1, 4 * UNITS).transpose(0, 1)
        places.append(
            LayerPlace(
                parts[0].shape[1] // DEPTH,
                parts[1].shape[1] // DEPTH,
                layer.hidden_weight.shape[1],
                sum(len(part) for part in weights) // DEPTH,
                sum(place.depths for place in places),
                sum(len(part) for part in [*numbers, own]),
            )
        )
        weights.append(torch.cat(parts, 1).flatten())
        numbers.append(own)
    return Int8StackWeights(
        _filled(table), table_scale, torch.cat(weights), torch.cat(numbers).contiguous(), tuple(places)
    )


def int8_stack(
    tokens: Tensor, state: tuple[Tensor, ...] | None, weights: Int8StackWeights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(time, batch) ids -> the last layer's outputs (time, batch, size) in float32, and h and c of each layer in turn.

    These are (1, batch, width), h in int8 and c in float32.
    """
    time, batch = tokens.shape
    tokens = tokens.contiguous()
    widths = [layer.depths * DEPTH for layer in weights.layers]
    all_hiddens = tokens.new_empty((time + 1) * batch * sum(widths), dtype=torch.int8)
    all_cells = tokens.new_empty(batch * sum(widths), dtype=torch.float32)
    hiddens = [
        part.view(time + 1, batch, -1)
        for part in torch.split(all_hiddens, [(time + 1) * batch * width for width in widths])
    ]
    cells = [part.view(1, batch, -1) for part in torch.split(all_cells, [batch * width for width in widths])]
    for depth, layer in enumerate(weights.layers):
        hiddens[depth][:, :, layer.size :] = 0
        for part, index in ((hiddens[depth][:1], 2 * depth), (cells[depth], 2 * depth + 1)):
            part.zero_() if state is None else part.copy_(state[index])
    outputs = tokens.new_empty(time, batch, weights.layers[-1].size, dtype=torch.float32)
    _launch(tokens, weights, all_hiddens, all_cells, outputs)
    ends = [(hidden[-1:].clone(), cell) for hidden, cell in zip(hiddens, cells, strict=True)]
    return outputs, tuple(itertools.chain.from_iterable(ends))


def _launch(tokens: Tensor, weights: Int8StackWeights, hiddens: Tensor, cells: Tensor, outputs: Tensor) -> None:
    time, batch = tokens.shape
    tile = SMALL if batch < LARGE_FROM else LARGE
    blocks = -(-batch // tile.rows)
    tiles = (time + len(weights.layers) - 1) * blocks * weights.layers[-1].last_tile
    counters = torch.zeros(len(weights.layers) * blocks, dtype=torch.int32, device=tokens.device)
    with torch.cuda.device(tokens.device):
        _kernel[(min(tiles, tile.programs(tokens.device)),)](
            tokens,
            weights.table,
            weights.table_scale,
            weights.weights,
            weights.numbers,
            hiddens,
            cells,
            outputs,
            counters,
            time,
            batch,
            LAYERS=tuple(map(tuple, weights.layers)),
            ROWS=tile.rows,
            UNITS=UNITS,
            DEPTH=DEPTH,
            TOGETHER=TOGETHER,
            STAGES=tile.stages,
            PEAK=INT8_PEAK,
            WAITS=True,
            num_warps=tile.warps,
            maxnreg=tile.registers,
            launch_cooperative_grid=True,
        )


def _in_tiles(rows: Tensor) -> Tensor:
    """(4 * size, columns) -> (4 * units, columns), `size` filled up to a multiple of a tile's units.

    The four gates of `TOGETHER` units, gate after gate, and then those of the next.
    """
    size = len(rows) // 4
    units = -(-size // UNITS) * UNITS
    gates = functional.pad(rows.detach().float().view(4, size, -1), (0, 0, 0, units - size))
    return gates.view(4, units // TOGETHER, TOGETHER, -1).transpose(0, 1).reshape(4 * units, -1)


def _filled(matrix: Tensor) -> Tensor:
    """(rows, columns) -> columns filled up to a multiple of DEPTH with zeros."""
    return functional.pad(matrix, (0, -matrix.shape[1] % DEPTH))


if triton is not None:
    # Triton reads annotations as its own types, so there are none.

    @triton.jit
    def _rounded(values):  # type: ignore[no-untyped-def]
        return values + tl.where(values >= 0, 0.5, -0.5)

    @triton.jit(do_not_specialize=["time", "batch"])  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0915
        tokens,
        table,
        table_scale,
        weights,
        numbers,
        all_hiddens,
        all_cells,
        outputs,
        counters,
        time,
        batch,
        LAYERS: tl.constexpr,
        ROWS: tl.constexpr,
        UNITS: tl.constexpr,
        DEPTH: tl.constexpr,
        TOGETHER: tl.constexpr,
        STAGES: tl.constexpr,
        PEAK: tl.constexpr,
        WAITS: tl.constexpr,
    ):
        COLUMNS: tl.constexpr = 4 * UNITS
        LAST: tl.constexpr = len(LAYERS) - 1
        row_blocks = tl.cdiv(batch, ROWS)
        kept_rows = (time + 1) * batch.to(tl.int64)
        inner = tl.arange(0, DEPTH)
        in_wave = LAYERS[LAST][5] * row_blocks
        for index in range(tl.program_id(0), (time + LAST) * in_wave, tl.num_programs(0)):
            # Of a wave no tile waits for another: the layers' steps, each layer a step behind the one below.
            wave, place = index // in_wave, index % in_wave
            layer, before = 0, 0
            inputs_depths, depths, size = LAYERS[0][0], LAYERS[0][1], LAYERS[0][2]
            first_weight, lower, unit_blocks, below_blocks = 0, 0, LAYERS[0][5], 0
            for upper in tl.static_range(1, LAST + 1):
                if place >= LAYERS[upper - 1][5] * row_blocks:
                    layer, before = upper, LAYERS[upper - 1][5]
                    inputs_depths, depths, size = LAYERS[upper][0], LAYERS[upper][1], LAYERS[upper][2]
                    first_weight, lower = LAYERS[upper][3], LAYERS[upper][4]
                    below_blocks = unit_blocks
                    unit_blocks = LAYERS[upper][5] - before
            step = (wave - layer).to(tl.int64)
            if (step >= 0) & (step < time):
                place -= before * row_blocks
                # A product with a constant tells the compiler what addresses are multiples of.
                inputs_width, width = inputs_depths * DEPTH, depths * DEPTH
                whole_width = inputs_width + width
                row_block, unit_block = place // unit_blocks, place % unit_blocks
                rows = row_block * ROWS + tl.arange(0, ROWS)
                columns = unit_block * COLUMNS + tl.arange(0, COLUMNS)
                units = unit_block * UNITS + tl.arange(0, UNITS)
                live = rows < batch
                rows_before = step * batch + rows
                hiddens = all_hiddens + kept_rows * lower * DEPTH
                counter = counters + layer * row_blocks + row_block
                # The matrices of the layers, and their outputs' numbers, lie one after the other in blocks of UNITS.
                of_outputs = numbers + 3 * COLUMNS * (before + unit_block) + tl.arange(0, COLUMNS)
                weight = weights + first_weight * DEPTH
                weight_at = weight + columns[None, :] * whole_width + inner[:, None]

                # Inputs are other rows of a matrix: of the table, or of the layer below's hidden vectors.
                source = all_hiddens + kept_rows * (lower - inputs_depths) * DEPTH
                source_rows = rows_before + batch
                row_scale = tl.full((ROWS,), 1.0, tl.float32)
                if layer == 0:
                    source = table
                    source_rows = tl.load(tokens + rows_before, mask=live, other=0)
                    row_scale = tl.load(table_scale + source_rows, mask=live, other=0.0)
                inputs_at = source + source_rows[:, None] * inputs_width + inner[None, :]
                hidden_at = hiddens + rows_before[:, None] * width + inner[None, :]
                if WAITS:
                    below = tl.where(layer == 0, counter, counter - row_blocks)
                    here = (step * unit_blocks).to(tl.int32)
                    there = tl.where(layer == 0, 0, (step + 1) * below_blocks).to(tl.int32)
                    while (seen(counter) < here) | (seen(below) < there):
                        pass
                    tl.debug_barrier()
                total = tl.zeros((ROWS, COLUMNS), tl.int32)
                for start in tl.range(0, whole_width, DEPTH, num_stages=STAGES):
                    if start == inputs_width:
                        # Sums over the inputs are put in units of those over the hidden vector, and go on as integers.
                        sums = total.to(tl.float32) * row_scale[:, None] * tl.load(of_outputs)[None, :]
                        total = _rounded(sums).to(tl.int32)
                    # Other programs' outputs: this processor's own cache may hold what was there before.
                    at = tl.where(start < inputs_width, inputs_at + start, hidden_at + (start - inputs_width))
                    left = tl.load(at, mask=live[:, None], other=0, cache_modifier=".cg")
                    total = tl.dot(left, tl.load(weight_at + start), total, out_dtype=tl.int32)
                gates = total.to(tl.float32) * tl.load(of_outputs + COLUMNS)[None, :]
                gates += tl.load(of_outputs + 2 * COLUMNS)[None, :]
                gates = tl.permute(tl.reshape(gates, (ROWS, UNITS // TOGETHER, 4, TOGETHER)), (0, 1, 3, 2))
                first, second = tl.split(tl.reshape(gates, (ROWS, UNITS, 2, 2)))
                entry_gate, candidate = tl.split(first)
                forget, exit_gate = tl.split(second)
                mask = live[:, None] & (units < size)[None, :]
                cell_at = all_cells + batch.to(tl.int64) * lower * DEPTH + rows[:, None] * width + units[None, :]
                cell = tl.load(cell_at, mask=mask, other=0.0, cache_modifier=".cg")
                cell = tl.sigmoid(forget) * cell + tl.sigmoid(entry_gate) * tanh(candidate)
                hidden = tl.sigmoid(exit_gate) * tanh(cell)
                tl.store(cell_at, cell, mask=mask)
                hidden_at = hiddens + (rows_before + batch)[:, None] * width + units[None, :]
                tl.store(hidden_at, _rounded(hidden * PEAK).to(tl.int8), mask=mask)
                if layer == LAST:
                    tl.store(outputs + rows_before[:, None] * size + units[None, :], hidden, mask=mask)
                if WAITS:
                    tl.debug_barrier()
                    tl.atomic_add(counter, 1, sem="release", scope="gpu")
