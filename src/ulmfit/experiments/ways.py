"""One way through the stages as plain values, and the settings of the stages that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ulmfit.config import (
    ClassifyConfig,
    ClassifySettings,
    Config,
    Directions,
    Phase,
    PlanOrPhases,
    PresetName,
    RunConfig,
    Schedule,
    TuneConfig,
    TuneSettings,
    UnfreezingPlan,
)
from ulmfit.presets import classify_preset, tune_preset
from ulmfit.training.schedules import phases_of

GROUPS_BESIDE_LAYERS = 2
"""of a classifier: its embedding and its head"""
LEAST_STREAMS, DOCUMENTS_A_STREAM = 8, 50
"""of a language model that is tuned on the labelled texts alone, however few they are"""


class Way(Config):
    """What one row of a table does; the defaults are the paper's whole recipe."""

    learner: Literal["ulmfit", "tf-idf"] = "ulmfit"
    direction: Directions = "forward"
    pretrained: bool = Field(True, description="false: random weights of the base's sizes")
    text: Literal["all", "labelled"] = Field("all", description="what the language model and the vocabulary see")
    base_words: bool = Field(False, description="the vocabulary has the base's words too")
    tuning: Literal["full", "preset", "none"] = Field("full", description="preset: the phases of the preset")
    tuning_discriminative: float = Field(2.6, ge=1)
    tuning_schedule: Schedule = "slanted_triangular"
    regularised: bool = Field(True, description="false: no dropout, AR or TAR while tuning")
    plan: Literal["gradual", "full", "last", "chain_thaw", "preset"] = "gradual"
    discriminative: float = Field(2.6, ge=1)
    schedule: Schedule = "slanted_triangular"
    language_model_weight: float = Field(0.0, ge=0)
    language_model_decay: float = Field(1.0, gt=0, le=1)
    self_training: float | None = Field(None, ge=0, le=1, description="as the preset has it with its phases, else 0")
    bag_of_words: float | None = Field(None, ge=0, le=100, description="the same")


class RecipeSettings(Config):
    """Rates and lengths that the rows of an experiment share; the rates are those of section 5 of the paper."""

    tuning_rate: float = Field(4e-3, gt=0, description="of the language model's last layer group")
    tuning_epochs: int | None = Field(None, ge=1, description="of tuning; as many as the preset's phases have if null")
    rate: float = Field(1e-2, gt=0, description="of the classifier's last group, with discriminative rates")
    plain_rate: float = Field(1e-3, gt=0, description="of all its groups without them")
    chain_thaw_rate: float = Field(1e-3, gt=0, description="of the head; the other groups have a tenth of it")
    epochs: int | None = Field(None, ge=1, description="of the classifier, all phases together; the preset's if null")


class StageSettings(Config):
    """All that a run of the neural rows is made with, before its way is applied."""

    run: RunConfig = RunConfig()
    tune: TuneSettings = TuneSettings()
    classify: ClassifySettings = ClassifySettings()
    recipe: RecipeSettings = RecipeSettings()


def stage_settings(
    way: Way, *, preset: PresetName, labelled: int, layers: int, settings: Mapping[str, Any]
) -> tuple[TuneConfig, ClassifyConfig]:
    """The settings of both stages for a way, so many labelled documents and an encoder of so many layers.

    `settings` are dotted names over `StageSettings`, applied to the preset before the way is: a way of the paper
    replaces phases alone. Raises ConfigError.
    """
    start = StageSettings(tune=tune_preset(preset), classify=classify_preset(preset, labelled=labelled))
    start = start.override(dict(settings))
    tune = _tune(way, start.tune, start.recipe, labelled)
    classify = _classify(way, start.classify, start.recipe, layers)
    return TuneConfig(run=start.run, tune=tune), ClassifyConfig(run=start.run, classify=classify)


def _tune(way: Way, tune: TuneSettings, recipe: RecipeSettings, labelled: int) -> TuneSettings:
    changed: dict[str, Any] = {
        "learn": way.tuning != "none",
        "start": "pretrained" if way.pretrained else "random",
        "base_words": way.base_words,
    }
    if way.tuning == "full":
        epochs = recipe.tuning_epochs or sum(phase.epochs for phase in tune.training.phases)
        phase = Phase(
            rate=recipe.tuning_rate,
            epochs=epochs,
            discriminative=way.tuning_discriminative,
            schedule=way.tuning_schedule,
        )
        changed["training.phases"] = [phase.model_dump()]
    if way.text == "labelled":
        # A hundred reviews in 256 streams would be two steps an epoch.
        streams = max(LEAST_STREAMS, labelled // DOCUMENTS_A_STREAM)
        changed["training.batch_size"] = min(tune.training.batch_size, streams)
    if not way.regularised:
        changed["dropout_multiplier"] = 0.0
        changed["training.activation_regularisation"] = changed["training.temporal_regularisation"] = 0.0
    return tune.override(changed)


def _classify(way: Way, classify: ClassifySettings, recipe: RecipeSettings, layers: int) -> ClassifySettings:
    changed: dict[str, Any] = {
        "language_model_weight": way.language_model_weight,
        "language_model_decay": way.language_model_decay,
    }
    for name in ("self_training", "bag_of_words"):
        given = getattr(way, name)
        if given is not None or way.plan != "preset":
            changed[name] = given or 0.0
    if way.plan != "preset":
        groups = layers + GROUPS_BESIDE_LAYERS
        epochs = recipe.epochs or epochs_of(classify.phases, layers=layers)
        # A plan's epochs are those of its last phase; those before it have one each.
        before = {"gradual": groups - 1, "chain_thaw": groups}.get(way.plan, 0)
        rate = recipe.rate if way.discriminative > 1 else recipe.plain_rate
        plan = UnfreezingPlan(
            plan=way.plan,
            rate=recipe.chain_thaw_rate if way.plan == "chain_thaw" else rate,
            epochs=max(1, epochs - before),
            discriminative=way.discriminative,
            schedule=way.schedule,
        )
        changed["phases"] = plan.model_dump()
    return classify.override(changed)


def epochs_of(plan: PlanOrPhases, *, layers: int) -> int:
    """Epochs of all phases of a classifier whose encoder has so many layers."""
    groups = layers + GROUPS_BESIDE_LAYERS
    phases = phases_of(plan, groups=groups) if isinstance(plan, UnfreezingPlan) else plan
    return sum(phase.epochs for phase in phases)
