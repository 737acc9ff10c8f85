"""Muon: momentum made orthogonal, so that every direction of a weight matrix moves by the same amount.

Jordan et al. 2024 for the iteration, Liu et al. 2025 (arXiv 2502.16982) for the scale under which AdamW's rates serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.rowwise import RowwiseAdam

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAM_RMS = 0.2
"""what the entries of AdamW's update are in size, as Liu et al. measured"""


def orthogonalise(matrices: Tensor) -> Tensor:
    """(count, rows, columns) -> U V^T of each matrix's singular value decomposition U S V^T, in bfloat16.

    A quintic Newton-Schulz iteration brings all singular values near 1, between .7 and 1.2, by products alone.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    first, third, fifth = _COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = wide @ wide.mT
        # Sums ride in the products: by themselves they took a quarter of the iteration's time on an H100.
        square = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        wide = torch.baddbmm(wide, square, wide, beta=first)
    result: Tensor = wide.mT if tall else wide
    return result


class Muon(RowwiseAdam):
    """AdamW, but parameters of groups with `stacked` > 0 are that many matrices one above the other, and learn by Muon.

    An LSTM's weight stacks its four gates; each is a map of its own and is made orthogonal by itself. Lookup tables,
    biases and heads learn by AdamW, at rates of the same meaning. Several processes, which have the same gradients,
    share the matrices out.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, processes: Processes = ALONE, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.processes = processes

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; gradients of stacked matrices are used up."""
        for (rows, columns), moving in self._matrices().items():
            self._move(moving, rows, columns)
        loss: float | None = super().step(closure)
        return loss

    def _matrices(self) -> dict[tuple[int, int], list[tuple[Tensor, Mapping[str, Any]]]]:
        """Stacked parameters that have a gradient, with their groups, by the shape of one matrix.

        Equal ones go through the products together.
        """
        gathered: dict[tuple[int, int], list[tuple[Tensor, Mapping[str, Any]]]] = {}
        for entry in self.param_groups:
            for parameter in entry["params"] if entry["stacked"] else ():
                if parameter.grad is not None:
                    shape = (parameter.shape[0] // entry["stacked"], parameter.shape[1])
                    gathered.setdefault(shape, []).append((parameter, entry))
        return gathered

    def _move(self, moving: list[tuple[Tensor, Mapping[str, Any]]], rows: int, columns: int) -> None:
        gradients, momenta = [], []
        for parameter, _ in moving:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:  # Adam's own loading looks for a step in every state
                state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(parameter)
            state["step"] += 1
            momenta.append(state["momentum"])
            gradients.append(parameter.grad)
            parameter.grad = None
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's look
        moved = self._orthogonalised(torch.cat(ahead).view(-1, rows, columns)).reshape(-1, columns)
        scale = _ADAM_RMS * math.sqrt(max(rows, columns))
        updates = torch.split(moved, [len(parameter) for parameter, _ in moving])
        for (parameter, entry), update in zip(moving, updates, strict=True):
            parameter.mul_(1 - entry["lr"] * entry["weight_decay"])
            parameter.add_(update, alpha=-entry["lr"] * scale)

    def _orthogonalised(self, matrices: Tensor) -> Tensor:
        own = orthogonalise(matrices[self.processes.share(len(matrices))])
        return self.processes.gather(own, len(matrices))
