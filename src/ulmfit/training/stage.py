"""A stage of the recipe: phases of epochs, validation after each, checkpoints, early stopping, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.errors import CheckpointError, TrainingError
from ulmfit.training.checkpoint import Checkpoints, Saved
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.events import EpochEnded, Note, Progress, Report, StageStarted, silent
from ulmfit.training.laps import Lap, untimed
from ulmfit.training.loop import LossFunction, State, Step, fit
from ulmfit.training.optimizer import Groups, build_optimizer, load_optimizer_tensors, optimizer_tensors
from ulmfit.training.schedules import groups_of, schedule_of

PROGRESS_SECONDS = 0.5
SHARED_CLOCK_STEPS = 16
"""between two looks at the clock, where several processes must agree on when to save and so wait for each other"""
_REMEDY = "try a lower rate, a smaller gradient clip or --set run.precision=float32"


@dataclass(frozen=True, slots=True)
class Stage:
    """What differs between pretraining, tuning and classifying: the batches, the loss and the measure."""

    name: str
    model: nn.Module
    groups: Groups
    phases: tuple[Phase, ...]
    optimizer: OptimizerConfig
    batches: Callable[[int, int], Iterator[Any]]
    """(epoch counted over the stage, first step) -> that epoch's batches from that step on"""
    steps: Callable[[int], int]
    """how many batches that epoch has"""
    loss: LossFunction
    evaluate: Callable[[], dict[str, float]] | None = None
    """measures on the validation split, among them `monitor`; None where nothing was held out"""
    monitor: tuple[str, ...] = ("valid_loss",)
    """measures to make small, each a tie-breaker for the one before it"""
    patience: int | None = None
    seed: int = 0
    stacked: Mapping[str, int] = field(default_factory=dict)
    """of how many maps the matrices of a layer group are the stack; Muon alone asks"""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """settings and data that a checkpoint must share to be resumed, by name"""


@dataclass(slots=True)
class _Position:
    """Where a run stands; all of it goes into a checkpoint."""

    phase: int = 0
    epoch: int = 0
    """within the phase"""
    step: int = 0
    """within the epoch"""
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: list[float] | None = None
    """values of the monitored measures at the best epoch"""
    stale: int = 0
    """epochs since the best"""
    history: list[dict[str, Any]] = field(default_factory=list)


def run_stage(
    stage: Stage,
    *,
    folder: Path,
    resume: bool = False,
    checkpoint_seconds: float = 120.0,
    report: Report = silent,
    processes: Processes = ALONE,
    lap: Lap = untimed,
) -> list[dict[str, Any]]:
    """Train the stage's model in place and return one record an epoch; the best epoch's weights are kept.

    Checkpoints go to `folder` and are the caller's to clear when the result is saved. With `resume` the run goes on
    from the newest sound one. Raises CheckpointError where that belongs to other settings or data, TrainingError
    where the loss is no longer finite.

    Where several processes share the batches, rank 0 alone reads, writes and measures time, and the others do as it
    does. The state in a checkpoint is that of the whole batch, so a run may go on with another number of processes.
    """
    return _Run(stage, folder, checkpoint_seconds, report, processes, lap).run(resume=resume)


