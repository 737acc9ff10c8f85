"""Stages 1 and 2 from the inside: streams of text, the loss, perplexity, and one model a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.bundle import LanguageModelBundle
from ulmfit.config import (
    Direction,
    LanguageModelConfig,
    LanguageModelTraining,
    PretrainConfig,
    TuneConfig,
    TuneSettings,
)
from ulmfit.errors import ConfigError
from ulmfit.learning.setting import Setting, groups_by_name, identity, on_device, run_facts, stacked_by_name
from ulmfit.models.encoder import State, detach
from ulmfit.models.language_model import LanguageModel, transfer_vocabulary
from ulmfit.pretrained import find_bundle
from ulmfit.text.batches import LanguageModelWindows, prefetch
from ulmfit.text.corpus import Corpus, split_documents
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import ALONE, Processes
from ulmfit.training.events import Note
from ulmfit.training.loop import StepLoss
from ulmfit.training.metrics import perplexity
from ulmfit.training.stage import Stage

EVALUATION_STREAMS = 64
EVALUATION_WINDOW_TOKENS = {"cpu": 2**11, "cuda": 2**13}
"""read at once, of all streams together: on a CPU as few as a step learns from, so that it needs no more memory"""
FEWEST_STREAMS = 16
"""that are left for the sake of more steps: on TREC-6 8 had an error of 6.30, 16 of 5.69 and 32 of 5.81"""


@dataclass(frozen=True, slots=True)
class LanguageModelText:
    """What a language model learns from and is measured on."""

    tokenizer: Tokenizer
    training: LanguageModelTraining
    corpus: Corpus
    documents: np.ndarray[Any, np.dtype[np.int64]]
    valid_corpus: Corpus
    valid_documents: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def read(
        cls,
        setting: Setting,
        texts: Sequence[Path],
        valid: Sequence[Path],
        tokenizer: Tokenizer,
        training: LanguageModelTraining,
        text_column: str,
    ) -> LanguageModelText:
        """Tokenise to disk; hold out a share of the documents, or take all of `valid`."""
        corpus = setting.corpus(texts, tokenizer, name="corpus", text_column=text_column)
        if valid:
            held_out = setting.corpus(valid, tokenizer, name="valid", text_column=text_column)
            everything = np.arange(len(corpus), dtype=np.int64)
            return cls(tokenizer, training, corpus, everything, held_out, np.arange(len(held_out), dtype=np.int64))
        parts = split_documents(len(corpus), valid_share=training.valid_share, seed=setting.run.seed)
        return cls(tokenizer, training, corpus, parts[0], corpus, parts[1])

    def windows(self, setting: Setting, direction: Direction) -> LanguageModelWindows:
        """The windows to learn from; where the text is short, fewer streams than asked for, said aloud."""
        training = self.training
        tokens = int(self.corpus.lengths[self.documents].sum())
        streams = streams_for(tokens, training)
        if streams < setting.processes.size:
            raise ConfigError(
                f"{streams} streams of text cannot be shared by {setting.processes.size} processes; "
                "start fewer, or give more text, a larger batch_size or a smaller least_steps"
            )
        if streams < training.batch_size:
            setting.report(Note(f"only {tokens:,} tokens: {streams} streams in place of {training.batch_size}"))
        return LanguageModelWindows(
            self.corpus,
            documents=self.documents,
            batch_size=streams,
            window=training.window,
            window_jitter=training.window_jitter,
            seed=setting.run.seed,
            reverse=direction == "backward",
            begin_id=self.tokenizer.begin_id,
        )

    def evaluation(
        self, setting: Setting, model: LanguageModel, direction: Direction
    ) -> Callable[[], dict[str, float]] | None:
        """A function that measures loss and perplexity on what was held out; None where that has nothing to predict."""
        if int(self.valid_corpus.lengths[self.valid_documents].sum()) < 2:
            return None
        return lambda: measure_language_model(
            model,
            self.valid_corpus,
            self.valid_documents,
            direction=direction,
            tokenizer=self.tokenizer,
            dtype=setting.dtype,
            processes=setting.processes,
        )


def streams_for(tokens: int, training: LanguageModelTraining) -> int:
    """As many streams as asked for, or so few that an epoch has its least steps; one with less than two windows."""
    windows = tokens // training.window
    with_steps = max(windows // training.least_steps, min(FEWEST_STREAMS, windows // 2))
    return max(1, min(training.batch_size, with_steps))


def measure_language_model(
    model: LanguageModel,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    *,
    direction: Direction,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Mean cross entropy in nats a token and its perplexity, every token but each stream's first predicted once.

    Several processes share the streams.
    """
    tokens = corpus.tokens if documents is None else int(corpus.lengths[documents].sum())
    device = model.decoder_weight.device
    streams = max(1, min(EVALUATION_STREAMS, tokens // 256))
    windows = LanguageModelWindows(
        corpus,
        documents=documents,
        batch_size=streams,
        window=EVALUATION_WINDOW_TOKENS[device.type] // streams,
        begin_id=tokenizer.begin_id,
        reverse=direction == "backward",
        shuffle=False,
    )
    total = torch.zeros((), dtype=torch.float64, device=device)
    state: State | None = None
    own = processes.share(streams)
    for inputs, targets in windows.epoch(0, streams=own) if own.start < own.stop else ():
        result = model.loss(on_device(device, inputs), on_device(device, targets), state, dtype=dtype)
        total += result.cross_entropy
        state = result.state
    processes.sum([total])
    loss_sum = float(total)
    return {"valid_loss": loss_sum / windows.targets, "perplexity": perplexity(loss_sum, windows.targets)}


def learn_language_models(
    setting: Setting,
    source: LanguageModelText,
    start: Callable[[Direction], LanguageModel],
    *,
    config: PretrainConfig | TuneConfig,
    stage: str,
    base: str | None,
    untrained: bool = False,
) -> LanguageModelBundle:
    """Train one language model a direction from what `start` gives, or leave it so, and gather them in a bundle."""
    models: dict[Direction, LanguageModel] = {}
    for direction in setting.run.directions:
        torch.manual_seed(setting.run.seed)
        model = start(direction).to(setting.device)
        learning = language_model_stage(setting, source, model, direction, name=f"{stage} {direction}")
        phases = () if untrained else learning.phases
        learning = replace(learning, phases=phases, identity=identity(setting, config, source.corpus))
        setting.learn(learning, setting.folder.work / direction)
        models[direction] = model.cpu().eval()
    setting.draw_curve()
    model_config = models[setting.run.directions[0]].config
    facts = run_facts(setting, stage, base=base, corpus=source.corpus, tokens=source.corpus.tokens)
    return LanguageModelBundle(config=model_config, tokenizer=source.tokenizer, models=models, facts=facts)


def language_model_stage(
    setting: Setting, source: LanguageModelText, model: LanguageModel, direction: Direction, *, name: str
) -> Stage:
    """How this model learns from this text."""
    training = source.training
    windows = source.windows(setting, direction)
    streams = setting.processes.share(windows.streams)
    share = (streams.stop - streams.start) / windows.streams
    return Stage(
        name=name,
        model=model,
        groups=groups_by_name(model.layer_groups()),
        phases=training.phases,
        optimizer=training.optimizer,
        batches=_windows_on_device(windows, streams, setting.device),
        steps=windows.steps,
        loss=_language_model_loss(model, training, setting.learning_dtype, share),
        evaluate=source.evaluation(setting, model, direction),
        patience=training.patience,
        seed=setting.run.seed,
        stacked=stacked_by_name(model.layer_groups()),
    )


def read_base(setting: Setting, base: str | Path, settings: TuneSettings) -> LanguageModelBundle:
    """The base to tune, which rank 0 fetches where it comes from a hub; ConfigError where it lacks a direction."""
    with setting.processes.leader_first():
        pretrained = LanguageModelBundle.load(find_bundle(base))
    for direction in setting.run.directions:
        if settings.start == "pretrained" and direction not in pretrained.models:
            raise ConfigError(
                f"the base model {str(base)!r} reads {' and '.join(pretrained.directions)} only; "
                f"pass --direction {pretrained.directions[0]} or a base pretrained {direction}"
            )
    return pretrained


def start_of_tuning(
    pretrained: LanguageModelBundle, rows: Tensor, settings: TuneSettings, direction: Direction
) -> LanguageModel:
    """The base with the dropouts of tuning over another vocabulary, `rows` as for `transfer_vocabulary`.

    Of its sizes alone and random, where the settings want that.
    """
    encoder = pretrained.config.encoder.model_copy(
        update={"dropouts": settings.dropouts.scaled(settings.dropout_multiplier)}
    )
    output_dropout = settings.output_dropout * settings.dropout_multiplier
    model = LanguageModel(LanguageModelConfig(vocab_size=len(rows), encoder=encoder, output_dropout=output_dropout))
    if settings.start == "pretrained":
        model.load_state_dict(transfer_vocabulary(pretrained.models[direction], rows).state_dict())
    return model


def _language_model_loss(
    model: LanguageModel, training: LanguageModelTraining, dtype: torch.dtype, share: float = 1.0
) -> Callable[[Any, State | None], StepLoss]:
    """The loss of a window of this process's `share` of the streams, as its part of the loss of all."""

    def loss(batch: tuple[Tensor, Tensor], state: State | None) -> StepLoss:
        tokens, targets = batch
        result = model.loss(
            tokens,
            targets,
            state,
            dtype=dtype,
            activation_regularisation=training.activation_regularisation,
            temporal_regularisation=training.temporal_regularisation,
        )
        count = targets.numel()
        return StepLoss(share * result.total, share * result.cross_entropy / count, detach(result.state), count)

    return loss


def _windows_on_device(
    windows: LanguageModelWindows, streams: slice, device: torch.device
) -> Callable[[int, int], Iterator[Any]]:
    def batches(epoch: int, start: int) -> Iterator[Any]:
        # Block by block: pinning memory for single windows cost an H100 a tenth of its time.
        for block, edges in prefetch(windows.blocks(epoch, start=start, streams=streams), depth=2):
            ids = on_device(device, block.astype(np.int32))
            for left, right in pairwise(edges.tolist()):
                yield ids[left:right].long(), ids[left + 1 : right + 1].long()

    return batches
