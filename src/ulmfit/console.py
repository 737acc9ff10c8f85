"""What a person sees in the terminal: a progress bar while a stage works, a table when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ulmfit.training.events import EpochEnded, Event, Note, StageEnded, StageStarted
from ulmfit.training.events import Progress as Stepped


class ProgressDisplay:
    """Turns a run's events into one bar with rate, time left and loss, and a line an epoch; goes to stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metric]}"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, Mapping[str, float]] = {}
        """of each stage that was profiled"""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StageStarted(name, steps, done):
                self._close()
                self._task = self._bars.add_task(name, total=steps, completed=done, rate="", metric="")
            case Stepped(_, step, loss, rate) if self._task is not None:
                self._bars.update(self._task, completed=step, rate=f"{rate:,.0f} tokens/s", metric=f"loss {loss:.3f}")
            case EpochEnded(name, record):
                self.console.print(f"{name}: {epoch_line(record)}", highlight=False, markup=False, soft_wrap=True)
            case StageEnded(name, seconds, parts):
                self._close()
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
                if parts is not None:
                    self.parts[name] = parts
            case Note(text):
                self.console.print(text, highlight=False, markup=False, soft_wrap=True, style="dim")
            case _:
                pass

    @property
    def elsewhere(self) -> float:
        """Seconds so far that went to no stage: reading text, making the vocabulary, saving."""
        return time.monotonic() - self._began - sum(self.seconds.values())

    def _close(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def epoch_line(record: Mapping[str, Any]) -> str:
    """One epoch in one line: `epoch 3  loss 3.912  perplexity 48.1  5,210 tokens/s  31 s`."""
    parts = [f"epoch {record['epoch']}", f"loss {record['train_loss']:.3f}"]
    if "perplexity" in record:
        parts.append(f"perplexity {record['perplexity']:.2f}")
    if "accuracy" in record:
        parts.append(f"held-out loss {record['valid_loss']:.3f}  accuracy {record['accuracy']:.2%}")
    return "  ".join([*parts, f"{record['tokens_per_second']:,} tokens/s", f"{record['seconds']:.0f} s"])


def profile_table(display: ProgressDisplay) -> Table:
    """Where the time went: a column a stage, a row for each thing that took any, and what was no stage's."""
    stages = display.parts
    rows = []
    for part in dict.fromkeys(part for parts in stages.values() for part in parts):
        cells = [(parts.get(part, 0.0), sum(parts.values())) for parts in stages.values()]
        rows.append([part, *(f"{spent:.1f} s {spent / max(whole, 1e-9):4.0%}" for spent, whole in cells)])
    title = f"Where the time went; reading text and saving: {display.elsewhere:.1f} s"
    return table(title, ["part", *stages], rows)


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A small table, words left and all else right; classes and files may be called `[/b]` or whatever they like."""
    made = Table(title=escape(title), title_justify="left", title_style="bold")
    for index, heading in enumerate(headings):
        made.add_column(escape(heading), justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*map(escape, row))
    return made
