"""A trial makes the stage's own steps and tells seconds a token."""

import itertools

import pytest
import torch

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training import trial
from ulmfit.training.loop import StepLoss
from ulmfit.training.stage import Stage


class Clock:
    """A second passes with each look."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def stage():
    lower, upper = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
    model = torch.nn.Sequential(lower, upper)

    def loss(batch, state):
        total = model(batch).square().mean()
        return StepLoss(total, total.detach(), None, 10)

    return Stage(
        name="some stage",
        model=model,
        groups={"lower": list(lower.parameters()), "upper": list(upper.parameters())},
        phases=(Phase(rate=1.0),),
        optimizer=OptimizerConfig(),
        batches=lambda epoch, start: iter([torch.full((2, 3), epoch + 1.0), torch.ones(2, 3)]),
        steps=lambda epoch: 2,
        loss=loss,
    )


def test_seconds_are_divided_by_the_tokens_after_the_first_step(stage, monkeypatch):
    monkeypatch.setattr(trial, "time", Clock())
    # The clock stands at 1 after the first step; three more steps of 10 tokens end at 4.
    assert trial.seconds_a_token(stage, groups=None, seconds=3.0) == pytest.approx(3 / 30)


def test_no_more_steps_are_made_than_tell_something(stage, monkeypatch):
    monkeypatch.setattr(trial, "time", Clock())
    assert trial.seconds_a_token(stage, groups=None, seconds=1e9) == pytest.approx(
        trial.MOST_STEPS / (trial.MOST_STEPS * 10)
    )


def test_only_the_groups_asked_for_learn(stage):
    before = [parameter.clone() for parameter in stage.model.parameters()]
    assert trial.seconds_a_token(stage, groups=(-1,), seconds=0.0) > 0
    moved = [not torch.equal(old, new) for old, new in zip(before, stage.model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_epochs_follow_each_other(stage):
    seen = [float(batch[0, 0]) for batch in itertools.islice(trial._without_end(stage), 6)]
    assert seen == [1, 1, 2, 1, 3, 1]
