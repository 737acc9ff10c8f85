from __future__ import annotations

import re
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ulmfit.text.words import SPECIALS, Token, chunk_tokens, plain_word


def texts(chunk: str, *, whole_runs: bool = False) -> str:
    return " ".join(token.text for token in chunk_tokens(chunk, whole_runs=whole_runs))


def test_special_tokens_have_their_documented_order() -> None:
    assert SPECIALS == ("xxunk", "xxpad", "xxbos", "xxmaj", "xxup", "xxrep", "xxwrep")


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("word", "word"),
        ("Word", "xxmaj word"),
        ("WORD", "xxup word"),
        ("I", "xxmaj i"),
        ("A", "xxmaj a"),
        ("McDonald", "xxmaj mcdonald"),
        ("iPhone", "iphone"),
        ("MP3", "xxup mp3"),
        ("3D", "xxup 3d"),
        ("1980", "1980"),
        ("ÉCOLE", "xxup école"),
        ("E\u0301", "xxmaj é"),  # one letter in two code points
        ("ǅungla", "xxmaj ǆungla"),
        ("U.S.", "xxup u.s."),
        ("e.g.", "e.g."),
    ],
)
def test_capitals_become_a_marker_before_the_word_in_lower_case(chunk: str, expected: str) -> None:
    assert texts(chunk) == expected


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("don't", "do n't"),
        ("don’t", "do n't"),
        ("don`t", "do n't"),
        ("Don't", "xxmaj do n't"),
        ("DON'T", "xxup do n't"),
        ("it's", "it 's"),
        ("we'll", "we 'll"),
        ("you're", "you 're"),
        ("I'm", "xxmaj i 'm"),
        ("they'd", "they 'd"),
        ("I've", "xxmaj i 've"),
        ("shouldn't've", "should n't 've"),
        ("1980's", "1980 's"),
        ("cannot", "cannot"),
        ("n't", "n't"),
        ("'s", "'s"),
        ("'S", "'s"),
        ("o'clock", "o'clock"),
        ("rock'n'roll", "rock'n'roll"),
    ],
)
def test_contractions_come_apart(chunk: str, expected: str) -> None:
    assert texts(chunk) == expected


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("soooooo", "s xxrep 6 o"),
        ("SOOOO", "xxup s xxrep 4 o"),
        ("Soooo", "xxmaj s xxrep 4 o"),
        ("looooove", "l xxrep 5 o ve"),
        ("aaaa", "xxrep 4 a"),
        ("AAAA", "xxup xxrep 4 a"),
        ("aaabbbccc", "aaabbbccc"),
        ("noOoO", "n xxrep 4 o"),
        ("10000", "10000"),
        ("soooon't", "s xxrep 4 o n't"),
        ("!!!!!", "xxrep 5 !"),
        ("!!!", "! ! !"),
        ("?!?!", "? ! ? !"),
        ("...", "..."),
        ("..", ". ."),
        ("....", "xxrep 4 ."),
        ("…", "..."),
        ("...!", "... !"),
        ("!!!!?", "xxrep 4 ! ?"),
        ('")', '" )'),
        ("“", '"'),
        ("__", "_ _"),
        ("▁", "_"),
        ("哈哈哈", "哈 哈 哈"),
        ("好哈哈哈哈", "好 xxrep 4 哈"),
        ("สวัสดี", "ส วั ส ดี"),
        ("❤️", "❤"),
        ("👍🏽👍🏽", "👍🏽 👍🏽"),
        ("👩‍👧", "👩‍👧"),
        ("🇩🇪🇫🇷", "🇩🇪 🇫🇷"),
        ("4 ha", "xxwrep 4 ha"),  # what a repeated word becomes, see fields.py
        ("5 NO", "xxwrep 5 xxup no"),
    ],
)
def test_repetitions_are_counted_and_punctuation_stands_alone(chunk: str, expected: str) -> None:
    assert texts(chunk) == expected


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [("今天哈哈哈哈好", "今天 xxrep 4 哈 好"), ("今天", "今天"), ("word", "word"), ("哈哈哈", "哈哈哈")],
)
def test_whole_runs_keeps_letters_of_scripts_without_spaces_together(chunk: str, expected: str) -> None:
    assert texts(chunk, whole_runs=True) == expected


@pytest.mark.parametrize("special", SPECIALS)
def test_a_typed_special_token_is_unknown_in_any_case(special: str) -> None:
    assert texts(special) == "xxunk"
    assert texts(special.upper()) == "xxup xxunk"
    assert texts(f"{special}'s") == "xxunk 's"
    assert texts(f"{special[:2]}\u00ad{special[2:]}") == "xxunk"


def test_spans_are_those_of_the_characters_a_token_stands_for() -> None:
    assert chunk_tokens("Don't") == (Token("xxmaj", 0, 2), Token("do", 0, 2), Token("n't", 2, 5))
    assert chunk_tokens("sooooo!"[:-1]) == (
        Token("s", 0, 1),
        Token("xxrep", 1, 6),
        Token("5", 1, 6),
        Token("o", 1, 6),
    )
    assert chunk_tokens("...!?") == (Token("...", 0, 3), Token("!", 3, 4), Token("?", 4, 5))


@given(st.text(alphabet="abAB1", min_size=1, max_size=30))
def test_letter_repetition_agrees_with_grouping_letter_by_letter(word: str) -> None:
    expected: list[str] = []
    plain = ""
    for letter, group in groupby(word.lower()):
        run = "".join(group)
        if len(run) < 4 or letter == "1":
            plain += run
        else:
            expected += [plain] if plain else []
            expected += ["xxrep", str(len(run)), letter]
            plain = ""
    expected += [plain] if plain else []
    if not word.islower() and re.search("[AB]", word):
        if word.isupper() and len(word) > 1:
            expected.insert(0, "xxup")
        elif word[0].isupper():
            expected.insert(0, "xxmaj")
    assert texts(word).split() == expected


@given(st.text(alphabet="abAB1'\u00e9", min_size=1, max_size=12) | st.sampled_from(SPECIALS))
@example("I")
@example("The")
@example("NOT")
@example("iPhone")
@example("soooo")
def test_a_word_of_ascii_letters_is_told_without_its_characters(chunk: str) -> None:
    texts = tuple(token.text for token in chunk_tokens(chunk))
    plain = chunk.isascii() and chunk.isalpha() and "xxrep" not in texts and "xxunk" not in texts
    assert plain_word(chunk) == (texts if plain else None)


@given(st.text(alphabet=".!?-", min_size=1, max_size=30))
def test_punctuation_agrees_with_grouping_character_by_character(chunk: str) -> None:
    expected: list[str] = []
    for symbol, group in groupby(chunk):
        count = len(list(group))
        if symbol == "." and count == 3:
            expected.append("...")
        else:
            expected += ["xxrep", str(count), symbol] if count > 3 else [symbol] * count
    assert texts(chunk).split() == expected


@given(st.text(min_size=1).filter(lambda text: not any(character.isspace() for character in text)))
@example("\u200d")
@example("İ's")
def test_any_chunk_gives_tokens_in_order_within_it(chunk: str) -> None:
    tokens = chunk_tokens(chunk)
    starts = [token.start for token in tokens]
    assert starts == sorted(starts)
    assert all(token.text and 0 <= token.start < token.end <= len(chunk) for token in tokens)
