"""One LSTM layer as a function of its weights, on the fastest kernel the device has for the work at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulmfit.models.bias_column import with_bias, with_ones
from ulmfit.models.lstm_kernel import lstm_by_kernel, suits

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

    Equal to `nn.LSTM` with the same weights: cuDNN on a GPU, oneDNN on a CPU. In bfloat16 there are kernels of our own:
    for a batch that does not fill a GPU, and to learn on a CPU, where oneDNN's backward pass takes about four times its
    forward pass.
    """
    if state is None:
        zeros = inputs.new_zeros(1, inputs.shape[1], weights.hidden_weight.shape[1])
        state = (zeros, zeros)
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


def lstm_by_products(
    inputs: Tensor, state: tuple[Tensor, Tensor], weights: LstmWeights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same, with whatever does not wait for the step before it gathered in products over all steps.

    That is the inputs' part of the gates going forward, and all gradients of weights and inputs going back; the loops
    over time hold one product and the gates' arithmetic.
    """
    bias = weights.input_bias + weights.hidden_bias
    outputs, hidden, cell = _LstmByProducts.apply(  # type: ignore[no-untyped-call]
        inputs, state[0].squeeze(0), state[1].squeeze(0), weights.input_weight, weights.hidden_weight, bias
    )
    return outputs, (hidden.unsqueeze(0), cell.unsqueeze(0))


class _LstmByProducts(torch.autograd.Function):
    """Cells are kept in float32, all else in the dtype of the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        time, batch, _ = inputs.shape
        size = hidden_weight.shape[1]
        gates = torch.addmm(bias, inputs.flatten(0, 1), input_weight.t()).view(time, batch, 4 * size)
        hiddens = inputs.new_empty(time + 1, batch, size)
        cells = inputs.new_empty(time + 1, batch, size, dtype=torch.float32)
        squashed = inputs.new_empty(time, batch, size)
        hiddens[0], cells[0] = hidden, cell
        recurrent = _recurrent_product(hidden_weight, rows=batch)
        for step in range(time):
            gate = gates[step]
            gate.copy_(recurrent(hiddens[step], gate))
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            entry, forget, candidate, exit_ = gate.chunk(4, 1)
            after = torch.mul(cells[step], forget, out=cells[step + 1]).addcmul_(entry, candidate)
            squashed[step].copy_(after).tanh_()
            torch.mul(exit_, squashed[step], out=hiddens[step + 1])
        ctx.save_for_backward(inputs, input_weight, hidden_weight, gates, hiddens, cells, squashed)
        return hiddens[1:].clone(), hiddens[-1].clone(), cells[-1].to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outputs_gradient, hidden_gradient, cell_gradient = gradients
        inputs, input_weight, hidden_weight, gates, hiddens, cells, squashed = ctx.saved_tensors
        time, batch, size = squashed.shape
        entry, forget, candidate, exit_ = gates.chunk(4, 2)
        # What each gate's own derivative brings is known for all steps at once; the loop below only chains them.
        to_exit = squashed * exit_ * (1 - exit_)
        to_cell = exit_ * (1 - squashed * squashed)
        from_cell = gates.new_empty(time, batch, 3, size)
        torch.mul(candidate * entry, 1 - entry, out=from_cell[:, :, 0])
        from_cell[:, :, 1].copy_(cells[:-1]).mul_(forget).mul_(1 - forget)
        torch.mul(entry, 1 - candidate * candidate, out=from_cell[:, :, 2])
        gate_gradients = torch.empty_like(gates)
        cell_gradient = cell_gradient.float()
        recurrent = _recurrent_product(_transposed(hidden_weight), rows=batch)
        outputs_gradient = outputs_gradient.contiguous()
        nothing = torch.zeros_like(hidden_gradient)
        hidden_gradient = hidden_gradient + outputs_gradient[-1]
        for step in reversed(range(time)):
            cell_gradient = torch.addcmul(cell_gradient, hidden_gradient, to_cell[step])
            gate = gate_gradients[step]
            inner = gate[:, : 3 * size].view(batch, 3, size)
            torch.mul(cell_gradient.to(gates.dtype).unsqueeze(1), from_cell[step], out=inner)
            torch.mul(hidden_gradient, to_exit[step], out=gate[:, 3 * size :])
            cell_gradient = cell_gradient * forget[step]
            hidden_gradient = recurrent(gate, outputs_gradient[step - 1] if step > 0 else nothing)
        flat = gate_gradients.flatten(0, 1)
        needs = ctx.needs_input_grad
        return (
            (flat @ input_weight).view_as(inputs) if needs[0] else None,
            hidden_gradient if needs[1] else None,
            cell_gradient.to(inputs.dtype) if needs[2] else None,
            flat.t() @ inputs.flatten(0, 1) if needs[3] else None,
            flat.t() @ hiddens[:-1].flatten(0, 1) if needs[4] else None,
            flat.sum(0) if needs[5] else None,
        )


def _recurrent_product(weight: Tensor, *, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(a, b) -> a @ weight.T + b, to be called once a time step with a of `rows` rows.

    oneDNN multiplies by a weight in an order of its own and puts it there in every call, which at 16 rows is a third of
    the call; here it does so once.
    """
    if not _weights_pack(weight.dtype):
        transposed = weight.t()
        return lambda inputs, addend: torch.addmm(addend, inputs, transposed)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    product = torch.ops.mkldnn._linear_pointwise.binary
    return lambda inputs, addend: cast(Tensor, product(inputs, addend, packed, None, "add"))


def _weights_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch packs weights of that dtype on this processor; its operators for it are private."""
    operators = ("_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight")
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _transposed(weight: Tensor) -> Tensor:
    """(4 * hidden, hidden) -> (hidden, 4 * hidden), contiguous; gate by gate, as that takes half the time of `.t()`."""
    size = weight.shape[1]
    whole = weight.new_empty(size, 4 * size)
    whole.view(size, 4, size).copy_(weight.view(4, size, size).permute(2, 0, 1))
    return whole
