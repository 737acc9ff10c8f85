"""Runs of experiments: which there are, which are done, and the making of those that are not."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulmfit.bundle import read_bundle_config
from ulmfit.compute import choose_device, hardware
from ulmfit.config import ClassifyConfig, Direction, PresetName, RunConfig, TuneConfig
from ulmfit.errors import ConfigError
from ulmfit.experiments.lines import RESULTS, Line, append_line, read_lines
from ulmfit.experiments.products import Busy, Measured, Shelf, key_of, mean_of
from ulmfit.experiments.recipes import Experiment, Row, experiment_named
from ulmfit.experiments.tasks import Prepared, Task, prepare
from ulmfit.experiments.ways import Way, epochs_of, stage_settings
from ulmfit.learning.setting import base_name
from ulmfit.pretrained import find_bundle
from ulmfit.text.parts import output_errors
from ulmfit.training.events import Note, Report, silent

_BASE_FLAGS = {"forward": "base", "backward": "backward-base"}
BUSY_SECONDS = 0.5
"""between two looks whether another process has made what a run needs"""


@dataclass(frozen=True, slots=True)
class Options:
    """What all runs of one results file are made with, as plain values that a worker process can be sent."""

    out: Path
    preset: PresetName = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """dotted names over the stages' settings and `recipe`"""
    base: str = "en"
    backward_base: str | None = None
    """where the base reads forward only; the same one if None"""
    device: str = "auto"
    language_models: int | None = None
    """how many language models the seeds share, seed 0's, 1's, ...; one each if None"""

    def base_of(self, direction: Direction) -> str:
        """The base that a model of this direction starts from."""
        return self.backward_base if direction == "backward" and self.backward_base else self.base

    def language_model_seed(self, seed: int) -> int:
        """The seed of the language model that a run of this seed starts from."""
        return seed if self.language_models is None else seed % self.language_models


@dataclass(frozen=True, slots=True)
class Run:
    """One line to be: a row of an experiment, on a task, with so many labels (None: all) and a seed."""

    experiment: str
    task: str
    row: str
    labels: int | None
    seed: int

    def __str__(self) -> str:
        labels = "all labels" if self.labels is None else f"{self.labels:,} labels"
        return f"{self.experiment}: {self.task}, {self.row}, {labels}, seed {self.seed}"


def run_of(line: Line) -> Run:
    """The run that a line of the results came from."""
    return Run(line["experiment"], line["task"], line["row"], line["labels"], line["seed"])


@dataclass(frozen=True, slots=True)
class Part:
    """One direction of a run: the settings of its stages, and the names of what it makes."""

    direction: Direction
    base: str
    tune: TuneConfig
    classify: ClassifyConfig
    texts: tuple[Path, ...]
    language_model: str
    classifier: str
    tuning_epochs: int
    epochs: int


@dataclass(frozen=True, slots=True)
class KnownBase:
    """What runs ask about a base."""

    layers: int
    directions: frozenset[Direction]
    fingerprint: str
    """of its sizes, its words and its history"""


