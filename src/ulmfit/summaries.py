"""The short tables that a command ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from ulmfit.console import ProgressDisplay, profile_table, table

if TYPE_CHECKING:
    from ulmfit.bundle import Bundle
    from ulmfit.demo import DemoResult


def show_run(verb: str, bundle: Bundle[Any, Any], display: ProgressDisplay) -> None:
    """What a run measured of each stage, and where its time went if that was asked."""
    rows = []
    for stage, measures in bundle.facts["results"].items():
        shown = [
            f"{name.replace('_', ' ')} {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}"
            for name, value in measures.items()
        ]
        spent = f"{display.seconds[stage]:.0f} s" if stage in display.seconds else "-"
        rows.append([stage, "  ".join(shown), spent])
    console = Console()
    console.print(table(verb, ["stage", "measures", "time"], rows))
    if display.parts:
        console.print(profile_table(display))


def show_classifier(title: str, measures: dict[str, Any]) -> None:
    """Measures of a classifier, as `predict.evaluate` gives them: over all, and class by class."""
    console = Console()
    overall = [
        ["texts", f"{measures['count']:,}"],
        ["accuracy", f"{measures['accuracy']:.2%}"],
        ["error", f"{measures['error']:.2%}"],
        ["macro F1", f"{measures['macro_f1']:.4f}"],
        ["log loss", f"{measures['log_loss']:.4f}"],
    ]
    console.print(table(title, ["measure", "value"], overall))
    names = list(measures["classes"])
    rows = [
        [
            name,
            *(f"{values[key]:.4f}" for key in ("precision", "recall", "f1")),
            str(values["count"]),
            *map(str, confused),
        ]
        for (name, values), confused in zip(measures["classes"].items(), measures["confusion"], strict=True)
    ]
    headings = ["true class", "precision", "recall", "F1", "texts", *(f"as {name}" for name in names)]
    console.print(table("By class", headings, rows))


def show_language_model(title: str, measures: dict[str, Any]) -> None:
    """Measures of a language model, as `predict.evaluate_language_model` gives them."""
    rows = [
        [direction, f"{values['perplexity']:.2f}", f"{values['bits_per_character']:.4f}"]
        for direction, values in measures["directions"].items()
    ]
    counts = f"{measures['tokens']:,} tokens, {measures['unknown']:.2%} unknown"
    Console().print(table(f"{title}: {counts}", ["direction", "perplexity", "bits per character"], rows))


def show_demo(result: DemoResult) -> None:
    """Accuracies and times of the demo."""
    title = f"Accuracy on {result.test:,} test reviews, from {result.labelled} labels"
    Console().print(table(title, ["classifier", "accuracy"], [[n, f"{a:.1%}"] for n, a in result.accuracy.items()]))
    times = [[name, f"{spent:.0f} s"] for name, spent in result.seconds.items()]
    times.append(["all", f"{sum(result.seconds.values()):.0f} s"])
    Console().print(table("Time", ["stage", "time"], times))
