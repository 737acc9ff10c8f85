"""A finished model on disk: a folder of config.json, tokenizer.json, safetensors shards and a model card.

The folder can be moved anywhere, holds no code and no paths, and is checked before anything is built from it. It is
complete when config.json is there, which is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from ulmfit.bag_of_words import BagOfWords
from ulmfit.card import model_card
from ulmfit.config import ClassifierConfig, Config, Direction, LanguageModelConfig, Storage
from ulmfit.errors import BundleError, ConfigError, OutputError, TokenizerError
from ulmfit.models.classifier import Classifier
from ulmfit.models.language_model import LanguageModel
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.weights import read_shards, write_shards

FORMAT, VERSION = "ulmfit-bundle", 1
CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
BAG_OF_WORDS, BAG_TOKENIZER, BAG_SHARES = "bag_of_words", "bag_of_words.json", ("share", "network_share")

Model = TypeVar("Model", bound=nn.Module)
ModelConfig = TypeVar("ModelConfig", bound=Config)


class _Uninitialised(TorchFunctionMode):
    """Modules made inside draw no numbers: without a device to draw them on PyTorch imports its compiler first."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Bundle(Generic[Model, ModelConfig]):
    """One model for each direction, the tokenizer they share, and the facts of the run that made them."""

    config: ModelConfig
    tokenizer: Tokenizer
    models: Mapping[Direction, Model]
    facts: Mapping[str, Any] = field(default_factory=dict)

    kind: ClassVar[str]
    config_type: ClassVar[type[Config]]
    model_type: ClassVar[type[nn.Module]]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions this model reads in."""
        return tuple(self.models)

    def _own_values(self) -> dict[str, Any]:
        """What this kind of bundle adds to config.json."""
        return {}

    def _write_own(self, folder: Path) -> None:
        """Write the files that this kind of bundle adds."""

    @classmethod
    def _own_arguments(cls, values: dict[str, Any], config: Any) -> dict[str, Any]:
        """The inverse of `_own_values`; raises ConfigError."""
        return {}

    @classmethod
    def _read_own(cls, folder: Path, values: dict[str, Any], config: Any) -> dict[str, Any]:
        """The inverse of `_write_own`; raises BundleError."""
        return {}

    def save(self, folder: Path, *, storage: Storage = "float32") -> None:
        """Write into `folder`, made if need be, which must not hold a bundle yet.

        Everything is written to a hidden folder inside and renamed file by file, config.json last, so a half-written
        bundle is never taken for a whole one. Raises OutputError where that fails; nothing is left then.
        """
        if (folder / CONFIG).exists():
            raise OutputError(f"{folder}: already holds a model; choose another folder")
        temporary = folder / ".writing"
        placed: list[Path] = []
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            weights = {
                direction: write_shards(model.state_dict(), temporary, prefix=direction, storage=storage)
                for direction, model in self.models.items()
            }
            values = {
                "format": FORMAT,
                "version": VERSION,
                "kind": self.kind,
                "model": self.config.model_dump(mode="json"),
                **self._own_values(),
                "storage": storage,
                "weights": weights,
                "facts": dict(self.facts),
            }
            self._write_own(temporary)
            (temporary / TOKENIZER).write_text(self.tokenizer.to_json(), encoding="utf-8")
            (temporary / CARD).write_text(model_card(values), encoding="utf-8")
            (temporary / CONFIG).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
                placed.append(path.rename(folder / path.name))
            shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            for path in placed:
                with contextlib.suppress(OSError):
                    path.unlink()
            raise OutputError(
                f"{folder}: cannot save the model ({error}); free some space or choose another folder"
            ) from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read and check a bundle of this kind; weights come back in float32, models in evaluation mode.

        Raises BundleError, in one line, for anything missing, damaged, or of another kind or version.
        """
        folder = Path(folder)
        values = read_bundle_config(folder)
        if values["kind"] != cls.kind:
            raise BundleError(
                f"{folder}: holds a {values['kind'].replace('_', ' ')}, a {cls.kind.replace('_', ' ')} is needed here"
            )
        config: Any = cls.config_type.parse(values["model"])
        own = cls._own_arguments(values, config)
        tokenizer = _read_tokenizer(folder / TOKENIZER)
        if len(tokenizer) != config.vocab_size:
            raise BundleError(
                f"{folder}: {TOKENIZER} has {len(tokenizer)} tokens, {CONFIG} asks for {config.vocab_size}"
            )
        models: dict[Direction, Any] = {}
        for direction, names in values["weights"].items():
            try:
                with torch.device("meta"), _Uninitialised():
                    model = cls.model_type(config)
            except ConfigError as error:
                raise BundleError(f"{folder}: {error}") from None
            model.load_state_dict(read_shards(folder, names, expected=model.state_dict()), assign=True)
            # Assigned tensors are plain leaves: they learn like freshly made parameters.
            models[direction] = model.requires_grad_(True).eval()
        own |= cls._read_own(folder, values, config)
        return cls(config=config, tokenizer=tokenizer, models=models, facts=values["facts"], **own)


