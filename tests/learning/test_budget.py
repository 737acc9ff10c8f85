"""A plan fits by its own estimate, grows with the minutes, and is never more than the settings."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit.config import ClassifySettings, TrainConfig, UnfreezingPlan
from ulmfit.errors import ConfigError
from ulmfit.learning.budget import (
    LEAST_LABELLED,
    LEAST_TAUGHT,
    SAFETY,
    TEACHING_SHARE,
    TEXT_STEP,
    Budget,
    FewerLabels,
    choose,
    described,
    fits_all_labelled,
    shrunk,
)
from ulmfit.learning.costs import BAG_READINGS, Costs, Sizes, Vocabulary, seconds_of
from ulmfit.presets import classify_preset, tune_preset

COSTS = Costs(reading=1e-6, tuning=2e-4, softmax=1e-8, classifying=4e-4, head=2e-4, saving=0.5, fixed=2.0)
SIZES = Sizes(
    labelled=300,
    labelled_tokens=80_000,
    unlabelled=5_000,
    unlabelled_tokens=1_300_000,
    vocabulary=Vocabulary(size=8_000, tokens=80_000, exponent=0.5, limit=60_000),
    groups=5,
)
TEACHING = TrainConfig(tune=tune_preset("quick"), classify=classify_preset("quick", labelled=300)).override(
    {"classify.bag_of_words": 0}
)
QUICK = TEACHING.override({"classify.self_training": 0})
PAPER = TrainConfig(tune=tune_preset("paper"), classify=classify_preset("paper", labelled=25_000))


def plan(minutes, config=QUICK, *, costs=COSTS, sizes=SIZES, keep=(), spent=0.0):
    return choose(costs, sizes, config, Budget(minutes, keep=keep), spent=spent)


def epochs(config):
    phases = config.classify.phases
    classifier = (phases.epochs,) if isinstance(phases, UnfreezingPlan) else tuple(phase.epochs for phase in phases)
    return tuple(phase.epochs for phase in config.tune.training.phases), classifier


def test_the_seconds_are_tokens_by_their_costs():
    config = QUICK.override(
        {
            "run.direction": "both",
            "classify.valid_share": 0.1,
            "run.checkpoint_minutes": 1e9,
        }
    )
    seconds = seconds_of(1_000, config, COSTS, SIZES)
    tokens = 80_000 + 260_000
    words = 8_000 * math.sqrt(tokens / 80_000)
    assert seconds.tuning == pytest.approx(2 * 2 * tokens * (2e-4 + 1e-8 * words))
    # Two epochs of the head and eight of all layers, on nine tenths; the tenth held out is only read.
    assert seconds.classifying == pytest.approx(2 * 80_000 * (2 * 2e-4 + 8 * (0.9 * 4e-4 + 0.1 * 2e-4)))
    # In each direction: a best model an epoch, a checkpoint a stage, two results written and read back.
    models = 2 * (2 + 10 + 2 + 4)
    assert seconds.other == pytest.approx((tokens + 80_000) * 1e-6 + models * 0.5 + 2.0)


def test_a_bag_of_words_takes_as_long_as_some_readings_of_all_the_text_and_one_of_its_labelled_texts_by_the_network():
    without, with_it = (
        seconds_of(1_000, QUICK.override({"classify.bag_of_words": share}), COSTS, SIZES) for share in (0, 1)
    )
    reading = BAG_READINGS * SIZES.tokens(SIZES.unlabelled) * 1e-6
    assert with_it.other - without.other == pytest.approx(reading + 80_000 * 2e-4)
    assert (with_it.tuning, with_it.classifying) == (without.tuning, without.classifying)


@pytest.mark.parametrize(
    ("phases", "head", "every"),
    [
        # 300 labelled and 500 others: two epochs of the head, and of eight of all layers six, for twice the steps.
        (None, 2, 6),
        (QUICK.classify.self_training_phases, 1, 3),
        (QUICK.classify.self_training_phases[1:], 2, 6),  # 3 epochs of 800 are less than 10 of 300, so these are not it
    ],
)
def test_self_training_adds_a_look_at_its_texts_and_a_second_classifier(phases, head, every):
    given = phases if phases is None else [dict(phase) for phase in phases]
    plain, taught = (
        seconds_of(
            1_000,
            QUICK.override({"classify.self_training": share, "classify.self_training_phases": given}),
            COSTS,
            SIZES,
        )
        for share in (0, 0.5)
    )
    second = (80_000 + 130_000) * (head * 2e-4 + every * 4e-4)
    assert taught.classifying - plain.classifying == pytest.approx(260_000 * 2e-4 + second)
    assert taught.tuning == plain.tuning
    none = seconds_of(0, QUICK.override({"classify.self_training": 0.5}), COSTS, SIZES)
    assert none == seconds_of(0, QUICK, COSTS, SIZES)


def test_a_vocabulary_grows_with_a_power_of_the_text_up_to_its_limit():
    vocabulary = Vocabulary(size=1_000, tokens=100.0, exponent=0.5, limit=5_000)
    assert [vocabulary.at(tokens) for tokens in (25, 100, 400, 1e9)] == [500, 1_000, 2_000, 5_000]


def test_checkpoints_by_the_clock_are_counted():
    seldom, often = (
        seconds_of(0, QUICK.override({"run.checkpoint_minutes": minutes}), COSTS, SIZES) for minutes in (2.0, 1.0)
    )
    minutes = (seldom.tuning + seldom.classifying) / 60
    assert often.other - seldom.other == pytest.approx((minutes - minutes / 2) * 3 * 0.5)


@pytest.mark.parametrize("config", [QUICK, TEACHING, PAPER, QUICK.override({"run.direction": "both"})])
@pytest.mark.parametrize("minutes", [5, 10, 20, 60, 1_000])
def test_the_plan_fits_what_is_left_by_its_own_estimate(config, minutes):
    chosen = plan(minutes, config, spent=10.0)
    expected = seconds_of(chosen.unlabelled, chosen.config, COSTS, SIZES).total
    assert chosen.seconds == pytest.approx(expected, abs=0.1)
    assert expected <= SAFETY * (60 * minutes - 10)


@settings(deadline=None, max_examples=60)
@given(
    minutes=st.tuples(st.floats(3, 100), st.floats(3, 100)).map(sorted),
    tuning=st.floats(1e-6, 1e-3),
    classifying=st.floats(1e-6, 1e-3),
    unlabelled=st.integers(0, 20_000),
    paper=st.booleans(),
)
def test_more_minutes_never_mean_less(minutes, tuning, classifying, unlabelled, paper):
    costs = replace(COSTS, tuning=tuning, classifying=classifying, head=classifying / 3)
    sizes = replace(SIZES, unlabelled=unlabelled, unlabelled_tokens=260.0 * unlabelled)
    config = PAPER if paper else QUICK
    try:
        fewer = plan(minutes[0], config, costs=costs, sizes=sizes)
    except ConfigError:
        return
    more = plan(minutes[1], config, costs=costs, sizes=sizes)
    assert more.config.classify.self_training >= fewer.config.classify.self_training
    if more.config.classify.self_training > fewer.config.classify.self_training:
        return  # a second classifier comes before all else
    assert more.unlabelled >= fewer.unlabelled or epochs(more.config) != epochs(fewer.config)
    for few, many, most in zip(*(epochs(chosen) for chosen in (fewer.config, more.config, config)), strict=True):
        assert all(1 <= a <= b <= c for a, b, c in zip(few, many, most, strict=True))


@pytest.mark.parametrize("config", [QUICK, TEACHING, PAPER])
def test_with_time_enough_the_settings_are_done_in_full(config):
    chosen = plan(1e6, config)
    assert (chosen.unlabelled, chosen.of) == (5_000, 5_000)
    assert chosen.config == config


def test_nothing_but_epochs_is_changed():
    chosen = plan(6).config
    assert chosen != QUICK
    assert epochs(chosen) < epochs(QUICK)
    assert (
        chosen.override(
            {
                "tune.training.phases": [phase.model_dump() for phase in QUICK.tune.training.phases],
                "classify.phases": [phase.model_dump() for phase in QUICK.classify.phases],
            }
        )
        == QUICK
    )


def test_little_text_is_read_once_and_more_text_comes_after_the_epochs():
    plans = [plan(minutes / 10) for minutes in range(16, 400)]
    once = [chosen.unlabelled for chosen in plans if epochs(chosen.config)[0] == (1,)]
    twice = [chosen.unlabelled for chosen in plans if epochs(chosen.config)[0] == (2,)]
    # 120,000 tokens of unlabelled text make 200,000 with those of the labelled. Until there is time to read them twice,
    # there is time to read at most as many others.
    enough, others = round(120_000 / 260), round(200_000 / 260)
    assert min(once) < 100 and enough < max(once) <= (enough + others) * TEXT_STEP
    assert enough <= min(twice) < 2 * enough and max(twice) > 4_000


def test_time_left_by_a_step_that_is_too_large_goes_to_more_texts():
    for minutes in (5, 6, 8, 10, 12):
        chosen = plan(minutes)
        most = SAFETY * 60 * minutes
        assert 0.97 * most < chosen.seconds <= most


def test_where_there_is_no_more_text_the_little_there_is_is_read_again():
    sizes = replace(SIZES, unlabelled=0, unlabelled_tokens=0.0)
    assert epochs(plan(2, sizes=sizes).config)[0] == (2,)


def test_both_stages_get_about_the_same_time_until_one_has_all_it_can_use():
    for minutes in (6, 8, 10, 12):
        chosen = plan(minutes)
        seconds = seconds_of(chosen.unlabelled, chosen.config, COSTS, SIZES)
        an_epoch = 80_000 * 4e-4
        assert 0 < chosen.unlabelled < 5_000
        assert abs(seconds.tuning - seconds.classifying) <= an_epoch + 0.05 * seconds.tuning


def test_what_is_given_by_hand_stays():
    chosen = plan(9, keep=["classify.phases"])
    assert epochs(chosen.config)[1] == (2, 8)
    assert epochs(plan(9).config)[1] < (2, 8)
    for keep in ("tune", "tune.training", "tune.training.phases"):
        assert epochs(plan(2, keep=[keep]).config)[0] == (2,)
        with pytest.raises(ConfigError):
            plan(1.7, keep=[keep])
    assert epochs(plan(1.7, keep=["tune.training.window"]).config)[0] == (1,)


def test_a_budget_that_is_not_strict_takes_the_least_plan_where_none_fits_and_else_the_same():
    least = choose(COSTS, SIZES, QUICK, Budget(0.1, strict=False))
    assert (least.unlabelled, epochs(least.config)) == (0, ((1,), (1, 1)))
    assert choose(COSTS, SIZES, QUICK, Budget(9, strict=False)) == plan(9)


def test_too_few_minutes_are_an_error_that_names_the_least_that_would_do():
    with pytest.raises(
        ConfigError, match=r"^--minutes 1: too few for an epoch of each phase on the 300 labelled"
    ) as few:
        plan(1, spent=10)
    least = float(str(few.value).rsplit(" ", 1)[1])
    assert epochs(plan(least, spent=10).config)[0] == (1,)
    with pytest.raises(ConfigError):
        plan(least - 0.11, spent=10)
    with pytest.raises(ConfigError, match="the least that would do here, with the phases as you set them, is"):
        plan(1, keep=["classify"])


MANY = replace(SIZES, labelled=25_000, labelled_tokens=6_500_000)


def with_a_part(minutes, config=QUICK, *, few=QUICK, most=1_999, sizes=SIZES, keep=()):
    budget = Budget(minutes, keep=keep, fewer_labels=FewerLabels(few, min(most, sizes.labelled)))
    return choose(COSTS, sizes, config, budget)


def test_where_there_is_no_time_for_all_labelled_texts_the_network_has_some_and_the_bag_of_words_all():
    with pytest.raises(ConfigError):
        plan(1)
    chosen = with_a_part(1)
    assert LEAST_LABELLED <= chosen.labelled < chosen.of_labelled == 300
    assert (epochs(chosen.config), chosen.config.classify.bag_of_words) == (((1,), (1, 1)), 1.0)
    expected = seconds_of(chosen.unlabelled, chosen.config, COSTS, SIZES, labelled=chosen.labelled)
    assert chosen.seconds == pytest.approx(expected.total, abs=0.1)
    assert expected.total <= SAFETY * 60
    network = chosen.config.override({"classify.bag_of_words": 0})
    a_part = replace(SIZES, labelled=chosen.labelled, labelled_tokens=80_000 * chosen.labelled / 300)
    bag = BAG_READINGS * SIZES.tokens(SIZES.unlabelled) * COSTS.reading  # all labelled texts, and 5,000 others
    asked = a_part.labelled_tokens * COSTS.head
    assert expected.total == pytest.approx(seconds_of(chosen.unlabelled, network, COSTS, a_part).total + bag + asked)
    assert with_a_part(1, keep=["classify.bag_of_words"]).config.classify.bag_of_words == 0


def test_with_time_for_all_labelled_texts_the_plan_is_the_same_as_if_it_had_to_have_them():
    for minutes in (2, 5, 10, 1_000):
        assert with_a_part(minutes) == plan(minutes)
        assert fits_all_labelled(COSTS, SIZES, QUICK, Budget(minutes))
    assert not fits_all_labelled(COSTS, SIZES, QUICK, Budget(1))


def test_more_minutes_mean_more_labelled_texts_until_there_are_all():
    counts = [with_a_part(minutes / 10).labelled for minutes in range(5, 40)]
    assert counts == sorted(counts) and counts[0] < counts[5] < counts[-1] == 300


def test_of_many_labelled_texts_a_part_is_learnt_by_the_settings_for_few():
    """As a network that has a part of them has few; all of them come once an epoch of each phase fits."""
    chosen = with_a_part(60, PAPER, sizes=MANY)
    assert (chosen.labelled, chosen.of_labelled) == (1_999, 25_000)
    assert chosen.config.classify.batch_size == QUICK.classify.batch_size != PAPER.classify.batch_size
    assert epochs(chosen.config)[1] > (1, 1) or chosen.unlabelled > 0
    assert with_a_part(400, PAPER, sizes=MANY).labelled == 25_000


def test_too_few_minutes_for_any_labelled_texts_name_how_many_they_would_be_for():
    with pytest.raises(
        ConfigError, match=rf"too few for an epoch of each phase on {LEAST_LABELLED} labelled texts"
    ) as few:
        with_a_part(0.1)
    assert with_a_part(float(str(few.value).rsplit(" ", 1)[1])).labelled < 1.5 * LEAST_LABELLED


def test_every_class_has_a_text_however_few_the_minutes():
    budget = Budget(1e-3, strict=False, fewer_labels=FewerLabels(QUICK, 300, least=154))
    assert choose(COSTS, SIZES, QUICK, budget).labelled == 154


def test_a_part_of_the_labelled_texts_is_told():
    chosen = with_a_part(1)
    told = described(chosen, SIZES, COSTS, QUICK, Budget(1))
    assert f"beside {chosen.labelled} of 300 labelled, all of which the bag of words has; " in told


# --- self-training --------------------------------------------------------------------------------------------------


def least_minutes_of_teaching(**changed):
    """In which a classifier of few epochs and a second one fit, on as many texts as there must be."""
    first = TEACHING.override(
        {
            "tune.training.phases": [{**dict(QUICK.tune.training.phases[0]), "epochs": 1}],
            "classify.phases": [
                {**dict(phase), "epochs": count} for phase, count in zip(QUICK.classify.phases, (1, 2), strict=True)
            ],
        }
    )
    return seconds_of(LEAST_TAUGHT, first, COSTS, replace(SIZES, **changed)).total / SAFETY / 60


def test_a_second_classifier_comes_as_soon_as_there_is_time_for_it():
    least = least_minutes_of_teaching()
    before, after = plan(0.99 * least, TEACHING), plan(1.01 * least, TEACHING)
    assert before == plan(0.99 * least, QUICK)
    assert after.config.classify.self_training == TEACHING.classify.self_training
    assert (after.unlabelled, epochs(after.config)) == (LEAST_TAUGHT, ((1,), (1, 2)))
    assert before.config.classify.self_training == 0 and epochs(before.config)[1] > (1, 2)


def test_of_many_labelled_texts_as_many_unlabelled_ones_must_be_taught():
    many = replace(SIZES, labelled=2_000, labelled_tokens=520_000)
    plans = [plan(minutes, TEACHING, sizes=many) for minutes in range(20, 200, 5)]
    teaching = [chosen for chosen in plans if chosen.config.classify.self_training]
    assert len(plans) > len(teaching) > 0 and min(chosen.unlabelled for chosen in teaching) >= 2_000


def test_what_there_is_is_taught_where_that_is_less():
    few = replace(SIZES, unlabelled=90, unlabelled_tokens=24_000)
    assert plan(30, TEACHING, sizes=few).config.classify.self_training
    none = replace(SIZES, unlabelled=0, unlabelled_tokens=0.0)
    assert plan(30, TEACHING, sizes=none) == plan(30, QUICK, sizes=none)


def test_with_a_second_classifier_its_texts_come_before_another_epoch_of_tuning():
    plans = [plan(minutes / 4, TEACHING) for minutes in range(40, 400)]
    once = [chosen.unlabelled for chosen in plans if epochs(chosen.config)[0] == (1,)]
    twice = [chosen.unlabelled for chosen in plans if epochs(chosen.config)[0] == (2,)]
    assert min(max(once), *twice) >= TEACHING.classify.self_training_documents > min(once)


def test_a_classifier_that_costs_little_beside_the_second_one_has_its_epochs_before_more_texts():
    few = replace(SIZES, labelled=50, labelled_tokens=80_000 / 6)
    plans = [plan(minutes / 4, TEACHING, sizes=few) for minutes in range(12, 200)]
    plans = [chosen for chosen in plans if chosen.config.classify.self_training]
    for chosen in plans:
        first = seconds_of(
            chosen.unlabelled, chosen.config.override({"classify.self_training": 0}), COSTS, few
        ).classifying
        an_epoch = few.labelled_tokens * COSTS.classifying
        assert epochs(chosen.config)[1] == (2, 8) or first >= TEACHING_SHARE * chosen.seconds - 2 * an_epoch
    assert {epochs(chosen.config)[1] for chosen in plans if chosen.unlabelled < 2_000} >= {(2, 7), (2, 8)}


def test_self_training_that_is_given_by_hand_stays_or_is_an_error():
    least = least_minutes_of_teaching()
    assert plan(1.01 * least, TEACHING, keep=["classify.self_training"]).config.classify.self_training
    with pytest.raises(ConfigError, match="the least that would do"):
        plan(0.99 * least, TEACHING, keep=["classify.self_training"])


def test_whether_there_is_a_second_classifier_is_told():
    least = least_minutes_of_teaching()
    for minutes, words in (
        (0.99 * least, "of 2 + 8, no self-training; "),
        (1.01 * least, ", which teaches a second one; "),
    ):
        assert words in described(plan(minutes, TEACHING), SIZES, COSTS, TEACHING, Budget(minutes))


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf])
def test_minutes_are_some_and_not_for_ever(minutes):
    with pytest.raises(ConfigError, match=r"--minutes .*: expected more than none"):
        Budget(minutes)


def test_a_named_plan_of_unfreezing_has_fewer_epochs_at_its_end():
    gradual = UnfreezingPlan(plan="gradual", rate=0.01, epochs=6)
    config = QUICK.model_copy(update={"classify": ClassifySettings(phases=gradual)})
    found = {plan(minutes, config).config.classify.phases for minutes in range(5, 30)}
    assert {phases.model_copy(update={"epochs": 6}) for phases in found} == {gradual}
    assert {phases.epochs for phases in found} >= {2, 4, 6}


def test_phases_shrink_in_proportion_and_keep_an_epoch():
    phases = PAPER.classify.phases
    assert [phase.epochs for phase in shrunk(phases, 2)] == [1, 1, 1, 2]
    assert shrunk(phases, 5) == phases
    assert [phase.epochs for phase in shrunk(QUICK.classify.phases, 5)] == [1, 5]


def test_the_choice_is_told_beside_what_it_was_made_of():
    chosen = plan(9, keep=["tune.training.phases"])
    told = described(chosen, SIZES, COSTS, QUICK, Budget(9, keep=["tune.training.phases"]))
    last = epochs(chosen.config)[1]
    assert told.startswith(f"for 9 minutes: {chosen.unlabelled:,} of 5,000 unlabelled texts beside the 300 labelled; ")
    assert f"epochs of tuning: 2, of the classifier: {last[0]} + {last[1]} of 2 + 8; " in told
    assert told.endswith("2,500 classifying; tune.training.phases stays as set")
