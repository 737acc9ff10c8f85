"""A run fitted into minutes: look at the text, measure this machine by real steps on copies, choose a plan and keep it.

Nothing of the run is touched: the models measured are thrown away, the generators are put back.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ulmfit.bundle import LanguageModelBundle
from ulmfit.config import TrainConfig, TuneSettings
from ulmfit.errors import CheckpointError, TokenizerError
from ulmfit.heap import memory_kept
from ulmfit.learning.budget import Budget, Plan, choose, described, fits_all_labelled
from ulmfit.learning.classifier import classifier_stage, start_of_classifying
from ulmfit.learning.costs import Costs, Sizes, Vocabulary
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.language_model import LanguageModelText, language_model_stage, read_base, start_of_tuning
from ulmfit.learning.setting import Setting
from ulmfit.learning.vocabulary import rows_in, with_base_words, words_of
from ulmfit.models.language_model import LanguageModel
from ulmfit.run_folder import PLAN
from ulmfit.text.corpus import Corpus, split_documents
from ulmfit.text.draw import Look, drawn, look_at, write_chosen
from ulmfit.text.sources import read_records
from ulmfit.text.tokenizer import Tokenizer, train_tokenizer
from ulmfit.text.words import SPECIALS
from ulmfit.training.checkpoint import Checkpoints
from ulmfit.training.events import Note, silent
from ulmfit.training.trial import seconds_a_token

TRIAL_SHARE, LONGEST_TRIAL = 0.01, 5.0
"""of the minutes, for each of the four things measured; and seconds, more than which tell nothing new"""
LARGER = 1.2
"""a vocabulary so much larger is measured by itself"""
DRAWN, LABELLED, OTHER_LABELLED = "unlabelled.parquet", "labelled.parquet", "other-labelled.parquet"


def describe_budget(budget: Budget | None) -> dict[str, Any]:
    """What a run's description has of the budget: a run is resumed with what it was started with."""
    return {} if budget is None else {"minutes": budget.minutes, "kept settings": sorted(budget.keep)}


def plan_within(
    setting: Setting,
    budget: Budget,
    *,
    labelled: Path,
    classes: Sequence[str],
    unlabelled: Sequence[Path],
    base: str | Path,
    config: TrainConfig,
    text_column: str,
    label_column: str,
) -> Plan:
    """The plan of this run: the one it was started with, or the largest that fits, said aloud and written down.

    Raises ConfigError where none fits, CheckpointError where the plan it was started with cannot be read.
    """
    known = setting.processes.agree(_written(setting.folder.out / PLAN) if setting.processes.leads else None)
    if known is not None:
        return Plan.parse(known["plan"])
    began = time.monotonic()
    seed = setting.run.seed
    labels = look_at(read_records([labelled], text_column=text_column, label_column=label_column), seed=seed)
    texts = look_at(read_records(unlabelled, text_column=text_column), seed=seed) if unlabelled else Look()
    reading = time.monotonic() - began

    def measured_with(settings: TrainConfig) -> tuple[Costs, Sizes, float]:
        costs, sizes = measure(
            setting, budget, labels, texts, classes=classes, base=base, config=settings, again=reading
        )
        # By rank 0's clock, as all else that was measured.
        return costs, sizes, float(setting.processes.agree(budget.spent))

    costs, sizes, spent = measured_with(config)
    fewer = budget.fewer_labels
    if fewer and fewer.config != config and not fits_all_labelled(costs, sizes, config, budget, spent=spent):
        costs, sizes, spent = measured_with(fewer.config)  # in other batches
    plan = choose(costs, sizes, config, budget, spent=spent)
    most = fewer.config if fewer and plan.labelled < plan.of_labelled else config
    setting.tell(Note(described(plan, sizes, costs, most, budget)))
    if setting.processes.leads:
        measured = {"costs": asdict(costs), "sizes": asdict(sizes), "seconds spent on planning": round(spent, 1)}
        setting.folder.write_json(PLAN, {"plan": plan.model_dump(mode="json"), "measured": measured})
    return plan


