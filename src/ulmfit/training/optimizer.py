"""Optimizers over layer groups: which groups learn, each at its own rate, and of a large table only the rows in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training.schedules import discriminative_rates, groups_of

Groups = Mapping[str, Sequence[Tensor]]
"""Layer groups by name, from the lowest to the last."""


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


def build_optimizer(groups: Groups, phase: Phase, config: OptimizerConfig) -> Optimizer:
    """Unfreeze the phase's groups, freeze the rest, and give each its discriminative peak rate.

    Rates fall by the factor from group to group of the whole model, whether or not the ones between learn. Weight
    decay acts on matrices alone: biases and BatchNorm's scales are few and are not what overfits.
    """
    learning = groups_of(phase, count=len(groups))
    peaks = discriminative_rates(phase.rate, groups=len(groups), factor=phase.discriminative)
    entries = []
    for index, parameters in enumerate(groups.values()):
        for parameter in parameters:
            parameter.requires_grad_(index in learning)
            parameter.grad = None
        if index in learning:
            for decay, kept in (
                (config.weight_decay, [parameter for parameter in parameters if parameter.dim() > 1]),
                (0.0, [parameter for parameter in parameters if parameter.dim() <= 1]),
            ):
                if kept:
                    entries.append({"params": kept, "weight_decay": decay, "lr": peaks[index], "peak": peaks[index]})
    return RowwiseAdam(
        entries,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        decoupled_weight_decay=config.name == "adamw",
        fused=True,
    )


def set_rates(optimizer: Optimizer, share: float) -> None:
    """Every group's rate as a share of its peak."""
    for entry in optimizer.param_groups:
        entry["lr"] = entry["peak"] * share


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale all gradients down together so that their norm is at most `limit`; the rows of sparse ones count too."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # what a row gathered from several places is one gradient
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    if not gradients:
        return
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat names, `parameter index.key`, for a checkpoint."""
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"{index}.{key}"] = value
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the optimizer must have been built for the same phase."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
