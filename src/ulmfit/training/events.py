"""What a run tells while it works; the shells turn these into progress bars and tables, or ignore them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins, or goes on after a resume."""

    name: str
    steps: int
    done: int = 0
    history: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    """records of the epochs that ended before the resume"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Some steps further; a few times a second at most."""

    name: str
    step: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """One line of metrics.jsonl."""

    name: str
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageEnded:
    """A stage is done and its result saved."""

    name: str
    seconds: float
    parts: Mapping[str, float] | None = None
    """seconds by what they went to, where the run is profiled"""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the person watching."""

    text: str


Event: TypeAlias = StageStarted | Progress | EpochEnded | StageEnded | Note
Report: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report nothing."""
