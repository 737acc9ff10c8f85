"""The loss of rows of bfloat16 logits and its gradient, by a kernel, against PyTorch in float64."""

import pytest
import torch

from ulmfit.compute import cpu_kernels_can_be_made
from ulmfit.models.softmax_kernel import losses_and_gradient

pytestmark = pytest.mark.skipif(not cpu_kernels_can_be_made(), reason="needs Numba")


def by_pytorch(logits, targets):
    wide = logits.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(wide, targets, reduction="none", ignore_index=-100)
    losses.sum().backward()
    return losses.detach(), wide.grad


def some_logits(rows, classes, *, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, classes, generator=generator) * scale).to(torch.bfloat16)
    return logits, torch.randint(0, classes, (rows,), generator=generator)


@pytest.mark.parametrize("classes", [1, 2, 31, 32, 33, 64, 1000])
def test_equals_cross_entropy_whatever_is_left_over(classes):
    logits, targets = some_logits(9, classes)
    targets[3] = -100
    targets[4] = classes - 1
    expected, gradient = by_pytorch(logits, targets)
    losses, found = losses_and_gradient(logits.clone(), targets)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), gradient, rtol=2**-8, atol=1e-7)


def test_logits_of_any_size_give_finite_losses():
    logits, targets = some_logits(6, 100, scale=1e30)
    logits[0] = -3e38
    logits[1, 7] = 3e38
    targets[1] = 7
    losses, gradient = losses_and_gradient(logits, targets)
    assert losses.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(losses[:2], torch.tensor([torch.tensor(100.0).log(), 0.0]))


@pytest.mark.parametrize("place", [5, 98])
def test_what_is_no_number_shows_in_the_loss(place):
    logits, targets = some_logits(2, 100)
    logits[1, place] = torch.nan
    losses, _ = losses_and_gradient(logits, targets)
    assert losses[0].isfinite() and losses[1].isnan()


def test_rows_alone_are_the_same_to_the_bit():
    logits, targets = some_logits(8, 333)
    losses, gradient = losses_and_gradient(logits.clone(), targets)
    alone, own = losses_and_gradient(logits[5:6].clone(), targets[5:6])
    assert torch.equal(alone, losses[5:6]) and torch.equal(own, gradient[5:6])
