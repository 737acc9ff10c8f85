"""The LSTM function against `nn.LSTM` and against its own equations."""

import pytest
import torch
from torch import nn

from ulmfit.models.lstm import LstmWeights, lstm

TIME, BATCH, INPUTS, HIDDEN = 9, 4, 6, 10


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.LSTM(INPUTS, HIDDEN)


def weights_of(layer):
    return LstmWeights(layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


def by_equations(inputs, state, weights):
    """Hochreiter & Schmidhuber with forget gates, one step after another."""
    hidden, cell = state[0][0], state[1][0]
    outputs = []
    for step in inputs:
        gates = step @ weights.input_weight.T + weights.input_bias + hidden @ weights.hidden_weight.T
        input_gate, forget_gate, candidate, output_gate = (gates + weights.hidden_bias).chunk(4, dim=1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
        hidden = output_gate.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), (hidden.unsqueeze(0), cell.unsqueeze(0))


@pytest.mark.parametrize("with_state", [False, True])
def test_equals_torch_forward_and_backward(layer, with_state):
    inputs = torch.randn(TIME, BATCH, INPUTS, requires_grad=True)
    state = tuple(torch.randn(1, BATCH, HIDDEN, requires_grad=True) for _ in range(2)) if with_state else None
    leaves = [inputs, *(state or ()), *layer.parameters()]
    results = []
    for outputs, (hidden, cell) in (layer(inputs, state), lstm(inputs, state, weights_of(layer))):
        weighted = (outputs.cos().sum() + 2 * hidden.sum() + 3 * cell.sum(), leaves)
        results.append([outputs, hidden, cell, *torch.autograd.grad(*weighted)])
    for reference, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


def test_equals_the_equations(layer):
    inputs = torch.randn(TIME, BATCH, INPUTS)
    state = (torch.randn(1, BATCH, HIDDEN), torch.randn(1, BATCH, HIDDEN))
    torch.testing.assert_close(lstm(inputs, state, weights_of(layer)), by_equations(inputs, state, weights_of(layer)))


def test_half_precision_stays_near_single_forward_and_backward(layer):
    inputs = torch.randn(TIME, BATCH, INPUTS)
    single, _ = lstm(inputs, None, weights_of(layer))
    half, (hidden, cell) = lstm(
        inputs.bfloat16(), None, LstmWeights(*(tensor.bfloat16() for tensor in weights_of(layer)))
    )
    assert {tensor.dtype for tensor in (half, hidden, cell)} == {torch.bfloat16}
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.02)
    reference = torch.autograd.grad(single.sin().mean(), list(layer.parameters()))
    gradients = torch.autograd.grad(half.float().sin().mean(), list(layer.parameters()))
    for ours, theirs in zip(gradients, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05 * theirs.abs().max().item())


def test_two_pieces_with_carried_state_equal_the_whole(layer):
    inputs = torch.randn(TIME, BATCH, INPUTS)
    whole, after = lstm(inputs, None, weights_of(layer))
    first, middle = lstm(inputs[:4], None, weights_of(layer))
    second, end = lstm(inputs[4:], middle, weights_of(layer))
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, after)


@pytest.mark.parametrize("learning", range(4))
def test_any_one_weight_may_be_the_only_one_to_learn(layer, learning):
    inputs = torch.randn(TIME, BATCH, INPUTS)
    (reference,) = torch.autograd.grad(layer(inputs)[0].cos().sum(), [list(layer.parameters())[learning]])
    weights = [tensor.detach().clone() for tensor in weights_of(layer)]
    weights[learning].requires_grad_()
    outputs, _ = lstm(inputs, None, LstmWeights(*weights))
    (gradient,) = torch.autograd.grad(outputs.cos().sum(), [weights[learning]])
    torch.testing.assert_close(gradient, reference)


def test_frozen_weights_pass_the_gradient_down(layer):
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    inputs = torch.randn(TIME, BATCH, INPUTS, requires_grad=True)
    ours = torch.autograd.grad(lstm(inputs, None, weights_of(layer))[0].cos().sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(layer(inputs)[0].cos().sum(), inputs))


def test_no_gradient_is_kept_where_none_is_wanted(layer):
    with torch.no_grad():
        outputs, state = lstm(torch.randn(TIME, BATCH, INPUTS), None, weights_of(layer))
    assert not any(tensor.requires_grad for tensor in (outputs, *state))
