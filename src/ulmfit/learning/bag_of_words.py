"""How a bag of words learns, in seconds: which terms there are, and two logistic regressions as one table.

One regression sees the terms themselves. The other sees a document through the few hundred directions in which all the
text varies most, labelled or not (latent semantic analysis, Deerwester et al. 1990): words that go together in the
unlabelled text share what a few labels say of one of them. Both are linear, so the mean of their logits is one table.
It is scaled to be as sure as it is right on documents held out by folds: regularised for few labels, it says too
little.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ulmfit.bag_of_words import BagOfWords, Float32s, Int64s, Terms, encoded, lots, occurrences
from ulmfit.config import TokenizerConfig
from ulmfit.text.tokenizer import Tokenizer, train_tokenizer

MOST_TERMS = 60_000
LEAST_DOCUMENTS = 3
"""that have a term; of one in fewer little can be learnt"""
MOST_UNLABELLED = 5_000
"""texts that words, terms and directions are taken from beside the labelled ones: 12,000 gave no more than 4,000"""
VOCABULARY = TokenizerConfig(vocab_size=60_000)
"""of its own: the network's has the words of what there is time to read, and a softmax over all of them"""
DIRECTIONS = 200
TERM_STRENGTHS, DIRECTION_STRENGTHS = (1.0, 10.0, 100.0), (0.1, 1.0, 10.0, 100.0, 1000.0)
"""inverse strengths of regularisation to choose from by cross-validation"""
FOLDS, MOST_TO_CHOOSE_BY = 5, 4_000
"""folds, and the most labelled documents in them"""
MOST_SCALE = 4.0
"""factor on the logits, or divisor"""

EQUAL_LABELS = 150
"""of each class, with which a network has half of the vote that it has with many"""
SHORT_TUNING = 10**6
"""tokens that a language model may be tuned on before its network is trusted with fewer labels"""

Float64s: TypeAlias = NDArray[np.float64]


def learn_bag_of_words(
    texts: Sequence[str],
    labels: NDArray[np.int32],
    unlabelled: Sequence[str],
    *,
    classes: int,
    share: float,
    network_share: float,
    seed: int,
    class_weights: Sequence[float] | None = None,
) -> BagOfWords:
    """From the labels of these texts, of which every class has one, and from all the text; the same for a seed."""
    tokenizer = train_tokenizer([*texts, *unlabelled], config=VOCABULARY, processes=1)
    documents, others = encoded(tokenizer, texts), encoded(tokenizer, unlabelled)
    terms = terms_of([*documents, *others], tokenizer)
    rows = terms.vectors(documents)
    regression = _Regression(labels, classes=classes, seed=seed, class_weights=class_weights)
    fits = [regression.fit(rows, TERM_STRENGTHS)]
    directions = _directions(rows, others, terms, seed=seed)
    if directions is not None:
        seen = regression.fit(rows @ directions, DIRECTION_STRENGTHS)
        fits.append(replace(seen, weights=directions @ seen.weights))
    scale = regression.scale_of(fits)
    weights = scale * np.mean([fit.weights for fit in fits], 0)
    bias = scale * np.mean([fit.bias for fit in fits], 0)
    return BagOfWords(terms, weights.astype(np.float32), bias.astype(np.float32), share, network_share)


def share_of_network(labelled: int, *, classes: int, tuned_tokens: int) -> float:
    """The power of a network's probabilities beside a bag of words, by the labelled texts that it learnt from.

    With few it is less right than a bag of words and surer, and most of what it says is the same: correlations of .6 to
    .9 were found between their logits (docs/results, bag of words). A language model that was tuned on much text needs
    fewer labels.
    """
    equal = EQUAL_LABELS * classes * min(1.0, SHORT_TUNING / max(1, tuned_tokens))
    return labelled / (labelled + equal)


def tuned_tokens(facts: Mapping[str, Any]) -> int:
    """How much text of the domain a language model of these facts has learnt from; none where it is a base."""
    if facts.get("stage") != "tune" or not facts.get("history"):
        return 0
    data = facts.get("data")
    tokens = data.get("tokens") if isinstance(data, dict) else 0
    return tokens if isinstance(tokens, int) else 0


