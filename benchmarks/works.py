"""What is measured: each work, who does it at which settings, and the ratio that is hoped for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.data import SHORT


@dataclass(frozen=True)
class Task:
    """What one side does in a work."""

    side: str
    work: str
    settings: dict[str, Any]
    repeat: Callable[[dict[str, Any]], int] = lambda settings: 1
    """units in one timed run"""
    warmup: int = 1
    """units before the first"""
    sweep: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """a setting whose best value this side may choose"""


@dataclass(frozen=True)
class Work:
    """The same work for every side, which take turns."""

    name: str
    title: str
    unit: str
    tasks: tuple[Task, ...]
    rounds: int = 5
    show: Literal["rate", "time", "memory"] = "rate"
    """what the table tells: units a second, seconds a unit, or peak memory after each run"""
    resident: bool = True
    """both sides keep what they built; else each builds anew at its turn, with the whole machine to itself"""
    goal: dict[str, tuple[float, float]] = field(default_factory=dict)
    """for a peer: how many times faster at least, and the aim"""

    def beside(self, peers: Collection[str]) -> Work:
        """The same with this project and some of its peers alone."""
        return replace(self, tasks=tuple(task for task in self.tasks if task.side in {"ulmfit", *peers}))


FASTAI_BATCH, MINILM_BATCH = 64, 16
"""of 32, 64 and 128, and of 16, 32 and 64, the fastest on 200 reviews"""


def _model(vocab: int, *, tiny: bool) -> dict[str, int]:
    if tiny:
        return {"vocab": 500, "embedding": 16, "hidden": 32, "window": 10}
    return {"vocab": vocab, "embedding": 400, "hidden": 1152, "window": 70}


def _steps(tokens: int) -> Callable[[dict[str, Any]], int]:
    """As many steps as read about that many tokens."""

    def steps(settings: dict[str, Any]) -> int:
        return max(2, tokens // (settings["batch"] * settings.get("tokens", settings["window"])))

    return steps


def cpu_model(*, tiny: bool) -> dict[str, int]:
    """The sizes on a CPU, with 30,000 words."""
    return _model(30_000, tiny=tiny)


def cpu_works(folder: str, *, tiny: bool) -> list[Work]:
    """On all cores of a CPU, each work by processes of its own; `folder` is that of `data.py`."""
    model = {**cpu_model(tiny=tiny), "device": "cpu", "folder": folder}
    batch, documents, length = (4, 4, 60) if tiny else (64, 16, 1400)

    def task(side: str, work: str, warmup: int = 1, **settings: Any) -> Task:
        return Task(side, work, {**model, **settings}, warmup=warmup)

    def both(work: str, **settings: Any) -> tuple[Task, ...]:
        return tuple(task(side, work, **settings) for side in ("ulmfit", "fastai"))

    works = [
        Work(
            "cpu-tokenise",
            "tokenise IMDb's training reviews, one process (fastai: 500 of them, and no ids)",
            "characters",
            (task("ulmfit", "tokenise", texts="tokenise"), task("fastai", "tokenise", texts="tokenise-few")),
            rounds=3,
            goal={"fastai": (20.0, 50.0)},
        ),
        Work(
            "cpu-language-model",
            f"language model training, a step of {batch} x {model['window']} tokens",
            "tokens",
            both("language_model_step", batch=batch),
            goal={"fastai": (5.0, 8.0)},
        ),
    ]
    stages = {1: "the head alone", 2: "two layer groups", 3: "three layer groups", None: "all layers"}
    for groups, named in stages.items():
        works.append(
            Work(
                f"cpu-classifier-{groups or 'all'}",
                f"classifier training, {named}, a step of {documents} documents of {length:,} tokens",
                "tokens",
                both("classifier_step", batch=documents, tokens=length, groups=groups),
                rounds=3,
                goal={"fastai": (5.0, 8.0)} if groups is None else {},
            )
        )
    one = {"documents": 1, "tokens": 15 if tiny else 300, "batch": 1}
    works += [
        Work(
            "cpu-predict-one",
            "predict one text of 300 tokens, text to label",
            "texts",
            both("predict", texts="one-300", unit="texts", batch=1),
            rounds=7,
            show="time",
            goal={"fastai": (4.0, 8.0)},
        ),
        Work(
            "cpu-predict-one-ids",
            "the same from ids, without tokenizing",
            "texts",
            both("predict_ids", **one),
            rounds=7,
            show="time",
            goal={"fastai": (4.0, 8.0)},
        ),
        Work(
            "cpu-predict-many",
            "predict 1,000 IMDb reviews",
            "texts",
            (
                task("ulmfit", "predict", 0, texts="many", unit="texts"),
                task("fastai", "predict", 0, texts="many", unit="texts", batch=FASTAI_BATCH),
                task("sentence-transformers", "predict", 0, texts="many", batch=MINILM_BATCH),
                task("scikit-learn", "predict", texts="many"),
            ),
            rounds=3,
            goal={"fastai": (5.0, 8.0), "sentence-transformers": (6.0, 12.0)},
        ),
        Work(
            "cpu-predict-short",
            f"predict the first {SHORT} words of each, which sentence-transformers reads whole",
            "texts",
            (
                task("ulmfit", "predict", 0, texts="short", unit="texts"),
                task("sentence-transformers", "predict", 0, texts="short", batch=MINILM_BATCH),
            ),
            rounds=3,
            goal={"sentence-transformers": (6.0, 12.0)},
        ),
        Work(
            "cpu-predict-long",
            "predict one text of 200,000 tokens (fastai: the first 20,000 of them)",
            "tokens",
            (
                task("ulmfit", "predict", 0, texts="one-200000", unit="tokens"),
                task("fastai", "predict", 0, texts="one-20000", unit="tokens", batch=1),
            ),
            rounds=3,
        ),
        Work("cpu-start-help", "start: `ulmfit --help`", "starts", (task("ulmfit", "start_help"),), show="time"),
        Work(
            "cpu-start-predict",
            "start, load, predict one text of 300 tokens and end",
            "starts",
            (
                *both("start_predict", texts="one-300", batch=1),
                task("sentence-transformers", "start_predict", texts="one-300"),
            ),
            show="time",
        ),
    ]
    for tokens in (2_000, 200_000):
        works.append(
            Work(
                f"cpu-memory-predict-{tokens}",
                f"prediction of one text of {tokens:,} tokens",
                "tokens",
                (task("ulmfit", "predict", 0, texts=f"one-{tokens}", unit="tokens"),),
                rounds=1,
                show="memory",
            )
        )
    small = model | {"embedding": 32, "hidden": 64, "batch": 8 if tiny else 256}
    # One epoch more than is run: an epoch's unit ends where the next one asks for leave.
    small |= {"tokenizer": f"{folder}/few-words.json", "held_out": 20, "epochs": 11}
    for corpus, title, epochs in (
        ("corpus", "training of a small model, after each of ten epochs", 10),
        ("corpus-ten-times", "the same after one epoch, of as many steps, of a corpus ten times as large", 1),
    ):
        works.append(
            Work(
                f"cpu-memory-{corpus}",
                title,
                "tokens",
                (Task("ulmfit", "language_model_step", small | {"corpus": f"{folder}/{corpus}"}, warmup=0),),
                rounds=epochs,
                show="memory",
            )
        )
    return works


def gpu_works(*, device: str, tiny: bool) -> list[Work]:
    """On one GPU, with 60,000 words; each side reads batches of the size it is best at."""
    model = {**_model(60_000, tiny=tiny), "device": device}
    scale = 256 if tiny else 1
    batches = (4, 8) if tiny else (64, 128, 256, 512, 1024)
    documents = 4 if tiny else 64
    lengths = (30, 70) if tiny else (300, 1400)
    many = 40 if tiny else 4096

    def both(work: str, settings: dict[str, Any], **given: Any) -> tuple[Task, ...]:
        return tuple(Task(side, work, {**model, **settings}, **given) for side in ("ulmfit", "fastai"))

    works = [
        Work(
            "gpu-language-model",
            f"language model training, window {model['window']}, best batch of each",
            "tokens",
            both("language_model_step", {}, repeat=_steps(1_500_000 // scale), warmup=4, sweep={"batch": batches}),
            resident=False,
            goal={"fastai": (2.2, 2.8)},
        )
    ]
    for length in lengths:
        works.append(
            Work(
                f"gpu-classifier-{length}",
                f"classifier training, all layers, {documents} documents of {length:,} tokens",
                "tokens",
                both(
                    "classifier_step",
                    {"batch": documents, "tokens": length, "groups": None},
                    repeat=_steps(500_000 // scale),
                    warmup=3,
                ),
                goal={"fastai": (2.5, 4.0)},
            )
        )
    predict = {**model, "documents": many}
    for name, of_fastai, theirs in (
        ("gpu-predict", "fastai's default batch", {"batch": batches[:1]}),
        ("gpu-predict-best", "best batch of fastai", {"batch": batches[:-1]}),
    ):
        works.append(
            Work(
                name,
                f"prediction, {many:,} tokenised texts of mixed length, {of_fastai}",
                "tokens",
                (
                    Task("ulmfit", "predict_ids", predict, repeat=lambda _: 2),
                    Task("fastai", "predict_ids", predict, repeat=lambda _: 2, sweep=theirs),
                ),
                goal={"fastai": (3.0, 8.0)},
            )
        )
    one = {**model, "documents": 1, "tokens": lengths[0], "batch": 1}
    works.append(
        Work(
            "gpu-predict-one",
            f"prediction, one tokenised text of {lengths[0]} tokens",
            "texts",
            tuple(Task(side, "predict_ids", one, repeat=lambda _: 20) for side in ("ulmfit", "fastai")),
        )
    )
    return works
