"""`fit` against plain loops; a broken run against an unbroken one."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training.loop import StepLoss, fit
from ulmfit.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors

STEPS = 12


class Recurrent(nn.Module):
    """A small model whose state is carried and whose dropout draws random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 5)
        self.last = nn.Linear(5, 1)

    def loss(self, batch, state):
        outputs, after = self.lstm(functional.dropout(batch, 0.4), state)
        total = self.last(functional.dropout(outputs, 0.4)).cos().mean()
        return StepLoss(total, total.detach(), tuple(tensor.detach() for tensor in after), batch.numel())


def some_batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 2, 3, generator=generator) for _ in range(STEPS)]


def adamw(model):
    return build_optimizer({"all": tuple(model.parameters())}, Phase(rate=0.05), OptimizerConfig())


def sgd(model, rate=1.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer.param_groups[0]["peak"] = rate
    return optimizer


def run(model, optimizer, batches, *, seed=(7,), **rest):
    settings = {"loss": model.loss, "schedule": lambda progress: 1 - progress, "total": STEPS, **rest}
    return fit(batches, optimizer=optimizer, seed=seed, **settings)


def equal(ours, theirs):
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("broken_at", range(1, STEPS))
def test_a_run_resumed_at_any_step_equals_an_unbroken_one_bit_by_bit(broken_at):
    whole = Recurrent()
    unbroken = [step.loss for step in run(whole, adamw(whole), some_batches())]

    first = Recurrent()
    optimizer = adamw(first)
    before = list(itertools.islice(run(first, optimizer, some_batches()), broken_at))
    resumed = copy.deepcopy(first)
    continued = adamw(resumed)
    load_optimizer_tensors(continued, optimizer_tensors(optimizer))
    torch.manual_seed(99)  # what was drawn outside must not matter
    rest = run(resumed, continued, some_batches()[broken_at:], start=broken_at, state=before[-1].state)
    after = list(rest)

    assert [step.number for step in before + after] == list(range(STEPS))
    assert torch.equal(torch.stack(unbroken), torch.stack([step.loss for step in before + after]))
    assert equal(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(("other_seed", "same"), [((7,), True), ((8,), False), ((7, 0), False)])
def test_random_numbers_follow_from_the_seed(other_seed, same):
    results = []
    for seed in ((7,), other_seed):
        model = Recurrent()
        for _ in run(model, sgd(model), some_batches(), seed=seed):
            pass
        results.append(model.state_dict())
    assert equal(*results) == same


def test_each_step_draws_other_random_numbers():
    drawn = []

    def loss(batch, state):
        drawn.append(torch.rand(3).tolist())
        total = (weight * batch).sum()
        return StepLoss(total, total.detach(), None, 1)

    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight], "peak": 0.1}])
    list(fit(some_batches(), loss=loss, optimizer=optimizer, schedule=lambda _: 1.0, total=STEPS, seed=(7,)))
    assert len({tuple(numbers) for numbers in drawn}) == STEPS


def test_a_step_is_the_gradient_times_the_scheduled_rate():
    model = Recurrent()
    optimizer = sgd(model, rate=0.5)
    previous = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in run(model, optimizer, some_batches(), start=0):
        rate = 0.5 * (1 - step.number / STEPS)
        assert step.share == 1 - step.number / STEPS and optimizer.param_groups[0]["lr"] == rate
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), previous[name] - rate * parameter.grad)
            previous[name] = parameter.detach().clone()


def test_gradients_do_not_pile_up_from_step_to_step():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "peak": 1.0}])

    def loss(batch, state):
        return StepLoss((weight * batch).sum(), torch.zeros(()), None, 1)

    list(fit([torch.ones(1)] * 4, loss=loss, optimizer=optimizer, schedule=lambda _: 1.0, total=4, seed=(0,)))
    assert weight.item() == -4


def test_state_goes_from_batch_to_batch_and_tokens_are_passed_on():
    seen = []

    def loss(batch, state):
        seen.append(state)
        return StepLoss((weight * batch).sum(), batch.sum(), (batch,), int(batch))

    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight], "peak": 0.1}])
    batches = [torch.tensor([float(number)]) for number in range(4)]
    steps = list(fit(batches, loss=loss, optimizer=optimizer, schedule=lambda _: 1.0, total=4, seed=(0,)))
    assert seen == [None, *[(batch,) for batch in batches[:-1]]]
    assert [step.tokens for step in steps] == [0, 1, 2, 3]
    assert [step.state for step in steps] == [(batch,) for batch in batches]


@pytest.mark.parametrize("clip", [0.01, 1e6, None])
def test_the_norm_of_the_whole_gradient_is_clipped(clip):
    model, plain = Recurrent(), Recurrent()
    batch = some_batches()[0]
    next(iter(run(plain, sgd(plain), [batch])))
    gradients = [parameter.grad for parameter in plain.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    next(iter(run(model, sgd(model), [batch], gradient_clip=clip)))
    factor = 1.0 if clip is None else min(1.0, clip / norm.item())
    assert (factor < 1) == (clip == 0.01)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-4, atol=1e-8)


def test_no_batches_make_no_step():
    model = Recurrent()
    before = copy.deepcopy(model.state_dict())
    assert list(run(model, sgd(model), [])) == []
    assert equal(before, model.state_dict())


def test_a_step_is_timed_part_by_part_and_changes_nothing():
    timed, plain, parts = Recurrent(), Recurrent(), []
    for _ in run(timed, adamw(timed), some_batches()[:2], lap=parts.append):
        parts.append("caller")
    for _ in run(plain, adamw(plain), some_batches()[:2]):
        pass
    assert parts == ["data", "forward", "backward", "optimizer", "caller"] * 2
    assert equal(timed.state_dict(), plain.state_dict())
