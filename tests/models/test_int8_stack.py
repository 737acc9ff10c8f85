"""All layers in int8 by one kernel on a GPU, against the same layers in int8 on a CPU; its weights in their order."""

import pytest
import torch

from ulmfit.config import EncoderConfig
from ulmfit.int8_rows import quantise_rows
from ulmfit.models.encoder import build_encoder
from ulmfit.models.int8_stack import DEPTH, TOGETHER, UNITS, quantise_stack
from ulmfit.models.lstm_products import LstmWeights

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel runs on CUDA alone")
WORDS = 300


def an_encoder(embedding=40, hidden=72, layers=3):
    torch.manual_seed(0)
    config = EncoderConfig(embedding_size=embedding, hidden_size=hidden, layers=layers)
    encoder = build_encoder(config, vocab_size=WORDS).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return encoder


def some_tokens(time, batch):
    return torch.randint(WORDS, (time, batch), generator=torch.Generator().manual_seed(1))


def weights_of(layer):
    return LstmWeights(layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


def test_a_units_gates_lie_where_the_kernel_looks_for_them_and_what_fills_up_is_zero():
    encoder = an_encoder(hidden=136)
    layers = [weights_of(layer) for layer in encoder.lstms]
    packed = quantise_stack(encoder.embedding.weight, layers)
    tiles = 0
    for place, layer in zip(packed.layers, layers, strict=True):
        size, inputs = layer.hidden_weight.shape[1], layer.input_weight.shape[1]
        filled = -(-size // UNITS) * UNITS
        width = (place.inputs_depths + place.depths) * DEPTH
        matrix = packed.weights[place.first_weight * DEPTH :][: 4 * filled * width].view(4 * filled, width)
        numbers = packed.numbers[tiles : place.last_tile].transpose(0, 1).reshape(3, -1)
        tiles = place.last_tile
        assert place.size == size and numbers.shape[1] == 4 * filled
        input_rows, input_scale = quantise_rows(layer.input_weight)
        hidden_rows, hidden_scale = quantise_rows(layer.hidden_weight)
        for unit in (0, 7, 8, size - 1):
            for gate in range(4):
                row = unit // TOGETHER * 4 * TOGETHER + gate * TOGETHER + unit % TOGETHER
                given = gate * size + unit
                assert torch.equal(matrix[row, :inputs], input_rows[given])
                start = place.inputs_depths * DEPTH
                assert torch.equal(matrix[row, start : start + size], hidden_rows[given])
                assert not matrix[row, inputs:start].any() and not matrix[row, start + size :].any()
                # What a sum is worth: the first layer's inputs have a scale of their own, the others' 127 is 1.
                of_inputs, of_hidden, bias = numbers[:, row]
                own = input_scale[given] if place.lower == 0 else input_scale[given] / 127
                torch.testing.assert_close(of_inputs * of_hidden, own)
                torch.testing.assert_close(of_hidden, hidden_scale[given] / 127)
                torch.testing.assert_close(bias, layer.input_bias[given] + layer.hidden_bias[given])


def test_sums_over_inputs_stay_within_integers_where_a_unit_forgets_what_it_was():
    """With hidden weights of 0 their scale would be so fine that the inputs' sums overflow."""
    encoder = an_encoder()
    layers = [weights_of(layer) for layer in encoder.lstms]
    for layer in layers:
        layer.hidden_weight.zero_()
    packed = quantise_stack(encoder.embedding.weight, layers)
    tiles = 0
    for place in packed.layers:
        width = place.inputs_depths * DEPTH
        whole = width + place.depths * DEPTH
        of_inputs = packed.numbers[tiles : place.last_tile, 0].flatten()
        tiles = place.last_tile
        rows = packed.weights[place.first_weight * DEPTH :][: len(of_inputs) * whole].view(-1, whole)
        highest = 127 * (packed.table_scale.max() if place.lower == 0 else 1)
        sums = rows[:, :width].double().abs().sum(1) * of_inputs * highest
        assert sums.isfinite().all() and 2**29 < sums.max() < 2**31


@NEEDS_CUDA
@pytest.mark.parametrize(
    ("shape", "time", "batch"),
    [
        ((40, 72, 3), 20, 5),
        ((40, 72, 1), 9, 70),
        ((24, 136, 2), 12, 130),
        ((40, 72, 4), 9, 400),
        ((400, 1152, 3), 20, 3),
    ],
)
def test_outputs_and_state_are_those_of_a_cpu(monkeypatch, shape, time, batch):
    """But for entries of hidden vectors that lie so near to a half that they are rounded the other way, and on."""
    monkeypatch.setattr("ulmfit.models.awd_lstm.cpu_products", lambda: None)  # whose state is kept elsewise
    encoder, tokens = an_encoder(*shape), some_tokens(time, batch)
    with torch.inference_mode():
        expected, state = encoder(tokens, None, encoder.prepare(torch.int8))
        encoder.cuda()
        outputs, ours = encoder(tokens.cuda(), None, encoder.prepare(torch.int8))
    assert outputs.dtype == torch.float32 and outputs.shape == expected.shape
    assert (outputs.cpu() - expected).abs().mean() < 0.5 / 127
    for depth, layer in enumerate(encoder.lstms):
        hidden, cell = (ours[2 * depth + part][0, :, : layer.hidden_size].cpu().float() for part in range(2))
        other_hidden, other_cell = (state[2 * depth + part][0, :, : layer.hidden_size].float() for part in range(2))
        assert (hidden - other_hidden).abs().mean() < 0.5
        assert (cell - other_cell / 2).abs().mean() < 0.1 * cell.abs().mean()


@NEEDS_CUDA
def test_a_row_is_the_same_to_the_bit_alone_in_any_batch_and_however_its_text_is_cut():
    encoder, tokens = an_encoder().cuda(), some_tokens(50, 700).cuda()
    with torch.inference_mode():
        weights = encoder.prepare(torch.int8)
        whole, end = encoder(tokens, None, weights)
        state, parts = None, []
        for part in torch.split(tokens, 13):
            outputs, state = encoder(part, state, weights)
            parts.append(outputs)
        assert torch.equal(torch.cat(parts), whole)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, end, strict=True))
        for rows in (slice(3, 4), slice(600, 665)):
            alone, _ = encoder(tokens[:, rows], None, weights)
            assert torch.equal(alone, whole[:, rows])
