"""What runs are made of and share: tuned language models, and classifiers as what was measured of them.

A product is known by all that it depends on. It is made once, whichever experiment, row or process asks first; a kill
loses no more than a checkpoint's time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulmfit.baseline import train_baseline
from ulmfit.bundle import CONFIG, ClassifierBundle, read_bundle_config
from ulmfit.compute import choose_device
from ulmfit.config import ClassifyConfig, TuneConfig
from ulmfit.errors import CheckpointError
from ulmfit.experiments.tasks import Measure, Prepared
from ulmfit.learning.labelled_text import with_label_names
from ulmfit.learning.reading import classify_documents
from ulmfit.learning.setting import Setting
from ulmfit.pipeline import train_classifier, tune_language_model
from ulmfit.run_folder import RunFolder
from ulmfit.text.parts import locked, output_errors, renamed_when_whole
from ulmfit.text.sources import read_records
from ulmfit.training.distributed import ALONE
from ulmfit.training.events import Report, silent
from ulmfit.training.metrics import classification_measures

EPOCH_KEYS = ("epoch", "train_loss", "valid_loss", "error", "perplexity", "tokens_per_second", "seconds")


class Busy(Exception):
    """Another process is making this product."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is left of a product when it is done."""

    key: str
    epochs: list[dict[str, Any]]
    seconds: float
    """of all its epochs"""
    probabilities: NDArray[np.float32] | None = None
    """of the test documents, (documents, classes)"""
    measures: Mapping[str, float] | None = None


