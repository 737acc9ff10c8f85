"""Small bundles that the tests of saving and of merging share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit.bag_of_words import BagOfWords, Terms
from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.config import ClassifierConfig, EncoderConfig, HeadConfig, LanguageModelConfig, TokenizerConfig
from ulmfit.errors import BundleError
from ulmfit.models.classifier import Classifier
from ulmfit.models.language_model import LanguageModel
from ulmfit.text.tokenizer import train_tokenizer

TEXTS = ["The cat sat on the mat.", "A dog did not sit, it ran and ran.", "Where did the dog run to?"]
TOKENIZER = train_tokenizer(TEXTS, config=TokenizerConfig(vocab_size=40, min_frequency=1), processes=1)
ENCODER = EncoderConfig(embedding_size=8, hidden_size=12, layers=2)
LABELS = ("cat", "dog", "neither: ünklar")
BOTH = ("forward", "backward")
FACTS = {"stage": "train", "results": {"classify": {"accuracy": 0.5}}, "command": "ulmfit train"}


def language_model_bundle(directions=("forward",), facts=FACTS):
    torch.manual_seed(0)
    config = LanguageModelConfig(vocab_size=len(TOKENIZER), encoder=ENCODER)
    models = {direction: LanguageModel(config).eval() for direction in directions}
    for model in models.values():
        torch.nn.init.uniform_(model.decoder_bias, -1, 1)
    return LanguageModelBundle(config=config, tokenizer=TOKENIZER, models=models, facts=facts)


def classifier_bundle(directions=("forward",), facts=FACTS):
    torch.manual_seed(0)
    head = HeadConfig(classes=len(LABELS), hidden_size=6)
    config = ClassifierConfig(vocab_size=len(TOKENIZER), encoder=ENCODER, head=head, window=5)
    models = {direction: Classifier(config).eval() for direction in directions}
    for model in models.values():  # as if it had learnt: statistics that are not those of a fresh BatchNorm
        model.head.layers[0].running_mean.uniform_(-1, 1)
        model.head.layers[0].num_batches_tracked.fill_(7)
    return ClassifierBundle(config=config, tokenizer=TOKENIZER, models=models, facts=facts, labels=LABELS)


MAKERS = {"language_model": language_model_bundle, "classifier": classifier_bundle}
KINDS = pytest.mark.parametrize("kind", list(MAKERS))


def bundle_with_bag(directions=("forward",), words=(7, 9)):
    keys = np.array([*words, 8 * len(TOKENIZER) + 9], dtype=np.int64)
    numbers = np.random.default_rng(0).normal(size=(3, len(LABELS))).astype(np.float32)
    terms = Terms(TOKENIZER, keys, np.ones(3, np.float32))
    return replace(classifier_bundle(directions), bag_of_words=BagOfWords(terms, numbers, numbers[0], 0.5, 0.25))


def files(folder: Path):
    """Everything in a folder, by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def problem(load, folder):
    with pytest.raises(BundleError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message
