"""What an LSTM layer that learns on a CPU in bfloat16 is made of; `lstm_stack` puts it together.

Products over many steps, and the gates' arithmetic in the cache.

oneDNN's own layer runs as fast forward; its backward pass takes about four times that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulmfit.compute import cpu_kernels_can_be_made
from ulmfit.models.bias_column import COLUMNS
from ulmfit.models.cpu_products import (
    LANES,
    added,
    as_integers,
    product_and_sum_by,
    product_by,
    product_with,
    transposed,
    transposed_with_ones,
)

SLOPES_AT_ONCE = 2**18
"""gates of as many steps as hold no more of them are worked on together going back"""

Product = Callable[[Tensor, Tensor], Tensor]


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
        self.gradients = self.made_gradients()
        self.link = _Gather.apply(self.gradients, self.input_weight, self.hidden_weight, self.bias)  # type: ignore[no-untyped-call]
        """() zero, by which autograd knows which windows the gradients of the weights wait for"""
        self._inputs: Callable[[Tensor], Tensor] | None = None
        self._forward: Product | None = None
        self._backward: Product | None = None
        self._to_inputs: Callable[[Tensor], Tensor] | None = None

    def made_gradients(self) -> Gradients:
        """Sums of what windows leave."""
        return Gradients()

    def input_product(self) -> Callable[[Tensor], Tensor]:
        """(rows, inputs) -> inputs @ input_weight.T."""
        if self._inputs is None:
            self._inputs = product_by(self.input_weight.detach())
        return self._inputs

    def forward_product(self) -> Product:
        """(hidden, gates) -> hidden @ hidden_weight.T + gates + bias."""
        if self._forward is None:
            self._forward = product_and_sum_by(self.hidden_weight.detach(), self.bias.detach())
        return self._forward

    def backward_product(self) -> Product:
        """(gates, addend) -> gates @ hidden_weight + addend."""
        if self._backward is None:
            self._backward = product_and_sum_by(transposed(self.hidden_weight.detach()), None)
        return self._backward

    def product_to_inputs(self) -> Callable[[Tensor], Tensor]:
        """(rows, gates) -> gates @ input_weight."""
        if self._to_inputs is None:
            self._to_inputs = product_with(self.input_weight.detach())
        return self._to_inputs

    def ready_to_read(self) -> None:
        """Put in order what `read` multiplies by."""
        self.input_product()
        self.forward_product()

    def read(self, inputs: Tensor, hiddens: Tensor, cells: Tensor, *, bound: float | None, kept: Tensor | None) -> None:
        """Some steps of inputs (time, batch, size), none of them beyond the bound; the rest is `through_time`'s."""
        gates = self.input_product()(inputs.flatten(0, 1)).view(*inputs.shape[:2], -1)
        through_time(hiddens, cells, gates, self.forward_product(), kept=kept)

    def way_back(self, trace: Trace, hidden_gradient: Tensor, cell_gradient: Tensor) -> WayBack:
        """Begun from the gradients of the last state, (batch, hidden)."""
        return WayBack(self, trace, hidden_gradient, cell_gradient)


class Trace(NamedTuple):
    """What a layer has left of a window, for the way back."""

    inputs: Tensor
    """(time, batch, inputs)"""
    gates: Tensor
    """(time, batch, 4 * hidden); the way back may use the memory up"""
    hiddens: Tensor
    """(time + 1, batch, hidden), the first before the window"""
    cells: Tensor
    """the same in float32 at least"""


class WayBack:
    """A layer on its way back through a window, some steps at a time, from the last."""

    def __init__(self, weights: SharedWeights, trace: Trace, hidden_gradient: Tensor, cell_gradient: Tensor) -> None:
        self.weights, self.trace = weights, trace
        self.hidden_gradient, self.cell_gradient = hidden_gradient, cell_gradient
        """of the state before the steps that are done, (batch, hidden)"""

    def ready(self, *, to_inputs: bool) -> None:
        """Put the weights in order."""
        self.weights.backward_product()
        if to_inputs:
            self.weights.product_to_inputs()

    def run(self, start: int, end: int, arriving: Tensor) -> None:
        """Go back over some steps, from the gradient of their outputs, (time, batch, hidden)."""
        self.hidden_gradient = back_through_time(
            arriving,
            self.hidden_gradient,
            self.cell_gradient,
            self.weights.backward_product(),
            self.trace.gates[start:end],
            self.trace.cells[start : end + 1],
        )

    def of_state(self) -> Tensor:
        """The gradient of the hidden state before all steps, (batch, hidden)."""
        return self.hidden_gradient

    def to_inputs(self, start: int, end: int) -> Tensor:
        """The gradient of what these steps read, (rows, inputs)."""
        return self.weights.product_to_inputs()(self.trace.gates[start:end].flatten(0, 1))

    def sums(self) -> list[tuple[Callable[[], None], int]]:
        """What gives the weights their gradients when all steps are done, and the size of what goes into each."""
        sums, gates = self.weights.gradients, self.trace.gates.flatten(0, 1)
        inputs, hidden = self.trace.inputs.flatten(0, 1), self.trace.hiddens[:-1].flatten(0, 1)
        return [
            (functools.partial(sums.add_inputs, gates, inputs), inputs.shape[1]),
            (functools.partial(sums.add_hidden, gates, hidden), hidden.shape[1]),
        ]


