"""A plan that fits the time, the most telling runs first, and what is left out said."""

import json
from dataclasses import replace

import pytest

from ulmfit.errors import ConfigError
from ulmfit.experiments import ablation
from ulmfit.experiments.ablation import (
    Documents,
    Speed,
    fit,
    in_order,
    run_ablation,
    seconds_of,
    seconds_of_plan,
)
from ulmfit.experiments.lines import read_lines
from ulmfit.experiments.runner import Run, prepare_all, run_of
from ulmfit.learning.budget import SAFETY
from ulmfit.training.events import Note

SPEED = Speed(tuning=100.0, classifying=50.0, fixed=2.0, tokens_a_character=0.2)
ALL = Documents(labelled=10_000, texts=50_000, test=5_000, classes=2, tokens=100.0)


@pytest.fixture(scope="module")
def data(everything):
    return prepare_all([everything.task], everything.options)["labelled"]


def test_the_seconds_of_a_run_are_tokens_over_speed(data, options):
    made = set()
    run = Run("classifier-tuning", "labelled", "freez + discr + stlr", None, 0)
    # One epoch of tuning on 200 documents; head, layer, layer and all for one epoch each, on 90 documents, and 30 to
    # measure on, at a third of the cost; ten tokens each.
    tuning, classifying = 2 + 200 * 10 / 100, 2 + 4 * (90 + 30 / 3) * 10 / 50
    assert seconds_of(run, data, options, SPEED, 10.0, made).total == pytest.approx(tuning + classifying)
    assert seconds_of(run, data, options, SPEED, 10.0, made).total == 0
    other = replace(run, row="freez")
    assert seconds_of(other, data, options, SPEED, 10.0, made).total == pytest.approx(classifying)
    same = replace(run, experiment="forgetting", row="ULMFiT")
    assert seconds_of(same, data, options, SPEED, 10.0, made).total == 0


@pytest.mark.parametrize("minutes", [5, 60, 600, 6_000, 1_000_000])
def test_the_plan_fits_or_is_the_smallest_there_is(data, options, minutes):
    names = ["pretraining", "classifier-tuning"]
    arguments = {"options": options, "speed": SPEED}
    chosen, seeds, seconds = fit(ALL, data, names, seeds=3, seconds=60 * minutes, **arguments)
    cost = seconds_of_plan(chosen, data, names, seeds=seeds, **arguments)
    assert seconds == cost.total
    smallest = ALL.shares(labelled=0, texts=0)
    if minutes <= 60:
        assert (chosen, seeds) == (smallest, 1)
        assert seconds > 60 * minutes
    elif minutes == 1_000_000:
        assert (chosen, seeds) == (ALL, 3)
    else:
        assert seconds <= SAFETY * 60 * minutes
        assert smallest.labelled <= chosen.labelled < ALL.labelled
        assert smallest.texts <= chosen.texts < ALL.texts
        assert cost.classifying == pytest.approx(cost.tuning, rel=0.5)


def test_more_minutes_never_give_less(data, options):
    plans = [
        fit(ALL, data, ["lm-tuning"], options=options, speed=SPEED, seeds=2, seconds=60.0 * minutes)
        for minutes in (10, 100, 1_000, 10_000, 100_000)
    ]
    documents = [chosen.labelled * seeds for chosen, seeds, _ in plans]
    assert documents == sorted(documents)
    assert documents[0] < documents[-1]


def test_the_most_telling_rows_come_first_and_every_seed_s_table_before_the_next():
    runs = [
        Run("pretraining", "t", row, labels, seed)
        for seed in (1, 0)
        for row in ("with", "without")
        for labels in (None, 100)
    ]
    baseline = Run("low-shot", "t", "tf-idf", None, 0)
    ordered = in_order([*runs, baseline])
    assert ordered[0] == baseline
    assert ordered[1] == Run("pretraining", "t", "without", None, 0)
    assert [run.seed for run in ordered] == [0] * 5 + [1] * 4


def test_an_ablation_makes_the_tables_chooses_sizes_and_goes_on(options, tiny_task, tmp_path):
    events = []
    fresh = replace(options, out=tmp_path / "out", language_models=1)
    names = ["pretraining", "low-shot"]
    left_out = run_ablation(tiny_task, minutes=10, options=fresh, names=names, seeds=1, report=events.append)
    assert left_out == []
    plan = json.loads((fresh.out / "plan.json").read_text(encoding="utf-8"))
    assert (plan["seeds"], plan["limits"]) == (1, {"labelled": 120, "texts": 200, "test": 100})
    assert not (fresh.out / "whole").exists() and not (fresh.out / "sample").exists()
    said = [event.text for event in events if isinstance(event, Note) and event.text.startswith("for 10 minutes")]
    assert "120 of 120 labelled documents, 200 of 200 texts, 100 of 100 to test on, 1 of 1 seeds" in said[0]
    lines = read_lines(fresh.out)
    assert lines[0]["row"] == "tf-idf"
    assert {(line["experiment"], line["labels"]) for line in lines} == {
        ("pretraining", None),
        ("low-shot", 100),
        ("low-shot", None),
    }
    assert run_ablation(tiny_task, minutes=10, options=fresh, names=names, seeds=1) == []
    assert read_lines(fresh.out) == lines
    with pytest.raises(ConfigError, match=r"plan\.json: was made for other experiments or seeds"):
        run_ablation(tiny_task, minutes=10, options=fresh, names=names, seeds=2)


class Clock:
    """A minute passes with each look."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 60.0
        return self.now


def test_when_the_time_is_up_no_run_is_begun_and_those_left_are_named(options, tiny_task, tmp_path, monkeypatch):
    fresh = replace(options, out=tmp_path / "out")
    names = ["lm-tuning"]
    monkeypatch.setattr(ablation, "measure_speed", lambda *_: SPEED)
    monkeypatch.setattr(ablation, "time", Clock())
    left_out = run_ablation(tiny_task, minutes=6, options=fresh, names=names, seeds=1)
    made = [run_of(line) for line in read_lines(fresh.out)]
    assert made and left_out
    assert made[0].row == "none"
    assert len(made) + len(left_out) == 4
    assert not set(made) & set(left_out)


def test_no_time_at_all_is_refused(options, tiny_task, tmp_path):
    with pytest.raises(ConfigError, match="--minutes 0: expected more than none"):
        run_ablation(tiny_task, minutes=0, options=replace(options, out=tmp_path))
