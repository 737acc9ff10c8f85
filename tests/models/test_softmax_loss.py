"""Fused cross entropy against `cross_entropy(linear(...))`, forward and backward."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ulmfit.models import softmax_kernel, softmax_loss
from ulmfit.models.softmax_loss import linear_cross_entropy

ROWS, SIZE, CLASSES = 23, 7, 31
NAMES = ("hidden", "weight", "bias")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel runs on CUDA alone")


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 5 rows in float32: 23 rows leave a ragged last one."""
    monkeypatch.setattr(softmax_loss, "CHUNK_BYTES", {"cpu": 5 * CLASSES * 4, "cuda": 5 * CLASSES * 4})


def problem(rows=ROWS, size=SIZE, classes=CLASSES, *, dtype=torch.float32, device="cpu", seed=0, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size, generator=generator)
    weight = torch.randn(classes, size, generator=generator)
    bias = torch.randn(classes, generator=generator)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return [tensor.to(device, dtype) for tensor in (hidden, weight, bias)], targets.to(device)


def plain(hidden, weight, bias, targets):
    logits = functional.linear(hidden, weight, bias).float()
    return functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


def loss_and_gradients(function, tensors, targets, learning=(True, True, True), scale=1.0):
    leaves = [tensor.detach().clone().requires_grad_(learns) for tensor, learns in zip(tensors, learning, strict=True)]
    loss = function(*leaves, targets)
    (loss * scale).backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("scale", [1.0, 0.01, -3.0])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("small_chunks")
def test_equals_the_plain_loss_with_a_ragged_last_chunk(ignored, scale):
    tensors, targets = problem(ignored=ignored)
    ours = loss_and_gradients(linear_cross_entropy, tensors, targets, scale=scale)
    torch.testing.assert_close(ours, loss_and_gradients(plain, tensors, targets, scale=scale))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.usefixtures("small_chunks")
def test_threads_with_chunks_of_their_own_come_to_the_plain_loss_and_always_the_same(threads, count):
    tensors, targets = problem()
    with threads(count):
        ours, again = (loss_and_gradients(linear_cross_entropy, tensors, targets) for _ in range(2))
    torch.testing.assert_close(ours, again, rtol=0, atol=0)
    torch.testing.assert_close(ours, loss_and_gradients(plain, tensors, targets))


@pytest.mark.parametrize("learning", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.usefixtures("small_chunks")
def test_only_what_learns_gets_a_gradient_and_the_right_one(learning):
    tensors, targets = problem()
    _, ours = loss_and_gradients(linear_cross_entropy, tensors, targets, learning)
    _, reference = loss_and_gradients(plain, tensors, targets, learning)
    for name, gradient, expected in zip(NAMES, ours, reference, strict=True):
        assert (gradient is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(gradient, expected)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    size=st.integers(1, 6),
    classes=st.integers(1, 9),
    chunk=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_chunk_equals_the_plain_loss(rows, size, classes, chunk, seed):
    tensors, targets = problem(rows, size, classes, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax_loss, "CHUNK_BYTES", {"cpu": chunk * classes * 4})
        ours = loss_and_gradients(linear_cross_entropy, tensors, targets)
    torch.testing.assert_close(ours, loss_and_gradients(plain, tensors, targets), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_the_path_without_gradient_equals_the_one_with():
    tensors, targets = problem()
    with_gradient, _ = loss_and_gradients(linear_cross_entropy, tensors, targets)
    without = linear_cross_entropy(*tensors, targets)
    assert not without.requires_grad and without.dtype == torch.float32
    torch.testing.assert_close(without, with_gradient)
    with torch.no_grad():
        disabled = linear_cross_entropy(*(tensor.requires_grad_() for tensor in tensors), targets)
    assert torch.equal(disabled, without) and not disabled.requires_grad


def test_no_rows_give_no_loss_and_no_gradient():
    tensors, targets = problem(rows=0)
    loss, gradients = loss_and_gradients(linear_cross_entropy, tensors, targets)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.usefixtures("small_chunks")
def test_half_precision_stays_near_single():
    tensors, targets = problem()
    reference, expected = loss_and_gradients(plain, tensors, targets)
    loss, gradients = loss_and_gradients(linear_cross_entropy, [tensor.bfloat16() for tensor in tensors], targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=0.01, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), wanted, rtol=0.05, atol=0.03 * wanted.abs().max().item())


@pytest.mark.usefixtures("small_chunks")
def test_master_weights_get_gradients_in_their_own_precision():
    tensors, targets = problem()
    rounded = [tensor.bfloat16() for tensor in tensors]
    mixed = [rounded[0], *(tensor.float() for tensor in rounded[1:])]
    loss, gradients = loss_and_gradients(linear_cross_entropy, mixed, targets)
    reference, expected = loss_and_gradients(linear_cross_entropy, rounded, targets)
    assert torch.equal(loss, reference)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(tuple(gradient.bfloat16() for gradient in gradients), tuple(expected))


@pytest.mark.parametrize("learning", [(True, True), (True, False), (False, True)])
@pytest.mark.usefixtures("small_chunks")
def test_both_orders_of_the_products_give_the_same(learning):
    tensors, targets = problem()
    by_cpu, by_gpu = (kernel(*tensors, targets, *learning) for kernel in (softmax_loss._on_cpu, softmax_loss._on_gpu))
    torch.testing.assert_close(by_cpu, by_gpu)


def test_huge_logits_stay_finite():
    tensors, targets = problem()
    tensors[0] *= 1e4
    ours = loss_and_gradients(linear_cross_entropy, tensors, targets)
    torch.testing.assert_close(ours, loss_and_gradients(plain, tensors, targets), rtol=1e-4, atol=1e-2)


@pytest.mark.usefixtures("small_chunks")
def test_a_tied_embedding_gets_the_sum_of_both_gradients():
    (_, weight, bias), targets = problem()
    tokens = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))

    def tied(function):
        table = weight.clone().requires_grad_()
        function(functional.embedding(tokens, table).tanh(), table, bias, targets).backward()
        return table.grad

    torch.testing.assert_close(tied(linear_cross_entropy), tied(plain))


