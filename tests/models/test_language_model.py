"""The language model against plain formulas; its weights through files; its move to another vocabulary."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from ulmfit.config import EncoderConfig, EncoderDropouts, LanguageModelConfig
from ulmfit.models.encoder import detach
from ulmfit.models.language_model import LanguageModel, transfer_vocabulary

VOCABULARY, TIME, BATCH = 37, 9, 4


def make(rate=0.0, seed=0):
    torch.manual_seed(seed)
    dropouts = EncoderDropouts(input=rate, embedding=rate, weight=rate, hidden=rate)
    encoder = EncoderConfig(embedding_size=8, hidden_size=12, layers=2, dropouts=dropouts)
    model = LanguageModel(LanguageModelConfig(vocab_size=VOCABULARY, encoder=encoder, output_dropout=rate))
    with torch.no_grad():
        model.decoder_bias.uniform_(-1, 1)  # zeros would hide a bias left out
    return model


def some_window(seed=1):
    text = torch.randint(0, VOCABULARY, (TIME + 1, BATCH), generator=torch.Generator().manual_seed(seed))
    return text[:-1], text[1:]


def plain_loss(model, tokens, targets, state=None, *, alpha=0.0, beta=0.0):
    """Mean cross entropy + alpha * mean(output^2) + beta * mean((output_t+1 - output_t)^2), without dropout."""
    outputs, _ = model.encoder(tokens, state)
    logits = functional.linear(outputs, model.encoder.embedding.weight, model.decoder_bias)
    total = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    total = total + alpha * (outputs**2).mean()
    return total + beta * ((outputs[1:] - outputs[:-1]) ** 2).mean()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (2.0, 0.0), (0.0, 1.0), (2.0, 1.0)])
def test_loss_equals_its_formulas_forward_and_backward(alpha, beta):
    model, (tokens, targets) = make(), some_window()
    state = detach(model.encoder(some_window(2)[0])[1])
    ours = model.loss(tokens, targets, state, activation_regularisation=alpha, temporal_regularisation=beta)
    reference = plain_loss(model, tokens, targets, state, alpha=alpha, beta=beta)
    torch.testing.assert_close(ours.total, reference)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours.total, parameters), torch.autograd.grad(reference, parameters))


def test_cross_entropy_is_the_sum_without_regularisers_and_without_history():
    model, (tokens, targets) = make(), some_window()
    loss = model.loss(tokens, targets, None, activation_regularisation=2.0, temporal_regularisation=1.0)
    torch.testing.assert_close(loss.cross_entropy, plain_loss(model, tokens, targets).detach() * targets.numel())
    assert not loss.cross_entropy.requires_grad


def test_ar_sees_dropped_outputs_and_tar_raw_ones(monkeypatch):
    model, (tokens, targets) = make(), some_window()
    monkeypatch.setattr(model, "config", model.config.model_copy(update={"output_dropout": 0.5}))
    raw, _ = model.encoder(tokens)

    def extra(**regularisers):
        torch.manual_seed(5)
        with_it = model.loss(tokens, targets, None, **regularisers)
        return with_it.total - with_it.cross_entropy / targets.numel()

    torch.manual_seed(5)
    mask = torch.empty(1, BATCH, 8).bernoulli_(0.5) / 0.5
    torch.testing.assert_close(extra(activation_regularisation=2.0), 2 * ((raw * mask) ** 2).mean())
    torch.testing.assert_close(extra(temporal_regularisation=3.0), 3 * ((raw[1:] - raw[:-1]) ** 2).mean())


def test_a_window_of_one_token_has_no_change_to_punish():
    model, (tokens, targets) = make(), some_window()
    with_it = model.loss(tokens[:1], targets[:1], None, temporal_regularisation=1.0)
    assert torch.equal(with_it.total, model.loss(tokens[:1], targets[:1], None).total)


def test_dropout_changes_training_and_leaves_evaluation():
    model, (tokens, targets) = make(rate=0.4), some_window()
    reference = plain_loss(model.eval(), tokens, targets)
    torch.testing.assert_close(model.loss(tokens, targets, None).total, reference)
    assert not torch.allclose(model.train().loss(tokens, targets, None).total, reference, rtol=1e-4)


def test_half_precision_stays_near_single():
    model, (tokens, targets) = make(), some_window()
    half = model.loss(tokens, targets, None, dtype=torch.bfloat16)
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, plain_loss(model, tokens, targets), rtol=0.01, atol=0)
    half.total.backward()
    expected = torch.autograd.grad(plain_loss(model, tokens, targets), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.1, atol=0.05 * gradient.abs().max().item())


def test_state_carried_over_two_windows_equals_one_long_window():
    model, (tokens, targets) = make(), some_window()
    whole = model.loss(tokens, targets, None)
    first = model.loss(tokens[:4], targets[:4], None)
    second = model.loss(tokens[4:], targets[4:], detach(first.state))
    torch.testing.assert_close(first.cross_entropy + second.cross_entropy, whole.cross_entropy)
    torch.testing.assert_close(second.state, whole.state)


def test_next_token_logits_are_those_of_the_last_step_and_carry_state():
    model, (tokens, _) = make(), some_window()
    outputs, end = model.encoder(tokens)
    expected = functional.linear(outputs[-1], model.decoder_weight, model.decoder_bias)
    logits, state = model.next_token_logits(tokens)
    torch.testing.assert_close((logits, state), (expected, end))
    _, middle = model.next_token_logits(tokens[:5])
    torch.testing.assert_close(model.next_token_logits(tokens[5:], middle), (expected, end))


def test_decoder_and_embedding_are_one_tensor_saved_once_and_tied_after_a_round_trip(tmp_path):
    model, (tokens, targets) = make(), some_window()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert [name for name, tensor in tensors.items() if tensor.shape == (VOCABULARY, 8)] == ["encoder.embedding.weight"]
    read = make(seed=9)
    read.load_state_dict(tensors)
    assert read.decoder_weight is read.encoder.embedding.weight
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(read.loss(tokens, targets, None).total, model.loss(tokens, targets, None).total)
    with torch.no_grad():
        read.encoder.embedding.weight.zero_()
    assert (read.decoder_weight == 0).all()


def test_layer_groups_hold_every_parameter_once_and_end_with_the_tied_embedding():
    model = make()
    groups = model.layer_groups()
    assert [group.name for group in groups] == ["lstm_0", "lstm_1", "embedding_and_decoder"]
    assert groups[-1].parameters == (model.encoder.embedding.weight, model.decoder_bias)
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


ROWS = torch.tensor([0, 1, 2, -1, 30, 5, -1, 36, 4, 3])


def test_transfer_keeps_known_rows_and_gives_new_tokens_the_mean():
    model = make()
    moved = transfer_vocabulary(model, ROWS)
    weight, bias = model.decoder_weight.detach(), model.decoder_bias.detach()
    for new, old in enumerate(ROWS.tolist()):
        expected = (weight.mean(0), bias.mean()) if old < 0 else (weight[old], bias[old])
        assert torch.equal(moved.decoder_weight[new], expected[0])
        assert torch.equal(moved.decoder_bias[new], expected[1])
    assert moved.config.vocab_size == len(ROWS) and moved.decoder_weight is moved.encoder.embedding.weight
    assert moved.config.encoder == model.config.encoder


def test_transfer_keeps_the_logits_of_known_tokens():
    model = make().eval()
    moved = transfer_vocabulary(model, ROWS).eval()
    known = ROWS >= 0
    tokens = torch.tensor([[0, 9], [4, 5], [7, 8]])  # of the new vocabulary, all of them known
    ours, state = moved.next_token_logits(tokens)
    theirs, their_state = model.next_token_logits(ROWS[tokens])
    torch.testing.assert_close(ours[:, known], theirs[:, ROWS[known]])
    torch.testing.assert_close(state, their_state)


def test_transfer_leaves_the_source_and_the_random_numbers_alone():
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    moved = transfer_vocabulary(model, ROWS)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.zero_()
    assert model.config.vocab_size == VOCABULARY
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_transfer_to_the_same_vocabulary_changes_nothing():
    model = make()
    moved = transfer_vocabulary(model, torch.arange(VOCABULARY))
    assert all(torch.equal(tensor, moved.state_dict()[name]) for name, tensor in model.state_dict().items())
