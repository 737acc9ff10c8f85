"""One LSTM layer in int8 by PyTorch's products, to predict on a CPU for which there is no kernel (`tile_stack`).

Weights are int8 with a scale for each row. So are the activations: a hidden vector is below 1 in size by its
definition, and its scale is 1/127 whatever it holds. Products of int8 are summed in int32, which is exact, and all else
is done element by element in float32; so a text's numbers are the same, bit for bit, in any batch and on any number of
threads. docs/benchmarks.md has what int8 costs in accuracy: nothing that was measurable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.int8_rows import INT8_PEAK, quantise_rows
from ulmfit.models.lstm_products import LstmWeights

BLOCK_ROWS = 256
"""rows of inputs multiplied at once: enough for the full rate, few enough for the gates to stay near"""
TILE_ROWS = 64
"""rows whose gates are worked on at once: they stay in a core's own cache from the first operation to the last"""
VECTOR = 32
"""float32 numbers that PyTorch works on at once; what is left over at the end it rounds a little differently"""


class Int8Product(NamedTuple):
    """An int8 weight and a scale for each of its outputs."""

    weight: Tensor
    """(inputs, outputs)"""
    scale: Tensor
    """(outputs,)"""

    def add_to(self, total: Tensor, rows: Tensor) -> None:
        """Add the product of int8 `rows` (rows, inputs) to float32 `total` (rows, outputs), in place."""
        total.addcmul_(torch._int_mm(rows, self.weight), self.scale)


class Int8LstmWeights(NamedTuple):
    """Weights of one layer, gates in the order input, forget, output, cell.

    What leads to the cell gate is doubled, as tanh(x) = 2 sigmoid(2x) - 1 and PyTorch's tanh may take six times as long
    as its sigmoid on a CPU. The hidden vector is filled up to a multiple of `VECTOR` with units that stay 0, so that no
    row has numbers left over.
    """

    size: int
    """of the hidden vector"""
    width: int
    """the same filled up"""
    from_inputs: Int8Product
    """inputs -> 4 * width; of the first layer what 1 is worth, the embeddings' own scale aside"""
    from_hidden: Int8Product
    """width -> 4 * width"""
    bias: Tensor
    """(4 * width,) both biases"""


