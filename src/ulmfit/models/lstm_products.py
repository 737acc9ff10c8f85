"""An LSTM layer that learns on a CPU in bfloat16: products over all steps, and the gates' arithmetic in the cache.

oneDNN's own layer runs as fast forward; its backward pass takes about four times that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulmfit.models.cpu_products import added, transposed, transposed_with_ones

ROWS_TO_PACK_FOR = 64
"""oneDNN orders a weight for a number of rows in the other factor; this order serves any number"""

Product = Callable[[Tensor, Tensor], Tensor]
State = tuple[Tensor, Tensor]


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


class SharedWeights:
    """One layer's weights for all windows of a step: packed once, and their gradient gathered over the windows.

    Autograd would add up a dense gradient a window for each of them; here that costs a pass in the cache, and the sum
    is in float32.
    """

    def __init__(self, weights: LstmWeights) -> None:
        self.bias = weights.input_bias + weights.hidden_bias
        self.input_weight, self.hidden_weight = weights.input_weight, weights.hidden_weight
        self.gradients = _Gradients()
        self.link = _Gather.apply(self.gradients, self.input_weight, self.hidden_weight, self.bias)  # type: ignore[no-untyped-call]
        """() zero, by which autograd knows which windows the gradients of the weights wait for"""
        self._forward: Product | None = None
        self._backward: Product | None = None

    def forward_product(self) -> Product:
        """(hidden, gates) -> hidden @ hidden_weight.T + gates + bias."""
        if self._forward is None:
            self._forward = _recurrent_product(self.hidden_weight.detach(), self.bias.detach())
        return self._forward

    def backward_product(self) -> Product:
        """(gates, addend) -> gates @ hidden_weight + addend."""
        if self._backward is None:
            self._backward = _recurrent_product(transposed(self.hidden_weight.detach()), None)
        return self._backward


class _Gradients:
    """Sums over a step's windows: (inputs + 8, 4 * hidden) and (hidden, 4 * hidden), the first's next rows the bias."""

    def __init__(self) -> None:
        self.of_inputs: Tensor | None = None
        self.of_hidden: Tensor | None = None

    def add(self, gates: Tensor, inputs: Tensor, hidden: Tensor) -> None:
        """Gradients of a window's gates (rows, 4 * hidden), and what went into them (rows, size)."""
        self.of_inputs = added(self.of_inputs, transposed_with_ones(inputs) @ gates)
        self.of_hidden = added(self.of_hidden, transposed(hidden) @ gates)


class _Gather(torch.autograd.Function):
    """Gives the weights, when all windows have gone back, the gradients that these have left."""

    @staticmethod
    def forward(ctx: Any, gradients: _Gradients, input_weight: Tensor, hidden_weight: Tensor, bias: Tensor) -> Tensor:
        ctx.gradients, ctx.inputs = gradients, input_weight.shape[1]
        ctx.dtype = input_weight.dtype
        return input_weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_inputs, of_hidden = ctx.gradients.of_inputs, ctx.gradients.of_hidden
        _, with_inputs, with_hidden, with_bias = ctx.needs_input_grad
        ctx.gradients.of_inputs = ctx.gradients.of_hidden = None
        return (
            None,
            transposed(of_inputs[: ctx.inputs].to(ctx.dtype)) if with_inputs else None,
            transposed(of_hidden.to(ctx.dtype)) if with_hidden else None,
            of_inputs[-1].to(ctx.dtype) if with_bias else None,
        )


def lstm_by_products(inputs: Tensor, state: State, weights: LstmWeights | SharedWeights) -> tuple[Tensor, State]:
    """(time, batch, inputs) -> outputs (time, batch, hidden) and (h, c), each (1, batch, hidden), as `nn.LSTM`.

    Whatever does not wait for the step before it is gathered in products over all steps: the inputs' part of the gates
    going forward, and all gradients of weights and inputs going back. Gradients can be asked for once.
    """
    shared = weights if isinstance(weights, SharedWeights) else SharedWeights(weights)
    outputs, hidden, cell = _LstmByProducts.apply(  # type: ignore[no-untyped-call]
        inputs, state[0][0], state[1][0], shared.link, shared
    )
    return outputs, (hidden.unsqueeze(0), cell.unsqueeze(0))