def terms_of(documents: Sequence[Int64s], tokenizer: Tokenizer) -> Terms:
    """The terms that most texts have, and how rare each is: ln((1 + n) / (1 + texts with it)) + 1."""
    found, counted = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for lot in lots(len(documents)):
        rows, keys = occurrences(documents[lot], vocab_size=len(tokenizer))
        order = np.lexsort((rows, keys))
        rows, keys = rows[order], keys[order]
        new = np.ones(len(keys), bool)
        new[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
        once, counts = np.unique(keys[new], return_counts=True)
        found.append(once)
        counted.append(counts)
    keys, place = np.unique(np.concatenate(found), return_inverse=True)
    frequency = np.bincount(place, weights=np.concatenate(counted), minlength=len(keys)).astype(np.int64)
    total = len(documents)
    enough = np.flatnonzero(frequency >= min(LEAST_DOCUMENTS, total))
    chosen = np.sort(enough[np.argsort(-frequency[enough], kind="stable")[:MOST_TERMS]])
    rarity = np.log((1 + total) / (1 + frequency[chosen])) + 1
    return Terms(tokenizer, keys[chosen], rarity.astype(np.float32))


def _directions(rows: Any, others: Sequence[Int64s], terms: Terms, *, seed: int) -> Float32s | None:
    """(terms, directions) of all the text's vectors; None where there is too little of it to have any."""
    import scipy.sparse
    from sklearn.utils.extmath import randomized_svd

    matrix = scipy.sparse.vstack([rows, *(terms.vectors(others[lot]) for lot in lots(len(others)))], format="csr")
    size = min(DIRECTIONS, matrix.shape[0] - 1, matrix.shape[1] - 1)
    if size < 1:
        return None
    _, _, rows_of = randomized_svd(matrix, size, n_iter=2, random_state=seed)
    directions: Float32s = rows_of.T
    return directions


@dataclass(frozen=True)
class _Fit:
    """A regression's table, and what those of the folds said of the documents they had not seen."""

    weights: Float64s
    """(features, classes)"""
    bias: Float64s
    """(classes,)"""
    held_out: Float64s | None
    """logits (documents, classes); None where a class has too few documents for folds"""


class _Regression:
    """Multinomial logistic regression, its strength by cross-validation where there are labels enough."""

    def __init__(
        self, labels: NDArray[np.int32], *, classes: int, seed: int, class_weights: Sequence[float] | None
    ) -> None:
        from sklearn.model_selection import StratifiedKFold

        self.labels = labels
        self.class_weights = None if class_weights is None else np.asarray(class_weights)
        self.some = np.sort(np.random.default_rng([seed, 0xF01D]).permutation(len(labels))[:MOST_TO_CHOOSE_BY])
        rarest = int(np.bincount(labels[self.some], minlength=classes).min())
        self.folds = None
        if rarest > 1:
            self.folds = StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=seed)

    def fit(self, rows: Any, strengths: Sequence[float]) -> _Fit:
        """On (documents, features)."""
        from sklearn.exceptions import ConvergenceWarning

        strength, held_out = strengths[len(strengths) // 2], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what it has come to by then serves
            if self.folds is not None:
                tried = {strength: self._on_folds(rows, strength) for strength in strengths}
                strength = min(tried, key=lambda each: self._loss(tried[each]))
                held_out = tried[strength]
            model = self._model(strength).fit(rows, self.labels)
        return _Fit(_of_each_class(model.coef_.T), _of_each_class(model.intercept_[None])[0], held_out)

    def scale_of(self, fits: Sequence[_Fit]) -> float:
        """The factor by which the mean of their logits has the lowest loss (temperature scaling, Guo et al. 2017)."""
        from scipy.optimize import minimize_scalar

        logits = [fit.held_out for fit in fits if fit.held_out is not None]
        if not logits:
            return 1.0
        mean, limit = np.mean(logits, 0), np.log(MOST_SCALE)
        found = minimize_scalar(
            lambda power: self._loss(np.exp(power) * mean), bounds=(-limit, limit), method="bounded"
        )
        return float(np.exp(found.x))

    def _model(self, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        weights = None if self.class_weights is None else dict(enumerate(self.class_weights.tolist()))
        return LogisticRegression(C=strength, max_iter=1000, class_weight=weights)

    def _on_folds(self, rows: Any, strength: float) -> Float64s:
        """Logits of documents by models that had not seen them."""
        from sklearn.model_selection import cross_val_predict

        seen = rows[self.some], self.labels[self.some]
        return _of_each_class(
            cross_val_predict(self._model(strength), *seen, cv=self.folds, method="decision_function")
        )

    def _loss(self, logits: Float64s) -> float:
        from scipy.special import log_softmax

        labels = self.labels[self.some]
        right = log_softmax(logits, 1)[np.arange(len(labels)), labels]
        return -float(np.average(right, weights=None if self.class_weights is None else self.class_weights[labels]))


def _of_each_class(values: NDArray[Any]) -> Float64s:
    """A column a class; of two classes scikit-learn has one, for the second against the first."""
    columns = values.reshape(-1, 1) if values.ndim == 1 else values
    return np.concatenate([-columns, columns], 1) / 2 if columns.shape[1] == 1 else columns
