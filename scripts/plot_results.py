"""Draw the curves of recorded runs: `python scripts/plot_results.py docs/results/NAME` writes curves.png beside them.

Needs matplotlib (`pip install 'ulmfit[plots]'`).
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

STYLES = [(line, marker) for marker in "os^D" for line in ("-", "--", ":", "-.")]


def main() -> None:
    """One panel a stage: perplexity of a language model, held-out error of a classifier, over epochs."""
    folder = Path(sys.argv[1])
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    kinds = list(dict.fromkeys(record["stage"].split()[0] for run in runs.values() for record in run["epochs"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.6), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        most = 0
        series = [
            (name, stage, records)
            for name, run in runs.items()
            for stage, records in _stages(run["epochs"]).items()
            if stage.split()[0] == kind
        ]
        names = [name for name, _, _ in series]
        for (line, marker), (name, stage, records) in zip(itertools.cycle(STYLES), series, strict=False):
            error = "accuracy" in records[0]
            values = [100 * (1 - record["accuracy"]) if error else record["perplexity"] for record in records]
            epochs = range(1, len(values) + 1)
            most = max(most, len(values))
            label = name if names.count(name) == 1 else f"{name}, {stage.split()[1]}"
            axis.plot(epochs, values, line, color="black", marker=marker, markersize=3, label=label)
        axis.set_title(kind)
        axis.set_xlabel("epoch")
        axis.set_ylabel("held-out error, %" if error else "held-out perplexity")
        axis.set_xticks(range(1, most + 1))
        axis.legend(frameon=False, fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)


def _stages(epochs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records by the stage they are of, in order."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for record in epochs:
        stages.setdefault(record["stage"], []).append(record)
    return stages


if __name__ == "__main__":
    main()
