"""Stage 3 from the inside: the loss, one classifier a direction, and what votes beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.bag_of_words import BagOfWords
from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.config import (
    ClassifierConfig,
    ClassifyConfig,
    ClassifySettings,
    Direction,
    HeadConfig,
    LanguageModelConfig,
    UnfreezingPlan,
)
from ulmfit.errors import ConfigError
from ulmfit.learning.bag_of_words import MOST_UNLABELLED, learn_bag_of_words, share_of_network, tuned_tokens
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.reading import classify_documents, padded, pool_documents
from ulmfit.learning.self_training import with_surest
from ulmfit.learning.setting import Setting, groups_by_name, identity, on_device, run_facts, stacked_by_name
from ulmfit.models.classifier import Classifier
from ulmfit.models.encoder import State
from ulmfit.models.language_model import LanguageModel
from ulmfit.text.batches import DocumentBatches, prefetch
from ulmfit.text.corpus import Corpus
from ulmfit.text.draw import draw_texts
from ulmfit.text.sources import read_records
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.events import Note
from ulmfit.training.loop import StepLoss
from ulmfit.training.schedules import phases_of, phases_over_more
from ulmfit.training.stage import Stage


def learn_classifiers(
    setting: Setting,
    labelled: Path,
    tuned: LanguageModelBundle,
    *,
    config: ClassifyConfig,
    text_column: str,
    label_column: str,
    valid: Path | None = None,
    others: Path | None = None,
    unlabelled: Sequence[Path] = (),
    domain: Sequence[Path] = (),
) -> ClassifierBundle:
    """Train one classifier a direction and gather them in a bundle; measured on `valid`, or on a share held out.

    Where the settings want self-training, those teach a second one of each direction, with the surest of `unlabelled`;
    where they want a bag of words, that learns from some of `domain` too, and from the labels of `others`, which there
    was no time for in the network.
    """
    settings, run = config.classify, setting.run
    for direction in run.directions:
        if direction not in tuned.models:
            raise ConfigError(f"the language model reads {' and '.join(tuned.directions)} only; pass that --direction")
    source = LabelledText.read(
        setting,
        labelled,
        valid,
        tuned.tokenizer,
        valid_share=settings.valid_share,
        text_column=text_column,
        label_column=label_column,
    )
    corpus = source.corpus
    models = _learn(setting, source, tuned, config, settings, name="classify")
    if settings.self_training and not unlabelled:
        setting.tell(Note("no self-training, as there is no unlabelled text"))
    elif settings.self_training:
        pool = setting.corpus(unlabelled, tuned.tokenizer, name="unlabelled", text_column=text_column)
        more = with_surest(setting, source, pool, models, settings)
        if more is not None:
            phases = phases_over_more(settings.phases, documents=len(source.documents), of=len(more.documents))
            batch_size = settings.self_training_batch_size or settings.batch_size
            again = settings.model_copy(update={"phases": phases, "batch_size": batch_size})
            models = _learn(setting, more, tuned, config, again, name="self-train")
    facts = run_facts(setting, "train", base=tuned.facts.get("base"), corpus=corpus, documents=len(corpus))
    bag = None
    if settings.bag_of_words and setting.processes.leads:  # who alone saves
        bag, results = _learn_bag_of_words(
            setting,
            source,
            tuned,
            settings,
            labelled=labelled,
            valid=valid,
            others=others,
            domain=domain,
            text_column=text_column,
            label_column=label_column,
        )
        facts["results"]["bag of words"] = results
    return ClassifierBundle(
        config=models[run.directions[0]].config,
        tokenizer=tuned.tokenizer,
        models=models,
        facts=facts,
        labels=corpus.label_names,
        bag_of_words=bag,
    )


def _learn_bag_of_words(
    setting: Setting,
    source: LabelledText,
    tuned: LanguageModelBundle,
    settings: ClassifySettings,
    *,
    labelled: Path,
    valid: Path | None,
    others: Path | None,
    domain: Sequence[Path],
    text_column: str,
    label_column: str,
) -> tuple[BagOfWords, dict[str, Any]]:
    """What votes beside the classifiers, and its results: its terms, and its accuracy alone on what was held out."""
    began = time.monotonic()
    columns = {"text_column": text_column, "label_column": label_column}
    seed = setting.run.seed
    texts = [record.text for record in read_records([labelled], **columns)]
    more = list(read_records([others], **columns)) if others is not None else []
    drawn = draw_texts(domain, most=MOST_UNLABELLED, seed=seed, text_column=text_column) if domain else []
    unseen = np.setdiff1d(np.arange(len(texts)), source.documents)  # held out: words without labels, as for the network
    labels, known, names = source.corpus.labels, source.valid_corpus.labels, source.corpus.label_names
    assert labels is not None and known is not None
    more_labels = np.array([names.index(record.label or "") for record in more], dtype=np.int32)
    bag = learn_bag_of_words(
        [*(texts[place] for place in source.documents), *(record.text for record in more)],
        np.concatenate([labels[source.documents], more_labels]),
        [*drawn, *(texts[place] for place in unseen)],
        classes=len(names),
        share=settings.bag_of_words,
        network_share=share_of_network(
            len(source.documents), classes=len(names), tuned_tokens=tuned_tokens(tuned.facts)
        ),
        seed=seed,
        class_weights=_class_weights(settings, source.corpus, source.documents).tolist(),
    )
    results: dict[str, Any] = {"terms": len(bag.terms), "labelled": len(source.documents) + len(more)}
    told = f"bag of words: {len(bag.terms):,} terms, {time.monotonic() - began:.0f} s"
    if len(source.valid_documents):
        held_out = texts if valid is None else [record.text for record in read_records([valid], **columns)]
        guesses = bag.logits([held_out[place] for place in source.valid_documents]).argmax(1)
        results["accuracy"] = float((guesses == known[source.valid_documents]).mean())
        told += f", alone right on {results['accuracy']:.2%} of what was held out"
    setting.tell(Note(told))
    return bag, results


def _learn(
    setting: Setting,
    source: LabelledText,
    tuned: LanguageModelBundle,
    config: ClassifyConfig,
    settings: ClassifySettings,
    *,
    name: str,
) -> dict[Direction, Classifier]:
    """A classifier of each direction; `config` is what its checkpoints belong to, `settings` how it learns."""
    models: dict[Direction, Classifier] = {}
    for direction in setting.run.directions:
        torch.manual_seed(setting.run.seed)
        classes = len(source.corpus.label_names)
        model = start_of_classifying(setting, settings, tuned.models[direction], classes=classes)
        learning = classifier_stage(setting, source, model, direction, settings, name=f"{name} {direction}")
        learning = replace(learning, identity=identity(setting, config, source.corpus))
        setting.learn(learning, setting.folder.work / f"{name}-{direction}")
        models[direction] = model.cpu().eval()
    return models


def start_of_classifying(
    setting: Setting, settings: ClassifySettings, language_model: LanguageModel, *, classes: int
) -> Classifier:
    """A fresh head on the language model's encoder, on the run's device; draws from torch's generator."""
    model = Classifier(_classifier_config(settings, language_model.config, classes=classes))
    model.load_language_model(language_model.state_dict())
    model = model.to(setting.device)
    # Where nothing makes the gradient dense, as the tied decoder does. A GPU would wait for the rows' count.
    model.encoder.embedding.sparse = setting.device.type == "cpu" and settings.language_model_weight == 0
    return model


