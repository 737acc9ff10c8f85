"""One LSTM layer as a function of its weights, on the fastest kernel the device has."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

# cuDNN wants the weights in one buffer and copies them there when dropout or a cast has just made them anew: 40 MB a
# step, nothing beside the step itself.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


class LstmWeights(NamedTuple):
    """Weights of one layer in the layout of `nn.LSTM`: gates in the order input, forget, cell, output."""

    input_weight: Tensor
    """(4 * hidden, inputs)"""
    hidden_weight: Tensor
    """(4 * hidden, hidden)"""
    input_bias: Tensor
    """(4 * hidden,)"""
    hidden_bias: Tensor
    """(4 * hidden,)"""


def lstm(
    inputs: Tensor, state: tuple[Tensor, Tensor] | None, weights: LstmWeights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(time, batch, inputs) -> outputs (time, batch, hidden) and (h, c), each (1, batch, hidden).

    Equal to `nn.LSTM` with the same weights; cuDNN on a GPU, oneDNN on a CPU.
    """
    if state is None:
        zeros = inputs.new_zeros(1, inputs.shape[1], weights.hidden_weight.shape[1])
        state = (zeros, zeros)
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs, *state, *weights))
    # has_biases, layers, dropout, train, bidirectional, batch_first
    outputs, hidden, cell = torch.lstm(inputs, state, list(weights), True, 1, 0.0, learning, False, False)
    return outputs, (hidden, cell)
