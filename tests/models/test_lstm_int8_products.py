"""A stack of LSTM layers that learns by products in int8, against `nn.LSTM` on `nn.LSTM` in float64."""

import copy
import itertools

import pytest
import torch
from torch import nn

from stacked_lstms import BATCH, NAMES, TIME, WINDOW, modules, plainly, results, weights_of
from ulmfit.config import EncoderConfig, EncoderDropouts
from ulmfit.models.encoder import build_encoder
from ulmfit.models.int8_products import products_serve, weight_peak
from ulmfit.models.lstm import for_one_step
from ulmfit.models.lstm_int8_products import Int8SharedWeights, int8_serves
from ulmfit.models.lstm_products import SharedWeights
from ulmfit.models.lstm_stack import lstm_stack

pytestmark = pytest.mark.skipif(not products_serve(), reason="needs AMX, VNNI or AVX2, and Numba")

SIZES = (32, 112, 96, 48)
TOLERANCE = 0.04 * 127 / (weight_peak() or 127)
"""of weights in as many bits as are multiplied here"""


def given():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TIME, BATCH, SIZES[0], generator=generator)
    state = [torch.randn(1, BATCH, size, generator=generator).tanh() for size in SIZES[1:] for _ in range(2)]
    masks = [torch.bernoulli(torch.full((5, BATCH, size), 0.7), generator=generator) / 0.7 for size in SIZES[1:-1]]
    probe = torch.randn(TIME, BATCH, SIZES[-1], generator=generator)
    return inputs, state, masks, probe


def in_int8(layers, inputs, state, masks):
    shared = [Int8SharedWeights(weights_of(layer)) for layer in layers]
    return lstm_stack(inputs, tuple(state), shared, [None, *masks], window=WINDOW)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_near_stacked_torch_lstms_forward_and_back(threads, count):
    layers = modules(SIZES, torch.bfloat16)
    with threads(count):
        found = results(in_int8, layers, torch.bfloat16, given())
    for mine, wanted in zip(
        found, results(plainly, copy.deepcopy(layers).double(), torch.float64, given()), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - wanted).norm() < TOLERANCE * wanted.norm()


