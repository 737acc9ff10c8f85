"""Text into fields, the stretches without white space, and a word said over and over into one field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress, count, groupby, islice
from operator import eq, itemgetter

from ulmfit.text.chunks import alphabet, locate_chunks, split_chunks
from ulmfit.text.words import CAPITAL, REPEATED, UPPER, Token, chunk_tokens

_BREAK = re.compile(r"<[bB][rR]\s*+/?>")
_FIELD = re.compile(r"\S++")


def split_fields(text: str) -> list[str]:
    """The stretches between white space and html line breaks; a word said four times becomes one field "4 word".

    Only such a field contains a space. Repeated words are rare: the common path pays one comparison per field.
    """
    if "<" in text:
        text = _BREAK.sub(" ", text)
    fields = text.split()
    if _may_repeat(fields) and (runs := _find_word_runs(text)):
        return [field for field, _, _ in _cut(text, runs)]
    return fields


def _may_repeat(fields: list[str]) -> bool:
    """Whether a field and those beside it hold a word as often as `_find_word_runs` asks for; two alike are common."""
    known = -1
    for first in compress(count(), map(eq, fields, islice(fields, 1, None))):
        if first < known:
            continue
        word = fields[first]
        known = next((place for place in range(first, len(fields)) if fields[place] != word), len(fields))
        before = first > 0 and fields[first - 1].endswith(word)
        after = known < len(fields) and fields[known].startswith(word)
        if known - first + before + after >= REPEATED:
            return True
    return False


def locate_fields(text: str) -> Iterator[Token]:
    """What `split_fields` gives, with the characters each field stands for."""
    text = _blank_breaks(text)
    return _cut(text, _find_word_runs(text))


def _blank_breaks(text: str) -> str:
    """Line breaks become as much white space, so that offsets stay."""
    return _BREAK.sub(lambda match: " " * len(match[0]), text)


def _find_word_runs(text: str) -> list[Token]:
    """Where a word that makes one token stands four or more times in a row, separated by white space alone.

    The inner ones fill their field, the first may follow and the last precede other characters: "(ha ha ha ha!".
    """
    fields = [Token(match[0], match.start(), match.end()) for match in _FIELD.finditer(text)]
    runs: list[Token] = []
    position = 0
    for word, group in groupby(fields, key=itemgetter(0)):
        times = sum(1 for _ in group)
        first, last = position, position + times - 1
        position += times
        if times < REPEATED - 2 or not _is_one_word(word):
            continue
        start, end = fields[first].start, fields[last].end
        if first > 0:
            before = fields[first - 1]
            if Token(word, len(before.text) - len(word), len(before.text)) in _chunk_spans(before.text):
                start, times = before.end - len(word), times + 1
        if position < len(fields):
            after = fields[position]
            if Token(word, 0, len(word)) in _chunk_spans(after.text):
                end, times = after.start + len(word), times + 1
        if times >= REPEATED:
            runs.append(Token(f"{times} {word}", start, end))
    return runs


def _is_one_word(field: str) -> bool:
    """Whether a field is a word or number and makes one token, markers of capitals aside."""
    if split_chunks(field) != [field] or alphabet().symbols.match(field):
        return False
    return sum(token.text not in (CAPITAL, UPPER) for token in chunk_tokens(field)) == 1


def _chunk_spans(field: str) -> list[Token]:
    """The chunks of a field with the characters each stands for."""
    return [Token(text, spans[0][0], spans[-1][1]) for text, spans in locate_chunks(field)]


def _cut(text: str, runs: Iterable[Token]) -> Iterator[Token]:
    """The fields of a text in which each run is one field."""
    position = 0
    for run in chain(runs, [Token("", len(text), len(text))]):
        for match in _FIELD.finditer(text, position, run.start):
            yield Token(match[0], match.start(), match.end())
        if run.text:
            yield run
        position = run.end


def locate_tokens(text: str, tokens_of: Callable[[str], Iterable[Token]]) -> Iterator[Token]:
    """The tokens of a text and their characters in it; `tokens_of` gives those of a chunk, with offsets within it."""
    for field in locate_fields(text):
        if " " in field.text:
            yield from (Token(token.text, field.start, field.end) for token in tokens_of(field.text))
            continue
        for chunk, spans in locate_chunks(field.text):
            for token in tokens_of(chunk):
                start = spans[token.start][0]
                end = spans[token.end - 1][1] if token.end > token.start else start
                yield Token(token.text, field.start + start, field.start + end)
