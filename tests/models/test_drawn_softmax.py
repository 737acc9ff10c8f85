"""Gradients from probabilities rounded at random: right on average, and no noisier than said."""

import pytest
import torch
from torch.nn import functional

from ulmfit.models import drawn_softmax
from ulmfit.models.drawn_softmax import draws_serve
from ulmfit.models.int8_products import products_serve, weight_peak
from ulmfit.models.softmax_loss import linear_cross_entropy

pytestmark = pytest.mark.skipif(not products_serve(), reason="needs AMX, VNNI or AVX2, and Numba")

ROWS, SIZE, CLASSES, STEPS = 24, 32, 4099, 256
DRAWS = 200


def problem(*, spread=1.0, ignored=(3, 17)):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, SIZE, generator=generator).tanh().to(torch.bfloat16)
    weight = torch.randn(CLASSES, SIZE, generator=generator) * spread
    bias = torch.randn(CLASSES, generator=generator) * 0.3
    targets = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    targets[list(ignored)] = -100
    return hidden, weight, bias, targets


def gradients(hidden, weight, bias, targets, *, drawn, dtype=torch.bfloat16):
    leaves = [
        hidden.to(dtype).requires_grad_(),
        *(tensor.to(torch.promote_types(dtype, torch.float32)).requires_grad_() for tensor in (weight, bias)),
    ]
    loss = linear_cross_entropy(*leaves, targets, drawn=drawn)
    return [loss.detach().double(), *(found.double() for found in torch.autograd.grad(loss, leaves))]


@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_the_loss_is_that_of_the_logits_and_gradients_are_right_on_average(spread):
    given = problem(spread=spread)
    torch.manual_seed(0)
    drawn = [gradients(*given, drawn=True) for _ in range(DRAWS)]
    exact = gradients(*given, drawn=False, dtype=torch.float64)
    assert abs(drawn[0][0] - exact[0]) < 2e-3 * exact[0]
    for place in (1, 2, 3):
        every = torch.stack([found[place] for found in drawn])
        error = (every.mean(0) - exact[place]).norm()
        noise = (every - every.mean(0)).square().mean(0).sum().sqrt()
        # Of logits in as many bits as weights have here, and of a mean over so many draws.
        assert error < 0.02 * 127 / weight_peak() * exact[place].norm() + 1.3 * noise / DRAWS**0.5


def test_a_bias_learns_from_noise_of_at_most_a_step_times_its_probabilities():
    given = problem(spread=0.5)
    torch.manual_seed(1)
    every = torch.stack([gradients(*given, drawn=True)[3] for _ in range(DRAWS)])
    hidden, weight, bias, targets = (tensor.double() if tensor.is_floating_point() else tensor for tensor in given)
    probabilities = functional.linear(hidden, weight, bias).softmax(1)[targets >= 0].sum(0)
    assert every.var(0).sum() <= 1.2 * probabilities.sum() / STEPS


def test_any_number_of_threads_draws_the_same(threads):
    found = []
    for count in (1, 2, 3):
        torch.manual_seed(2)
        with threads(count):
            found.append(gradients(*problem(), drawn=True))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_a_generator_in_another_state_draws_otherwise():
    torch.manual_seed(3)
    first, second = (gradients(*problem(), drawn=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[2], second[2])


def test_rows_left_out_have_no_gradient():
    hidden, weight, bias, targets = problem()
    _, of_hidden, *_ = gradients(hidden, weight, bias, targets, drawn=True)
    assert not of_hidden[targets < 0].any()
    assert of_hidden[targets >= 0].any(1).all()


def test_all_rows_left_out_come_to_zero():
    given = problem(ignored=range(ROWS))
    assert not any(found.any() for found in gradients(*given, drawn=True))


def test_a_gradient_is_scaled_by_what_arrives():
    hidden, weight, bias, targets = problem()
    found = []
    for scale in (1.0, -0.5):
        torch.manual_seed(4)
        leaf = weight.clone().requires_grad_()
        (linear_cross_entropy(hidden, leaf, bias, targets, drawn=True) * scale).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], -0.5 * found[0])


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_makes_a_loss_that_is_none(place, value):
    given = problem()
    given[place][5] = value
    assert not torch.isfinite(gradients(*given, drawn=True)[0])


def test_few_classes_float32_and_odd_sizes_are_not_drawn():
    hidden, *_ = problem()
    assert draws_serve(hidden, drawn_softmax.LEAST_CLASSES)
    assert not draws_serve(hidden, drawn_softmax.LEAST_CLASSES - 1)
    assert not draws_serve(hidden.float(), CLASSES)
    assert not draws_serve(hidden[:, :20], CLASSES)