class _LstmByProducts(torch.autograd.Function):
    """What one time step reads and writes fits the processor's cache, so the gates' arithmetic is done step by step.

    It is in float32, where PyTorch's loops are twice as fast as in bfloat16 and up to sixty times as fast as over a
    mixture of the two. Cells stay in float32; gates and outputs are kept in the dtype of the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, link: Tensor, shared: SharedWeights
    ) -> tuple[Tensor, Tensor, Tensor]:
        time, batch, _ = inputs.shape
        size = shared.hidden_weight.shape[1]
        gates = (inputs.flatten(0, 1) @ shared.input_weight.t()).view(time, batch, 4 * size)
        hiddens = inputs.new_empty(time + 1, batch, size)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        cells = inputs.new_empty(time + 1, batch, size, dtype=wide)
        hiddens[0], cells[0] = hidden, cell
        recurrent = shared.forward_product()
        working = inputs.new_empty(batch, 4 * size, dtype=wide)
        entry, forget, candidate, exit_ = working.chunk(4, 1)
        entry_and_forget = working[:, : 2 * size]
        squashed = torch.empty_like(cells[0])
        hidden_of, cell_of = hiddens.unbind(), cells.unbind()
        learning = any(ctx.needs_input_grad)
        for step, gate in enumerate(gates.unbind()):
            working.copy_(recurrent(hidden_of[step], gate))
            entry_and_forget.sigmoid_()
            candidate.tanh_()
            exit_.sigmoid_()
            if learning:
                gate.copy_(working)
            torch.mul(cell_of[step], forget, out=cell_of[step + 1]).addcmul_(entry, candidate)
            hidden_of[step + 1].copy_(torch.tanh(cell_of[step + 1], out=squashed).mul_(exit_))
        ctx.save_for_backward(inputs, shared.input_weight, gates, hiddens, cells)
        ctx.shared = shared
        return hiddens[1:], hiddens[-1].clone(), cells[-1].to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outputs_gradient, hidden_gradient, cell_gradient = gradients
        inputs, input_weight, gates, hiddens, cells = ctx.saved_tensors
        # The gates' gradients take their place, so what is kept for the backward pass is used up by it.
        cell_gradient = cell_gradient.to(cells.dtype, copy=True)
        recurrent = ctx.shared.backward_product()
        hidden_gradient = _through_time(outputs_gradient, hidden_gradient, cell_gradient, recurrent, gates, cells)
        flat = gates.flatten(0, 1)
        needs = ctx.needs_input_grad
        if needs[3]:
            ctx.shared.gradients.add(flat, inputs.flatten(0, 1), hiddens[:-1].flatten(0, 1))
        return (
            (flat @ input_weight).view_as(inputs) if needs[0] else None,
            hidden_gradient if needs[1] else None,
            cell_gradient.to(inputs.dtype) if needs[2] else None,
            flat.new_zeros(()) if needs[3] else None,
            None,
        )


def _through_time(
    outputs_gradient: Tensor,
    hidden_gradient: Tensor,
    cell_gradient: Tensor,
    recurrent: Product,
    gates: Tensor,
    cells: Tensor,
) -> Tensor:
    """The gradient of the first hidden state; that of the first cell takes the place of `cell_gradient`.

    The gradients of what goes into the gates' nonlinearities, (time, batch, 4 * hidden), take the place of `gates`.
    """
    sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
    tanh_backward = torch.ops.aten.tanh_backward.grad_input
    working, gradient = torch.empty_like(gates[0], dtype=cells.dtype), torch.empty_like(gates[0], dtype=cells.dtype)
    entry, forget, candidate, exit_ = working.chunk(4, 1)
    to_entry, to_forget, to_candidate, to_exit = gradient.chunk(4, 1)
    squashed, arriving, part = (torch.empty_like(cell_gradient) for _ in range(3))
    gate_of, cell_of = gates.unbind(), cells.unbind()
    added = [torch.zeros_like(hidden_gradient), *outputs_gradient.contiguous().unbind()]
    hidden_gradient = hidden_gradient + added[-1]
    for step in reversed(range(len(gate_of))):
        working.copy_(gate_of[step])
        arriving.copy_(hidden_gradient)
        torch.tanh(cell_of[step + 1], out=squashed)
        sigmoid_backward(torch.mul(arriving, squashed, out=part), exit_, grad_input=to_exit)
        arriving.mul_(exit_)
        cell_gradient.add_(tanh_backward(arriving, squashed, grad_input=part))
        sigmoid_backward(torch.mul(cell_gradient, candidate, out=part), entry, grad_input=to_entry)
        sigmoid_backward(torch.mul(cell_gradient, cell_of[step], out=part), forget, grad_input=to_forget)
        tanh_backward(torch.mul(cell_gradient, entry, out=part), candidate, grad_input=to_candidate)
        cell_gradient.mul_(forget)
        gate_of[step].copy_(gradient)
        hidden_gradient = recurrent(gate_of[step], added[step])
    return hidden_gradient


def _recurrent_product(weight: Tensor, bias: Tensor | None) -> Product:
    """(a, b) -> a @ weight.T + b + bias, to be called once a time step with an a of few rows.

    oneDNN multiplies by a weight in an order of its own and puts it there in every call, which at 16 rows is a third of
    the call; here it does so once.
    """
    if not _weights_pack(weight.dtype):
        transposed = weight.t()

        def plain(inputs: Tensor, addend: Tensor) -> Tensor:
            result = torch.addmm(addend, inputs, transposed)
            return result if bias is None else result.add_(bias)

        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_TO_PACK_FOR)
    product = torch.ops.mkldnn._linear_pointwise.binary
    return lambda inputs, addend: cast(Tensor, product(inputs, addend, packed, bias, "add"))


def _weights_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch packs weights of that dtype on this processor; its operators for it are private."""
    operators = ("_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight")
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
