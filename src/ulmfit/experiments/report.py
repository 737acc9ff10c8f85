"""The lines of a folder as tables and figures beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ulmfit.curves import can_draw
from ulmfit.errors import DataError
from ulmfit.experiments.lines import RESULTS, read_lines
from ulmfit.experiments.tables import Table, tables_of
from ulmfit.text.parts import output_errors, renamed_when_whole

TABLES, TABLES_JSON, FIGURES = "tables.md", "tables.json", "figures"


@dataclass(frozen=True, slots=True)
class Written:
    """What a report is made of."""

    tables: list[Table]
    paths: list[Path]
    drawn: bool


def write_report(out: Path) -> Written:
    """Write `tables.md`, `tables.json` and, where matplotlib is there, `figures/*.png` and `.svg` from the results.

    Raises DataError where there are none.
    """
    lines = read_lines(out)
    if not lines:
        raise DataError(f"{out / RESULTS}: no results there yet; run ulmfit experiment NAME --out {out} first")
    tables = tables_of(lines, _titles(out))
    drawn = can_draw()
    figures = _draw(tables, out / FIGURES) if drawn else {}
    parts = ["# Experiments\n"]
    for table in tables:
        parts.append(table.as_markdown())
        name = _name(table)
        if name in figures:
            parts.append(f"![{table.experiment.title}: {table.title}]({FIGURES}/{name}.png)\n")
    values = [table.as_json() for table in tables]
    texts = {TABLES: "\n".join(parts), TABLES_JSON: json.dumps(values, indent=1, ensure_ascii=False) + "\n"}
    for name, text in texts.items():
        with renamed_when_whole(out / name) as file:
            file.write(text.encode())
    paths = [out / name for name in texts] + [path for pair in figures.values() for path in pair]
    return Written(tables, paths, drawn)


def _draw(tables: list[Table], folder: Path) -> dict[str, list[Path]]:
    from ulmfit.experiments.figures import draw

    with output_errors(folder):
        folder.mkdir(exist_ok=True)
        return {_name(table): draw(table, folder / _name(table)) for table in tables}


def _name(table: Table) -> str:
    return f"{table.experiment.name}-{table.task}"


def _titles(out: Path) -> dict[str, str]:
    """What the tasks are called, from their splits where those still lie there."""
    titles = {}
    for path in sorted((out / "data").glob("*/task.json")):
        prepared = json.loads(path.read_text(encoding="utf-8"))["prepared"]
        titles[prepared["name"]] = prepared["title"]
    return titles
