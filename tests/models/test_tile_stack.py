"""Layers in int8 by kernels for a CPU's own products against their arithmetic in float64, and rows in any company."""

import itertools
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ulmfit.compute import cpu_kernels_can_be_made, cpu_products
from ulmfit.config import EncoderConfig
from ulmfit.int8_rows import quantise_rows, restore_rows
from ulmfit.models.encoder import build_encoder
from ulmfit.models.lstm_products import LstmWeights
from ulmfit.models.tile_stack import tile_stack
from ulmfit.models.tile_weights import WEIGHT_PEAK, TileStackWeights, quantise_for_tiles

NEEDS_TILES = pytest.mark.skipif(cpu_products() is None, reason="needs a CPU with AMX, VNNI or AVX2, and Numba")

VOCABULARY = 50


def stack(*sizes):
    """Embeddings (VOCABULARY, sizes[0]) and layers from each size to the next."""
    torch.manual_seed(0)
    layers = []
    for inputs, hidden in itertools.pairwise(sizes):
        made = nn.LSTM(inputs, hidden)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        layers.append(LstmWeights(*(tensor.detach() for tensor in made.parameters())))
    return torch.randn(VOCABULARY, sizes[0]), layers


def some_tokens(time, batch):
    return torch.randint(0, VOCABULARY, (time, batch), generator=torch.Generator().manual_seed(1))


def read(tokens, weights, state=None):
    with torch.inference_mode():
        return tile_stack(tokens, state, weights)


@pytest.fixture
def by_equations(int8_lstm_by_equations):
    """(tokens, embeddings, layers) -> the last layer's outputs; embeddings go through int8 as well."""

    def read_all(tokens, embeddings, layers):
        rows = restore_rows(*quantise_rows(embeddings)).double()[tokens]
        for depth, weights in enumerate(layers):
            exact, _ = int8_lstm_by_equations(rows, weights, together=depth > 0, peak=WEIGHT_PEAK)
            rows = (exact * 127).round() / 127
        return exact

    return read_all


@NEEDS_TILES
@pytest.mark.parametrize(("time", "batch"), [(1, 1), (24, 1), (9, 3), (5, 16), (6, 33), (3, 150)])
def test_one_layer_equals_the_same_arithmetic_in_float64(by_equations, time, batch):
    # One layer, and few steps: a value that lies between two integers may be rounded to either, and tips others.
    embeddings, layers = stack(20, 36)
    outputs, (hidden, _) = read(some_tokens(time, batch), quantise_for_tiles(embeddings, layers))
    reference = by_equations(some_tokens(time, batch), embeddings, layers)
    off = (outputs.double() - reference).abs()
    assert off.median() < 1e-6 and (off > 1e-5).float().mean() < 0.01 and off.max() < 0.01
    assert (hidden[0, :, :36] - (outputs[-1] * 127)).abs().max() < 0.501
    assert not hidden[0, :, 36:].any()


@NEEDS_TILES
def test_a_stack_stays_near_float32_and_equals_its_arithmetic_nearly_everywhere(by_equations):
    embeddings, layers = stack(24, 72, 136, 24)
    tokens = some_tokens(30, 40)
    outputs, _ = read(tokens, quantise_for_tiles(embeddings, layers))
    reference = by_equations(tokens, embeddings, layers)
    assert reference.std() > 0.1
    assert (outputs.double() - reference).square().mean().sqrt() < 0.005
    assert (outputs.double() - reference).abs().median() < 1e-5


@NEEDS_TILES
def test_an_encoder_reads_by_it_stays_near_float32_and_carries_its_state():
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(embedding_size=24, hidden_size=40), vocab_size=VOCABULARY).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    tokens = some_tokens(20, 5)
    with torch.inference_mode():
        weights = encoder.prepare(torch.int8)
        reference, _ = encoder(tokens)
        outputs, end = encoder(tokens, None, weights)
        first, state = encoder(tokens[:7], None, weights)
        second, after = encoder(tokens[7:], state, weights)
    assert isinstance(weights, TileStackWeights)
    assert (outputs - reference).square().mean().sqrt() < 0.02 * reference.std() / 0.1
    assert torch.equal(torch.cat([first, second]), outputs)
    assert all(torch.equal(*pair) for pair in zip(after, end, strict=True))


