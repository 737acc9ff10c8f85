"""Stage 3 from the inside: how one network learns to classify, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.config import ClassifierConfig, ClassifySettings, Direction, HeadConfig, LanguageModelConfig, UnfreezingPlan
from ulmfit.errors import ConfigError
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.reading import classify_documents, padded, pool_documents
from ulmfit.learning.setting import Setting, groups_by_name, on_device, stacked_by_name
from ulmfit.models.classifier import Classifier
from ulmfit.models.encoder import State
from ulmfit.models.language_model import LanguageModel
from ulmfit.text.batches import DocumentBatches, prefetch
from ulmfit.text.corpus import Corpus
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.loop import StepLoss
from ulmfit.training.schedules import phases_of
from ulmfit.training.stage import Stage


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
    weights = class_weights(settings, source.corpus, source.documents).to(setting.device)
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
        loss=_classification_loss(model, settings, weights, setting.learning_dtype, frozen, setting.processes),
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


def class_weights(settings: ClassifySettings, corpus: Corpus, documents: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
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
