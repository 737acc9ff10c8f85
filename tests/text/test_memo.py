from __future__ import annotations

import pytest

from ulmfit.text import memo
from ulmfit.text.memo import Memo


def test_each_short_string_is_worked_out_once() -> None:
    asked: list[str] = []

    def compute(key: str) -> int:
        asked.append(key)
        return len(key)

    lengths = Memo(compute)
    assert [lengths[key] for key in ("a", "bb", "a", "bb")] == [1, 2, 1, 2]
    assert asked == ["a", "bb"]


def test_it_stays_within_its_bound_and_keeps_no_long_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "MOST_KEPT", 10)
    lengths = Memo(len)
    for place in range(100):
        key = str(place)
        assert lengths[key] == len(key)
        assert len(lengths) <= 10
    before = len(lengths)
    assert lengths["x" * 1000] == 1000
    assert len(lengths) == before