@NEEDS_TILES
@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_the_same_to_the_bit_in_any_batch_and_on_any_number_of_threads(threads, count):
    embeddings, layers = stack(20, 72, 40)
    weights, tokens = quantise_for_tiles(embeddings, layers), some_tokens(21, 150)
    with threads(1):
        whole, end = read(tokens, weights)
    with threads(count):
        for rows in (1, 2, 3, 5, 16, 17, 32, 65, 100, 150):
            fewer, state = read(tokens[:, :rows], weights)
            assert torch.equal(fewer, whole[:, :rows])
            assert all(torch.equal(own, of_all[:, :rows]) for own, of_all in zip(state, end, strict=True))


@NEEDS_TILES
@pytest.mark.parametrize("batch", [1, 6, 70, 130])
@pytest.mark.parametrize("cut", [1, 10, 36])
def test_where_windows_end_changes_no_bit(cut, batch):
    embeddings, layers = stack(20, 72, 40)
    weights, tokens = quantise_for_tiles(embeddings, layers), some_tokens(37, batch)
    whole, end = read(tokens, weights)
    first, state = read(tokens[:cut], weights)
    second, after = read(tokens[cut:], weights, state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(*pair) for pair in zip(after, end, strict=True))


@NEEDS_TILES
def test_sums_at_the_edge_of_int8_are_exact():
    # 127 x 127 a thousand times over: pairs of such products are more than int16 holds.
    embeddings = torch.ones(VOCABULARY, 1024)
    layers = [LstmWeights(torch.ones(64, 1024) / 512, torch.zeros(64, 16), torch.zeros(64), torch.zeros(64))]
    outputs, _ = read(some_tokens(1, 3), quantise_for_tiles(embeddings, layers))
    sigmoid, tanh = 1 / (1 + math.exp(-2)), math.tanh(2)
    np.testing.assert_allclose(outputs.numpy(), sigmoid * math.tanh(sigmoid * tanh), rtol=1e-6)


@NEEDS_TILES
def test_a_saturated_gate_stays_within_int8():
    _, layers = stack(20, 36)
    weights = quantise_for_tiles(
        torch.ones(VOCABULARY, 20), [LstmWeights(*(torch.full_like(t, 9.0) for t in layers[0]))]
    )
    outputs, (hidden, cell) = read(some_tokens(24, 3), weights)
    assert outputs.max() == 1 and hidden.max() == 127
    torch.testing.assert_close(cell[0, :, :36], torch.full((3, 36), 24.0))


ASSEMBLED = """
from ulmfit import compute
compute.cpu_products, compute.cpu_has = lambda: "{products}", lambda feature: "{products}" != "avx_vnni"
import numpy as np
from numba import typeof
from ulmfit.models import tile_kernel
bytes_, floats, ints = (np.zeros((1, 1, 1, 1), dtype) for dtype in (np.int8, np.float32, np.int32))
tiles, offsets = np.zeros((1, 1, 4, 16, 64), np.int8), np.zeros((1, 1, 4, 16), np.int32)
arguments = {{
    "multiply_inputs": (bytes_, tiles, offsets, ints, tile_kernel.TABLES, 1, 0, 1),
    "read_steps": (
        bytes_, floats[0, 0, 0], tiles, offsets, floats, bytes_, bytes_, floats[0], floats[0, 0], ints, ints,
        tile_kernel.TABLES, 1, 1, 0, 1,
    ),
}}
kernel = getattr(tile_kernel, "{kernel}")
kernel.compile(tuple(map(typeof, arguments["{kernel}"])))
(code,) = kernel.inspect_asm().values()
print(code.count("tdpbusd"), code.count("vpdpbusd"), code.count("zmm"))
"""
AMX = "+avx512f,+avx512bw,+avx512dq,+avx512vnni,+amx-tile,+amx-int8"


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not cpu_kernels_can_be_made(), reason="the instructions are those of x86-64"
)
@pytest.mark.parametrize(
    ("products", "kernel", "cpu", "features", "wanted"),
    [
        ("amx", "read_steps", "sapphirerapids", AMX, (True, True, True)),
        ("avx512_vnni", "multiply_inputs", "icelake-server", "+avx512f,+avx512bw,+avx512vnni", (False, True, True)),
        ("avx_vnni", "multiply_inputs", "alderlake", "+avx2,+fma,+avxvnni", (False, True, False)),
    ],
    ids=["amx", "avx512_vnni", "avx_vnni"],
)
def test_the_kernels_for_each_kind_are_assembled_on_any_machine(tmp_path, products, kernel, cpu, features, wanted):
    target = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", ASSEMBLED.format(products=products, kernel=kernel)],
        env={**os.environ, **target},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(int(count) > 0 for count in run.stdout.split()) == wanted  # tiles, VNNI, registers of AVX-512
