"""Documents in lanes against each of them read alone."""

import numpy as np
import pytest
import torch
from torch import nn

from ulmfit.config import EncoderConfig
from ulmfit.models.classifier import encode_documents
from ulmfit.models.encoder import build_encoder
from ulmfit.models.lanes import read_in_lanes

LENGTHS = [40, 33, 33, 20, 12, 9, 8, 8, 7, 5, 3, 2, 1, 1]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    made = build_encoder(EncoderConfig(embedding_size=24, hidden_size=40), vocab_size=50).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return made.requires_grad_(False)


DOCUMENTS = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in LENGTHS]


def in_lanes(encoder, documents, **settings):
    """What is pooled, by document, and the order in which they ended."""
    waiting = iter(enumerate(documents))
    found, order = {}, []
    for numbers, rows in read_in_lanes(encoder, encoder.prepare(torch.int8), lambda: next(waiting, None), **settings):
        order += numbers.tolist()
        found.update(zip(numbers.tolist(), rows, strict=True))
    return found, order


def alone(encoder, document):
    tokens = torch.from_numpy(document.astype(np.int64)).unsqueeze(1)
    encoded = encode_documents(
        encoder, tokens, torch.tensor([len(document)]), window=7, horizon=0, weights=encoder.prepare(torch.int8)
    )
    return encoded.pooled[0]


@pytest.mark.parametrize("lanes", [1, 3, 5, 99])
@pytest.mark.parametrize(
    ("shortest", "longest", "window_tokens"), [(1, 9, 1), (4, 9, 4), (2, 9, 20), (2, 4, 100), (100, 100, 100)]
)
def test_each_document_is_pooled_as_if_it_were_alone(encoder, lanes, shortest, longest, window_tokens):
    windows = {"shortest": shortest, "longest": longest, "window_tokens": window_tokens}
    found, order = in_lanes(encoder, DOCUMENTS, lanes=lanes, **windows)
    assert sorted(order) == list(range(len(DOCUMENTS)))
    for number, document in enumerate(DOCUMENTS):
        torch.testing.assert_close(found[number], alone(encoder, document), rtol=0, atol=1e-6)


def test_a_lane_is_taken_over_as_soon_as_its_document_ended(encoder):
    long, short = DOCUMENTS[0], DOCUMENTS[-4]
    _, order = in_lanes(encoder, [long, *[short] * 5], lanes=2, shortest=3, longest=9, window_tokens=3)
    assert order == [1, 2, 3, 4, 5, 0]


def test_a_window_has_as_many_steps_as_it_may_so_that_memory_does_not_grow_with_a_document(encoder):
    steps = []

    class Watched:
        output_size = encoder.output_size

        def __call__(self, tokens, state, weights):
            steps.append(len(tokens))
            return encoder(tokens, state, weights)

    waiting = iter([(0, DOCUMENTS[0])])
    weights = encoder.prepare(torch.int8)
    rows = list(
        read_in_lanes(
            Watched(), weights, lambda: next(waiting, None), lanes=4, shortest=2, longest=16, window_tokens=1_000
        )
    )
    assert steps == [16, 16, 8] and len(rows) == 1


def test_no_documents_give_nothing(encoder):
    assert in_lanes(encoder, [], lanes=4, shortest=2, longest=8, window_tokens=8) == ({}, [])
