"""What a language model is measured by, against the plain formula."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ulmfit.config import EncoderConfig, LanguageModelConfig, LanguageModelTraining, TokenizerConfig
from ulmfit.learning.language_model import measure_language_model, streams_for
from ulmfit.models.language_model import LanguageModel
from ulmfit.presets import tune_preset
from ulmfit.text.corpus import Corpus
from ulmfit.text.tokenizer import train_tokenizer

VOCABULARY = 30


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_perplexity_is_that_of_all_tokens_of_one_long_text_but_its_first(direction):
    torch.manual_seed(1)
    encoder = EncoderConfig(embedding_size=6, hidden_size=8, layers=2)
    model = LanguageModel(LanguageModelConfig(vocab_size=VOCABULARY, encoder=encoder)).eval()
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, config=TokenizerConfig(vocab_size=VOCABULARY))
    generator = np.random.default_rng(2)
    documents = [[2, *generator.integers(3, VOCABULARY, size=size).tolist()] for size in (150, 0, 80, 5)]
    corpus = Corpus.from_documents(documents, vocab_size=VOCABULARY)
    chosen = np.array([0, 1, 3])  # one stream: windows of 128 carry the state from one to the next
    with torch.no_grad():
        measured = measure_language_model(
            model, corpus, chosen, direction=direction, tokenizer=tokenizer, dtype=torch.float32
        )
        turned = [ids if direction == "forward" else [ids[0], *ids[:0:-1]] for ids in documents]
        text = torch.tensor([id for index in chosen for id in turned[index]])
        outputs, _ = model.encoder(text[:-1].unsqueeze(1), None, model.encoder.prepare(torch.float32))
        logits = outputs[:, 0] @ model.encoder.embedding.weight.T + model.decoder_bias
        expected = float(functional.cross_entropy(logits, text[1:]))
    assert measured["valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "streams", "why"),
    [
        (23_000_000, 256, "as many as asked for"),
        (1_300_000, 162, "an epoch of 100 steps"),
        (60_000, 16, "no fewer for the sake of steps"),
        (1_600, 10, "two windows a stream"),
        (100, 1, "less than two windows"),
    ],
)
def test_the_paper_presets_streams_follow_the_amount_of_text(tokens, streams, why):
    assert streams_for(tokens, tune_preset("paper").training) == streams, why


@pytest.mark.parametrize("tokens", [1, 139, 140, 8_959, 8_960, 10**6])
def test_without_least_steps_streams_are_cut_only_to_have_two_windows_each(tokens):
    training = LanguageModelTraining()
    assert streams_for(tokens, training) == max(1, min(training.batch_size, tokens // (2 * training.window)))
