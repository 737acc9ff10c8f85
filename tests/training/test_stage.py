"""A whole stage: broken anywhere and resumed it equals an unbroken run; the best is kept; nothing wrong is saved."""

import copy
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ulmfit.config import EncoderConfig, EncoderDropouts, LanguageModelConfig, OptimizerConfig, Phase, TuneConfig
from ulmfit.errors import CheckpointError, OutputError, TrainingError
from ulmfit.flags import with_settings
from ulmfit.models.encoder import detach
from ulmfit.models.language_model import LanguageModel
from ulmfit.training import stage as stage_module
from ulmfit.training.checkpoint import Checkpoints
from ulmfit.training.events import EpochEnded, Note, Progress, StageStarted
from ulmfit.training.loop import StepLoss
from ulmfit.training.optimizer import build_optimizer
from ulmfit.training.schedules import schedule_of
from ulmfit.training.stage import Stage, run_stage

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY, SIZES = 20, (3, 4, 2)
PHASES = (Phase(groups=(-1,), epochs=1, rate=0.05), Phase(epochs=2, rate=0.05, schedule="one_cycle"))
CLOCKS = {"seconds", "tokens_per_second"}


class Killed(BaseException):
    """What no handler of an error stops."""


class Killer:
    """Ends the run at its n-th tick; None never."""

    def __init__(self, at=None):
        self.left, self.ticks = at, 0

    def __call__(self, *_):
        self.ticks += 1
        if self.left is not None and self.ticks > self.left:
            raise Killed


class Tiny(nn.Module):
    """A language model in small: embedding, LSTM with carried state, BatchNorm, dropout."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.lstm = nn.LSTM(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, VOCABULARY)

    def groups(self):
        head = (*self.norm.parameters(), *self.last.parameters())
        return {"embedding": (self.embedding.weight,), "lstm": tuple(self.lstm.parameters()), "head": head}

    def loss(self, text, state):
        dropped = functional.dropout(self.embedding(text[:-1]), 0.2, self.training)
        outputs, after = self.lstm(dropped, state)
        logits = self.last(self.norm(outputs.flatten(0, 1)))
        total = functional.cross_entropy(logits, text[1:].flatten())
        return StepLoss(total, total.detach(), tuple(tensor.detach() for tensor in after), text[1:].numel())


def window(*seed):
    number = sum(part * 100**power for power, part in enumerate(seed))
    return torch.randint(0, VOCABULARY, (6, 3), generator=torch.Generator().manual_seed(number))


def make_stage(model, *, tick=None, script=None, spoil=None, **rest):
    """A stage over `model` that ticks in every place where code outside of it runs.

    `script` gives validation losses by epoch instead of measured ones; `spoil(loss, epoch, step)` changes a loss.
    """
    now, tick = {}, tick or Killer()

    def batches(epoch, first):
        now.update(epoch=epoch)
        for step in range(first, SIZES[epoch]):
            tick()
            now.update(step=step)
            yield window(epoch, step)

    def loss(batch, state):
        tick()
        result = model.loss(batch, state)
        if spoil is None:
            return result
        total = spoil(result.total, now["epoch"], now["step"])
        return StepLoss(total, total.detach(), result.state, result.tokens)

    def evaluate():
        tick()
        if script is not None:
            return {"valid_loss": script[now["epoch"]]}
        total = model.loss(window(7, 7), None).total.item()
        return {"valid_loss": total, "valid_perplexity": math.exp(total)}

    settings = {"phases": PHASES, "optimizer": OptimizerConfig(), "seed": 3, "evaluate": evaluate, **rest}
    return Stage(
        name="tuning",
        model=model,
        groups=model.groups(),
        batches=batches,
        steps=lambda epoch: SIZES[epoch],
        loss=loss,
        **settings,
    )


def run(model, folder, *, resume=False, tick=None, every=0.0, report=None, **rest):
    """Run a stage over `model` whose reports and writes tick as well."""
    tick = tick or Killer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "PROGRESS_SECONDS", 0.0)
        patch.setattr(os, "fsync", tick)
        return run_stage(
            make_stage(model, tick=tick, **rest),
            folder=folder,
            resume=resume,
            checkpoint_seconds=every,
            report=report or tick,
        )


def timeless(history):
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in history]


def same_weights(ours, theirs):
    theirs = theirs if isinstance(theirs, dict) else theirs.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The model, history and number of ticks of a run that nothing stops."""
    model, tick = Tiny(), Killer()
    history = run(model, tmp_path_factory.mktemp("unbroken"), tick=tick)
    return model, timeless(history), tick.ticks


