"""What the works on a CPU read: reviews, a vocabulary, corpora and a model, made once and kept in build/bench/data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sides import BUILD, PROJECT

FEW_WORDS = 1000
"""vocabulary of the corpora that are there to show memory: the softmax costs little, the other words are unknown"""
SHORT = 120
"""words of a review that MiniLM reads whole: 230 of its 256 tokens at most"""


def prepare(*, model: dict[str, int], tiny: bool) -> tuple[Path, str]:
    """Make what is missing; the folder it is in, and what the texts are."""
    shared = (PROJECT / os.environ.get("ULMFIT_DATA", "../shared/data") / "imdb").resolve()
    origin = "IMDb" if shared.is_dir() else "demo"
    source = shared if shared.is_dir() else PROJECT / "src" / "ulmfit" / "demo_data"
    folder = BUILD / ("data-tiny" if tiny else "data")
    wanted = json.dumps([origin, model, SHORT])
    stamp = folder / "made.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"Making texts, corpora and a model from {origin} reviews in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tokenizer = _texts(folder, source, vocab_size=model["vocab"], share=50 if tiny else 1)
        _model(folder / "model", tokenizer, model)
        stamp.write_text(wanted, encoding="utf-8")
    return folder, origin


def _texts(folder: Path, source: Path, *, vocab_size: int, share: int) -> Any:
    """Texts as `{"texts": [...], "labels": [...], "tokens": in all}`, corpora, and the tokenizer behind both."""
    import pyarrow as pa
    import pyarrow.parquet

    from ulmfit.config import TokenizerConfig
    from ulmfit.text.corpus import build_corpus
    from ulmfit.text.sources import read_records
    from ulmfit.text.tokenizer import Tokenizer, train_tokenizer

    learned, held_out = (
        list(read_records([source / f"{part}.parquet"], text_column="text", label_column="label"))
        for part in ("train", "test")
    )
    config = TokenizerConfig(vocab_size=vocab_size)
    tokenizer = train_tokenizer([record.text for record in learned], config=config)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")

    def keep(name: str, texts: Sequence[str], labels: Sequence[str | None]) -> None:
        values = {"texts": texts, "labels": labels, "tokens": sum(len(tokenizer.encode(text)) for text in texts)}
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")

    def keep_records(name: str, records: Sequence[Any]) -> None:
        keep(name, [record.text for record in records], [record.label for record in records])

    def keep_one(name: str, tokens: int) -> None:
        """One text of that many tokens: reviews one after the other, the last one cut."""
        words: list[str] = []
        for record in held_out * 40:
            words += record.text.split(" ")
            if len(words) >= tokens:
                break
        low, high = 0, len(words)
        while low < high:
            middle = (low + high) // 2
            enough = len(tokenizer.encode(" ".join(words[:middle]))) >= tokens
            low, high = (low, middle) if enough else (middle + 1, high)
        keep(name, [" ".join(words[:low])], [held_out[0].label])

    many = held_out[: 1000 // share]
    keep_records("many", many)
    keep("short", [" ".join(record.text.split()[:SHORT]) for record in many], [record.label for record in many])
    keep_records("labelled", learned[: 5000 // share])
    keep_records("tokenise", learned[: 25_000 // share])
    keep_records("tokenise-few", learned[: 500 // share])
    for count in (300, 2_000, 20_000, 200_000):
        keep_one(f"one-{count}", count // share)

    few_words = Tokenizer(tokenizer.tokens[:FEW_WORDS])
    (folder / "few-words.json").write_text(few_words.to_json(), encoding="utf-8")
    tenth = max(1, min(25_000, len(learned)) // share // 10)
    for name, count in (("corpus", tenth), ("corpus-ten-times", 10 * tenth)):
        table = folder / f"{name}.parquet"
        pyarrow.parquet.write_table(pa.table({"text": [record.text for record in learned[:count]]}), table)
        build_corpus([table], few_words, out=folder / name)
    return tokenizer


def _model(folder: Path, tokenizer: Any, sizes: dict[str, int]) -> None:
    """A classifier of random weights as a bundle: weights make no difference to speed."""
    import torch

    from ulmfit.bundle import ClassifierBundle
    from ulmfit.config import ClassifierConfig, EncoderConfig, HeadConfig
    from ulmfit.models.classifier import Classifier

    torch.manual_seed(0)
    config = ClassifierConfig(
        vocab_size=len(tokenizer),
        encoder=EncoderConfig(embedding_size=sizes["embedding"], hidden_size=sizes["hidden"]),
        head=HeadConfig(classes=2),
        window=sizes["window"],
    )
    bundle = ClassifierBundle(config, tokenizer, {"forward": Classifier(config)}, labels=("neg", "pos"))
    bundle.save(folder)
