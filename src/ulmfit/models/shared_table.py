"""Rows of a table, looked up window after window, whose gradient is put together once a step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SharedTable:
    """A lookup table (rows, size) whose gradient is sparse: the rows that a step's windows looked up, each as often.

    The same as `functional.embedding(..., sparse=True)`; but autograd would add one window's sparse gradient to those
    of the windows before it, and so copy what has come together at every window anew.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.gradients: list[tuple[Tensor, Tensor]] = []
        """ids and the gradients of their rows"""
        self.link = _Gather.apply(self.gradients, weight)  # type: ignore[no-untyped-call]
        """() zero, by which autograd knows which windows the gradient waits for"""

    def rows(self, ids: Tensor) -> Tensor:
        """(...) -> (..., size)."""
        found: Tensor = _Rows.apply(ids, self.weight, self.link, self.gradients)  # type: ignore[no-untyped-call]
        return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: list[tuple[Tensor, Tensor]], weight: Tensor) -> Tensor:
        ctx.gradients, ctx.shape = gradients, weight.shape
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        ids, rows = zip(*ctx.gradients, strict=True)
        ctx.gradients.clear()
        with warnings.catch_warnings():  # PyTorch 2.11 warns, once, that it leaves unchecked what is right as made here
            warnings.filterwarnings("ignore", message="Sparse invariant checks")
            gradient = torch.sparse_coo_tensor(
                torch.cat(ids).unsqueeze(0), torch.cat(rows), ctx.shape, check_invariants=False
            )
        return None, gradient


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, link: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.gradients = gradients
        # Of the table itself autograd must not know: its gradient goes by way of the link.
        return weight.detach().index_select(0, ids.flatten()).view(*ids.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        if not ctx.needs_input_grad[2]:
            return None, None, None, None
        ctx.gradients.append((ids.flatten(), gradients[0].flatten(0, -2)))
        return None, None, gradients[0].new_zeros(()), None
