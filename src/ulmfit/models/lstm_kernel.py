"""An LSTM layer's loop over time as one kernel on a GPU, for batches that do not fill the GPU.

cuDNN launches two to four kernels for each time step of each layer. With 64 documents a GPU is done with them before
the host has launched the next; it stands idle for two thirds of the time. Here programs share a layer's hidden units,
keep the cell in registers, and wait for each other once a step.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulmfit.compute import kernels_can_be_made
from ulmfit.models.gpu_programs import programs_at_once

try:
    import triton
    import triton.language as tl

    from ulmfit.models.gpu_programs import seen, tanh
except ImportError:
    triton = None

COUNTERS = 4096
STAGES = 3
"""loads under way at once"""


class Tile(NamedTuple):
    """What one program computes of a time step, and how many values deep it reads for it at once."""

    rows: int
    """sequences"""
    units: int
    """hidden units"""
    forward_depth: int
    backward_depth: int
    warps: int

    def shared_memory(self) -> int:
        """Bytes that a program needs of its processor's, going back or forth."""
        forward = (self.rows + 4 * self.units) * self.forward_depth
        backward = (self.rows + self.units) * self.backward_depth
        return 2 * STAGES * max(forward, backward)


# Few, as each is compiled for some seconds when first met. The larger serves where the smaller ones would be too many
# to be on the GPU at once: on an H100 with 512 sequences and 400 units a step there and back takes 38.5 us with it, and
# 30.5 with the smaller.
SMALL, LARGE = Tile(64, 16, 64, 128, warps=4), Tile(128, 32, 64, 64, warps=8)


def suits(batch: int, hidden: int, device: torch.device) -> bool:
    """Whether the kernel can run and is the faster one: all of its programs must be on the GPU at once."""
    if device.type != "cuda" or hidden < SMALL.units or not kernels_can_be_made():
        return False
    return _fits(LARGE, batch, hidden, device) or _fits(SMALL, batch, hidden, device)


def _tile(batch: int, hidden: int, device: torch.device) -> Tile:
    return SMALL if _fits(SMALL, batch, hidden, device) else LARGE


