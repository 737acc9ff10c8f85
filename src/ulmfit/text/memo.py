"""What was worked out for a string is kept for the next time, within a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

MOST_KEPT = 2**18  # entries; about 60 MB of short strings and tuples
_LONGEST_KEPT = 40  # characters; longer strings hardly ever come back

_Value = TypeVar("_Value")


class Memo(dict[str, _Value]):
    """A dict that computes what it lacks, so that a hit is one look-up at C speed; cleared when it grows too large."""

    def __init__(self, compute: Callable[[str], _Value]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, key: str) -> _Value:
        value = self._compute(key)
        if len(key) <= _LONGEST_KEPT:
            if len(self) >= MOST_KEPT:
                self.clear()
            self[key] = value
        return value