def key_of(**origin: Any) -> str:
    """A name for what depends on just these values."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The folder of all products of one results file, and how its runs compute."""

    folder: Path
    wait: bool = True
    """for another process to make a product; else it raises Busy"""
    report: Report = silent

    @property
    def corpora(self) -> Path:
        """Where tokenised text is kept."""
        return self.folder / "corpora"

    def made(self) -> set[str]:
        """The keys of all products there are."""
        models = {path.parent.name for path in (self.folder / "language_models").glob(f"*/{CONFIG}")}
        return models | {path.stem for path in (self.folder / "measured").glob("*.json")}

    def language_model_folder(self, key: str) -> Path:
        """Where a tuned language model lies."""
        return self.folder / "language_models" / key

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Be the only process that makes this product."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / "locks" / key, wait=self.wait))
            except BlockingIOError:
                raise Busy(key) from None
            yield

    # --- language models --------------------------------------------------------------------------------------------

    def language_model(self, key: str, texts: list[Path], *, base: str, config: TuneConfig) -> Measured:
        """Tune, or find tuned; the model lies in `language_model_folder(key)`."""
        out = self.language_model_folder(key)
        with self.alone(key):
            if not (out / CONFIG).is_file():

                def tune(*, resume: bool) -> None:
                    tune_language_model(
                        texts,
                        base=base,
                        config=config,
                        out=out,
                        resume=resume,
                        report=self.report,
                        corpora=self.corpora,
                    )

                _from_checkpoint_or_anew(out, tune)
        history = read_bundle_config(out)["facts"]["history"]
        return Measured(key, _epochs(history), _seconds(history))

    def forget_language_model(self, key: str) -> None:
        """Remove one that no other run will ask for."""
        shutil.rmtree(self.language_model_folder(key), ignore_errors=True)

    # --- classifiers ------------------------------------------------------------------------------------------------

    def classifier(
        self, key: str, language_model: str, data: Prepared, labelled: Path, measure: Measure, *, config: ClassifyConfig
    ) -> Measured:
        """Train and measure, or find what was measured; the classifier itself is not kept."""
        out = self.folder / "work" / key
        with self.alone(key):
            known = self._measured(key)
            if known is not None:
                return known

            def train(*, resume: bool) -> None:
                train_classifier(
                    labelled,
                    language_model=self.language_model_folder(language_model),
                    valid=data.split("valid") if measure == "valid" else None,
                    unlabelled=data.texts if config.classify.self_training or config.classify.bag_of_words else (),
                    config=config,
                    out=out,
                    resume=resume,
                    report=self.report,
                    corpora=self.corpora,
                )

            _from_checkpoint_or_anew(out, train)
            bundle = ClassifierBundle.load(out)
            history = bundle.facts["history"]
            probabilities = measures = None
            if measure == "test":
                probabilities, measures = self._test(bundle, data.split("test"), config)
            measured = Measured(key, _epochs(history), _seconds(history), probabilities, measures)
            self._keep(measured)
            shutil.rmtree(out, ignore_errors=True)
            return measured

    def baseline(self, key: str, data: Prepared, labelled: Path, measure: Measure) -> Measured:
        """Tf-idf and logistic regression on the same labels, measured on the same documents."""
        with self.alone(key):
            known = self._measured(key)
            if known is not None:
                return known
            began = time.monotonic()
            learn = list(read_records([labelled], label_column="label"))
            model = train_baseline([record.text for record in learn], [str(record.label) for record in learn])
            probe = list(read_records([data.split(measure)], label_column="label"))
            names = [str(name) for name in model.classes_]
            given = model.predict_proba([record.text for record in probe])
            rows: NDArray[np.float32] = np.asarray(given, dtype=np.float32)
            labels = np.array([names.index(str(record.label)) for record in probe])
            measures = _measures(labels, rows, names)
            measured = Measured(key, [], time.monotonic() - began, rows, measures)
            self._keep(measured)
            return measured

    def _test(
        self, bundle: ClassifierBundle, test: Path, config: ClassifyConfig
    ) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Probabilities of the test documents in the precision of training, and their measures."""
        device = choose_device(config.run.device)
        setting = Setting(
            run=config.run,
            folder=RunFolder(self.folder),
            processes=ALONE,
            device=device,
            resume=False,
            report=self.report,
            history=[],
            profile=None,
            corpora=self.corpora,
        )
        corpus = setting.corpus([test], bundle.tokenizer, name="test", text_column="text", label_column="label")
        corpus = with_label_names(corpus, bundle.labels, source=test)
        ((direction, model),) = bundle.models.items()
        logits = classify_documents(
            model.to(device).eval(), corpus, direction=direction, tokenizer=bundle.tokenizer, dtype=setting.dtype
        )
        probabilities = logits.softmax(1)
        if bundle.bag_of_words is not None:
            texts = [record.text for record in read_records([test])]
            probabilities = bundle.bag_of_words.beside(probabilities, texts)
        rows: NDArray[np.float32] = probabilities.numpy()
        assert corpus.labels is not None
        return rows, _measures(corpus.labels, rows, list(bundle.labels))

    def _measured(self, key: str) -> Measured | None:
        path = self.folder / "measured" / f"{key}.json"
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = path.with_suffix(".npy")
        probabilities = np.load(rows, allow_pickle=False) if rows.is_file() else None
        return Measured(key, values["epochs"], values["seconds"], probabilities, values["measures"])

    def _keep(self, measured: Measured) -> None:
        path = self.folder / "measured" / f"{measured.key}.json"
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if measured.probabilities is not None:
            with renamed_when_whole(path.with_suffix(".npy")) as file:
                np.save(file, measured.probabilities, allow_pickle=False)
        values = {"epochs": measured.epochs, "seconds": measured.seconds, "measures": measured.measures}
        with renamed_when_whole(path) as file:
            file.write(json.dumps(values).encode())


def mean_of(first: Measured, second: Measured, data: Prepared) -> Measured:
    """Both directions as one classifier: the mean of their probabilities (ULMFiT, section 3.3)."""
    assert first.probabilities is not None and second.probabilities is not None
    rows: NDArray[np.float32] = ((first.probabilities + second.probabilities) / 2).astype(np.float32)
    records = read_records([data.split("test")], label_column="label")
    labels = np.array([data.classes.index(str(record.label)) for record in records])
    return Measured(
        f"{first.key}+{second.key}",
        first.epochs + second.epochs,
        first.seconds + second.seconds,
        rows,
        _measures(labels, rows, data.classes),
    )


def _measures(labels: NDArray[Any], rows: NDArray[np.float32], names: list[str]) -> dict[str, float]:
    measures = classification_measures(labels, rows, names=names)
    return {name: measures[name] for name in ("error", "macro_f1", "log_loss")}


def _epochs(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in ("stage", *EPOCH_KEYS) if key in record} for record in history]


def _seconds(history: list[dict[str, Any]]) -> float:
    """Of all stages; an epoch's are counted from the beginning of its stage."""
    return float(sum({record["stage"]: record["seconds"] for record in history}.values()))


def _from_checkpoint_or_anew(out: Path, make: Any) -> None:
    """Go on with what a killed process left; where that is damaged or was made otherwise, start again."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(resume=out.exists())
    except CheckpointError:
        shutil.rmtree(out)
        make(resume=False)
