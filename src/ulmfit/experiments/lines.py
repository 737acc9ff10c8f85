"""The results file: one JSON line a finished run, whole or absent, written by any number of processes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulmfit.errors import DataError
from ulmfit.text.parts import output_errors

RESULTS = "results.jsonl"

Line = dict[str, Any]


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Add one line; what a killed process left of another is cut off first. Raises OutputError."""
    path = folder / RESULTS
    with output_errors(path), path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(folder: Path) -> list[Line]:
    """Every whole line, in the order they were written; none where there is no file. DataError for a damaged one."""
    path = folder / RESULTS
    if not path.exists():
        return []
    lines: list[Line] = []
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise DataError(f"{path}: line {number} is damaged; remove the line, and its run is made again") from None
    return lines
