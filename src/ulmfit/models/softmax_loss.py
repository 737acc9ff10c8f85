"""Cross entropy through a linear layer that never holds the logits of a whole batch in float32.

The gradient of the logits is made in the forward pass, chunk by chunk, and folded at once into the gradients of the
hidden vectors and of the weight; what is kept for the backward pass has the size of those two.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.compute import choose_dtype
from ulmfit.models.bias_column import COLUMNS, with_ones
from ulmfit.models.cpu_products import added, product_by, product_with, transpose_into, transposed
from ulmfit.models.drawn_softmax import drawn_cross_entropy, draws_serve
from ulmfit.models.jobs import Job, evenly, run_jobs
from ulmfit.models.softmax_kernel import losses_and_gradient, one_pass_serves

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**33}
MOST_THREADS = 4
"""on a CPU that have chunks of their own, as each holds one and the sum of a weight's gradient; more share the work"""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, drawn: bool) -> Tensor:
        with_hidden, with_weight, with_bias, *_ = ctx.needs_input_grad
        if drawn:
            threads = min(MOST_THREADS, torch.get_num_threads())
            found = drawn_cross_entropy(hidden, weight, bias, targets, threads=threads)
            total, *ctx.gradients = found
        else:
            kernel = _on_cpu if hidden.device.type == "cpu" else _on_gpu
            total, *ctx.gradients = kernel(hidden, weight, bias, targets, with_hidden, with_weight or with_bias)
        ctx.needs = with_weight, with_bias
        ctx.dtypes = weight.dtype, bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        hidden, weight, bias = ctx.gradients
        ctx.gradients = ()
        with_weight, with_bias = ctx.needs
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden is None else hidden.mul_(scale.to(hidden.dtype)),
            weight.mul_(scale).to(weight_dtype) if with_weight else None,
            bias.mul_(scale).to(bias_dtype) if with_bias else None,
            None,
            None,
        )


Gradients: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""summed loss, and the gradients of hidden, weight and bias, the last two in float32 at least"""


def _on_cpu(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, with_hidden: bool, with_weight: bool
) -> Gradients:
    """All products by row-major factors or such as are in order, and the bias's gradient with the weight's.

    With n threads each takes every nth chunk and has sums of its own, so they come out the same in every run.
    """
    (rows, size), classes = hidden.shape, len(weight)
    table = weight.to(hidden.dtype)
    to_logits, to_hidden = product_by(table, bias.to(hidden.dtype)), product_with(table)
    inputs = with_ones(hidden)
    hidden_gradient = torch.empty_like(hidden) if with_hidden else None
    threads = min(MOST_THREADS, torch.get_num_threads())
    chunks = evenly(rows, at_most=_rows_per_chunk(table), times=threads)
    shares = [chunks[first::threads] for first in range(min(threads, len(chunks)))]
    found: dict[int, tuple[Tensor, Tensor | None]] = {}

    def work(share: int) -> None:
        total, both = torch.zeros((), dtype=torch.float32), None
        for start, end in shares[share]:
            part = slice(start, end)
            losses, gradient = losses_and_gradient(to_logits(hidden[part]), targets[part])
            total += losses.sum()
            if hidden_gradient is not None:
                hidden_gradient[part] = to_hidden(gradient)
            if with_weight:
                both = added(both, transposed(inputs[part]) @ gradient)
            del gradient  # its memory serves the next chunk
        found[share] = total, both

    run_jobs([Job(functools.partial(work, share)) for share in range(len(shares))], workers=len(shares))
    total, both = torch.zeros((), dtype=torch.float32), None
    for share in range(len(shares)):
        loss, gradients = found[share]
        total += loss
        both = gradients if both is None or gradients is None else added(both, gradients)
    if not with_weight:
        return total, hidden_gradient, None, None
    wide = torch.promote_types(hidden.dtype, torch.float32)
    both = hidden.new_zeros(size + COLUMNS, classes) if both is None else both
    weight_gradient = transpose_into(torch.empty(classes, size, dtype=wide), both[:size])
    return total, hidden_gradient, weight_gradient, both[size].to(wide, copy=True)


def _on_gpu(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, with_hidden: bool, with_weight: bool
) -> Gradients:
    rows, classes = len(hidden), len(weight)
    table, offsets = weight.to(hidden.dtype), bias.to(hidden.dtype)
    hidden_gradient = torch.empty_like(hidden) if with_hidden else None
    weight_gradient = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if with_weight else None
    bias_gradient = torch.zeros(bias.shape, dtype=torch.float32, device=weight.device) if with_weight else None
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    step = _rows_per_chunk(table)
    buffer = hidden.new_empty(min(step, rows), classes)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        logits = torch.addmm(offsets, hidden[part], table.t(), out=buffer[: min(step, rows - start)])
        losses, gradient = losses_and_gradient(logits, targets[part])
        total += losses.sum()
        if hidden_gradient is not None:
            torch.mm(gradient, table, out=hidden_gradient[part])
        if weight_gradient is not None and bias_gradient is not None:
            # One pass less over the logits.
            both = gradient.t() @ with_ones(hidden[part])
            weight_gradient += both[:, :-COLUMNS]
            bias_gradient += both[:, -1]
    return total, hidden_gradient, weight_gradient, bias_gradient


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, drawn: bool = False
) -> Tensor:
    """Summed cross entropy of softmax(hidden @ weight.T + bias) against targets; a float32 scalar.

    Shapes: hidden (rows, size), weight (classes, size), bias (classes,), targets (rows,) of int64. What is multiplied
    has the dtype of `hidden`, or float32 where a CPU would multiply bfloat16 a number at a time; the gradients of
    weight and bias are summed in float32 and have their own dtypes, so master weights are best handed in as they are. A
    target of -100 is left out of the sum. Where `drawn`, gradients may be made of probabilities rounded at random, on a
    CPU in bfloat16 and with many classes (`softmax_draws`).
    """
    learning = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    drawn = drawn and learning and draws_serve(hidden, len(weight))
    if not drawn and _is_slow(hidden):
        hidden = hidden.float()
    if learning:
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, drawn)  # type: ignore[no-untyped-call]
        return loss
    table, offsets = weight.to(hidden.dtype), bias.to(hidden.dtype)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, hidden.shape[0], step := _rows_per_chunk(table)):
        part = slice(start, start + step)
        logits = functional.linear(hidden[part], table, offsets)
        if not torch.is_grad_enabled() and one_pass_serves(logits):
            total += losses_and_gradient(logits, targets[part])[0].sum()  # no copies in float32
        else:
            total += functional.cross_entropy(logits.float(), targets[part], reduction="sum", ignore_index=-100)
    return total


def _is_slow(hidden: Tensor) -> bool:
    return hidden.dtype == torch.bfloat16 and choose_dtype("auto", hidden.device) == torch.float32


def _rows_per_chunk(weight: Tensor) -> int:
    return max(1, CHUNK_BYTES[weight.device.type] // (weight.shape[0] * weight.element_size()))
