"""Words and markers back to text a person can read: capitals and repetitions applied, spaces where they belong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ulmfit.text.chunks import is_spaceless
from ulmfit.text.words import BEGIN, CAPITAL, PADDING, REPEAT, SPECIALS, UPPER, WORD_REPEAT

_LONGEST_REPETITION = 100  # a language model may write any number after xxrep
_TAILS = frozenset(("n't", "'s", "'m", "'d", "'re", "'ve", "'ll"))
_NO_SPACE_BEFORE = re.compile(r"[.,:;!?)\]}%。、，！？：；）」』】》]+")
_NO_SPACE_AFTER = re.compile(r"[(\[{$£€#@¿¡（「『【《。、，！？：；）」』】》]+")
_BETWEEN_WORDS = frozenset("-/_")
_QUOTES = frozenset("\"'")


class _Word(NamedTuple):
    text: str
    attached: bool = False  # belongs to the word before it


def readable(tokens: Iterable[str]) -> str:
    """The text that words and markers stand for; what these do not tell, spaces above all, is a good guess.

    Each xxbos but a leading one starts a line, a repetition is cut at a hundred, and a marker without what it needs is
    left out.
    """
    lines: list[list[str]] = [[]]
    for token in tokens:
        if token == BEGIN:
            lines.append([])
        elif token and token != PADDING:
            lines[-1].append(token)
    return "\n".join("".join(_spaced(list(_without_markers(line)))) for line in lines).strip()


def _without_markers(tokens: list[str]) -> Iterator[_Word]:
    """Markers applied: "xxmaj so xxrep 4 o" gives So and, attached to it, oooo."""
    pending = spoken = ""  # the marker of the word to come, and of the word before
    times = 1
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token in (CAPITAL, UPPER):
            pending = token
        elif token in (REPEAT, WORD_REPEAT):
            count, repeated = [*tokens[place : place + 2], "", ""][:2]
            if not (count.isascii() and count.isdigit() and len(count) < 10):
                continue
            place += 1
            times = min(int(count), _LONGEST_REPETITION)
            if token == REPEAT and repeated and repeated not in SPECIALS:
                place += 1
                attached = not pending and repeated[0].isalpha()
                yield _Word(_cased(repeated * times, spoken if attached else pending, first=not attached), attached)
                spoken, pending, times = spoken if attached else pending, "", 1
        elif token in _TAILS and not pending:
            yield _Word(_cased(token, spoken, first=False) if token == "n't" else token, attached=True)
        else:
            yield from [_Word(_cased(token, pending))] * times
            spoken, pending, times = pending, "", 1


def _cased(text: str, marker: str, *, first: bool = True) -> str:
    """A word with the capitals its marker tells; `first` is false for what goes on with a word."""
    if marker == UPPER:
        return text.upper()
    return text[:1].upper() + text[1:] if marker == CAPITAL and first else text


def _spaced(words: list[_Word]) -> Iterator[str]:
    """Words and the spaces between them."""
    open_quotes: set[str] = set()
    before = ""  # "" where no space may follow
    for place, (text, attached) in enumerate(words):
        after = words[place + 1].text if place + 1 < len(words) else ""
        between = text in _BETWEEN_WORDS and before[-1:].isalnum() and after[:1].isalnum()
        closing = text in open_quotes
        tight = (
            not before
            or (attached and before[-1].isalpha())
            or between
            or closing
            or text == before == "-"
            or _NO_SPACE_BEFORE.fullmatch(text)
            or (is_spaceless(before[-1]) and is_spaceless(text[0]))
        )
        yield text if tight else f" {text}"
        before = text
        if text in _QUOTES:
            open_quotes ^= {text}
        if between or _NO_SPACE_AFTER.fullmatch(text) or (text in _QUOTES and not closing):
            before = ""
