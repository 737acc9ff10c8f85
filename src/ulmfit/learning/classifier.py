"""Stage 3 from the inside: labelled documents, the loss, and one classifier a direction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import in_threads
from ulmfit.config import (
    ClassifierConfig,
    ClassifyConfig,
    ClassifySettings,
    Direction,
    HeadConfig,
    LanguageModelConfig,
    UnfreezingPlan,
)
from ulmfit.errors import ConfigError, DataError
from ulmfit.learning.setting import Setting, groups_by_name, identity, on_device, run_facts, stacked_by_name
from ulmfit.models.classifier import Classifier
from ulmfit.models.encoder import Encoder, State
from ulmfit.models.lanes import read_in_lanes
from ulmfit.text.batches import DocumentBatch, DocumentBatches, prefetch, reverse_document
from ulmfit.text.corpus import Corpus, split_documents
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.loop import StepLoss
from ulmfit.training.schedules import phases_of
from ulmfit.training.stage import Stage

EVALUATION_DOCUMENTS = {"cpu": 96, "cuda": 2**12}
"""documents of a batch in evaluation"""
EVALUATION_TOKENS = {"cpu": 2**20, "cuda": 2**23}
"""and its tokens, padding included, at most; a window holds few of them"""
GPU_WINDOW = 32
"""few steps, as many documents are read at once; where there are fewer, a GPU reads several windows together"""
INT8_LANES = 256
"""documents that one thread reads at once in int8: fewer are multiplied more slowly"""
INT8_WINDOW, INT8_WINDOW_TOKENS = 16, 2**12
"""in int8 a window is no shorter than this and holds no more tokens if it can: the shorter, the less is padding"""
INT8_THREAD_DOCUMENTS = 64
"""documents from which on a thread of its own pays in int8; threads that share the products of fewer do better"""
INT8_CHUNK = 4096
"""documents whose pooled outputs are held at once"""


def learn_classifiers(
    setting: Setting,
    labelled: Path,
    tuned: LanguageModelBundle,
    *,
    config: ClassifyConfig,
    text_column: str,
    label_column: str,
    valid: Path | None = None,
) -> ClassifierBundle:
    """Train one classifier a direction and gather them in a bundle; measured on `valid`, or on a share held out."""
    settings, run = config.classify, setting.run
    for direction in run.directions:
        if direction not in tuned.models:
            raise ConfigError(f"the language model reads {' and '.join(tuned.directions)} only; pass that --direction")
    corpus = setting.corpus(
        [labelled], tuned.tokenizer, name="labelled", text_column=text_column, label_column=label_column
    )
    assert corpus.labels is not None
    if valid is None:
        learn, held_out = split_documents(
            len(corpus), valid_share=settings.valid_share, seed=run.seed, labels=corpus.labels
        )
        measured = corpus
    else:
        measured = setting.corpus(
            [valid], tuned.tokenizer, name="valid", text_column=text_column, label_column=label_column
        )
        measured = with_label_names(measured, corpus.label_names, source=valid)
        learn, held_out = (np.arange(len(text), dtype=np.int64) for text in (corpus, measured))
    model_config = _classifier_config(settings, tuned.config, classes=len(corpus.label_names))
    weights = _class_weights(settings, corpus, learn).to(setting.device)
    models: dict[Direction, Classifier] = {}
    for direction in run.directions:
        torch.manual_seed(run.seed)
        model = Classifier(model_config)
        model.load_language_model(tuned.models[direction].state_dict())
        model = model.to(setting.device)
        # Where nothing makes the gradient dense, as the tied decoder does. A GPU would wait for the rows' count.
        model.encoder.embedding.sparse = setting.device.type == "cpu" and settings.language_model_weight == 0
        groups, plan = groups_by_name(model.layer_groups()), settings.phases
        batches = DocumentBatches(
            corpus,
            documents=learn,
            batch_size=settings.batch_size,
            seed=run.seed,
            reverse=direction == "backward",
            begin_id=tuned.tokenizer.begin_id,
            padding_id=tuned.tokenizer.padding_id,
        )
        setting.learn(
            Stage(
                name=f"classify {direction}",
                model=model,
                groups=groups,
                phases=phases_of(plan, groups=len(groups)) if isinstance(plan, UnfreezingPlan) else plan,
                optimizer=settings.optimizer,
                batches=_documents_on_device(batches, setting.device, setting.processes),
                steps=batches.steps,
                loss=_classification_loss(model, settings, weights, setting.dtype, setting.processes),
                evaluate=_classifier_evaluation(setting, model, measured, held_out, direction, tuned.tokenizer),
                # What the paper reports; on IMDb it still falls when an ever surer model's loss already rises.
                monitor=("error", "valid_loss"),
                patience=settings.patience,
                seed=run.seed,
                stacked=stacked_by_name(model.layer_groups()),
                identity=identity(setting, config, corpus),
            ),
            setting.folder.work / f"classify-{direction}",
        )
        models[direction] = model.cpu().eval()
    facts = run_facts(setting, "train", base=tuned.facts.get("base"), corpus=corpus, documents=len(corpus))
    return ClassifierBundle(
        config=model_config, tokenizer=tuned.tokenizer, models=models, facts=facts, labels=corpus.label_names
    )


def with_label_names(corpus: Corpus, names: Sequence[str], *, source: Path) -> Corpus:
    """The labelled corpus with its labels as indices of `names`; DataError for a label that is not among them."""
    assert corpus.labels is not None
    for name in corpus.label_names:
        if name not in names:
            raise DataError(f"{source}: the label {name!r} is not among the training labels {', '.join(names)}")
    index = np.array([list(names).index(name) for name in corpus.label_names], dtype=np.int32)
    return replace(corpus, labels=index[corpus.labels], label_names=tuple(names))


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


def _classification_loss(
    model: Classifier, settings: ClassifySettings, weights: Tensor, dtype: torch.dtype, processes: Processes = ALONE
) -> Callable[[Any, State | None], StepLoss]:
    """Cross entropy of the labels, and in multi-task learning the language model's beside it (SiATL).

    Every process encodes its share of the documents and classifies the whole batch, so the loss of the labels is the
    same in all, and each counts its part.
    """

    def loss(batch: tuple[int, Tensor, Tensor, Tensor], state: State | None) -> StepLoss:
        epoch, tokens, lengths, labels = batch
        share = settings.language_model_weight * settings.language_model_decay**epoch
        result = model(
            tokens,
            lengths,
            dtype=dtype,
            with_language_model=share > 0,
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
            yield (
                epoch,
                padded(batch, device),
                torch.from_numpy(batch.lengths),
                on_device(device, batch.labels),
            )

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


def padded(batch: DocumentBatch, device: torch.device) -> Tensor:
    """The batch's tokens (time, batch) on the device; a GPU is sent what there is to read and pads it there."""
    if device.type != "cuda":
        return torch.from_numpy(batch.tokens)
    ids = on_device(device, batch.ids.astype(np.int32))
    lengths = on_device(device, batch.lengths)
    shape = (len(batch.lengths), int(batch.lengths.max(initial=0)))
    real = torch.arange(shape[1], device=device) < lengths.unsqueeze(1)
    return torch.full(shape, batch.padding_id, device=device).masked_scatter_(real, ids.long()).t()


