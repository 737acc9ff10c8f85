"""What every side's program shares: a line of JSON in, a line of JSON out, and a gate that counts units of work.

This runs in the peers' interpreters too, so it needs the standard library alone.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

Item = TypeVar("Item")
Work = Callable[["Gate", dict[str, Any]], None]
"""Does its work for ever, passing the gate before each unit of it."""

# A program's peak counts what its parent held when it began, so a parent that holds little has to ask for it.
_PEAK_OF_CHILD = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


class Released(BaseException):
    """The driver is done with this work; like an interrupt, it passes through a peer's handling of errors."""


class Gate:
    """Where a side's loop asks for leave before each unit of work, and waits while the other side has its turn.

    The first `warmup` units are free; then it says that it is ready. From there on each request is for a number of
    units, and its answer holds the seconds from the first unit's start to the last one's end.
    """

    def __init__(self, requests: Iterator[dict[str, Any]], answer: Callable[[dict[str, Any]], None], warmup: int):
        self._requests, self._answer = requests, answer
        self._left = warmup
        self._started: float | None = None
        self.facts: dict[str, Any] = {}
        """what the answer to the warm-up tells of the work: sizes, dtype, units of work"""
        self._program_mib: float | None = None

    def step(self) -> None:
        """Pass before a unit of work. Raises Released when there is no more to do."""
        if self._left == 0:
            _synchronize()
            now = time.perf_counter()
            if self._started is None:
                self._answer({"ready": True, "facts": self.facts, **self._memory()})
            else:
                self._answer({"seconds": now - self._started, **self._memory()})
            request = next(self._requests, {"do": "release"})
            if request["do"] == "release":
                raise Released
            self._left = request["repeat"]
            self._started = time.perf_counter()
        self._left -= 1

    def each(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches, each a unit of work."""
        iterator = iter(batches)
        try:
            for batch in iterator:
                self.step()
                yield batch
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def forever_start(self, command: list[str]) -> NoReturn:
        """Run a program to its end as one unit of work; its memory is looked at once, before."""
        run = [sys.executable, "-c", _PEAK_OF_CHILD, *command]
        done = subprocess.run(run, stdout=subprocess.PIPE, check=True)
        self._program_mib = round(int(done.stdout) / 1024, 1)
        self.facts["units"] = 1
        self.forever(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))

    def forever(self, action: Callable[[], object]) -> NoReturn:
        """Call it as one unit of work, again and again."""
        while True:
            self.step()
            action()

    def _memory(self) -> dict[str, Any]:
        """Peaks so far, in MiB: memory resident in this process, or the program it runs, and taken on the GPU."""
        own = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        peaks = {"peak_mib": own if self._program_mib is None else self._program_mib}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            peaks["gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return peaks


def serve(works: Mapping[str, Work], versions: Callable[[], dict[str, str]]) -> None:
    """Do what the lines on stdin ask for until they end; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    requests = (json.loads(line) for line in sys.stdin)
    for request in requests:
        if request["do"] == "versions":
            answer(versions())
        elif request["do"] == "prepare":
            try:
                gate = Gate(requests, answer, request["warmup"])
                works[request["work"]](gate, request["settings"])
                answer({"error": "the work came to an end before it was released"})
            except Released:
                pass
            except Exception as error:
                traceback.print_exc()
                answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]})
            _clear()
            answer({"released": True})


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _clear() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
