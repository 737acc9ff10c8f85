"""The words of a corpus, and where a pretrained model has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ulmfit.config import TokenizerConfig, TuneSettings
from ulmfit.learning.setting import Setting
from ulmfit.text.parts import renamed_when_whole
from ulmfit.text.sources import read_records
from ulmfit.text.tokenizer import Tokenizer, train_tokenizer


def learn_tokenizer(setting: Setting, texts: Sequence[Path], config: TokenizerConfig, text_column: str) -> Tokenizer:
    """The vocabulary of the texts, learnt once a run, by rank 0."""
    path = setting.place("tokenizer.json", texts, config=config.model_dump_json(), text_column=text_column)
    made_before = setting.resume or setting.corpora is not None
    with setting.processes.leader_first(), setting.alone(path):
        if not setting.processes.leads or (made_before and path.is_file()):
            return Tokenizer.from_json(path.read_text(encoding="utf-8"))
        records = read_records(texts, text_column=text_column)
        tokenizer = train_tokenizer((record.text for record in records), config=config)
        with renamed_when_whole(path) as file:
            file.write(tokenizer.to_json().encode())
        return tokenizer


def domain_tokenizer(
    setting: Setting, texts: Sequence[Path], base: Tokenizer, settings: TuneSettings, text_column: str
) -> Tokenizer:
    """The domain's own words; subwords reach every word of any domain, so there the base's stay.

    Little text has few words: with `base_words` those of the base stand behind them, known as the base knew them.
    """
    if base.kind != "word":
        return base
    return with_base_words(learn_tokenizer(setting, texts, words_of(settings), text_column), base, settings)


def words_of(settings: TuneSettings) -> TokenizerConfig:
    """How the domain's own words are chosen."""
    return TokenizerConfig(kind="word", vocab_size=settings.vocab_size, min_frequency=settings.min_frequency)


def with_base_words(own: Tokenizer, base: Tokenizer, settings: TuneSettings) -> Tokenizer:
    """The domain's own words, and where the settings want it those of the base behind them."""
    if not settings.base_words:
        return own
    known = set(own.tokens)
    return Tokenizer((*own.tokens, *(word for word in base.tokens if word not in known))[: settings.vocab_size])


def rows_in(base: Tokenizer, tokenizer: Tokenizer) -> Tensor:
    """For each token its index in the base, -1 where the base lacks it: (len(tokenizer),) int64."""
    index = {token: row for row, token in enumerate(base.tokens)}
    return torch.tensor([index.get(token, -1) for token in tokenizer.tokens])
