"""Tables as pictures that can be read in grey: shapes and line styles tell rows apart, and names stand at the lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit.experiments.tables import Cell, Table

SUFFIXES = (".png", ".svg")
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1)), "v"))
"""line style and marker, row by row"""
LINE_POINTS = 10.0
"""least distance of two names"""


def draw(table: Table, stem: Path) -> list[Path]:
    """Draw a table as `stem.png` and `stem.svg`; the paths written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    counts = {cell.labels for cell in table.cells}
    lines = table.experiment.figure == "labels" or len(counts) > 1
    rows = len({cell.row for cell in table.cells})
    # A figure of its own, apart from pyplot's: no display is looked for and nothing stays open.
    figure = Figure(figsize=(6.4, 3.8 if lines or table.curves else 1.4 + 0.32 * rows), layout="constrained")
    axis = figure.add_subplot()
    if table.curves:
        _draw_epochs(axis, table.curves)
    elif lines and len(counts) > 1:
        _draw_labels(axis, table)
    else:
        _draw_rows(axis, table.cells)
    kind = "validation" if table.experiment.measure == "valid" else "test"
    (axis.set_xlabel if not (lines and len(counts) > 1) and not table.curves else axis.set_ylabel)(f"{kind} error, %")
    axis.set_title(f"{table.experiment.title}: {table.title}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    paths = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    # The same picture has the same bytes: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "ulmfit", "svg.fonttype": "none"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _draw_labels(axis: Any, table: Table) -> None:
    """Error over the number of labels, both on logarithmic axes as in the paper's figure 3."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    everything = max((cell.labels for cell in table.cells if cell.labels is not None), default=1)
    places = sorted({_place(cell, everything) for cell in table.cells})
    ends: list[tuple[float, str]] = []
    names = list(dict.fromkeys(cell.row for cell in table.cells))
    for index, name in enumerate(names):
        cells = [cell for cell in table.cells if cell.row == name]
        xs = [_place(cell, everything) for cell in cells]
        _line(axis, index, xs, [cell.mean for cell in cells], [cell.deviation or 0.0 for cell in cells])
        ends.append((cells[-1].mean, name))
    axis.set_xscale("log")
    if min(cell.mean for cell in table.cells) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(places, [_label(place, table.cells, everything) for place in places], fontsize=8)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.tick_params(axis="y", labelsize=8)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("labels")
    axis.grid(alpha=0.25)
    _name_ends(axis, places[-1], ends)


def _draw_epochs(axis: Any, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Mean error of each epoch with its standard deviation over runs."""
    from matplotlib.ticker import MaxNLocator

    ends: list[tuple[float, str]] = []
    most = 1
    for index, (name, runs) in enumerate(curves.items()):
        epochs = range(1, min(len(run) for run in runs) + 1)
        columns = [[run[epoch - 1] for run in runs] for epoch in epochs]
        means = [statistics.fmean(column) for column in columns]
        _line(axis, index, list(epochs), means, [_deviation(column) for column in columns])
        ends.append((means[-1], name))
        most = max(most, len(epochs))
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    _name_ends(axis, most, ends)


def _draw_rows(axis: Any, cells: Sequence[Cell]) -> None:
    """A dot a row with its standard deviation; hollow squares are the paper's."""
    places = range(len(cells))
    axis.errorbar(
        [cell.mean for cell in cells],
        places,
        xerr=[cell.deviation or 0.0 for cell in cells],
        fmt="o",
        color="black",
        capsize=3,
        label="here, mean and standard deviation",
    )
    known = [(cell.paper, place) for place, cell in zip(places, cells, strict=True) if cell.paper is not None]
    if known:
        xs, ys = zip(*known, strict=True)
        axis.plot(xs, ys, "s", color="black", markerfacecolor="none", label="paper")
        axis.legend(frameon=False, fontsize=8)
    axis.set_yticks(places, [f"{cell.row} ({cell.n})" for cell in cells], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)


def _line(axis: Any, index: int, xs: Sequence[float], means: Sequence[float], deviations: Sequence[float]) -> None:
    style, marker = STYLES[index % len(STYLES)]
    axis.errorbar(
        xs, means, yerr=deviations, linestyle=style, marker=marker, color="black", capsize=2, linewidth=1, markersize=4
    )


def _name_ends(axis: Any, right: float, ends: Sequence[tuple[float, str]]) -> None:
    """Each line's name at its end, moved apart where ends lie close."""
    axis.figure.draw_without_rendering()  # so that the axes have their place
    points = 72 / axis.figure.dpi
    last = -math.inf
    for mean, name in sorted(ends):
        there = points * float(axis.transData.transform((right, mean))[1])
        place = max(there, last + LINE_POINTS)
        last = place
        axis.annotate(
            name, (right, mean), xytext=(6, place - there), textcoords="offset points", fontsize=8, va="center"
        )


def _place(cell: Cell, everything: int) -> float:
    """Where a number of labels stands; all of them a little beyond the last number there is."""
    return 2.0 * everything if cell.labels is None else float(cell.labels)


def _label(place: float, cells: Sequence[Cell], everything: int) -> str:
    known = [cell.labels for cell in cells if _place(cell, everything) == place]
    return "all" if None in known else f"{int(place):,}"


def _deviation(column: Sequence[float]) -> float:
    return statistics.stdev(column) if len(column) > 1 else 0.0
