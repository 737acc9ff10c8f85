"""Every experiment once, on the tiny language, for all tests to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="package")
def _one_thread(threads: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    """As `one_thread`, once for the whole folder."""
    with threads(1):
        yield


def short_settings(tiny: Any) -> dict[str, Any]:
    """The tiny settings with an epoch or two a stage."""
    training = {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02, "epochs": 1, "discriminative": 1.0}]}
    phases = [{"rate": 0.05, "epochs": 2, "discriminative": 1.3, "schedule": "one_cycle"}]
    return tiny.settings("tune", "classify", tune__training=training, classify__phases=phases)


@dataclass(frozen=True)
class Ran:
    """Some runs of experiments, and what they told."""

    out: Path
    task: Any
    options: Any
    lines: list[dict[str, Any]]
    events: list[Any]

    def of(self, experiment: str) -> dict[Any, dict[str, Any]]:
        """The lines of one experiment by row, labels and seed."""
        return {
            (line["row"], line["labels"], line["seed"]): line for line in self.lines if line["experiment"] == experiment
        }


@pytest.fixture(scope="package")
def options(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How tiny runs are made, in a folder of their own; `replace(options, out=...)` for another."""
    from ulmfit.experiments.runner import Options

    out = tmp_path_factory.mktemp("experiments") / "out"
    return Options(out=out, settings=short_settings(tiny), base=str(tiny.base))


@pytest.fixture(scope="package")
def tiny_task(tiny: Any) -> Any:
    """The tiny language as a user's files."""
    from ulmfit.experiments.tasks import task_of_files

    return task_of_files(tiny.labelled, unlabelled=[tiny.unlabelled], test=tiny.test)


def make_runs(options: Any, task: Any, *names: str, **arguments: Any) -> Ran:
    """Run experiments and keep what they tell."""
    from ulmfit.experiments.runner import run_experiment

    events: list[Any] = []
    lines = run_experiment(list(names), [task], options=options, report=events.append, **arguments)
    return Ran(options.out, task, options, lines, events)


@pytest.fixture(scope="package")
def run() -> Callable[..., Ran]:
    """`run(options, task, "pretraining", seeds=2)`."""
    return make_runs


@pytest.fixture(scope="package")
def everything(options: Any, tiny_task: Any) -> Ran:
    """All experiments, at 20 and at all labels where labels are few."""
    from ulmfit.experiments.recipes import EXPERIMENTS

    few = [known.name for known in EXPERIMENTS if len(known.labels) > 1]
    all_labels = [known.name for known in EXPERIMENTS if len(known.labels) == 1]
    some = make_runs(options, tiny_task, *few, labels=[20, None])
    rest = make_runs(options, tiny_task, *all_labels)
    return replace(rest, lines=some.lines + rest.lines, events=some.events + rest.events)
