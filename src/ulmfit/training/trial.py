"""What a step of a stage costs on this machine, found by making some."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

from ulmfit.config import Phase
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.loop import fit
from ulmfit.training.optimizer import build_optimizer
from ulmfit.training.schedules import schedule_of
from ulmfit.training.stage import Stage

MOST_STEPS = 32
"""more tell nothing new"""
_RATE = 1e-6
"""small, so that weights stay what they are; a step takes as long with any"""


def seconds_a_token(
    stage: Stage, *, groups: tuple[int, ...] | None, seconds: float, processes: Processes = ALONE
) -> float:
    """Of steps of the stage in which these layer groups learn (all if None), made for so many seconds at most.

    The first step, in which a machine gets ready, is not counted. The model is trained in place: give a copy. All
    processes of a run make the same steps and get the same answer.
    """
    phase = Phase(groups=groups, rate=_RATE, schedule="constant")
    optimizer = build_optimizer(stage.groups, phase, stage.optimizer, stacked=stage.stacked, processes=processes)
    stage.model.train()
    tokens, spent, began = 0, 0.0, None
    with closing(_without_end(stage)) as batches:
        for step in fit(
            batches,
            loss=stage.loss,
            optimizer=optimizer,
            schedule=schedule_of(phase),
            total=1,
            seed=(stage.seed,),
            gradient_clip=stage.optimizer.gradient_clip,
            processes=processes,
        ):
            float(step.loss)  # waits for a GPU
            if began is None:
                began = time.monotonic()
                continue
            tokens += step.tokens
            spent = time.monotonic() - began
            if processes.agree(step.number == MOST_STEPS or spent >= seconds):
                break
    return float(processes.agree(spent / max(1, processes.total(tokens))))


def _without_end(stage: Stage) -> Generator[Any, None, None]:
    """The stage's batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from stage.batches(epoch, 0)
        epoch += 1
