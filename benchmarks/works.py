"""What is measured: each work, who does it at which settings, and the ratio that is hoped for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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
    resident: bool = True
    """both sides keep what they built; else each builds anew at its turn, with the whole machine to itself"""
    goal: dict[str, tuple[float, float]] = field(default_factory=dict)
    """for a peer: how many times faster at least, and the aim"""


def _model(vocab: int, *, tiny: bool) -> dict[str, int]:
    if tiny:
        return {"vocab": 500, "embedding": 16, "hidden": 32, "window": 10}
    return {"vocab": vocab, "embedding": 400, "hidden": 1152, "window": 70}


def _steps(tokens: int) -> Callable[[dict[str, Any]], int]:
    """As many steps as read about that many tokens."""

    def steps(settings: dict[str, Any]) -> int:
        return max(2, tokens // (settings["batch"] * settings.get("tokens", settings["window"])))

    return steps


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
    works.append(
        Work(
            "gpu-predict",
            f"prediction, {many:,} tokenised texts of mixed length, best batch of fastai",
            "tokens",
            (
                Task("ulmfit", "predict_ids", predict, repeat=lambda _: 2),
                Task("fastai", "predict_ids", predict, repeat=lambda _: 2, sweep={"batch": batches[:-1]}),
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