def planned_labels(
    setting: Setting, plan: Plan, labelled: Path, *, text_column: str, label_column: str
) -> tuple[Path, Path | None]:
    """The file that the network learns from, and the one of the other labelled texts, if the plan leaves any to it.

    Each class keeps its share and has a text in either, or in the first alone where it has but one.
    """
    if plan.labelled == plan.of_labelled:
        return labelled, None
    paths = [setting.folder.work / name for name in (LABELLED, OTHER_LABELLED)]
    with setting.processes.leader_first():
        if setting.processes.leads and not all(path.is_file() for path in paths):
            columns = {"text_column": text_column, "label_column": label_column}
            labels = np.array([record.label for record in read_records([labelled], **columns)])
            share = 1 - plan.labelled / plan.of_labelled
            parts = split_documents(len(labels), valid_share=share, seed=plan.config.run.seed, labels=labels)
            for path, part in zip(paths, parts, strict=True):
                write_chosen([labelled], path, chosen=part, **columns)
    return paths[0], paths[1]


def planned_texts(setting: Setting, plan: Plan, unlabelled: Sequence[Path], *, text_column: str) -> list[Path]:
    """The files that the plan's unlabelled texts are in: all there are, or the drawn ones, written for this run."""
    if plan.unlabelled == plan.of:
        return list(unlabelled)
    if plan.unlabelled == 0:
        return []
    path = setting.folder.work / DRAWN
    with setting.processes.leader_first():
        if setting.processes.leads and not path.is_file():
            seed = plan.config.run.seed
            chosen = drawn(plan.unlabelled, plan.of, seed=seed)
            write_chosen(unlabelled, path, chosen=chosen, text_column=text_column)
    return [path]