@dataclass(frozen=True)
class LanguageModelBundle(Bundle[LanguageModel, LanguageModelConfig]):
    """What pretraining and tuning make."""

    kind = "language_model"
    config_type = LanguageModelConfig
    model_type = LanguageModel


@dataclass(frozen=True)
class ClassifierBundle(Bundle[Classifier, ClassifierConfig]):
    """What training makes: a language model's encoder with a head, the names of the classes, and what votes beside."""

    labels: Sequence[str] = ()
    bag_of_words: BagOfWords | None = None

    kind = "classifier"
    config_type = ClassifierConfig
    model_type = Classifier

    def _own_values(self) -> dict[str, Any]:
        bag = self.bag_of_words
        if bag is None:
            return {"labels": list(self.labels)}
        shares = {name: getattr(bag, name) for name in BAG_SHARES}
        return {"labels": list(self.labels), "bag_of_words": {"terms": len(bag.terms), **shares}}

    def _write_own(self, folder: Path) -> None:
        if self.bag_of_words is not None:
            write_shards(self.bag_of_words.tensors(), folder, prefix=BAG_OF_WORDS, storage="float32")
            tokenizer = self.bag_of_words.terms.tokenizer
            (folder / BAG_TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")

    @classmethod
    def _own_arguments(cls, values: dict[str, Any], config: Any) -> dict[str, Any]:
        labels: Any = values.get("labels")
        names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not names or len(labels) != config.head.classes or len(set(labels)) != len(labels):
            raise ConfigError(f"{CONFIG}: 'labels' must name the {config.head.classes} classes, each once")
        bag = values.get("bag_of_words", {"terms": 0} | dict.fromkeys(BAG_SHARES, 0.0))
        if not (
            isinstance(bag, dict)
            and isinstance(bag.get("terms"), int)
            and 0 <= bag["terms"] <= 2**31
            and all(isinstance(bag.get(name), float) and 0 <= bag[name] <= 100 for name in BAG_SHARES)
        ):
            raise ConfigError(f"{CONFIG}: 'bag_of_words' must have a number of terms, and shares of 0 to 100")
        return {"labels": tuple(labels)}

    @classmethod
    def _read_own(cls, folder: Path, values: dict[str, Any], config: Any) -> dict[str, Any]:
        bag = values.get("bag_of_words")
        if bag is None:
            return {}
        expected = BagOfWords.layout(terms=bag["terms"], classes=config.head.classes)
        names = sorted(path.name for path in folder.glob(f"{BAG_OF_WORDS}-?????-of-?????.safetensors"))
        tensors = read_shards(folder, names, expected=expected)
        tokenizer = _read_tokenizer(folder / BAG_TOKENIZER)
        try:
            shares = {name: bag[name] for name in BAG_SHARES}
            return {"bag_of_words": BagOfWords.of_tensors(tensors, tokenizer=tokenizer, **shares)}
        except ValueError as error:
            raise BundleError(f"{folder}: {BAG_OF_WORDS} is damaged ({error}); copy the whole folder again") from None


def read_bundle_config(folder: Path) -> dict[str, Any]:
    """All of config.json of a bundle, checked for its kind, defaults filled in; raises BundleError."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give the folder of a saved model")
    if not path.is_file():
        raise BundleError(f"{folder}: no {CONFIG} in it, so it is no finished model; is the run that makes it done?")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); copy the whole folder again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(f"{path}: not the config of a model made by ulmfit")
    if values.get("version") != VERSION:
        raise BundleError(f"{path}: version {values.get('version')!r}, this program reads {VERSION}; update ulmfit")
    weights = values.get("weights")
    well_formed = (
        values.get("kind") in ("language_model", "classifier")
        and isinstance(values.get("model"), dict)
        and isinstance(values.get("facts"), dict)
        and values.get("storage") in get_args(Storage)
        and isinstance(weights, dict)
        and bool(weights)
        and all(direction in ("forward", "backward") for direction in weights)
        and all(_are_file_names(names) for names in weights.values())
    )
    if not well_formed:
        raise BundleError(f"{path}: a value is missing or of the wrong kind; the bundle is damaged")
    kind = ClassifierBundle if values["kind"] == ClassifierBundle.kind else LanguageModelBundle
    try:
        config = kind.config_type.parse(values["model"])
        kind._own_arguments(values, config)
    except ConfigError as error:
        raise BundleError(f"{path}: damaged or made by another version ({error})") from None
    return {**values, "model": config.model_dump(mode="json")}


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_json(path.read_text(encoding="utf-8"))
    except (TokenizerError, OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: damaged or made by another version ({error})") from None


def _are_file_names(names: Any) -> bool:
    """Plain names of files in the bundle's own folder: a config may not point elsewhere."""
    return isinstance(names, list) and all(
        isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name for name in names
    )
