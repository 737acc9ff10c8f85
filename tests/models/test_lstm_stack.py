"""Layers side by side on threads against `nn.LSTM` on `nn.LSTM`."""

import copy

import pytest
import torch

from stacked_lstms import BATCH, TIME, WINDOW, modules, plainly, results, weights_of
from ulmfit.config import EncoderConfig, EncoderDropouts
from ulmfit.models.encoder import build_encoder
from ulmfit.models.lstm_products import SharedWeights
from ulmfit.models.lstm_stack import lstm_stack

SIZES = (6, 16, 24, 8)


def shared(layers):
    return [SharedWeights(weights_of(layer)) for layer in layers]


def given(windows):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TIME, BATCH, SIZES[0], generator=generator)
    state = [torch.randn(1, BATCH, size, generator=generator) for size in SIZES[1:] for _ in range(2)]
    masks = [torch.rand(windows, BATCH, size, generator=generator) for size in SIZES[1:-1]]
    probe = torch.randn(TIME, BATCH, SIZES[-1], generator=generator)
    return inputs, state, masks, probe


def in_a_stack(layers, inputs, state, masks):
    return lstm_stack(inputs, tuple(state), shared(layers), [None, *masks], window=WINDOW)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("windows", [1, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_it_equals_stacked_torch_lstms_forward_and_back(threads, count, windows, dtype, tolerance):
    layers = modules(SIZES, dtype)
    reference = copy.deepcopy(layers).double()
    with threads(count):
        found = results(in_a_stack, layers, dtype, given(windows))
    for mine, wanted in zip(found, results(plainly, reference, torch.float64, given(windows)), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - wanted).norm() < tolerance * wanted.norm()


def test_two_runs_on_threads_are_equal_to_the_bit(threads):
    with threads(2):
        first, second = (
            results(in_a_stack, modules(SIZES, torch.bfloat16), torch.bfloat16, given(5)) for _ in range(2)
        )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", [1, 2])
def test_below_frozen_layers_nothing_gets_a_gradient(threads, frozen):
    layers = modules(SIZES, torch.float32)
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    inputs, state, masks, _ = given(1)
    with threads(2):
        outputs, after = in_a_stack(layers, inputs, state, masks)
        assert [tensor.requires_grad for tensor in after] == [depth >= frozen for depth in range(3) for _ in range(2)]
        outputs.cos().sum().backward()
    reference = modules(SIZES, torch.float32)
    plainly(reference, inputs, state, masks)[0].cos().sum().backward()
    for depth, (layer, other) in enumerate(zip(layers, reference, strict=True)):
        for mine, wanted in zip(layer.parameters(), other.parameters(), strict=True):
            if depth < frozen:
                assert mine.grad is None
            else:
                torch.testing.assert_close(mine.grad, wanted.grad)


def test_without_gradients_it_reads_the_same(threads):
    layers = modules(SIZES, torch.float32)
    inputs, state, masks, _ = given(5)
    weights = shared(layers)
    with threads(2), torch.no_grad():
        outputs, after = lstm_stack(inputs, tuple(state), weights, [None, *masks], window=WINDOW)
        wanted, wanted_after = plainly(layers, inputs, state, masks)
    assert not outputs.requires_grad
    torch.testing.assert_close((outputs, list(after)), (wanted, wanted_after))


def test_an_encoder_draws_the_same_masks_on_any_number_of_threads(threads):
    torch.manual_seed(0)
    rates = EncoderDropouts(input=0.4, embedding=0.1, weight=0.3, hidden=0.5)
    encoder = build_encoder(EncoderConfig(embedding_size=8, hidden_size=14, dropouts=rates), vocab_size=40)
    tokens = torch.randint(0, 40, (TIME, BATCH))
    found = []
    for count in (1, 2):
        torch.manual_seed(1)
        with threads(count):
            outputs, _ = encoder(tokens, None, encoder.prepare(torch.bfloat16), window=WINDOW)
            found.append([outputs, *torch.autograd.grad(outputs.float().cos().sum(), list(encoder.parameters()))])
    for one, several in zip(*found, strict=True):
        assert (one - several).norm() <= 1e-2 * one.norm()
