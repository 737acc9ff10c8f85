"""Layers side by side on threads against `nn.LSTM` on `nn.LSTM`."""

import copy
import itertools

import pytest
import torch
from torch import nn

from ulmfit.config import EncoderConfig, EncoderDropouts
from ulmfit.models.encoder import build_encoder
from ulmfit.models.lstm_products import LstmWeights, SharedWeights
from ulmfit.models.lstm_stack import lstm_stack

TIME, BATCH, WINDOW = 33, 5, 8
SIZES = (6, 16, 24, 8)


def modules(dtype):
    torch.manual_seed(0)
    made = nn.ModuleList(nn.LSTM(size, after) for size, after in itertools.pairwise(SIZES))
    return made.to(dtype)


def shared(layers):
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [SharedWeights(LstmWeights(*(getattr(layer, name) for name in names))) for layer in layers]


def given(windows):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TIME, BATCH, SIZES[0], generator=generator)
    state = [torch.randn(1, BATCH, size, generator=generator) for size in SIZES[1:] for _ in range(2)]
    masks = [torch.rand(windows, BATCH, size, generator=generator) for size in SIZES[1:-1]]
    probe = torch.randn(TIME, BATCH, SIZES[-1], generator=generator)
    return inputs, state, masks, probe


def plainly(layers, inputs, state, masks):
    outputs, after = inputs, []
    for depth, layer in enumerate(layers):
        if depth > 0:
            mask = masks[depth - 1]
            outputs = outputs * (mask if len(mask) == 1 else mask.repeat_interleave(WINDOW, 0)[:TIME])
        outputs, end = layer(outputs, (state[2 * depth], state[2 * depth + 1]))
        after += end
    return outputs, after


def in_a_stack(layers, inputs, state, masks):
    return lstm_stack(inputs, tuple(state), shared(layers), [None, *masks], window=WINDOW)


def results(function, layers, dtype, windows):
    """Outputs, state and the gradients of everything there is."""
    inputs, state, masks, probe = given(windows)
    inputs, state = inputs.to(dtype).requires_grad_(), [tensor.to(dtype).requires_grad_() for tensor in state]
    outputs, after = function(layers, inputs, state, [mask.to(dtype) for mask in masks])
    loss = (outputs * probe.to(dtype)).sum() + sum(
        weight * tensor.sum() for weight, tensor in enumerate(after, 1) if tensor.requires_grad
    )
    leaves = [inputs, *state, *layers.parameters()]
    found = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return [tensor.detach() for tensor in (outputs, *after, *found)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("windows", [1, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_it_equals_stacked_torch_lstms_forward_and_back(threads, count, windows, dtype, tolerance):
    layers = modules(dtype)
    reference = copy.deepcopy(layers).double()
    with threads(count):
        found = results(in_a_stack, layers, dtype, windows)
    for mine, wanted in zip(found, results(plainly, reference, torch.float64, windows), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - wanted).norm() < tolerance * wanted.norm()


def test_two_runs_on_threads_are_equal_to_the_bit(threads):
    with threads(2):
        first, second = (results(in_a_stack, modules(torch.bfloat16), torch.bfloat16, 5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", [1, 2])
def test_below_frozen_layers_nothing_gets_a_gradient(threads, frozen):
    layers = modules(torch.float32)
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    inputs, state, masks, _ = given(1)
    with threads(2):
        outputs, after = in_a_stack(layers, inputs, state, masks)
        assert [tensor.requires_grad for tensor in after] == [depth >= frozen for depth in range(3) for _ in range(2)]
        outputs.cos().sum().backward()
    reference = modules(torch.float32)
    plainly(reference, inputs, state, masks)[0].cos().sum().backward()
    for depth, (layer, other) in enumerate(zip(layers, reference, strict=True)):
        for mine, wanted in zip(layer.parameters(), other.parameters(), strict=True):
            if depth < frozen:
                assert mine.grad is None
            else:
                torch.testing.assert_close(mine.grad, wanted.grad)


def test_without_gradients_it_reads_the_same(threads):
    layers = modules(torch.float32)
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
