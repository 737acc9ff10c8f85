"""The presets are valid, and are what the commands use where nothing else is said."""

import json
from typing import get_args

import pytest

from ulmfit import presets
from ulmfit.config import (
    ClassifySettings,
    PresetName,
    PretrainConfig,
    PretrainSettings,
    TrainConfig,
    TuneConfig,
    TuneSettings,
    UnfreezingPlan,
)
from ulmfit.presets import FEW_LABELS, MANY_LABELS, VERY_FEW_LABELS, classify_preset, pretrain_preset, tune_preset
from ulmfit.training.schedules import groups_of, phases_of

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = get_args(PresetName)
AMOUNTS = {"very few": VERY_FEW_LABELS - 1, "few": FEW_LABELS - 1, "some": FEW_LABELS, "many": MANY_LABELS}
LANGUAGE_MODEL_GROUPS, CLASSIFIER_GROUPS = 4, 5
"""an embedding and three layers, and the head"""


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_survives_json_and_is_checked_there(name):
    for settings in (
        pretrain_preset(name),
        tune_preset(name),
        *(classify_preset(name, labelled=labelled) for labelled in AMOUNTS.values()),
    ):
        assert type(settings).parse(json.loads(settings.model_dump_json())) == settings
        if not isinstance(settings, ClassifySettings):
            continue
        for multiplied in (settings.dropouts, tune_preset(name).dropouts):
            multiplied.scaled(settings.dropout_multiplier)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains_layer_groups_that_there_are_and_all_of_them_in_the_end(name):
    for phases in (pretrain_preset(name).training.phases, tune_preset(name).training.phases):
        trained = [groups_of(phase, count=LANGUAGE_MODEL_GROUPS) for phase in phases]
        assert trained[-1] == list(range(LANGUAGE_MODEL_GROUPS))
    for labelled in AMOUNTS.values():
        plan = classify_preset(name, labelled=labelled).phases
        phases = phases_of(plan, groups=CLASSIFIER_GROUPS) if isinstance(plan, UnfreezingPlan) else plan
        trained = [groups_of(phase, count=CLASSIFIER_GROUPS) for phase in phases]
        assert trained[-1] == list(range(CLASSIFIER_GROUPS))
        assert all(CLASSIFIER_GROUPS - 1 in groups for groups in trained), "the head is fresh and always learns"


@pytest.mark.parametrize("name", NAMES)
def test_few_labels_and_many_are_learnt_from_differently(name):
    very_few, few, some, many = (classify_preset(name, labelled=labelled) for labelled in AMOUNTS.values())
    assert few not in (some, many)
    assert some == classify_preset(name, labelled=MANY_LABELS - 1)
    assert few == classify_preset(name, labelled=VERY_FEW_LABELS)
    assert very_few == classify_preset(name, labelled=2)
    assert many == classify_preset(name, labelled=10**6)
    assert few.valid_share == 0, "with few labels nothing is held out"


@pytest.mark.parametrize("name", NAMES)
def test_pretrain_uses_its_preset(ulmfit, tiny, tmp_path, name):
    small = {"encoder.embedding_size": 4, "encoder.hidden_size": 4, "training.batch_size": 64}
    flags = [part for key, value in small.items() for part in ("--set", f"pretrain.{key}={value}")]
    assert (
        ulmfit("pretrain", tiny.file("dozen", 12, seed=13), "--out", tmp_path / "out", "--preset", name, *flags).code
        == 0
    )
    expected = PretrainConfig(pretrain=pretrain_preset(name))
    expected = expected.override({f"pretrain.{key}": value for key, value in small.items()})
    assert used(tmp_path / "out", PretrainConfig) == expected


@pytest.mark.parametrize("name", NAMES)
def test_tune_uses_its_preset(ulmfit, tiny, tmp_path, name):
    labelled = tiny.file("dozen", 12, seed=13)
    assert ulmfit("tune", labelled, "--base", tiny.base, "--out", tmp_path / "out", "--preset", name).code == 0
    assert used(tmp_path / "out", TuneConfig) == TuneConfig(tune=tune_preset(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("amount", AMOUNTS)
def test_train_uses_the_preset_for_its_number_of_labels(ulmfit, tiny, tmp_path, monkeypatch, name, amount):
    labelled = tiny.file("dozen", 12, seed=13)
    monkeypatch.setattr(presets, "MANY_LABELS", 12 if amount == "many" else 13)
    monkeypatch.setattr(presets, "FEW_LABELS", 12 if amount in ("some", "many") else 13)
    monkeypatch.setattr(presets, "VERY_FEW_LABELS", 13 if amount == "very few" else 12)
    assert ulmfit("train", labelled, "--base", tiny.base, "--out", tmp_path / "out", "--preset", name).code == 0
    monkeypatch.undo()
    expected = TrainConfig(tune=tune_preset(name), classify=classify_preset(name, labelled=AMOUNTS[amount]))
    assert used(tmp_path / "out", TrainConfig) == expected


def test_a_whole_pass_over_many_labels_has_larger_batches_and_a_second_classifier_twice_as_large_ones():
    some, many = (classify_preset("paper", labelled=labelled) for labelled in (MANY_LABELS - 1, MANY_LABELS))
    assert (some.batch_size, some.self_training_batch_size) == (32, 64)
    assert many == some.override({"batch_size": 64, "self_training_batch_size": 128})


def test_quick_is_the_preset_where_none_is_named(ulmfit, tiny, tmp_path):
    labelled = tiny.file("dozen", 12, seed=13)
    assert ulmfit("tune", labelled, "--base", tiny.base, "--out", tmp_path / "out").code == 0
    assert used(tmp_path / "out", TuneConfig).tune == tune_preset("quick")


def used(out, kind):
    """The settings that a run was made with."""
    return kind.parse(json.loads((out / "run.json").read_text(encoding="utf-8"))["config"])


def test_presets_differ_and_are_not_the_bare_defaults():
    for preset, bare in ((pretrain_preset, PretrainSettings()), (tune_preset, TuneSettings())):
        assert preset("quick") != preset("paper")
        assert bare not in (preset("quick"), preset("paper"))
