"""The LSTM function against `nn.LSTM` and against its own equations."""

import pytest
import torch
from torch import nn

from ulmfit.models.cpu_products import weights_pack
from ulmfit.models.lstm import for_one_step, lstm, lstm_with_bias_column
from ulmfit.models.lstm_products import LstmWeights, SharedWeights
from ulmfit.models.lstm_stack import lstm_by_products

TIME, BATCH, INPUTS, HIDDEN = 9, 4, 6, 10


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.LSTM(INPUTS, HIDDEN)


def weights_of(layer):
    return LstmWeights(layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


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


def test_equals_the_equations(layer, lstm_by_equations):
    inputs = torch.randn(TIME, BATCH, INPUTS)
    state = (torch.randn(1, BATCH, HIDDEN), torch.randn(1, BATCH, HIDDEN))
    torch.testing.assert_close(
        lstm(inputs, state, weights_of(layer)), lstm_by_equations(inputs, state, weights_of(layer))
    )


@pytest.mark.skipif(not weights_pack(torch.bfloat16), reason="needs a processor with AVX-512 or AMX for bfloat16")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_lone_row_in_half_precision_is_the_same_as_in_a_batch(threads):
    # From some width on oneDNN sums a lone row in an order of its own.
    torch.manual_seed(0)
    wide = nn.LSTM(1152, 1152).requires_grad_(False)
    half = LstmWeights(*(tensor.bfloat16() for tensor in weights_of(wide)))
    inputs = torch.randn(3, 4, 1152).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together, state = lstm(inputs, None, half)
        alone, after = lstm(inputs[:, :1], None, half)
        further, _ = lstm(inputs[:, :1], after, half)
        further_together, _ = lstm(inputs, state, half)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together[:, :1]) and torch.equal(further, further_together[:, :1])


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


@pytest.mark.parametrize("kernel", [lstm_by_products, lstm_with_bias_column])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_layer_equals_nn_lstm_forward_and_back(dtype, tolerance, kernel):
    torch.manual_seed(0)
    reference = nn.LSTM(13, 24).to(torch.float64)
    layer = nn.LSTM(13, 24).to(torch.float64)
    layer.load_state_dict(reference.state_dict())
    layer = layer.to(dtype)
    given = [torch.randn(9, 5, 13), torch.randn(1, 5, 24), torch.randn(1, 5, 24)]
    probe = [torch.randn(9, 5, 24), torch.randn(1, 5, 24), torch.randn(1, 5, 24)]

    def run(function, module, kind):
        inputs, hidden, cell = (tensor.to(kind, copy=True).requires_grad_() for tensor in given)
        outputs, (after, cell_after) = function(inputs, (hidden, cell))
        sum(
            (tensor * weight.to(kind)).sum() for tensor, weight in zip((outputs, after, cell_after), probe, strict=True)
        ).backward()
        gradients = [tensor.grad for tensor in (inputs, hidden, cell, *module.parameters())]
        return [outputs.detach(), after.detach(), cell_after.detach(), *gradients]

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = LstmWeights(*(getattr(layer, name) for name in names))
    found = run(lambda inputs, state: kernel(inputs, state, weights), layer, dtype)
    expected = run(reference, reference, torch.float64)
    for mine, wanted in zip(found, expected, strict=True):
        error = (mine.double() - wanted).norm() / wanted.norm()
        # Cells are float32 whatever the dtype.
        assert error < max(tolerance, 1e-6)


@pytest.mark.skipif(not weights_pack(torch.bfloat16), reason="needs a processor with AVX-512 or AMX for bfloat16")
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_packed_weights_change_nothing_but_the_speed(monkeypatch, batch):
    torch.manual_seed(0)
    tensors = [torch.randn(shape).div(5).bfloat16().requires_grad_() for shape in ((96, 13), (96, 24), (96,), (96,))]
    inputs = torch.randn(9, batch, 13).bfloat16().requires_grad_()
    state = (torch.randn(1, batch, 24).bfloat16(), torch.randn(1, batch, 24).bfloat16())
    results = []
    for packed in (True, False):
        monkeypatch.setattr("ulmfit.models.cpu_products.weights_pack", lambda dtype, packed=packed: packed)
        outputs, _ = lstm_by_products(inputs, state, LstmWeights(*tensors))
        results.append([outputs, *torch.autograd.grad(outputs.cos().sum(), [inputs, *tensors])])
    for mine, wanted in zip(*results, strict=True):
        assert (mine - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("frozen", ["inputs", "weights"])
def test_the_layer_by_products_gives_no_gradient_to_what_is_frozen(frozen):
    torch.manual_seed(0)
    inputs = torch.randn(4, 2, 3, requires_grad=frozen != "inputs")
    tensors = [torch.randn(shape, requires_grad=frozen != "weights") for shape in ((20, 3), (20, 5), (20,), (20,))]
    state = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    outputs, _ = lstm_by_products(inputs, state, LstmWeights(*tensors))
    outputs.sum().backward()
    assert (inputs.grad is None) == (frozen == "inputs")
    assert all((tensor.grad is None) == (frozen == "weights") for tensor in tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_windows_that_share_weights_give_the_gradients_of_the_whole(dtype, tolerance):
    torch.manual_seed(0)
    reference = nn.LSTM(13, 24).to(dtype).double()
    layer = nn.LSTM(13, 24).to(dtype)
    layer.load_state_dict(reference.state_dict())
    inputs = torch.randn(11, 5, 13).to(dtype)
    wanted, _ = reference(inputs.double())
    wanted.cos().sum().backward()
    shared, state, outputs = SharedWeights(weights_of(layer)), (torch.zeros(1, 5, 24, dtype=dtype),) * 2, []
    for window in inputs.split(4):
        found, state = lstm(window, state, shared)
        outputs.append(found)
    torch.cat(outputs).double().cos().sum().backward()
    assert (torch.cat(outputs).double() - wanted).norm() < max(tolerance, 1e-6) * wanted.norm()
    for mine, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        assert mine.grad.dtype == dtype
        assert (mine.grad.double() - theirs.grad).norm() < tolerance * theirs.grad.norm()


def test_a_second_backward_pass_over_what_the_first_used_up_is_refused():
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((20, 3), (20, 5), (20,), (20,))]
    outputs, _ = lstm_by_products(torch.randn(4, 2, 3), (torch.zeros(1, 2, 5),) * 2, LstmWeights(*tensors))
    outputs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_only_training_in_half_precision_on_a_cpu_shares_weights(layer):
    half = LstmWeights(*(tensor.bfloat16() for tensor in weights_of(layer)))
    assert isinstance(for_one_step(half), SharedWeights)
    assert for_one_step(weights_of(layer)) == weights_of(layer)
    with torch.no_grad():
        assert for_one_step(half) is half