@pytest.mark.usefixtures("small_chunks")
def test_two_losses_over_one_weight_add_up():
    (hidden, weight, bias), targets = problem()

    def twice(function):
        leaf = weight.clone().requires_grad_()
        (function(hidden, leaf, bias, targets) + 2 * function(-hidden, leaf, bias, targets)).backward()
        return leaf.grad

    torch.testing.assert_close(twice(linear_cross_entropy), twice(plain))


def check_kernel(logits, targets, *, rtol, atol):
    """`losses_and_gradient` against autograd in float64."""
    reference = logits.double().requires_grad_()
    expected = functional.cross_entropy(reference, targets, reduction="none", ignore_index=-100)
    expected.sum().backward()
    losses, gradient = softmax_kernel.losses_and_gradient(logits, targets)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), reference.grad, rtol=rtol, atol=atol)


def test_the_plain_kernel_equals_autograd():
    logits = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    check_kernel(logits, problem()[1], rtol=1e-5, atol=1e-6)


def test_the_greatest_of_a_row_is_found_whatever_the_signs():
    rows = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows[:50] = -rows[:50].abs()
    rows[50:60] = 0
    rows[60], rows[61, 3], rows[62], rows[62, 7] = -torch.inf, torch.inf, -3, -0.0
    found, wanted = softmax_kernel._row_maxima(rows), rows.amax(1)
    assert torch.equal(found, wanted) and found.dtype == torch.bfloat16
    rows[:] = torch.nan
    assert softmax_kernel._row_maxima(rows).isnan().all() and softmax_kernel._row_maxima(-rows).isnan().all()


@NEEDS_CUDA
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-4, 1e-6), (torch.bfloat16, 1e-2, 1e-4)])
@pytest.mark.parametrize("classes", [2, 1000, 8192, 8193, 20_011])
def test_the_cuda_kernel_equals_autograd(classes, dtype, rtol, atol):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(19, classes, generator=generator)).to("cuda", dtype)
    targets = torch.randint(0, classes, (19,), generator=generator).cuda()
    targets[::4] = -100
    targets[1], targets[2] = 0, classes - 1
    check_kernel(logits, targets, rtol=rtol, atol=atol)
    assert (logits[::4] == 0).all()


@NEEDS_CUDA
# Logits near 30 are off by up to .06 in bfloat16, and so are the probabilities' logarithms.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_the_cuda_path_equals_the_plain_loss(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(softmax_loss, "CHUNK_BYTES", {"cuda": 13 * 9001 * 2})
    tensors, targets = problem(50, 64, 9001, dtype=dtype, device="cuda")
    loss, gradients = loss_and_gradients(linear_cross_entropy, tensors, targets, scale=0.1)
    reference, expected = loss_and_gradients(plain, [tensor.double() for tensor in tensors], targets, scale=0.1)
    torch.testing.assert_close(loss, reference, rtol=tolerance, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        atol = tolerance * wanted.abs().max().item()
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=atol)


def test_without_gradients_the_loss_in_bfloat16_is_that_of_float32(monkeypatch):
    monkeypatch.setattr("ulmfit.models.softmax_loss.choose_dtype", lambda precision, device: torch.bfloat16)
    (hidden, weight, bias), targets = problem(rows=40, size=16, classes=500)
    half = hidden.to(torch.bfloat16)
    logits = functional.linear(half, weight.to(torch.bfloat16), bias.to(torch.bfloat16))
    wanted = functional.cross_entropy(logits.double(), targets, reduction="sum", ignore_index=-100)
    with torch.no_grad():
        found = linear_cross_entropy(half, weight, bias, targets)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_where_a_cpu_does_not_multiply_bfloat16_products_are_of_float32(monkeypatch):
    monkeypatch.setattr("ulmfit.models.softmax_loss.choose_dtype", lambda precision, device: torch.float32)
    tensors, targets = problem()
    half = [tensor.bfloat16() for tensor in tensors]
    loss, gradients = loss_and_gradients(linear_cross_entropy, half, targets)
    wanted, expected = loss_and_gradients(linear_cross_entropy, [tensor.float() for tensor in half], targets)
    assert torch.equal(loss, wanted)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3
    torch.testing.assert_close(tuple(gradients), tuple(gradient.bfloat16() for gradient in expected))