def classify_documents(
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    *,
    direction: Direction,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    weights: Any = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Logits (documents, classes) on the CPU, in the documents' own order, whatever their lengths.

    `weights` are what the model's encoder prepared in `dtype`, where the caller keeps them. Several processes share the
    documents and each gets the logits of all.
    """
    chosen = np.arange(len(corpus)) if documents is None else documents
    if dtype == torch.int8:
        logits = _classify_in_int8(model, corpus, chosen, direction, tokenizer, weights, processes)
    else:
        logits = _classify_in_batches(model, corpus, chosen, direction, tokenizer, dtype, weights, processes)
    processes.sum([logits])
    return logits


def _classify_in_batches(
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]],
    direction: Direction,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    weights: Any,
    processes: Processes,
) -> Tensor:
    """Logits of this process's share in batches of like length, zeros elsewhere."""
    device = next(model.parameters()).device
    batches = DocumentBatches(
        corpus,
        documents=documents,
        batch_size=EVALUATION_DOCUMENTS[device.type],
        max_tokens=EVALUATION_TOKENS[device.type],
        shuffle=False,
        reverse=direction == "backward",
        begin_id=tokenizer.begin_id,
        padding_id=tokenizer.padding_id,
    )
    place = np.empty(len(corpus), dtype=np.int64)
    place[documents] = np.arange(len(documents))
    logits = torch.zeros(len(documents), model.config.head.classes)
    with torch.inference_mode():
        weights = weights or model.encoder.prepare(dtype)
        for batch in batches.epoch(0, share=(processes.rank, processes.size)):
            tokens, lengths = padded(batch, device), torch.from_numpy(batch.lengths)
            # Nothing is drawn at random and nothing learnt, so where windows end makes no difference but to speed.
            window = GPU_WINDOW if device.type == "cuda" else None
            result = model(tokens, lengths, dtype=dtype, weights=weights, window=window)
            logits[torch.from_numpy(place[batch.indices])] = result.logits.cpu()
    return logits


def _classify_in_int8(
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]],
    direction: Direction,
    tokenizer: Tokenizer,
    weights: Any,
    processes: Processes,
) -> Tensor:
    """The same in int8, where no document's numbers depend on its company or its windows, so it is read in lanes."""
    logits = torch.zeros(len(documents), model.config.head.classes)
    order = np.argsort(-corpus.lengths[documents], kind="stable")[processes.rank :: processes.size]

    def document(place: int) -> np.ndarray[Any, Any]:
        ids = corpus.document(int(documents[order[place]]))
        return reverse_document(ids, begin_id=tokenizer.begin_id) if direction == "backward" else ids

    with torch.inference_mode():
        weights = weights or model.encoder.prepare(torch.int8)
        for start in range(0, len(order), INT8_CHUNK):
            places = range(start, min(start + INT8_CHUNK, len(order)))
            pooled = _pool_in_lanes(model.encoder, weights, document, places)
            logits[torch.from_numpy(order[places.start : places.stop])] = model.head(pooled)
    return logits


def _pool_in_lanes(
    encoder: Encoder, weights: Any, document: Callable[[int], np.ndarray[Any, Any]], places: range
) -> Tensor:
    """Pooled outputs (places, 3 * output_size) of documents that get shorter from place to place.

    With documents enough each thread reads its own, one from the longest on and the others from the shortest: so they
    end at about the same time, and the longest do not run on alone.
    """
    waiting = deque(places)
    pooled = torch.empty(len(places), 3 * encoder.output_size)

    def read(next_place: Callable[[], int]) -> None:
        def take() -> tuple[int, np.ndarray[Any, Any]] | None:
            try:
                place = next_place()
            except IndexError:
                return None
            return place - places.start, document(place)

        with torch.inference_mode():  # each thread has a mode of its own
            for numbers, rows in read_in_lanes(
                encoder, weights, take, lanes=INT8_LANES, window=INT8_WINDOW, window_tokens=INT8_WINDOW_TOKENS
            ):
                pooled[numbers] = rows

    threads = max(1, min(torch.get_num_threads(), len(places) // INT8_THREAD_DOCUMENTS))
    in_threads(read, [waiting.popleft if number == 0 else waiting.pop for number in range(threads)])
    return pooled
