"""fastai's side: the same model, sizes, drop rates and batches through its own Learner."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.losses import CrossEntropyLossFlat
from fastai.text.core import WordTokenizer, tokenize_texts
from fastai.text.data import TextBlock
from fastai.text.learner import LMLearner, TextLearner
from fastai.text.models.awdlstm import (
    AWD_LSTM,
    awd_lstm_clas_config,
    awd_lstm_clas_split,
    awd_lstm_lm_config,
    awd_lstm_lm_split,
)
from fastai.text.models.core import get_language_model, get_text_classifier
from torch import Tensor

from benchmarks.gate import Gate
from benchmarks.texts import draw_ids, mixed_documents, read_texts, units_of

PADDING = 1
CLIP = 0.25


class Batches:
    """What a Learner takes for its data: batches that lie ready on the device, at no cost to fastai.

    In training they come round and round, so that no epoch ever ends.
    """

    n_inp = 1

    def __init__(self, batches: list[Any], device: str, *, endless: bool) -> None:
        self.batches, self.device, self.endless = batches, torch.device(device), endless
        self.train = self

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(self.batches) if self.endless else iter(self.batches)

    def __len__(self) -> int:
        return 10**9 if self.endless else len(self.batches)

    def to(self, device: Any) -> Batches:
        """Already there."""
        return self


class PassGate(Callback):  # type: ignore[misc]
    """One unit of work is one batch of the Learner's loop."""

    order = -100

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def before_batch(self) -> None:
        """Ask for leave."""
        self.gate.step()


def _train(gate: Gate, learner: Any, settings: dict[str, Any]) -> None:
    """Learner.fit with clipping and, on a GPU, fp16, for as long as the gate opens."""
    gate.facts["dtype"] = "float16, mixed" if settings["device"] == "cuda" else "float32"
    gate.facts["parameters"] = sum(tensor.numel() for tensor in learner.model.parameters())
    callbacks = [PassGate(gate), GradientClip(CLIP)]
    if settings["device"] == "cuda":
        callbacks.append(MixedPrecision())
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, lr=1e-3, wd=0.01, cbs=callbacks)


def _config(settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "emb_sz": settings["embedding"], "n_hid": settings["hidden"]}