def classifier_stage(
    setting: Setting,
    source: LabelledText,
    model: Classifier,
    direction: Direction,
    settings: ClassifySettings,
    *,
    name: str,
) -> Stage:
    """How this model learns from these documents."""
    groups, plan = groups_by_name(model.layer_groups()), settings.phases
    weights = _class_weights(settings, source.corpus, source.documents).to(setting.device)
    documents = np.sort(source.documents)
    read = partial(pool_documents, model, source.corpus, documents, direction=direction, tokenizer=source.tokenizer)
    frozen = FrozenEncoder(model, documents, partial(read, dtype=setting.dtype, processes=setting.processes))
    batches = DocumentBatches(
        source.corpus,
        documents=source.documents,
        batch_size=settings.batch_size,
        seed=setting.run.seed,
        reverse=direction == "backward",
        begin_id=source.tokenizer.begin_id,
        padding_id=source.tokenizer.padding_id,
    )
    return Stage(
        name=name,
        model=model,
        groups=groups,
        phases=phases_of(plan, groups=len(groups)) if isinstance(plan, UnfreezingPlan) else plan,
        optimizer=settings.optimizer,
        batches=_documents_on_device(batches, setting.device, setting.processes),
        steps=batches.steps,
        loss=_classification_loss(model, settings, weights, setting.dtype, frozen, setting.processes),
        evaluate=_classifier_evaluation(
            setting, model, source.valid_corpus, source.valid_documents, direction, source.tokenizer
        ),
        # What the paper reports; on IMDb it still falls when an ever surer model's loss already rises.
        monitor=("error", "valid_loss"),
        patience=settings.patience,
        seed=setting.run.seed,
        stacked=stacked_by_name(model.layer_groups()),
    )


def _classifier_config(settings: ClassifySettings, base: LanguageModelConfig, *, classes: int) -> ClassifierConfig:
    multiplier = settings.dropout_multiplier
    first, second = (rate * multiplier for rate in settings.head_dropouts)
    return ClassifierConfig(
        vocab_size=base.vocab_size,
        encoder=base.encoder.model_copy(update={"dropouts": settings.dropouts.scaled(multiplier)}),
        head=HeadConfig(
            classes=classes, hidden_size=settings.head_hidden_size, input_dropout=first, hidden_dropout=second
        ),
        window=settings.window,
        horizon=settings.horizon,
    )


