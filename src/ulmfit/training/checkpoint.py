"""The state of a run on disk: written whole or not at all, two kept, a damaged one passed over."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ulmfit.errors import CheckpointError, OutputError

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{9})")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint read back."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    passed_over: list[str]
    """one line for each newer checkpoint that was damaged"""


class Checkpoints:
    """Numbered checkpoints in a folder: tensors as safetensors, all else as JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write the next checkpoint to a temporary name, rename it, drop all but the newest two.

        Raises OutputError where the folder cannot be written; earlier checkpoints stay.
        """
        number = max((_number(path) for path in self._all()), default=-1) + 1
        temporary = self.folder / f".writing-{number:09d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            weights = temporary / "tensors.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
            checked = {"format": FORMAT, "checksum": _checksum(weights, facts), "facts": dict(facts)}
            (temporary / "facts.json").write_text(json.dumps(checked), encoding="utf-8")
            for path in (weights, temporary / "facts.json", temporary):
                _flush(path)
            temporary.rename(self.folder / f"checkpoint-{number:09d}")
            _flush(self.folder)
            for old in self._all()[:-KEPT]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(
                f"{self.folder}: cannot write a checkpoint ({error}); free some space or choose another --out"
            ) from None

    def load(self) -> Saved | None:
        """The newest sound checkpoint, or None where there is none at all.

        Raises CheckpointError where there are checkpoints and all are damaged.
        """
        problems: list[str] = []
        for path in reversed(self._all()):
            try:
                return Saved(*_read(path), passed_over=problems)
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(f"no checkpoint can be used: {'; '.join(problems)}. Start again without --resume.")
        return None

    def clear(self) -> None:
        """Remove them all, the stage being done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    weights = path / "tensors.safetensors"
    try:
        checked = json.loads((path / "facts.json").read_text(encoding="utf-8"))
        if checked["format"] != FORMAT:
            raise CheckpointError(f"{path.name} has format {checked['format']}, this version reads {FORMAT}")
        if _checksum(weights, checked["facts"]) != checked["checksum"]:
            raise CheckpointError(f"{path.name} is damaged: its checksum does not match")
        return load_file(weights), checked["facts"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} is damaged ({type(error).__name__}: {error})") from None


def _number(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _checksum(path: Path, facts: Mapping[str, Any]) -> int:
    """One number for both files: a wrong digit among the facts would spoil a run as surely as a wrong weight."""
    value = zlib.crc32(json.dumps(dict(facts)).encode())
    with path.open("rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value


def _flush(path: Path) -> None:
    """Push a file or folder to the disk, so that a rename never outlives the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