def _fits(tile: Tile, batch: int, hidden: int, device: torch.device) -> bool:
    return -(-hidden // tile.units) * -(-batch // tile.rows) <= _places(tile, device)


def _places(tile: Tile, device: torch.device) -> int:
    """How many such programs are on the GPU at once; none on one without bfloat16 products."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return 0
    return programs_at_once(device, shared_memory=tile.shared_memory(), warps=tile.warps)


def lstm_by_kernel(
    inputs: Tensor,
    state: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm` in bfloat16 on a GPU; shapes as there, `weights` those of `LstmWeights`."""
    input_weight, hidden_weight, input_bias, hidden_bias = weights
    outputs, hidden, cell = _LstmByKernel.apply(  # type: ignore[no-untyped-call]
        inputs, state[0][0], state[1][0], input_weight, hidden_weight, input_bias + hidden_bias
    )
    return outputs, (hidden.unsqueeze(0), cell.unsqueeze(0))


class _LstmByKernel(torch.autograd.Function):
    """Cells are kept in float32, all else in bfloat16; what does not wait for the step before is one product."""

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
        # Gates and cells are kept for the backward pass alone.
        kept = time + 1 if any(ctx.needs_input_grad) else 0
        cells = inputs.new_empty(kept, batch, size, dtype=torch.float32)
        last_cell = torch.empty_like(cell)
        states = (hidden.contiguous(), cell.contiguous(), hiddens, cells, last_cell)
        tile = _tile(batch, size, inputs.device)
        shape: dict[str, Any] = {"time": time, "batch": batch, "size": size, "tile": tile, "depth": tile.forward_depth}
        _launch(_forward, gates, hidden_weight.contiguous(), *states, **shape, LEARNING=any(ctx.needs_input_grad))
        ctx.save_for_backward(inputs, input_weight, hidden_weight, gates, hiddens, cells)
        return hiddens[1:], hiddens[-1], last_cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outputs_gradient, hidden_gradient, cell_gradient = (gradient.contiguous() for gradient in gradients)
        inputs, input_weight, hidden_weight, gates, hiddens, cells = ctx.saved_tensors
        time, batch, width = gates.shape
        size = width // 4
        gate_gradients = torch.empty_like(gates)
        first_hidden = hidden_gradient.new_empty(batch, size)
        first_cell = cell_gradient.new_empty(batch, size)
        flows = (outputs_gradient, hidden_gradient, cell_gradient, first_hidden, first_cell)
        transposed = hidden_weight.t().contiguous()
        tile = _tile(batch, size, gates.device)
        shape: dict[str, Any] = {"time": time, "batch": batch, "size": size, "tile": tile, "depth": tile.backward_depth}
        _launch(_backward, gates, gate_gradients, transposed, cells, *flows, **shape)
        flat = gate_gradients.flatten(0, 1)
        needs = ctx.needs_input_grad
        return (
            (flat @ input_weight).view_as(inputs) if needs[0] else None,
            first_hidden if needs[1] else None,
            first_cell if needs[2] else None,
            flat.t() @ inputs.flatten(0, 1) if needs[3] else None,
            flat.t() @ hiddens[:-1].flatten(0, 1) if needs[4] else None,
            flat.sum(0) if needs[5] else None,
        )


def _launch(
    kernel: Any, *tensors: Tensor, time: int, batch: int, size: int, tile: Tile, depth: int, **constants: Any
) -> None:
    """All programs at once, as they wait for each other."""
    grid = (triton.cdiv(size, tile.units), triton.cdiv(batch, tile.rows))
    with torch.cuda.device(tensors[0].device):
        kernel[grid](
            *tensors,
            _counters.take(grid[1], tensors[0].device),
            time,
            batch,
            size,
            ROWS=tile.rows,
            UNITS=tile.units,
            DEPTH=depth,
            STAGES=STAGES,
            **constants,
            num_warps=tile.warps,
            launch_cooperative_grid=True,
        )


class _Counters(threading.local):
    """Counters, each used once, zeroed by the thousand; each stream has its own, so none is used before it is zero."""

    def __init__(self) -> None:
        self._spare: dict[torch.cuda.Stream, Tensor] = {}

    def take(self, count: int, device: torch.device) -> Tensor:
        stream = torch.cuda.current_stream(device)
        counters = self._spare.get(stream)
        if counters is None or len(counters) < count:
            counters = torch.zeros(max(count, COUNTERS), dtype=torch.int32, device=device)
        self._spare[stream] = counters[count:]
        return counters[:count]


_counters = _Counters()


if triton is not None:
    # Triton reads annotations as its own types, so there are none.

    @triton.jit
    def _wait_for_all(counter, arrived):  # type: ignore[no-untyped-def]
        """Go on when `arrived` programs have come here; what they wrote before can be read from the L2 cache."""
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        here = 0
        while here < arrived:
            here = seen(counter)
        tl.debug_barrier()

    @triton.jit(do_not_specialize=["time", "batch"])  # type: ignore[untyped-decorator]
    def _forward(  # type: ignore[no-untyped-def]
        gates,
        weight,
        first_hidden,
        first_cell,
        hiddens,
        cells,
        last_cell,
        counters,
        time,
        batch,
        size: tl.constexpr,
        ROWS: tl.constexpr,
        UNITS: tl.constexpr,
        DEPTH: tl.constexpr,
        STAGES: tl.constexpr,
        LEARNING: tl.constexpr,
    ):
        units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        counter = counters + tl.program_id(1)
        own, live, inner = units < size, rows < batch, tl.arange(0, DEPTH)
        mask = live[:, None] & own[None, :]
        place = rows[:, None] * size + units[None, :]
        gate = gates + rows[:, None] * (4 * size) + units[None, :]
        before = hiddens + rows[:, None] * size + inner[None, :]
        factor = weight + units[None, :] * size + inner[:, None]
        hidden_at, cell_at = hiddens + place, cells + place
        cell = tl.load(first_cell + place, mask=mask, other=0.0).to(tl.float32)
        if LEARNING:
            tl.store(cell_at, cell, mask=mask)
        tl.store(hidden_at, tl.load(first_hidden + place, mask=mask, other=0.0), mask=mask)
        # What does not wait for the others is read ahead of the wait.
        given_entry = tl.load(gate, mask=mask, other=0.0)
        given_forget = tl.load(gate + size, mask=mask, other=0.0)
        given_candidate = tl.load(gate + 2 * size, mask=mask, other=0.0)
        given_exit = tl.load(gate + 3 * size, mask=mask, other=0.0)
        _wait_for_all(counter, tl.num_programs(0))
        for step in range(time):
            entry, forget = given_entry.to(tl.float32), given_forget.to(tl.float32)
            candidate, exit_ = given_candidate.to(tl.float32), given_exit.to(tl.float32)
            for start in tl.range(0, size, DEPTH, num_stages=STAGES):
                inside = start + inner < size
                # The other programs' outputs: this processor's own cache may hold what was there before.
                hidden = tl.load(before + start, mask=live[:, None] & inside[None, :], other=0.0, cache_modifier=".cg")
                wanted = inside[:, None] & own[None, :]
                entry = tl.dot(hidden, tl.load(factor + start, mask=wanted, other=0.0), entry)
                forget = tl.dot(hidden, tl.load(factor + start + size * size, mask=wanted, other=0.0), forget)
                candidate = tl.dot(hidden, tl.load(factor + start + 2 * size * size, mask=wanted, other=0.0), candidate)
                exit_ = tl.dot(hidden, tl.load(factor + start + 3 * size * size, mask=wanted, other=0.0), exit_)
            entry, forget, exit_ = tl.sigmoid(entry), tl.sigmoid(forget), tl.sigmoid(exit_)
            candidate = tanh(candidate)
            cell = forget * cell + entry * candidate
            hidden_at += batch * size
            cell_at += batch * size
            before += batch * size
            tl.store(hidden_at, (exit_ * tanh(cell)).to(hiddens.dtype.element_ty), mask=mask)
            if LEARNING:
                tl.store(cell_at, cell, mask=mask)
                tl.store(gate, entry.to(gates.dtype.element_ty), mask=mask)
                tl.store(gate + size, forget.to(gates.dtype.element_ty), mask=mask)
                tl.store(gate + 2 * size, candidate.to(gates.dtype.element_ty), mask=mask)
                tl.store(gate + 3 * size, exit_.to(gates.dtype.element_ty), mask=mask)
            gate += batch * 4 * size
            ahead = mask & (step + 1 < time)
            given_entry = tl.load(gate, mask=ahead, other=0.0)
            given_forget = tl.load(gate + size, mask=ahead, other=0.0)
            given_candidate = tl.load(gate + 2 * size, mask=ahead, other=0.0)
            given_exit = tl.load(gate + 3 * size, mask=ahead, other=0.0)
            _wait_for_all(counter, (step + 2) * tl.num_programs(0))
        tl.store(last_cell + place, cell.to(last_cell.dtype.element_ty), mask=mask)

    @triton.jit(do_not_specialize=["time", "batch"])  # type: ignore[untyped-decorator]
    def _backward(  # type: ignore[no-untyped-def]  # noqa: PLR0915
        gates,
        gate_gradients,
        transposed,
        cells,
        outputs_gradient,
        hidden_gradient,
        cell_gradient,
        first_hidden,
        first_cell,
        counters,
        time,
        batch,
        size: tl.constexpr,
        ROWS: tl.constexpr,
        UNITS: tl.constexpr,
        DEPTH: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        counter = counters + tl.program_id(1)
        own, live, inner = units < size, rows < batch, tl.arange(0, DEPTH)
        mask = live[:, None] & own[None, :]
        place = rows[:, None] * size + units[None, :]
        last = (time - 1) * batch
        gate_place = last * 4 * size + rows[:, None] * (4 * size) + units[None, :]
        gate, gradient = gates + gate_place, gate_gradients + gate_place
        whole = gate_gradients + last * 4 * size + rows[:, None] * (4 * size) + inner[None, :]
        factor = transposed + units[None, :] * (4 * size) + inner[:, None]
        cell_at = cells + place + (last + batch) * size
        given_at = outputs_gradient + place + last * size
        to_hidden = tl.load(hidden_gradient + place, mask=mask, other=0.0).to(tl.float32)
        to_cell = tl.load(cell_gradient + place, mask=mask, other=0.0).to(tl.float32)
        squashed = tanh(tl.load(cell_at, mask=mask, other=0.0))
        cell_at -= batch * size
        cell_before = tl.load(cell_at, mask=mask, other=0.0)
        given = tl.load(given_at, mask=mask, other=0.0)
        entry_, forget_ = tl.load(gate, mask=mask, other=0.0), tl.load(gate + size, mask=mask, other=0.0)
        candidate_ = tl.load(gate + 2 * size, mask=mask, other=0.0)
        exit_ = tl.load(gate + 3 * size, mask=mask, other=0.0)
        for step in range(time):
            entry, forget = entry_.to(tl.float32), forget_.to(tl.float32)
            candidate, leave = candidate_.to(tl.float32), exit_.to(tl.float32)
            to_hidden += given.to(tl.float32)
            to_cell += to_hidden * leave * (1 - squashed * squashed)
            kind = gate_gradients.dtype.element_ty
            tl.store(gradient, (to_cell * candidate * entry * (1 - entry)).to(kind), mask=mask)
            tl.store(gradient + size, (to_cell * cell_before * forget * (1 - forget)).to(kind), mask=mask)
            tl.store(gradient + 2 * size, (to_cell * entry * (1 - candidate * candidate)).to(kind), mask=mask)
            tl.store(gradient + 3 * size, (to_hidden * squashed * leave * (1 - leave)).to(kind), mask=mask)
            to_cell = to_cell * forget
            # What does not wait for the others is read ahead of the wait.
            squashed = tanh(cell_before)
            gate -= batch * 4 * size
            gradient -= batch * 4 * size
            cell_at -= batch * size
            given_at -= batch * size
            ahead = mask & (step + 1 < time)
            cell_before = tl.load(cell_at, mask=ahead, other=0.0)
            given = tl.load(given_at, mask=ahead, other=0.0)
            entry_, forget_ = tl.load(gate, mask=ahead, other=0.0), tl.load(gate + size, mask=ahead, other=0.0)
            candidate_ = tl.load(gate + 2 * size, mask=ahead, other=0.0)
            exit_ = tl.load(gate + 3 * size, mask=ahead, other=0.0)
            _wait_for_all(counter, (step + 1) * tl.num_programs(0))
            to_hidden = tl.zeros((ROWS, UNITS), tl.float32)
            for start in tl.range(0, 4 * size, DEPTH, num_stages=STAGES):
                inside = start + inner < 4 * size
                others = tl.load(whole + start, mask=live[:, None] & inside[None, :], other=0.0, cache_modifier=".cg")
                wanted = inside[:, None] & own[None, :]
                to_hidden = tl.dot(others, tl.load(factor + start, mask=wanted, other=0.0), to_hidden)
            whole -= batch * 4 * size
        tl.store(first_hidden + place, to_hidden.to(first_hidden.dtype.element_ty), mask=mask)
        tl.store(first_cell + place, to_cell.to(first_cell.dtype.element_ty), mask=mask)
