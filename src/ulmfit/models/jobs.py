"""Jobs that wait for each other, done by some threads: each takes the one that most of the work still hangs on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ulmfit.compute import in_threads


class Job(NamedTuple):
    """A piece of work that writes where no other job does, but those that it waits for or that wait for it."""

    work: Callable[[], None]
    after: tuple[int, ...] = ()
    """places, in the list of jobs, of those to be done before; they stand before it"""
    cost: float = 1.0
    """about, in any unit"""


def run_jobs(jobs: Sequence[Job], *, workers: int) -> None:
    """Do all jobs without gradients: in their order in this thread, or in several that share PyTorch's threads.

    What comes of the jobs does not hang on who did them when. The first exception is raised here when the jobs under
    way are done; no other is begun after it.
    """
    workers = min(workers, torch.get_num_threads(), len(jobs))
    if workers > 1:
        board = _Board(jobs)
        in_threads(board.work, range(workers))
        return
    with torch.no_grad():
        for job in jobs:
            job.work()


class _Board:
    """Which jobs can be begun."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.followers: list[list[int]] = [[] for _ in jobs]
        for place, job in enumerate(jobs):
            for earlier in job.after:
                self.followers[earlier].append(place)
        self.missing = [len(job.after) for job in jobs]
        self.chains = [0.0] * len(jobs)
        """cost of the dearest chain of jobs that begins with each"""
        for place in reversed(range(len(jobs))):
            self.chains[place] = jobs[place].cost + max(
                (self.chains[next_] for next_ in self.followers[place]), default=0
            )
        self.ready = {place for place, count in enumerate(self.missing) if count == 0}
        self.left = len(jobs)
        self.changed = threading.Condition()

    def work(self, _: int) -> None:
        """Until no job is left or one has failed."""
        with torch.no_grad():  # each thread has a mode of its own
            place: int | None = None
            while (place := self._next(done=place)) is not None:
                try:
                    self.jobs[place].work()
                except BaseException:
                    self._give_up()
                    raise

    def _next(self, *, done: int | None) -> int | None:
        with self.changed:
            if done is not None:
                self.left -= 1
                for place in self.followers[done]:
                    self.missing[place] -= 1
                    if self.missing[place] == 0:
                        self.ready.add(place)
                self.changed.notify_all()
            self.changed.wait_for(lambda: self.ready or self.left <= 0)
            if self.left <= 0:
                return None
            place = max(self.ready, key=lambda place: (self.chains[place], -place))
            self.ready.remove(place)
            return place

    def _give_up(self) -> None:
        with self.changed:
            self.left = 0
            self.changed.notify_all()


def waves(layers: Sequence[Sequence[tuple[Callable[[], None], float]]], *, alone: int = 0) -> list[Job]:
    """Works, and their costs, layer after layer: each waits for the one before it and for its like in the layer before.

    The first few of a layer wait for nothing. All layers have as many.
    """
    jobs: list[Job] = []
    for depth, works in enumerate(layers):
        for number, (work, cost) in enumerate(works):
            here, after = len(jobs), list[int]()
            if number >= alone:
                after = [here - 1] * (number > 0) + [here - len(works)] * (depth > 0)
            jobs.append(Job(work, tuple(after), cost))
    return jobs


def evenly(total: int, *, at_most: int, times: int = 1) -> list[tuple[int, int]]:
    """Edges (start, end) of parts of 0 to `total` of like length, none longer than may be.

    Where it can be, a multiple of `times` parts.
    """
    parts = -(-total // max(1, at_most))
    parts = -(-parts // times) * times
    length = -(-total // max(1, parts))
    return [(start, min(start + length, total)) for start in range(0, total, max(1, length))]