def run_with_kills(folder, kills, **rest):
    """Run, be killed after each number of ticks in turn, each time in a fresh process's state, then finish."""
    resume = False
    for at in kills:
        try:
            model = Tiny()
            history = run(model, folder, resume=resume, tick=Killer(at), **rest)
        except Killed:
            resume = True
        else:
            return model, history
    model = Tiny()
    torch.manual_seed(len(kills))  # numbers drawn outside must not matter
    return model, run(model, folder, resume=resume, **rest)


# --- resuming -------------------------------------------------------------------------------------------------------


def test_killed_anywhere_and_resumed_it_equals_the_unbroken_run_bit_by_bit(tmp_path, unbroken):
    reference, expected, ticks = unbroken
    for at in range(ticks):
        model, history = run_with_kills(tmp_path / str(at), [at])
        assert timeless(history) == expected, f"killed at tick {at} of {ticks}"
        assert same_weights(model, reference), f"killed at tick {at} of {ticks}"


@settings(max_examples=10, deadline=None)
@given(kills=st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_killed_again_and_again_it_equals_the_unbroken_run(tmp_path_factory, unbroken, kills):
    reference, expected, _ = unbroken
    model, history = run_with_kills(tmp_path_factory.mktemp("run"), kills)
    assert timeless(history) == expected
    assert same_weights(model, reference)


@pytest.mark.parametrize("at", [10, 30, 60])
def test_without_checkpoints_between_epochs_it_equals_the_unbroken_run(tmp_path, unbroken, at):
    model, history = run_with_kills(tmp_path, [at], every=math.inf)
    assert timeless(history) == unbroken[1]
    assert same_weights(model, unbroken[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_language_model_resumes_bit_by_bit(tmp_path, dtype):
    rates = EncoderDropouts(input=0.2, embedding=0.1, weight=0.3, hidden=0.2)
    encoder = EncoderConfig(embedding_size=8, hidden_size=12, layers=2, dropouts=rates)

    class Whole(LanguageModel):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__(LanguageModelConfig(vocab_size=VOCABULARY, encoder=encoder))

        def groups(self):
            return {group.name: group.parameters for group in self.layer_groups()}

        def loss(self, text, state):
            result = super().loss(text[:-1], text[1:], state, dtype=dtype, activation_regularisation=2.0)
            return StepLoss(result.total, result.total.detach(), detach(result.state), text[1:].numel())

    reference, tick = Whole(), Killer()
    expected = timeless(run(reference, tmp_path / "unbroken", tick=tick))
    for at in range(15, tick.ticks, 20):
        with pytest.raises(Killed):
            run(Whole(), tmp_path / str(at), tick=Killer(at))
        model = Whole()
        assert timeless(run(model, tmp_path / str(at), resume=True)) == expected
        assert same_weights(model, reference)


def test_all_it_needs_is_in_the_checkpoint(tmp_path, unbroken):
    with pytest.raises(Killed):
        run(Tiny(), tmp_path, tick=Killer(60))
    stranger = Tiny(seed=99)
    run(stranger, tmp_path, resume=True)
    assert same_weights(stranger, unbroken[0])


def test_a_finished_run_resumed_gives_the_same_result_without_a_step(tmp_path, unbroken):
    history = run(Tiny(), tmp_path)
    again, events = Tiny(seed=99), []
    assert run(again, tmp_path, resume=True, report=events.append) == history
    assert same_weights(again, unbroken[0])
    assert events == [StageStarted("tuning", sum(SIZES), sum(SIZES))]


def test_resuming_where_nothing_was_saved_starts_afresh(tmp_path, unbroken):
    model = Tiny()
    assert timeless(run(model, tmp_path, resume=True)) == unbroken[1]
    assert same_weights(model, unbroken[0])


def test_without_resume_it_starts_afresh(tmp_path, unbroken):
    run(Tiny(seed=5), tmp_path, script=[0.0, 0.0, 0.0])
    model = Tiny()
    assert timeless(run(model, tmp_path)) == unbroken[1]
    assert same_weights(model, unbroken[0])


def test_a_damaged_newest_checkpoint_costs_a_note_and_not_the_result(tmp_path, unbroken):
    with pytest.raises(Killed):
        run(Tiny(), tmp_path, tick=Killer(60))
    newest = sorted((tmp_path / "latest").glob("checkpoint-*"))[-1]
    (newest / "facts.json").write_text("{")
    model, events = Tiny(), []
    assert timeless(run(model, tmp_path, resume=True, report=events.append)) == unbroken[1]
    assert same_weights(model, unbroken[0])
    assert isinstance(events[0], Note) and newest.name in events[0].text


def test_all_checkpoints_damaged_is_an_error(tmp_path):
    run(Tiny(), tmp_path)
    for facts in (tmp_path / "latest").glob("*/facts.json"):
        facts.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        run(Tiny(), tmp_path, resume=True)


IDENTITY = {"seed": 1, "data": "abc", "phases": ({"groups": (-1,), "rate": 0.1},), "patience": None}


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 2), ("data", "abd"), ("phases", ({"groups": (-2,), "rate": 0.1},)), ("new", 1)]
)
def test_a_changed_setting_is_refused_by_name_with_both_values(tmp_path, name, value):
    run(Tiny(), tmp_path, identity=IDENTITY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=rf"cannot resume, {name} was .* and is now"):
        run(Tiny(), tmp_path, resume=True, identity={**IDENTITY, name: value})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_same_settings_are_accepted_tuples_and_all(tmp_path, unbroken):
    with pytest.raises(Killed):
        run(Tiny(), tmp_path, tick=Killer(60), identity=IDENTITY)
    model = Tiny()
    run(model, tmp_path, resume=True, identity=copy.deepcopy(IDENTITY))
    assert same_weights(model, unbroken[0])


