"""The int8 layer against its own arithmetic in float64 and against `nn.LSTM`; a row against itself in any company."""

import pytest
import torch
from torch import nn

from ulmfit.config import EncoderConfig
from ulmfit.models import int8_lstm as module
from ulmfit.models.awd_lstm import AwdLstmWeights
from ulmfit.models.encoder import build_encoder
from ulmfit.models.int8_lstm import int8_lstm, quantise_lstm
from ulmfit.models.lstm_products import LstmWeights

TIME, BATCH, INPUTS, HIDDEN = 24, 9, 20, 36


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """An encoder reads by this layer where there is no kernel for the processor."""
    monkeypatch.setattr("ulmfit.models.awd_lstm.cpu_products", lambda: None)


def layer(inputs=INPUTS, hidden=HIDDEN):
    torch.manual_seed(0)
    made = nn.LSTM(inputs, hidden)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return made.requires_grad_(False)


def weights_of(made):
    return LstmWeights(made.weight_ih_l0, made.weight_hh_l0, made.bias_ih_l0, made.bias_hh_l0)


def some_inputs(batch=BATCH, size=INPUTS):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-127, 128, (TIME, batch, size), generator=generator).to(torch.int8)


def read(inputs, weights, scale=None, state=None):
    """Outputs in float32 and in int8, and the state."""
    outputs, end = int8_lstm(inputs, scale, state, weights, exact=True)
    quantised, _ = int8_lstm(inputs, scale, state, weights)
    return outputs, quantised, end


@pytest.mark.parametrize("with_scale", [True, False], ids=["embeddings", "hidden vectors"])
def test_equals_the_same_arithmetic_in_float64(int8_lstm_by_equations, with_scale):
    inputs, weights = some_inputs(), weights_of(layer())
    scale = torch.rand(TIME, BATCH) / 50 if with_scale else None
    outputs, quantised, (hidden, cell) = read(inputs, quantise_lstm(weights, embeddings=with_scale), scale)
    plain = inputs.double() * (1 / 127 if scale is None else scale.double().unsqueeze(2))
    reference, last_cell = int8_lstm_by_equations(plain, weights)
    torch.testing.assert_close(outputs.double(), reference, rtol=0, atol=1e-5)
    assert torch.equal(quantised, (reference * 127).round().to(torch.int8))
    assert torch.equal(hidden[0, :, :HIDDEN], quantised[-1]) and not hidden[0, :, HIDDEN:].any()
    torch.testing.assert_close(cell[0, :, :HIDDEN].double() / 2, last_cell, rtol=0, atol=1e-5)


def test_stays_near_float32():
    inputs, made = some_inputs(), layer()
    reference, _ = made(inputs.float() / 127)
    outputs, _, _ = read(inputs, quantise_lstm(weights_of(made), embeddings=False))
    assert reference.std() > 0.1
    assert (outputs - reference).square().mean().sqrt() < 0.02


def test_a_saturated_gate_stays_within_int8():
    weights = LstmWeights(*(torch.full_like(tensor, 9.0) for tensor in weights_of(layer())))
    outputs, quantised, _ = read(some_inputs().abs(), quantise_lstm(weights, embeddings=False))
    assert outputs.max() == 1 and quantised.max() == 127 and quantised.min() > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_the_same_to_the_bit_in_any_batch_and_on_any_number_of_threads(threads, count):
    # Wide enough for kernels that differ by the number of rows, and for element-wise work on two threads.
    inputs, weights = some_inputs(160, 96)[:6], quantise_lstm(weights_of(layer(96, 160)), embeddings=False)
    with threads(1):
        whole, _, (hidden, cell) = read(inputs, weights)
    with threads(count):
        for rows in (1, 2, 3, 17, 64, 160):
            fewer, _, state = read(inputs[:, :rows], weights)
            assert torch.equal(fewer, whole[:, :rows])
            assert torch.equal(state[0], hidden[:, :rows]) and torch.equal(state[1], cell[:, :rows])


@pytest.mark.parametrize("cut", [1, 10, TIME - 1])
def test_where_windows_and_blocks_end_changes_no_bit(monkeypatch, cut):
    inputs, weights = some_inputs(), quantise_lstm(weights_of(layer()), embeddings=False)
    whole, _, end = read(inputs, weights)
    monkeypatch.setattr(module, "BLOCK_ROWS", 3 * BATCH)
    first, _, state = read(inputs[:cut], weights)
    second, _, after = read(inputs[cut:], weights, state=state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(after[0], end[0]) and torch.equal(after[1], end[1])


def test_an_encoder_in_int8_stays_near_float32_and_carries_its_state():
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(embedding_size=24, hidden_size=40), vocab_size=50).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    tokens = torch.randint(0, 50, (20, 5))
    with torch.inference_mode():
        weights = encoder.prepare(torch.int8)
        reference, _ = encoder(tokens)
        outputs, end = encoder(tokens, None, weights)
        first, state = encoder(tokens[:7], None, weights)
        second, after = encoder(tokens[7:], state, weights)
    assert reference.std() > 0.1
    assert (outputs - reference).square().mean().sqrt() < 0.02
    assert torch.equal(torch.cat([first, second]), outputs)
    assert all(torch.equal(*pair) for pair in zip(after, end, strict=True))


def test_while_training_int8_is_for_products_alone():
    encoder = build_encoder(EncoderConfig(embedding_size=4, hidden_size=4), vocab_size=9).train()
    weights = encoder.prepare(torch.int8)
    assert isinstance(weights, AwdLstmWeights) and weights.dtype.is_floating_point
