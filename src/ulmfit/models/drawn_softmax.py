"""Cross entropy on a CPU whose gradients are sums over a few hundred classes a row, drawn by `softmax_draws`."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.int8_rows import INT8_PEAK
from ulmfit.models.cpu_products import LANES, as_integers
from ulmfit.models.int8_products import bound_of, by_row, codes_of, product_by_integers, products_serve
from ulmfit.models.jobs import Job, evenly, run_jobs

ROWS = 256
"""of logits at once: more no longer fit the cache, fewer meet the whole table more often"""
LEAST_CLASSES = 4096
"""from which on drawing pays: of fewer the dense products take as long as the rest"""
_SHARES = 8
"""jobs that the classes are dealt out to"""
_A_CLASS = 4
"""of writing a class's gradient, as many rows added"""


def draws_serve(hidden: Tensor, classes: int) -> bool:
    """Whether gradients for hidden vectors (rows, size) and so many classes can be drawn, and it pays."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == torch.bfloat16
        and hidden.shape[1] % LANES == 0
        and classes >= LEAST_CLASSES
        and products_serve()
    )


def drawn_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, threads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss, and the gradients of hidden, weight and bias in float32.

    Logits are made in int8, hidden vectors with one scale and the weight with one for each class; gradients are right
    on average. What is drawn comes from PyTorch's generator, the same on any number of threads.
    """
    from ulmfit.models.softmax_draws import MOST, STEPS, SUMS, draw_rows, order_by_class, weighted_sums

    (rows, size), width = hidden.shape, len(weight)
    table = weight.to(hidden.dtype)
    integers, scales = by_row(table)
    to_logits = product_by_integers(integers, scales, bias.float())
    bound = bound_of(hidden)
    codes = codes_of(hidden, INT8_PEAK / bound)
    losses, begin, aims = np.empty(rows, np.float32), torch.rand(rows, SUMS).numpy(), targets.numpy()
    classes, amounts = np.empty((rows, MOST), np.int32), np.empty((rows, MOST), np.int32)
    counts, first = np.empty(rows, np.int64), np.arange(rows) * MOST
    of_hidden = torch.empty(rows, size)
    of_table, of_rows = as_integers(table), as_integers(hidden.contiguous())

    def draw(start: int, end: int) -> None:
        part = slice(start, end)
        logits, powers = as_integers(to_logits(codes[part], bound / INT8_PEAK)), np.empty(width, np.float32)
        draw_rows(logits, aims[part], losses[part], begin[part], classes[part], amounts[part], counts[part], powers)
        ends = first[part] + counts[part]
        weighted_sums(first[part], ends, classes.ravel(), amounts.ravel(), of_table, of_hidden.numpy()[part])

    chunks = evenly(rows, at_most=ROWS, times=threads)
    run_jobs([Job(functools.partial(draw, *chunk)) for chunk in chunks], workers=threads)

    total = int(counts.sum())
    starts, of_bias = np.empty(width + 1, np.int64), np.empty(width, np.int64)
    rows_of, amounts_of = np.empty(total, np.int32), np.empty(total, np.int32)
    order_by_class(classes, amounts, counts, starts, rows_of, amounts_of, of_bias)
    of_weight = torch.empty(width, size)

    def add_up(start: int, end: int) -> None:
        out = of_weight.numpy()[start:end]
        weighted_sums(starts[start:end], starts[start + 1 : end + 1], rows_of, amounts_of, of_rows, out)

    edges = _edges(starts)
    run_jobs([Job(functools.partial(add_up, *pair)) for pair in itertools.pairwise(edges)], workers=threads)
    loss = torch.from_numpy(losses).sum()
    return loss, of_hidden.to(hidden.dtype), of_weight, torch.from_numpy(of_bias).float().div_(STEPS)


def _edges(starts: NDArray[np.int64]) -> list[int]:
    """Of classes that jobs take, of about as much work each."""
    work = starts + _A_CLASS * np.arange(len(starts))
    wanted = np.linspace(0, work[-1], _SHARES + 1)[1:-1]
    return [0, *np.searchsorted(work, wanted).tolist(), len(starts) - 1]