def _class_weights(
    settings: ClassifySettings, corpus: Corpus, documents: np.ndarray[Any, np.dtype[np.int64]]
) -> Tensor:
    """The weight of each class in the loss, (classes,)."""
    assert corpus.labels is not None
    names = corpus.label_names
    if settings.class_weights == "none":
        return torch.ones(len(names))
    if settings.class_weights == "balanced":
        counts = np.bincount(corpus.labels[documents], minlength=len(names))
        return torch.from_numpy(len(documents) / (len(names) * np.maximum(counts, 1))).float()
    check_class_weights(settings, names)
    return torch.tensor([settings.class_weights.get(name, 1.0) for name in names])


def check_class_weights(settings: ClassifySettings, names: Sequence[str]) -> None:
    """Raise ConfigError where a class is given a weight that the data do not have."""
    for name in settings.class_weights if isinstance(settings.class_weights, dict) else ():
        if name not in names:
            raise ConfigError(f"class_weights names the class {name!r}; the data has {', '.join(names)}")


class LabelledBatch(NamedTuple):
    """A batch of documents, or one process's share of it, on the device."""

    epoch: int
    documents: np.ndarray[Any, np.dtype[np.int64]]
    """(share,) places in the corpus"""
    tokens: Tensor
    """(time, share)"""
    lengths: Tensor
    """(share,) on the CPU"""
    labels: Tensor
    """(whole batch,)"""


class FrozenEncoder:
    """What the encoder makes of each document while it neither learns nor drops anything: the same in every epoch.

    So it is read once, in batches that do not hang on the epoch's order, and a resumed run finds the same.
    """

    def __init__(
        self,
        model: Classifier,
        documents: np.ndarray[Any, np.dtype[np.int64]],
        read: Callable[[], Tensor],
    ) -> None:
        self._model, self._documents, self._read = model, documents, read
        self._pooled: Tensor | None = None

    def rows(self, documents: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor | None:
        """Pooled outputs (documents, 3 * output_size) on the model's device; None while they change."""
        encoder = self._model.encoder
        drops = any(self._model.config.encoder.dropouts.model_dump().values())
        if drops or any(parameter.requires_grad for parameter in encoder.parameters()):
            self._pooled = None
            return None
        if self._pooled is None:
            self._pooled = self._read().to(encoder.embedding.weight.device)
        places = np.searchsorted(self._documents, documents)
        return self._pooled[torch.from_numpy(places).to(self._pooled.device)]


def _classification_loss(
    model: Classifier,
    settings: ClassifySettings,
    weights: Tensor,
    dtype: torch.dtype,
    frozen: FrozenEncoder,
    processes: Processes = ALONE,
) -> Callable[[Any, State | None], StepLoss]:
    """Cross entropy of the labels, and in multi-task learning the language model's beside it (SiATL).

    Every process encodes its share of the documents and classifies the whole batch, so the loss of the labels is the
    same in all, and each counts its part.
    """

    def loss(batch: LabelledBatch, state: State | None) -> StepLoss:
        epoch, documents, tokens, lengths, labels = batch
        share = settings.language_model_weight * settings.language_model_decay**epoch
        result = model(
            tokens,
            lengths,
            dtype=dtype,
            with_language_model=share > 0,
            pooled=None if share > 0 else frozen.rows(documents),
            gather=lambda pooled: processes.gather(pooled, len(labels)),
        )
        label_loss = functional.cross_entropy(
            result.logits, labels, weight=weights, label_smoothing=settings.label_smoothing
        )
        label_loss = label_loss / processes.size
        total = label_loss
        if share > 0:
            total = total + share * processes.part_of_mean(result.language_model_loss, result.predicted_tokens)
        return StepLoss(total, label_loss.detach(), None, int(lengths.sum()))

    return loss


def _documents_on_device(
    batches: DocumentBatches, device: torch.device, processes: Processes
) -> Callable[[int, int], Iterator[Any]]:
    def epoch_batches(epoch: int, start: int) -> Iterator[Any]:
        for batch in prefetch(batches.epoch(epoch, start=start, share=(processes.rank, processes.size))):
            assert batch.labels is not None
            lengths = torch.from_numpy(batch.lengths)
            yield LabelledBatch(epoch, batch.indices, padded(batch, device), lengths, on_device(device, batch.labels))

    return epoch_batches


def _classifier_evaluation(
    setting: Setting,
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]],
    direction: Direction,
    tokenizer: Tokenizer,
) -> Callable[[], dict[str, float]] | None:
    """A function that measures loss and accuracy on the documents held out; None where there are none."""
    if len(documents) == 0:
        return None

    def measure() -> dict[str, float]:
        assert corpus.labels is not None
        logits = classify_documents(
            model,
            corpus,
            documents,
            direction=direction,
            tokenizer=tokenizer,
            dtype=setting.dtype,
            processes=setting.processes,
        )
        labels = torch.from_numpy(corpus.labels[documents].astype(np.int64))
        accuracy = (logits.argmax(1) == labels).double().mean()
        loss = functional.cross_entropy(logits, labels)
        return {"valid_loss": float(loss), "accuracy": float(accuracy), "error": float(1 - accuracy)}

    return measure
