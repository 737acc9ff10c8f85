"""How it is measured: the sides take turns, never at the same time, and every sample is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sides import Environment, Side
from benchmarks.works import Task, Work


@dataclass
class Outcome:
    """What one side did in a work."""

    settings: dict[str, Any]
    repeat: int = 0
    units: float = 0.0
    """of work in one repeat, e.g. tokens in a step"""
    seconds: list[float] = field(default_factory=list)
    """of each timed run of `repeat` repeats"""
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    peak_mib: list[float] = field(default_factory=list)
    """of the process's memory until the end of each run"""
    gpu_mib: list[float] = field(default_factory=list)
    sweep: dict[str, Any] = field(default_factory=dict)
    """units a second at each value tried, or what went wrong there"""
    error: str | None = None

    def rates(self) -> list[float]:
        """Units a second of each run."""
        return [self.units * self.repeat / seconds for seconds in self.seconds]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster we are: the ratio of the medians, and the extremes of the rounds' own ratios."""
    rounds = [own / other for own, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ours) / statistics.median(theirs), "low": min(rounds), "high": max(rounds)}


class Sides:
    """Programs, started when first needed and kept."""

    def __init__(self, environments: Mapping[str, Environment]) -> None:
        self._environments = environments
        self._running: dict[str, Side] = {}

    def __getitem__(self, name: str) -> Side:
        if name not in self._running:
            self._running[name] = Side(name, self._environments[name])
        return self._running[name]

    def close(self) -> None:
        """End all of them."""
        for side in self._running.values():
            side.close()
        self._running.clear()


def measure(work: Work, sides: Sides, *, rounds: int) -> dict[str, Outcome]:
    """Alternate the sides for `rounds` rounds; a side that fails is out, with the reason, and the rest go on.

    Where the work is not resident, it is built anew for each turn and dropped after it.
    """
    for task in work.tasks:
        sides[task.side]  # all load at the same time
    outcomes = {task.side: _chosen(task, sides[task.side]) for task in work.tasks}
    prepared: set[str] = set()
    for number in range(rounds):
        for task in work.tasks:
            outcome, side = outcomes[task.side], sides[task.side]
            if outcome.error is not None:
                continue
            if task.side not in prepared:
                _prepare(task, side, outcome, runs=rounds if work.resident else 1)
                prepared.add(task.side)
            if outcome.error is None:
                _run(side, outcome)
                _say(f"  {work.name} {number + 1}/{rounds} {task.side}: {_latest(outcome, work.unit)}")
            if not work.resident and outcome.error is None:
                side.release()
                prepared.discard(task.side)
    for name in prepared:
        if outcomes[name].error is None:
            sides[name].release()
    for task in work.tasks:
        if outcomes[task.side].error is not None:
            _say(f"  {work.name} {task.side} failed: {outcomes[task.side].error}")
    return outcomes


def _chosen(task: Task, side: Side) -> Outcome:
    """The settings a side goes into the rounds with: its best of those it may choose from, tried alone."""
    versions = side.versions
    if "error" in versions:
        return Outcome(task.settings, error=versions["error"])
    if not task.sweep:
        return Outcome(task.settings, versions=versions)
    ((name, values),) = task.sweep.items()
    tried: dict[str, Any] = {}
    for value in values:
        trial = Outcome({**task.settings, name: value}, versions=versions)
        _prepare(task, side, trial, runs=1)
        if trial.error is None:
            _run(side, trial)
        if trial.error is None:
            side.release()
        tried[str(value)] = trial.error or trial.rates()[0]
        _say(f"  {task.work} {task.side}, {name} {value}: {tried[str(value)]}")
    rates = {value: rate for value, rate in tried.items() if isinstance(rate, float)}
    if not rates:
        return Outcome(task.settings, versions=versions, sweep=tried, error=f"failed at every {name}")
    best = int(max(rates, key=lambda value: rates[value]))
    return Outcome({**task.settings, name: best}, versions=versions, sweep=tried)


def _prepare(task: Task, side: Side, outcome: Outcome, *, runs: int) -> None:
    outcome.repeat = task.repeat(outcome.settings)
    steps = task.warmup + runs * outcome.repeat + 1
    answer = side.prepare(task.work, {**outcome.settings, "steps": steps}, warmup=task.warmup)
    outcome.error = answer.get("error")
    if outcome.error is None:
        outcome.facts = answer["facts"]
        outcome.units = outcome.facts.pop("units")


def _run(side: Side, outcome: Outcome) -> None:
    answer = side.run(outcome.repeat)
    outcome.error = answer.get("error")
    if outcome.error is None:
        outcome.seconds.append(answer["seconds"])
        outcome.peak_mib.append(answer["peak_mib"])
        if "gpu_mib" in answer:
            outcome.gpu_mib.append(answer["gpu_mib"])


def _latest(outcome: Outcome, unit: str) -> str:
    if outcome.error is not None:
        return outcome.error
    return f"{outcome.rates()[-1]:,.4g} {unit}/s ({outcome.seconds[-1]:.2f} s)"


_BEGAN = time.monotonic()


def _say(line: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.0f} s {line}", flush=True)
