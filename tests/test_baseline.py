"""The baseline learns what there is to learn, from any number of labels."""

import numpy as np
import pytest

from ulmfit.baseline import train_baseline

SIGNAL = {"good": ["fine", "great", "lovely"], "bad": ["awful", "poor", "dull"]}
NOISE = [f"word{number}" for number in range(30)]


def reviews(count, seed=0, labels=("good", "bad")):
    """Texts in which one word in ten tells the label."""
    generator = np.random.default_rng(seed)
    chosen = [labels[index % len(labels)] for index in range(count)]
    texts = [
        " ".join(generator.permutation([generator.choice(SIGNAL[label]), *generator.choice(NOISE, 9)]))
        for label in chosen
    ]
    return texts, chosen


def test_it_learns_what_a_few_words_tell():
    texts, labels = reviews(60)
    test_texts, test_labels = reviews(100, seed=1)
    baseline = train_baseline(texts, labels)
    assert np.mean(baseline.predict(test_texts) == np.array(test_labels)) > 0.9
    probabilities = baseline.predict_proba(test_texts)
    assert list(baseline.classes_) == ["bad", "good"]
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_it_finds_nothing_where_there_is_nothing():
    texts, labels = reviews(60)
    shuffled = np.random.default_rng(0).permutation(labels)
    test_texts, test_labels = reviews(100, seed=1)
    assert np.mean(train_baseline(texts, shuffled).predict(test_texts) == np.array(test_labels)) < 0.75


def test_the_same_labels_give_the_same_baseline():
    texts, labels = reviews(40)
    one, other = (train_baseline(texts, labels).predict_proba(texts) for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("rarest", [1, 2, 3])
def test_a_class_of_few_examples_is_no_hindrance(rarest):
    texts, labels = reviews(20, labels=("good",))
    rare_texts, rare_labels = reviews(rarest, labels=("bad",))
    baseline = train_baseline([*texts, *rare_texts], [*labels, *rare_labels])
    assert set(baseline.predict(texts)) == {"good"}
    assert list(baseline.classes_) == ["bad", "good"]


def test_one_example_of_each_class_is_enough():
    baseline = train_baseline(["a fine film", "an awful film"], ["good", "bad"])
    assert list(baseline.predict(["fine", "awful"])) == ["good", "bad"]