# --- training -------------------------------------------------------------------------------------------------------


def train_plainly(model, phases, *, seed=3):
    """The same stage written out: weights after each epoch, mean training losses."""
    after, losses, epoch = [], [], 0
    for number, phase in enumerate(phases):
        optimizer = build_optimizer(model.groups(), phase, OptimizerConfig())
        total = sum(SIZES[epoch : epoch + phase.epochs])
        steps = stage_module.fit(
            (window(later, step) for later in range(epoch, epoch + phase.epochs) for step in range(SIZES[later])),
            loss=lambda batch, state: model.loss(batch, None if boundary() else state),
            optimizer=optimizer,
            schedule=schedule_of(phase),
            total=total,
            seed=(seed, number),
            gradient_clip=OptimizerConfig().gradient_clip,
        )
        done = {"steps": 0, "epoch": epoch}

        def boundary(done=done):
            return done["steps"] == 0

        model.train()
        sums = 0.0
        for step in steps:
            done["steps"] += 1
            sums += step.loss.item()
            if done["steps"] == SIZES[done["epoch"]]:
                after.append(copy.deepcopy(model.state_dict()))
                losses.append(sums / SIZES[done["epoch"]])
                done["steps"], done["epoch"], sums = 0, done["epoch"] + 1, 0.0
        epoch += phase.epochs
    return after, losses