def language_model_step(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: one step on a window; dropouts, AR and TAR as they are there by default, which are ours too."""
    batch, window, device = settings["batch"], settings["window"], settings["device"]
    steps = min(settings["steps"], 16)
    ids = draw_ids(batch * (window * steps + 1), vocab_size=settings["vocab"], seed=1)
    streams = torch.from_numpy(ids.reshape(batch, -1)).to(device)
    pairs = [
        (streams[:, start : start + window], streams[:, start + 1 : start + window + 1].contiguous())
        for start in range(0, steps * window, window)
    ]
    gate.facts["units"] = batch * window
    model = get_language_model(AWD_LSTM, settings["vocab"], config=_config(settings, awd_lstm_lm_config))
    learner = LMLearner(
        Batches(pairs, device, endless=True),
        model.to(device),
        loss_func=CrossEntropyLossFlat(),
        splitter=awd_lstm_lm_split,
    )
    _train(gate, learner, settings)


def _classifier(settings: dict[str, Any]) -> Any:
    config = _config(settings, awd_lstm_clas_config)
    window = settings["window"]
    model = get_text_classifier(
        AWD_LSTM, settings["vocab"], 2, seq_len=window, config=config, drop_mult=0.5, max_len=window * 20
    )
    return model.to(settings["device"])


def classifier_step(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: one step on a batch of documents, with the last `groups` layer groups learning, or all of them."""
    batch, device = settings["batch"], settings["device"]
    steps = min(settings["steps"], 8)
    ids = draw_ids(batch * settings["tokens"] * steps, vocab_size=settings["vocab"], seed=2)
    tokens = torch.from_numpy(ids.reshape(steps, batch, -1)).to(device)
    labels = (torch.arange(batch) % 2).to(device)
    gate.facts["units"] = tokens[0].numel()
    # Without the regularisers that a TextLearner would add: our classifier has none.
    learner = TextLearner(
        Batches([(part, labels) for part in tokens], device, endless=True),
        _classifier(settings),
        alpha=0.0,
        beta=0.0,
        loss_func=CrossEntropyLossFlat(),
        splitter=awd_lstm_clas_split,
    )
    if settings["groups"]:
        learner.freeze_to(-settings["groups"])
    _train(gate, learner, settings)


def _padded(documents: list[np.ndarray[Any, Any]], window: int) -> Tensor:
    """As fastai pads: whole windows in front, the rest behind."""
    longest = max(map(len, documents))
    rows = np.full((len(documents), longest), PADDING, dtype=np.int64)
    for row, document in zip(rows, documents, strict=True):
        start = (longest - len(document)) // window * window
        row[start : start + len(document)] = document
    return torch.from_numpy(rows)


@contextlib.contextmanager
def _half_precision(device: str) -> Iterator[None]:
    with torch.autocast("cuda", dtype=torch.float16, enabled=device == "cuda"):
        yield


def predict_ids(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: get_preds over documents that are tokenised, sorted by length and padded already."""
    device, batch = settings["device"], settings["batch"]
    documents = sorted(mixed_documents(settings), key=len, reverse=True)
    batches = [
        (_padded(documents[start : start + batch], settings["window"]).to(device),)
        for start in range(0, len(documents), batch)
    ]
    loader = Batches(batches, device, endless=False)
    learner = TextLearner(loader, _classifier(settings), alpha=0.0, beta=0.0, loss_func=CrossEntropyLossFlat())
    gate.facts.update(units=units_of(documents, settings), dtype="float16, mixed" if device == "cuda" else "float32")

    def predict() -> None:
        with _half_precision(device), learner.no_bar(), learner.no_logging():
            learner.get_preds(dl=loader)

    gate.forever(predict)


def _learner(settings: dict[str, Any]) -> Any:
    """A classifier as fastai's users have it, with spaCy's tokenizer in its data."""
    vocabulary = json.loads(Path(settings["folder"], "tokenizer.json").read_text(encoding="utf-8"))["tokens"]
    known = read_texts(settings["folder"], "labelled")
    rows = pandas.DataFrame({"text": known["texts"], "label": known["labels"]})
    # A few of each label, which is all that it takes to make the DataLoaders.
    few = rows.groupby("label").head(16)
    block = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=vocabulary, seq_len=settings["window"]), CategoryBlock),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
        splitter=RandomSplitter(seed=0),
    )
    loaders = block.dataloaders(few, bs=settings["batch"], num_workers=0)
    sizes = {**settings, "vocab": len(vocabulary)}
    return TextLearner(loaders, _classifier(sizes), alpha=0.0, beta=0.0, loss_func=CrossEntropyLossFlat())


def predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: Learner.predict of one text, get_preds of many."""
    learner = _learner(settings)
    known = read_texts(settings["folder"], settings["texts"])
    texts = known["texts"]
    gate.facts["units"] = known[settings["unit"]] if settings["unit"] == "tokens" else len(texts)

    def action() -> None:
        with learner.no_bar(), learner.no_logging():
            if len(texts) == 1:
                learner.predict(texts[0])
            else:
                loader = learner.dls.test_dl(texts, bs=settings["batch"], num_workers=0)
                learner.get_preds(dl=loader)

    gate.forever(action)


def tokenise(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: the tokens, not yet ids, of all texts by the default tokenizer and rules."""
    known = read_texts(settings["folder"], settings["texts"])
    gate.facts["units"] = sum(map(len, known["texts"]))
    gate.forever(lambda: tokenize_texts(known["texts"], n_workers=0, tok=WordTokenizer()))


def start_predict(gate: Gate, settings: dict[str, Any]) -> None:
    """One unit: a new interpreter imports fastai, loads an exported Learner and predicts one text."""
    learner = _learner(settings)
    (text,) = read_texts(settings["folder"], settings["texts"])["texts"]
    with tempfile.TemporaryDirectory() as folder:
        learner.path = Path(folder)
        learner.export("learner.pkl")
        program = (
            "import sys; from fastai.text.learner import *; from fastai.learner import load_learner; "
            "learner = load_learner(sys.argv[1])\n"
            "with learner.no_bar(): print(learner.predict(sys.argv[2]))"
        )
        gate.forever_start([sys.executable, "-c", program, str(Path(folder) / "learner.pkl"), text])


def versions() -> dict[str, str]:
    """What ran."""
    return {"python": platform.python_version(), "torch": torch.__version__, "fastai": version("fastai")}


WORKS = {
    "language_model_step": language_model_step,
    "classifier_step": classifier_step,
    "predict_ids": predict_ids,
    "predict": predict,
    "tokenise": tokenise,
    "start_predict": start_predict,
}
