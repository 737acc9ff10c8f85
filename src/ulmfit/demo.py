"""The demo: the whole recipe on a bundled sample of IMDb in minutes, beside the usual baseline on the same labels."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ulmfit.baseline import train_baseline
from ulmfit.config import RunConfig, TrainConfig
from ulmfit.learning.budget import Budget
from ulmfit.pipeline import train
from ulmfit.predict import Predictor, evaluate
from ulmfit.presets import classify_preset, tune_preset
from ulmfit.text.sources import read_records
from ulmfit.training.events import Event, Note, Report, StageEnded

SAMPLE = Path(__file__).resolve().parent / "demo_data"
BASELINE = "tf-idf + logistic regression"


@dataclass(frozen=True)
class DemoResult:
    """What was measured."""

    labelled: int
    unlabelled: int
    test: int
    accuracy: dict[str, float]
    """of each classifier on the test reviews"""
    seconds: dict[str, float]
    """of each stage"""


def run_demo(*, out: Path | None, minutes: float, seed: int, report: Report) -> DemoResult:
    """Tune, train and test on the sample; the model is kept in `out` where that is given.

    Tuning and training do what fits into the minutes on this machine, the quick preset at most; where nothing does, the
    least there is, as a demo that refuses shows nothing.
    """
    budget = Budget(minutes, strict=False)
    with _folder(out) as folder:
        return _run(folder, budget=budget, seed=seed, report=report)


def _run(out: Path, *, budget: Budget, seed: int, report: Report) -> DemoResult:
    seconds: dict[str, float] = {}

    def timed(event: Event) -> None:
        if isinstance(event, StageEnded):
            seconds[event.name] = event.seconds
        report(event)

    learn = list(read_records([SAMPLE / "train.parquet"], label_column="label"))
    test = list(read_records([SAMPLE / "test.parquet"], label_column="label"))
    unlabelled = sum(1 for _ in read_records([SAMPLE / "unlabelled.parquet"]))
    report(Note(f"IMDb film reviews: {len(learn)} labelled, {unlabelled:,} unlabelled, {len(test):,} to test on"))

    start = time.monotonic()
    baseline = train_baseline([record.text for record in learn], [str(record.label) for record in learn])
    predicted = baseline.predict([record.text for record in test])
    right = sum(label == record.label for label, record in zip(predicted, test, strict=True))
    seconds[BASELINE] = time.monotonic() - start

    config = TrainConfig(
        run=RunConfig(seed=seed), tune=tune_preset("quick"), classify=classify_preset("quick", labelled=len(learn))
    )
    start = time.monotonic()
    bundle = train(
        SAMPLE / "train.parquet",
        unlabelled=[SAMPLE / "unlabelled.parquet"],
        config=config,
        out=out,
        budget=budget,
        report=timed,
    )
    seconds["planning, reading and saving"] = (
        time.monotonic() - start - sum(spent for name, spent in seconds.items() if name != BASELINE)
    )
    start = time.monotonic()
    measures = evaluate(Predictor(bundle), SAMPLE / "test.parquet")
    seconds["predict the test reviews"] = time.monotonic() - start
    return DemoResult(
        labelled=len(learn),
        unlabelled=unlabelled,
        test=len(test),
        accuracy={"ulmfit": measures["accuracy"], BASELINE: right / len(test)},
        seconds=seconds,
    )


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="ulmfit-demo-") as temporary:
        yield Path(temporary) / "model"
