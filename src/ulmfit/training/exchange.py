"""The sum of every process's gradients, under way while the backward pass still makes the others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ulmfit.training.distributed import Processes

SMALL = 2**16
"""entries up to which tensors travel together, as each message has a cost of its own"""


class GradientExchange:
    """Replaces the gradients of some parameters by their sums over all processes, step after step.

    A sum begins as soon as the gradient is made. All processes must begin theirs in one order: that in which the first
    step of rank 0 made them. Inside of `with` alone; where there is one process nothing is done.
    """

    def __init__(self, processes: Processes, parameters: Iterable[Tensor]) -> None:
        self._processes = processes
        parameters = list(parameters) if processes.size > 1 else []
        self._large = [parameter for parameter in parameters if parameter.numel() > SMALL]
        self._small = [parameter for parameter in parameters if parameter.numel() <= SMALL]
        self._order: list[int] | None = None
        self._made: list[int] = []
        self._under_way: list[Any] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> GradientExchange:
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._is_made, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._large)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def finish(self, *others: Tensor) -> None:
        """After the backward pass: wait for all sums, and for those of a few small tensors beside.

        A gradient that this process's share of the batch did not reach counts as zero; a GPU is not waited for.
        """
        if self._processes.size == 1:
            return
        if self._order is None:
            rest = [index for index in range(len(self._large)) if index not in self._made]
            self._order = self._processes.agree([*self._made, *rest])
        self._begin(self._order[len(self._under_way) :])
        small = [*map(_gradient, self._small), *others]
        alone = [tensor for tensor in small if tensor.is_sparse]
        dense = [tensor for tensor in small if not tensor.is_sparse]
        together = torch.cat([tensor.flatten() for tensor in dense])
        self._under_way += map(self._processes.begin_sum, [*alone, together])
        self._processes.finish_sums(self._under_way)
        parts = torch.split(together, [tensor.numel() for tensor in dense])
        for tensor, part in zip(dense, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
        self._made, self._under_way = [], []

    def _is_made(self, index: int, _: Tensor) -> None:
        self._made.append(index)
        waiting = [] if self._order is None else self._order[len(self._under_way) :]
        self._begin(itertools.takewhile(self._made.__contains__, waiting))

    def _begin(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._under_way.append(self._processes.begin_sum(_gradient(self._large[index])))


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
