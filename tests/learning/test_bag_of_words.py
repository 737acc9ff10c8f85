"""What a bag of words learns from labels, and what unlabelled text adds to that."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from ulmfit.bag_of_words import encoded
from ulmfit.bundle import ClassifierBundle
from ulmfit.config import ClassifyConfig
from ulmfit.learning import bag_of_words
from ulmfit.learning.bag_of_words import (
    MOST_BETTER,
    NETWORK_SHARE,
    learn_bag_of_words,
    share_of_network,
    terms_of,
)
from ulmfit.pipeline import train_classifier
from ulmfit.predict import Predictor
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.text.words import SPECIALS

LETTERS = "abcdefghijklmnopqrst"
GOOD, BAD, NEUTRAL = ([f"{kind}{letter}" for letter in LETTERS] for kind in ("good", "bad", "neutral"))


def text_of(generator, telling, count=4):
    words = np.concatenate([generator.choice(telling, count), generator.choice(NEUTRAL, 8)])
    return " ".join(generator.permutation(words))


def labelled(count, *, words=20, seed=0, classes=(GOOD, BAD)):
    """Texts of each class in turn, with the first so many of its telling words, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % len(classes)
    return [text_of(generator, classes[label][:words]) for label in labels], labels


def unlabelled(count, seed=1):
    generator = np.random.default_rng(seed)
    return [text_of(generator, (GOOD, BAD)[place % 2], count=8) for place in range(count)]


def right(model, texts, labels):
    return float((model.logits(texts).argmax(1) == labels).mean())


def learnt(texts, labels, more=(), classes=2, **given):
    return learn_bag_of_words(texts, labels, more, classes=classes, share=1.0, seed=0, **given)[0]


def test_words_that_only_unlabelled_text_has_are_understood_by_the_company_they_keep(monkeypatch):
    monkeypatch.setattr(bag_of_words, "DIRECTIONS", 5)
    few = labelled(12, words=4)
    unseen = labelled(200, seed=5, classes=(GOOD[4:], BAD[4:]))
    assert right(learnt(*few, unlabelled(400)), *unseen) > 0.95
    assert right(learnt(*few), *unseen) < 0.75


@pytest.mark.parametrize("words", [8, 20], ids=["easy", "hard"])
def test_the_table_is_the_mean_of_both_regressions_as_sure_as_it_is_right_on_folds(monkeypatch, words):
    monkeypatch.setattr(bag_of_words, "TERM_STRENGTHS", (10.0,))
    monkeypatch.setattr(bag_of_words, "DIRECTION_STRENGTHS", (10.0,))
    monkeypatch.setattr(bag_of_words, "DIRECTIONS", 5)
    (texts, labels), more, (probe, _) = labelled(60, words=words), unlabelled(40), labelled(20, seed=9)
    model = learnt(texts, labels, more)
    rows, others, unseen = (
        model.terms.vectors(encoded(model.terms.tokenizer, given)) for given in (texts, more, probe)
    )
    seen = TruncatedSVD(5, n_iter=2, random_state=0)
    seen.fit(np.concatenate([rows.toarray(), others.toarray()]))
    regression = LogisticRegression(C=10.0, max_iter=1000)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    logits, held_out = [], []
    for inputs, given in ((rows, unseen), (seen.transform(rows), seen.transform(unseen))):
        logits.append(regression.fit(inputs, labels).decision_function(given))
        held_out.append(cross_val_predict(regression, inputs, labels, cv=folds, method="decision_function"))
    scales = np.exp(np.linspace(-np.log(4), np.log(4), 2001))
    losses = np.logaddexp(0, -scales[:, None] * np.where(labels == 1, 1, -1) * np.mean(held_out, 0)).mean(1)
    found = model.logits(probe)
    expected = scales[losses.argmin()] * np.mean(logits, 0)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected, rtol=1e-2, atol=1e-2)


