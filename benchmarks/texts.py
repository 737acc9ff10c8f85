"""What every side reads, the same for all: made-up ids and words, and files of texts. Needs numpy alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_WORD = 10
"""ids below it are left to each side's special tokens"""


def words(vocab_size: int) -> list[str]:
    """Distinct lower-case words, one for each id from FIRST_WORD on, which any word tokenizer leaves whole."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]

    def word(number: int) -> str:
        parts = []
        for _ in range(4):
            number, part = divmod(number, len(syllables))
            parts.append(syllables[part])
        return "".join(parts)

    return [word(number) for number in range(FIRST_WORD, vocab_size)]


def draw_ids(count: int, *, vocab_size: int, seed: int) -> NDArray[np.int64]:
    """Ids as frequent as words are, by Zipf's law, and no two alike in a row."""
    ranks = np.arange(1, vocab_size - FIRST_WORD + 1)
    edges = np.cumsum(1 / (ranks + 2.7))
    ids = np.searchsorted(edges, np.random.default_rng(seed).random(count) * edges[-1]) + FIRST_WORD
    repeated = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    # The next word in the list, or the one after that where it would meet its right neighbour.
    for place in repeated:
        for shift in (1, 2, 3):
            candidate = FIRST_WORD + (ids[place] - FIRST_WORD + shift) % len(ranks)
            if candidate not in (ids[place - 1], ids[min(place + 1, count - 1)]):
                ids[place] = candidate
                break
    return ids


def draw_lengths(count: int, *, seed: int) -> NDArray[np.int64]:
    """Lengths in tokens as those of IMDb's reviews: log-normal, median 200, mean 270, at most 1,400."""
    lengths = np.random.default_rng(seed).lognormal(np.log(200), 0.75, count)
    return np.clip(lengths, 12, 1400).astype(np.int64)


def mixed_documents(settings: dict[str, Any]) -> list[NDArray[np.int64]]:
    """The documents to predict: of mixed length, or all of `tokens`."""
    count = settings["documents"]
    lengths = np.full(count, settings["tokens"]) if "tokens" in settings else draw_lengths(count, seed=3)
    return draw_documents(lengths, vocab_size=settings["vocab"], seed=3)


def draw_documents(lengths: NDArray[np.int64], *, vocab_size: int, seed: int) -> list[NDArray[np.int64]]:
    """One array of ids for each length."""
    ids = draw_ids(int(lengths.sum()), vocab_size=vocab_size, seed=seed)
    return np.split(ids, np.cumsum(lengths)[:-1])


def units_of(documents: list[NDArray[np.int64]], settings: dict[str, Any]) -> int:
    """What predicting them counts for: their tokens, or where there is only one, one text."""
    return 1 if settings["documents"] == 1 else sum(map(len, documents))


def read_texts(folder: str, name: str) -> dict[str, Any]:
    """`{"texts": [...], "labels": [...], "tokens": in all}`, as `data.py` made them."""
    values: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    return values