def _written(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Plan.parse(known["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); start again in another --out") from None
    return known


# --- what this machine does -----------------------------------------------------------------------------------------


def measure(
    setting: Setting,
    budget: Budget,
    labelled: Look,
    unlabelled: Look,
    *,
    classes: Sequence[str],
    base: str | Path,
    config: TrainConfig,
    again: float = 0.0,
) -> tuple[Costs, Sizes]:
    """What the stages cost here, and how much there is for them; the same in all processes.

    `again` are seconds that the run will need once more to read its files.
    """
    devices = [setting.device] if setting.device.type == "cuda" else []
    # As a stage runs: with memory given back in every step, steps take longer.
    memory = memory_kept() if setting.device.type == "cpu" else nullcontext()
    with memory, torch.random.fork_rng(devices=devices):
        torch.manual_seed(setting.run.seed)
        began = time.monotonic()
        pretrained = read_base(setting, base, config.tune)
        loading = time.monotonic() - began
        sample = _Sample.of(labelled, unlabelled, classes, pretrained.tokenizer, config.tune)
        seconds = min(LONGEST_TRIAL, TRIAL_SHARE * 60 * budget.minutes)
        trials = _Trials(replace(setting, report=silent), sample, pretrained, config, seconds)
        # The smallest plan's vocabulary, and the largest's: one pass over all there is, or over what there is time for.
        few = max(len(SPECIALS) + 1, math.ceil(sample.vocabulary.at(sample.labelled_tokens)))
        at_few = trials.tuning(few)
        left = float(setting.processes.agree(60 * budget.minutes - budget.spent))
        most_tokens = sample.labelled_tokens + sample.unlabelled_tokens
        reached = max(sample.labelled_tokens, min(most_tokens, left / at_few))
        many = math.ceil(sample.vocabulary.at(reached))
        softmax = max(0.0, trials.tuning(many) - at_few) / (many - few) if many > LARGER * few else 0.0
        classifying, head, groups = trials.classifying()
        saving = trials.saving()
    costs = Costs(
        reading=sample.reading,
        tuning=max(0.0, at_few - softmax * few),
        softmax=softmax,
        classifying=classifying,
        head=head,
        saving=saving,
        fixed=loading + again,
    )
    sizes = Sizes(
        labelled=labelled.documents,
        labelled_tokens=sample.labelled_tokens,
        unlabelled=unlabelled.documents,
        unlabelled_tokens=sample.unlabelled_tokens,
        vocabulary=sample.vocabulary,
        groups=groups,
    )
    return Costs(**setting.processes.agree(asdict(costs))), sizes


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some of the text as ids, in memory, and what follows from it for the whole."""

    tokenizer: Tokenizer
    labelled: Corpus
    texts: Corpus
    """the labelled and the unlabelled ones"""
    vocabulary: Vocabulary
    labelled_tokens: float
    """of all labelled text there is, by the sample's tokens a character"""
    unlabelled_tokens: float
    reading: float
    """seconds a token"""

    @classmethod
    def of(
        cls, labelled: Look, unlabelled: Look, classes: Sequence[str], base: Tokenizer, settings: TuneSettings
    ) -> _Sample:
        began = time.monotonic()
        texts = [record.text for record in (*labelled.sample, *unlabelled.sample)]
        tokenizer = _tokenizer(texts, base, settings)
        documents = [tokenizer.encode(text) for text in texts]
        spent = time.monotonic() - began
        split = len(labelled.sample)
        labels = [classes.index(record.label or "") for record in labelled.sample]
        size = len(tokenizer)
        tokens = sum(map(len, documents))
        totals = [
            look.characters * sum(map(len, ids)) / max(1, sum(len(record.text) for record in look.sample))
            for look, ids in ((labelled, documents[:split]), (unlabelled, documents[split:]))
        ]
        exponent, limit = 0.0, size
        if base.kind == "word":
            half = _words_or_none(texts[::2], base, settings)
            exponent, limit = min(1.0, max(0.0, math.log2(size / half))), settings.vocab_size
        return cls(
            tokenizer=tokenizer,
            labelled=Corpus.from_documents(documents[:split], vocab_size=size, labels=labels, label_names=classes),
            texts=Corpus.from_documents(documents, vocab_size=size),
            vocabulary=Vocabulary(size, tokens, exponent, limit),
            labelled_tokens=totals[0],
            unlabelled_tokens=totals[1],
            reading=spent / max(1, tokens),
        )


def _tokenizer(texts: Sequence[str], base: Tokenizer, settings: TuneSettings) -> Tokenizer:
    """As `domain_tokenizer`, in this process."""
    if base.kind != "word":
        return base
    return with_base_words(train_tokenizer(texts, config=words_of(settings), processes=1), base, settings)


def _words_or_none(texts: Sequence[str], base: Tokenizer, settings: TuneSettings) -> int:
    """How many words these texts have, the special ones at least."""
    with suppress(TokenizerError):
        return len(_tokenizer(texts, base, settings))
    return len(SPECIALS)


@dataclass(slots=True)
class _Trials:
    """Real steps of both stages on the sample."""

    setting: Setting
    sample: _Sample
    pretrained: LanguageModelBundle
    config: TrainConfig
    seconds: float
    """of each trial"""
    model: LanguageModel | None = None
    """the last one that was tuned"""

    def tuning(self, words: int) -> float:
        """Seconds a token, with so many words in the vocabulary."""
        setting, sample, settings = self.setting, self.sample, self.config.tune
        direction = setting.run.directions[0]
        # With words that the sample lacks, or with the rarest of them taken for the last one kept.
        known = rows_in(self.pretrained.tokenizer, sample.tokenizer)[:words]
        rows = functional.pad(known, (0, words - len(known)), value=-1)
        texts = replace(sample.texts, ids=np.minimum(sample.texts.ids, words - 1))
        self.model = start_of_tuning(self.pretrained, rows, settings, direction).to(setting.device)
        documents = np.arange(len(texts), dtype=np.int64)
        source = LanguageModelText(sample.tokenizer, settings.training, texts, documents, texts, documents[:0])
        stage = language_model_stage(setting, source, self.model, direction, name="trial of tuning")
        return seconds_a_token(stage, groups=None, seconds=self.seconds, processes=setting.processes)

    def classifying(self) -> tuple[float, float, int]:
        """Seconds a token with all layers learning and with the head alone, and how many layer groups there are."""
        setting, sample, settings = self.setting, self.sample, self.config.classify
        assert self.model is not None
        classes = len(sample.labelled.label_names)
        model = start_of_classifying(setting, settings, self.model.cpu(), classes=classes)
        corpus = replace(sample.labelled, ids=np.minimum(sample.labelled.ids, self.model.config.vocab_size - 1))
        documents = np.arange(len(corpus), dtype=np.int64)
        source = LabelledText(sample.tokenizer, corpus, documents, corpus, documents[:0])
        direction = setting.run.directions[0]
        stage = classifier_stage(setting, source, model, direction, settings, name="trial of the classifier")
        every, head = (
            seconds_a_token(stage, groups=groups, seconds=self.seconds, processes=setting.processes)
            for groups in (None, (-1,))
        )
        return every, head, len(stage.groups)

    def saving(self) -> float:
        """Seconds to write the model once."""
        assert self.model is not None
        if not self.setting.processes.leads:
            return 0.0
        folder = self.setting.folder.work / "trial"
        began = time.monotonic()
        try:
            Checkpoints(folder).save(self.model.state_dict(), {})
            return time.monotonic() - began
        finally:
            shutil.rmtree(folder, ignore_errors=True)