def test_what_it_has_learnt_from_a_few_labels_is_said_as_surely_as_it_is_right():
    texts, labels = labelled(40)
    probe, truth = labelled(1000, seed=4)
    chosen = learnt(texts, labels, unlabelled(200)).logits(probe)
    margins = np.where(truth == 1, 1, -1) * (chosen[:, 1] - chosen[:, 0])
    losses = [np.logaddexp(0, -scale * margins).mean() for scale in (0.25, 1, 4)]
    assert min(losses) == losses[1]


def test_the_same_seed_gives_the_same_model():
    first, second = (learnt(*labelled(30), unlabelled(50)) for _ in range(2))
    for name, tensor in first.tensors().items():
        assert tensor.equal(second.tensors()[name])


def test_three_classes_are_told_apart():
    classes = (GOOD, BAD, NEUTRAL[:10])
    assert right(learnt(*labelled(90, classes=classes), classes=3), *labelled(90, classes=classes, seed=3)) > 0.9


def test_a_lone_text_of_each_class_is_enough():
    model = learnt(*labelled(2, words=2))
    assert model.weights.shape == (len(model.terms), 2)
    assert np.isfinite(model.weights).all()


def test_a_class_that_weighs_more_is_likelier(monkeypatch):
    texts, labels = labelled(30)
    probe, _ = labelled(200, seed=4)
    plain, heavy = (learnt(texts, labels, class_weights=weights) for weights in (None, [20.0, 1.0]))
    shares = [(model.logits(probe).argmax(1) == 0).mean() for model in (plain, heavy)]
    assert shares[1] > shares[0] + 0.02
    monkeypatch.setattr(bag_of_words, "MOST_SCALE", 1.0)  # how sure each is in all is another thing
    plain, heavy = (learnt(texts, labels, class_weights=weights) for weights in (None, [20.0, 1.0]))
    margins = [model.logits(probe) @ [1, -1] for model in (plain, heavy)]
    assert (margins[1] > margins[0]).mean() > 0.9


def test_terms_are_the_most_frequent_and_in_three_texts_at_least(monkeypatch):
    tokenizer = Tokenizer((*SPECIALS, "a", "b", "c", "d"))
    a, b, c, d = range(len(SPECIALS), len(SPECIALS) + 4)
    documents = [np.array(ids) for ids in ([2, a, b, a], [2, a, b], [2, a, c, b], [2, d, d, d])]
    terms = terms_of(documents, tokenizer)
    assert terms.keys.tolist() == [a, b]
    assert terms.rarity == pytest.approx(np.log(5 / 4) + 1)
    monkeypatch.setattr(bag_of_words, "MOST_TERMS", 1)
    assert terms_of(documents, tokenizer).keys.tolist() == [a]


