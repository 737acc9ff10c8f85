"""A stack of LSTM layers that learns on a CPU in bfloat16, its layers at work side by side.

A product of a time step is so small that cores which share it spend much of their time meeting. So each core does work
of its own: while a layer reads some steps, the one below reads the steps after them. Going back it is the other way
round, and the products that make the weights' gradients fill the gaps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulmfit.models.jobs import Job, evenly, run_jobs, waves
from ulmfit.models.lstm_products import LstmWeights, SharedWeights, Trace, WayBack

BLOCK_ROWS = 640
"""rows that the time steps of one job hold, at most: products gain little from more"""
BLOCKS = 7
"""jobs that a layer's steps are cut into, where there are so many steps: the next layer waits for the first of them"""

PACKING_COST = 500
"""of putting a number of a weight in order, as many multiplications"""

State = tuple[Tensor, ...]


def lstm_by_products(
    inputs: Tensor, state: State, weights: LstmWeights | SharedWeights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(time, batch, inputs) -> outputs (time, batch, hidden) and (h, c), each (1, batch, hidden), as `nn.LSTM`.

    Whatever does not wait for the step before it is gathered in products over many steps: the inputs' part of the gates
    going forward, and all gradients of weights and inputs going back. Gradients can be asked for once.
    """
    shared = weights if isinstance(weights, SharedWeights) else SharedWeights(weights)
    outputs, (hidden, cell) = lstm_stack(inputs, state, [shared], [None])
    return outputs, (hidden, cell)


def lstm_stack(
    inputs: Tensor,
    state: State,
    layers: Sequence[SharedWeights],
    masks: Sequence[Tensor | None],
    *,
    window: int | None = None,
) -> tuple[Tensor, State]:
    """(time, batch, inputs) through several layers: the last one's outputs, and h and c of each layer in turn.

    What a layer reads is first multiplied by its mask, (1, batch, size) or one for each window of so many steps,
    (windows, batch, size); the lowest layer has none. Gradients can be asked for once.
    """
    assert masks[0] is None
    links = [layer.link for layer in layers]
    plan = _Plan(tuple(layers), tuple(masks), window)
    outputs, *end = _Stack.apply(plan, inputs, *(tensor[0] for tensor in state), *links)  # type: ignore[no-untyped-call]
    return outputs, tuple(tensor.unsqueeze(0) for tensor in end)


class _Plan(NamedTuple):
    """What a stack does with its inputs."""

    layers: tuple[SharedWeights, ...]
    masks: tuple[Tensor | None, ...]
    window: int | None

    def mask(self, depth: int, start: int, end: int) -> Tensor | None:
        """Of what the layer reads in these steps, (1 or steps, batch, size)."""
        mask = self.masks[depth]
        if mask is None or len(mask) == 1:
            return mask
        assert self.window is not None
        return mask[torch.arange(start, end).div_(self.window, rounding_mode="floor")]


class _Forward:
    """A layer on its way through the steps."""

    def __init__(
        self, plan: _Plan, depth: int, read: Tensor, state: Sequence[Tensor], *, bound: float | None, learns: bool
    ) -> None:
        time, batch, _ = read.shape
        size = plan.layers[depth].hidden_weight.shape[1]
        self.plan, self.depth, self.bound = plan, depth, bound
        masked = plan.masks[depth] is not None
        self.below = read if masked else None
        """(time, batch, inputs), what is to be masked"""
        self.inputs = torch.empty_like(read) if masked else read
        """the same masked; filled block by block where there is a mask"""
        self.gates = read.new_empty(time, batch, 4 * size) if learns else None
        """kept where this layer or one below it learns"""
        self.hiddens = read.new_empty(time + 1, batch, size)
        self.cells = read.new_empty(time + 1, batch, size, dtype=torch.promote_types(read.dtype, torch.float32))
        self.hiddens[0], self.cells[0] = state

    def ready(self) -> None:
        """Put the weights in order."""
        self.plan.layers[self.depth].ready_to_read()

    def run(self, start: int, end: int) -> None:
        """Read some steps."""
        inputs = self.inputs[start:end]
        mask = self.plan.mask(self.depth, start, end)
        if mask is not None and self.below is not None:
            torch.mul(self.below[start:end], mask, out=inputs)
        kept = None if self.gates is None else self.gates[start:end]
        hiddens, cells = self.hiddens[start : end + 1], self.cells[start : end + 1]
        self.plan.layers[self.depth].read(inputs, hiddens, cells, bound=self.bound, kept=kept)


@dataclass(slots=True)
class _Backward:
    """A layer on its way back."""

    plan: _Plan
    depth: int
    way: WayBack
    arriving: Tensor
    """(time, batch, hidden), the gradient of the outputs; filled block by block by the layer above"""
    passed: Tensor | None
    """(time, batch, inputs), the gradient of what was read, where it is wanted"""

    @property
    def inputs(self) -> Tensor:
        """(time, batch, inputs)."""
        return self.way.trace.inputs

    def ready(self) -> None:
        """Put the weights in order."""
        self.way.ready(to_inputs=self.passed is not None)

    def run(self, start: int, end: int) -> None:
        """Go back over some steps."""
        self.way.run(start, end, self.arriving[start:end])
        if self.passed is not None:
            passed = self.passed[start:end]
            gradient = self.way.to_inputs(start, end).view_as(passed)
            mask = self.plan.mask(self.depth, start, end)
            passed.copy_(gradient) if mask is None else torch.mul(gradient, mask, out=passed)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, inputs: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        _, to_inputs, *needs = ctx.needs_input_grad
        state, links = 2 * len(plan.layers), needs[2 * len(plan.layers) :]
        runs: list[_Forward] = []
        learning = to_inputs
        first = len(plan.layers)  # the lowest layer that gradients reach
        for depth in range(len(plan.layers)):
            own = slice(2 * depth, 2 * depth + 2)
            learning = learning or links[depth] or any(needs[own])
            first = min(first, depth) if learning else first
            read = runs[-1].hiddens[1:] if runs else inputs
            bound = _bound(plan.masks[depth]) if runs else None
            runs.append(_Forward(plan, depth, read, others[:state][own], bound=bound, learns=learning))
        blocks = _blocks(*inputs.shape[:2])
        _run(plan, _wave(plan, runs, blocks))
        end = [
            tensor for run in runs for tensor in (run.hiddens[-1].clone(), run.cells[-1].to(inputs.dtype, copy=True))
        ]
        ctx.mark_non_differentiable(*end[: 2 * first])
        ctx.plan, ctx.first = plan, first
        kept = [(run.inputs, run.gates, run.hiddens, run.cells) for run in runs[first:]]
        ctx.save_for_backward(*itertools.chain.from_iterable(kept))
        return runs[-1].hiddens[1:], *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, first, depths = ctx.plan, ctx.first, len(ctx.plan.layers)
        saved = ctx.saved_tensors
        _, to_inputs, *needs = ctx.needs_input_grad
        runs: list[_Backward] = []
        arriving: Tensor | None = gradients[0].contiguous()
        for depth in reversed(range(first, depths)):
            trace = Trace(*saved[4 * (depth - first) :][:4])
            hidden, cell = gradients[1 + 2 * depth : 3 + 2 * depth]
            passed = torch.empty_like(trace.inputs) if depth > first or to_inputs else None
            assert arriving is not None
            way = plan.layers[depth].way_back(trace, hidden, cell.to(trace.cells.dtype, copy=True))
            runs.append(_Backward(plan, depth, way, arriving, passed))
            arriving = passed
        blocks = _blocks(*runs[0].inputs.shape[:2])[::-1]
        jobs = _wave(plan, runs, blocks)
        for place, run in enumerate(runs, 1):
            if needs[2 * depths + run.depth]:
                last = place * (len(blocks) + 1) - 1
                products = run.way.trace.gates.numel()
                jobs += [Job(work, (last,), products * size) for work, size in run.way.sums()]
        _run(plan, jobs)
        ends = {run.depth: (run.way.of_state(), run.way.cell_gradient.to(run.inputs.dtype)) for run in runs}
        to_state = [tensor for depth in range(depths) for tensor in ends.get(depth, (None, None))]
        of_state = [tensor if needed else None for tensor, needed in zip(to_state, needs[: 2 * depths], strict=True)]
        of_links = [gradients[0].new_zeros(()) if needed else None for needed in needs[2 * depths :]]
        return None, arriving if to_inputs else None, *of_state, *of_links


def _bound(mask: Tensor | None) -> float:
    """That no input of a layer above another exceeds: hidden vectors are within 1."""
    return 1.0 if mask is None else max(1.0, float(mask.max()))


def _blocks(time: int, batch: int) -> list[tuple[int, int]]:
    """The steps of each job."""
    return evenly(time, at_most=max(1, min(BLOCK_ROWS // batch, time // BLOCKS)))


def _wave(plan: _Plan, runs: Sequence[_Forward] | Sequence[_Backward], blocks: Sequence[tuple[int, int]]) -> list[Job]:
    """Each layer's weights and then its blocks in turn, which wait for the same block of the layer before as well."""
    layers: list[list[tuple[Callable[[], None], float]]] = []
    for run in runs:
        weights = plan.layers[run.depth]
        products = weights.input_weight.numel() + weights.hidden_weight.numel()
        layers.append([(run.ready, PACKING_COST * weights.hidden_weight.numel())])
        layers[-1] += [
            (functools.partial(run.run, start, end), (end - start) * run.inputs.shape[1] * products)
            for start, end in blocks
        ]
    return waves(layers, alone=1)


def _run(plan: _Plan, jobs: list[Job]) -> None:
    """On as many threads as there are layers, for more have nothing to do much of the time."""
    run_jobs(jobs, workers=len(plan.layers))