class Gradients:
    """Sums over a step's windows: (inputs + 8, 4 * hidden) and (hidden, 4 * hidden), the first's next rows the bias."""

    def __init__(self) -> None:
        self.of_inputs: Tensor | None = None
        self.of_hidden: Tensor | None = None

    def taken(self, dtype: torch.dtype, *, inputs: bool, hidden: bool, bias: bool) -> list[Tensor | None]:
        """Those asked for, of a layer's two weights and bias; nothing is left here."""
        of_inputs, of_hidden = self.of_inputs, self.of_hidden
        self.of_inputs = self.of_hidden = None
        assert of_inputs is not None and of_hidden is not None
        return [
            transposed(of_inputs[:-COLUMNS].to(dtype)) if inputs else None,
            transposed(of_hidden.to(dtype)) if hidden else None,
            of_inputs[-1].to(dtype) if bias else None,
        ]

    def add_inputs(self, gates: Tensor, inputs: Tensor) -> None:
        """A window's gradients of its gates (rows, 4 * hidden), and its inputs (rows, size)."""
        self.of_inputs = added(self.of_inputs, transposed_with_ones(inputs) @ gates)

    def add_hidden(self, gates: Tensor, hidden: Tensor) -> None:
        """The same for the hidden vectors that went into the gates, (rows, hidden)."""
        self.of_hidden = added(self.of_hidden, transposed(hidden) @ gates)


class _Gather(torch.autograd.Function):
    """Gives the weights, when all windows have gone back, the gradients that these have left."""

    @staticmethod
    def forward(ctx: Any, gradients: Gradients, input_weight: Tensor, hidden_weight: Tensor, bias: Tensor) -> Tensor:
        ctx.gradients, ctx.dtype = gradients, input_weight.dtype
        return input_weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, with_inputs, with_hidden, with_bias = ctx.needs_input_grad
        return None, *ctx.gradients.taken(ctx.dtype, inputs=with_inputs, hidden=with_hidden, bias=with_bias)


def through_time(hiddens: Tensor, cells: Tensor, gates: Tensor, recurrent: Product, *, kept: Tensor | None) -> None:
    """Some steps forward: fills in all of `hiddens` and `cells` (time + 1, batch, hidden) but the first of each.

    `gates` (time, batch, 4 * hidden) is what the inputs add to the gates. What the nonlinearities make of the sums is
    left in `kept`, of the same shape, for `back_through_time`.

    What one time step reads and writes fits the processor's cache, so the gates' arithmetic is done step by step. It is
    in float32, where PyTorch's loops are twice as fast as in bfloat16 and up to sixty times as fast as over a mixture
    of the two. Cells are in float32; gates and hidden vectors in the dtype of the products.
    """
    if _kernel_serves(gates, cells):
        _through_time_by_kernel(hiddens, cells, gates, recurrent, kept)
        return
    size = cells.shape[2]
    working = torch.empty_like(gates[0], dtype=cells.dtype)
    entry, forget, candidate, exit_ = working.chunk(4, 1)
    entry_and_forget = working[:, : 2 * size]
    squashed = torch.empty_like(cells[0])
    hidden_of, cell_of = hiddens.unbind(), cells.unbind()
    kept_of = None if kept is None else kept.unbind()
    for step, gate in enumerate(gates.unbind()):
        working.copy_(recurrent(hidden_of[step], gate))
        entry_and_forget.sigmoid_()
        candidate.tanh_()
        exit_.sigmoid_()
        if kept_of is not None:
            kept_of[step].copy_(working)
        torch.mul(cell_of[step], forget, out=cell_of[step + 1]).addcmul_(entry, candidate)
        hidden_of[step + 1].copy_(torch.tanh(cell_of[step + 1], out=squashed).mul_(exit_))


