"""What a result is worth: perplexity of a language model, and the usual measures of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def perplexity(loss_sum: float, tokens: int) -> float:
    """The exponential of the mean cross entropy in nats; infinite where that overflows."""
    mean = loss_sum / tokens
    return math.inf if mean >= 700 else math.exp(mean)


def classification_measures(
    labels: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]], *, names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, error, macro F1, log loss, precision and recall of each class, confusion, count.

    `labels` (documents,) index `names`; `probabilities` (documents, classes) sum to 1. The confusion matrix has true
    classes in rows. Macro F1 is the mean over the classes that occur as a true or a predicted label.
    """
    from sklearn import metrics  # as long to import as a third of a short command

    every = list(range(len(names)))
    predicted = probabilities.argmax(1)
    present = np.union1d(labels, predicted)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    accuracy = float(metrics.accuracy_score(labels, predicted))
    rows = probabilities.astype(np.float64)
    return {
        "count": len(labels),
        "accuracy": accuracy,
        "error": 1 - accuracy,
        "macro_f1": float(f1[present].mean()),
        "log_loss": float(metrics.log_loss(labels, rows / rows.sum(1, keepdims=True), labels=every)),
        "classes": {
            name: {
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "count": int(support[index]),
            }
            for index, name in enumerate(names)
        },
        "confusion": metrics.confusion_matrix(labels, predicted, labels=every).tolist(),
    }
