"""A stopwatch counts each stretch of time once, under the name its end is given."""

import torch

from ulmfit.training import laps
from ulmfit.training.laps import Stopwatch


def test_each_part_has_the_time_since_the_lap_before(monkeypatch):
    readings = iter([10.0, 10.5, 12.5, 13.0, 16.0])
    monkeypatch.setattr(laps.time, "perf_counter", lambda: next(readings))
    lap = Stopwatch(torch.device("cpu"))
    for part in ("data", "forward", "data", "forward"):
        lap(part)
    assert lap.seconds() == {"data": 1.0, "forward": 5.0}
    assert list(lap.seconds()) == ["data", "forward"]


def test_laps_read_in_between_count_once(monkeypatch):
    monkeypatch.setattr(laps, "_UNREAD", 3)
    readings = iter(range(100))
    monkeypatch.setattr(laps.time, "perf_counter", lambda: next(readings))
    lap = Stopwatch(torch.device("cpu"))
    for _ in range(10):
        lap("data")
    assert lap.seconds() == {"data": 10}
