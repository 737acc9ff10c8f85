"""Words into pieces by a unigram or BPE model of the `tokenizers` library; "▁" marks a piece that starts a word."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import tokenizers
from tokenizers import models, trainers

from ulmfit.errors import TokenizerError
from ulmfit.text.words import SPECIALS, UNKNOWN, Token

WORD_START = "▁"
_MOST_WORDS_FED = 10_000_000  # the trainers take words, not counts: more would cost minutes and change little
_LONGEST_WORD = 100  # characters; longer ones are links and noise
_SCORE_STEP = 1e-4  # what the unigram trainer puts between the scores of characters it found no use for

SubwordKind = Literal["unigram", "bpe"]


class SubwordModel:
    """A model of the library that was checked before it was built; its entry 0 is xxunk, the others are `pieces`.

    `values` is the model as JSON values, the same model always the same values.
    """

    def __init__(self, kind: SubwordKind, values: Any) -> None:
        """Build from what the library writes for its models; TokenizerError says what is wrong with it."""
        self.kind: SubwordKind = kind
        self.values: dict[str, Any]
        if kind == "unigram":
            vocabulary = _unigram_vocabulary(values)
            entries = [piece for piece, _ in vocabulary]
            self.values = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}
            self._model: models.Model = models.Unigram(vocabulary, 0, False)
        else:
            entries, merges = _bpe_vocabulary(values)
            ids = {piece: place for place, piece in enumerate(entries)}
            self.values = {"type": "BPE", "unk_token": UNKNOWN, "fuse_unk": True, "vocab": ids, "merges": merges}
            self._model = models.BPE(ids, merges, unk_token=UNKNOWN, fuse_unk=True)
        self.pieces = tuple(entries[1:])

    def divide(self, word: str) -> Iterator[str]:
        """The pieces of a word; unknown characters become xxunk, a special token stays itself."""
        return (piece.text for piece in self.divide_token(Token(word, 0, len(word))))

    def divide_token(self, word: Token) -> Iterator[Token]:
        """`divide`, each piece with its characters, or with those of the word if the word has more or fewer of them."""
        if word.text in SPECIALS:
            yield word
            return
        marked = (WORD_START + word.text).encode()
        precise = len(word.text) == word.end - word.start
        position = word.start - len(WORD_START)
        for piece in self._model.tokenize(marked.decode()):
            first, last = piece.offsets  # bytes
            start, position = position, position + len(marked[first:last].decode())
            span = (max(word.start, start), position) if precise else (word.start, word.end)
            yield Token(piece.value if piece.id else UNKNOWN, *span)


def join_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces back to words; what follows an xxunk within a word cannot be told from a word."""
    word = ""
    for piece in pieces:
        if piece in SPECIALS or piece.startswith(WORD_START):
            if word:
                yield word
            word = "" if piece in SPECIALS else piece.removeprefix(WORD_START)
            if piece in SPECIALS:
                yield piece
        else:
            word += piece
    if word:
        yield word


# --- training -------------------------------------------------------------------------------------------------------


