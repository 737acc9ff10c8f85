"""A trained model goes on with a text in its own language, in either direction."""

import pytest
import torch

from ulmfit.bundle import LanguageModelBundle
from ulmfit.errors import BundleError, ConfigError
from ulmfit.generation import generate


@pytest.fixture(scope="module")
def bundle(tiny):
    return LanguageModelBundle.load(tiny.base)


def test_the_given_text_stays_as_it_is_and_goes_on(bundle, tiny):
    text = "  The film   was very"
    told = generate(bundle, text, length=1, temperature=0)
    assert told.startswith(text + " ")
    words = {*tiny.TELLING["good"], *tiny.TELLING["bad"], *tiny.NEUTRAL}
    assert told.removeprefix(text).strip() in words


def test_a_backward_model_writes_what_comes_before(bundle):
    read = [bundle.tokenizer.begin_id, *map(bundle.tokenizer.id, ("dull", "very"))]
    for _ in range(3):
        logits, _ = bundle.models["backward"].next_token_logits(torch.tensor(read).unsqueeze(1))
        read.append(int(logits.argmax()))
    words = [bundle.tokenizer.tokens[token] for token in reversed(read[3:])]
    told = generate(bundle, "very  dull", length=3, temperature=0, direction="backward")
    assert told == f"{' '.join(words)} very  dull"


def test_the_same_seed_gives_the_same_text(bundle):
    first = generate(bundle, "a song", seed=5, length=30)
    assert first == generate(bundle, "a song", seed=5, length=30)
    assert first != generate(bundle, "a song", seed=6, length=30)


def test_it_ends_where_the_model_ends_a_text(bundle):
    """Reviews have at most some thirty words: a text this long would be several."""
    told = generate(bundle, "", length=500, temperature=0.5, seed=2)
    assert 1 < len(told.split()) < 100
    assert "xx" not in told and "\n" not in told


def test_by_default_a_model_of_both_directions_goes_forward(bundle):
    assert generate(bundle, "this film", seed=1) == generate(bundle, "this film", seed=1, direction="forward")


@pytest.mark.parametrize("wrong", [{"length": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_a_value_out_of_range_is_named(bundle, wrong):
    with pytest.raises(ConfigError, match="expected a length of 1 or more"):
        generate(bundle, "a", **wrong)


def test_a_direction_the_model_lacks_is_named(bundle):
    forward = LanguageModelBundle(
        config=bundle.config, tokenizer=bundle.tokenizer, models={"forward": bundle.models["forward"]}
    )
    with pytest.raises(ConfigError, match="this model reads forward only"):
        generate(forward, "a", direction="backward")


def test_the_command_prints_the_text(ulmfit, tiny, bundle):
    ran = ulmfit("generate", tiny.base, "- the film", "--seed", 3, "--length", 9, "--temperature", 0.5, "--top-p", 0.8)
    assert ran.code == 0
    assert ran.out == generate(bundle, "- the film", seed=3, length=9, temperature=0.5, top_p=0.8) + "\n"


def test_a_classifier_cannot_go_on_with_a_text(ulmfit, tiny):
    ran = ulmfit("generate", tiny.model, "the film")
    assert ran.code == 2
    assert "holds a classifier, a language model is needed here" in ran.err
    with pytest.raises(BundleError):
        LanguageModelBundle.load(tiny.model)
