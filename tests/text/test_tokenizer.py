from __future__ import annotations

import copy
import difflib
import hashlib
import json
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ulmfit.config import TokenizerConfig
from ulmfit.errors import TokenizerError
from ulmfit.text.tokenizer import Tokenizer, build_tokenizer, count_tokens, train_tokenizer
from ulmfit.text.words import SPECIALS

TEXTS = [
    "The film was good, it's really good! Don't miss it.",
    "A BAD film... I didn't like it. The end was soooo bad!!!!",
    "Very very very very long. 10/10 <br /><br />The best film of 1,234.5 films; the worst 今天天气 of all.",
] * 3


def trained(kind: str, **settings: object) -> Tokenizer:
    config = TokenizerConfig.parse({"kind": kind, "vocab_size": 120, "min_frequency": 1, **settings})
    return train_tokenizer(TEXTS, config=config, processes=1)


TOKENIZERS = {kind: trained(kind) for kind in ("word", "unigram", "bpe")}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def tokens_of(tokenizer: Tokenizer, text: str) -> str:
    return " ".join(tokenizer.tokens[id] for id in tokenizer.encode(text))


@kinds
def test_special_tokens_come_first(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.tokens[:7] == SPECIALS
    assert (tokenizer.unknown_id, tokenizer.padding_id, tokenizer.begin_id) == (0, 1, 2)
    assert tokenizer.kind == kind
    assert 7 < len(tokenizer) == len(tokenizer.tokens) <= 120


def test_words_encode_as_the_rules_say() -> None:
    assert tokens_of(TOKENIZERS["word"], "It's BAD, I don't like the film... soooo bad!!!! Brobdingnag") == (
        "xxbos xxmaj it 's xxup bad , xxmaj i do n't like the film ... s xxrep 4 o bad xxrep 4 ! xxmaj xxunk"
    )


@kinds
@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000", "<br />", "\u200b", "\ud800"])
def test_text_without_anything_to_read_is_xxbos_alone(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode(text) == [2]
    assert tokenizer.tokenize(text) == []
    assert tokenizer.decode([2]) == ""


@kinds
@pytest.mark.parametrize("special", SPECIALS)
def test_typed_special_tokens_cannot_forge_ids(kind: str, special: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode(f"{special} a {special}")[1:] == [0, *tokenizer.encode("a")[1:], 0]


parts = st.sampled_from(
    ["the", "The", "FILM", "very", " very", "don't", " ", " ", "<br />", "!", "...", "&amp;", "#39;s", "soooo", "xxbos",
     "今天", "天天天天", "▁", "İ", "e\u0301", "\u00ad", "👩\u200d👧", "7.5", "U.S.", "\ud800", "’", "&", "हिन्दी", "ǅ",
     "\x00"]
)  # fmt: skip


@kinds
@given(text=st.one_of(st.text(), st.lists(parts, max_size=30).map("".join)))
@example(text="a a a a-a a a a")
def test_tokens_have_the_ids_of_encode_and_spans_in_order_within_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.tokenize(text)
    assert [tokenizer.id(token.text) for token in tokens] == tokenizer.encode(text)[1:]
    starts = [token.start for token in tokens]
    assert starts == sorted(starts)
    assert all(0 <= token.start <= token.end <= len(text) for token in tokens)
    assert not {1, 2} & set(tokenizer.encode(text)[1:])


@given(st.text(alphabet="ab nt's.!NX1\n", max_size=60))
def test_what_has_been_encoded_before_does_not_matter(text: str) -> None:
    used = TOKENIZERS["word"]
    assert used.encode(text) == Tokenizer(used.tokens).encode(text)


def test_offsets_lead_back_to_the_characters() -> None:
    text = "It's sooooo caf&eacute;,<br />Don’t!"
    spans = [(token.text, text[token.start : token.end]) for token in TOKENIZERS["word"].tokenize(text)]
    assert spans == [
        ("xxmaj", "It"),
        ("it", "It"),
        ("'s", "'s"),
        ("s", "s"),
        ("xxrep", "ooooo"),
        ("5", "ooooo"),
        ("o", "ooooo"),
        ("café", "caf&eacute;"),
        (",", ","),
        ("xxmaj", "Do"),
        ("do", "Do"),
        ("n't", "n’t"),
        ("!", "!"),
    ]


@pytest.mark.parametrize(
    "pattern", ["a", "ab", "!", "?!", ".", "a.", "'", "'s", "&", "&a", "&#3", "#1;", "\u200d", "天"]
)
@pytest.mark.parametrize("separator", ["", " "])
def test_fifty_thousand_of_anything_take_no_more_than_linear_time(pattern: str, separator: str) -> None:
    # Quadratic time would be minutes here: the suite's patience is the assertion.
    text = (pattern + separator) * 50_000
    assert TOKENIZERS["word"].encode(text)[0] == 2


# --- on disk --------------------------------------------------------------------------------------------------------


@kinds
def test_a_tokenizer_survives_its_json_and_a_process_boundary(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    for twin in (Tokenizer.from_json(tokenizer.to_json()), copy.deepcopy(tokenizer)):  # deepcopy travels as workers do
        assert twin is not tokenizer
        assert twin == tokenizer
        assert twin.tokens == tokenizer.tokens
        assert twin.fingerprint == tokenizer.fingerprint
        assert [twin.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@kinds
def test_fingerprint_is_the_sha256_of_the_json_and_ignores_its_layout(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.fingerprint == hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    relaid = json.dumps(dict(reversed(json.loads(tokenizer.to_json()).items())), indent=1)
    assert Tokenizer.from_json(relaid).fingerprint == tokenizer.fingerprint


def test_saved_form_is_the_documented_one() -> None:
    values = json.loads(TOKENIZERS["word"].to_json())
    assert values == {
        "format": "ulmfit-tokenizer",
        "version": 1,
        "kind": "word",
        "tokens": list(TOKENIZERS["word"].tokens),
    }
    assert json.loads(TOKENIZERS["bpe"].to_json())["model"]["type"] == "BPE"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other', expected 'ulmfit-tokenizer'"),
        ({"version": 2}, "version is 2, this ulmfit reads version 1; upgrade"),
        ({"version": True}, "version is True, this ulmfit reads version 1"),
        ({"version": None}, "version is None"),
        ({"kind": "letters"}, "kind is 'letters'"),
        ({"kind": ["word"]}, "kind is"),
        ({"tokens": "abc"}, "not a list of strings"),
        ({"tokens": [*SPECIALS, 7]}, "not a list of strings"),
        ({"tokens": ["the", *SPECIALS]}, "first tokens are"),
        ({"tokens": []}, "first tokens are"),
        ({"tokens": [*SPECIALS, "a", "b", "a"]}, "'a' 2 times"),
        ({"tokens": [*SPECIALS, "xxbos"]}, "'xxbos' 2 times"),
        ({"tokens": [*SPECIALS, "\ud800"]}, "not JSON in UTF-8"),
        ({"tokens": [*SPECIALS, ""]}, "token 7 is empty"),
        ({"tokens": [*SPECIALS, *map(str, range(2**20))]}, "expected at most 1048576"),
        ({"kind": "unigram"}, "'vocab' of its subword model is NoneType, expected list"),
    ],
)
def test_a_damaged_word_tokenizer_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    values = json.loads(TOKENIZERS["word"].to_json()) | change
    with pytest.raises(TokenizerError, match=r"^tokenizer: ") as caught:
        Tokenizer.from_json(json.dumps(values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"format": 1}'])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.from_json(text)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_tokens_that_are_not_those_of_the_subword_model_are_refused(kind: str) -> None:
    values = json.loads(TOKENIZERS[kind].to_json())
    values["tokens"].append("more")
    with pytest.raises(TokenizerError, match="are not the 7 special tokens and"):
        Tokenizer.from_json(json.dumps(values))


# --- training -------------------------------------------------------------------------------------------------------


def test_vocabulary_is_the_most_frequent_tokens_and_equal_ones_are_alphabetical() -> None:
    config = TokenizerConfig(vocab_size=16, min_frequency=2)
    tokenizer = train_tokenizer(["b a c d d d e", "a b d xxbos xxbos xxbos", "c"], config=config)
    assert tokenizer.tokens == (*SPECIALS, "d", "a", "b", "c")
    smaller = train_tokenizer(["a b c d e f g h i j k"], config=TokenizerConfig(vocab_size=16, min_frequency=1))
    assert smaller.tokens == (*SPECIALS, *"abcdefghi")


@kinds
def test_training_twice_gives_the_same_tokenizer_whatever_the_order_of_counts(kind: str) -> None:
    config = TokenizerConfig.parse({"kind": kind, "vocab_size": 120, "min_frequency": 1})
    counts = count_tokens(TEXTS, whole_runs=kind != "word")
    again = build_tokenizer(dict(reversed(counts.items())), config=config)
    assert again.to_json() == TOKENIZERS[kind].to_json()


@kinds
@pytest.mark.parametrize("texts", [[], [""], ["  ", "<br />"], ["xxunk"]])
def test_training_without_words_is_refused(kind: str, texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="hold no words"):
        train_tokenizer(texts, config=TokenizerConfig.parse({"kind": kind}))


@kinds
def test_training_with_nothing_frequent_enough_is_refused(kind: str) -> None:
    with pytest.raises(TokenizerError, match="min_frequency"):
        train_tokenizer(["one"], config=TokenizerConfig.parse({"kind": kind, "min_frequency": 5}))


@kinds
def test_real_reviews_have_few_unknown_tokens_and_read_back_alike(kind: str, data: Path) -> None:
    file = pyarrow.parquet.ParquetFile(data / "imdb" / "test.parquet")
    texts = next(file.iter_batches(batch_size=400, columns=["text"])).column(0).to_pylist()
    config = TokenizerConfig.parse({"kind": kind, "vocab_size": 8000, "min_frequency": 1})
    tokenizer = train_tokenizer(texts[:300], config=config)
    unknown = total = kept = 0
    for text in texts[300:]:
        ids = tokenizer.encode(text)
        assert [tokenizer.id(token.text) for token in tokenizer.tokenize(text)] == ids[1:]
        again = tokenizer.encode(tokenizer.decode(ids))
        unknown += ids.count(0)
        total += len(ids)
        kept += sum(
            block.size for block in difflib.SequenceMatcher(None, ids, again, autojunk=False).get_matching_blocks()
        )
    assert unknown / total < (0.1 if kind == "word" else 0.002)
    assert kept / total > 0.99
