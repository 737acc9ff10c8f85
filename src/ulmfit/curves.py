"""The course of a run as a picture, where matplotlib is there to draw it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.png"
STYLES = {"forward": "-", "backward": "--"}


def can_draw() -> bool:
    """Whether matplotlib is installed: `pip install 'ulmfit[plots]'`."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_perplexity(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Held-out perplexity by epoch as PNG, a line for each stage, e.g. `tune forward`; records are metrics.jsonl's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A figure of its own, apart from pyplot's: no display is looked for and nothing stays open.
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.add_subplot()
    for stage in dict.fromkeys(record["stage"] for record in records):
        points = [(record["epoch"], record["perplexity"]) for record in records if record["stage"] == stage]
        axis.plot(
            *zip(*points, strict=True), STYLES.get(stage.split()[-1], "-"), color="black", marker="o", label=stage
        )
    axis.set_xlabel("epoch")
    axis.set_ylabel("held-out perplexity")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
