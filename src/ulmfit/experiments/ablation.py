"""The experiments on a user's own file within a given time: how much data and how many seeds fit, and what comes first.

The speed of both stages is measured on a small sample; from it follow the minutes of any plan, and the largest share
of the data whose plan fits is taken. While the runs go on, what they really take corrects what is still expected.
"""

from __future__ import annotations

import json
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ulmfit.config import TrainConfig
from ulmfit.errors import ConfigError
from ulmfit.experiments.products import Shelf
from ulmfit.experiments.recipes import experiment_named
from ulmfit.experiments.runner import Options, Run, check_settings, known_base, parts_of, runs_of, undone, work
from ulmfit.experiments.tasks import Limits, Prepared, Task, prepare, valid_share
from ulmfit.experiments.ways import epochs_of
from ulmfit.learning.budget import SAFETY, Budget
from ulmfit.learning.costs import Seconds
from ulmfit.learning.planning import measure
from ulmfit.learning.self_training import taught
from ulmfit.learning.setting import open_setting
from ulmfit.text.draw import Look, look_at
from ulmfit.text.parts import renamed_when_whole
from ulmfit.text.sources import read_records
from ulmfit.training.events import Note, Report, silent

ABLATED = (
    *("pretraining", "lm-tuning", "classifier-tuning", "forgetting"),
    *("low-shot", "schedule", "multi-task", "lm-quality"),
)
FIRST = (
    ("low-shot", "tf-idf"),
    ("classifier-tuning", "freez + discr + stlr"),
    ("classifier-tuning", "from scratch"),
    ("pretraining", "without"),
    ("lm-tuning", "none"),
    ("classifier-tuning", "full"),
    ("low-shot", "semi-supervised"),
)
"""the rows that tell most, with all labels: whether any of this pays, and then which stage does"""

PLAN = "plan.json"
SHARES = tuple(0.85**step for step in range(60))
"""of the documents, tried from the largest down"""
LEAST_FOR_DATA = 0.4
"""of the time: what the data get of it where starting and saving would fill it"""
MODELS_A_STAGE = 4
"""written and read: the best epoch's, the last checkpoint's, and the result there and back"""
WORTHWHILE = 400
"""labelled documents below which fewer seeds are better than still fewer documents"""
LEAST_LABELLED, LEAST_A_CLASS, LEAST_TEXTS, LEAST_TEST = 200, 10, 500, 200
"""documents below which a table tells nothing: there the runs that tell least are left out instead"""
EVALUATION_GAIN = 3.0
"""predicting is about so much faster than training"""
BASELINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What a machine does with this text and base."""

    tuning: float
    """tokens a second"""
    classifying: float
    fixed: float
    """seconds of a stage whatever its length: loading, saving, starting"""
    tokens_a_character: float


@dataclass(frozen=True, slots=True)
class Documents:
    """How many a plan takes, of how many classes, and the tokens of one."""

    labelled: int
    texts: int
    """the labelled ones among them"""
    test: int
    classes: int
    tokens: float

    def shares(self, *, labelled: float, texts: float) -> Documents:
        """So much of the labelled and the test documents, and of all texts, but no less than is worth a look."""
        most = min(self.labelled, max(LEAST_LABELLED, LEAST_A_CLASS * self.classes, round(labelled * self.labelled)))
        return replace(
            self,
            labelled=most,
            texts=min(self.texts, max(most, LEAST_TEXTS, round(texts * self.texts))),
            test=min(self.test, max(LEAST_TEST, round(labelled * self.test))),
        )

    @property
    def limits(self) -> Limits:
        """The same for `prepare`."""
        return Limits(labelled=self.labelled, texts=self.texts, test=self.test)


def run_ablation(
    task: Task,
    *,
    minutes: float,
    options: Options,
    names: Sequence[str] | None = None,
    seeds: int = 3,
    report: Report = silent,
) -> list[Run]:
    """Make what runs fit into the time, the most telling first; those left out are returned.

    What was chosen is kept in `out/plan.json`, so that the same call goes on where it stopped.
    """
    began = time.monotonic()
    if minutes <= 0:
        raise ConfigError(f"--minutes {minutes:g}: expected more than none")
    names = list(names or ABLATED)
    for name in names:
        experiment_named(name)
    plan = _plan(task, minutes, options, names, seeds, report)
    data = {task.name: prepare(task, options.out / "data" / task.name, limits=Limits(**plan["limits"]))}
    speed = Speed(**plan["speed"])
    runs = in_order(runs_of(names, data, options=options, seeds=plan["seeds"], report=report))
    check_settings(runs, data, options)
    prepared = data[task.name]
    tokens = speed.tokens_a_character * prepared.characters / (prepared.counts["train"] + prepared.counts["unlabelled"])
    time_left = _TimeLeft(began + 60 * minutes, prepared, options, speed, tokens)
    work(undone(runs, options.out), data, options=options, report=report, allows=time_left.allows)
    return undone(runs, options.out)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Seed by seed, the most telling first, else as they come."""

    def rank(run: Run) -> tuple[int, int]:
        row = (run.experiment, run.row)
        return run.seed, FIRST.index(row) if row in FIRST and run.labels is None else len(FIRST)

    return sorted(runs, key=rank)