def test_how_much_better_than_chance_it_is_on_folds_comes_beside_it():
    texts, labels = labelled(60, words=8)
    model, found = learn_bag_of_words(texts, labels, [], classes=2, share=1.0, seed=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guesses = np.zeros(60)
    for seen, unseen in folds.split(texts, labels):
        part = learnt([texts[place] for place in seen], labels[seen])
        guesses[unseen] = part.logits([texts[place] for place in unseen]).argmax(1)
    assert found == pytest.approx((guesses == labels).mean() - 0.5, abs=0.1) and found > 0.1
    assert right(model, texts, labels) == 1


def test_a_class_with_one_text_is_left_out_of_the_folds_and_learnt_all_the_same():
    classes = (GOOD, BAD, NEUTRAL[:10])
    texts, labels = labelled(60, classes=classes)
    kept = [place for place, label in enumerate(labels) if label != 2 or place == 2]
    model, found = learn_bag_of_words(
        [texts[place] for place in kept], labels[kept], [], classes=3, share=1.0, seed=0, class_weights=[1.0, 1.0, 5.0]
    )
    assert model.weights.shape == (len(model.terms), 3)
    assert 0.25 < found <= 0.5  # of two classes in the folds


def test_two_texts_without_a_word_in_common_are_enough_and_say_nothing_of_themselves():
    texts, labels = ["good good good a", "bad bad bad b"], np.array([0, 1], np.int32)
    model, found = learn_bag_of_words(texts, labels, [], classes=2, share=1.0, seed=0)
    assert found is None and model.network_share == NETWORK_SHARE
    assert right(model, texts, labels) == 1


def told_apart(count, distance, *, classes=2, size=30, seed=0):
    """Features in which classes lie so far apart, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % classes
    places = generator.normal(size=(classes, size)) * distance / np.sqrt(size)
    return (places[labels] + generator.normal(size=(count, size))).astype(np.float32), labels


def test_a_network_counts_by_how_much_better_than_chance_its_features_are_beside_the_bag_of_words():
    features, labels = told_apart(300, 1.5)
    regression = LogisticRegression(C=0.01, max_iter=1000)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    rows = (features - features.mean(0)) / features.std(0)
    better = (cross_val_predict(regression, rows, labels, cv=folds) == labels).mean() - 0.5
    assert 0.1 < better < 0.45
    for of_bag, times in (
        (better, 1.0),
        (better / 1.2, 1.2),
        (2 * better, 0.5),
        (better / 9, MOST_BETTER),
        (0.0, MOST_BETTER),
    ):
        found = share_of_network(features, labels, of_bag, classes=2, seed=0)
        assert found == pytest.approx(NETWORK_SHARE * times)
    assert share_of_network(features, labels, None, classes=2, seed=0) == NETWORK_SHARE
    assert share_of_network(features[:2], labels[:2], 0.3, classes=2, seed=0) == NETWORK_SHARE


def test_features_that_say_nothing_leave_the_vote_to_the_bag_of_words():
    features, labels = told_apart(400, 0.0, seed=3)
    assert share_of_network(features, labels, 0.4, classes=2, seed=0) < 0.2 * NETWORK_SHARE
    constant = np.ones((400, 3), np.float32)
    assert share_of_network(constant, labels, 0.4, classes=2, seed=0) == pytest.approx(0, abs=0.1)


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """A classifier of both directions with a bag of words, and its folder."""
    out = tmp_path_factory.mktemp("bag") / "model"
    config = ClassifyConfig().override({**tiny.settings("classify"), "classify.bag_of_words": 0.5})
    return train_classifier(
        tiny.labelled, language_model=tiny.tuned, unlabelled=[tiny.unlabelled], config=config, out=out
    ), out


def test_a_bag_of_words_comes_with_the_model_and_is_told_of(taught):
    bundle, out = taught
    bag = bundle.bag_of_words
    assert bag is not None and bag.share == 0.5
    assert 0 <= bag.network_share <= NETWORK_SHARE * MOST_BETTER
    assert bundle.facts["results"]["bag of words"]["network share"] == round(bag.network_share, 3)
    assert bundle.facts["results"]["bag of words"]["terms"] == len(bag.terms) > 20
    assert 0.5 < bundle.facts["results"]["bag of words"]["accuracy"] <= 1
    assert "bag of words: terms" in (out / "README.md").read_text(encoding="utf-8")
    again = ClassifierBundle.load(out).bag_of_words
    assert all(tensor.equal(again.tensors()[name]) for name, tensor in bag.tensors().items())


def test_a_prediction_is_the_directions_mean_times_the_bag_of_words(taught, tiny):
    bundle, _ = taught
    texts = [text for text, _ in tiny.reviews(30, seed=8)] + ["", "words never seen"]
    network = torch.from_numpy(Predictor(replace(bundle, bag_of_words=None)).probabilities(texts))
    expected = bundle.bag_of_words.beside(network, texts).numpy()
    found = Predictor(bundle).probabilities(texts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # In logarithms: a network that is sure leaves little of a probability to change.
    assert np.abs(np.log(found) - np.log(network.numpy())).max() > 0.5
    np.testing.assert_allclose(Predictor(bundle).probabilities(texts[:1]), found[:1], rtol=1e-4, atol=1e-5)


def test_without_one_nothing_is_written_of_it(tiny, tmp_path):
    config = ClassifyConfig().override(tiny.settings("classify", classify__phases=[{"rate": 0.01}]))
    bundle = train_classifier(tiny.labelled, language_model=tiny.tuned, config=config, out=tmp_path / "model")
    assert bundle.bag_of_words is None
    assert not list((tmp_path / "model").glob("bag_of_words*"))
    assert "bag" not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8").split('"facts"')[0]
