"""The only training loop: `fit` yields each step, the caller logs, saves and stops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.exchange import GradientExchange
from ulmfit.training.laps import Lap, untimed
from ulmfit.training.optimizer import clip_gradients, set_rates

State: TypeAlias = tuple[Tensor, ...] | None


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What a loss function makes of a batch."""

    total: Tensor
    """differentiated; where several processes share a batch, this one's part of its loss"""
    logged: Tensor
    """shown and averaged over an epoch; detached; this process's part of it"""
    state: State
    """given to the next batch; detached"""
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, done."""

    number: int
    """from 0, counted over the whole phase"""
    loss: Tensor
    state: State
    tokens: int
    share: float
    """of the peak learning rate"""


LossFunction: TypeAlias = Callable[[Any, State], StepLoss]


def fit(
    batches: Iterable[Any],
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    schedule: Callable[[float], float],
    total: int,
    seed: tuple[int, ...],
    start: int = 0,
    state: State = None,
    gradient_clip: float | None = None,
    processes: Processes = ALONE,
    lap: Lap = untimed,
) -> Iterator[Step]:
    """Train on batches, one step each, of the `total` over which the schedule runs; `start` is the first one's number.

    Each step's random numbers come from (seed, step number, rank) alone, so a resumed run draws what an unbroken one
    draws. Nothing here waits for the device.
    """
    parameters = [parameter for entry in optimizer.param_groups for parameter in entry["params"]]
    with GradientExchange(processes, parameters) as exchange:
        for number, batch in enumerate(batches, start):
            lap("data")
            _seed(int(np.random.SeedSequence((*seed, number, processes.rank)).generate_state(1)[0]))
            share = schedule(number / total)
            set_rates(optimizer, share)
            optimizer.zero_grad(set_to_none=True)
            result = loss(batch, state)
            lap("forward")
            result.total.backward()  # type: ignore[no-untyped-call]
            lap("backward")
            if processes.size > 1:
                exchange.finish(result.logged)
                lap("exchange")
            if gradient_clip is not None:
                clip_gradients(parameters, gradient_clip)
            optimizer.step()
            lap("optimizer")
            state = result.state
            yield Step(number, result.logged, state, result.tokens, share)


def _seed(seed: int) -> None:
    """Seed the generators of the CPU and of GPUs in use, as `torch.manual_seed` does.

    That one also leaves word, with the stack as text, for accelerators that are not there: .5 to 1.5 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
