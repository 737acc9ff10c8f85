"""From a saved classifier to labels and probabilities, in input order, for texts of any number and length."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import choose_device, choose_dtype, choose_prediction_dtype
from ulmfit.config import Precision, PredictionPrecision
from ulmfit.errors import DataError
from ulmfit.learning.language_model import measure_language_model
from ulmfit.learning.reading import classify_documents
from ulmfit.pretrained import find_bundle
from ulmfit.text.corpus import Corpus, build_corpus
from ulmfit.text.sources import read_records, read_tables
from ulmfit.training.metrics import classification_measures

CHUNK = 4096
"""texts sorted by length and held together; the larger, the less padding"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One text's result."""

    label: str
    confidence: float
    """probability of that label"""
    probabilities: dict[str, float]


class Predictor:
    """A classifier ready to predict; keeps no state between calls, so threads may share it."""

    def __init__(
        self, bundle: ClassifierBundle, *, device: str = "auto", precision: PredictionPrecision = "auto"
    ) -> None:
        self.labels = tuple(bundle.labels)
        self._tokenizer = bundle.tokenizer
        self._bag_of_words = bundle.bag_of_words
        self._device = choose_device(device)
        self._dtype = choose_prediction_dtype(precision, self._device)
        self._models = {direction: model.to(self._device).eval() for direction, model in bundle.models.items()}
        with torch.inference_mode():
            self._weights = {name: model.encoder.prepare(self._dtype) for name, model in self._models.items()}

    @classmethod
    def load(cls, model: str | Path, *, device: str = "auto", precision: PredictionPrecision = "auto") -> Predictor:
        """From a name, a folder or a hub id."""
        return cls(ClassifierBundle.load(find_bundle(model)), device=device, precision=precision)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, classes), rows in the order of `texts`, columns in the order of `labels`.

        With both directions, the mean of their probabilities (ULMFiT, section 3.3), times those of a bag of words where
        the model has one. Any string has a result: an empty one is the begin token alone.
        """
        if not texts:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        corpus = Corpus.from_documents(
            [self._tokenizer.encode(text) for text in texts], vocab_size=len(self._tokenizer)
        )
        total = torch.zeros(len(texts), len(self.labels))
        for direction, model in self._models.items():
            logits = classify_documents(
                model,
                corpus,
                direction=direction,
                tokenizer=self._tokenizer,
                dtype=self._dtype,
                weights=self._weights[direction],
            )
            total += logits.softmax(1)
        mean = total / len(self._models)
        if self._bag_of_words is not None:
            mean = self._bag_of_words.beside(mean, texts)
        rows: NDArray[np.float32] = mean.numpy()
        return rows

    def predict(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Predict a stream of texts, in order, some thousands held at a time."""
        stream = iter(texts)
        while chunk := list(itertools.islice(stream, CHUNK)):
            for row in self.probabilities(chunk):
                best = int(row.argmax())
                by_label = dict(zip(self.labels, map(float, row), strict=True))
                yield Prediction(self.labels[best], float(row[best]), by_label)

    def predict_tables(self, path: Path | str, *, text_column: str = "text") -> Iterator[Any]:
        """Record batches of a file with `label`, `confidence` and a `probability_CLASS` column for each class added.

        Raises DataError where the file already has a column of such a name.
        """
        import pyarrow as pa

        for batch in read_tables(path, text_column=text_column):
            # A label the file came with is kept beside the predicted one.
            kept = [column.with_name("label_given") if column.name == "label" else column for column in batch.schema]
            numbers = ["confidence", *(f"probability_{name}" for name in self.labels)]
            added = [pa.field("label", pa.string()), *(pa.field(name, pa.float32()) for name in numbers)]
            schema = pa.schema([*kept, *added])
            taken = [name for name in schema.names if schema.names.count(name) > 1]
            if taken:
                raise DataError(f"{path}: already has a column {taken[0]!r}, where predictions go; rename it first")
            rows = self.probabilities(batch.column(text_column).to_pylist())
            labels = pa.array([self.labels[index] for index in rows.argmax(1)], pa.string())
            measures = [pa.array(column) for column in (rows.max(1), *rows.T)]
            yield pa.RecordBatch.from_arrays([*batch.columns, labels, *measures], schema=schema)


def evaluate(
    predictor: Predictor, labelled: Path, *, text_column: str = "text", label_column: str = "label"
) -> dict[str, Any]:
    """Accuracy, error, macro F1, log loss, per-class measures, confusion and count on a labelled file.

    Raises DataError for a label the classifier was not trained on.
    """
    index = {name: position for position, name in enumerate(predictor.labels)}
    labels: list[int] = []
    rows: list[NDArray[np.float32]] = []
    records = read_records([labelled], text_column=text_column, label_column=label_column)
    while chunk := list(itertools.islice(records, CHUNK)):
        for record in chunk:
            if record.label not in index:
                raise DataError(
                    f"{record.source}, row {record.row + 1}: the label {record.label!r} was not seen in training; "
                    f"the model knows {', '.join(predictor.labels)}"
                )
            labels.append(index[record.label])
        rows.append(predictor.probabilities([record.text for record in chunk]))
    return classification_measures(np.array(labels), np.concatenate(rows), names=predictor.labels)


def evaluate_language_model(
    bundle: LanguageModelBundle,
    texts: Sequence[Path],
    *,
    text_column: str = "text",
    device: str = "auto",
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Perplexity a token and bits a character of each direction on unlabelled text, with the counts of both.

    Perplexities of different vocabularies do not compare; bits a character do: all of the text's bits, its begin
    tokens' included, over its characters. Raises DataError where there are none.
    """
    on = choose_device(device)
    dtype = choose_dtype(precision, on)
    characters = sum(len(record.text) for record in read_records(texts, text_column=text_column))
    if characters == 0:
        raise DataError(f"{texts[0]}: every text is empty, there is nothing to measure; is --text-column right?")
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ulmfit-") as folder:
        corpus = build_corpus(texts, bundle.tokenizer, out=Path(folder) / "corpus", text_column=text_column)
        for direction, model in bundle.models.items():
            with torch.inference_mode():
                measures = measure_language_model(
                    model.to(on).eval(), corpus, direction=direction, tokenizer=bundle.tokenizer, dtype=dtype
                )
            bits = measures["valid_loss"] * corpus.tokens / math.log(2)
            measured[direction] = {"perplexity": measures["perplexity"], "bits_per_character": bits / characters}
        return {
            "documents": len(corpus),
            "tokens": corpus.tokens,
            "characters": characters,
            "unknown": float((np.asarray(corpus.ids) == bundle.tokenizer.unknown_id).mean()),
            "directions": measured,
        }