def test_any_number_of_threads_comes_to_the_same_bits(threads):
    layers = modules(SIZES, torch.bfloat16)
    with threads(1):
        first = results(in_int8, layers, torch.bfloat16, given())
    for count in (2, 2, 3):
        with threads(count):
            again = results(in_int8, layers, torch.bfloat16, given())
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_layers_below_the_lowest_that_learns_have_no_gradient():
    layers = modules(SIZES, torch.bfloat16)
    for parameter in layers[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    inputs, state, masks, probe = given()
    inputs, state = inputs.to(torch.bfloat16), [tensor.to(torch.bfloat16) for tensor in state]
    outputs, _ = in_int8(layers, inputs, state, [mask.to(torch.bfloat16) for mask in masks])
    (outputs * probe).sum().backward()
    assert all(parameter.grad is None for parameter in layers[0].parameters())
    for mine, wanted in zip(
        layers[1:].parameters(), gradients_of(layers, inputs, state, masks, probe, first=1), strict=True
    ):
        assert (mine.grad.double() - wanted).norm() < TOLERANCE * wanted.norm()


def gradients_of(layers, inputs, state, masks, probe, *, first):
    exact = copy.deepcopy(layers).double()
    outputs, _ = plainly(
        exact, inputs.double(), [tensor.double() for tensor in state], [mask.double() for mask in masks]
    )
    return torch.autograd.grad((outputs * probe.double()).sum(), list(exact[first:].parameters()))


def test_windows_that_share_weights_add_their_gradients_up():
    layer, (inputs, state, _, _) = modules(SIZES, torch.bfloat16)[0], given()
    inputs, begin = inputs.to(torch.bfloat16), tuple(tensor.to(torch.bfloat16) for tensor in state[:2])

    def gradients(edges):
        shared, after, total = Int8SharedWeights(weights_of(layer)), begin, 0
        for start, end in itertools.pairwise(edges):
            outputs, after = lstm_stack(inputs[start:end], after, [shared], [None])
            total = total + outputs.float().square().sum()
        return torch.autograd.grad(total, list(layer.parameters()))

    for whole, parts in zip(gradients([0, TIME]), gradients([0, 10, 11, TIME]), strict=True):
        assert (whole.double() - parts.double()).norm() < TOLERANCE * whole.double().norm()


def test_a_gradient_of_zero_stays_zero():
    layer, (inputs, state, _, _) = modules(SIZES, torch.bfloat16)[0], given()
    shared = Int8SharedWeights(weights_of(layer))
    begin = tuple(tensor.to(torch.bfloat16) for tensor in state[:2])
    outputs, _ = lstm_stack(inputs.to(torch.bfloat16), begin, [shared], [None])
    for gradient in torch.autograd.grad((outputs * 0).sum(), list(layer.parameters())):
        assert not gradient.any()


def test_inputs_of_zero_are_read_as_such():
    layer, (inputs, state, _, _) = modules(SIZES, torch.bfloat16)[0], given()
    begin = tuple(tensor.to(torch.bfloat16) for tensor in state[:2])
    outputs, _ = lstm_stack(inputs.to(torch.bfloat16) * 0, begin, [Int8SharedWeights(weights_of(layer))], [None])
    wanted, _ = copy.deepcopy(layer).double()(inputs.double() * 0, tuple(tensor.double() for tensor in begin))
    assert (outputs.double() - wanted).norm() < TOLERANCE * wanted.norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_no_number_shows_in_the_outputs(name):
    layer, (inputs, state, _, _) = modules(SIZES, torch.bfloat16)[0], given()
    getattr(layer, name).data[3] = float("nan")
    begin = tuple(tensor.to(torch.bfloat16) for tensor in state[:2])
    outputs, _ = lstm_stack(inputs.to(torch.bfloat16), begin, [Int8SharedWeights(weights_of(layer))], [None])
    assert outputs.isnan().any()


@pytest.mark.parametrize(("inputs", "hidden"), [(32, 40), (20, 32), (32, 1)])
def test_sizes_that_kernels_do_not_serve_are_not_learned_in_int8(inputs, hidden):
    weights = weights_of(nn.LSTM(inputs, hidden).to(torch.bfloat16))
    assert not int8_serves(weights.input_weight, weights.hidden_weight)
    assert type(for_one_step(weights, in_int8=True)) is SharedWeights


@pytest.mark.parametrize(
    ("hidden", "native", "wanted"),
    [
        (48, torch.bfloat16, torch.bfloat16),
        (48, torch.float32, torch.bfloat16),
        (40, torch.bfloat16, torch.bfloat16),
        (40, torch.float32, torch.float32),
    ],
)
def test_an_encoder_some_of_whose_layers_cannot_learn_in_int8_takes_what_the_cpu_is_fast_in(
    monkeypatch, hidden, native, wanted
):
    monkeypatch.setattr("ulmfit.models.lstm_int8_products.choose_dtype", lambda precision, device: native)
    config = EncoderConfig(embedding_size=32, hidden_size=hidden, dropouts=EncoderDropouts())
    encoder = build_encoder(config, vocab_size=50).train()
    outputs, _ = encoder(torch.randint(0, 50, (4, 3)), None, encoder.prepare(torch.int8))
    assert outputs.dtype == wanted


def test_an_encoder_asked_for_int8_while_it_trains_has_layers_in_it():
    config = EncoderConfig(embedding_size=32, hidden_size=48, dropouts=EncoderDropouts())
    encoder = build_encoder(config, vocab_size=50).train()
    weights = encoder.prepare(torch.int8)
    assert all(isinstance(layer, Int8SharedWeights) for layer in weights.layers)
    outputs, _ = encoder(torch.randint(0, 50, (7, 3)), None, weights)
    assert outputs.dtype == torch.bfloat16
    outputs.float().square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