# --- what fits ------------------------------------------------------------------------------------------------------


def _plan(task: Task, minutes: float, options: Options, names: list[str], seeds: int, report: Report) -> dict[str, Any]:
    """Documents and seeds, chosen now or when this folder was first used."""
    path = options.out / PLAN
    if path.is_file():
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (plan["experiments"], plan["asked seeds"]) != (names, seeds):
            raise ConfigError(f"{path}: was made for other experiments or seeds; choose another --out")
        return plan
    began = time.monotonic()
    whole_folder = options.out / "whole"
    try:
        whole = prepare(task, whole_folder)
        speed = measure_speed(whole, options, minutes)
        texts = whole.counts["train"] + whole.counts["unlabelled"]
        most = Documents(
            labelled=whole.counts["train"],
            texts=texts,
            test=whole.counts["test"],
            classes=len(whole.classes),
            tokens=speed.tokens_a_character * whole.characters / texts,
        )
        left = 60 * minutes - (time.monotonic() - began)
        chosen, kept_seeds, seconds = fit(most, whole, names, options=options, speed=speed, seeds=seeds, seconds=left)
    finally:
        shutil.rmtree(whole_folder, ignore_errors=True)
    shares = ((chosen.labelled, most.labelled), (chosen.texts, most.texts), (chosen.test, most.test))
    parts = [f"{part:,} of {all_:,}" for part, all_ in shares]
    report(
        Note(
            f"for {minutes:g} minutes: {parts[0]} labelled documents, {parts[1]} texts, {parts[2]} to test on, "
            f"{kept_seeds} of {seeds} seeds; about {seconds / 60:.0f} minutes at {speed.tuning:,.0f} tokens/s tuning "
            f"and {speed.classifying:,.0f} classifying"
        )
    )
    plan = {
        "minutes": minutes,
        "expected minutes": round(seconds / 60, 1),
        "experiments": names,
        "asked seeds": seeds,
        "seeds": kept_seeds,
        "limits": asdict(chosen.limits),
        "speed": asdict(speed),
    }
    with renamed_when_whole(path) as file:
        file.write((json.dumps(plan, indent=1) + "\n").encode())
    return plan