@cache
def known_base(base: str) -> KnownBase:
    """Read once a process; BundleError where there is none."""
    folder = find_bundle(base)
    values = read_bundle_config(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return KnownBase(
        layers=values["model"]["encoder"]["layers"],
        directions=frozenset(values["weights"]),
        fingerprint=key_of(config=values, files=sizes),
    )


def run_experiment(
    names: Sequence[str],
    tasks: Sequence[Task],
    *,
    options: Options,
    seeds: int = 1,
    labels: Sequence[int | None] | None = None,
    rows: Sequence[str] | None = None,
    workers: int = 1,
    report: Report = silent,
) -> list[Line]:
    """Make all runs of these experiments on these tasks that are not in the results yet, and return their lines.

    Raises ConfigError where a name is unknown or the results were made with other settings.
    """
    from ulmfit.experiments.workers import work_side_by_side

    data = prepare_all(tasks, options, report=report)
    runs = runs_of(names, data, options=options, seeds=seeds, labels=labels, rows=rows, report=report)
    check_settings(runs, data, options)
    left = undone(runs, options.out)
    report(Note(f"{len(runs)} runs, {len(runs) - len(left)} of them done before"))
    if workers > 1 and len(left) > 1:
        work_side_by_side(left, data, options=options, workers=workers, report=report)
    else:
        work(left, data, options=options, report=report)
    return [line for line in read_lines(options.out) if run_of(line) in set(runs)]


def prepare_all(tasks: Sequence[Task], options: Options, *, report: Report = silent) -> dict[str, Prepared]:
    """The splits of every task, in `out/data`, by name."""
    with output_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    data = {}
    for task in tasks:
        data[task.name] = prepare(task, options.out / "data" / task.name)
        counts = ", ".join(f"{name} {count:,}" for name, count in data[task.name].counts.items())
        report(Note(f"{task.title}: {counts}"))
    return data


def runs_of(
    names: Sequence[str],
    data: Mapping[str, Prepared],
    *,
    options: Options,
    seeds: int,
    labels: Sequence[int | None] | None = None,
    rows: Sequence[str] | None = None,
    report: Report = silent,
) -> list[Run]:
    """Every run there is, seed by seed, so that a table is whole before it is repeated; ConfigError if none is left.

    Numbers of labels beyond all are left out, and so are rows in a direction that the base does not read.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected one seed at least")
    experiments = [experiment_named(name) for name in names]
    for asked in rows or ():
        if not any(asked == row.name for experiment in experiments for row in experiment.rows):
            experiments[0].row(asked)  # raises, with the nearest name
    known = _directions(options)

    def lacking(row: Row) -> set[Direction]:
        return set(_directions_of(row.way)) - known if row.way.pretrained else set()

    asked_for = {
        experiment: [row for row in experiment.rows if rows is None or row.name in rows] for experiment in experiments
    }
    runs = [
        Run(experiment.name, task.name, row.name, count, seed)
        for seed in range(seeds)
        for experiment, its_rows in asked_for.items()
        for task in data.values()
        for count in labels_of(experiment, task, labels)
        for row in its_rows
        if not lacking(row)
    ]
    unread = sorted({direction for its_rows in asked_for.values() for row in its_rows for direction in lacking(row)})
    if unread:
        said = f"the base {options.base!r} does not read {unread[0]}; pass --{_BASE_FLAGS[unread[0]]} a base that does"
        if not runs:
            raise ConfigError(said)
        report(Note(f"rows that need it are left out: {said}"))
    return runs


def labels_of(experiment: Experiment, data: Prepared, asked: Sequence[int | None] | None = None) -> list[int | None]:
    """How many labels the experiment's runs have on this task; what is all or more of them is None, once."""
    everything = data.counts[data.pool(experiment.measure)]
    counts = experiment.labels if asked is None else asked
    least = 2 * len(data.classes)
    for count in asked or ():
        if count is not None and count < least:
            raise ConfigError(f"--labels {count}: {data.title} has {len(data.classes)} classes; expected two of each")
    counts = [count for count in counts if count is None or count >= least]
    within = [count for count in counts if count is not None and count < everything]
    return [*dict.fromkeys(within), *([None] if len(within) < len(counts) else [])]


def undone(runs: Sequence[Run], out: Path) -> list[Run]:
    """The runs that have no line yet."""
    done = {run_of(line) for line in read_lines(out)}
    return [run for run in dict.fromkeys(runs) if run not in done]


def check_settings(runs: Sequence[Run], data: Mapping[str, Prepared], options: Options) -> None:
    """ConfigError where lines of these runs were made with other settings or data, before anything is made."""
    asked = set(runs)
    for line in read_lines(options.out):
        run = run_of(line)
        if run in asked and line["digest"] != digest_of(run, data[run.task], options):
            raise ConfigError(
                f"{options.out / RESULTS}: holds {str(run)!r}, made with other settings or data; choose another --out"
            )


# --- one run --------------------------------------------------------------------------------------------------------


def parts_of(run: Run, data: Prepared, options: Options) -> list[Part]:
    """What a run makes, one part a direction; none for the baseline."""
    experiment = experiment_named(run.experiment)
    way = experiment.row(run.row).way
    if way.learner != "ulmfit":
        return []
    labelled = data.draw_path(experiment.measure, run.labels, seed=run.seed)
    labels = data.size(experiment.measure, run.labels)
    parts = []
    for direction in _directions_of(way):
        base = options.base_of(direction)
        known = known_base(base)
        tune, classify = stage_settings(
            way, preset=options.preset, labelled=labels, layers=known.layers, settings=options.settings
        )
        own = {"direction": direction, "device": options.device}
        tune = _with_run(tune, seed=options.language_model_seed(run.seed), **own)
        classify = _with_run(classify, seed=run.seed, **own)
        drawn = [data.fingerprint, str(labelled.name)]
        texts = tuple(data.texts) if way.text == "all" else (labelled,)
        language_model = key_of(
            settings=_portable(tune), base=known.fingerprint, text=data.fingerprint if way.text == "all" else drawn
        )
        classifier = key_of(
            settings=_portable(classify), language_model=language_model, labelled=drawn, measure=experiment.measure
        )
        tuning_epochs = sum(phase.epochs for phase in tune.tune.training.phases) if tune.tune.learn else 0
        epochs = epochs_of(classify.classify.phases, layers=known.layers)
        parts.append(Part(direction, base, tune, classify, texts, language_model, classifier, tuning_epochs, epochs))
    return parts


def digest_of(run: Run, data: Prepared, options: Options) -> str:
    """A name for all that a run's result depends on."""
    parts = [part.classifier for part in parts_of(run, data, options)]
    return key_of(parts=parts, task=data.fingerprint)


def make(run: Run, data: Prepared, *, options: Options, shelf: Shelf) -> Line:
    """Make a run, or what is left of it, and return its line; Busy where another process makes a part of it."""
    began = time.monotonic()
    experiment = experiment_named(run.experiment)
    row = experiment.row(run.row)
    parts = parts_of(run, data, options)
    labelled = data.draw(experiment.measure, run.labels, seed=run.seed)
    models: dict[str, Any] = {}
    if not parts:
        key = key_of(baseline=[data.fingerprint, str(labelled.name)], measure=experiment.measure)
        result = shelf.baseline(key, data, labelled, experiment.measure)
    else:
        measured = []
        for part in parts:
            tuned = shelf.language_model(part.language_model, list(part.texts), base=part.base, config=part.tune)
            models[part.direction] = {
                "key": tuned.key,
                "seed": part.tune.run.seed,
                "seconds": round(tuned.seconds, 2),
                "epochs": tuned.epochs,
            }
            measured.append(
                shelf.classifier(part.classifier, tuned.key, data, labelled, experiment.measure, config=part.classify)
            )
            if row.way.text == "labelled" and run.labels is not None:  # nobody else has drawn these
                shelf.forget_language_model(part.language_model)
        result = measured[0] if len(measured) == 1 else mean_of(measured[0], measured[1], data)
    return _line(run, row, data, options, parts=parts, models=models, result=result, wall=time.monotonic() - began)


def _line(
    run: Run,
    row: Row,
    data: Prepared,
    options: Options,
    *,
    parts: Sequence[Part],
    models: Mapping[str, Any],
    result: Measured,
    wall: float,
) -> Line:
    experiment = experiment_named(run.experiment)
    if result.measures is not None:
        measures = dict(result.measures)
    else:  # the epoch that was kept is the best one, and the first of those
        errors = [record["error"] for record in result.epochs]
        measures = {"error": min(errors), "last_error": errors[-1]}
    return {
        "experiment": run.experiment,
        "task": run.task,
        "row": run.row,
        "labels": run.labels,
        "seed": run.seed,
        "measure": experiment.measure,
        **measures,
        "documents": {
            "labelled": data.size(experiment.measure, run.labels),
            "measured": data.counts[experiment.measure],
            "text": sum(data.counts[name] for name in ("train", "unlabelled")),
        },
        "epochs": result.epochs,
        "language_models": dict(models),
        "seconds": {
            "tuning": round(sum(model["seconds"] for model in models.values()), 2),
            "classifying": round(result.seconds, 2),
            "this run": round(wall, 2),
        },
        "way": row.way.model_dump(mode="json"),
        "settings": {
            part.direction: {"tune": _portable(part.tune), "classify": _portable(part.classify)} for part in parts
        },
        "base": {part.direction: base_name(part.base) for part in parts},
        "digest": digest_of(run, data, options),
        "command": command_of(run, data, options),
        "hardware": hardware(choose_device(options.device)),
        "versions": {
            "ulmfit": importlib.metadata.version("ulmfit"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def command_of(run: Run, data: Prepared, options: Options) -> str:
    """A command that makes this run, and those of the seeds before it."""
    words = ["ulmfit", "experiment", run.experiment, *data.flags, "--rows", run.row]
    words += ["--seeds", str(run.seed + 1), "--labels", "all" if run.labels is None else str(run.labels)]
    words += ["--preset", options.preset, "--base", base_name(options.base)]
    if options.backward_base:
        words += ["--backward-base", base_name(options.backward_base)]
    if options.language_models is not None:
        words += ["--language-models", str(options.language_models)]
    for name, value in options.settings.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "--out", "DIR"])


# --- many runs ------------------------------------------------------------------------------------------------------


def work(
    runs: Sequence[Run],
    data: Mapping[str, Prepared],
    *,
    options: Options,
    report: Report = silent,
    wait: bool = True,
    allows: Callable[[Run], bool] = lambda run: True,
) -> None:
    """Make the runs one after the other and append their lines; those that `allows` refuses are passed over.

    Without `wait` a run that another process is at, or needs what another is making, is tried again later.
    """
    shelf = Shelf(options.out, wait=wait, report=report)
    told: set[Run] = set()
    waiting = list(runs)
    while waiting:
        later = []
        for run in waiting:
            if not undone([run], options.out) or not allows(run):
                continue
            try:
                with shelf.alone(f"run-{key_of(run=str(run))}"):
                    if not undone([run], options.out):
                        continue
                    if run not in told:
                        report(Note(f"{run} ..."))
                        told.add(run)
                    line = make(run, data[run.task], options=options, shelf=shelf)
                    append_line(options.out, line)
            except Busy:
                later.append(run)
                continue
            report(Note(f"{run}: error {line['error']:.2%}, {line['seconds']['this run']:.0f} s"))
        if len(later) == len(waiting):
            time.sleep(BUSY_SECONDS)
        waiting = later


def _with_run(config: Any, **values: Any) -> Any:
    return config.model_copy(update={"run": RunConfig.parse({**config.run.model_dump(), **values})})


def _portable(config: TuneConfig | ClassifyConfig) -> dict[str, Any]:
    """The settings that a result depends on: not where it is computed, nor how often it is saved."""
    values = config.model_dump(mode="json")
    for name in ("device", "checkpoint_minutes"):
        del values["run"][name]
    return values


def _directions_of(way: Way) -> tuple[Direction, ...]:
    return RunConfig(direction=way.direction).directions


def _directions(options: Options) -> set[Direction]:
    """The directions that there is a base for."""
    directions: tuple[Direction, ...] = ("forward", "backward")
    return {name for name in directions if name in known_base(options.base_of(name)).directions}