def test_it_equals_the_phases_written_out_with_state_started_anew_each_epoch(tmp_path):
    model, plain = Tiny(), Tiny()
    history = run(model, tmp_path, evaluate=None)
    after, losses = train_plainly(plain, PHASES)
    assert same_weights(model, after[-1])
    assert [record["train_loss"] for record in history] == losses


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_epochs_weights_are_kept(tmp_path, best):
    model = Tiny()
    run(model, tmp_path, script=[0.5 if epoch == best else 1.0 for epoch in range(3)])
    after, _ = train_plainly(Tiny(), PHASES)
    assert same_weights(model, after[best])


def test_of_equal_epochs_the_first_is_kept_and_nan_is_never_the_best(tmp_path):
    after, _ = train_plainly(Tiny(), PHASES)
    for script, best in (([1.0, 1.0, 1.0], 0), ([math.nan, 1.0, math.nan], 1)):
        model = Tiny()
        run(model, tmp_path, script=script)
        assert same_weights(model, after[best])


def test_without_validation_the_last_weights_are_kept(tmp_path):
    model = Tiny()
    history = run(model, tmp_path, evaluate=None)
    assert same_weights(model, train_plainly(Tiny(), PHASES)[0][-1])
    assert all("valid_loss" not in record for record in history)


def test_a_damaged_best_falls_back_with_a_note(tmp_path):
    run(Tiny(), tmp_path, script=[3.0, 2.0, 1.0])
    newest = sorted((tmp_path / "best").glob("checkpoint-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"")
    model, events = Tiny(), []
    run(model, tmp_path, resume=True, script=[3.0, 2.0, 1.0], report=events.append)
    assert same_weights(model, train_plainly(Tiny(), PHASES)[0][1])
    assert any(isinstance(event, Note) and newest.name in event.text for event in events)


PLATEAU = [1.0, 2.0, 3.0]


def test_it_stops_when_no_epoch_was_better_for_the_patience(tmp_path):
    for patience, epochs in ((1, 2), (2, 3), (None, 3)):
        model, events = Tiny(), []
        history = run(model, tmp_path, script=PLATEAU, patience=patience, report=events.append)
        assert len(history) == epochs
        assert same_weights(model, train_plainly(Tiny(), PHASES)[0][0])
        notes = [event.text for event in events if isinstance(event, Note)]
        assert len(notes) == (patience is not None)


def test_an_epoch_as_good_as_the_best_is_not_better(tmp_path):
    assert len(run(Tiny(), tmp_path, script=[1.0, 1.0, 1.0], patience=1)) == 2


def test_a_better_epoch_renews_the_patience(tmp_path):
    phases = (Phase(epochs=3, rate=0.05),)
    assert len(run(Tiny(), tmp_path, script=[2.0, 3.0, 1.0], patience=2, phases=phases)) == 3


def test_it_stops_at_the_same_epoch_after_a_resume(tmp_path):
    stopping = {"script": PLATEAU, "patience": 1}
    tick, reference = Killer(), Tiny()
    expected = timeless(run(reference, tmp_path / "unbroken", tick=tick, **stopping))
    assert len(expected) == 2
    for at in range(0, tick.ticks, 3):
        model, history = run_with_kills(tmp_path / str(at), [at], **stopping)
        assert timeless(history) == expected
        assert same_weights(model, reference)


def test_a_stopped_run_resumed_stays_stopped(tmp_path):
    history = run(Tiny(), tmp_path, script=PLATEAU, patience=1)
    assert run(Tiny(), tmp_path, resume=True, script=PLATEAU, patience=1) == history


def test_a_frozen_groups_weights_stay_bit_equal_through_its_phase(tmp_path):
    phases = (Phase(groups=(-1,), epochs=2, rate=0.05), Phase(groups=(0,), epochs=1, rate=0.05))
    model, start = Tiny(), Tiny()
    run(model, tmp_path, phases=phases[:1], evaluate=None)
    assert torch.equal(model.embedding.weight, start.embedding.weight)
    assert all(torch.equal(*pair) for pair in zip(model.lstm.parameters(), start.lstm.parameters(), strict=True))
    assert not torch.equal(model.last.weight, start.last.weight)
    both = Tiny()
    run(both, tmp_path, phases=phases, evaluate=None)
    assert not torch.equal(both.embedding.weight, start.embedding.weight)
    assert torch.equal(both.last.weight, model.last.weight)


def test_afterwards_every_weight_may_learn_again_and_holds_no_gradient(tmp_path):
    model = Tiny()
    run(model, tmp_path, phases=PHASES[:1])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_random_numbers_outside_go_on_as_if_nothing_ran(tmp_path):
    model = Tiny()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    run(model, tmp_path)
    assert torch.equal(torch.rand(3), expected)


# --- reports --------------------------------------------------------------------------------------------------------


def test_history_holds_what_happened_in_each_epoch(tmp_path):
    history = run(Tiny(), tmp_path, script=[3.0, 1.0, 2.0])
    assert [(record["stage"], record["phase"], record["epoch"]) for record in history] == [
        ("tuning", 1, 1),
        ("tuning", 2, 2),
        ("tuning", 2, 3),
    ]
    assert [record["valid_loss"] for record in history] == [3.0, 1.0, 2.0]
    assert [record["rate"] for record in history] == [0.05] * 3


def test_events_tell_the_start_each_step_and_each_epochs_record(tmp_path):
    events = []
    history = run(Tiny(), tmp_path, report=events.append)
    assert events[0] == StageStarted("tuning", sum(SIZES), 0)
    assert [event.record for event in events if isinstance(event, EpochEnded)] == history
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(1, sum(SIZES) + 1))
    first = [event.loss for event in progress[: SIZES[0]]]
    assert sum(first) / SIZES[0] == pytest.approx(history[0]["train_loss"])


# --- what goes wrong ------------------------------------------------------------------------------------------------


def spoil_at(epoch, step, how):
    def spoil(total, now_epoch, now_step):
        return how(total) if (now_epoch, now_step) == (epoch, step) else total

    return spoil


def test_what_an_error_advises_to_set_is_a_setting():
    advice = stage_module._REMEDY.rpartition("--set ")[2]
    assert with_settings(TuneConfig(), {}, (advice,)).run.precision == "float32"


@pytest.mark.parametrize("how", [lambda total: total * math.inf, lambda total: total * math.nan], ids=["inf", "nan"])
@pytest.mark.parametrize("every", [0.0, math.inf])
@pytest.mark.parametrize(("epoch", "step", "place"), [(0, 1, (2, 1)), (1, 0, (1, 2)), (2, 1, (6, 2))])
def test_a_loss_that_is_not_finite_names_step_and_rates_and_leaves_the_checkpoint(
    tmp_path, unbroken, monkeypatch, how, every, epoch, step, place
):
    number, phase = place
    share = schedule_of(PHASES[phase - 1])((number - 1) / (SIZES[0] if phase == 1 else SIZES[1] + SIZES[2]))
    message = rf"not finite at step {number} of phase {phase}, where the peak rate 0.05 stood at {0.05 * share:g};"
    monkeypatch.setattr(stage_module, "PROGRESS_SECONDS", math.inf)
    with pytest.raises(TrainingError, match=message):
        run_stage(make_stage(Tiny(), spoil=spoil_at(epoch, step, how)), folder=tmp_path, checkpoint_seconds=every)
    saved = Checkpoints(tmp_path / "latest").load()
    assert saved is None or all(tensor.isfinite().all() for tensor in saved.tensors.values())
    model = Tiny()
    assert timeless(run(model, tmp_path, resume=True)) == unbroken[1]
    assert same_weights(model, unbroken[0])


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (0, 2), (1, 1), (2, 1)])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, unbroken, epoch, step):
    # sqrt has no slope at 0: the loss is what it was, its gradient is not a number.
    spoil = spoil_at(epoch, step, lambda total: total + (total - total.detach()).sqrt())
    with pytest.raises(TrainingError, match="not finite"):
        run(Tiny(), tmp_path, spoil=spoil)
    model = Tiny()
    assert timeless(run(model, tmp_path, resume=True)) == unbroken[1]
    assert same_weights(model, unbroken[0])


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match="cannot write a checkpoint"):
        run(Tiny(), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "a file"
