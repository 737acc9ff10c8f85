from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.text.fields import locate_tokens
from ulmfit.text.readable import readable
from ulmfit.text.words import SPECIALS, chunk_tokens


@pytest.mark.parametrize(
    "text",
    [
        "Don't miss it, I'm sure you'll like it!",
        "DON'T do THAT.",
        'The (very) good film: 10/10, a well-known "classic"; it costs $5 [or 7.5%].',
        "Soooo good!!!!! SOOOO bad...",
        "No -- really? It's John's.",
        "very very very very long",
        "NO NO NO NO",
        "今天天气好，很好。",
        "U.S. films, e.g. this",
        "",
    ],
)
def test_ordinary_text_comes_back_as_it_was(text: str) -> None:
    assert readable(token.text for token in locate_tokens(text, chunk_tokens)) == text


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("xxbos xxmaj one xxbos two xxpad xxpad", "One\ntwo"),
        ("a xxunk b", "a xxunk b"),
        ("xxrep 5 ! !", "!!!!!!"),
        ("xxrep 999999999 !", "!" * 100),
        ("xxrep 99999999999999999999999 !", "99999999999999999999999!"),
        ("xxrep many !", "many!"),
        ("xxrep ² !", "²!"),
        ("xxwrep 3 xxmaj ha", "Ha Ha Ha"),
        ("xxrep", ""),
        ("xxrep 4", ""),
        ("xxwrep 4", ""),
        ("xxmaj", ""),
        ("xxmaj xxup word", "WORD"),
        ("xxrep 4 xxmaj word", "Word Word Word Word"),
        ("it xxup xxrep 4 a", "it AAAA"),
        ("n't", "n't"),
    ],
)
def test_any_order_of_markers_gives_text(tokens: str, expected: str) -> None:
    assert readable(tokens.split()) == expected


@given(st.lists(st.sampled_from([*SPECIALS, "a", "4", "n't", '"', "-", "(", "今", "", "'s"])))
def test_nothing_a_model_may_write_fails(tokens: list[str]) -> None:
    assert readable(tokens).isprintable() or "\n" in readable(tokens)
