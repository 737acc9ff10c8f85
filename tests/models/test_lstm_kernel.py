"""The one-kernel LSTM and the streams it is read on, against the equations and against layers one after the other."""

import pytest
import torch
from torch import nn

from ulmfit.config import ClassifierConfig, EncoderConfig, EncoderDropouts, HeadConfig
from ulmfit.models import awd_lstm, lstm_kernel
from ulmfit.models import lstm as lstm_module
from ulmfit.models.classifier import Classifier
from ulmfit.models.cuda_streams import LayerStreams
from ulmfit.models.lstm import LstmWeights
from ulmfit.models.lstm_kernel import lstm_by_kernel, suits

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel runs on CUDA alone")


@NEEDS_CUDA
@pytest.mark.parametrize(
    ("time", "batch", "inputs", "hidden"),
    [(1, 1, 16, 16), (7, 5, 24, 40), (20, 64, 400, 1152), (20, 50, 1152, 400), (9, 100, 400, 1152), (5, 200, 64, 1152)],
)
def test_the_kernel_equals_the_equations_forward_and_backward(lstm_by_equations, time, batch, inputs, hidden):
    torch.manual_seed(0)
    layer = nn.LSTM(inputs, hidden).cuda().bfloat16()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    given = torch.randn(time, batch, inputs, device="cuda").bfloat16()
    state = [torch.randn(batch, hidden, device="cuda").bfloat16() / 3 for _ in range(2)]
    flows = [torch.randn(time, batch, hidden, device="cuda").bfloat16(), *(torch.randn_like(part) for part in state)]
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        leaves = [
            tensor.detach().to(dtype).requires_grad_()
            for tensor in (given, *state, *(getattr(layer, name) for name in names))
        ]
        weights = LstmWeights(*leaves[3:])
        read = lstm_by_equations if dtype == torch.float64 else lstm_by_kernel
        outputs, (last_hidden, last_cell) = read(leaves[0], (leaves[1].unsqueeze(0), leaves[2].unsqueeze(0)), weights)
        found = outputs, last_hidden[0], last_cell[0]
        gradients = torch.autograd.grad(found, leaves, [flow.to(dtype) for flow in flows])
        results.append([*found, *gradients])
    for reference, ours in zip(*results, strict=True):
        error = (ours.double() - reference).norm() / reference.norm()
        assert error < 0.01


@NEEDS_CUDA
def test_the_kernel_is_refused_where_its_programs_would_wait_for_one_another_forever():
    device = torch.device("cuda", 0)
    assert suits(64, 1152, device)
    assert not suits(10_000, 1152, device)
    assert not suits(64, 1_000_000, device)


def test_the_kernel_is_for_gpus():
    assert not suits(64, 1152, torch.device("cpu"))


def a_classifier():
    torch.manual_seed(0)
    dropouts = EncoderDropouts(input=0.0, embedding=0.0, weight=0.0, hidden=0.0)
    config = ClassifierConfig(
        vocab_size=500,
        encoder=EncoderConfig(embedding_size=64, hidden_size=128, dropouts=dropouts),
        head=HeadConfig(input_dropout=0.0, hidden_dropout=0.0),
        window=7,
        horizon=40,
    )
    return Classifier(config).cuda()


def read(model, dtype):
    """Logits and gradients for documents of many lengths, some beyond the horizon."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([90, 50, 41, 40, 21, 14, 7, 1])
    tokens = torch.randint(2, 500, (90, len(lengths)), generator=generator).cuda()
    model.zero_grad()
    logits = model(tokens, lengths, dtype=dtype).logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@NEEDS_CUDA
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_layers_side_by_side_give_what_they_give_one_after_the_other(monkeypatch):
    model = a_classifier()
    side_by_side = [read(model, torch.bfloat16) for _ in range(3)][-1]
    monkeypatch.setattr(awd_lstm, "launches_once", lambda *shape: False)
    for ours, theirs in zip(side_by_side, read(model, torch.bfloat16), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)


@NEEDS_CUDA
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_half_precision_is_no_further_from_single_than_cudnn_is(monkeypatch):
    model = a_classifier()
    ours = read(model, torch.bfloat16)
    monkeypatch.setattr(lstm_module, "suits", lambda *shape: False)
    theirs, single = read(model, torch.bfloat16), read(model, torch.float32)
    for our, their, exact in zip(ours, theirs, single, strict=True):
        assert (our - exact).norm() < 1.5 * (their - exact).norm() + 1e-3 * exact.norm() + 1e-6


@NEEDS_CUDA
def test_a_text_alone_on_a_gpu_is_what_it_is_in_a_batch():
    model = a_classifier().eval()
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([90, 50, 41, 40, 21, 14, 7, 1] * 20)
    tokens = torch.randint(2, 500, (90, len(lengths)), generator=generator).cuda()
    with torch.inference_mode():
        together = model(tokens, lengths, dtype=torch.bfloat16).logits.softmax(1)
        for row in (0, 5, 7, 150):
            length = lengths[row : row + 1]
            alone = model(tokens[: int(length), row : row + 1], length, dtype=torch.bfloat16).logits.softmax(1)
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-3)


def test_on_a_cpu_there_is_one_stream():
    streams = LayerStreams(3, torch.device("cpu"))
    tokens, state = torch.zeros(2, 3), (torch.zeros(1, 3, 4),)
    streams.enter(tokens, state)
    with streams.at(0):
        assert streams.lift(tokens, 1) is tokens
    streams.leave(tokens, state)
    streams.join(state)


def test_the_smaller_tile_serves_where_all_of_its_programs_are_on_the_gpu_at_once(monkeypatch):
    monkeypatch.setattr(lstm_kernel, "_places", lambda tile, device: 264 if tile == lstm_kernel.SMALL else 132)
    device = torch.device("cuda")
    assert lstm_kernel._tile(640, 400, device) == lstm_kernel.SMALL  # 10 x 25 programs
    assert lstm_kernel._tile(700, 400, device) == lstm_kernel.LARGE
    assert lstm_kernel._tile(192, 1152, device) == lstm_kernel.SMALL
    assert lstm_kernel._tile(193, 1152, device) == lstm_kernel.LARGE
