"""The recipe, stage by stage: pretrain a language model, tune it on the domain, train a classifier on it.

Read this first. Each stage is one function from text and settings to a bundle in a folder; `train` runs the last two.
Every stage can be killed at any moment and called again with `resume=True`; with `profile=True` it writes what its time
went to. It returns what it saved, read back: stored as int8, the weights are rounded, and who goes on from them must
get the same as after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.config import ClassifyConfig, Direction, LanguageModelConfig, PretrainConfig, TrainConfig, TuneConfig
from ulmfit.errors import ConfigError, DataError
from ulmfit.learning.budget import Budget, in_words
from ulmfit.learning.classifier import check_class_weights
from ulmfit.learning.language_model import LanguageModelText, learn_language_models, read_base, start_of_tuning
from ulmfit.learning.planning import describe_budget, plan_within, planned_labels, planned_texts
from ulmfit.learning.setting import base_name, describe_inputs, open_setting
from ulmfit.learning.vocabulary import domain_tokenizer, learn_tokenizer, rows_in
from ulmfit.learning.voters import learn_classifiers
from ulmfit.models.language_model import LanguageModel
from ulmfit.pretrained import find_bundle
from ulmfit.text.sources import read_records
from ulmfit.text.words import SPECIALS
from ulmfit.training.events import Note, Report, silent

# --- stage 1 --------------------------------------------------------------------------------------------------------


def pretrain(
    texts: Sequence[Path],
    *,
    config: PretrainConfig,
    out: Path,
    valid: Sequence[Path] = (),
    text_column: str = "text",
    resume: bool = False,
    profile: bool = False,
    report: Report = silent,
) -> LanguageModelBundle:
    """Learn a language from a large general corpus: a vocabulary, then a language model in each direction.

    Perplexity is measured on `valid`, or on a share of `texts` held out. The bundle is saved in `out`.
    """
    inputs = describe_inputs(texts=texts, valid=valid, text_column=text_column)
    with open_setting(
        out, command="pretrain", config=config, inputs=inputs, resume=resume, report=report, profile=profile
    ) as setting:
        if setting.folder.finished:
            return LanguageModelBundle.load(out)
        settings = config.pretrain
        tokenizer = learn_tokenizer(setting, texts, settings.tokenizer, text_column)
        model_config = LanguageModelConfig(
            vocab_size=len(tokenizer), encoder=settings.encoder, output_dropout=settings.output_dropout
        )

        def fresh(direction: Direction) -> LanguageModel:
            return LanguageModel(model_config)

        source = LanguageModelText.read(setting, texts, valid, tokenizer, settings.training, text_column)
        bundle = learn_language_models(setting, source, fresh, config=config, stage="pretrain", base=None)
        return setting.saved(bundle)


# --- stage 2 --------------------------------------------------------------------------------------------------------


def tune_language_model(
    texts: Sequence[Path],
    *,
    base: str | Path,
    config: TuneConfig,
    out: Path,
    valid: Sequence[Path] = (),
    text_column: str = "text",
    resume: bool = False,
    profile: bool = False,
    report: Report = silent,
    corpora: Path | None = None,
) -> LanguageModelBundle:
    """Tune a pretrained language model on the target domain's text, over the domain's own vocabulary.

    A word that the base lacks starts as the mean of its rows. `base` is a name, a folder or a hub id. Runs that are
    given the same folder `corpora` read and tokenise the same text once.
    """
    inputs = describe_inputs(texts=texts, valid=valid, base=base, text_column=text_column)
    with open_setting(
        out,
        command="tune",
        config=config,
        inputs=inputs,
        resume=resume,
        report=report,
        profile=profile,
        corpora=corpora,
    ) as setting:
        if setting.folder.finished:
            return LanguageModelBundle.load(out)
        settings = config.tune
        pretrained = read_base(setting, base, settings)
        from_base = settings.start == "pretrained"
        tokenizer = domain_tokenizer(setting, texts, pretrained.tokenizer, settings, text_column)
        rows = rows_in(pretrained.tokenizer, tokenizer)
        words = rows[len(SPECIALS) :]
        if from_base and len(words) and not bool((words >= 0).any()):
            raise ConfigError(
                f"the base model {str(base)!r} knows none of the words of this text; is it this language?"
            )
        known = float((rows >= 0).float().mean())
        setting.report(Note(f"vocabulary: {len(rows):,} tokens, {known:.0%} of them known to the base model"))

        def moved(direction: Direction) -> LanguageModel:
            return start_of_tuning(pretrained, rows, settings, direction)

        source = LanguageModelText.read(setting, texts, valid, tokenizer, settings.training, text_column)
        bundle = learn_language_models(
            setting,
            source,
            moved,
            config=config,
            stage="tune",
            base=base_name(base) if from_base else None,
            untrained=not settings.learn,
        )
        return setting.saved(bundle)


# --- stage 3 --------------------------------------------------------------------------------------------------------


def train_classifier(
    labelled: Path,
    *,
    language_model: str | Path,
    config: ClassifyConfig,
    out: Path,
    valid: Path | None = None,
    unlabelled: Sequence[Path] = (),
    text_column: str = "text",
    label_column: str = "label",
    resume: bool = False,
    profile: bool = False,
    report: Report = silent,
    corpora: Path | None = None,
) -> ClassifierBundle:
    """Train a classifier on a tuned language model's encoder, one for each of its directions that is asked for.

    The error of each epoch is measured on `valid`, or on a share of `labelled` held out. `unlabelled` is for
    self-training and the bag of words, where the settings want them.
    """
    inputs = describe_inputs(
        labelled=[labelled],
        valid=[] if valid is None else [valid],
        unlabelled=unlabelled,
        base=language_model,
        text_column=text_column,
        label_column=label_column,
    )
    with open_setting(
        out,
        command="classify",
        config=config,
        inputs=inputs,
        resume=resume,
        report=report,
        profile=profile,
        corpora=corpora,
    ) as setting:
        if setting.folder.finished:
            return ClassifierBundle.load(out)
        check_labels(labelled, text_column=text_column, label_column=label_column)
        with setting.processes.leader_first():
            tuned = LanguageModelBundle.load(find_bundle(language_model))
        bundle = learn_classifiers(
            setting,
            labelled,
            tuned,
            config=config,
            text_column=text_column,
            label_column=label_column,
            valid=valid,
            unlabelled=unlabelled,
            domain=unlabelled,
        )
        return setting.saved(bundle)


def train(
    labelled: Path,
    *,
    config: TrainConfig,
    out: Path,
    unlabelled: Sequence[Path] = (),
    base: str | Path = "en",
    text_column: str = "text",
    label_column: str = "label",
    budget: Budget | None = None,
    resume: bool = False,
    profile: bool = False,
    report: Report = silent,
) -> ClassifierBundle:
    """Stages 2 and 3: tune on the labelled and unlabelled text, then train the classifier.

    With `unlabelled` this is the paper's semi-supervised setting, without it the supervised one. The tuned language
    model stays in `out/language_model`. With a `budget`, the settings are the most that is done: how much unlabelled
    text and how many epochs fit its minutes is planned first, said, and kept in `out/plan.json`; ConfigError where they
    are too few.
    """
    inputs = describe_inputs(
        labelled=[labelled], unlabelled=unlabelled, base=base, text_column=text_column, label_column=label_column
    )
    inputs |= describe_budget(budget)
    with open_setting(
        out, command="train", config=config, inputs=inputs, resume=resume, report=report, profile=profile
    ) as setting:
        if setting.folder.finished:
            return ClassifierBundle.load(out)
        counts = check_labels(labelled, text_column=text_column, label_column=label_column)
        check_class_weights(config.classify, list(counts))
        texts, others = list(unlabelled), None
        if budget is not None:
            plan = plan_within(
                setting,
                budget,
                labelled=labelled,
                classes=list(counts),
                unlabelled=unlabelled,
                base=base,
                config=config,
                text_column=text_column,
                label_column=label_column,
            )
            config, texts = plan.config, planned_texts(setting, plan, unlabelled, text_column=text_column)
            labelled, others = planned_labels(
                setting, plan, labelled, text_column=text_column, label_column=label_column
            )
        tuned_folder = out / "language_model"
        tuned = tune_language_model(
            [labelled, *texts],
            base=base,
            config=TuneConfig(run=config.run, tune=config.tune),
            out=tuned_folder,
            text_column=text_column,
            resume=resume,
            profile=profile,
            report=setting.tell,
        )
        setting.history.extend(tuned.facts["history"])
        bundle = learn_classifiers(
            setting,
            labelled,
            tuned,
            config=ClassifyConfig(run=config.run, classify=config.classify),
            text_column=text_column,
            label_column=label_column,
            others=others,
            unlabelled=texts,
            domain=unlabelled,
        )
        saved = setting.saved(bundle)
        if budget is not None and not resume:
            setting.tell(Note(f"took {in_words(budget.spent)} of the {budget.minutes:g} minutes given"))
        return saved


def check_labels(labelled: Path, *, text_column: str, label_column: str) -> dict[str, int]:
    """How many documents each class has, in order of name; DataError where there is only one class."""
    counts: dict[str, int] = {}
    for record in read_records([labelled], text_column=text_column, label_column=label_column):
        label = record.label or ""
        counts[label] = counts.get(label, 0) + 1
    if len(counts) < 2:
        raise DataError(
            f"{labelled}: all {sum(counts.values())} documents have the label {next(iter(counts))!r}; "
            "a classifier needs at least two classes. Is --label-column the right one?"
        )
    return dict(sorted(counts.items()))


def check_known_labels(test: Path, labels: Sequence[str], *, text_column: str, label_column: str) -> None:
    """Refuse a test file with an unseen label before hours of training, not after: DataError that names its row."""
    for record in read_records([test], text_column=text_column, label_column=label_column):
        if record.label not in labels:
            raise DataError(
                f"{record.source}, row {record.row + 1}: the label {record.label!r} is not among the training labels "
                f"{', '.join(labels)}"
            )
