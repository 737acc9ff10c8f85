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
        wide = first * wide + (third * square + fifth * (square @ square)) @ wide
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
        for entry in self.param_groups:
            if entry["stacked"]:
                self._move_matrices(entry)
        loss: float | None = super().step(closure)
        return loss

    def _move_matrices(self, entry: Mapping[str, Any]) -> None:
        for shape, parameters in _by_shape(entry["params"]).items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:  # Adam's own loading looks for a step in every state
                    state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(parameter)
                state["step"] += 1
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                updates.append(parameter.grad.lerp(state["momentum"], MOMENTUM))  # Nesterov's look ahead
                parameter.grad = None
            rows, columns = shape[0] // entry["stacked"], shape[1]
            moved = self._orthogonalised(torch.cat(updates).view(-1, rows, columns)).reshape(-1, *shape)
            scale = _ADAM_RMS * math.sqrt(max(rows, columns))
            for parameter, update in zip(parameters, moved, strict=True):
                parameter.mul_(1 - entry["lr"] * entry["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-entry["lr"] * scale)

    def _orthogonalised(self, matrices: Tensor) -> Tensor:
        own = orthogonalise(matrices[self.processes.share(len(matrices))])
        return self.processes.gather(own, len(matrices))


def _by_shape(parameters: Iterable[Any]) -> dict[tuple[int, int], list[Any]]:
    """Those that have a gradient, gathered by shape: equal ones go through the products together."""
    gathered: dict[tuple[int, int], list[Any]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            gathered.setdefault(tuple(parameter.shape), []).append(parameter)
    return gathered
