"""ULMFiT: a few labels and a lot of unlabelled text into an accurate text classifier, on an ordinary machine.

Names load what they need when they are first used, so `import ulmfit` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
    from ulmfit.config import ClassifyConfig, PretrainConfig, RunConfig, TrainConfig, TuneConfig
    from ulmfit.errors import UlmfitError
    from ulmfit.generation import generate
    from ulmfit.learning.budget import Budget
    from ulmfit.merging import merge
    from ulmfit.pipeline import pretrain, train, train_classifier, tune_language_model
    from ulmfit.predict import Prediction, Predictor, evaluate, evaluate_language_model
    from ulmfit.presets import classify_preset, pretrain_preset, tune_preset

__all__ = [
    "Budget",
    "ClassifierBundle",
    "ClassifyConfig",
    "LanguageModelBundle",
    "Prediction",
    "Predictor",
    "PretrainConfig",
    "RunConfig",
    "TrainConfig",
    "TuneConfig",
    "UlmfitError",
    "classify_preset",
    "evaluate",
    "evaluate_language_model",
    "generate",
    "merge",
    "pretrain",
    "pretrain_preset",
    "train",
    "train_classifier",
    "tune_language_model",
    "tune_preset",
]

_HOMES = {
    "ulmfit.bundle": ("ClassifierBundle", "LanguageModelBundle"),
    "ulmfit.config": ("ClassifyConfig", "PretrainConfig", "RunConfig", "TrainConfig", "TuneConfig"),
    "ulmfit.errors": ("UlmfitError",),
    "ulmfit.generation": ("generate",),
    "ulmfit.learning.budget": ("Budget",),
    "ulmfit.merging": ("merge",),
    "ulmfit.pipeline": ("pretrain", "train", "train_classifier", "tune_language_model"),
    "ulmfit.predict": ("Prediction", "Predictor", "evaluate", "evaluate_language_model"),
    "ulmfit.presets": ("classify_preset", "pretrain_preset", "tune_preset"),
}


def __getattr__(name: str) -> Any:
    """A public name, from its home."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'ulmfit' has no attribute {name!r}")
