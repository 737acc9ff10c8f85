"""The usual baseline that a result must beat: tf-idf of words and word pairs, and logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def train_baseline(texts: Sequence[str], labels: Sequence[str]) -> Any:
    """A fitted scikit-learn pipeline; the strength of regularisation is chosen by cross-validation on these labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=100_000), LogisticRegression(max_iter=1000)
    )
    rarest = int(np.unique(np.asarray(labels), return_counts=True)[1].min())
    if rarest < 2:
        return pipeline.fit(texts, labels)
    search = GridSearchCV(
        pipeline,
        {"logisticregression__C": [1.0, 10.0, 100.0]},
        cv=StratifiedKFold(min(5, rarest)),
        scoring="neg_log_loss",
    )
    return search.fit(texts, labels).best_estimator_
