"""Directions that were trained apart, say on two GPUs side by side, as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from ulmfit.bundle import Bundle, ClassifierBundle, LanguageModelBundle, read_bundle_config
from ulmfit.config import Direction, Storage
from ulmfit.errors import BundleError

AnyBundle = TypeVar("AnyBundle", bound=Bundle[Any, Any])


def merge(
    folders: Sequence[Path], *, out: Path, storage: Storage | None = None
) -> LanguageModelBundle | ClassifierBundle:
    """Save one bundle of all the directions of these in `out`, stored like the first if not said otherwise.

    Raises BundleError where two are of different kinds, sizes, vocabularies or classes, or read in the same direction.
    """
    found = [read_bundle_config(folder) for folder in folders]
    kinds = {values["kind"] for values in found}
    if len(kinds) > 1:
        raise BundleError(f"{' and '.join(map(str, folders))}: language models and classifiers do not make one model")
    bundle: LanguageModelBundle | ClassifierBundle
    if kinds == {ClassifierBundle.kind}:
        bundle = merged({str(folder): ClassifierBundle.load(folder) for folder in folders})
    else:
        bundle = merged({str(folder): LanguageModelBundle.load(folder) for folder in folders})
    bundle.save(out, storage=storage or found[0]["storage"])
    return bundle


def merged(parts: Mapping[str, AnyBundle]) -> AnyBundle:
    """The same of bundles in memory, each under the name that an error says; forward comes first."""
    (first_name, first), *others = parts.items()
    models: dict[Direction, Any] = dict(first.models)
    for name, part in others:
        differs = _difference(first, part)
        if differs:
            raise BundleError(f"{first_name} and {name}: {differs}; train them on the same text with the same settings")
        twice = next((direction for direction in part.models if direction in models), None)
        if twice:
            raise BundleError(f"{name}: one before it reads {twice} already; give one model a direction")
        models |= part.models
    models = {direction: models[direction] for direction in get_args(Direction) if direction in models}
    facts = [part.facts for part in parts.values()]
    results = {stage: measures for each in facts for stage, measures in each.get("results", {}).items()}
    history = [record for each in facts for record in each.get("history", [])]
    return replace(first, models=models, facts={**first.facts, "results": results, "history": history})


def _difference(first: Bundle[Any, Any], other: Bundle[Any, Any]) -> str | None:
    if first.tokenizer.fingerprint != other.tokenizer.fingerprint:
        return "their vocabularies differ"
    if first.config != other.config:
        return "their sizes or settings differ"
    if first._own_values() != other._own_values() or _terms(first) != _terms(other):
        return "their classes, or their bags of words, differ"
    return None


def _terms(bundle: Bundle[Any, Any]) -> tuple[str, bytes] | None:
    """What a bag of words knows; how much each term counts may differ by the rounding of the machine that learnt it."""
    if not isinstance(bundle, ClassifierBundle) or bundle.bag_of_words is None:
        return None
    terms = bundle.bag_of_words.terms
    return terms.tokenizer.fingerprint, terms.keys.tobytes()