class _Run:
    def __init__(
        self,
        stage: Stage,
        folder: Path,
        checkpoint_seconds: float,
        report: Report,
        processes: Processes,
        lap: Lap,
    ) -> None:
        self.stage, self.report, self.processes, self.lap = stage, report, processes, lap
        self.latest, self.best = Checkpoints(folder / "latest"), Checkpoints(folder / "best")
        self.checkpoint_seconds = checkpoint_seconds
        self.position = _Position()
        for phase in stage.phases:  # a group that is not there is refused now, not hours later
            groups_of(phase, count=len(stage.groups))
        self.clock = self.saved = time.monotonic()
        self.sizes = [stage.steps(epoch) for epoch in range(sum(phase.epochs for phase in stage.phases))]

    def run(self, *, resume: bool) -> list[dict[str, Any]]:
        stage, at = self.stage, self.position
        devices = sorted({p.device for p in stage.model.parameters() if p.is_cuda}, key=str)
        with torch.random.fork_rng(devices=devices):
            carried, optimizer_state = self._resume() if resume else self._fresh()
            self.processes.copy_model(stage.model)
            at = self.position
            self.report(StageStarted(stage.name, sum(self.sizes), self._steps_done(), tuple(at.history)))
            while at.phase < len(stage.phases) and not self._stopped():
                phase = stage.phases[at.phase]
                optimizer = build_optimizer(
                    stage.groups, phase, stage.optimizer, stacked=stage.stacked, processes=self.processes
                )
                if optimizer_state:
                    load_optimizer_tensors(optimizer, optimizer_state)
                while at.epoch < phase.epochs and not self._stopped():
                    self._epoch(phase, optimizer, carried)
                    carried, optimizer_state = None, {}
                at.phase, at.epoch = at.phase + 1, 0
            if self._stopped():
                self.report(Note(f"{stage.name}: no better for {at.stale} epochs, stopped early"))
            self._restore_best()
        for parameter in stage.model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        return at.history

    def _stopped(self) -> bool:
        return self.stage.patience is not None and self.position.stale >= self.stage.patience

    def _epoch(self, phase: Phase, optimizer: Optimizer, state: State) -> None:
        """The rest of the current epoch, then validation and a checkpoint."""
        stage, at = self.stage, self.position
        first = self._epoch_number(at.phase)
        sizes = self.sizes[first : first + phase.epochs]
        before = sum(sizes[: at.epoch])
        stage.model.train()
        steps = fit(
            stage.batches(first + at.epoch, at.step),
            loss=stage.loss,
            optimizer=optimizer,
            schedule=schedule_of(phase),
            total=sum(sizes),
            seed=(stage.seed, at.phase),
            start=before + at.step,
            state=state,
            gradient_clip=stage.optimizer.gradient_clip,
            processes=self.processes,
            lap=self.lap,
        )
        unread: list[Step] = []
        shown = self.clock = time.monotonic()
        tokens = 0
        self.lap("preparing")
        for step in steps:
            at.step += 1
            tokens += step.tokens
            unread.append(replace(step, state=None))
            now = time.monotonic()
            if now - shown >= PROGRESS_SECONDS:
                mean = self._collect(unread, phase)
                rate = self.processes.size * tokens / (now - self.clock)
                self.report(Progress(stage.name, self._steps_done(), mean, rate))
                shown = now
            self.lap("reporting")
            if self._looks_at_the_clock() and self._checkpoint_is_due():
                self._collect(unread, phase)
                self._check_weights()
                self._save(optimizer, step.state)
                self.lap("checkpoints")
        self._collect(unread, phase)
        self._check_weights()
        self.lap("reporting")
        self._end_epoch(phase, optimizer, tokens)

    def _collect(self, unread: list[Step], phase: Phase) -> float:
        """Read the losses since the last look, which waits for the device; refuse one that is not finite."""
        if not self.processes.leads:  # rank 0 sees the same, and ends the run
            unread.clear()
        if not unread:
            return self.position.loss_sum / max(1, self.position.step)
        losses = torch.stack([step.loss for step in unread]).double().cpu()
        # One by one: the sum must not depend on how many were read together, or a resumed run would differ.
        for step, loss in zip(unread, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{self.stage.name}: the loss is not finite at step {step.number + 1} of phase "
                    f"{self.position.phase + 1}, where the peak rate {phase.rate:g} stood at "
                    f"{phase.rate * step.share:g}; {_REMEDY}"
                )
            self.position.loss_sum += loss
        unread.clear()
        return float(losses.mean())

    def _check_weights(self) -> None:
        """Refuse weights that are not finite: a gradient can overflow under a finite loss, and must not be saved."""
        tensors = self.stage.model.state_dict().values()
        if not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()):
            raise TrainingError(f"{self.stage.name}: weights are not finite after step {self._steps_done()}; {_REMEDY}")

    def _end_epoch(self, phase: Phase, optimizer: Optimizer, tokens: int) -> None:
        stage, at = self.stage, self.position
        tokens = self.processes.total(tokens)
        seconds = time.monotonic() - self.clock
        measures = self._evaluate()
        self.lap("evaluation")
        at.seconds += time.monotonic() - self.clock
        # Agreed on, so that all stop early or none, and after the same epoch.
        record = self.processes.agree(
            {
                "stage": stage.name,
                "phase": at.phase + 1,
                "epoch": self._epoch_number(at.phase) + at.epoch + 1,
                "rate": phase.rate,
                "train_loss": at.loss_sum / max(1, at.step),
                **measures,
                "tokens_per_second": round(tokens / max(seconds, 1e-9)),
                "seconds": round(at.seconds, 2),
            }
        )
        at.history.append(record)
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        if measures:
            values = [record[name] for name in stage.monitor]
            better = not any(map(math.isnan, values)) and (at.best is None or values < at.best)
            at.stale = 0 if better else at.stale + 1
            if better:
                at.best = values
                if self.processes.leads:
                    self.best.save(_prefixed("model", stage.model.state_dict()), {"history": len(at.history)})
        # Short epochs would be spent on writing half a gigabyte each; what the last one made is always kept.
        last = self._epoch_number(at.phase) + at.epoch == len(self.sizes) or self._stopped()
        if last or self._checkpoint_is_due():
            self._save(optimizer, None)
        self.lap("checkpoints")
        self.report(EpochEnded(stage.name, record))

    def _looks_at_the_clock(self) -> bool:
        return self.processes.size == 1 or self.position.step % SHARED_CLOCK_STEPS == 0

    def _checkpoint_is_due(self) -> bool:
        return bool(self.processes.agree(time.monotonic() - self.saved >= self.checkpoint_seconds))

    def _evaluate(self) -> dict[str, float]:
        if self.stage.evaluate is None:
            return {}
        self.stage.model.eval()
        with torch.no_grad():
            return self.stage.evaluate()

    def _save(self, optimizer: Optimizer, state: State) -> None:
        """All that the rest of the run depends on; at an epoch's end neither state nor, at a phase's, the optimizer."""
        tensors = _prefixed("model", self.stage.model.state_dict())
        if self.position.epoch < self.stage.phases[self.position.phase].epochs:
            tensors |= _prefixed("optimizer", optimizer_tensors(optimizer))
        tensors |= _prefixed("state", {str(index): self._whole(tensor) for index, tensor in enumerate(state or ())})
        if self.processes.leads:
            self.latest.save(tensors, {"position": asdict(self.position), "identity": dict(self.stage.identity)})
        self.saved = time.monotonic()

    def _whole(self, state: torch.Tensor) -> torch.Tensor:
        """The state of the whole batch, whose sequences are in the second dimension, from each process's share."""
        if self.processes.size == 1:
            return state
        total = self.processes.total(state.shape[1])
        return self.processes.gather(state.transpose(0, 1).contiguous(), total).transpose(0, 1)

    def _fresh(self) -> tuple[State, dict[str, torch.Tensor]]:
        if self.processes.leads:
            self.latest.clear()
            self.best.clear()
        return None, {}

    def _load(self, checkpoints: Checkpoints) -> Saved | None:
        """What rank 0 finds, in every process: files may reach another machine late."""
        with self.processes.leader_first():
            saved = checkpoints.load() if self.processes.leads else None
        facts = self.processes.agree(None if saved is None else saved.facts)
        if facts is None:
            return None
        tensors = self.processes.copy_tensors({} if saved is None else saved.tensors)
        return Saved(tensors, facts, [] if saved is None else saved.passed_over)

    def _resume(self) -> tuple[State, dict[str, torch.Tensor]]:
        saved = self._load(self.latest)
        if saved is None:
            return self._fresh()
        for problem in saved.passed_over:
            self.report(Note(f"{self.stage.name}: {problem}; going on from the one before it"))
        # As JSON, where a tuple is a list.
        then, now = saved.facts["identity"], json.loads(json.dumps(dict(self.stage.identity)))
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                raise CheckpointError(
                    f"{self.latest.folder}: cannot resume, {name} was {then.get(name)!r} and is now "
                    f"{now.get(name)!r}; use the same settings and data, or another --out"
                )
        self.position = _Position(**saved.facts["position"])
        self.stage.model.load_state_dict(_without("model", saved.tensors))
        phase = self.stage.phases[self.position.phase]
        if self.position.epoch >= phase.epochs:
            self.position.phase, self.position.epoch = self.position.phase + 1, 0
        device = next(self.stage.model.parameters()).device
        state = _without("state", saved.tensors)
        whole = [state[str(index)] for index in range(len(state))]
        carried = tuple(tensor[:, self.processes.share(tensor.shape[1])].contiguous().to(device) for tensor in whole)
        return carried or None, _without("optimizer", saved.tensors)

    def _restore_best(self) -> None:
        if self.stage.evaluate is None:
            return
        best = self._load(self.best)
        if best is not None:
            for problem in best.passed_over:
                self.report(Note(f"{self.stage.name}: {problem}; keeping the best epoch before it"))
            self.stage.model.load_state_dict(_without("model", best.tensors))

    def _epoch_number(self, phase: int) -> int:
        """Epochs of the stage before that phase."""
        return sum(earlier.epochs for earlier in self.stage.phases[:phase])

    def _steps_done(self) -> int:
        at = self.position
        return sum(self.sizes[: self._epoch_number(at.phase) + at.epoch]) + at.step


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
