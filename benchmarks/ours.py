"""The side of this project: its own code paths, from corpora and files on disk to steps and predictions."""

from __future__ import annotations

import csv
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gate import Gate
from benchmarks.texts import FIRST_WORD, draw_documents, draw_ids, mixed_documents, read_texts, units_of, words
from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import choose_prediction_dtype
from ulmfit.config import (
    ClassifierConfig,
    ClassifyConfig,
    ClassifySettings,
    EncoderConfig,
    HeadConfig,
    LanguageModelConfig,
    LanguageModelTraining,
    OptimizerConfig,
    Phase,
    RunConfig,
    TuneConfig,
    TuneSettings,
)
from ulmfit.heap import share_heap
from ulmfit.learning.language_model import LanguageModelText, learn_language_models
from ulmfit.learning.reading import classify_documents
from ulmfit.learning.setting import Setting, open_setting
from ulmfit.learning.voters import learn_classifiers
from ulmfit.models.classifier import Classifier
from ulmfit.models.language_model import LanguageModel
from ulmfit.predict import Predictor
from ulmfit.text.corpus import Corpus
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.text.words import SPECIALS
from ulmfit.training.events import silent
from ulmfit.training.stage import Stage

share_heap()  # as the command does when it begins

OPTIMIZER = OptimizerConfig(gradient_clip=0.25)


@dataclass(frozen=True, kw_only=True)
class GatedSetting(Setting):
    """A stage's setting whose training passes the gate before each batch; everything else is as in any run."""

    gate: Gate
    by_epoch: bool
    """whether a unit of work is a whole epoch, with validation and checkpoint, and not a batch"""

    @classmethod
    @contextmanager
    def opened(
        cls, gate: Gate, settings: dict[str, Any], config: TuneConfig | ClassifyConfig
    ) -> Iterator[GatedSetting]:
        """Opened as for any run, in a folder that is gone afterwards, on the device asked for."""
        run = RunConfig(device=settings["device"], checkpoint_minutes=1e6)
        with (
            tempfile.TemporaryDirectory() as folder,
            open_setting(
                Path(folder) / "run",
                command="benchmark",
                config=config.model_copy(update={"run": run}),
                inputs={},
                resume=False,
                report=silent,
                profile=False,
            ) as known,
        ):
            gate.facts["dtype"] = _name(known.learning_dtype)
            shared = {field.name: getattr(known, field.name) for field in fields(Setting)}
            yield cls(**shared, gate=gate, by_epoch="epochs" in settings)

    def learn(self, stage: Stage, checkpoints: Path) -> None:
        """Run the stage."""
        self.gate.facts["parameters"] = sum(tensor.numel() for tensor in stage.model.parameters())

        def batches(epoch: int, start: int) -> Iterator[Any]:
            if self.by_epoch:
                self.gate.step()
                return stage.batches(epoch, start)
            return self.gate.each(stage.batches(epoch, start))

        Setting.learn(self, replace(stage, batches=batches), checkpoints)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tokenizer(vocab_size: int) -> Tokenizer:
    """A vocabulary of made-up words."""
    filler = tuple("xyz")[: FIRST_WORD - len(SPECIALS)]
    return Tokenizer((*SPECIALS, *filler, *words(vocab_size)))


def _encoder(settings: dict[str, Any]) -> EncoderConfig:
    return EncoderConfig(embedding_size=settings["embedding"], hidden_size=settings["hidden"])


def _language_model(settings: dict[str, Any]) -> LanguageModelConfig:
    return LanguageModelConfig(vocab_size=settings["vocab"], encoder=_encoder(settings))


