"""The options that several commands share, and the reading of `--set NAME=VALUE`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter

from ulmfit.config import Config, Directions, PresetName
from ulmfit.config import Storage as StorageName
from ulmfit.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)

Out = Annotated[Path, Parameter(help="folder for the result; must be new or empty")]
Base = Annotated[str, Parameter(help="en, a folder, or a hub id")]
Valid = Annotated[
    list[Path] | None, Parameter(help="text to measure perplexity on", consume_multiple=True, negative="")
]
Direction = Annotated[Directions, Parameter(help="read texts forward, backward, or average both")]
Preset = Annotated[PresetName, Parameter(help="quick: minutes on two cores; paper: the whole recipe")]
Seed = Annotated[int, Parameter(help="same seed, same machine: same bits on the CPU")]
Resume = Annotated[bool, Parameter(help="go on with the killed run in --out", negative="")]
Profile = Annotated[bool, Parameter(help="write what the time went to in profile.json", negative="")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N")]
Storage = Annotated[StorageName, Parameter(help="how the weights are stored")]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", help="any other setting, e.g. tune.training.window=80", negative="", consume_multiple=False
    ),
]
Several = Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")]
TextColumn = Annotated[str, Parameter(help="column of the text")]
LabelColumn = Annotated[str, Parameter(help="column of the label")]


def follows() -> bool:
    """Whether torchrun started this process as one of several, and not as the first: it works and says nothing."""
    return os.environ.get("RANK", "0") != "0"


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` of each `--set`; a value is JSON where it parses, else a string."""
    values: dict[str, Any] = {}
    for setting in given:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, e.g. tune.training.window=80")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def with_settings(config: AnyConfig, own: dict[str, Any], given: tuple[str, ...]) -> AnyConfig:
    """The config with a command's own options and `--set` applied."""
    return config.override(own | parse_settings(given))
