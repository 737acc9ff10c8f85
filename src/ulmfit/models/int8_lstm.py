"""One LSTM layer in int8, to predict on a CPU: four times the rate of float32 products, and no row sees its batch.

Weights are int8 with a scale for each row. So are the activations: a hidden vector is below 1 in size by its
definition, and its scale is 1/127 whatever it holds. Products of int8 are summed in int32, which is exact, and all else
is done element by element in float32; so a text's numbers are the same, bit for bit, in any batch and on any number of
threads. docs/benchmarks.md has what int8 costs in accuracy: nothing that was measurable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ulmfit.int8_rows import INT8_PEAK, quantise_rows
from ulmfit.models.lstm_products import LstmWeights

BLOCK_ROWS = 256
"""rows of inputs multiplied at once: enough for the full rate, few enough for the gates to stay in the cache"""


class Int8LstmWeights(NamedTuple):
    """Weights of one layer, gates in the order input, forget, output, cell.

    What leads to the cell gate is doubled, as tanh(x) = 2 sigmoid(2x) - 1 and PyTorch's tanh takes six times as long as
    its sigmoid on a CPU.
    """

    input_weight: Tensor
    """(4 * hidden, inputs) int8"""
    hidden_weight: Tensor
    """(4 * hidden, hidden) int8"""
    input_scale: Tensor
    """(4 * hidden,) what 1 in the product with the inputs is worth, their own scale aside"""
    hidden_scale: Tensor
    """(4 * hidden,) what 1 in the product with the hidden vector is worth"""
    bias: Tensor
    """(4 * hidden,) both biases"""


def quantise_lstm(weights: LstmWeights) -> Int8LstmWeights:
    """A layer's weights in int8; nothing of its history is kept."""
    input_gate, forget_gate, cell_gate, output_gate = torch.arange(len(weights.input_bias)).chunk(4)
    order = torch.cat([input_gate, forget_gate, output_gate, cell_gate])
    twice = torch.ones(len(order))
    twice[-len(cell_gate) :] = 2
    input_weight, input_scale = quantise_rows(weights.input_weight.detach()[order])
    hidden_weight, hidden_scale = quantise_rows(weights.hidden_weight.detach()[order])
    bias = (weights.input_bias + weights.hidden_bias).detach().float()[order]
    return Int8LstmWeights(
        input_weight, hidden_weight, input_scale * twice, hidden_scale * twice / INT8_PEAK, bias * twice
    )


def int8_lstm(
    inputs: Tensor, scale: Tensor | None, state: tuple[Tensor, Tensor] | None, weights: Int8LstmWeights
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(time, batch, inputs) int8 -> outputs (time, batch, hidden) in float32 and in int8, and (h, c).

    `scale` (time, batch) is the inputs' own, None where they are another layer's int8 outputs. h and c are float32,
    each (1, batch, hidden), h as it was rounded, so where the text is cut into windows changes nothing.
    """
    time, batch, _ = inputs.shape
    size = weights.hidden_weight.shape[1]
    outputs = torch.empty(time, batch, size)
    quantised = torch.empty(time, batch, size, dtype=torch.int8)
    # Until the end `cell` is twice the cell and `outputs` 127 times the outputs: so the factors cost nothing.
    if state is None:
        hidden, cell = torch.zeros(batch, size, dtype=torch.int8), torch.zeros(batch, size)
    else:
        hidden, cell = (state[0][0] * INT8_PEAK).round().to(torch.int8), state[1][0] * 2
    recurrent = weights.hidden_weight.t()
    lowest = torch.tensor(-float(INT8_PEAK))
    product = torch.empty(batch, 4 * size, dtype=torch.int32)
    gate, squashed, rounded = torch.empty(batch, 4 * size), torch.empty(batch, size), torch.empty(batch, size)
    entry, forget, exit_, candidate = gate.chunk(4, 1)
    for start in range(0, time, block := max(1, BLOCK_ROWS // batch)):
        part = slice(start, start + block)
        given = _input_gates(inputs[part], None if scale is None else scale[part], weights)
        for known, output, after in zip(given.unbind(), outputs[part].unbind(), quantised[part].unbind(), strict=True):
            torch._int_mm(hidden, recurrent, out=product)
            torch.addcmul(known, product, weights.hidden_scale, out=gate).sigmoid_()
            cell.mul_(forget).addcmul_(entry, candidate, value=4).sub_(entry, alpha=2)
            torch.sigmoid(cell, out=squashed)
            torch.add(lowest, squashed, alpha=2 * INT8_PEAK, out=squashed)
            torch.mul(exit_, squashed, out=output)
            hidden = after.copy_(torch.round(output, out=rounded))
    last = (hidden.float() / INT8_PEAK).unsqueeze(0), (cell / 2).unsqueeze(0)
    return outputs.div_(INT8_PEAK), quantised, last


def _input_gates(inputs: Tensor, scale: Tensor | None, weights: Int8LstmWeights) -> Tensor:
    """The inputs' part of the gates of some steps, biases added: (time, batch, 4 * hidden)."""
    products = torch._int_mm(inputs.flatten(0, 1), weights.input_weight.t())
    if scale is None:
        gates = torch.addcmul(weights.bias, products, weights.input_scale / INT8_PEAK)
    else:
        gates = torch.addcmul(weights.bias, products * scale.flatten().unsqueeze(1), weights.input_scale)
    return gates.view(*inputs.shape[:2], -1)
