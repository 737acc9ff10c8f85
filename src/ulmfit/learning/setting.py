"""What the stages of one run share: where it computes, where it writes, whom it tells, and what it becomes known by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.compute import choose_device, choose_dtype, hardware
from ulmfit.config import Config, RunConfig
from ulmfit.models.encoder import LayerGroup
from ulmfit.run_folder import RunFolder
from ulmfit.text.corpus import Corpus
from ulmfit.text.sources import source_files
from ulmfit.training.events import EpochEnded, Event, Report, StageEnded
from ulmfit.training.stage import Stage, run_stage


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stages of one run share."""

    run: RunConfig
    folder: RunFolder
    device: torch.device
    dtype: torch.dtype
    resume: bool
    report: Report
    history: list[dict[str, Any]]
    """every epoch of every stage so far: what metrics.jsonl holds"""

    @classmethod
    def of(cls, folder: RunFolder, run: RunConfig, *, resume: bool, report: Report) -> Setting:
        device = choose_device(run.device)
        return cls(run, folder, device, choose_dtype(run.precision, device), resume, report, [])

    def learn(self, stage: Stage, checkpoints: Path) -> None:
        """Run a stage; its epochs join the run's metrics as they end."""
        before = len(self.history)
        clock = time.monotonic()

        def note(event: Event) -> None:
            if isinstance(event, EpochEnded):
                self.history.append(event.record)
                self.folder.write_metrics(self.history)
            self.report(event)

        records = run_stage(
            stage,
            folder=checkpoints,
            resume=self.resume,
            checkpoint_seconds=self.run.checkpoint_minutes * 60,
            report=note,
        )
        self.history[before:] = records
        self.folder.write_metrics(self.history)
        self.report(StageEnded(stage.name, time.monotonic() - clock))


def on_device(device: torch.device, array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor on the device, without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def groups_by_name(layer_groups: Sequence[LayerGroup]) -> dict[str, Sequence[Tensor]]:
    return {group.name: group.parameters for group in layer_groups}


def describe_inputs(**given: Any) -> dict[str, Any]:
    """What a run reads, by size and not by path, so that a run may be resumed from elsewhere."""
    inputs: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            files = source_files(value, labelled=name == "labelled") if value else []
            inputs[name] = [[file.name, file.stat().st_size] for file in files]
        else:
            inputs[name] = str(value)
    return inputs


def identity(setting: Setting, config: Config, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "settings": config.model_dump_json(),
        "corpus": corpus.fingerprint,
        "compute dtype": str(setting.dtype),
    }


def run_facts(setting: Setting, stage: str, *, base: str | None, corpus: Corpus, **data: Any) -> dict[str, Any]:
    """What the model card and later stages need to know of the run."""
    last = {record["stage"]: record for record in setting.history}
    results = {
        name: {key: record[key] for key in ("perplexity", "accuracy", "valid_loss", "train_loss") if key in record}
        for name, record in last.items()
    }
    return {
        "stage": stage,
        "base": base,
        "data": {"documents": len(corpus), **data},
        "training": {"seed": setting.run.seed, "compute dtype": str(setting.dtype).removeprefix("torch.")},
        "results": results,
        "hardware": hardware(setting.device),
        "history": list(setting.history),
    }
