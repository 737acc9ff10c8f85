"""`python -m benchmarks cpu|gpu`: measure, write the results, draw the tables."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data import prepare
from benchmarks.measure import Sides, measure
from benchmarks.results import entry, merged, put_between, read, tables, write
from benchmarks.sides import BUILD, PROJECT, environments
from benchmarks.works import cpu_model, cpu_works, gpu_works

DOCUMENT = PROJECT / "docs" / "benchmarks.md"
RESULTS = PROJECT / "docs" / "results" / "benchmarks"


def main() -> None:
    """Parse, measure each work in turn, and keep each result as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("where", choices=("cpu", "gpu"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="works whose names begin so")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="these beside this project, in place of all")
    parser.add_argument("--rounds", type=int, help="turns of each side in a work; by default each work's own number")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further work after so long")
    parser.add_argument("--peer-path", type=Path, help="a folder of installed packages, in place of an environment")
    parser.add_argument("--device", help="cpu to try the GPU's works without one")
    parser.add_argument("--tiny", action="store_true", help="try everything at sizes that measure nothing")
    parser.add_argument("--out", type=Path, help="the file of results")
    parser.add_argument("--list", action="store_true", help="name the works and stop")
    given = parser.parse_args()

    began = time.monotonic()
    texts = "made up"
    if given.where == "gpu":
        works = gpu_works(device=given.device or "cuda", tiny=given.tiny)
    else:
        model = cpu_model(tiny=given.tiny)
        folder, texts = (Path(), "") if given.list else prepare(model=model, tiny=given.tiny)
        works = cpu_works(str(folder), tiny=given.tiny)
    works = [work for work in works if not given.only or work.name.startswith(tuple(given.only))]
    if given.peers:
        works = [work.beside(given.peers) for work in works]
    if given.list:
        print("\n".join(f"{work.name}: {work.title}" for work in works))
        return
    if not works:
        sys.exit(f"no work begins with {' or '.join(given.only)}")
    small = BUILD / f"tiny-{given.where}.json"
    out = given.out or (small if given.tiny else RESULTS / f"{given.where}.json")
    sides = Sides(environments({task.side for work in works for task in work.tasks}, peer_path=given.peer_path))
    entries = read(out)
    run = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "hardware": hardware(),
        "texts": texts,
    }
    try:
        for work in works:
            if time.monotonic() - began > 60 * given.minutes:
                print(f"no time left for {work.name}", flush=True)
                continue
            # What is looked at for its memory has as many rounds as it has epochs.
            rounds = given.rounds if given.rounds and work.show != "memory" else work.rounds
            outcomes = measure(work, sides, rounds=rounds)
            entries = merged(entries, entry(work, outcomes, run=run))
            write(out, entries)
            if given.where == "cpu":
                sides.close()  # each work's memory is that of a process of its own
    finally:
        sides.close()
    print(tables(entries))
    if out.parent == RESULTS:
        page = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(put_between(page, f"{given.where} table", tables(entries)), encoding="utf-8")


def hardware() -> dict[str, Any]:
    """The machine, by name."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory[0] / 2**20) if memory else None,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
