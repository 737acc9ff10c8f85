"""Fields, which hold no white space, into chunks by one regular expression: words, numbers, runs of punctuation."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple

APOSTROPHES = "'’`´＇"
_JOINERS = APOSTROPHES + "\u00ad\u200c\u200d·\u05f3\u05f4"  # within a word: soft hyphen, (non-)joiner, Catalan, Hebrew
EXTENDERS = "\ufe00-\ufe0f\u20d0-\u20ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"  # variants, keycaps, skin, flags
# Scripts written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, CJK, kana, bopomofo.
_SPACELESS = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
)
_ENTITY = re.compile(r"&[A-Za-z][A-Za-z0-9]{1,31};|&#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});|#[0-9]{2,5};")


class Alphabet(NamedTuple):
    """The regular expressions that know which character is what."""

    chunk: re.Pattern[str]
    symbols: re.Pattern[str]  # a whole chunk of punctuation
    spaceless: re.Pattern[str]  # one written character with its marks, in a script without spaces


@cache
def alphabet() -> Alphabet:
    r"""The regular expressions, built on first use because Python's \w lacks the marks that Hindi writes vowels with.

    No part can be matched in two ways, and every repetition is possessive: time is linear in the text.
    """
    words: list[int] = []
    letters: list[int] = []
    marks: list[int] = []
    ignored: list[int] = []
    for code in range(0x10000):
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Cc", "Cs") or (category == "Cf" and character not in _JOINERS):
            ignored.append(code)
        elif 0xFE00 <= code <= 0xFE0F or 0x20D0 <= code <= 0x20FF:
            continue
        elif character.isalnum() or category[0] == "M":
            if category == "Nd" or not any(low <= code <= high for low, high in _SPACELESS):
                words.append(code)
            else:
                (marks if category[0] == "M" else letters).append(code)
    # Beyond the BMP whole planes do: historic scripts and mathematical letters are words, planes 2 and 3 are CJK.
    word = _ranges(words) + "\U00010000-\U0001cfff\U0001d400-\U0001d7ff\U0001e000-\U0001efff"
    spaceless = _ranges(letters) + "\U00020000-\U0003ffff"
    joined = rf"(?:[{_JOINERS}][{word}]++|(?<=\d)[.,\u066b\u066c](?=\d)[{word}]++)*+"
    symbol = rf"[^\s{word}{spaceless}{_ranges(marks)}{_ranges(ignored)}]"
    chunk = "|".join(
        (
            rf"(?!\d)[{word}](?:\.(?!\d)[{word}]){{1,11}}+(?![{word}])\.?+",  # U.S., e.g.
            rf"[{word}]++{joined}",
            rf"[{spaceless}{_ranges(marks)}]++",
            rf"[{APOSTROPHES}](?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])(?![{word}])",  # the tail of a word apart from it
            rf"{symbol}++",
        )
    )
    return Alphabet(
        chunk=re.compile(chunk),
        symbols=re.compile(rf"(?:{symbol})++\Z"),
        spaceless=re.compile(rf"[{spaceless}][{_ranges(marks)}]*+|[{_ranges(marks)}]"),
    )


def _ranges(codes: Iterable[int]) -> str:
    """Ascending code points as the inside of a character class."""
    runs = groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])
    bounds = ([code for _, code in run] for _, run in runs)
    return "".join(f"\\u{codes[0]:04x}-\\u{codes[-1]:04x}" for codes in bounds)


def split_chunks(field: str) -> list[str]:
    """The chunks of one field: words, numbers, runs of letters without spaces, runs of punctuation."""
    if ";" in field:
        field = _ENTITY.sub(_unescape, field)
    return [field] if " " in field else alphabet().chunk.findall(field)


def locate_chunks(field: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """What `split_chunks` gives for a field of a text, each with the [start, end) that its characters have there."""
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for entity in _ENTITY.finditer(field):
        start, end = entity.span()
        texts += (field[position:start], _unescape(entity))
        spans += [(place, place + 1) for place in range(position, start)] + [(start, end)] * len(texts[-1])
        position = end
    texts.append(field[position:])
    spans += [(place, place + 1) for place in range(position, len(field))]
    for match in alphabet().chunk.finditer("".join(texts)):
        yield match[0], spans[match.start() : match.end()]


def _unescape(entity: re.Match[str]) -> str:
    """The characters of an html entity; "#39;" is one that lost its "&", as some corpora have it."""
    return html.unescape(entity[0] if entity[0].startswith("&") else f"&{entity[0]}")


def is_spaceless(character: str) -> bool:
    """Whether a character is a letter of a script that puts no spaces between words."""
    return alphabet().spaceless.match(character) is not None
