"""The commands of experiments: `ulmfit experiment ...` and `ulmfit ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from ulmfit.config import PresetName
from ulmfit.errors import ConfigError
from ulmfit.flags import Base, Device, LabelColumn, Preset, Settings, Several, TextColumn, parse_settings

if TYPE_CHECKING:
    from ulmfit.experiments.report import Written
    from ulmfit.experiments.tasks import Task

experiment = App(name="experiment", help="Run an experiment of the paper, on its data or on yours.")

Results = Annotated[Path, Parameter(help="folder of the results; given again, what is done is skipped")]
Seeds = Annotated[int, Parameter(help="how many runs of each row, with seeds 0, 1, ...")]
BackwardBase = Annotated[str | None, Parameter(help="a base that reads backward, where --base does not")]
LanguageModels = Annotated[
    int | None, Parameter(help="tuned language models that the seeds share; one for each if not given")
]
Test = Annotated[Path | None, Parameter(help="labelled test file; a fifth of LABELLED is set aside if not given")]


@experiment.default
def run(
    name: str,
    *,
    data: Annotated[
        list[str] | None,
        Parameter(help="imdb, trec6, ag_news, ..., or a labelled file", consume_multiple=True, negative=""),
    ] = None,
    unlabelled: Several = None,
    test: Test = None,
    seeds: Seeds = 1,
    labels: Annotated[
        str | None, Parameter(help="how many labels, e.g. 100,500,all; the experiment's own if not given")
    ] = None,
    rows: Annotated[list[str] | None, Parameter(help="these rows alone", consume_multiple=True, negative="")] = None,
    out: Results = Path("experiments"),
    preset: Annotated[PresetName, Parameter(help="sizes and rates: paper for a GPU, quick for two cores")] = "paper",
    base: Base = "en",
    backward_base: BackwardBase = None,
    language_models: LanguageModels = None,
    workers: Annotated[int, Parameter(help="processes that share the runs, a GPU each")] = 1,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    device: Device = "auto",
    settings: Settings = (),
) -> None:
    """Make the runs of an experiment that are not in the results yet, then its tables and figures.

    Parameters
    ----------
    name
        One that `ulmfit experiment list` shows, several with commas, or all.
    """
    from ulmfit.console import ProgressDisplay
    from ulmfit.experiments.recipes import EXPERIMENTS, experiment_named
    from ulmfit.experiments.report import write_report
    from ulmfit.experiments.runner import Options, run_experiment

    if language_models is not None and language_models < 1:
        raise ConfigError(f"--language-models {language_models}: expected one at least")
    names = [known.name for known in EXPERIMENTS] if name == "all" else name.split(",")
    for each in names:
        experiment_named(each)
    tasks = [
        _task(given, unlabelled, test, text_column=text_column, label_column=label_column) for given in data or ["imdb"]
    ]
    options = Options(
        out=out,
        preset=preset,
        settings=parse_settings(settings),
        base=base,
        backward_base=backward_base,
        device=device,
        language_models=language_models,
    )
    with ProgressDisplay() as display:
        run_experiment(
            names,
            tasks,
            options=options,
            seeds=seeds,
            labels=None if labels is None else _counts(labels),
            rows=rows,
            workers=workers,
            report=display,
        )
    _show(write_report(out), out)


@experiment.command(name="list")
def list_experiments() -> None:
    """Show the experiments, what each shows, and how many runs a seed has on a large data set."""
    from rich.console import Console

    from ulmfit.console import table
    from ulmfit.experiments.recipes import EXPERIMENTS
    from ulmfit.experiments.tasks import TASK_NAMES

    rows = [[known.name, known.shows, known.measure, str(len(known.rows) * len(known.labels))] for known in EXPERIMENTS]
    Console().print(table("Experiments", ["name", "shows", "measured on", "runs a seed"], rows))
    print(f"Data: {', '.join(TASK_NAMES)}, or a labelled file.")
    print("Next: ulmfit experiment NAME --data LABELLED --out DIR")


@experiment.command(name="report")
def report_experiments(*, out: Results = Path("experiments")) -> None:
    """Make the tables and figures from the results in --out."""
    from ulmfit.experiments.report import write_report

    _show(write_report(out), out)


def ablate(
    labelled: Path,
    *,
    unlabelled: Several = None,
    test: Test = None,
    minutes: Annotated[float, Parameter(help="most time to take; data and seeds are fitted to it")] = 120.0,
    out: Results,
    only: Annotated[
        list[str] | None, Parameter(help="these experiments alone", consume_multiple=True, negative="")
    ] = None,
    seeds: Seeds = 3,
    base: Base = "en",
    backward_base: BackwardBase = None,
    preset: Preset = "quick",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    device: Device = "auto",
    settings: Settings = (),
) -> None:
    """See which parts of the recipe pay on your own data, in a given time.

    Parameters
    ----------
    labelled
        A file with a text and a label column, or a folder with a folder of .txt files for each label.
    """
    from ulmfit.console import ProgressDisplay
    from ulmfit.experiments.ablation import run_ablation
    from ulmfit.experiments.report import write_report
    from ulmfit.experiments.runner import Options
    from ulmfit.experiments.tasks import task_of_files

    task = task_of_files(
        labelled, unlabelled=unlabelled or (), test=test, text_column=text_column, label_column=label_column
    )
    options = Options(
        out=out,
        preset=preset,
        settings=parse_settings(settings),
        base=base,
        backward_base=backward_base,
        device=device,
        language_models=1,
    )
    with ProgressDisplay() as display:
        left_out = run_ablation(task, minutes=minutes, options=options, names=only, seeds=seeds, report=display)
    _show(write_report(out), out)
    if left_out:
        print(f"Left out for want of time, {len(left_out)} runs: {'; '.join(map(str, left_out))}")
        print("Next: the same command again goes on with them")


def _task(given: str, unlabelled: list[Path] | None, test: Path | None, *, text_column: str, label_column: str) -> Task:
    """A data set of the paper by name, or the user's file."""
    from ulmfit.experiments.tasks import TASK_NAMES, task_named, task_of_files

    if given in TASK_NAMES or not Path(given).exists():
        return task_named(given)
    return task_of_files(
        Path(given), unlabelled=unlabelled or (), test=test, text_column=text_column, label_column=label_column
    )


def _counts(text: str) -> list[int | None]:
    """`100,500,all` as numbers, None for all."""
    counts: list[int | None] = []
    for word in text.split(","):
        if word.strip() != "all" and not word.strip().isdecimal():
            raise ConfigError(f"--labels {text}: {word!r} is no number; expected e.g. 100,500,all")
        counts.append(None if word.strip() == "all" else int(word))
    return counts


def _show(written: Written, out: Path) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    for table in written.tables:
        Console().print(Markdown(table.as_markdown()))
    print(f"Tables: {written.paths[0]}, {written.paths[1]}")
    if not written.drawn:
        print("No figures: to have them drawn, pip install 'ulmfit[plots]'")
    print(f"Next: ulmfit experiment report --out {out}")
