"""Several processes that share a list of runs, a GPU each where there are any."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from typing import Any

import torch

from ulmfit.errors import ProcessError, UlmfitError
from ulmfit.experiments.runner import Options, Run, work
from ulmfit.experiments.tasks import Prepared
from ulmfit.text.child_processes import end_with_parent
from ulmfit.training.events import EpochEnded, Event, Note, Report

_CONTEXT = get_context("spawn")  # a fork of a process with threads can deadlock
POLL_SECONDS = 0.2


def work_side_by_side(
    runs: Sequence[Run], data: Mapping[str, Prepared], *, options: Options, workers: int, report: Report
) -> None:
    """Make the runs in so many processes; each takes the next one that no other is at.

    On a machine with GPUs worker i sees one of them alone, the i-th in turn. What the first process to fail says is
    raised here, and the others are ended; what they had begun goes on from its checkpoints next time.
    """
    told: Any = _CONTEXT.Queue()
    gpus = _visible_gpus() if options.device in ("auto", "cuda") else []
    processes = []
    for number in range(workers):
        gpu = gpus[number % len(gpus)] if gpus else None
        processes.append(started(_worker, number, workers, gpu, list(runs), dict(data), options, told))
    try:
        _listen(told, processes, report)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def started(work: Callable[..., Any], *arguments: Any) -> Any:
    """A process at work, which may start others, as reading much text does, and ends when this one has."""
    process = _CONTEXT.Process(target=_following, args=(work, *arguments))
    process.start()
    return process


def _following(work: Callable[..., Any], *arguments: Any) -> None:
    end_with_parent()
    work(*arguments)


def _listen(told: Any, processes: Sequence[Any], report: Report) -> None:
    """Pass on what workers tell until all have ended; raise what one failed with."""
    ended = 0
    while ended < len(processes):
        try:
            kind, message = told.get(timeout=POLL_SECONDS)
        except queue.Empty:
            dead = [process for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise ProcessError(
                    f"a worker ended with exit code {dead[0].exitcode}; start the command again to go on"
                ) from None
            continue
        if kind == "error":
            raise ProcessError(message)
        if kind == "end":
            ended += 1
        else:
            report(Note(message))


def _worker(
    number: int,
    workers: int,
    gpu: str | None,
    runs: list[Run],
    data: dict[str, Prepared],
    options: Options,
    told: Any,
) -> None:
    """One process; its threads are its share of those there would be."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA starts here
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

    def report(event: Event) -> None:
        if isinstance(event, Note):
            told.put(("note", f"[{number}] {event.text}"))
        elif isinstance(event, EpochEnded):
            told.put(("note", f"[{number}] {event.name}, epoch {event.record['epoch']}"))

    try:
        work(runs, data, options=options, report=report, wait=False)
        told.put(("end", ""))
    except UlmfitError as error:
        told.put(("error", str(error)))


def _visible_gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES would have them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(index) for index in range(count)]
