"""Measures against scikit-learn's functions and against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from ulmfit.training.metrics import classification_measures, perplexity


def test_perplexity_is_the_exponential_of_the_mean_loss():
    assert perplexity(10 * math.log(50), 10) == pytest.approx(50)
    assert perplexity(0.0, 3) == 1.0


def test_perplexity_is_infinite_where_it_overflows_and_undefined_where_the_loss_is():
    assert perplexity(1e6, 10) == math.inf
    assert perplexity(math.inf, 10) == math.inf
    assert math.isnan(perplexity(math.nan, 10))


def test_a_case_worked_out_by_hand():
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.75, 0.25]])
    measures = classification_measures(labels, probabilities, names=["no", "yes"])
    assert measures["count"] == 5
    assert measures["confusion"] == [[1, 1], [1, 2]]  # true classes in rows
    assert measures["accuracy"] == pytest.approx(3 / 5)
    assert measures["error"] == pytest.approx(2 / 5)
    assert measures["classes"]["no"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "count": 2})
    assert measures["classes"]["yes"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "count": 3})
    assert measures["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert measures["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7, 0.25]).mean())


def random_case(classes, seed, dtype):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(200, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return generator.integers(0, classes, 200), probabilities.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3, 14])
def test_every_measure_equals_scikit_learns(classes, dtype):
    labels, probabilities = random_case(classes, classes, dtype)
    predicted, names = probabilities.argmax(1), [f"class {index}" for index in range(classes)]
    measures = classification_measures(labels, probabilities, names=names)
    assert measures["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert measures["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    assert measures["log_loss"] == pytest.approx(metrics.log_loss(labels, exact))
    assert measures["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    for key, function in {"precision": metrics.precision_score, "recall": metrics.recall_score}.items():
        ours = [measures["classes"][name][key] for name in names]
        assert ours == pytest.approx(function(labels, predicted, average=None))


def test_a_class_that_never_occurs_has_zeros_and_does_not_pull_macro_f1_down():
    labels = np.array([0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    measures = classification_measures(labels, probabilities, names=["a", "b", "c"])
    assert measures["macro_f1"] == 1.0
    assert measures["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}
    assert measures["confusion"] == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]


def test_a_class_that_is_only_predicted_counts_as_a_miss_in_macro_f1():
    labels = np.array([0, 0])
    measures = classification_measures(labels, np.array([[0.8, 0.2], [0.3, 0.7]]), names=["a", "b"])
    assert measures["macro_f1"] == pytest.approx(metrics.f1_score(labels, [0, 1], average="macro", zero_division=0.0))


def test_one_text_of_one_class_and_certain_probabilities_are_measured_without_a_warning():
    measures = classification_measures(np.array([1]), np.array([[0.0, 1.0]]), names=["a", "b"])
    assert measures["accuracy"] == 1.0 and measures["log_loss"] == pytest.approx(0.0, abs=1e-12)
    wrong = classification_measures(np.array([0]), np.array([[0.0, 1.0]]), names=["a", "b"])
    assert wrong["error"] == 1.0 and math.isfinite(wrong["log_loss"])


def test_measures_are_plain_json():
    labels, probabilities = random_case(3, 0, np.float32)
    measures = classification_measures(labels, probabilities, names=["a", "b", "c"])
    assert json.loads(json.dumps(measures)) == measures
