"""An LSTM layer that learns on a CPU with products in int8, at twice the rate of bfloat16; all else as `lstm_products`.

- There, hidden vectors are multiplied as integers of 1/127, the lowest layer's inputs with a scale for some steps, and
  weights with one for each unit of a gate.
- Back, the gradients of a row's gates share a scale, and weights have one for each unit below.
- A weight's gradient, the sum of rows' outer products, is one of these codes by inputs that each row's scale has been
  multiplied into, and that have a scale for each column.

That is row-wise quantisation as in SwitchBack (Wortsman et al. 2023, "Stable and low-precision training for large-scale
vision-language models"), and beyond it for the weights' gradients. What it costs is measured: docs/benchmarks.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ulmfit.compute import choose_dtype
from ulmfit.int8_rows import INT8_PEAK
from ulmfit.models.cpu_products import LANES, as_integers
from ulmfit.models.int8_products import (
    Product,
    bound_of,
    by_column,
    by_row,
    codes_of,
    exact_product,
    product_by_integers,
    products_serve,
    transposed_bytes,
)
from ulmfit.models.jobs import evenly
from ulmfit.models.lstm_products import Gradients, LstmWeights, SharedWeights, Trace, WayBack

PARTS = 2
"""of a layer's gates that threads add up beside each other"""
SUM_ROWS = 4480
"""rows of a window whose outer products share a column's scale"""


def int8_serves(*weights: Tensor) -> bool:
    """Whether layers with weights of these sizes can learn so here."""
    return all(size % LANES == 0 for weight in weights for size in weight.shape) and products_serve()


def dtype_beside_int8(weights: Sequence[Tensor]) -> torch.dtype:
    """What layers that learn in int8 compute all else in; float32 where some cannot, and bfloat16 would be slow."""
    return torch.bfloat16 if int8_serves(*weights) else choose_dtype("auto", weights[0].device)


class Int8SharedWeights(SharedWeights):
    """One layer's weights for all windows of a step, in int8 for what is multiplied by them."""

    def __init__(self, weights: LstmWeights) -> None:
        super().__init__(weights)
        self._coded_inputs: Product | None = None
        self._coded_forward: Product | None = None
        self._coded_backward: Product | None = None
        self._coded_to_inputs: Product | None = None

    def made_gradients(self) -> Gradients:
        """Sums of what windows leave."""
        return Int8Gradients(self.input_weight, self.hidden_weight)

    def of_inputs(self) -> Product:
        """(codes, scale) -> inputs @ input_weight.T + bias."""
        if self._coded_inputs is None:
            integers, scales = by_row(self.input_weight.detach())
            self._coded_inputs = product_by_integers(integers, scales, self.bias.detach().float())
        return self._coded_inputs

    def of_hidden(self) -> Product:
        """(codes, scale) -> hidden @ hidden_weight.T."""
        if self._coded_forward is None:
            self._coded_forward = product_by_integers(*by_row(self.hidden_weight.detach()))
        return self._coded_forward

    def to_hidden(self) -> Product:
        """(codes, scale) -> gates @ hidden_weight."""
        if self._coded_backward is None:
            self._coded_backward = _product_with(self.hidden_weight.detach())
        return self._coded_backward

    def to_inputs(self) -> Product:
        """(codes, scale) -> gates @ input_weight."""
        if self._coded_to_inputs is None:
            self._coded_to_inputs = _product_with(self.input_weight.detach())
        return self._coded_to_inputs

    def ready_to_read(self) -> None:
        """Put in order what `read` multiplies by."""
        self.of_hidden()
        self.of_inputs()

    def read(self, inputs: Tensor, hiddens: Tensor, cells: Tensor, *, bound: float | None, kept: Tensor | None) -> None:
        """As in bfloat16; where inputs have no bound, these steps' greatest is theirs."""
        from ulmfit.models.gate_code_kernel import pass_gates_to_codes

        flat = inputs.flatten(0, 1)
        if bound is None:
            bound = bound_of(flat)
        gates = self.of_inputs()(codes_of(flat, INT8_PEAK / bound), bound / INT8_PEAK)
        recurrent, codes = self.of_hidden(), codes_of(hiddens[0], INT8_PEAK)
        of_codes, of_hiddens, of_cells = codes.numpy(), as_integers(hiddens), cells.numpy()
        more = as_integers(gates.view(*inputs.shape[:2], -1))
        kept_of = None if kept is None else as_integers(kept)
        for step in range(len(inputs)):
            sums = as_integers(recurrent(codes, 1 / INT8_PEAK))
            keep = sums if kept_of is None else kept_of[step]
            pass_gates_to_codes(sums, more[step], keep, of_cells, of_hiddens, of_codes, step)

    def way_back(self, trace: Trace, hidden_gradient: Tensor, cell_gradient: Tensor) -> WayBack:
        """Begun from the gradients of the last state, (batch, hidden)."""
        return Int8WayBack(self, trace, hidden_gradient, cell_gradient)


