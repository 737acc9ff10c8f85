"""How a bag of words learns, in seconds: which terms there are, and two logistic regressions as one table.

One regression sees the terms themselves. The other sees a document through the few hundred directions in which all the
text varies most, labelled or not (latent semantic analysis, Deerwester et al. 1990): words that go together in the
unlabelled text share what a few labels say of one of them. Both are linear, so the mean of their logits is one table.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

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


def learn_bag_of_words(
    texts: Sequence[str],
    labels: NDArray[np.int32],
    unlabelled: Sequence[str],
    *,
    classes: int,
    share: float,
    seed: int,
    class_weights: Sequence[float] | None = None,
) -> BagOfWords:
    """From the labels of these texts, of which every class has one, and from all the text; the same for a seed."""
    tokenizer = train_tokenizer([*texts, *unlabelled], config=VOCABULARY, processes=1)
    documents, others = encoded(tokenizer, texts), encoded(tokenizer, unlabelled)
    terms = terms_of([*documents, *others], tokenizer)
    rows = terms.vectors(documents)
    regression = _Regression(classes, seed, class_weights)
    weights, bias = regression.fit(rows, labels, TERM_STRENGTHS)
    directions = _directions(rows, others, terms, seed=seed)
    if directions is not None:
        seen, seen_bias = regression.fit(rows @ directions, labels, DIRECTION_STRENGTHS)
        weights, bias = (weights + directions @ seen) / 2, (bias + seen_bias) / 2
    return BagOfWords(terms, weights.astype(np.float32), bias.astype(np.float32), share)


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


class _Regression:
    """Multinomial logistic regression."""

    def __init__(self, classes: int, seed: int, class_weights: Sequence[float] | None) -> None:
        self.classes, self.seed = classes, seed
        self.class_weights = None if class_weights is None else dict(enumerate(class_weights))

    def fit(
        self, rows: Any, labels: NDArray[np.int32], strengths: Sequence[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(features, classes) and (classes,); the strength by cross-validation where there are labels enough."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        model = LogisticRegression(max_iter=1000, class_weight=self.class_weights)
        strength = strengths[len(strengths) // 2]
        some = np.sort(np.random.default_rng([self.seed, 0xF01D]).permutation(len(labels))[:MOST_TO_CHOOSE_BY])
        rarest = int(np.bincount(labels[some], minlength=self.classes).min())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what it has come to by then serves
            if rarest > 1:
                folds = StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=self.seed)
                search = GridSearchCV(model, {"C": strengths}, cv=folds, scoring="neg_log_loss", refit=False)
                strength = search.fit(rows[some], labels[some]).best_params_["C"]
            model.set_params(C=strength).fit(rows, labels)
        weights, bias = model.coef_.T, model.intercept_
        if self.classes == 2:  # scikit-learn has one column, for the second class against the first
            weights, bias = np.concatenate([-weights, weights], 1) / 2, np.concatenate([-bias, bias]) / 2
        return weights, bias
