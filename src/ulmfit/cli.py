"""The command line: parse, one call, print. Heavy libraries load inside the commands, so help is instant."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ulmfit.cli_experiments import ablate, experiment
from ulmfit.config import Direction as OneDirection
from ulmfit.config import PredictionPrecision, PretrainConfig, RunConfig, TrainConfig, TuneConfig
from ulmfit.config import Storage as StorageName
from ulmfit.endings import explained_end
from ulmfit.errors import ConfigError
from ulmfit.flags import (
    Base,
    Device,
    Direction,
    LabelColumn,
    Out,
    Preset,
    Profile,
    Resume,
    Seed,
    Settings,
    Storage,
    TextColumn,
    Valid,
    follows,
    parse_settings,
    with_settings,
)
from ulmfit.heap import share_heap

app = App(
    name="ulmfit",
    help="Turn a few labels and a lot of unlabelled text into an accurate text classifier (ULMFiT).",
    version=lambda: __import__("importlib.metadata").metadata.version("ulmfit"),
)

app.command(experiment)
app.command(ablate)


@app.command
def pretrain(
    *texts: Path,
    out: Out,
    valid: Valid = None,
    direction: Direction = "forward",
    vocab_size: Annotated[int | None, Parameter(help="most tokens in the vocabulary")] = None,
    preset: Preset = "quick",
    seed: Seed = 0,
    device: Device = "auto",
    storage: Storage = "float32",
    text_column: TextColumn = "text",
    settings: Settings = (),
    resume: Resume = False,
    profile: Profile = False,
) -> None:
    """Learn a language: pretrain a language model on a large general corpus.

    Parameters
    ----------
    texts
        csv, tsv, jsonl, parquet or txt files, or folders of them.
    """
    from ulmfit.console import ProgressDisplay
    from ulmfit.pipeline import pretrain as run
    from ulmfit.presets import pretrain_preset
    from ulmfit.summaries import show_run

    config = PretrainConfig(
        run=RunConfig.parse({"direction": direction, "seed": seed, "device": device, "storage": storage}),
        pretrain=pretrain_preset(preset),
    )
    own = {} if vocab_size is None else {"pretrain.tokenizer.vocab_size": vocab_size}
    config = with_settings(config, own, settings)
    with ProgressDisplay(quiet=follows()) as display:
        bundle = run(
            list(texts),
            config=config,
            out=out,
            valid=valid or [],
            text_column=text_column,
            resume=resume,
            profile=profile,
            report=display,
        )
    if follows():
        return
    show_run("Pretrained", bundle, display)
    _next(f"ulmfit tune TEXT... --base {out} --out tuned")


@app.command
def tune(
    *texts: Path,
    base: Base = "en",
    out: Out,
    valid: Valid = None,
    direction: Direction = "forward",
    preset: Preset = "quick",
    seed: Seed = 0,
    device: Device = "auto",
    storage: Storage = "float32",
    text_column: TextColumn = "text",
    settings: Settings = (),
    resume: Resume = False,
    profile: Profile = False,
) -> None:
    """Tune a pretrained language model on the text of your domain.

    Parameters
    ----------
    texts
        csv, tsv, jsonl, parquet or txt files, or folders of them; labels are not needed.
    """
    from ulmfit.console import ProgressDisplay
    from ulmfit.pipeline import tune_language_model
    from ulmfit.presets import tune_preset
    from ulmfit.summaries import show_run

    run = RunConfig.parse({"direction": direction, "seed": seed, "device": device, "storage": storage})
    config = with_settings(TuneConfig(run=run, tune=tune_preset(preset)), {}, settings)
    with ProgressDisplay(quiet=follows()) as display:
        bundle = tune_language_model(
            list(texts),
            base=base,
            config=config,
            out=out,
            valid=valid or [],
            text_column=text_column,
            resume=resume,
            profile=profile,
            report=display,
        )
    if follows():
        return
    show_run("Tuned", bundle, display)
    _next(f"ulmfit train LABELLED --base {out} --out model")


@app.command
def train(
    labelled: Path,
    *,
    out: Out,
    unlabelled: Annotated[
        list[Path] | None, Parameter(help="more text of the domain", consume_multiple=True, negative="")
    ] = None,
    test: Annotated[Path | None, Parameter(help="labelled file to measure the result on, once")] = None,
    base: Base = "en",
    direction: Direction = "forward",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    preset: Preset = "quick",
    seed: Seed = 0,
    device: Device = "auto",
    storage: Storage = "float32",
    minutes: Annotated[
        float | None, Parameter(help="do what fits into so many minutes here, the preset at most; --test not counted")
    ] = None,
    settings: Settings = (),
    resume: Resume = False,
    profile: Profile = False,
) -> None:
    """Train a classifier: tune the language model on your text, then learn from your labels.

    Parameters
    ----------
    labelled
        A file with a text and a label column, or a folder with a folder of .txt files for each label.
    """
    began = time.monotonic()

    from ulmfit.console import ProgressDisplay
    from ulmfit.learning.budget import LEAST_LABELLED, Budget, FewerLabels
    from ulmfit.pipeline import check_known_labels, check_labels
    from ulmfit.pipeline import train as run
    from ulmfit.predict import Predictor, evaluate
    from ulmfit.presets import FEW_LABELS, classify_preset, tune_preset
    from ulmfit.run_folder import RunFolder
    from ulmfit.summaries import show_classifier, show_run

    counts = check_labels(labelled, text_column=text_column, label_column=label_column)
    if test is not None:
        check_known_labels(test, list(counts), text_column=text_column, label_column=label_column)
    run_settings = RunConfig.parse({"direction": direction, "seed": seed, "device": device, "storage": storage})

    def settings_for(labels: int) -> TrainConfig:
        classify = classify_preset(preset, labelled=labels)
        return with_settings(TrainConfig(run=run_settings, tune=tune_preset(preset), classify=classify), {}, settings)

    count = sum(counts.values())
    config = settings_for(count)
    budget = None
    if minutes is not None:
        most = min(count, FEW_LABELS - 1)
        fewer = FewerLabels(settings_for(most), most, least=max(LEAST_LABELLED, 2 * len(counts)))
        budget = Budget(minutes, keep=tuple(parse_settings(settings)), began=began, fewer_labels=fewer)
    with ProgressDisplay(quiet=follows()) as display:
        bundle = run(
            labelled,
            config=config,
            out=out,
            unlabelled=unlabelled or [],
            budget=budget,
            base=base,
            text_column=text_column,
            label_column=label_column,
            resume=resume,
            profile=profile,
            report=display,
        )
    if follows():
        return
    show_run("Trained", bundle, display)
    if test is not None:
        measures = evaluate(Predictor(bundle, device=device), test, text_column=text_column, label_column=label_column)
        RunFolder(out).write_json("test.json", measures)
        show_classifier(test.name, measures)
    _next(f"ulmfit predict {out} TEXT --out predictions.csv")


@app.command
def evaluate(
    model: str,
    labelled: Path,
    *,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    device: Device = "auto",
    precision: PredictionPrecision = "auto",
    json_: Annotated[bool, Parameter(name="--json", help="print one JSON object", negative="")] = False,
) -> None:
    """Measure a classifier on labelled text, or a language model on any text (labels are not looked at)."""
    from ulmfit.bundle import LanguageModelBundle, read_bundle_config
    from ulmfit.predict import Predictor, evaluate_language_model
    from ulmfit.predict import evaluate as measure
    from ulmfit.pretrained import find_bundle
    from ulmfit.summaries import show_classifier, show_language_model

    folder = find_bundle(model)
    if read_bundle_config(folder)["kind"] == LanguageModelBundle.kind:
        if precision == "int8":
            raise ConfigError(
                f"{model}: is a language model, and int8 is for classifiers; leave the precision to auto."
            )
        measures = evaluate_language_model(
            LanguageModelBundle.load(folder), [labelled], text_column=text_column, device=device, precision=precision
        )
        show = show_language_model
    else:
        predictor = Predictor.load(folder, device=device, precision=precision)
        measures = measure(predictor, labelled, text_column=text_column, label_column=label_column)
        show = show_classifier
    if json_:
        print(json.dumps(measures))
    else:
        show(labelled.name, measures)


@app.command
def predict(
    model: str,
    text: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="a csv, tsv, jsonl or parquet file, a folder of txt, or - for lines of stdin",
        ),
    ] = "-",
    *,
    out: Annotated[str | None, Parameter(help="file to write; its suffix chooses the format")] = None,
    text_column: TextColumn = "text",
    device: Device = "auto",
    precision: PredictionPrecision = "auto",
) -> None:
    """Label texts: their columns come back with `label`, `confidence` and a probability for each class."""
    from ulmfit.predict import Predictor
    from ulmfit.text.tables import TableWriter

    predictor = Predictor.load(model, device=device, precision=precision)
    with TableWriter(out, stream=sys.stdout) as writer:
        for batch in predictor.predict_tables(text, text_column=text_column):
            writer.write(batch)


@app.command
def merge(
    *models: Annotated[Path, Parameter(help="folders of finished models, one direction each")],
    out: Out,
    storage: Annotated[
        StorageName | None, Parameter(help="how the weights are stored; as the first's are if not given")
    ] = None,
) -> None:
    """Make one model of a forward and a backward one, trained apart: side by side on two GPUs, for instance."""
    from ulmfit.merging import merge as run

    if len(models) < 2:
        raise ConfigError("merge: give the folders of two finished models, a forward and a backward one")
    bundle = run(models, out=out, storage=storage)
    print(f"Merged: {' and '.join(bundle.directions)}")
    _next(f"ulmfit predict {out} TEXT --out predictions.csv" if bundle.kind == "classifier" else f"ulmfit info {out}")


@app.command
def generate(
    model: Annotated[str, Parameter(help="a language model: en, a folder, or a hub id")],
    text: Annotated[str, Parameter(allow_leading_hyphen=True, help="what to go on with; may be empty")] = "",
    *,
    length: Annotated[int, Parameter(help="most tokens to write")] = 60,
    temperature: Annotated[float, Parameter(help="0: the likeliest token each time; 1: as the model has it")] = 0.8,
    top_p: Annotated[float, Parameter(help="draw from the likeliest tokens that have this much together")] = 0.9,
    seed: Seed = 0,
    direction: Annotated[
        OneDirection | None, Parameter(help="backward writes what comes before; the model's first if not given")
    ] = None,
    device: Device = "auto",
) -> None:
    """Let a language model go on with a text."""
    from ulmfit.bundle import LanguageModelBundle
    from ulmfit.generation import generate as run
    from ulmfit.pretrained import find_bundle

    bundle = LanguageModelBundle.load(find_bundle(model))
    print(
        run(
            bundle,
            text,
            length=length,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            direction=direction,
            device=device,
        )
    )


@app.command
def info(model: Annotated[str, Parameter(help="en, a folder, or a hub id")]) -> None:
    """Show a model's card."""
    from rich.console import Console
    from rich.markdown import Markdown

    from ulmfit.bundle import read_bundle_config
    from ulmfit.card import model_card
    from ulmfit.pretrained import find_bundle

    Console().print(Markdown(model_card(read_bundle_config(find_bundle(model)))))


@app.command
def demo(
    *,
    out: Annotated[Path | None, Parameter(help="keep the trained model in this new folder")] = None,
    minutes: Annotated[float, Parameter(help="for tuning and training: what fits into them on this machine")] = 8.0,
    seed: Seed = 0,
) -> None:
    """Train a classifier on a bundled sample of film reviews and compare it with tf-idf + logistic regression."""
    from ulmfit.console import ProgressDisplay
    from ulmfit.demo import run_demo
    from ulmfit.summaries import show_demo

    with ProgressDisplay() as display:
        result = run_demo(out=out, minutes=minutes, seed=seed, report=display)
    show_demo(result)
    _next("ulmfit train LABELLED --unlabelled TEXT... --out model")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's error is one line on stderr and exit code 2, a bug keeps its traceback."""
    share_heap()
    words = sys.argv[1:] if arguments is None else arguments
    again = "the same command" if words and words[0] in ("experiment", "ablate") else "--resume"
    with explained_end(again=again):
        app(words, exit_on_error=False, print_error=False)


def _next(command: str) -> None:
    print(f"Next: {command}")
