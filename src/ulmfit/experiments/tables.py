"""From the lines of runs to tables: mean, standard deviation, number of runs, the paper's number, a paired test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ulmfit.experiments.lines import Line
from ulmfit.experiments.recipes import EXPERIMENTS, Experiment, Row


@dataclass(frozen=True, slots=True)
class Difference:
    """Row minus reference, over the pairs of runs that share seed and labels."""

    mean: float
    """in % of error"""
    pairs: int
    p_t: float | None
    """of the paired t test; None for fewer than two pairs, or differences that are all the same"""
    p_wilcoxon: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One row at one number of labels: errors in %."""

    row: str
    labels: int | None
    n: int
    mean: float
    deviation: float | None
    """of the sample, over n - 1; None for one run"""
    last: float | None
    """mean error of the last epoch, where the best one was kept"""
    perplexity: float | None
    """of the tuned language models, mean"""
    paper: float | None
    difference: Difference | None
    """from the reference row; None for that row itself, and where no runs pair"""


@dataclass(frozen=True, slots=True)
class Table:
    """One experiment on one task."""

    experiment: Experiment
    task: str
    title: str
    """of the task"""
    cells: list[Cell]
    hardware: list[str]
    curves: Mapping[str, list[list[float]]]
    """errors in % of each epoch of each run, by row; at all labels, or at the most there are"""

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "task": self.task,
            "measure": self.experiment.measure,
            "reference": self.experiment.reference,
            "unit": "error in %",
            "cells": [asdict(cell) for cell in self.cells],
            "curves": dict(self.curves),
            "hardware": self.hardware,
            "note": self.experiment.note,
        }

    def as_markdown(self) -> str:
        """A heading, the table, and what it needs said."""
        kind = "validation error" if self.experiment.measure == "valid" else "test error"
        headings = ["row", "labels", f"{kind}, %", "runs", "last epoch", "perplexity", "paper"]
        headings += [f"against {self.experiment.reference}", "p (t, pairs)"]
        rows = [[*_shown(cell)] for cell in self.cells]
        kept = [column for column in range(len(headings)) if column < 4 or any(row[column] != "-" for row in rows)]
        if {cell.labels for cell in self.cells} == {None}:
            kept.remove(1)
        lines = [[headings[column] for column in kept], ["---" for _ in kept]]
        lines += [[row[column] for column in kept] for row in rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = " ".join(
            part
            for part in (
                f"Mean ± standard deviation. {self.experiment.note}",
                "p: paired t test over runs of the same seed and labels."
                if any(row[-1] != "-" for row in rows)
                else "",
                f"Made on {', '.join(self.hardware)}.",
            )
            if part
        )
        return f"## {self.experiment.title}: {self.title}\n\n{table}\n\n{notes}\n"


def tables_of(lines: Sequence[Line], titles: Mapping[str, str] | None = None) -> list[Table]:
    """A table for each experiment and task that has lines, in the experiments' order; a run counts once."""
    unique: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        unique.setdefault(tuple(line[key] for key in ("experiment", "task", "row", "labels", "seed")), line)
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    made = []
    for experiment in EXPERIMENTS:
        for task in tasks:
            own = [line for line in unique.values() if (line["experiment"], line["task"]) == (experiment.name, task)]
            if own:
                made.append(_table(experiment, task, (titles or {}).get(task, task), own))
    return made


def _table(experiment: Experiment, task: str, title: str, lines: Sequence[Line]) -> Table:
    counts = sorted({line["labels"] for line in lines}, key=lambda labels: math.inf if labels is None else labels)
    cells = []
    for labels in counts:
        here = [line for line in lines if line["labels"] == labels]
        reference = _by_seed(here, experiment.reference)
        for row in experiment.rows:
            mine = _by_seed(here, row.name)
            if mine:
                other = None if row.name == experiment.reference else reference
                # The paper's numbers are with all labels.
                cells.append(_cell(row, labels, mine, other, row.paper.get(task) if labels is None else None))
    most = [line for line in lines if line["labels"] == counts[-1]]
    curves = {
        row.name: [[100 * epoch["error"] for epoch in line["epochs"]] for line in most if line["row"] == row.name]
        for row in experiment.rows
        if experiment.figure == "epochs"
    }
    hardware = list(dict.fromkeys(line["hardware"]["device"] for line in lines))
    return Table(experiment, task, title, cells, hardware, {name: runs for name, runs in curves.items() if runs})


def _by_seed(lines: Sequence[Line], row: str) -> dict[int, Line]:
    return {line["seed"]: line for line in lines if line["row"] == row}


def _cell(
    row: Row, labels: int | None, lines: Mapping[int, Line], reference: Mapping[int, Line] | None, paper: float | None
) -> Cell:
    errors = [100 * line["error"] for line in lines.values()]
    lasts = [100 * line["last_error"] for line in lines.values() if "last_error" in line]
    tuned = [
        model["epochs"][-1]["perplexity"]
        for line in lines.values()
        for model in line["language_models"].values()
        if model["epochs"] and "perplexity" in model["epochs"][-1]
    ]
    return Cell(
        row=row.name,
        labels=labels,
        n=len(errors),
        mean=statistics.fmean(errors),
        deviation=statistics.stdev(errors) if len(errors) > 1 else None,
        last=statistics.fmean(lasts) if lasts else None,
        perplexity=statistics.fmean(tuned) if tuned else None,
        paper=paper,
        difference=None if reference is None else _difference(lines, reference),
    )


def _difference(lines: Mapping[int, Line], reference: Mapping[int, Line]) -> Difference | None:
    seeds = sorted(lines.keys() & reference.keys())
    if not seeds:
        return None
    gaps = [100 * (lines[seed]["error"] - reference[seed]["error"]) for seed in seeds]
    p_t, p_wilcoxon = paired_tests(gaps)
    return Difference(statistics.fmean(gaps), len(gaps), p_t, p_wilcoxon)


def paired_tests(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    """Two-sided p of the paired t test and of Wilcoxon's signed-rank test that the gaps have no centre but 0.

    None where a test has nothing to say: fewer than two gaps, or gaps that are all the same.
    """
    from scipy import stats

    if len(gaps) < 2 or max(gaps) - min(gaps) <= 1e-9:
        return None, None
    zeros = [0.0] * len(gaps)
    return float(stats.ttest_rel(gaps, zeros).pvalue), float(stats.wilcoxon(gaps).pvalue)


def _shown(cell: Cell) -> list[str]:
    spread = "" if cell.deviation is None else f" ± {cell.deviation:.2f}"
    gap = cell.difference
    tested = "-" if gap is None or gap.p_t is None else f"{_p(gap.p_t)} ({gap.pairs})"
    return [
        cell.row,
        "all" if cell.labels is None else f"{cell.labels:,}",
        f"{cell.mean:.2f}{spread}",
        str(cell.n),
        "-" if cell.last is None else f"{cell.last:.2f}",
        "-" if cell.perplexity is None else f"{cell.perplexity:.1f}",
        "-" if cell.paper is None else f"{cell.paper:.2f}",
        "-" if gap is None else f"{gap.mean:+.2f}",
        tested,
    ]


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"