def back_through_time(
    outputs_gradient: Tensor,
    hidden_gradient: Tensor,
    cell_gradient: Tensor,
    recurrent: Product,
    gates: Tensor,
    cells: Tensor,
) -> Tensor:
    """The gradient of the first hidden state; that of the first cell takes the place of `cell_gradient`.

    The gradients of what goes into the gates' nonlinearities, (time, batch, 4 * hidden), take the place of `gates`.
    Slopes do not wait for the step after, so they are computed for as many steps at once as the cache holds.
    """
    if _kernel_serves(gates, cells):
        return _back_by_kernel(outputs_gradient, hidden_gradient, cell_gradient, recurrent, gates, cells)
    batch, size = cell_gradient.shape
    gate_of = gates.unbind()
    addend = [torch.zeros_like(hidden_gradient), *outputs_gradient.contiguous().unbind()]
    hidden_gradient = hidden_gradient + addend[-1]
    arriving = torch.empty_like(cell_gradient)
    widened = cell_gradient.unsqueeze(1)
    together = max(1, min(len(gate_of), SLOPES_AT_ONCE // (4 * batch * size)))
    slopes = _Slopes(together, cell_gradient)
    for end in range(len(gate_of), 0, -together):
        start = max(0, end - together)
        if end - start < together:
            slopes = _Slopes(end - start, cell_gradient)
        slopes.fill(gates[start:end], cells[start : end + 1])
        for step in range(end - 1, start - 1, -1):
            whole, to_cell, to_hidden, through, forget = slopes.of_step[step - start]
            arriving.copy_(hidden_gradient)
            cell_gradient.addcmul_(arriving, through)
            to_hidden.mul_(arriving)
            to_cell.mul_(widened)
            cell_gradient.mul_(forget)
            gate_of[step].copy_(whole)
            hidden_gradient = recurrent(gate_of[step], addend[step])
    return hidden_gradient


def _kernel_serves(gates: Tensor, cells: Tensor) -> bool:
    return gates.dtype == torch.bfloat16 and cells.shape[2] % LANES == 0 and cpu_kernels_can_be_made()


def _through_time_by_kernel(
    hiddens: Tensor, cells: Tensor, gates: Tensor, recurrent: Product, kept: Tensor | None
) -> None:
    from ulmfit.models.gate_kernel import pass_gates  # Numba is for those who need it

    hidden_of, of_hiddens, of_cells = hiddens.unbind(), as_integers(hiddens), cells.numpy()
    kept_of = None if kept is None else as_integers(kept)
    for step, gate in enumerate(gates.unbind()):
        sums = as_integers(recurrent(hidden_of[step], gate))
        pass_gates(sums, sums if kept_of is None else kept_of[step], of_cells, of_hiddens, step)


def _back_by_kernel(
    outputs_gradient: Tensor,
    hidden_gradient: Tensor,
    cell_gradient: Tensor,
    recurrent: Product,
    gates: Tensor,
    cells: Tensor,
) -> Tensor:
    from ulmfit.models.gate_kernel import gradients_of_gates

    addend = [torch.zeros_like(hidden_gradient), *outputs_gradient.contiguous().unbind()]
    hidden_gradient = hidden_gradient + addend[-1]
    gate_of, of_gates, of_cells, to_cell = gates.unbind(), as_integers(gates), cells.numpy(), cell_gradient.numpy()
    for step in range(len(gate_of) - 1, -1, -1):
        gradients_of_gates(of_gates, of_cells, as_integers(hidden_gradient), to_cell, step)
        hidden_gradient = recurrent(gate_of[step], addend[step])
    return hidden_gradient


class _Slopes:
    """By how much what goes into each gate moves, of some steps, the cell, or the hidden vector for the exit gate.

    Memory, and views of it, for one lot of steps after the other.
    """

    def __init__(self, steps: int, like: Tensor) -> None:
        batch, size = like.shape
        self._gates, self._slopes = like.new_empty(steps, batch, 4 * size), like.new_empty(steps, batch, 4 * size)
        self._entry, self._forget, self._candidate, self._exit = self._gates.chunk(4, 2)
        self._to_entry, self._to_forget, self._to_candidate, self._to_exit = self._slopes.chunk(4, 2)
        self._through = like.new_empty(steps, batch, size)
        to_cell = self._slopes[:, :, : 3 * size].view(steps, batch, 3, size)
        whole = (self._slopes, to_cell, self._to_exit, self._through, self._forget)
        self.of_step = list(zip(*(tensor.unbind() for tensor in whole), strict=True))
        """the slopes (batch, 4 * hidden), those of the cell in them (batch, 3, hidden) and of the hidden vector; by how
        much the cell moves the hidden vector; the forget gate"""

    def fill(self, gates: Tensor, cells: Tensor) -> None:
        """For these steps, `cells` (steps + 1, batch, hidden) being those before and after each."""
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        self._gates.copy_(gates)
        squashed = torch.tanh(cells[1:], out=self._through)
        sigmoid_backward(self._candidate, self._entry, grad_input=self._to_entry)
        sigmoid_backward(cells[:-1], self._forget, grad_input=self._to_forget)
        tanh_backward(self._entry, self._candidate, grad_input=self._to_candidate)
        sigmoid_backward(squashed, self._exit, grad_input=self._to_exit)
        tanh_backward(self._exit, squashed, grad_input=squashed)
