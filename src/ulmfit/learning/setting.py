"""What the stages of one run share: where it computes, where it writes, whom it tells, and what it becomes known by."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import choose_dtype, hardware
from ulmfit.config import ClassifyConfig, Config, PretrainConfig, RunConfig, TrainConfig, TuneConfig
from ulmfit.curves import CURVE, can_draw, draw_perplexity
from ulmfit.heap import memory_kept
from ulmfit.models.encoder import LayerGroup
from ulmfit.models.int8_products import choose_learning_dtype
from ulmfit.run_folder import PROFILE, RunFolder, open_run
from ulmfit.text.corpus import Corpus, build_corpus
from ulmfit.text.parts import locked
from ulmfit.text.sources import source_files
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import Processes, joined
from ulmfit.training.events import EpochEnded, Event, Note, Report, StageEnded, StageStarted, silent
from ulmfit.training.laps import Stopwatch, untimed
from ulmfit.training.stage import Stage, run_stage

AnyBundle = TypeVar("AnyBundle", LanguageModelBundle, ClassifierBundle)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stages of one run share."""

    run: RunConfig
    folder: RunFolder
    processes: Processes
    device: torch.device
    resume: bool
    report: Report
    history: list[dict[str, Any]]
    """every epoch of every stage so far: what metrics.jsonl holds"""
    profile: dict[str, Mapping[str, float]] | None
    """seconds of every stage by what they went to, where that was asked for: what profile.json holds"""
    corpora: Path | None = None
    """a folder in which many runs keep tokenised text and vocabularies, each made once; None: in the run's own"""

    @property
    def dtype(self) -> torch.dtype:
        """What texts are read in to measure."""
        return choose_dtype(self.run.precision, self.device)

    @property
    def learning_dtype(self) -> torch.dtype:
        """What losses are asked to compute in; of int8 that is what products are in."""
        return choose_learning_dtype(self.run.precision, self.device)

    def place(self, name: str, paths: Sequence[Path], **made_with: str | None) -> Path:
        """Where what is made of these files lies: in the run's folder, or under its origin where runs share it.

        The origin is the files' places, sizes and times of change, and what else it was made with.
        """
        if self.corpora is None:
            return self.folder.work / name
        stats = [
            (file, file.stat()) for file in source_files(paths, labelled=made_with.get("label_column") is not None)
        ]
        files = [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
        origin = hashlib.sha256(json.dumps([files, sorted(made_with.items())]).encode()).hexdigest()[:20]
        stem, dot, suffix = name.partition(".")
        return self.corpora / f"{stem}-{origin}{dot}{suffix}"

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Wait until no other run works on this shared path."""
        with nullcontext() if self.corpora is None else locked(path.with_name(f".{path.name}.lock")):
            yield

    def corpus(
        self,
        paths: Sequence[Path],
        tokenizer: Tokenizer,
        *,
        name: str,
        text_column: str,
        label_column: str | None = None,
    ) -> Corpus:
        """The text of these files, tokenised to disk under this name by rank 0 and mapped by every process."""
        made_with = {"tokenizer": tokenizer.fingerprint, "text_column": text_column, "label_column": label_column}
        out = self.place(name, paths, **made_with)
        with self.processes.leader_first():
            if self.processes.leads:
                with self.alone(out):
                    if self.corpora is not None and (out / "corpus.json").is_file():
                        return Corpus.open(out)
                    return build_corpus(paths, tokenizer, out=out, text_column=text_column, label_column=label_column)
            return Corpus.open(out)

    def learn(self, stage: Stage, checkpoints: Path) -> None:
        """Run a stage; its epochs join the run's metrics as they end."""
        clock = time.monotonic()

        def note(event: Event) -> None:
            if isinstance(event, StageStarted):
                self.history.extend(event.history)
            if isinstance(event, EpochEnded):
                self.history.append(event.record)
            if isinstance(event, (StageStarted, EpochEnded)) and self.processes.leads:
                self.folder.write_metrics(self.history)
            self.report(event)

        watch = None if self.profile is None else Stopwatch(self.device)
        with memory_kept() if self.device.type == "cpu" else nullcontext():
            run_stage(
                stage,
                folder=checkpoints,
                resume=self.resume,
                checkpoint_seconds=self.run.checkpoint_minutes * 60,
                report=note,
                processes=self.processes,
                lap=watch or untimed,
            )
        parts = None if watch is None else watch.seconds()
        self.tell(StageEnded(stage.name, time.monotonic() - clock, parts))

    def tell(self, event: Event) -> None:
        """Pass an event on; what a stage's time went to joins the run's profile."""
        if isinstance(event, StageEnded) and event.parts is not None and self.profile is not None:
            self.profile[event.name] = event.parts
            if self.processes.leads:
                self.folder.write_json(PROFILE, self.profile)
        self.report(event)

    def draw_curve(self) -> None:
        """The perplexity of every epoch as a picture beside metrics.jsonl, where there is any and it can be drawn."""
        measured = [record for record in self.history if "perplexity" in record]
        if not (measured and self.processes.leads):
            return
        if can_draw():
            draw_perplexity(measured, self.folder.out / CURVE)
        else:
            self.report(Note(f"no {CURVE}: to have perplexity drawn, pip install 'ulmfit[plots]'"))

    def saved(self, bundle: AnyBundle) -> AnyBundle:
        """The bundle saved as the run's result and read back, as one who goes on from it after a resume gets it."""
        with self.processes.leader_first():
            if self.processes.leads:
                bundle.save(self.folder.out, storage=self.run.storage)
            return type(bundle).load(self.folder.out)


@contextmanager
def open_setting(
    out: Path,
    *,
    command: str,
    config: PretrainConfig | TuneConfig | ClassifyConfig | TrainConfig,
    inputs: Mapping[str, Any],
    resume: bool,
    report: Report,
    profile: bool,
    corpora: Path | None = None,
) -> Iterator[Setting]:
    """The setting of a run in the folder `out`, in each of its processes; rank 0 alone opens and writes the folder.

    Raises what `open_run` does, and ConfigError where the device is not there.
    """
    with joined() as processes, ExitStack() as stack:
        with processes.leader_first():
            if processes.leads:
                opened = open_run(out, command=command, config=config, inputs=inputs, resume=resume)
                folder = stack.enter_context(opened)
            else:
                folder = RunFolder(out)
            device = processes.device(config.run.device)
        yield Setting(
            run=config.run,
            folder=folder,
            processes=processes,
            device=device,
            resume=resume,
            report=report if processes.leads else silent,
            history=[],
            profile={} if profile else None,
            corpora=corpora,
        )


def on_device(device: torch.device, array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor on the device, without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def groups_by_name(layer_groups: Sequence[LayerGroup]) -> dict[str, Sequence[Tensor]]:
    return {group.name: group.parameters for group in layer_groups}


def stacked_by_name(layer_groups: Sequence[LayerGroup]) -> dict[str, int]:
    return {group.name: group.stacked for group in layer_groups}


def describe_inputs(**given: Any) -> dict[str, Any]:
    """What a run reads, by size and not by path, so that a run may be resumed from elsewhere."""
    inputs: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            files = source_files(value, labelled=name == "labelled") if value else []
            inputs[name] = [[file.name, file.stat().st_size] for file in files]
        else:
            inputs[name] = base_name(value) if name == "base" else str(value)
    return inputs


def base_name(base: str | Path) -> str:
    """What to call a base afterwards: a folder by its last name, wherever it lay; a shipped or hub model as it is."""
    return Path(base).resolve().name if Path(base).is_dir() else str(base)


def identity(setting: Setting, config: Config, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "settings": config.model_dump_json(),
        "corpus": corpus.fingerprint,
        "compute dtype": str(setting.learning_dtype),
    }


def run_facts(setting: Setting, stage: str, *, base: str | None, corpus: Corpus, **data: Any) -> dict[str, Any]:
    """What the model card and later stages need to know of the run; the results are those of the epochs kept."""
    kept: dict[str, dict[str, Any]] = {}
    for record in setting.history:
        name = record["stage"]
        if name not in kept or "valid_loss" not in record or _worth(record) < _worth(kept[name]):
            kept[name] = record
    shown = ("epoch", "perplexity", "accuracy", "valid_loss", "train_loss")
    results = {name: {key: record[key] for key in shown if key in record} for name, record in kept.items()}
    return {
        "stage": stage,
        "base": base,
        "data": {"documents": len(corpus), **data},
        "training": {"seed": setting.run.seed, "compute dtype": str(setting.learning_dtype).removeprefix("torch.")},
        "results": results,
        "hardware": {**hardware(setting.device), "processes": setting.processes.size},
        "history": list(setting.history),
    }


def _worth(record: dict[str, Any]) -> tuple[float, float]:
    """The smaller the better, as `run_stage` judged it."""
    return record.get("error", 0.0), record["valid_loss"]
