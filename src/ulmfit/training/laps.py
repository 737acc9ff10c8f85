"""Where the time of a stage goes: a stopwatch whose laps are named after what was done in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Lap: TypeAlias = Callable[[str], None]
"""called at the end of each part of the work, with its name"""

_UNREAD = 4096
"""events of a GPU kept before they are read, which waits for it"""


def untimed(part: str) -> None:
    """The stopwatch of an ordinary run, which measures nothing."""


class Stopwatch:
    """Seconds by part, each counted from the lap before.

    A GPU works behind the program's back, so there the laps are events in its own queue, and its time is what is
    measured; reading them, every few hundred steps, is the only time it is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._unread: list[tuple[str, Any]] = []
        self._seconds: dict[str, float] = {}
        self._last = self._now()

    def __call__(self, part: str) -> None:
        """Count the time since the lap before as this part's."""
        self._unread.append((part, self._now()))
        if len(self._unread) >= _UNREAD:
            self._read()

    def seconds(self) -> dict[str, float]:
        """What each part has taken so far, in the order the parts first came."""
        self._read()
        return dict(self._seconds)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for part, now in self._unread:
            spent = now - self._last if self._device.type != "cuda" else self._last.elapsed_time(now) / 1000
            self._seconds[part] = self._seconds.get(part, 0.0) + spent
            self._last = now
        self._unread.clear()