def quantise_lstm(weights: LstmWeights, *, embeddings: bool) -> Int8LstmWeights:
    """A layer's weights in int8; nothing of its history is kept.

    Its inputs are `embeddings`, each with a scale of its own, or another layer's int8 outputs.
    """
    size = weights.hidden_weight.shape[1]
    width = -(-size // VECTOR) * VECTOR
    twice = torch.ones(4, width)
    twice[3] = 2

    def in_order(rows: Tensor, columns: int = 0) -> Tensor:
        """(4 * size, ...) -> (4 * width, ...), with that many more columns."""
        entry, forget, candidate, exit_ = rows.detach().float().view(4, size, -1)
        stacked = torch.stack([entry, forget, exit_, candidate])
        return functional.pad(stacked, (0, columns, 0, width - size)).flatten(0, 1)

    input_weight, input_scale = quantise_rows(in_order(weights.input_weight))
    hidden_weight, hidden_scale = quantise_rows(in_order(weights.hidden_weight, width - size))
    twice = twice.flatten()
    return Int8LstmWeights(
        size,
        width,
        Int8Product(input_weight.t(), input_scale * twice / (1 if embeddings else INT8_PEAK)),
        Int8Product(hidden_weight.t(), hidden_scale * twice / INT8_PEAK),
        in_order(weights.input_bias + weights.hidden_bias).flatten() * twice,
    )


def int8_lstm(
    inputs: Tensor,
    scale: Tensor | None,
    state: tuple[Tensor, Tensor] | None,
    weights: Int8LstmWeights,
    *,
    exact: bool = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(time, batch, inputs) int8 -> outputs (time, batch, hidden), and h and c, each (1, batch, width).

    Outputs are int8, 127 for 1, or if asked for `exact` float32 as they were before they were rounded. `scale`
    (time, batch) is the inputs' own, None where they are another layer's int8 outputs. The state is as it is computed
    with, h in int8 and c doubled in float32, so where the text is cut into windows changes nothing. Layers may share a
    `workspace`.
    """
    time, batch, _ = inputs.shape
    width = weights.width
    inputs = inputs.contiguous()
    quantised = torch.empty(time, batch, width, dtype=torch.int8)
    if state is None:
        hidden, cell = torch.zeros(batch, width, dtype=torch.int8), torch.zeros(batch, width)
    else:
        hidden, cell = state[0][0], state[1][0].clone()
    # Memory is taken once and used again for every step, as new pages cost more than what is computed in them. Products
    # are added up in `gates`, which hold what to begin with whenever a step is done with them.
    block = _block_steps(time, batch)
    beginning = weights.bias if scale is None else torch.zeros(())
    gates = gates_workspace(inputs, [weights]) if workspace is None else workspace
    gates = gates[: block * batch * 4 * width].view(block, batch, 4 * width).copy_(beginning)
    tiles = [slice(first, first + TILE_ROWS) for first in range(0, batch, TILE_ROWS)]
    rounded = torch.empty(min(batch, TILE_ROWS), width)
    outputs = torch.empty(time, batch, width) if exact else rounded.new_empty(1, *rounded.shape).expand(time, -1, -1)
    # Views of all steps at once: making one takes as long as an operation on one row.
    of_gates = [_steps(gates[:, tile], *gates[:, tile].chunk(4, 2)) for tile in tiles]
    of_outputs = [_steps(quantised[:, tile], outputs[:, tile if exact else slice(len(cell[tile]))]) for tile in tiles]
    kept = [(cell[tile], rounded[: len(cell[tile])]) for tile in tiles]
    for start in range(0, time, block):
        part = slice(start, start + block)
        given = gates[: time - start]
        weights.from_inputs.add_to(given.flatten(0, 1), inputs[part].flatten(0, 1))
        if scale is not None:
            torch.addcmul(weights.bias, given, scale[part].unsqueeze(2), out=given)
        for step, gate in enumerate(given.unbind()):
            weights.from_hidden.add_to(gate, hidden)
            hidden = quantised[start + step]
            for before, after, always in zip(of_gates, of_outputs, kept, strict=True):
                _pass_gates(*before[step], *after[start + step], *always)  # type: ignore[call-arg]
                before[step][0].copy_(beginning)
    last = hidden.unsqueeze(0).clone(), cell.unsqueeze(0)
    return (outputs.div_(INT8_PEAK) if exact else quantised)[:, :, : weights.size], last


def gates_workspace(inputs: Tensor, layers: Iterable[Int8LstmWeights]) -> Tensor:
    """Memory for the gates of any of the layers while it reads these inputs, (time, batch, ...)."""
    time, batch = inputs.shape[:2]
    return torch.empty(_block_steps(time, batch) * batch * 4 * max(layer.width for layer in layers))


def _block_steps(time: int, batch: int) -> int:
    """Steps whose inputs are multiplied at once."""
    return min(time, max(1, BLOCK_ROWS // batch))


def _steps(*parts: Tensor) -> list[tuple[Tensor, ...]]:
    """Parts (steps, rows, ...) step by step."""
    return list(zip(*(part.unbind() for part in parts), strict=True))


def _pass_gates(
    gates: Tensor,
    entry: Tensor,
    forget: Tensor,
    exit_: Tensor,
    candidate: Tensor,
    hidden: Tensor,
    output: Tensor,
    cell: Tensor,
    rounded: Tensor,
) -> None:
    """One step of some rows, from the gates before their sigmoid: changes `cell`, `output` and, rounded, `hidden`.

    Here `cell` is twice the cell and `output` 127 times the output, so that factors cost nothing.
    """
    gates.sigmoid_()
    cell.mul_(forget).addcmul_(entry, candidate, value=4).sub_(entry, alpha=2)
    torch.sigmoid(cell, out=output)
    torch.add(_LOWEST, output, alpha=2 * INT8_PEAK, out=output)
    output.mul_(exit_)
    hidden.copy_(torch.round(output, out=rounded))


_LOWEST = torch.tensor(-float(INT8_PEAK))
