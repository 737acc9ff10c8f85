"""A bag of words counts as scikit-learn does, and votes beside probabilities by the formula that it names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from ulmfit.bag_of_words import DOCUMENTS_AT_ONCE, BagOfWords, Terms, encoded, occurrences
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.text.words import SPECIALS

FIRST, VOCAB = len(SPECIALS), 40
WORDS = [f"w{'abcdefghij'[place // 10]}{'klmnopqrst'[place % 10]}" for place in range(VOCAB - FIRST)]
TOKENIZER = Tokenizer((*SPECIALS, *WORDS))


def drawn(count, seed=0):
    """Texts of some words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 30))) for _ in range(count)]


def key(*words):
    return words[0] if len(words) == 1 else (words[0] + 1) * VOCAB + words[1]


def bag(terms=30, classes=3, share=1.0, network_share=1.0, seed=0):
    generator = np.random.default_rng(seed)
    singles = np.arange(FIRST, VOCAB)
    pairs = np.unique(generator.integers(FIRST, VOCAB, (terms, 2)) @ [VOCAB, 1] + VOCAB)
    keys = np.concatenate([singles, pairs]).astype(np.int64)
    numbers = [generator.normal(size=shape).astype(np.float32) for shape in ((len(keys), classes), classes)]
    return BagOfWords(Terms(TOKENIZER, keys, np.full(len(keys), 1.5, np.float32)), *numbers, share, network_share)


def test_vectors_are_the_tf_idf_of_scikit_learn():
    texts = drawn(50)
    reference = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    expected = reference.fit_transform(texts)
    names = reference.get_feature_names_out()
    keys = np.array([key(*(FIRST + WORDS.index(word) for word in name.split())) for name in names])
    order = np.argsort(keys)
    terms = Terms(TOKENIZER, keys[order], reference.idf_[order].astype(np.float32))
    found = terms.vectors(encoded(TOKENIZER, texts))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), expected.toarray()[:, order], rtol=1e-5, atol=1e-7)


def test_markers_are_no_words_and_pairs_end_with_their_document():
    rows, keys = occurrences([np.array([2, 10, 3, 11]), np.array([2]), np.array([2, 12])], vocab_size=VOCAB)
    assert sorted(zip(rows.tolist(), keys.tolist(), strict=True)) == [
        (0, key(10)),
        (0, key(11)),
        (0, key(10, 11)),
        (2, key(12)),
    ]


def test_a_texts_logits_do_not_hang_on_the_texts_beside_it():
    texts = drawn(DOCUMENTS_AT_ONCE + 3)
    model = bag()
    together = model.logits(texts)
    assert together.dtype == np.float32
    for place in (0, DOCUMENTS_AT_ONCE - 1, DOCUMENTS_AT_ONCE, DOCUMENTS_AT_ONCE + 2):
        alone = model.logits([texts[place]])
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-5, atol=1e-6)


def test_a_text_without_a_known_term_has_the_bias_alone():
    model = replace(
        bag(), terms=Terms(TOKENIZER, np.array([20]), np.ones(1, np.float32)), weights=np.ones((1, 3), "f4")
    )
    texts = ["", "never seen", " ".join(WORDS[:3])]
    np.testing.assert_array_equal(model.logits(texts), np.stack([model.bias] * 3))
    assert model.logits([]).shape == (0, 3)


@pytest.mark.parametrize(("share", "network_share"), [(0.0, 1.0), (0.5, 1.0), (1.0, 0.2), (3.0, 0.7)])
def test_beside_is_the_product_of_powers_of_both_probabilities_made_to_sum_to_one(share, network_share):
    model, texts = bag(share=share, network_share=network_share), drawn(20)
    network = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = network**network_share * torch.from_numpy(model.logits(texts)).softmax(1) ** share
    found = model.beside(network, texts)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    if share == 0:
        torch.testing.assert_close(found, network)


def test_a_class_that_the_network_rules_out_stays_a_number():
    found = bag().beside(torch.tensor([[1.0, 0.0, 0.0]]), drawn(1))
    assert found.isfinite().all()
    assert found.argmax() == 0


def test_what_is_written_comes_back():
    model = bag(share=0.5)
    tensors = model.tensors()
    layout = BagOfWords.layout(terms=len(model.terms), classes=3)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in layout.items()
    }
    again = BagOfWords.of_tensors(tensors, tokenizer=TOKENIZER, share=0.5, network_share=1.0)
    np.testing.assert_array_equal(again.logits(drawn(5)), model.logits(drawn(5)))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([11, 10], "do not rise"),
        ([10, 10], "do not rise"),
        ([-1, 10], "no word"),
        ([10, VOCAB * (VOCAB + 1)], "no word"),
    ],
)
def test_terms_that_are_none_are_refused(keys, told):
    tensors = {
        "keys": torch.tensor(keys),
        "rarity": torch.ones(2),
        "weights": torch.ones(2, 3),
        "bias": torch.ones(3),
    }
    with pytest.raises(ValueError, match=told):
        BagOfWords.of_tensors(tensors, tokenizer=TOKENIZER, share=1.0, network_share=1.0)
