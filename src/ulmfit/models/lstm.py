"""One LSTM layer as a function of its weights, on the fastest kernel the device has for the work at hand."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ulmfit.models.bias_column import with_bias, with_ones
from ulmfit.models.lstm_int8_products import Int8SharedWeights, int8_serves
from ulmfit.models.lstm_kernel import lstm_by_kernel, suits
from ulmfit.models.lstm_products import LstmWeights, SharedWeights
from ulmfit.models.lstm_stack import lstm_by_products

# cuDNN wants the weights in one buffer and copies them there when dropout or a cast has just made them anew: 40 MB a
# step, nothing beside the step itself.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


def lstm(
    inputs: Tensor, state: tuple[Tensor, Tensor] | None, weights: LstmWeights | SharedWeights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(time, batch, inputs) -> outputs (time, batch, hidden) and (h, c), each (1, batch, hidden).

    Equal to `nn.LSTM` with the same weights: cuDNN on a GPU, oneDNN on a CPU. In bfloat16 there are kernels of our own:
    `lstm_kernel` for a batch that does not fill a GPU, and `lstm_products` to learn on a CPU.
    """
    if state is None:
        zeros = inputs.new_zeros(1, inputs.shape[1], weights.hidden_weight.shape[1])
        state = (zeros, zeros)
    if isinstance(weights, SharedWeights):
        return lstm_by_products(inputs, state, weights)
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs, *state, *weights))
    if launches_once(inputs.shape[1], weights.hidden_weight.shape[1], inputs.dtype, inputs.device):
        return lstm_by_kernel(inputs, state, weights)
    if learning and inputs.device.type == "cpu" and inputs.dtype == torch.bfloat16:
        return lstm_by_products(inputs, state, weights)
    if learning and inputs.is_cuda:
        return lstm_with_bias_column(inputs, state, weights)
    # oneDNN sums a lone row in an order of its own. In bfloat16 that is some 1e-3 in the end, so a twin goes along.
    lone = inputs.device.type == "cpu" and inputs.dtype == torch.bfloat16 and inputs.shape[1] == 1
    if lone:
        inputs, state = inputs.expand(-1, 2, -1), (state[0].expand(-1, 2, -1), state[1].expand(-1, 2, -1))
    # has_biases, layers, dropout, train, bidirectional, batch_first
    outputs, hidden, cell = torch.lstm(inputs, state, list(weights), True, 1, 0.0, learning, False, False)
    if lone:
        outputs, hidden, cell = outputs[:, :1], hidden[:, :1], cell[:, :1]
    return outputs, (hidden, cell)


def launches_once(batch: int, hidden: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `lstm` reads a window of that many sequences by a single kernel, which leaves much of a GPU idle."""
    return dtype == torch.bfloat16 and suits(batch, hidden, device)


def for_one_step(weights: LstmWeights, *, in_int8: bool = False) -> LstmWeights | SharedWeights:
    """The weights made ready for all windows that a training step reads, on the kernel that `lstm` would choose.

    Or, where they serve, for products in int8.
    """
    tensor = weights.hidden_weight
    on_products = torch.is_grad_enabled() and tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16
    if on_products and in_int8 and int8_serves(weights.input_weight, weights.hidden_weight):
        return Int8SharedWeights(weights)
    return SharedWeights(weights) if on_products else weights


def lstm_with_bias_column(
    inputs: Tensor, state: tuple[Tensor, Tensor], weights: LstmWeights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same, with the biases as a column of the input weights, against inputs of 1.

    So their gradient comes with that of the weights. cuDNN's own pass for it reads all gates again, a twelfth of an LM
    step on an H100.
    """
    stacked = [with_bias(weights.input_weight, weights.input_bias + weights.hidden_bias), weights.hidden_weight]
    outputs, hidden, cell = torch.lstm(with_ones(inputs), state, stacked, False, 1, 0.0, True, False, False)
    return outputs, (hidden, cell)
