"""Chunks into tokens: markers for capitals, contractions apart, repetitions counted; pure functions of the chunk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from ulmfit.text.chunks import APOSTROPHES, EXTENDERS, alphabet

SPECIALS = ("xxunk", "xxpad", "xxbos", "xxmaj", "xxup", "xxrep", "xxwrep")
UNKNOWN, PADDING, BEGIN, CAPITAL, UPPER, REPEAT, WORD_REPEAT = SPECIALS

REPEATED = 4  # fastai's threshold: more than three in a row


class Token(NamedTuple):
    """A token and the characters [start, end) it stands for; a marker has the span of what it marks."""

    text: str
    start: int
    end: int


_PLAIN_SYMBOLS = str.maketrans(
    dict.fromkeys("“”„‟", '"')
    | dict.fromkeys("‘’‚‛`´＇", "'")
    | dict.fromkeys("\u00ad\u200c\ufe0e\ufe0f", "")  # soft hyphen, non-joiner, text or emoji style: nothing to see
    | {"…": "...", "▁": "_"}  # "▁" is how subword pieces mark the start of a word
)
_APOSTROPHE = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))
_SYMBOL = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|.(?:[{EXTENDERS}]|\u200d[^\u200d])*+", re.DOTALL
)  # a flag; or a character, its variants and all that is joined to it
_REPEATED_LETTER = re.compile(rf"(\D)\1{{{REPEATED - 1},}}+", re.IGNORECASE)  # letters: 10000 is a number
_TAILS = ("n't", "'s", "'m", "'d", "'re", "'ve", "'ll")


def chunk_tokens(chunk: str, *, whole_runs: bool = False) -> tuple[Token, ...]:
    """The tokens of one chunk, with offsets within it; the same chunk gives the same tokens wherever it stands.

    `whole_runs` keeps letters of scripts without spaces together, for a subword model to divide.
    """
    if " " in chunk:  # a repeated word, see split_fields
        count, word = chunk.split(" ")
        whole = (0, len(chunk))
        tokens = chunk_tokens(word, whole_runs=whole_runs)
        return (Token(WORD_REPEAT, *whole), Token(count, *whole), *(Token(token.text, *whole) for token in tokens))
    if alphabet().symbols.match(chunk):
        return tuple(_symbol_tokens(chunk))
    if alphabet().spaceless.match(chunk):
        return tuple(_spaceless_tokens(chunk, whole_runs=whole_runs))
    return tuple(_word_tokens(chunk))


def chunk_texts(chunk: str, *, whole_runs: bool = False) -> tuple[str, ...]:
    """The texts of `chunk_tokens`, sooner where nobody asks for their places."""
    return plain_word(chunk) or tuple(token.text for token in chunk_tokens(chunk, whole_runs=whole_runs))


def plain_word(chunk: str) -> tuple[str, ...] | None:
    """What most words are, as `chunk_tokens` has it: the texts of a chunk of ASCII letters, None for all others."""
    if not (chunk.isascii() and chunk.isalpha()):
        return None
    word = chunk.lower()
    if _REPEATED_LETTER.search(word) or word in SPECIALS:
        return None
    if word == chunk:
        return (word,)
    if len(word) > 1 and chunk.isupper():
        return (UPPER, word)
    return (word,) if chunk[0] == word[0] else (CAPITAL, word)


def _symbol_tokens(chunk: str) -> Iterator[Token]:
    """Punctuation one by one, but three dots together, and four of the same counted."""
    units = (
        Token(match[0].translate(_PLAIN_SYMBOLS).strip("\u200d"), *match.span()) for match in _SYMBOL.finditer(chunk)
    )
    for text, group in groupby(units, key=itemgetter(0)):
        run = list(group)
        if text == "." and len(run) == 3:
            yield Token("...", run[0].start, run[-1].end)
        elif text:
            yield from _counted(run)


def _spaceless_tokens(chunk: str, *, whole_runs: bool) -> Iterator[Token]:
    """Written characters one by one (or together, with `whole_runs`), but four of the same counted."""
    units = (Token(_plain(match[0]), *match.span()) for match in alphabet().spaceless.finditer(chunk))
    pending: list[Token] = []
    for _, group in groupby(units, key=itemgetter(0)):
        run = list(group)
        if whole_runs and len(run) < REPEATED:
            pending += run
            continue
        yield from _joined(pending)
        pending = []
        yield from _counted(run)
    yield from _joined(pending)


def _joined(units: list[Token]) -> Iterator[Token]:
    """Neighbouring tokens as one."""
    if units:
        yield Token("".join(unit.text for unit in units), units[0].start, units[-1].end)


def _counted(run: list[Token]) -> Iterable[Token]:
    """Equal tokens as they are, or "xxrep 5 !" when there are four or more."""
    return run if len(run) < REPEATED else _repetition(len(run), run[0].text, run[0].start, run[-1].end)


def _repetition(count: int, text: str, start: int, end: int) -> Iterator[Token]:
    return (Token(part, start, end) for part in (REPEAT, str(count), text))


def _word_tokens(word: str) -> Iterator[Token]:
    """The marker of its capitals, the word in lower case with repeated letters counted, and its tails: do n't."""
    end = len(word)
    tails: list[tuple[int, int]] = []
    if not word.isalnum():  # most words are, and have no apostrophe
        lower = word.translate(_APOSTROPHE).lower()
        # A few letters change length in lower case; positions would not fit, so such a word stays whole.
        while len(lower) == len(word) and (tail := _tail(lower, end)):
            tails.append((end - len(tail), end))
            end -= len(tail)
    stem = unicodedata.normalize("NFC", word[:end])
    if stem[0] not in APOSTROPHES and stem != stem.lower():
        if len(stem) > 1 and stem.isupper():
            yield Token(UPPER, 0, end)
        elif stem[0] != stem[0].lower():
            yield Token(CAPITAL, 0, end)
    position = 0
    for run in _REPEATED_LETTER.finditer(word, 0, end):
        yield from _part(word, position, run.start())
        yield from _repetition(len(run[0]), _plain(run[1]), *run.span())
        position = run.end()
    yield from _part(word, position, end)
    for start, end in reversed(tails):
        yield from _part(word, start, end)


def _tail(lower: str, end: int) -> str:
    """The contraction that a word ends with before `end`, unless it is all of it."""
    return next((tail for tail in _TAILS if end > len(tail) and lower.endswith(tail, 0, end)), "")


def _part(word: str, start: int, end: int) -> Iterator[Token]:
    if text := _plain(word[start:end]):
        # What a user types must not act as a marker of ours.
        yield Token(UNKNOWN if text in SPECIALS else text, start, end)


def _plain(text: str) -> str:
    """Lower case, one form of apostrophe and of accented letters, no soft hyphens."""
    return unicodedata.normalize("NFC", text.lower()).translate(_APOSTROPHE).replace("\u00ad", "")
