"""The results as a file of JSON, and the tables drawn from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Outcome, ratio, spread
from benchmarks.sides import PROJECT
from benchmarks.works import Work

FORMAT, VERSION = "ulmfit-benchmarks", 1
OURS = "ulmfit"


def entry(work: Work, outcomes: dict[str, Outcome], *, run: dict[str, Any]) -> dict[str, Any]:
    """One work's result; `run` says when, where and by which command."""
    sides: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        values = {key: value for key, value in asdict(outcome).items() if value not in (None, {}, [])}
        values["settings"] = {key: _within_project(value) for key, value in outcome.settings.items()}
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
        "show": work.show,
        "goal": goals,
        "run": run,
        "sides": sides,
        "ratio": ratios,
    }


def _within_project(value: Any) -> Any:
    """A path of this machine as one of the project; anything else as it is."""
    return value.removeprefix(f"{PROJECT}/") if isinstance(value, str) else value


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


def tables(entries: list[dict[str, Any]]) -> str:
    """Speed, a row for each work and peer, and memory, a row for each work that is there for it; in Markdown."""
    speed = ["| work | ulmfit | peer | ratio | goal | peak memory |", "|---|---|---|---|---|---|"]
    memory = ["| memory | peak, MiB |", "|---|---|"]
    for known in entries:
        if known["show"] == "memory":
            peaks = known["sides"][OURS].get("peak_mib", [])
            memory.append(f"| {known['title']} | {', '.join(f'{peak:,.0f}' for peak in peaks) or 'failed'} |")
        else:
            speed += [f"| {' | '.join(cells)} |" for cells in _rows(known)]
    return "\n\n".join("\n".join(lines) for lines in (speed, memory) if len(lines) > 2)


def _rows(known: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours = known["sides"][OURS]
    title, own = known["title"], _measured(ours, known)
    peers = {name: side for name, side in known["sides"].items() if name != OURS}
    if not peers:
        yield title, own, "", "", "", _peak(ours)
    for name, theirs in peers.items():
        goal = known["goal"].get(name)
        yield (
            title,
            own,
            f"{name}: {_measured(theirs, known)}",
            _ratio(known["ratio"].get(name), goal),
            "" if goal is None else f"{goal['least']:g} x, aim {goal['aim']:g} x",
            f"{_peak(ours)}; {_peak(theirs)}",
        )
        title = own = ""


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


def _measured(side: dict[str, Any], known: dict[str, Any]) -> str:
    """Median and extremes, and the batch where a side chose it."""
    if "error" in side:
        return f"failed: {side['error']}"
    middle, low, high = (side["rate"][name] for name in ("median", "low", "high"))
    if known["show"] == "time":
        text = f"{_duration(1 / middle)} ({_duration(1 / high)} to {_duration(1 / low)})"
    else:
        text = f"{number(middle)} {known['unit']}/s ({number(low)} to {number(high)})"
    return f"{text}, batch {side['settings']['batch']}" if "sweep" in side else text


def _duration(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1000 * seconds)} ms"


def _peak(side: dict[str, Any]) -> str:
    """The largest peak: on the GPU where there was one, else of the process."""
    peaks = side.get("gpu_mib") or side.get("peak_mib")
    return f"{max(peaks):,.0f} MiB" if peaks else "-"


def _ratio(values: dict[str, float] | None, goal: dict[str, float] | None) -> str:
    if values is None:
        return ""
    text = f"{number(values['median'])} x"
    return text if goal is None or values["median"] >= goal["least"] else f"**{text}, missed**"
