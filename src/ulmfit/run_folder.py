"""The folder of a run: its settings, its metrics, its working files, and the rule that nothing earlier is lost."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit.config import Config
from ulmfit.errors import CheckpointError, OutputError

SETTINGS, METRICS, PROFILE, PLAN, WORK = "run.json", "metrics.jsonl", "profile.json", "plan.json", "work"


class RunFolder:
    """`out/run.json` (resolved settings), `out/metrics.jsonl` (a line an epoch) and `out/work` (gone when done).

    `out/profile.json`, where a profile was asked for, has seconds by stage and part; `out/plan.json`, where minutes
    were given, what was chosen for them.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out / WORK

    @property
    def finished(self) -> bool:
        """Whether the run's model is there."""
        return (self.out / "config.json").exists()

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl by these records, whole or not at all: a resumed run must not repeat lines."""
        self._replace(METRICS, "".join(json.dumps(record) + "\n" for record in records))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a small JSON file in the run's folder, whole or not at all."""
        self._replace(name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Remove the working files; the result is saved."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _replace(self, name: str, text: str) -> None:
        temporary = self.out / f".{name}.writing"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.out / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OutputError(f"{self.out / name}: cannot be written ({error}); free some space") from None


@contextlib.contextmanager
def open_run(
    out: Path, *, command: str, config: Config, inputs: Mapping[str, Any], resume: bool
) -> Iterator[RunFolder]:
    """The folder of one run, locked against a second one; `command`, `config` and `inputs` are kept in run.json.

    Raises OutputError where `out` holds another run or cannot be written, CheckpointError where it is resumed with
    other settings or inputs, naming the first that differs.
    """
    run = RunFolder(out)
    settings = {"command": command, "inputs": dict(inputs), "config": config.model_dump(mode="json")}
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is not an empty folder; pass --resume to go on with the run in it, or another --out")
    if resume and _holds_no_run(out):
        raise OutputError(f"{out}: holds other files and no run to go on with; choose another --out")
    try:
        made = not out.exists()
        run.work.mkdir(parents=True, exist_ok=True)
        lock = (run.work / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out}: another run is writing there; wait for it or choose another --out") from None
        try:
            _check_same(out, settings)
            try:
                run.write_json(SETTINGS, settings)
                yield run
            except Exception:
                _forget_if_nothing_was_done(run, made=made)
                raise
        finally:
            if run.finished:
                run.finish()


def _holds_no_run(out: Path) -> bool:
    """Whether there are files in the folder, but none by which a run makes itself known before its first work."""
    started = {WORK, ".lock", f".{SETTINGS}.writing"}
    return not (out / SETTINGS).exists() and any(path.name not in started for path in out.rglob("*"))


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    """A run is resumed with what it was started with."""
    path = out / SETTINGS
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); start again in another --out") from None
    old, new = _flat(before), _flat(settings)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise CheckpointError(
                f"{out}: cannot resume, {name} was {old.get(name)!r} and is now {new.get(name)!r}; "
                "use the same again, or another --out"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, so that a difference can be named."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: leaf
        for key, inner in values.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _forget_if_nothing_was_done(run: RunFolder, *, made: bool) -> None:
    """After an error before any checkpoint, leave no trace: the folder may be used again at once."""
    if any(run.out.rglob("checkpoint-*")) or any(run.out.rglob("config.json")):
        return
    if made:
        shutil.rmtree(run.out, ignore_errors=True)
    else:
        shutil.rmtree(run.work, ignore_errors=True)
        for name in (SETTINGS, METRICS, PROFILE, PLAN):
            (run.out / name).unlink(missing_ok=True)
