"""The AWD-LSTM: without dropout a stack of `nn.LSTM`, with dropout what each rate says."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ulmfit.config import EncoderConfig, EncoderDropouts
from ulmfit.errors import ConfigError
from ulmfit.models.awd_lstm import EMBEDDING_RANGE, AwdLstm
from ulmfit.models.encoder import build_encoder, detach, register_encoder, select_rows

VOCABULARY, TIME, BATCH = 40, 11, 3
NONE = {"input": 0.0, "embedding": 0.0, "weight": 0.0, "hidden": 0.0}


def make(layers=3, **rates):
    torch.manual_seed(0)
    config = EncoderConfig(
        embedding_size=8, hidden_size=14, layers=layers, dropouts=EncoderDropouts(**{**NONE, **rates})
    )
    return build_encoder(config, vocab_size=VOCABULARY)


def some_tokens(seed=1):
    return torch.randint(0, VOCABULARY, (TIME, BATCH), generator=torch.Generator().manual_seed(seed))


def stacked(encoder, tokens, state=None):
    """The same encoder as modules of torch, layer on layer."""
    outputs, after = encoder.embedding(tokens), []
    for depth, layer in enumerate(encoder.lstms):
        outputs, hidden_and_cell = layer(outputs, None if state is None else state[2 * depth : 2 * depth + 2])
        after += hidden_and_cell
    return outputs, tuple(after)


def gradients(encoder, outputs, state):
    return torch.autograd.grad(outputs.cos().sum() + sum(tensor.sum() for tensor in state), list(encoder.parameters()))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("with_state", [False, True])
def test_without_dropout_it_equals_stacked_torch_lstms(layers, with_state):
    encoder, tokens = make(layers), some_tokens()
    state = detach(encoder(some_tokens(2))[1]) if with_state else None
    (ours, after), (reference, reference_after) = encoder(tokens, state), stacked(encoder, tokens, state)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(after, reference_after)
    torch.testing.assert_close(gradients(encoder, ours, after), gradients(encoder, reference, reference_after))


def test_half_precision_stays_near_single_forward_and_backward():
    encoder, tokens = make(), some_tokens()
    ours, after = encoder(tokens, None, encoder.prepare(torch.bfloat16))
    reference, reference_after = stacked(encoder, tokens)
    assert {tensor.dtype for tensor in (ours, *after)} == {torch.bfloat16}
    torch.testing.assert_close(ours.float(), reference, rtol=0.05, atol=0.01)
    pairs = zip(gradients(encoder, ours.float(), after), gradients(encoder, reference, reference_after), strict=True)
    for gradient, expected in pairs:
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.1, atol=0.03 * expected.abs().max().item())


def test_sizes_run_from_embedding_over_hidden_back_to_embedding():
    encoder = make()
    assert [(layer.input_size, layer.hidden_size) for layer in encoder.lstms] == [(8, 14), (14, 14), (14, 8)]
    outputs, state = encoder(some_tokens())
    assert outputs.shape == (TIME, BATCH, encoder.output_size)
    assert [tuple(tensor.shape) for tensor in state] == [(1, BATCH, size) for size in (14, 14, 14, 14, 8, 8)]


def test_embedding_starts_within_its_range():
    weight = make().embedding.weight
    assert weight.abs().max() <= EMBEDDING_RANGE
    assert weight.std().item() == pytest.approx(EMBEDDING_RANGE / 3**0.5, rel=0.1)


@pytest.mark.parametrize("name", list(NONE))
def test_each_rate_alone_changes_training_and_leaves_evaluation(name):
    encoder, tokens = make(**{name: 0.5}), some_tokens()
    reference = stacked(encoder, tokens)
    assert not torch.allclose(encoder.train()(tokens)[0], reference[0])
    ours = encoder.eval()(tokens)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradients(encoder, *ours), gradients(encoder, *reference))


def test_locked_dropout_stands_before_every_layer_and_not_after_the_last():
    encoder, tokens = make(input=0.4, hidden=0.4).train(), some_tokens()
    torch.manual_seed(5)
    ours, _ = encoder(tokens)
    torch.manual_seed(5)
    outputs = encoder.embedding(tokens)
    for layer in encoder.lstms:
        mask = torch.empty(1, BATCH, layer.input_size).bernoulli_(0.6) / 0.6
        outputs, _ = layer(outputs * mask)
    torch.testing.assert_close(ours, outputs)


def test_all_rates_zero_makes_training_equal_evaluation():
    encoder, tokens = make(), some_tokens()
    assert torch.equal(encoder.train()(tokens)[0], encoder.eval()(tokens)[0])


def test_a_dropped_hidden_weight_gets_no_gradient_and_a_kept_one_is_scaled():
    encoder, tokens = make(weight=0.5).train(), some_tokens()
    weights = encoder.prepare(torch.float32)
    encoder(tokens, None, weights)[0].cos().sum().backward()
    for layer, used in zip(encoder.lstms, weights.layers, strict=True):
        dropped = used.hidden_weight == 0
        assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.1)
        torch.testing.assert_close(used.hidden_weight, layer.weight_hh_l0 * ~dropped * 2)
        assert (layer.weight_hh_l0.grad[dropped] == 0).all()
        assert (layer.weight_hh_l0.grad[~dropped] != 0).all()


def test_weight_dropout_equals_torch_lstms_that_hold_the_dropped_weights():
    encoder, tokens = make(weight=0.5).train(), some_tokens()
    weights = encoder.prepare(torch.float32)
    outputs, state = encoder(tokens, None, weights)
    reference = make()
    with torch.no_grad():
        for layer, used in zip(reference.lstms, weights.layers, strict=True):
            layer.weight_hh_l0.copy_(used.hidden_weight)
    torch.testing.assert_close((outputs, state), stacked(reference, tokens))


def test_one_preparation_shares_its_mask_and_two_differ():
    encoder, tokens = make(weight=0.5).train(), some_tokens()
    weights, others = encoder.prepare(torch.float32), encoder.prepare(torch.float32)
    once, again = (encoder(tokens, None, weights)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.allclose(once, encoder(tokens, None, others)[0])


def test_carried_state_makes_two_windows_one():
    encoder, tokens = make(), some_tokens()
    whole, end = encoder(tokens)
    first, middle = encoder(tokens[:4])
    second, after = encoder(tokens[4:], detach(middle))
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(after, end)


def test_layer_groups_hold_every_parameter_once_from_the_embedding_up():
    encoder = make()
    groups = encoder.layer_groups()
    assert [group.name for group in groups] == ["embedding", "lstm_0", "lstm_1", "lstm_2"]
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())


def test_detach_keeps_values_and_cuts_history():
    _, state = make()(some_tokens())
    cut = detach(state)
    assert all(torch.equal(*pair) for pair in zip(state, cut, strict=True))
    assert all(tensor.requires_grad for tensor in state) and not any(tensor.requires_grad for tensor in cut)


def test_select_rows_continues_the_first_sequences_alone():
    encoder, tokens = make(), some_tokens()
    _, state = encoder(tokens)
    both, _ = encoder(tokens, state)
    fewer, _ = encoder(tokens[:, :2], select_rows(state, slice(2)))
    torch.testing.assert_close(fewer, both[:, :2])


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'transformer'.*awd_lstm"):
        build_encoder(EncoderConfig(architecture="transformer"), vocab_size=VOCABULARY)


def test_a_registered_architecture_is_found_by_name(monkeypatch):
    monkeypatch.setattr("ulmfit.models.encoder._REGISTRY", {"awd_lstm": AwdLstm})

    @register_encoder("twin")
    class Twin(AwdLstm):
        pass

    config = EncoderConfig(architecture="twin", embedding_size=4, hidden_size=4)
    assert type(build_encoder(config, vocab_size=9)) is Twin
    assert isinstance(build_encoder(config, vocab_size=9), nn.Module)


def test_it_is_registered_whichever_module_is_imported_first():
    program = (
        "from ulmfit.models.encoder import build_encoder; from ulmfit.config import EncoderConfig;"
        "print(type(build_encoder(EncoderConfig(embedding_size=2, hidden_size=2), vocab_size=3)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["AwdLstm"]
