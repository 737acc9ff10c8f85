"""scikit-learn's side: tf-idf of words and word pairs, and logistic regression."""

from __future__ import annotations

import platform
from typing import Any

import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from benchmarks.gate import Gate
from benchmarks.texts import read_texts


def predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: from texts to probabilities, with the settings of this project's baseline."""
    labelled = read_texts(settings["folder"], "labelled")
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=100_000), LogisticRegression(max_iter=1000)
    ).fit(labelled["texts"], labelled["labels"])
    texts = read_texts(settings["folder"], settings["texts"])["texts"]
    gate.facts["units"] = len(texts)
    gate.forever(lambda: pipeline.predict_proba(texts))


def versions() -> dict[str, str]:
    """What ran."""
    return {"python": platform.python_version(), "scikit-learn": sklearn.__version__}


WORKS = {"predict": predict}
