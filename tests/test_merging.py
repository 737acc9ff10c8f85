"""Directions trained apart are merged into the model of both; models that do not belong together are refused."""

from dataclasses import replace
from functools import partial

import pytest

from bundles import (
    BOTH,
    ENCODER,
    FACTS,
    KINDS,
    MAKERS,
    TEXTS,
    TOKENIZER,
    bundle_with_bag,
    classifier_bundle,
    files,
    language_model_bundle,
    problem,
)
from ulmfit.bundle import LanguageModelBundle
from ulmfit.config import LanguageModelConfig, TokenizerConfig
from ulmfit.merging import merge
from ulmfit.models.language_model import LanguageModel
from ulmfit.text.tokenizer import train_tokenizer


@KINDS
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_two_directions_merged_are_the_model_that_was_trained_of_both(tmp_path, kind, storage):
    both = MAKERS[kind](BOTH, facts={**FACTS, "results": {"forward": 1, "backward": 2}, "history": [1, 2]})
    for number, direction in enumerate(BOTH, start=1):
        facts = {**FACTS, "results": {direction: number}, "history": [number]}
        one = replace(both, models={direction: both.models[direction]}, facts=facts)
        one.save(tmp_path / direction, storage=storage)
    merge([tmp_path / direction for direction in BOTH], out=tmp_path / "merged")
    both.save(tmp_path / "both", storage=storage)
    assert files(tmp_path / "merged") == files(tmp_path / "both")
    merge([tmp_path / "backward", tmp_path / "forward"], out=tmp_path / "turned")
    assert type(both).load(tmp_path / "turned").directions == BOTH


def other_labels():
    return replace(classifier_bundle(("backward",)), labels=("cat", "dog", "mouse"))


def other_sizes():
    config = LanguageModelConfig(vocab_size=len(TOKENIZER), encoder=ENCODER, output_dropout=0.5)
    models = {"backward": LanguageModel(config)}
    return LanguageModelBundle(config=config, tokenizer=TOKENIZER, models=models, facts=FACTS)


def other_words():
    tokenizer = train_tokenizer(TEXTS[::-1], config=TokenizerConfig(vocab_size=20, min_frequency=1), processes=1)
    config = LanguageModelConfig(vocab_size=len(tokenizer), encoder=ENCODER)
    models = {"backward": LanguageModel(config)}
    return LanguageModelBundle(config=config, tokenizer=tokenizer, models=models, facts=FACTS)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (classifier_bundle, other_labels, "their classes"),
        (language_model_bundle, other_sizes, "settings differ"),
        (language_model_bundle, other_words, "vocabularies differ"),
        (language_model_bundle, language_model_bundle, "reads forward already"),
        (language_model_bundle, lambda: classifier_bundle(("backward",)), "do not make one model"),
    ],
)
def test_models_that_do_not_belong_together_are_not_merged(tmp_path, first, second, told):
    first().save(tmp_path / "first")
    second().save(tmp_path / "second")
    message = problem(lambda folder: merge([tmp_path / "first", folder], out=tmp_path / "merged"), tmp_path / "second")
    assert told in message
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("other", [classifier_bundle, partial(bundle_with_bag, words=(7, 8))])
def test_models_with_different_bags_of_words_are_not_merged(tmp_path, other):
    bundle_with_bag().save(tmp_path / "first")
    other(("backward",)).save(tmp_path / "second")
    message = problem(lambda folder: merge([tmp_path / "first", folder], out=tmp_path / "merged"), tmp_path / "second")
    assert "bags of words" in message
