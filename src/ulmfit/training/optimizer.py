"""Optimizers over layer groups: which groups learn, each at its own rate, and of a large table only the rows in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.muon import Muon
from ulmfit.training.rowwise import RowwiseAdam
from ulmfit.training.schedules import discriminative_rates, groups_of

Groups = Mapping[str, Sequence[Tensor]]
"""Layer groups by name, from the lowest to the last."""


def build_optimizer(
    groups: Groups,
    phase: Phase,
    config: OptimizerConfig,
    *,
    stacked: Mapping[str, int] | None = None,
    processes: Processes = ALONE,
) -> Optimizer:
    """Unfreeze the phase's groups, freeze the rest, and give each its discriminative peak rate.

    Rates fall by the factor from group to group of the whole model, whether or not the ones between learn. Weight
    decay acts on matrices alone: biases and BatchNorm's scales are few and are not what overfits. `stacked` tells Muon
    of how many maps the matrices of a group are the stack, and it shares them out over the processes.
    """
    learning = groups_of(phase, count=len(groups))
    peaks = discriminative_rates(phase.rate, groups=len(groups), factor=phase.discriminative)
    entries = []
    for index, (name, parameters) in enumerate(groups.items()):
        for parameter in parameters:
            parameter.requires_grad_(index in learning)
            parameter.grad = None
        if index in learning:
            maps = (stacked or {}).get(name, 0)
            matrices = [parameter for parameter in parameters if parameter.dim() > 1]
            vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
            for members, maps_in, decay in ((matrices, maps, config.weight_decay), (vectors, 0, 0.0)):
                if members:
                    apart = config.name == "muon" and not maps_in
                    peak = peaks[index] * (config.adam_rate if apart else 1.0)
                    shared = {"lr": peak, "peak": peak, "stacked": maps_in}
                    entries.append({"params": members, "weight_decay": decay, **shared})
    settings: dict[str, Any] = {
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "decoupled_weight_decay": config.name != "adam",
        "fused": True,
    }
    if config.name == "muon":
        return Muon(entries, processes=processes, **settings)
    return RowwiseAdam(entries, **settings)


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
