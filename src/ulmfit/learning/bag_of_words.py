"""How a bag of words learns, in seconds: which terms there are, and two logistic regressions as one table.

One regression sees the terms themselves. The other sees a document through the few hundred directions in which all the
text varies most, labelled or not (latent semantic analysis, Deerwester et al. 1990): words that go together in the
unlabelled text share what a few labels say of one of them. Both are linear, so the mean of their logits is one table.
It is scaled to be as sure as it is right on documents held out by folds: regularised for few labels, it says too
little.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

NETWORK_SHARE, MOST_BETTER = 0.6, 2.0
"""the network's power where its language model is worth as much as the words, and by what factor it grows at most"""
LEAST_BETTER = 0.02
"""of accuracy above chance that a bag of words is taken to have"""
FEATURE_STRENGTH, MOST_FEATURES = 0.01, 1_000
"""inverse strength of regularisation on a language model's features, and the labelled documents it is asked about"""

Float64s: TypeAlias = NDArray[np.float64]


def learn_bag_of_words(
    texts: Sequence[str],
    labels: NDArray[np.int32],
    unlabelled: Sequence[str],
    *,
    classes: int,
    share: float,
    seed: int,
    class_weights: Sequence[float] | None = None,
) -> tuple[BagOfWords, float | None]:
    """From the labels of these texts, of which every class has one, and from all the text; the same for a seed.

    Beside it how much better than chance it is on documents held out by folds, where there are enough for any. What the
    network counts beside it is a guess until `share_of_network` is asked.
    """
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
    held_out = regression.mean_held_out(fits)
    scale = 1.0 if held_out is None else regression.scale_of(held_out)
    weights = scale * np.mean([fit.weights for fit in fits], 0)
    bias = scale * np.mean([fit.bias for fit in fits], 0)
    bag = BagOfWords(terms, weights.astype(np.float32), bias.astype(np.float32), share, NETWORK_SHARE)
    return bag, None if held_out is None else regression.better_than_chance(held_out)


def share_of_network(
    features: Float32s, labels: NDArray[np.int32], of_bag: float | None, *, classes: int, seed: int
) -> float:
    """The power of a network's probabilities beside a bag of words, by how far its language model tells classes apart.

    `features` (documents, size) are what the language model makes of labelled documents before it learns from them. A
    logistic regression on them guesses documents held out by folds; how much better than chance it is, beside what the
    bag of words is by the same measure, is how much the network is trusted (docs/results, bag of words): on short texts
    half as much again as on reviews. The network itself cannot be asked, as it has seen all labels.
    """
    regression = _Regression(labels, classes=classes, seed=seed, class_weights=None)
    if regression.folds is None or of_bag is None:
        return NETWORK_SHARE
    spread = features.std(0)
    rows = (features - features.mean(0)) / np.where(spread > 0, spread, 1)
    own = regression.better_than_chance(regression.held_out(rows, FEATURE_STRENGTH))
    return NETWORK_SHARE * min(MOST_BETTER, max(0.0, own / max(LEAST_BETTER, of_bag)))


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
    enough = np.flatnonzero(frequency >= min(LEAST_DOCUMENTS, total, frequency.max(initial=1)))
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
        some = np.sort(np.random.default_rng([seed, 0xF01D]).permutation(len(labels))[:MOST_TO_CHOOSE_BY])
        counts = np.bincount(labels[some], minlength=classes)
        several = counts >= FOLDS if (counts >= FOLDS).sum() > 1 else counts > 1
        self.folds = None
        self.some = some[several[labels[some]]]
        """(documents,) of the classes that have several, in the folds"""
        self.classes = np.flatnonzero(several)
        if len(self.classes) > 1:
            least = int(counts[self.classes].min())
            self.folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)

    def fit(self, rows: Any, strengths: Sequence[float]) -> _Fit:
        """On (documents, features)."""
        strength, held_out = strengths[len(strengths) // 2], None
        if self.folds is not None:
            tried = {strength: self.held_out(rows, strength) for strength in strengths}
            strength = min(tried, key=lambda each: self._loss(tried[each]))
            held_out = tried[strength]
        with _converged_or_not():
            model = self._model(strength).fit(rows, self.labels)
        return _Fit(_of_each_class(model.coef_.T), _of_each_class(model.intercept_[None])[0], held_out)

    def held_out(self, rows: Any, strength: float) -> Float64s:
        """Logits of the documents and classes in the folds, which there must be, by models that had not seen them."""
        from sklearn.model_selection import cross_val_predict

        seen = rows[self.some], self.labels[self.some]
        with _converged_or_not():
            logits = cross_val_predict(self._model(strength), *seen, cv=self.folds, method="decision_function")
        return _of_each_class(logits)

    def mean_held_out(self, fits: Sequence[_Fit]) -> Float64s | None:
        """What the fits say together of documents that they have not seen, where there are folds."""
        logits = [fit.held_out for fit in fits if fit.held_out is not None]
        return np.mean(logits, 0) if logits else None

    def better_than_chance(self, held_out: Float64s) -> float:
        """The share of the documents in the folds that these logits are right on, less one by the number of classes."""
        right = self.classes[held_out.argmax(1)] == self.labels[self.some]
        return float(right.mean() - 1 / len(self.classes))

    def scale_of(self, held_out: Float64s) -> float:
        """The factor by which these logits have the lowest loss (temperature scaling, Guo et al. 2017)."""
        from scipy.optimize import minimize_scalar

        limit = np.log(MOST_SCALE)
        found = minimize_scalar(
            lambda power: self._loss(np.exp(power) * held_out), bounds=(-limit, limit), method="bounded"
        )
        return float(np.exp(found.x))

    def _model(self, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        weights = None if self.class_weights is None else dict(enumerate(self.class_weights.tolist()))
        return LogisticRegression(C=strength, max_iter=1000, class_weight=weights)

    def _loss(self, logits: Float64s) -> float:
        from scipy.special import log_softmax

        labels = self.labels[self.some]
        right = log_softmax(logits, 1)[np.arange(len(labels)), np.searchsorted(self.classes, labels)]
        return -float(np.average(right, weights=None if self.class_weights is None else self.class_weights[labels]))


@contextmanager
def _converged_or_not() -> Iterator[None]:
    """What a regression has come to when its iterations are over serves; it is not warned of."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _of_each_class(values: NDArray[Any]) -> Float64s:
    """A column a class; of two classes scikit-learn has one, for the second against the first."""
    columns = values.reshape(-1, 1) if values.ndim == 1 else values
    return np.concatenate([-columns, columns], 1) / 2 if columns.shape[1] == 1 else columns
