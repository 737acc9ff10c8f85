"""Schedules against the papers' formulas; plans against the papers' words."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.config import Phase, UnfreezingPlan
from ulmfit.errors import ConfigError
from ulmfit.training.schedules import (
    cosine,
    discriminative_rates,
    groups_of,
    one_cycle,
    phases_of,
    schedule_of,
    slanted_triangular,
)

GROUPS = 5  # embedding, three LSTM layers, head


def papers_rate(t, *, steps, cut_frac, ratio, peak):
    """ULMFiT, equation 3, word for word."""
    cut = math.floor(steps * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return peak * (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(
    ("steps", "cut_frac"), [(10, 0.1), (100, 0.1), (2000, 0.1), (40, 0.25), (64, 0.5), (8, 0.125), (1000, 0.02)]
)
@pytest.mark.parametrize("ratio", [32.0, 10.0])
def test_slanted_triangular_equals_the_papers_formula_at_every_step(steps, cut_frac, ratio):
    for t in range(steps + 1):
        expected = papers_rate(t, steps=steps, cut_frac=cut_frac, ratio=ratio, peak=0.01)
        assert 0.01 * slanted_triangular(t / steps, cut_frac=cut_frac, ratio=ratio) == pytest.approx(expected)


def test_slanted_triangular_starts_and_ends_at_the_lowest_rate_and_peaks_at_the_cut():
    assert slanted_triangular(0.0) == pytest.approx(1 / 32)
    assert slanted_triangular(0.1) == pytest.approx(1.0)
    assert slanted_triangular(1.0) == pytest.approx(1 / 32)


@pytest.mark.parametrize("rise", [0.05, 0.3, 0.5])
def test_one_cycle_rises_from_a_25th_to_the_peak_and_falls_to_nearly_nothing(rise):
    assert one_cycle(0.0, rise=rise) == pytest.approx(1 / 25)
    assert one_cycle(rise / 2, rise=rise) == pytest.approx((1 / 25 + 1) / 2)
    assert one_cycle(rise, rise=rise) == pytest.approx(1.0)
    assert one_cycle((1 + rise) / 2, rise=rise) == pytest.approx((1 + 1e-5) / 2)
    assert one_cycle(1.0, rise=rise) == pytest.approx(1e-5)


def test_cosine_falls_from_one_over_a_half_to_zero():
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert cosine(progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


CURVES = {
    "slanted_triangular": slanted_triangular,
    "slanted_triangular, late cut": lambda progress: slanted_triangular(progress, cut_frac=0.7),
    "one_cycle": one_cycle,
    "one_cycle, short rise": lambda progress: one_cycle(progress, rise=0.08),
    "cosine": cosine,
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_schedule_is_continuous_and_rises_to_one_peak_before_it_falls(curve):
    points = [curve(index / 10_000) for index in range(10_001)]
    assert all(0 <= point <= 1 + 1e-12 for point in points)
    assert max(abs(after - before) for before, after in itertools.pairwise(points)) < 0.005
    top = points.index(max(points))
    assert max(points) == pytest.approx(1.0, abs=1e-3)
    assert all(before <= after for before, after in itertools.pairwise(points[: top + 1]))
    assert all(before >= after for before, after in itertools.pairwise(points[top:]))


@pytest.mark.parametrize("rise", [0.1, 0.4])
def test_a_phase_fills_its_own_rise_in(rise):
    expected = {
        "slanted_triangular": lambda progress: slanted_triangular(progress, cut_frac=rise),
        "one_cycle": lambda progress: one_cycle(progress, rise=rise),
        "cosine": cosine,
        "constant": lambda progress: 1.0,
    }
    for name, function in expected.items():
        schedule = schedule_of(Phase(rate=1.0, schedule=name, rise=rise))
        assert [schedule(step / 20) for step in range(21)] == [function(step / 20) for step in range(21)]


def test_each_lower_group_learns_slower_by_the_factor():
    rates = discriminative_rates(0.01, groups=GROUPS, factor=2.6)
    assert rates == pytest.approx([0.01 / 2.6**4, 0.01 / 2.6**3, 0.01 / 2.6**2, 0.01 / 2.6, 0.01])
    assert discriminative_rates(0.01, groups=3, factor=1.0) == [0.01] * 3


@given(st.floats(1e-6, 1.0), st.integers(1, 20), st.floats(1.0, 10.0))
def test_neighbouring_rates_differ_by_the_factor_and_the_last_is_the_peak(peak, groups, factor):
    rates = discriminative_rates(peak, groups=groups, factor=factor)
    assert len(rates) == groups and rates[-1] == peak
    assert all(upper / lower == pytest.approx(factor) for lower, upper in itertools.pairwise(rates))


# --- groups and plans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ((-1,), [4]),
        ((-2, -1), [3, 4]),
        ((4, 0, -5), [0, 4]),  # one group named twice learns once
        ((2,), [2]),
    ],
)
def test_groups_are_counted_from_either_end(chosen, expected):
    assert groups_of(Phase(groups=chosen, rate=1.0), count=GROUPS) == expected


@pytest.mark.parametrize("index", [5, -6, 99])
def test_a_group_the_model_lacks_is_refused_with_the_ones_it_has(index):
    with pytest.raises(ConfigError, match=rf"layer group {index}, but the model has 5; use -5 to 4"):
        groups_of(Phase(groups=(-1, index), rate=1.0), count=GROUPS)


def test_a_phase_in_which_nothing_learns_is_refused():
    with pytest.raises(ConfigError, match="no layer group"):
        groups_of(Phase(groups=(), rate=1.0), count=GROUPS)


def plan(name, *, epochs=3, **rest):
    """Each phase as (groups that learn, epochs, rate)."""
    phases = phases_of(UnfreezingPlan(plan=name, rate=0.01, epochs=epochs, **rest), groups=GROUPS)
    return [(groups_of(phase, count=GROUPS), phase.epochs, phase.rate) for phase in phases]


def test_gradual_unfreezing_adds_one_group_an_epoch_from_the_last_down():
    assert plan("gradual") == [
        ([4], 1, 0.01),
        ([3, 4], 1, 0.01),
        ([2, 3, 4], 1, 0.01),
        ([1, 2, 3, 4], 1, 0.01),
        ([0, 1, 2, 3, 4], 3, 0.01),
    ]


def test_full_trains_everything_at_once():
    assert plan("full") == [([0, 1, 2, 3, 4], 3, 0.01)]


def test_last_trains_the_head_alone():
    assert plan("last") == [([4], 3, 0.01)]


def test_chain_thaw_trains_the_head_then_each_group_alone_from_the_bottom_then_everything():
    assert plan("chain_thaw", lower_rate=0.0001) == [
        ([4], 1, 0.01),
        ([0], 1, 0.0001),
        ([1], 1, 0.0001),
        ([2], 1, 0.0001),
        ([3], 1, 0.0001),
        ([0, 1, 2, 3, 4], 3, 0.0001),
    ]


def test_chain_thaw_trains_the_lower_groups_at_a_tenth_unless_told():
    assert {rate for _, _, rate in plan("chain_thaw")[1:]} == {0.001}


@pytest.mark.parametrize(("name", "factor"), [("gradual", 1.5), ("full", 1.5), ("last", 1.5), ("chain_thaw", 1.0)])
def test_a_plan_hands_its_schedule_and_factor_to_every_phase_but_chain_thaw_has_one_rate_for_all(name, factor):
    asked = UnfreezingPlan(plan=name, rate=0.01, epochs=2, discriminative=1.5, schedule="cosine")
    phases = phases_of(asked, groups=GROUPS)
    assert {(phase.discriminative, phase.schedule) for phase in phases} == {(factor, "cosine")}


def test_a_model_of_one_group_has_nothing_to_unfreeze():
    (only,) = phases_of(UnfreezingPlan(plan="gradual", rate=0.01, epochs=2), groups=1)
    assert (only.groups, only.epochs) == (None, 2)
