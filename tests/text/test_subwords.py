from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.errors import TokenizerError
from ulmfit.text.subwords import SubwordKind, SubwordModel, join_pieces, train_subwords
from ulmfit.text.words import SPECIALS, Token

COUNTS = {
    "low": 50, "lower": 20, "lowest": 9, "new": 30, "newer": 22, "newest": 14, "wide": 40, "wider": 8, "größe": 7,
    "xxmaj": 99, "n't": 12, "film": 60, "films": 25, "filmed": 5, ",": 80, "今天": 6, "oncé": 1,
}  # fmt: skip
KINDS: tuple[SubwordKind, ...] = ("unigram", "bpe")
MODELS = {kind: train_subwords(COUNTS, kind=kind, vocab_size=60, min_frequency=2) for kind in KINDS}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_pieces_put_together_are_the_word(kind: SubwordKind) -> None:
    for word in ("low", "lowest", "newfilmwider", "größe", "n't", ","):
        assert "".join(MODELS[kind].divide(word)) == f"▁{word}"


@kinds
def test_an_unseen_character_is_unknown_and_its_neighbours_are_not(kind: SubwordKind) -> None:
    assert list(MODELS[kind].divide("lowфф,"))[-2:] == ["xxunk", ","]
    assert "".join(MODELS[kind].divide("low🙂")) == "▁lowxxunk"


@kinds
def test_a_character_seen_too_seldom_is_unknown(kind: SubwordKind) -> None:
    assert "xxunk" in MODELS[kind].divide("é")


@kinds
@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_stay_whole_and_are_no_pieces(kind: SubwordKind, special: str) -> None:
    assert list(MODELS[kind].divide_token(Token(special, 3, 9))) == [Token(special, 3, 9)]
    assert not any(special in piece for piece in MODELS[kind].pieces)


@kinds
@given(word=st.text(alphabet="lowernwstfm🙂ß今", min_size=1, max_size=20))
def test_pieces_have_the_spans_of_their_characters(kind: SubwordKind, word: str) -> None:
    pieces = list(MODELS[kind].divide_token(Token(word, 10, 10 + len(word))))
    position = 10
    for piece in pieces:
        assert piece.start == position
        if piece.text != "xxunk":
            assert piece.text.removeprefix("▁") == word[piece.start - 10 : piece.end - 10]
        position = piece.end
    assert position == 10 + len(word)


@kinds
def test_pieces_of_a_word_whose_characters_moved_have_the_span_of_the_word(kind: SubwordKind) -> None:
    pieces = list(MODELS[kind].divide_token(Token("größe", 4, 14)))
    assert {(piece.start, piece.end) for piece in pieces} == {(4, 14)}


@kinds
def test_a_model_has_no_more_entries_than_asked_for(kind: SubwordKind) -> None:
    for size in (20, 30, 60):
        assert len(train_subwords(COUNTS, kind=kind, vocab_size=size).pieces) < size


@kinds
def test_a_model_is_its_values(kind: SubwordKind) -> None:
    values = json.loads(json.dumps(MODELS[kind].values))
    twin = SubwordModel(kind, values)
    assert twin.pieces == MODELS[kind].pieces
    assert all([*twin.divide(word)] == [*MODELS[kind].divide(word)] for word in COUNTS)


@kinds
def test_training_in_another_process_gives_the_same_model(kind: SubwordKind) -> None:
    # Another process has other hash seeds, within the library too.
    code = (
        "import json, sys; from ulmfit.text.subwords import train_subwords; counts, kind = json.load(sys.stdin);"
        "print(json.dumps(train_subwords(counts, kind=kind, vocab_size=60, min_frequency=2).values))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([COUNTS, kind]), capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == json.loads(json.dumps(MODELS[kind].values))


@kinds
def test_training_without_a_usable_word_is_refused(kind: SubwordKind) -> None:
    with pytest.raises(TokenizerError, match="no word is left"):
        train_subwords({"xxbos": 5}, kind=kind, vocab_size=60)


def damage(kind: SubwordKind, **change: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(copy.deepcopy(MODELS[kind].values))), **change}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("unigram", None, "'vocab' of its subword model is NoneType"),
        ("unigram", damage("unigram", vocab={}), "is dict, expected list"),
        ("unigram", damage("unigram", vocab=[]), "entry 0 is not 'xxunk'"),
        ("unigram", damage("unigram", unk_id=1), "unk_id is not 0"),
        ("unigram", damage("unigram", vocab=[["xxunk", 0.0], ["a"]]), "entry 1 is"),
        ("unigram", damage("unigram", vocab=[["xxunk", 0.0], ["a", float("nan")]]), "entry 1 is"),
        ("unigram", damage("unigram", vocab=[["xxunk", 0.0], ["", 0.0]]), "entry 1 is"),
        ("unigram", damage("unigram", vocab=[["xxunk", 0.0], ["a", 0.0], ["a", 0.0]]), "'a' 2 times"),
        ("bpe", damage("bpe", vocab=[]), "is list, expected dict"),
        ("bpe", damage("bpe", vocab={"xxunk": 0, "a": 2}), "are not 0, 1, 2"),
        ("bpe", damage("bpe", vocab={"xxunk": 0, "a": "1"}), "are not 0, 1, 2"),
        ("bpe", damage("bpe", vocab={"a": 0, "xxunk": 1}), "are not 0, 1, 2"),
        ("bpe", damage("bpe", merges=[["low", "nonsense"]]), "merge 0 is"),
        ("bpe", damage("bpe", merges=["l o"]), "merge 0 is"),
    ],
)
def test_a_damaged_model_is_refused(kind: SubwordKind, values: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer: ") as caught:
        SubwordModel(kind, values)
    assert message in str(caught.value)


def test_pieces_join_to_words_around_special_tokens() -> None:
    pieces = ["xxmaj", "▁new", "er", "▁", "xxunk", "s", "▁n't", "xxbos", "▁low"]
    assert list(join_pieces(pieces)) == ["xxmaj", "newer", "xxunk", "s", "n't", "xxbos", "low"]
