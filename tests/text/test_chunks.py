from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.text.chunks import alphabet, locate_chunks, split_chunks


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("word", ["word"]),
        ("don't,", ["don't", ","]),
        ("'don’t'", ["'", "don’t", "'"]),
        ("don&#39;t", ["don't"]),
        ("don#39;t", ["don't"]),
        ("#39;s", ["'s"]),
        ("'same", ["'", "same"]),
        ("(7.5)", ["(", "7.5", ")"]),
        ("1,234.5.", ["1,234.5", "."]),
        ("10/10.I", ["10", "/", "10", ".", "I"]),
        ("v1.2", ["v1.2"]),
        ("end.Start", ["end", ".", "Start"]),
        ("U.S.A.", ["U.S.A."]),
        ("(e.g.,", ["(", "e.g.", ","]),
        ("www.a.b.com", ["www", ".", "a", ".", "b", ".", "com"]),
        ("well-known", ["well", "-", "known"]),
        ("snake_case", ["snake", "_", "case"]),
        ('"...!', ['"...!']),
        ("AT&amp;T", ["AT", "&", "T"]),
        ("&lt;b&gt;", ["<", "b", ">"]),
        ("&#36;5", ["$", "5"]),
        ("#36;5", ["$", "5"]),
        ("caf&eacute;", ["café"]),
        ("a&nbsp;b", ["a", "b"]),
        ("&nonsense;", ["&", "nonsense", ";"]),
        ("#1;", ["#", "1", ";"]),
        ("हिन्दी", ["हिन्दी"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("iPhone手机", ["iPhone", "手机"]),
        ("안녕하세요", ["안녕하세요"]),
        ("a\u200bb\x00c", ["a", "b", "c"]),
        ("\u200b\ufeff", []),
        ("\ud800", []),
        ("👩‍👧!", ["👩‍👧!"]),
    ],
)
def test_fields_fall_into_the_documented_chunks(field: str, expected: list[str]) -> None:
    assert split_chunks(field) == expected


def test_every_letter_digit_and_mark_belongs_to_some_word_or_writing_without_spaces() -> None:
    for code in range(0x10000):
        character = chr(code)
        if character.isalnum():
            assert split_chunks(character) == [character]
            assert not alphabet().symbols.match(character)
        elif unicodedata.category(character)[0] in "PS":
            assert alphabet().symbols.match(character)


@given(st.text().filter(lambda text: not any(character.isspace() for character in text)))
def test_located_chunks_are_the_split_ones_with_as_many_spans_as_characters(field: str) -> None:
    located = list(locate_chunks(field))
    assert [chunk for chunk, _ in located] == split_chunks(field)
    for chunk, spans in located:
        assert len(spans) == len(chunk)
        assert all(0 <= start < end <= len(field) for start, end in spans)


def test_an_entity_keeps_the_characters_it_was_written_with() -> None:
    assert list(locate_chunks("a&amp;")) == [("a", [(0, 1)]), ("&", [(1, 6)])]


@given(st.text(alphabet="ab1.,'&;#-_\u0301哈", max_size=40))
def test_without_entities_no_visible_character_is_lost(field: str) -> None:
    if "".join(split_chunks(field)) != field:
        assert ";" in field and ("&" in field or "#" in field)
