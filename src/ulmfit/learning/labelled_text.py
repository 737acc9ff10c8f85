"""Labelled documents: what a classifier learns from and is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit.errors import DataError
from ulmfit.learning.setting import Setting
from ulmfit.text.corpus import Corpus, split_documents
from ulmfit.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LabelledText:
    """What a classifier learns from and is measured on."""

    tokenizer: Tokenizer
    corpus: Corpus
    documents: np.ndarray[Any, np.dtype[np.int64]]
    valid_corpus: Corpus
    valid_documents: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def read(
        cls,
        setting: Setting,
        labelled: Path,
        valid: Path | None,
        tokenizer: Tokenizer,
        *,
        valid_share: float,
        text_column: str,
        label_column: str,
    ) -> LabelledText:
        """Tokenise to disk; hold out a share of the documents, each class its own, or take all of `valid`."""
        columns = {"text_column": text_column, "label_column": label_column}
        corpus = setting.corpus([labelled], tokenizer, name="labelled", **columns)
        if valid is None:
            parts = split_documents(len(corpus), valid_share=valid_share, seed=setting.run.seed, labels=corpus.labels)
            return cls(tokenizer, corpus, parts[0], corpus, parts[1])
        measured = setting.corpus([valid], tokenizer, name="valid", **columns)
        measured = with_label_names(measured, corpus.label_names, source=valid)
        learn, held_out = (np.arange(len(text), dtype=np.int64) for text in (corpus, measured))
        return cls(tokenizer, corpus, learn, measured, held_out)


def with_label_names(corpus: Corpus, names: Sequence[str], *, source: Path) -> Corpus:
    """The labelled corpus with its labels as indices of `names`; DataError for a label that is not among them."""
    assert corpus.labels is not None
    for name in corpus.label_names:
        if name not in names:
            raise DataError(f"{source}: the label {name!r} is not among the training labels {', '.join(names)}")
    index = np.array([list(names).index(name) for name in corpus.label_names], dtype=np.int32)
    return replace(corpus, labels=index[corpus.labels], label_names=tuple(names))
