"""Settings: frozen, checked when made, and every mistake answered in one line that helps."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from ulmfit import config as config_module
from ulmfit.config import (
    ClassifySettings,
    Config,
    EncoderConfig,
    EncoderDropouts,
    LanguageModelTraining,
    OptimizerConfig,
    Phase,
    PretrainConfig,
    PretrainSettings,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    TuneConfig,
)
from ulmfit.errors import ConfigError, UlmfitError

MODELS = [
    model
    for model in vars(config_module).values()
    if isinstance(model, type) and issubclass(model, Config) and model is not Config
]


def required(model):
    """The least that a model is made from."""
    least = {"rate": 1e-3, "plan": "gradual"}
    return {name: least[name] for name, field in model.model_fields.items() if field.is_required()}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_is_frozen_and_its_defaults_pass_its_own_checks(model):
    made = model(**required(model))
    assert model.parse(made.model_dump()) == made, "a default that its own check refuses"
    for name in model.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_comes_back_from_its_json(model):
    made = model(**required(model))
    assert model.parse(json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_refuses_an_unknown_key(model):
    with pytest.raises(ConfigError, match="unknown setting 'no_such_thing'; known: "):
        model.parse({**required(model), "no_such_thing": 1})


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (EncoderConfig, {"hiden_size": 9}, "unknown setting 'hiden_size'; did you mean 'hidden_size'?"),
        (
            EncoderConfig,
            {"dropouts": {"wieght": 0.1}},
            "unknown setting 'dropouts.wieght'; did you mean 'weight'?",
        ),
        (
            PretrainConfig,
            {"pretrain": {"training": {"optimizer": {"beta_1": 0.9}}}},
            "unknown setting 'pretrain.training.optimizer.beta_1'; did you mean 'beta1'?",
        ),
        (OptimizerConfig, {"qqq": 1}, "unknown setting 'qqq'; known: name, beta1, beta2"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(model, values, message):
    with pytest.raises(ConfigError) as caught:
        model.parse(values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("model", "values", "name"),
    [
        (EncoderDropouts, {"weight": 1.0}, "weight"),
        (EncoderDropouts, {"input": -0.1}, "input"),
        (EncoderConfig, {"layers": 0}, "layers"),
        (EncoderConfig, {"dropouts": {"hidden": 2}}, "dropouts.hidden"),
        (TokenizerConfig, {"kind": "letters"}, "kind"),
        (TokenizerConfig, {"vocab_size": 2**20 + 1}, "vocab_size"),
        (Phase, {"rate": 0}, "rate"),
        (Phase, {"rate": 0.1, "rise": 1.0}, "rise"),
        (Phase, {"rate": 0.1, "schedule": "zigzag"}, "schedule"),
        (Phase, {"rate": float("nan")}, "rate"),
        (OptimizerConfig, {"epsilon": float("inf")}, "epsilon"),
        (LanguageModelTraining, {"phases": [{"rate": 0.1}, {"rate": -1}]}, "phases.1.rate"),
        (LanguageModelTraining, {"phases": []}, "phases"),
        (ClassifySettings, {"batch_size": 1}, "batch_size"),
        (RunConfig, {"device": "tpu"}, "device"),
        (RunConfig, {"seed": "one"}, "seed"),
    ],
)
def test_a_value_out_of_range_names_the_setting_and_the_value(model, values, name):
    with pytest.raises(ConfigError) as caught:
        model.parse(values)
    assert f"setting {name!r} is " in str(caught.value)
    wrong = values
    for part in name.split("."):
        wrong = wrong[int(part) if part.isdigit() else part]
    assert repr(wrong) in str(caught.value)


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match=r"setting 'rate'.*[Rr]equired"):
        Phase.parse({})


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"'layers'.*; .*'hiden_size'"):
        EncoderConfig.parse({"layers": 0, "hiden_size": 3})


def test_a_config_error_is_one_a_user_can_mend():
    assert issubclass(ConfigError, UlmfitError) and not issubclass(ConfigError, BaseModel)


def test_override_replaces_dotted_keys_and_leaves_the_original():
    before = PretrainConfig()
    after = before.override({"pretrain.training.window": 80, "pretrain.encoder.dropouts.weight": 0.3, "run.seed": 5})
    assert (after.pretrain.training.window, after.pretrain.encoder.dropouts.weight, after.run.seed) == (80, 0.3, 5)
    assert before == PretrainConfig()
    expected = before.model_dump()
    expected["pretrain"]["training"]["window"] = 80
    expected["pretrain"]["encoder"]["dropouts"]["weight"] = 0.3
    expected["run"]["seed"] = 5
    assert after.model_dump() == expected


def test_override_takes_whole_lists_and_whole_groups():
    after = PretrainSettings().override(
        {"training.phases": [{"rate": 0.1, "groups": [-1]}, {"rate": 0.2}], "tokenizer": {"kind": "unigram"}}
    )
    assert after.training.phases == (Phase(rate=0.1, groups=(-1,)), Phase(rate=0.2))
    assert after.tokenizer == TokenizerConfig(kind="unigram")


def test_override_with_nothing_changes_nothing():
    assert TrainConfig().override({}) == TrainConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune.trainig.window": 80}, "no group 'trainig' here; there are .*training"),
        ({"tune.training.windw": 80}, "unknown setting 'tune.training.windw'; did you mean 'window'"),
        ({"tune.training.window": 1}, "setting 'tune.training.window' is 1"),
        ({"run.seed.deep": 1}, "no group 'seed' here"),
        ({"run": 3}, "setting 'run' is 3"),
    ],
)
def test_a_wrong_override_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig().override(settings)


def test_scaled_multiplies_every_rate():
    rates = EncoderDropouts(input=0.4, embedding=0.05, weight=0.5, hidden=0.3)
    half = rates.scaled(0.5)
    assert half.model_dump() == pytest.approx({"input": 0.2, "embedding": 0.025, "weight": 0.25, "hidden": 0.15})
    assert rates.scaled(0).model_dump() == dict.fromkeys(EncoderDropouts.model_fields, 0.0)
    with pytest.raises(ConfigError, match=r"setting 'weight' is 1\.0"):
        rates.scaled(2.0)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("forward", ("forward",)), ("backward", ("backward",)), ("both", ("forward", "backward"))],
)
def test_directions_are_listed_in_order(chosen, expected):
    assert RunConfig(direction=chosen).directions == expected


def test_defaults_are_the_papers():
    encoder, training, phase = EncoderConfig(), LanguageModelTraining(), Phase(rate=1.0)
    assert (encoder.embedding_size, encoder.layers, training.window) == (400, 3, 70)
    assert encoder.hidden_size == 1152  # 1150 in the paper; a multiple of 8 is faster
    assert (training.activation_regularisation, training.temporal_regularisation) == (2.0, 1.0)
    assert (phase.schedule, phase.rise, phase.discriminative) == ("slanted_triangular", 0.1, 2.6)
    assert (training.optimizer.beta1, training.optimizer.beta2, training.batch_size) == (0.7, 0.99, 64)
    assert (training.phases[0].rate, ClassifySettings().phases.rate) == (4e-3, 1e-2)
    assert ClassifySettings().phases.plan == "gradual"
    assert (ClassifySettings().horizon, ClassifySettings().head_hidden_size) == (1400, 50)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"setting 'precision' is 'int4'"):
        RunConfig.parse({"precision": "int4"})
