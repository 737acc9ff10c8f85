"""The layers in int8 on a CPU by its own kernels: weights and rows in tiles, layers side by side on threads.

As in `int8_lstm` a text's numbers are the same, bit for bit, in any batch, in any windows and on any number of threads:
sums of int8 products are exact, and the rest is done row by row in the same way wherever a row lies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.compute import cpu_products
from ulmfit.models.jobs import evenly, run_jobs, waves
from ulmfit.models.tile_weights import BLOCK, GATES, PAIR, ROWS, UNITS, TileLayer, TileStackWeights, in_tiles, signed

FEW_ROWS = 64 if cpu_products() == "amx" else 16
"""rows of a step up to which inputs of several steps are multiplied at once, as the weights stream by for so few"""
INPUT_ROWS = 256
"""rows of inputs multiplied at once then"""
JOBS = 8
"""jobs that a layer's steps are cut into for several threads: the next layer waits for the first of them"""

State = tuple[Tensor, ...]


def tile_stack(tokens: Tensor, state: State | None, weights: TileStackWeights) -> tuple[Tensor, State]:
    """(time, batch) ids -> outputs of the last layer (time, batch, size) in float32, and h and c of each layer in turn.

    h is int8 (1, batch, 64 * blocks) and c float32 (1, batch, units), as they are computed with.
    """
    time, batch = tokens.shape
    rows = _rows_of_a_step(batch)
    ids = functional.pad(tokens, (0, rows - batch)).flatten()
    ids = functional.pad(ids, (0, -len(ids) % ROWS))
    inputs, scales = in_tiles(weights.table.index_select(0, ids)), weights.scales.index_select(0, ids)
    ones = torch.ones_like(scales)
    runs: list[_Run] = []
    for depth, layer in enumerate(weights.layers):
        before = None if state is None else (state[2 * depth][0], state[2 * depth + 1][0])
        exact = len(ids) if layer is weights.layers[-1] else 0
        read, by = (runs[-1].outputs, ones) if runs else (inputs, scales)
        runs.append(_Run.begun(layer, read, by, before, rows=rows, exact=exact))
    _read(runs, time, rows)
    end = [tensor for run in runs for tensor in run.state(time, batch)]
    last = runs[-1].exact[: time * rows].view(time, rows, -1)
    return last[:, :batch, : weights.layers[-1].size], tuple(end)


def _rows_of_a_step(batch: int) -> int:
    """So many that no step's rows lie in two tiles, or a whole number of tiles."""
    return 1 << (batch - 1).bit_length() if batch <= ROWS else batch + -batch % ROWS


@dataclass(slots=True)
class _Run:
    """A layer on its way through the steps."""

    layer: TileLayer
    inputs: Tensor
    scales: Tensor
    rows: int
    before: Tensor
    cells: Tensor
    outputs: Tensor
    exact: Tensor
    sums: Tensor
    """room for the products of inputs, where they are made before the steps"""
    space: Tensor

    @classmethod
    def begun(
        cls,
        layer: TileLayer,
        inputs: Tensor,
        scales: Tensor,
        state: tuple[Tensor, Tensor] | None,
        *,
        rows: int,
        exact: int,
    ) -> _Run:
        width, groups = layer.blocks * BLOCK, layer.units // UNITS
        before = signed(torch.zeros(max(rows, ROWS), width, dtype=torch.int8))
        cells = torch.zeros(groups, rows, UNITS)
        if state is not None:
            hidden, cell = state
            before[: len(hidden)] = signed(hidden)
            cells[:, : len(cell)] = cell.view(len(cell), groups, UNITS).transpose(0, 1)
        outputs = torch.empty(len(inputs), layer.blocks, ROWS, BLOCK, dtype=torch.int8)
        if layer.units < width:  # units that fill up the last block are written by nobody
            outputs[:, -1] = signed(outputs.new_zeros(()))
        return cls(
            layer,
            inputs,
            scales,
            rows,
            in_tiles(before),
            cells,
            outputs,
            torch.empty(exact, layer.units),
            torch.empty(groups, GATES, _input_rows(rows), UNITS, dtype=torch.int32),
            torch.empty(5, GATES, PAIR, UNITS, dtype=torch.int32),
        )

    def read(self, first: int, last: int) -> None:
        """Some steps."""
        from ulmfit.models.tile_kernel import TABLES, multiply_inputs, read_steps  # Numba is for who needs it

        layer, inputs, tables, sums = self.layer, self.inputs.numpy(), TABLES, self.sums.numpy()
        if self.sums.shape[2]:
            tile = first * self.rows // ROWS
            count = -(-last * self.rows // ROWS) - tile
            sums = sums.reshape(-1)[: layer.units * GATES * count * ROWS].reshape(-1, GATES, count * ROWS, UNITS)
            weight, offsets = layer.weight.numpy(), layer.offsets.numpy()
            multiply_inputs(inputs, weight, offsets, sums, tables, layer.fours[0], tile, count)
        read_steps(
            inputs,
            self.scales.numpy(),
            layer.weight.numpy(),
            layer.offsets.numpy(),
            layer.constants.numpy(),
            self.before.numpy(),
            self.outputs.numpy(),
            self.cells.numpy(),
            self.exact.numpy(),
            sums,
            self.space.numpy(),
            tables,
            *layer.fours,
            first,
            last,
        )

    def state(self, time: int, batch: int) -> tuple[Tensor, Tensor]:
        """After all steps."""
        first = (time - 1) * self.rows
        tiles = self.outputs[first // ROWS : (time * self.rows - 1) // ROWS + 1]
        hidden = tiles.transpose(1, 2).flatten(2).flatten(0, 1)[first % ROWS :][:batch]
        cell = self.cells.transpose(0, 1).flatten(1)[:batch]
        return signed(hidden).unsqueeze(0).clone(), cell.unsqueeze(0)


def _input_rows(rows: int) -> int:
    """Rows of inputs multiplied before the steps that they are for; none where each step's are enough."""
    return INPUT_ROWS if rows <= FEW_ROWS else 0


def _read(runs: Sequence[_Run], time: int, rows: int) -> None:
    """Layers on threads of their own where there are threads: one reads some steps while the one below reads on."""
    whole = max(1, ROWS // rows)  # steps that fill a tile
    longest = min(_input_rows(rows) // rows or time, -(-time // JOBS) if torch.get_num_threads() > 1 else time)
    blocks = [
        (start * whole, min(end * whole, time))
        for start, end in evenly(-(-time // whole), at_most=max(1, longest // whole))
    ]
    layers: list[list[tuple[Callable[[], None], float]]] = []
    for run in runs:
        cost = run.layer.units * (run.layer.blocks + run.inputs.shape[1])
        layers.append([(functools.partial(run.read, start, end), cost * (end - start)) for start, end in blocks])
    run_jobs(waves(layers), workers=len(runs))