def measure_speed(data: Prepared, options: Options, minutes: float) -> Speed:
    """Of both stages with all layers learning, by steps on a sample, and with the vocabulary of all the text."""
    (part,) = parts_of(Run("classifier-tuning", data.name, "full", None, 0), data, options)
    config = TrainConfig(run=part.tune.run, tune=part.tune.tune, classify=part.classify.classify)
    labelled = look_at(read_records([data.split("train")], label_column="label"), seed=0)
    unlabelled = look_at(read_records([data.split("unlabelled")]), seed=0) if data.counts["unlabelled"] else Look()
    folder = options.out / "trial"
    try:
        with open_setting(
            folder, command="ablate", config=config, inputs={}, resume=False, report=silent, profile=False
        ) as setting:
            costs, sizes = measure(
                setting,
                Budget(minutes),
                labelled,
                unlabelled,
                classes=data.classes,
                base=part.base,
                config=config,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tokens = sizes.tokens(sizes.unlabelled)
    return Speed(
        tuning=1 / costs.tuning_a_token(sizes.vocabulary.at(tokens)),
        classifying=1 / costs.classifying,
        fixed=costs.fixed + MODELS_A_STAGE * costs.saving,
        tokens_a_character=tokens / max(1, data.characters),
    )


def fit(
    most: Documents,
    whole: Prepared,
    names: Sequence[str],
    *,
    options: Options,
    speed: Speed,
    seeds: int,
    seconds: float,
) -> tuple[Documents, int, float]:
    """The largest plan that takes no longer: documents, seeds, and its seconds; the smallest one where none fits.

    What stages take whatever their length does not shrink with the data: where it fills the time, the data keep a
    share of it, and the runs that tell least are left out in the end. Labelled documents get half of what is left to
    the data, or what tuning on all texts leaves over; texts get the rest.
    """
    chosen, total, kept = most, 0.0, seeds
    for kept in range(seeds, 0, -1):

        def cost(labelled: float, texts: float, seeds: int = kept) -> Seconds:
            part = most.shares(labelled=labelled, texts=texts)
            return seconds_of_plan(part, whole, names, options=options, speed=speed, seeds=seeds)

        labelled, texts = _shares(cost, seconds)
        chosen, total = most.shares(labelled=labelled, texts=texts), cost(labelled, texts).total
        if total <= SAFETY * seconds and chosen.labelled >= min(WORTHWHILE, most.labelled):
            break
    return chosen, kept, total


def _shares(cost: Callable[[float, float], Seconds], seconds: float) -> tuple[float, float]:
    """The shares of the labelled documents and of the texts."""
    least = SHARES[-1]
    everything = cost(1.0, 1.0)
    for_data = max(SAFETY * seconds - everything.other, LEAST_FOR_DATA * seconds)
    half = max(for_data / 2, for_data - everything.tuning)
    labelled = _largest(lambda share: cost(share, least).classifying <= half)
    rest = for_data - cost(labelled, least).classifying
    return labelled, _largest(lambda share: cost(labelled, share).tuning <= rest)


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest share that fits, or the smallest there is; where one fits all smaller ones do."""
    return SHARES[min(bisect_left(SHARES, True, key=fits), len(SHARES) - 1)]


def seconds_of_plan(
    documents: Documents, whole: Prepared, names: Sequence[str], *, options: Options, speed: Speed, seeds: int
) -> Seconds:
    """What all runs would take, each language model and classifier counted once."""
    valid = round(valid_share(documents.labelled) * documents.labelled)
    counts = {
        "train": documents.labelled,
        "learn": documents.labelled - valid,
        "valid": valid,
        "test": documents.test,
        "unlabelled": documents.texts - documents.labelled,
    }
    imagined = replace(whole, counts=counts)
    made: set[str] = set()
    runs = runs_of(names, {whole.name: imagined}, options=options, seeds=seeds)
    return sum((seconds_of(run, imagined, options, speed, documents.tokens, made) for run in runs), Seconds())


def seconds_of(run: Run, data: Prepared, options: Options, speed: Speed, tokens: float, made: set[str]) -> Seconds:
    """What a run would take; what it makes joins `made`, and what is there already takes no time.

    `tokens` are those of one document.
    """
    experiment = experiment_named(run.experiment)
    way = experiment.row(run.row).way
    labelled = data.size(experiment.measure, run.labels)
    text = labelled if way.text == "labelled" else data.counts["train"] + data.counts["unlabelled"]
    parts = parts_of(run, data, options)
    total = Seconds(other=0.0 if parts else BASELINE_SECONDS)
    for part in parts:
        if part.language_model not in made:
            made.add(part.language_model)
            total += Seconds(tuning=part.tuning_epochs * text * tokens / speed.tuning, other=speed.fixed)
        if part.classifier not in made:
            made.add(part.classifier)
            probed = part.epochs * data.counts["valid"] if experiment.measure == "valid" else data.counts["test"]
            documents = part.epochs * labelled + probed / EVALUATION_GAIN
            settings = part.classify.classify
            if settings.self_training:
                candidates = min(text - labelled, settings.self_training_documents)
                learnt = labelled + settings.self_training * candidates
                again = taught(settings, documents=labelled, of=learnt).phases
                documents += epochs_of(again, layers=known_base(part.base).layers) * learnt
                documents += candidates / EVALUATION_GAIN
            total += Seconds(classifying=documents * tokens / speed.classifying, other=speed.fixed)
    return total


class _TimeLeft:
    """Says of each run whether it still fits, by what was expected and what those before it really took."""

    def __init__(self, deadline: float, data: Prepared, options: Options, speed: Speed, tokens: float) -> None:
        self.deadline, self.data, self.options, self.speed, self.tokens = deadline, data, options, speed, tokens
        self.made = Shelf(options.out).made()
        self.expected = self.real = 0.0
        self.began: tuple[float, float] | None = None
        """when the run at work was allowed, and the seconds expected of it"""

    def allows(self, run: Run) -> bool:
        now = time.monotonic()
        if self.began is not None:
            self.real += now - self.began[0]
            self.expected += self.began[1]
            self.began = None
        made = set(self.made)
        cost = seconds_of(run, self.data, self.options, self.speed, self.tokens, made).total
        correction = self.real / self.expected if self.expected else 1.0
        if now + correction * cost > self.deadline:
            return False
        self.made = made
        self.began = (now, cost)
        return True
