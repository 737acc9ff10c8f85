"""Stage 3 as a whole: one network a direction, a bag of words beside them, and the second networks that they teach."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.bag_of_words import BagOfWords
from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import choose_prediction_dtype
from ulmfit.config import ClassifyConfig, ClassifySettings, Direction
from ulmfit.errors import ConfigError
from ulmfit.learning.bag_of_words import MOST_FEATURES, MOST_UNLABELLED, learn_bag_of_words, share_of_network
from ulmfit.learning.classifier import class_weights, classifier_stage, start_of_classifying
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.reading import classify_documents, pool_documents
from ulmfit.learning.self_training import taught, with_surest
from ulmfit.learning.setting import Setting, identity, run_facts
from ulmfit.models.classifier import Classifier
from ulmfit.text.corpus import Corpus
from ulmfit.text.draw import chosen_records, draw_texts, drawn
from ulmfit.text.sources import read_records
from ulmfit.training.events import Note


def learn_classifiers(
    setting: Setting,
    labelled: Path,
    tuned: LanguageModelBundle,
    *,
    config: ClassifyConfig,
    text_column: str,
    label_column: str,
    valid: Path | None = None,
    others: Path | None = None,
    unlabelled: Sequence[Path] = (),
    domain: Sequence[Path] = (),
) -> ClassifierBundle:
    """Train one classifier a direction and gather them in a bundle; measured on `valid`, or on a share held out.

    Where the settings want a bag of words, that learns from some of `domain` too, and from the labels of `others`,
    which there was no time for in the network. Where they want self-training, all of these teach a second network of
    each direction, with the surest of `unlabelled`.
    """
    settings, run = config.classify, setting.run
    for direction in run.directions:
        if direction not in tuned.models:
            raise ConfigError(f"the language model reads {' and '.join(tuned.directions)} only; pass that --direction")
    source = LabelledText.read(
        setting,
        labelled,
        valid,
        tuned.tokenizer,
        valid_share=settings.valid_share,
        text_column=text_column,
        label_column=label_column,
    )
    corpus = source.corpus
    models = _learn(setting, source, tuned, config, settings, name="classify")
    bag, results = None, {}
    if settings.bag_of_words and setting.processes.leads:  # who alone chooses and saves
        bag, results["bag of words"] = _learn_bag_of_words(
            setting,
            source,
            tuned,
            settings,
            labelled=labelled,
            valid=valid,
            others=others,
            domain=domain,
            text_column=text_column,
            label_column=label_column,
        )
    if settings.self_training and not unlabelled:
        setting.tell(Note("no self-training, as there is no unlabelled text"))
    elif settings.self_training:
        pool = setting.corpus(unlabelled, tuned.tokenizer, name="unlabelled", text_column=text_column)

        def vote(documents: NDArray[np.int64]) -> Tensor:
            probabilities = _network_probabilities(setting, source, pool, documents, models)
            if bag is None:
                return probabilities
            texts = [record.text for record in chosen_records(unlabelled, documents, text_column=text_column)]
            return bag.beside(probabilities, texts)

        more = with_surest(setting, source, pool, settings, vote=vote)
        if more is not None:
            again = taught(settings, documents=len(source.documents), of=len(more.documents))
            models = _learn(setting, more, tuned, config, again, name="self-train")
    facts = run_facts(setting, "train", base=tuned.facts.get("base"), corpus=corpus, documents=len(corpus))
    facts["results"].update(results)
    return ClassifierBundle(
        config=models[run.directions[0]].config,
        tokenizer=tuned.tokenizer,
        models=models,
        facts=facts,
        labels=corpus.label_names,
        bag_of_words=bag,
    )


def _learn_bag_of_words(
    setting: Setting,
    source: LabelledText,
    tuned: LanguageModelBundle,
    settings: ClassifySettings,
    *,
    labelled: Path,
    valid: Path | None,
    others: Path | None,
    domain: Sequence[Path],
    text_column: str,
    label_column: str,
) -> tuple[BagOfWords, dict[str, Any]]:
    """What votes beside the networks; its terms, what it counts, and its accuracy alone on what was held out."""
    began = time.monotonic()
    columns = {"text_column": text_column, "label_column": label_column}
    seed = setting.run.seed
    texts = [record.text for record in read_records([labelled], **columns)]
    more = list(read_records([others], **columns)) if others is not None else []
    sample = draw_texts(domain, most=MOST_UNLABELLED, seed=seed, text_column=text_column) if domain else []
    unseen = np.setdiff1d(np.arange(len(texts)), source.documents)  # held out: words without labels, as for the network
    labels, known, names = source.corpus.labels, source.valid_corpus.labels, source.corpus.label_names
    assert labels is not None and known is not None
    more_labels = np.array([names.index(record.label or "") for record in more], dtype=np.int32)
    bag, better_than_chance = learn_bag_of_words(
        [*(texts[place] for place in source.documents), *(record.text for record in more)],
        np.concatenate([labels[source.documents], more_labels]),
        [*sample, *(texts[place] for place in unseen)],
        classes=len(names),
        share=settings.bag_of_words,
        seed=seed,
        class_weights=class_weights(settings, source.corpus, source.documents).tolist(),
    )
    asked = np.sort(source.documents)[drawn(MOST_FEATURES, len(source.documents), seed=seed)]
    features = _features(setting, source, tuned, settings, asked)
    share = share_of_network(features, labels[asked], better_than_chance, classes=len(names), seed=seed)
    bag = replace(bag, network_share=share)
    results: dict[str, Any] = {"terms": len(bag.terms), "labelled": len(source.documents) + len(more)}
    results["network share"] = round(share, 3)
    told = f"bag of words: {len(bag.terms):,} terms, {time.monotonic() - began:.0f} s"
    told += f"; it counts {bag.share:.2g} and the network {bag.network_share:.2g}"
    if len(source.valid_documents):
        held_out = texts if valid is None else [record.text for record in read_records([valid], **columns)]
        guesses = bag.logits([held_out[place] for place in source.valid_documents]).argmax(1)
        results["accuracy"] = float((guesses == known[source.valid_documents]).mean())
        told += f", alone right on {results['accuracy']:.2%} of what was held out"
    setting.tell(Note(told))
    return bag, results


def _learn(
    setting: Setting,
    source: LabelledText,
    tuned: LanguageModelBundle,
    config: ClassifyConfig,
    settings: ClassifySettings,
    *,
    name: str,
) -> dict[Direction, Classifier]:
    """A classifier of each direction; `config` is what its checkpoints belong to, `settings` how it learns."""
    models: dict[Direction, Classifier] = {}
    for direction in setting.run.directions:
        torch.manual_seed(setting.run.seed)
        classes = len(source.corpus.label_names)
        model = start_of_classifying(setting, settings, tuned.models[direction], classes=classes)
        learning = classifier_stage(setting, source, model, direction, settings, name=f"{name} {direction}")
        learning = replace(learning, identity=identity(setting, config, source.corpus))
        setting.learn(learning, setting.folder.work / f"{name}-{direction}")
        models[direction] = model.cpu().eval()
    return models


def _network_probabilities(
    setting: Setting,
    source: LabelledText,
    corpus: Corpus,
    documents: NDArray[np.int64],
    models: Mapping[Direction, Classifier],
) -> Tensor:
    """The mean over the directions, (documents, classes)."""
    device = setting.device
    total = torch.zeros(len(documents), len(source.corpus.label_names))
    for direction, model in models.items():
        logits = classify_documents(
            model.to(device).eval(),
            corpus,
            documents,
            direction=direction,
            tokenizer=source.tokenizer,
            dtype=_reading_dtype(setting),
            processes=setting.processes,
        )
        total += logits.softmax(1)
        model.cpu()
    return total / len(models)


def _features(
    setting: Setting,
    source: LabelledText,
    tuned: LanguageModelBundle,
    settings: ClassifySettings,
    documents: NDArray[np.int64],
) -> NDArray[np.float32]:
    """What the language models of all directions make of labelled documents, (documents, size), in this process."""
    pooled = []
    for direction in setting.run.directions:
        model = start_of_classifying(setting, settings, tuned.models[direction], classes=len(source.corpus.label_names))
        pooled.append(
            pool_documents(
                model.eval(),
                source.corpus,
                documents,
                direction=direction,
                tokenizer=source.tokenizer,
                dtype=_reading_dtype(setting),
            )
        )
    return torch.cat(pooled, 1).float().cpu().numpy()


def _reading_dtype(setting: Setting) -> torch.dtype:
    """In which documents are read where nothing learns."""
    return choose_prediction_dtype("auto", setting.device) if setting.run.precision == "auto" else setting.dtype