def train_subwords(
    counts: Mapping[str, int], *, kind: SubwordKind, vocab_size: int, min_frequency: int = 1
) -> SubwordModel:
    """A model of at most `vocab_size` entries, xxunk included, from words and how often each was seen.

    At most half the entries are single characters, the most frequent; rarer ones, and those seen less than
    `min_frequency` times, become xxunk. The order of `counts` makes no difference.
    """
    # A piece is a part of a word it was trained on, so that no piece can read like a special token.
    words = {
        word: count
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if len(word) <= _LONGEST_WORD and not any(special in word for special in SPECIALS)
    }
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    frequent = sorted(characters, key=lambda character: (-characters[character], character))
    alphabet = {character for character in frequent[: vocab_size // 2 - 1] if characters[character] >= min_frequency}
    words = {word: count for word, count in words.items() if alphabet.issuperset(word)}
    if not words:
        raise TokenizerError(
            f"subwords: no word is left of {len(counts)} whose characters were all seen {min_frequency} times; "
            "pass more text or a lower min_frequency."
        )
    settings: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": [UNKNOWN], "show_progress": False}
    model: models.Model
    trainer: trainers.Trainer
    if kind == "unigram":
        model, trainer = models.Unigram(), trainers.UnigramTrainer(unk_token=UNKNOWN, **settings)
    else:
        model = models.BPE(unk_token=UNKNOWN, fuse_unk=True)
        trainer = trainers.BpeTrainer(min_frequency=min_frequency, **settings)
    trained = tokenizers.Tokenizer(model)
    try:
        trained.train_from_iterator(_repeated(words), trainer)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"subwords: no {kind} model of {vocab_size} entries from {len(words)} words ({error}); "
            "pass more text or another vocab_size."
        ) from None
    values = json.loads(trained.to_str())["model"]
    if kind == "unigram":
        values["vocab"] = _settled(values["vocab"])
    return SubwordModel(kind, values)


def _repeated(words: Mapping[str, int]) -> Iterator[list[str]]:
    """Each word as often as it was seen, or each nth time when the whole is too much."""
    share = min(1.0, _MOST_WORDS_FED / sum(words.values()))
    seen = fed = 0
    for word, count in words.items():
        seen += count
        times = int(seen * share) - fed
        fed += times
        yield [WORD_START + word] * times


def _settled(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trained entries without what differs from run to run.

    The library adds up in the order of a randomly seeded hash map, so the last digits vary, and the characters of which
    training made no use get the lowest score and steps above it in that order: here all get the lowest.
    """
    lowest = min(score for _, score in vocabulary)
    unused = lowest + _SCORE_STEP * sum(len(piece) == 1 for piece, _ in vocabulary)
    scores = {
        piece: round(lowest if len(piece) == 1 and score <= unused else score, 6) for piece, score in vocabulary[1:]
    }
    return [vocabulary[0], *sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))]


# --- checks: the library panics, or worse, takes what is wrong --------------------------------------------------------


def _unigram_vocabulary(values: Any) -> list[tuple[str, float]]:
    entries = _member(values, "vocab", list)
    for place, entry in enumerate(entries):
        match entry:
            case [str(piece), float() | int() as score] if piece and math.isfinite(score):
                continue
        raise TokenizerError(f"tokenizer: unigram entry {place} is {entry!r:.80}, expected a piece and its score.")
    vocabulary = [(piece, float(score)) for piece, score in entries]
    if not vocabulary or vocabulary[0][0] != UNKNOWN or values.get("unk_id") != 0:
        raise TokenizerError(f"tokenizer: unigram entry 0 is not {UNKNOWN!r}, or unk_id is not 0.")
    _check_distinct([piece for piece, _ in vocabulary])
    return vocabulary


def _bpe_vocabulary(values: Any) -> tuple[list[str], list[tuple[str, str]]]:
    ids = _member(values, "vocab", dict)
    by_id = {id: piece for piece, id in ids.items() if type(id) is int and piece}
    if len(by_id) != len(ids) or sorted(by_id) != list(range(len(ids))) or by_id.get(0) != UNKNOWN:
        raise TokenizerError(f"tokenizer: the ids of its {len(ids)} BPE pieces are not 0, 1, 2 ... with {UNKNOWN!r} 0.")
    merges: list[tuple[str, str]] = []
    for place, merge in enumerate(_member(values, "merges", list)):
        match merge:
            case [str(left), str(right)] if left in ids and right in ids and left + right in ids:
                merges.append((left, right))
            case _:
                raise TokenizerError(f"tokenizer: BPE merge {place} is {merge!r:.80}, expected two of its pieces.")
    return [by_id[id] for id in range(len(ids))], merges


def _member(values: Any, name: str, kind: type) -> Any:
    found = values.get(name) if isinstance(values, dict) else None
    if not isinstance(found, kind):
        raise TokenizerError(
            f"tokenizer: {name!r} of its subword model is {type(found).__name__}, expected {kind.__name__}; "
            "restore the file it was saved to."
        )
    return found


def _check_distinct(pieces: list[str]) -> None:
    if len(set(pieces)) < len(pieces):
        piece, times = Counter(pieces).most_common(1)[0]
        raise TokenizerError(f"tokenizer: its subword model has the piece {piece!r} {times} times, expected once.")
