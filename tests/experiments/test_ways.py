"""Each row of the paper's tables becomes the phases that the paper describes."""

import pytest

from ulmfit.config import Phase
from ulmfit.errors import ConfigError
from ulmfit.experiments.recipes import EXPERIMENTS, experiment_named
from ulmfit.experiments.ways import Way, epochs_of, stage_settings
from ulmfit.presets import classify_preset, tune_preset
from ulmfit.training.schedules import phases_of

LAYERS = 3
EPOCHS = 20


def settings_of(experiment, row, *, labelled=25_000, **settings):
    changed = {"recipe.epochs": EPOCHS} | {name.replace("__", "."): value for name, value in settings.items()}
    way = experiment_named(experiment).row(row).way
    tune, classify = stage_settings(way, preset="paper", labelled=labelled, layers=LAYERS, settings=changed)
    return tune.tune, classify.classify


def phases_of_row(row):
    plan = settings_of("classifier-tuning", row)[1].phases
    return phases_of(plan, groups=LAYERS + 2)


@pytest.mark.parametrize("row", [row.name for row in experiment_named("classifier-tuning").rows])
def test_every_row_of_table_7_has_as_many_epochs(row):
    assert sum(phase.epochs for phase in phases_of_row(row)) == EPOCHS
    assert epochs_of(settings_of("classifier-tuning", row)[1].phases, layers=LAYERS) == EPOCHS


@pytest.mark.parametrize(
    ("row", "schedule", "discriminative", "rate"),
    [
        ("full", "constant", 1.0, 1e-3),
        ("full + discr", "constant", 2.6, 1e-2),
        ("last", "constant", 1.0, 1e-3),
        ("freez", "constant", 1.0, 1e-3),
        ("freez + discr", "constant", 2.6, 1e-2),
        ("freez + stlr", "slanted_triangular", 1.0, 1e-3),
        ("freez + cos", "cosine", 1.0, 1e-3),
        ("freez + discr + stlr", "slanted_triangular", 2.6, 1e-2),
    ],
)
def test_rates_and_schedules_of_table_7(row, schedule, discriminative, rate):
    for phase in phases_of_row(row):
        assert (phase.schedule, phase.discriminative, phase.rate) == (schedule, discriminative, rate)


def test_what_each_plan_unfreezes():
    freez = [phase.groups for phase in phases_of_row("freez + discr + stlr")]
    assert freez == [(-1,), (-2, -1), (-3, -2, -1), (-4, -3, -2, -1), None]
    assert [phase.groups for phase in phases_of_row("full")] == [None]
    assert [phase.groups for phase in phases_of_row("last")] == [(-1,)]


def test_chain_thaw_has_a_tenth_of_the_head_s_rate_below():
    first, *rest = phases_of_row("chain-thaw")
    assert (first.groups, first.rate) == ((-1,), 1e-3)
    assert [phase.rate for phase in rest] == pytest.approx([1e-4] * len(rest))


def test_rows_of_table_6_differ_in_the_tuning_alone():
    rows = {row.name: settings_of("lm-tuning", row.name) for row in experiment_named("lm-tuning").rows}
    assert len({classify.model_dump_json() for _, classify in rows.values()}) == 1
    assert [tune.learn for tune, _ in rows.values()] == [False, True, True, True]
    epochs = sum(phase.epochs for phase in tune_preset("paper").training.phases)
    found = {name: tune.training.phases for name, (tune, _) in rows.items() if tune.learn}
    assert found == {
        "full": (Phase(rate=4e-3, epochs=epochs, discriminative=1.0, schedule="constant"),),
        "full + discr": (Phase(rate=4e-3, epochs=epochs, discriminative=2.6, schedule="constant"),),
        "full + discr + stlr": (Phase(rate=4e-3, epochs=epochs, discriminative=2.6),),
    }


def test_a_vanilla_language_model_has_neither_dropout_nor_regularisers():
    tune, _ = settings_of("lm-quality", "vanilla")
    rates = tune.dropouts.scaled(tune.dropout_multiplier).model_dump()
    assert set(rates.values()) == {0.0}
    assert tune.output_dropout * tune.dropout_multiplier == 0
    assert tune.training.activation_regularisation == tune.training.temporal_regularisation == 0
    assert settings_of("lm-quality", "AWD-LSTM")[0].training.activation_regularisation > 0


def test_from_scratch_is_random_and_untuned_and_without_pretraining_is_random_and_tuned():
    scratch, without = settings_of("classifier-tuning", "from scratch")[0], settings_of("pretraining", "without")[0]
    assert (scratch.start, scratch.learn) == ("random", False)
    assert (without.start, without.learn) == ("random", True)


@pytest.mark.parametrize("labelled", [100, 25_000])
def test_our_own_recipe_is_the_preset_to_the_letter(labelled):
    tune, classify = settings_of("results", "forward", labelled=labelled)
    assert tune == tune_preset("paper")
    assert classify == classify_preset("paper", labelled=labelled)


@pytest.mark.parametrize(("labelled", "streams"), [(100, 8), (1_000, 20), (25_000, 256)])
def test_few_texts_are_read_in_few_streams(labelled, streams):
    tune, _ = settings_of("low-shot", "supervised", labelled=labelled)
    assert tune == tune_preset("paper").override({"base_words": True, "training.batch_size": streams})


def test_multi_task_rows_are_their_weights_and_nothing_else():
    rows = [settings_of("multi-task", row.name)[1] for row in experiment_named("multi-task").rows]
    weights = [(row.language_model_weight, row.language_model_decay) for row in rows]
    assert weights == [(0, 1), (0.1, 1), (0.3, 1), (1, 1), (1, 0.7)]
    same = {"language_model_weight": 0.0, "language_model_decay": 1.0}
    assert len({row.override(same).model_dump_json() for row in rows}) == 1


def test_settings_given_reach_the_stages_and_an_unknown_one_is_named():
    tune, classify = settings_of("pretraining", "with", tune__training__window=33, classify__batch_size=7)
    assert (tune.training.window, classify.batch_size) == (33, 7)
    tune, classify = settings_of("pretraining", "with", recipe__tuning_epochs=2, recipe__tuning_rate=0.5)
    assert [(phase.epochs, phase.rate) for phase in tune.training.phases] == [(2, 0.5)]
    with pytest.raises(ConfigError, match=r"unknown setting 'recipe\.ratee'; did you mean 'rate'"):
        settings_of("pretraining", "with", recipe__ratee=1)


def test_every_row_is_valid_and_every_reference_a_row():
    for experiment in EXPERIMENTS:
        assert experiment.row(experiment.reference)
        assert len({row.name for row in experiment.rows}) == len(experiment.rows)
        for row in experiment.rows:
            assert isinstance(row.way, Way)
    with pytest.raises(ConfigError, match="no experiment 'low-shott'; did you mean 'low-shot'"):
        experiment_named("low-shott")
    with pytest.raises(ConfigError, match="has no row 'freeze'; did you mean 'freez'"):
        experiment_named("classifier-tuning").row("freeze")
