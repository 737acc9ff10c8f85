"""What all tests share."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, ClassVar

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Tiny models lose time on many threads, and the tests run on all cores side by side. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _kernels_folder() -> Path:
    """Where compiled kernels are kept: with Numba a kernel's own file says whether it is new, not what it calls."""
    sources = sorted((PROJECT / "src" / "ulmfit" / "models").glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return PROJECT / "build" / "kernels" / digest[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(_kernels_folder()))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real text that projects share: `ULMFIT_DATA`, taken from the project's root when relative."""
    folder = (PROJECT / os.environ.get("ULMFIT_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set ULMFIT_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """`with threads(2):` gives torch that many threads for a while."""
    import torch

    @contextmanager
    def given(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return given


@pytest.fixture(scope="module")
def one_thread(threads: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    """Threads that wait for each other on a busy machine make steps this small fifty times slower."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(1000):` no file may grow beyond so many bytes: the system refuses a write as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limit on the size of files here")

    @contextmanager
    def limited(largest: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


# --- a language so small that models of it are trained while one waits ----------------------------------------------


class TinyLanguage:
    """Reviews of clauses such as `the story felt very dull and`; only the last words of clauses tell the class.

    No word comes twice in a row and all are lower case, so a text's tokens are its words, in either direction. Files
    and models are made once, when first asked for; settings are dotted names, for `override` and for `--set`.
    """

    NOUNS: ClassVar = ["film", "story", "actor", "scene", "ending", "plot", "song", "voice", "camera", "script"]
    VERBS: ClassVar = ["was", "felt", "seemed", "looked", "stayed"]
    NEUTRAL: ClassVar = ["long", "short", "loud", "quiet", "new", "old", "french", "early"]
    TELLING: ClassVar = {
        "bad": ["dull", "weak", "clumsy", "cold", "boring", "empty", "awful", "stale"],
        "good": ["lovely", "warm", "clever", "bright", "touching", "funny", "fine", "sweet"],
    }
    DROPOUTS: ClassVar = {"input": 0.05, "embedding": 0.02, "weight": 0.1, "hidden": 0.05}
    LANGUAGE_MODEL: ClassVar = {
        "batch_size": 8,
        "window": 16,
        "window_jitter": 2.0,
        "valid_share": 0.1,
        "phases": [{"rate": 0.02, "epochs": 3, "discriminative": 1.0, "schedule": "one_cycle"}],
    }
    SHORT: ClassVar[dict[str, Any]] = {
        "tune__training": {**LANGUAGE_MODEL, "phases": [{"rate": 0.01}]},
        "classify__phases": [{"rate": 0.01}],
    }
    """an epoch of each stage, for `settings` and `flags`"""
    SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "run": {"precision": "float32", "device": "cpu"},
        "pretrain": {
            "tokenizer.vocab_size": 100,
            "encoder.embedding_size": 12,
            "encoder.hidden_size": 20,
            "encoder.layers": 2,
            "encoder.dropouts": DROPOUTS,
            "training": LANGUAGE_MODEL,
        },
        # All that a preset sets, so that no test hangs on a preset's values.
        "tune": {
            "dropouts": DROPOUTS,
            "output_dropout": 0.1,
            "dropout_multiplier": 0.5,
            "training": LANGUAGE_MODEL,
        },
        "classify": {
            "dropouts": DROPOUTS,
            "head_hidden_size": 10,
            "head_dropouts": [0.1, 0.0],
            "window": 12,
            "horizon": 48,
            "batch_size": 8,
            "valid_share": 0.2,
            "phases": [
                {"groups": [-1], "rate": 0.05, "epochs": 1},
                {"rate": 0.05, "epochs": 10, "discriminative": 1.3, "schedule": "one_cycle"},
            ],
        },
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def review(self, label: str, dice: random.Random) -> str:
        """One review of two to five clauses, one of which at least tells the class."""
        count = dice.randint(2, 5)
        telling = dice.randrange(count)
        clauses = []
        for clause in range(count):
            last = self.TELLING[label] if clause == telling or dice.random() < 0.4 else self.NEUTRAL
            words = (("the", "a", "this"), self.NOUNS, self.VERBS, ("very", "quite", "so"), last)
            clauses.append(" ".join(dice.choice(choices) for choices in words))
        return " and ".join(clauses)

    def reviews(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """(text, label) of as many good as bad reviews."""
        dice = random.Random(seed)
        return [(self.review(label, dice), label) for label in (["good", "bad"] * count)[:count]]

    def write(self, path: Path, rows: Iterable[Sequence[str]], columns: Sequence[str] = ("text", "label")) -> Path:
        """A csv file of these rows."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        return path

    def file(self, name: str, count: int, *, seed: int) -> Path:
        """A csv file of reviews, written once."""
        path = self.folder / f"{name}.csv"
        return path if path.exists() else self.write(path, self.reviews(count, seed=seed))

    @cached_property
    def general(self) -> Path:
        """Text to pretrain on."""
        return self.file("general", 200, seed=1)

    @cached_property
    def labelled(self) -> Path:
        """Reviews to train on."""
        return self.file("labelled", 120, seed=2)

    @cached_property
    def unlabelled(self) -> Path:
        """More reviews, whose labels nobody looks at."""
        return self.file("unlabelled", 80, seed=3)

    @cached_property
    def test(self) -> Path:
        """Reviews to test on."""
        return self.file("test", 100, seed=4)

    def settings(self, *stages: str, **changed: Any) -> dict[str, Any]:
        """The settings of `run` and these stages by dotted name; `changed` has "__" for each dot."""
        values = {
            f"{stage}.{name}": value for stage in ("run", *stages) for name, value in self.SETTINGS[stage].items()
        }
        return values | {name.replace("__", "."): value for name, value in changed.items()}

    def flags(self, *stages: str, **changed: Any) -> list[str]:
        """The same for the command line."""
        values = self.settings(*stages, **changed)
        return [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]

    @cached_property
    def base(self) -> Path:
        """A language model of both directions, pretrained on `general`."""
        from ulmfit.config import PretrainConfig
        from ulmfit.pipeline import pretrain

        config = PretrainConfig().override(self.settings("pretrain", run__direction="both"))
        pretrain([self.general], config=config, out=self.folder / "base")
        return self.folder / "base"

    @cached_property
    def tuned(self) -> Path:
        """A forward language model, tuned from `base` on `labelled`, to train many classifiers on."""
        from ulmfit.config import TuneConfig
        from ulmfit.pipeline import tune_language_model

        config = TuneConfig().override(self.settings("tune"))
        tune_language_model([self.labelled], base=self.base, config=config, out=self.folder / "tuned")
        return self.folder / "tuned"

    @cached_property
    def model(self) -> Path:
        """A classifier of both directions, trained on `labelled` and `unlabelled`."""
        from ulmfit.config import TrainConfig
        from ulmfit.pipeline import train

        config = TrainConfig().override(self.settings("tune", "classify", run__direction="both"))
        train(self.labelled, unlabelled=[self.unlabelled], base=self.base, config=config, out=self.folder / "model")
        return self.folder / "model"


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int | str | None
    out: str
    err: str


@pytest.fixture
def ulmfit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the command line in this process: `ulmfit("predict", model, "-", stdin=b"...")`."""

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        from ulmfit.cli import main

        capsys.readouterr()
        with monkeypatch.context() as changed, pytest.raises(SystemExit) as ended:
            changed.setenv("COLUMNS", "200")
            changed.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            main([str(argument) for argument in arguments])
        return Ran(ended.value.code, *capsys.readouterr())

    return run


# --- two processes of one run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def forks() -> Any:
    """Starts processes that have loaded what a run loads already: `forks.Process(target=..., args=...)`."""
    context = multiprocessing.get_context("forkserver")
    own = ["ulmfit.cli", "ulmfit.console", "ulmfit.pipeline", "ulmfit.predict", "ulmfit.learning.voters"]
    loaded_on_the_way = ["torch._dynamo", "numba", "matplotlib.figure", "sklearn.linear_model", "pyarrow.parquet"]
    context.set_forkserver_preload([*own, *loaded_on_the_way])
    # A shell's background job ignores Ctrl-C, and so would all that it starts: the server of forks must not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    return context


_AS_TORCHRUN_DOES = """
import os, sys, torch
os.environ.update({environment!r}, RANK="{rank}", LOCAL_RANK="{rank}")
os.dup2(os.open({output!r}, os.O_CREAT | os.O_WRONLY, 0o600), 2)
torch.set_num_threads(1)
RANK, FOLDER = {rank}, {folder!r}
"""


@pytest.fixture
def two_processes(forks: Any, tmp_path: Path) -> Callable[[str], list[tuple[int, str]]]:
    """Run a program in two connected processes, where it finds RANK and FOLDER; how each ended and its stderr."""

    def run(program: str) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        outputs = [tmp_path / f"{port} {rank}" for rank in range(2)]
        processes = []
        for rank, output in enumerate(outputs):
            told = {"environment": environment, "rank": rank, "output": str(output), "folder": str(tmp_path)}
            source = _AS_TORCHRUN_DOES.format(**told) + textwrap.dedent(program)
            processes.append(forks.Process(target=exec, args=(source, {"__name__": "program"}), daemon=True))
            processes[-1].start()
        for process in processes:
            process.join(180)
            if process.is_alive():
                process.kill()
                process.join()
        return [(process.exitcode, output.read_text()) for process, output in zip(processes, outputs, strict=True)]

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLanguage:
    """A language of two classes, with files and models of it to share: read them, change nothing."""
    return TinyLanguage(tmp_path_factory.mktemp("tiny"))
