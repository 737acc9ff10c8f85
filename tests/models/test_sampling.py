"""What may be drawn, against the definition worked out token by token."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ulmfit.config import EncoderConfig, LanguageModelConfig
from ulmfit.models.language_model import LanguageModel
from ulmfit.models.sampling import continue_tokens, draw_probabilities

some_logits = st.lists(st.integers(-80, 80).map(lambda tenths: tenths / 10), min_size=1, max_size=12)


def by_definition(logits, temperature, top_p):
    """Take the likeliest tokens, one after the other, until they have top_p of the probability; no case on the edge."""
    probabilities = (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(0)
    kept, total = {}, 0.0
    for token in sorted(range(len(logits)), key=lambda token: (-logits[token], token)):
        assume(top_p == 1 or abs(total - top_p) > 1e-4)
        if total >= top_p and kept:
            break
        kept[token] = float(probabilities[token])
        total += kept[token]
    return torch.tensor([kept.get(token, 0.0) / total for token in range(len(logits))])


@settings(deadline=None)
@given(
    logits=some_logits,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.313, 0.5, 0.777, 0.95, 1.0]),
)
def test_the_nucleus_is_the_fewest_likeliest_tokens_that_have_top_p(logits, temperature, top_p):
    found = draw_probabilities(torch.tensor(logits), temperature=temperature, top_p=top_p)
    torch.testing.assert_close(found, by_definition(logits, temperature, top_p), atol=2e-5, rtol=1e-4)


def test_with_all_of_the_probability_it_is_the_softmax():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    found = draw_probabilities(logits, temperature=1.0, top_p=1.0)
    torch.testing.assert_close(found, logits.softmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-3])
def test_a_temperature_towards_zero_is_the_likeliest_token(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.9], [500.0, -500.0, 0.0]])
    found = draw_probabilities(logits, temperature=temperature, top_p=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = EncoderConfig(embedding_size=6, hidden_size=8, layers=2)
    made = LanguageModel(LanguageModelConfig(vocab_size=30, encoder=encoder)).eval()
    with torch.no_grad():
        made.encoder.embedding.weight.mul_(30)  # so that it has opinions
    return made


def continued(model, tokens, count, *, seed=0, **rest):
    how = {"temperature": 1.0, "top_p": 1.0, **rest}
    drawn = continue_tokens(model, tokens, generator=torch.Generator().manual_seed(seed), **how)
    return list(itertools.islice(drawn, count))


def test_at_temperature_zero_each_token_is_the_likeliest_after_all_before_it(model):
    tokens = [2, 7, 11]
    for token in continued(model, tokens, 8, temperature=0.0):
        logits, _ = model.next_token_logits(torch.tensor(tokens).unsqueeze(1))
        assert token == int(logits.argmax())
        tokens.append(token)


def test_the_same_seed_draws_the_same_and_another_does_not(model):
    assert continued(model, [2], 40) == continued(model, [2], 40)
    assert continued(model, [2], 40) != continued(model, [2], 40, seed=1)


def test_some_tokens_are_never_drawn(model):
    free = set(continued(model, [2], 300, temperature=3.0))
    bound = set(continued(model, [2], 300, temperature=3.0, never=sorted(free)[:5]))
    assert not bound & set(sorted(free)[:5])


def test_drawn_tokens_come_as_often_as_the_model_says(model):
    with torch.no_grad():
        logits, _ = model.next_token_logits(torch.tensor([[2], [3]]))
    expected = draw_probabilities(logits[0], temperature=1.0, top_p=0.9)
    firsts = torch.tensor([continued(model, [2, 3], 1, seed=seed, top_p=0.9)[0] for seed in range(2000)])
    found = firsts.bincount(minlength=30) / 2000
    assert not found[expected == 0].any()
    assert float((found - expected).abs().max()) < 0.05
