"""Adam that moves, of a large table, only the rows that a batch reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam


class RowwiseAdam(Adam):
    """Adam or AdamW that gives each row of a table a clock of its own where the table's gradient is sparse.

    A row that no token of the batch names has no gradient there, and stands still: its weights, moments and decay move
    as if the steps that touch it were all there are. So a step costs what the batch reads and not what the table
    holds. Parameters with dense gradients learn as ever, all in one fused call.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; sparse gradients are used up."""
        for entry in self.param_groups:
            for parameter in entry["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._move_rows(parameter, entry)
                    parameter.grad = None
        loss: float | None = super().step(closure)
        return loss

    def _move_rows(self, parameter: Tensor, entry: Mapping[str, Any]) -> None:
        """Kingma & Ba 2015, algorithm 1, on the rows that the gradient names; decay as in Loshchilov & Hutter 2019."""
        assert parameter.grad is not None
        coalesced = parameter.grad.coalesce()
        rows, gradient = coalesced.indices()[0], coalesced.values()
        state = self.state[parameter]
        if not state:
            state["step"] = parameter.new_zeros(len(parameter), 1)  # each row's own
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        (beta1, beta2), rate, decay = entry["betas"], entry["lr"], entry["weight_decay"]
        weight = parameter[rows]
        if entry["decoupled_weight_decay"]:
            weight.mul_(1 - rate * decay)
        elif decay:
            gradient = gradient.add(weight, alpha=decay)
        steps = state["step"][rows].add_(1)
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for table, moved in (("step", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[table].index_copy_(0, rows, moved)
        mean.div_(1 - beta1**steps)
        square.div_(1 - beta2**steps).sqrt_().add_(entry["eps"])
        parameter.index_copy_(0, rows, weight.addcdiv_(mean, square, value=-rate))
