"""A vocabulary and what it does: text -> ids, text -> tokens with offsets, ids -> text; trained, saved as JSON."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from ulmfit.config import TokenizerConfig
from ulmfit.errors import TokenizerError
from ulmfit.text.chunks import split_chunks
from ulmfit.text.counts import count_tokens
from ulmfit.text.fields import locate_tokens, split_fields
from ulmfit.text.memo import Memo
from ulmfit.text.readable import readable
from ulmfit.text.subwords import SubwordModel, join_pieces, train_subwords
from ulmfit.text.words import BEGIN, PADDING, SPECIALS, UNKNOWN, Token, chunk_texts, chunk_tokens

__all__ = ["Token", "Tokenizer", "build_tokenizer", "count_tokens", "train_tokenizer"]

FORMAT = "ulmfit-tokenizer"
VERSION = 1
MOST_TOKENS = 2**20

Kind = Literal["word", "unigram", "bpe"]


class Tokenizer:
    """Tokens and their ids: the special tokens first, then words or, with a subword model, its pieces.

    It keeps what it worked out for strings it has met, within a bound; that changes its speed and nothing else.
    """

    def __init__(self, tokens: Sequence[str], *, subwords: SubwordModel | None = None) -> None:
        self.tokens = tuple(tokens)
        self.subwords = subwords
        _check_tokens(self.tokens)
        if subwords and subwords.pieces != self.tokens[len(SPECIALS) :]:
            raise TokenizerError(
                f"tokenizer: its {len(self.tokens)} tokens are not the {len(SPECIALS)} special tokens and the "
                f"{len(subwords.pieces)} pieces of its subword model; restore the file it was saved to."
            )
        self._ids = {token: place for place, token in enumerate(self.tokens)}
        self.unknown_id = self._ids[UNKNOWN]
        self.padding_id = self._ids[PADDING]
        self.begin_id = self._ids[BEGIN]
        self._chunk_ids: Memo[tuple[int, ...]] = Memo(self._encode_chunk)
        self._tokens: Memo[tuple[Token, ...]] = Memo(self._divide_chunk)
        self._field_ids: Memo[tuple[int, ...]] = Memo(self._encode_field)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {len(self)} tokens, {self.fingerprint[:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]:
        """Travels to worker processes as its JSON, without what it has cached."""
        return Tokenizer.from_json, (self.to_json(),)

    @property
    def kind(self) -> Kind:
        """What its tokens are."""
        return self.subwords.kind if self.subwords else "word"

    def id(self, token: str) -> int:
        """The id of a token, that of xxunk if the vocabulary lacks it."""
        return self._ids.get(token, self.unknown_id)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, xxbos first; an empty text is xxbos alone."""
        ids = [self.begin_id]
        ids.extend(chain.from_iterable(map(self._field_ids.__getitem__, split_fields(text))))
        return ids

    def tokenize(self, text: str) -> list[Token]:
        """The tokens of a text without xxbos, each with the characters [start, end) it stands for.

        A word outside the vocabulary keeps its text here; `id` gives each token the id that `encode` gives it.
        """
        return list(locate_tokens(text, self._tokens.__getitem__))

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: markers applied, contractions and punctuation joined; spacing is a good guess."""
        words = (self.tokens[id] for id in ids)
        return readable(join_pieces(words) if self.subwords else words)

    def _encode_field(self, field: str) -> tuple[int, ...]:
        if field.isascii() and field.isalpha():  # one chunk
            return self._chunk_ids[field]
        return tuple(chain.from_iterable(map(self._chunk_ids.__getitem__, split_chunks(field))))

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        if self.subwords is None:
            return tuple(map(self.id, chunk_texts(chunk)))
        return tuple(self.id(token.text) for token in self._divide_chunk(chunk))

    def _divide_chunk(self, chunk: str) -> tuple[Token, ...]:
        if self.subwords is None:
            return chunk_tokens(chunk)
        return tuple(chain.from_iterable(map(self.subwords.divide_token, chunk_tokens(chunk, whole_runs=True))))

    # --- on disk ----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The whole tokenizer, the same tokenizer always the same text."""
        return self._json

    @cached_property
    def _json(self) -> str:
        values: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": self.kind, "tokens": self.tokens}
        if self.subwords:
            values["model"] = self.subwords.values
        return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of its JSON, in hexadecimal: equal for equal tokenizers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read what `to_json` gave; everything is checked, and what is wrong becomes one line of a TokenizerError."""
        try:
            values = json.loads(text)
            json.dumps(values, ensure_ascii=False).encode()  # half a character can be escaped, and nothing else be done
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"tokenizer: not JSON in UTF-8 ({error}); restore the file it was saved to.") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = repr(values.get("format")) if isinstance(values, dict) else f"a {type(values).__name__}"
            raise TokenizerError(
                f"tokenizer: format is {found}, expected {FORMAT!r}; pass a tokenizer saved by ulmfit."
            )
        version, kind, tokens = values.get("version"), values.get("kind"), values.get("tokens")
        if type(version) is not int or version != VERSION:
            newer = "; upgrade ulmfit" if type(version) is int and version > VERSION else ""
            raise TokenizerError(f"tokenizer: version is {version!r}, this ulmfit reads version {VERSION}{newer}.")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise TokenizerError("tokenizer: 'tokens' is not a list of strings; restore the file it was saved to.")
        if kind == "word":
            return cls(tokens)
        if kind in ("unigram", "bpe"):
            return cls(tokens, subwords=SubwordModel(kind, values.get("model")))
        raise TokenizerError(f"tokenizer: kind is {kind!r}, expected 'word', 'unigram' or 'bpe'.")


def _check_tokens(tokens: Sequence[str]) -> None:
    """A TokenizerError unless these can be a vocabulary."""
    if tokens[: len(SPECIALS)] != SPECIALS:
        raise TokenizerError(
            f"tokenizer: its first tokens are {', '.join(tokens[: len(SPECIALS)])!r:.200}, "
            f"expected {', '.join(SPECIALS)}; restore the file it was saved to."
        )
    if len(tokens) > MOST_TOKENS:
        raise TokenizerError(f"tokenizer: it has {len(tokens)} tokens, expected at most {MOST_TOKENS}.")
    if len(set(tokens)) < len(tokens):
        token, times = Counter(tokens).most_common(1)[0]
        raise TokenizerError(f"tokenizer: it has the token {token!r} {times} times, expected once.")
    if "" in tokens:
        raise TokenizerError(f"tokenizer: its token {tokens.index('')} is empty.")


# --- training -------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], *, config: TokenizerConfig, processes: int | None = None) -> Tokenizer:
    """A tokenizer whose vocabulary suits the texts, read once; TokenizerError if there is no text.

    The same texts and config give the same tokenizer, whatever `processes` is; see `count_tokens`.
    """
    return build_tokenizer(count_tokens(texts, whole_runs=config.kind != "word", processes=processes), config=config)


def build_tokenizer(counts: Mapping[str, int], *, config: TokenizerConfig) -> Tokenizer:
    """`train_tokenizer` from the sum of what `count_tokens` gave; for subwords, with `whole_runs`.

    Words are kept by count, then alphabetically, so that the order of `counts` makes no difference.
    """
    counts = {token: count for token, count in counts.items() if token not in SPECIALS}
    if not counts:
        raise TokenizerError("tokenizer: the texts to train it on hold no words; pass texts that are not empty.")
    if config.kind != "word":
        # The model counts xxunk as its own entry, we as a special token.
        vocab_size = config.vocab_size - len(SPECIALS) + 1
        subwords = train_subwords(counts, kind=config.kind, vocab_size=vocab_size, min_frequency=config.min_frequency)
        return Tokenizer((*SPECIALS, *subwords.pieces), subwords=subwords)
    frequent = [token for token, count in counts.items() if count >= config.min_frequency]
    if not frequent:
        raise TokenizerError(
            f"tokenizer: none of {len(counts)} tokens was seen min_frequency = {config.min_frequency} times; "
            "pass more text or a lower min_frequency."
        )
    frequent.sort(key=lambda token: (-counts[token], token))
    return Tokenizer((*SPECIALS, *frequent[: config.vocab_size - len(SPECIALS)]))