def language_model_step(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: one step on a window."""
    batch, window = settings["batch"], settings["window"]
    training = LanguageModelTraining(
        batch_size=batch,
        window=window,
        window_jitter=0.0,
        optimizer=OPTIMIZER,
        phases=(Phase(rate=1e-3, epochs=settings.get("epochs", 1), discriminative=1.0, schedule="constant"),),
    )
    if "corpus" in settings:
        corpus = Corpus.open(Path(settings["corpus"]))
        vocabulary = Tokenizer.from_json(Path(settings["tokenizer"]).read_text(encoding="utf-8"))
    else:
        ids = draw_ids(batch * (window * settings["steps"] + 1), vocab_size=settings["vocab"], seed=1)
        corpus = Corpus.from_documents(np.array_split(ids, max(1, len(ids) // 300)), vocab_size=settings["vocab"])
        vocabulary = tokenizer(settings["vocab"])
    documents = np.arange(len(corpus), dtype=np.int64)
    held_out = documents[: settings.get("held_out", 0)]
    source = LanguageModelText(vocabulary, training, corpus, documents, corpus, held_out)
    gate.facts["units"] = corpus.tokens if "epochs" in settings else batch * window
    config = TuneConfig(tune=TuneSettings(training=training))
    model = LanguageModel(_language_model(settings))
    with GatedSetting.opened(gate, settings, config) as setting:
        learn_language_models(setting, source, lambda _: model, config=config, stage="benchmark", base=None)


def classifier_step(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: one step on a batch of documents, with the last `groups` layer groups learning, or all of them."""
    import pyarrow as pa
    import pyarrow.parquet

    count = settings["batch"] * settings["steps"]
    vocabulary = words(settings["vocab"])
    lengths = np.full(count, settings["tokens"] - 1)  # and the begin token
    documents = draw_documents(lengths, vocab_size=settings["vocab"], seed=2)
    texts = [" ".join([vocabulary[id - FIRST_WORD] for id in document]) for document in documents]
    groups = settings["groups"]
    phase = Phase(groups=groups and tuple(range(-groups, 0)), rate=1e-3, discriminative=1.0, schedule="constant")
    classify = ClassifySettings(
        dropout_multiplier=0.5,
        batch_size=settings["batch"],
        window=settings["window"],
        horizon=settings["window"] * 20,
        valid_share=0.0,
        optimizer=OPTIMIZER,
        phases=(phase,),
    )
    gate.facts["units"] = settings["batch"] * settings["tokens"]
    sizes = _language_model(settings)
    base = LanguageModelBundle(sizes, tokenizer(settings["vocab"]), {"forward": LanguageModel(sizes)})
    config = ClassifyConfig(classify=classify)
    with GatedSetting.opened(gate, settings, config) as setting, tempfile.TemporaryDirectory() as folder:
        labelled = Path(folder) / "labelled.parquet"
        labels = ["bad", "good"] * (count // 2) + ["bad"] * (count % 2)
        pyarrow.parquet.write_table(pa.table({"text": texts, "label": labels}), labelled)
        learn_classifiers(setting, labelled, base, config=config, text_column="text", label_column="label")


def _classifier(settings: dict[str, Any], tokenizer: Tokenizer) -> ClassifierBundle:
    config = ClassifierConfig(
        vocab_size=len(tokenizer), encoder=_encoder(settings), head=HeadConfig(classes=2), window=settings["window"]
    )
    return ClassifierBundle(config, tokenizer, {"forward": Classifier(config)}, labels=("bad", "good"))


def predict_ids(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: classify documents that are tokenised already."""
    device = torch.device(settings["device"])
    dtype = choose_prediction_dtype("auto", device)
    own = tokenizer(settings["vocab"])
    documents = mixed_documents(settings)
    corpus = Corpus.from_documents(documents, vocab_size=settings["vocab"])
    model = _classifier(settings, own).models["forward"].to(device).eval()
    with torch.inference_mode():  # as a Predictor does when it is made
        weights = model.encoder.prepare(dtype)
    gate.facts.update(units=units_of(documents, settings), dtype=_name(dtype))
    gate.forever(
        lambda: classify_documents(model, corpus, direction="forward", tokenizer=own, dtype=dtype, weights=weights)
    )


def predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: from texts to predictions with a model that is loaded."""
    predictor = Predictor.load(settings["folder"] + "/model", device=settings["device"])
    known = read_texts(settings["folder"], settings["texts"])
    gate.facts["units"] = known[settings["unit"]] if settings["unit"] == "tokens" else len(known["texts"])
    gate.forever(lambda: list(predictor.predict(known["texts"])))


def tokenise(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: the ids of all texts, by a tokenizer that has seen none of them."""
    known = read_texts(settings["folder"], settings["texts"])
    saved = Path(settings["folder"], "tokenizer.json").read_text(encoding="utf-8")
    gate.facts["units"] = sum(map(len, known["texts"]))

    def encode() -> None:
        own = Tokenizer.from_json(saved)
        for text in known["texts"]:
            own.encode(text)

    gate.forever(encode)


def start_help(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: `ulmfit --help`."""
    gate.forever_start([sys.executable, "-m", "ulmfit", "--help"])


def start_predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: `ulmfit predict` of one text, from nothing."""
    (text,) = read_texts(settings["folder"], settings["texts"])["texts"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], [text]])
        gate.forever_start([sys.executable, "-m", "ulmfit", "predict", settings["folder"] + "/model", str(path)])


def versions() -> dict[str, str]:
    """What ran, and on which GPU."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return found | ({"gpu": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {})


WORKS = {
    "language_model_step": language_model_step,
    "classifier_step": classifier_step,
    "predict_ids": predict_ids,
    "predict": predict,
    "tokenise": tokenise,
    "start_help": start_help,
    "start_predict": start_predict,
}
