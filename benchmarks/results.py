"""The results as a file of JSON, and the tables drawn from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Outcome, ratio, spread
from benchmarks.works import Work

FORMAT, VERSION = "ulmfit-benchmarks", 1
OURS = "ulmfit"


def entry(work: Work, outcomes: dict[str, Outcome], *, run: dict[str, Any]) -> dict[str, Any]:
    """One work's result; `run` says when, where and by which command."""
    sides: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        values = {key: value for key, value in asdict(outcome).items() if value not in (None, {}, [])}
        sides[name] = values | ({} if outcome.error else {"rate": spread(outcome.rates())})
    ratios = {}
    if outcomes[OURS].error is None:
        for name, outcome in outcomes.items():
            if name != OURS and outcome.error is None:
                ratios[name] = ratio(outcomes[OURS].rates(), outcome.rates())
    goals = {name: {"least": least, "aim": aim} for name, (least, aim) in work.goal.items()}
    return {
        "name": work.name,
        "title": work.title,
        "unit": work.unit,
        "goal": goals,
        "run": run,
        "sides": sides,
        "ratio": ratios,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a results file, none where there is none."""
    if not path.exists():
        return []
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise SystemExit(f"{path}: not results of this version of the benchmarks; move it away")
    entries: list[dict[str, Any]] = values["entries"]
    return entries


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    values = {"format": FORMAT, "version": VERSION, "entries": entries}
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)


def merged(before: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries with this one in the place of the one of its name, or at the end."""
    names = [known["name"] for known in before]
    if new["name"] not in names:
        return [*before, new]
    return [new if known["name"] == new["name"] else known for known in before]


# --- tables ---------------------------------------------------------------------------------------------------------


def table(entries: list[dict[str, Any]]) -> str:
    """A row for each work and peer, in Markdown."""
    lines = [
        "| work | ulmfit | peer | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    for known in entries:
        ours = known["sides"][OURS]
        peers = [name for name in known["sides"] if name != OURS]
        for name in peers:
            theirs = known["sides"][name]
            goal = known["goal"].get(name)
            cells = (
                known["title"],
                _rate(ours, known["unit"]),
                f"{name}: {_rate(theirs, known['unit'])}",
                _ratio(known["ratio"].get(name), goal),
                "" if goal is None else f"{goal['least']:g} x, aim {goal['aim']:g} x",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put_between(text: str, marker: str, content: str) -> str:
    """`text` with what stands between `<!-- marker -->` and `<!-- end marker -->` replaced."""
    begin, end = f"<!-- {marker} -->", f"<!-- end {marker} -->"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"docs/benchmarks.md: no {begin} ... {end} to put the table in")
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def number(value: float) -> str:
    """Three significant digits, with thousands apart."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _rate(side: dict[str, Any], unit: str) -> str:
    if "error" in side:
        return f"failed: {side['error']}"
    rate = side["rate"]
    text = f"{number(rate['median'])} {unit}/s ({number(rate['low'])} to {number(rate['high'])})"
    return f"{text}, batch {side['settings']['batch']}" if "sweep" in side else text


def _ratio(values: dict[str, float] | None, goal: dict[str, float] | None) -> str:
    if values is None:
        return ""
    text = f"{number(values['median'])} x"
    return text if goal is None or values["median"] >= goal["least"] else f"**{text}, missed**"
