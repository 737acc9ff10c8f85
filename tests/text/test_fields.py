from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.text.fields import locate_fields, locate_tokens, split_fields
from ulmfit.text.words import Token, chunk_tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n\u00a0\u3000", []),
        ("a  b\n", ["a", "b"]),
        ("a<br /><br />b<BR>c<br/>", ["a", "b", "c"]),
        ("a <b> c", ["a", "<b>", "c"]),
        ("no no no", ["no", "no", "no"]),
        ("no no no no", ["4 no"]),
        ("no no\nno  no no.", ["5 no", "."]),
        ("(no no no no!) yes", ["(", "4 no", "!)", "yes"]),
        ("No no no no", ["No", "no", "no", "no"]),  # not the same word
        ("NO NO NO NO", ["4 NO"]),
        ("7 7 7 7", ["4 7"]),
        ("- - - -", ["-", "-", "-", "-"]),  # no word
        ("it's it's it's it's", ["it's"] * 4),  # two tokens
        ("soooo soooo soooo soooo", ["soooo"] * 4),
        ("no<br />no no no", ["4 no"]),  # a line break is white space
        ("no no, no no", ["no", "no,", "no", "no"]),
        ("a a a a-a a a a", ["4 a", "-", "4 a"]),
        ("a a a a b b b b", ["4 a", "4 b"]),
    ],
)
def test_fields_are_split_at_white_space_and_repeated_words_are_one(text: str, expected: list[str]) -> None:
    assert split_fields(text) == expected


def words_by_brute_force(text: str) -> list[str]:
    """The rule word by word, for text of letters, spaces and full stops."""
    pieces = [(match[0], match.start(), match.end()) for match in re.finditer(r"[a-z]+|\.", text)]
    result: list[str] = []
    place = 0
    while place < len(pieces):
        last = place
        while (
            last + 1 < len(pieces)
            and pieces[last + 1][0] == pieces[place][0] != "."
            and text[pieces[last][2] : pieces[last + 1][1]].isspace()
        ):
            last += 1
        count = last - place + 1
        if count >= 4:
            result += ["xxwrep", str(count), pieces[place][0]]
        else:
            result += [piece[0] for piece in pieces[place : last + 1]]
        place = last + 1
    return result


@given(st.lists(st.sampled_from(["ha ", "ha ", "ha ", "no ", "ha. ", ". ", ".ha ", "ha\n"]), max_size=40))
def test_word_repetition_agrees_with_brute_force(parts: list[str]) -> None:
    text = "".join(parts)
    assert [token.text for token in locate_tokens(text, chunk_tokens)] == words_by_brute_force(text)


@given(st.lists(st.sampled_from(["ha", " ", " ", "!", "<br />", "No", "&amp;", "\u200b", "哈", "'s"]), max_size=60))
def test_located_fields_are_the_split_ones(parts: list[str]) -> None:
    text = "".join(parts)
    located = list(locate_fields(text))
    assert [field.text for field in located] == split_fields(text)
    assert all(" " in field.text or text[field.start : field.end] == field.text for field in located)


def test_a_repeated_word_has_the_span_of_all_its_words() -> None:
    assert list(locate_tokens("(ha ha ha ha!", chunk_tokens)) == [
        Token("(", 0, 1),
        Token("xxwrep", 1, 12),
        Token("4", 1, 12),
        Token("ha", 1, 12),
        Token("!", 12, 13),
    ]