class Int8WayBack(WayBack):
    """A layer on its way back, with the gradients of its gates as codes (time, batch, 4 * hidden)."""

    weights: Int8SharedWeights

    def __init__(
        self, weights: Int8SharedWeights, trace: Trace, hidden_gradient: Tensor, cell_gradient: Tensor
    ) -> None:
        super().__init__(weights, trace, hidden_gradient.contiguous(), cell_gradient.contiguous())
        time, batch, gates = trace.gates.shape
        self.codes = torch.empty(time, batch, gates, dtype=torch.uint8)
        self.scales = torch.empty(time, batch)
        self.bias_gradient = torch.zeros(gates)
        self._of_rows = np.ones(batch, dtype=np.float32)
        """by which the gradient of the hidden state is still to be multiplied"""
        self._working = np.empty(gates + LANES, dtype=np.float32)

    def ready(self, *, to_inputs: bool) -> None:
        """Put the weights in order."""
        self.weights.to_hidden()
        if to_inputs:
            self.weights.to_inputs()

    def run(self, start: int, end: int, arriving: Tensor) -> None:
        """Go back over some steps, from the gradient of their outputs, (time, batch, hidden)."""
        from ulmfit.models.gate_code_kernel import codes_of_gradients

        recurrent, addend = self.weights.to_hidden(), as_integers(arriving.contiguous())
        gates, cells, to_cell = as_integers(self.trace.gates), self.trace.cells.numpy(), self.cell_gradient.numpy()
        codes, scales, bias = self.codes.numpy(), self.scales.numpy(), self.bias_gradient.numpy()
        for step in range(end - 1, start - 1, -1):
            codes_of_gradients(
                gates,
                cells,
                as_integers(self.hidden_gradient),
                self._of_rows,
                addend[step - start],
                to_cell,
                codes,
                scales,
                bias,
                self._working,
                step,
            )
            self.hidden_gradient, self._of_rows = recurrent(self.codes[step], 1.0), scales[step]

    def of_state(self) -> Tensor:
        """The gradient of the hidden state before all steps, (batch, hidden)."""
        return self.hidden_gradient * torch.from_numpy(self._of_rows).to(self.hidden_gradient.dtype).unsqueeze(1)

    def to_inputs(self, start: int, end: int) -> Tensor:
        """The gradient of what these steps read, (rows, inputs)."""
        from ulmfit.models.code_kernel import scale_rows

        gradient = self.weights.to_inputs()(self.codes[start:end].flatten(0, 1), 1.0)
        scale_rows(as_integers(gradient), self.scales[start:end].flatten().numpy())
        return gradient

    def sums(self) -> list[tuple[Callable[[], None], int]]:
        """What gives the weights their gradients when all steps are done, and the size of what goes into each."""
        sums = self.weights.gradients
        assert isinstance(sums, Int8Gradients)
        codes, scales = self.codes.flatten(0, 1), self.scales.flatten()
        inputs, hidden = self.trace.inputs.flatten(0, 1), self.trace.hiddens[:-1].flatten(0, 1)
        size = (inputs.shape[1] + hidden.shape[1]) // PARTS

        def add(part: int) -> None:
            sums.add_codes(codes, scales, inputs, hidden, part=part)
            if part == 0:
                sums.of_bias.add_(self.bias_gradient)

        return [(functools.partial(add, part), size) for part in range(PARTS)]


class Int8Gradients(Gradients):
    """Sums over a step's windows in float32: (4 * hidden, inputs), (4 * hidden, hidden) and (4 * hidden,)."""

    def __init__(self, input_weight: Tensor, hidden_weight: Tensor) -> None:
        super().__init__()
        self.of_inputs, self.of_hidden = torch.empty(input_weight.shape), torch.empty(hidden_weight.shape)
        self.of_bias = torch.zeros(len(input_weight))
        self._begun = [False] * PARTS

    def add_codes(self, codes: Tensor, scales: Tensor, inputs: Tensor, hidden: Tensor, *, part: int) -> None:
        """A window's codes (rows, 4 * hidden) and their scales (rows,), and what went into the gates, (rows, size).

        Of all gates one part is added up: as much as a thread does beside others.
        """
        outer = slice(*evenly(codes.shape[1], at_most=-(-codes.shape[1] // PARTS))[part])
        assert self.of_inputs is not None and self.of_hidden is not None
        for start, end in evenly(len(codes), at_most=SUM_ROWS):
            rows = slice(start, end)
            gates = transposed_bytes(codes[rows, outer])
            for total, read in ((self.of_inputs[outer], inputs[rows]), (self.of_hidden[outer], hidden[rows])):
                product = exact_product(gates, *by_column(read, scales[rows]))
                total.add_(product) if self._begun[part] else total.copy_(product)
            self._begun[part] = True

    def taken(self, dtype: torch.dtype, *, inputs: bool, hidden: bool, bias: bool) -> list[Tensor | None]:
        """Those asked for, of a layer's two weights and bias; nothing of the weights' is left here."""
        found = ((self.of_inputs, inputs), (self.of_hidden, hidden), (self.of_bias, bias))
        self.of_inputs = self.of_hidden = None
        return [gradient.to(dtype) if asked and gradient is not None else None for gradient, asked in found]


def _product_with(weight: Tensor) -> Product:
    """(codes, scale) -> gates @ weight, of a weight (4 * hidden, size)."""
    integers, scales = by_column(weight, torch.ones(len(weight)))
    return product_by_integers(transposed_bytes(integers), scales)
