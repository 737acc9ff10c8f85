"""A linear classifier of the words and pairs of words that a text has, to vote beside the network.

A text is the tf-idf vector of its terms, of length 1: (1 + ln count) x rarity. Its logits are the product of that
with a table of terms by classes, so that prediction costs a look-up a word. `learning.bag_of_words` makes the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.text.tokenizer import Tokenizer
from ulmfit.text.words import SPECIALS

DOCUMENTS_AT_ONCE = 1024

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Terms:
    """Words and pairs of words of a vocabulary."""

    tokenizer: Tokenizer
    keys: Int64s
    """(terms,), rising: the id of a word, or (first + 1) * vocabulary + second of two that stood side by side"""
    rarity: Float32s
    """(terms,), the weight of each in a vector"""

    def __len__(self) -> int:
        """Number of terms."""
        return len(self.keys)

    def vectors(self, documents: Sequence[Int64s]) -> Any:
        """The tf-idf of texts as ids, (texts, terms) as a sparse matrix of float32, rows of length 1 or 0."""
        import scipy.sparse

        rows, found = occurrences(documents, vocab_size=len(self.tokenizer))
        columns = np.searchsorted(self.keys, found)
        known = columns < len(self)
        known[known] = self.keys[columns[known]] == found[known]
        ones = np.ones(int(known.sum()), np.float32)
        matrix = scipy.sparse.csr_matrix((ones, (rows[known], columns[known])), shape=(len(documents), len(self)))
        matrix.sum_duplicates()
        matrix.data = (1 + np.log(matrix.data)) * self.rarity[matrix.indices]
        lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
        matrix.data /= np.repeat(lengths, np.diff(matrix.indptr))
        return matrix.astype(np.float32)


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Int64s]:
    """The ids of each text, (tokens,)."""
    return [np.asarray(tokenizer.encode(text), dtype=np.int64) for text in texts]


def occurrences(documents: Sequence[Int64s], *, vocab_size: int) -> tuple[Int64s, Int64s]:
    """Every word and pair as (which text, key of the term), (found,) each; marker tokens are no words."""
    ids = np.concatenate([np.zeros(0, np.int64), *documents])
    rows = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    words = ids >= len(SPECIALS)
    ids, rows = ids[words], rows[words]
    together = rows[1:] == rows[:-1]
    pairs = (ids[:-1][together] + 1) * vocab_size + ids[1:][together]
    return np.concatenate([rows, rows[1:][together]]), np.concatenate([ids, pairs])


def lots(count: int) -> Iterator[slice]:
    """So many texts, some at a time."""
    return (slice(start, start + DOCUMENTS_AT_ONCE) for start in range(0, count, DOCUMENTS_AT_ONCE))


@dataclass(frozen=True, eq=False)
class BagOfWords:
    """What each term says for each class, and how much all of that counts."""

    terms: Terms
    weights: Float32s
    """(terms, classes)"""
    bias: Float32s
    """(classes,)"""
    share: float
    """factor on its log-probabilities"""
    network_share: float
    """factor on the network's"""

    def logits(self, texts: Sequence[str]) -> Float32s:
        """(texts, classes), each text by itself."""
        rows = [np.zeros((0, len(self.bias)), np.float32)]
        for lot in lots(len(texts)):
            rows.append(self.terms.vectors(encoded(self.terms.tokenizer, texts[lot])) @ self.weights + self.bias)
        return np.concatenate(rows)

    def beside(self, probabilities: Tensor, texts: Sequence[str]) -> Tensor:
        """The network's probabilities of these texts, (texts, classes), times this model's, again summing to 1.

        The product is that of experts who have learnt apart (Hinton 2002), each to a power of its own: who is less sure
        says less.
        """
        own = torch.from_numpy(self.logits(texts)).to(probabilities)
        least = torch.finfo(probabilities.dtype).tiny
        network = probabilities.clamp_min(least).log()
        return (self.network_share * network + self.share * own.log_softmax(1)).softmax(1)

    # --- on disk ----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What is written of it."""
        arrays: dict[str, NDArray[Any]] = {"keys": self.terms.keys, "rarity": self.terms.rarity}
        arrays |= {"weights": self.weights, "bias": self.bias}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @staticmethod
    def layout(*, terms: int, classes: int) -> dict[str, Tensor]:
        """The same without values."""
        with torch.device("meta"):
            keys, rarity = torch.empty(terms, dtype=torch.int64), torch.empty(terms)
            return {
                "keys": keys,
                "rarity": rarity,
                "weights": torch.empty(terms, classes),
                "bias": torch.empty(classes),
            }

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], *, tokenizer: Tokenizer, share: float, network_share: float
    ) -> BagOfWords:
        """The inverse of `tensors`; ValueError where the terms do not rise or are none of the vocabulary."""
        keys, rarity, weights, bias = (tensors[name].numpy() for name in ("keys", "rarity", "weights", "bias"))
        if not bool((np.diff(keys) > 0).all()):
            raise ValueError("its terms do not rise")
        if len(keys) and (keys[0] < 0 or keys[-1] >= (len(tokenizer) + 1) * len(tokenizer)):
            raise ValueError("a term is no word or pair of the vocabulary")
        return cls(Terms(tokenizer, keys, rarity), weights, bias, share, network_share)
