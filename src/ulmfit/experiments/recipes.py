"""The experiments as data: what each shows, its rows, and what the paper found (Howard & Ruder 2018)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ulmfit.errors import ConfigError
from ulmfit.experiments.tasks import Measure
from ulmfit.experiments.ways import Way

ALL = None
"""every label there is"""


@dataclass(frozen=True)
class Row:
    """A name, what it changes of the paper's whole recipe, and the paper's error in % by task."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def way(self) -> Way:
        """The row's way through the stages."""
        return Way.parse(dict(self.changes))


@dataclass(frozen=True, eq=False)
class Experiment:
    """Rows measured alike, and the row that the others are compared with."""

    name: str
    title: str
    shows: str
    rows: tuple[Row, ...]
    reference: str
    measure: Measure = "valid"
    labels: tuple[int | None, ...] = (ALL,)
    """how many labelled documents; None is all, and numbers beyond all are left out"""
    figure: Literal["rows", "labels", "epochs"] = "rows"
    note: str = ""

    def row(self, name: str) -> Row:
        """The row of this name; ConfigError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names))}."
        raise ConfigError(f"experiment {self.name} has no row {name!r}; {hint}")


def _errors(imdb: float, trec6: float, ag_news: float) -> dict[str, float]:
    return {"imdb": imdb, "trec6": trec6, "ag_news": ag_news}


_RECIPE = _errors(5.00, 5.69, 5.38)
_PRESET: dict[str, Any] = {"tuning": "preset", "plan": "preset"}
# The network of the preset alone, for rows that add what else it may have.
_NETWORK: dict[str, Any] = _PRESET | {"self_training": 0.0, "bag_of_words": 0.0}
_PLAIN: dict[str, Any] = {"discriminative": 1.0, "schedule": "constant"}
# Nothing below the head is worth keeping slow where nothing has been learnt before.
_SCRATCH: dict[str, Any] = {"pretrained": False, "tuning": "none", "plan": "full", "discriminative": 1.0}

EXPERIMENTS = (
    Experiment(
        name="results",
        title="Test error, our recipe",
        shows="the whole recipe on the test set: forward, backward, and the mean of both",
        measure="test",
        reference="both",
        rows=(
            Row("forward", _PRESET, {"imdb": 5.30}),
            Row("backward", _PRESET | {"direction": "backward"}),
            Row(
                "both",
                _PRESET | {"direction": "both"},
                _errors(4.6, 3.6, 5.01) | {"dbpedia": 0.80, "yelp_polarity": 2.16, "yelp_full": 29.98},
            ),
        ),
        note="All settings of both stages are those of the preset and of --set. The test set was predicted once a run, "
        "at its end.",
    ),
    Experiment(
        name="pretraining",
        title="Table 4: pretraining",
        shows="what a language model learnt from general text is worth",
        reference="with",
        rows=(
            Row("without", {"pretrained": False, "tuning_discriminative": 1.0}, _errors(5.63, 10.67, 5.52)),
            Row("with", {}, _RECIPE),
        ),
        note="Without: random weights of the same sizes, then a language model of the task's text at one rate for all "
        "layers, then the same classifier.",
    ),
    Experiment(
        name="lm-quality",
        title="Table 5: quality of the language model",
        shows="whether the recipe needs a well regularised language model",
        reference="AWD-LSTM",
        rows=(Row("vanilla", {"regularised": False}, _errors(5.98, 7.41, 5.76)), Row("AWD-LSTM", {}, _RECIPE)),
        note="Vanilla: tuned without any dropout, AR or TAR; both start from the same base.",
    ),
    Experiment(
        name="lm-tuning",
        title="Table 6: fine-tuning the language model",
        shows="what tuning the language model, discriminative rates and slanted triangular rates add",
        reference="full + discr + stlr",
        rows=(
            Row("none", {"tuning": "none"}, _errors(6.99, 6.38, 6.09)),
            Row("full", {"tuning_discriminative": 1.0, "tuning_schedule": "constant"}, _errors(5.86, 6.54, 5.61)),
            Row("full + discr", {"tuning_schedule": "constant"}, _errors(5.55, 6.36, 5.47)),
            Row("full + discr + stlr", {}, _RECIPE),
        ),
        note="None: the base over the task's vocabulary, words it lacks at the mean of its rows.",
    ),
    Experiment(
        name="classifier-tuning",
        title="Table 7: fine-tuning the classifier",
        shows="what gradual unfreezing, discriminative rates and slanted triangular rates add",
        reference="freez + discr + stlr",
        rows=(
            Row("from scratch", _SCRATCH, _errors(9.93, 13.36, 6.81)),
            Row("full", {"plan": "full"} | _PLAIN, _errors(6.87, 6.86, 5.81)),
            Row("full + discr", {"plan": "full", "schedule": "constant"}, _errors(5.57, 6.21, 5.62)),
            Row("last", {"plan": "last"} | _PLAIN, _errors(6.49, 16.09, 8.38)),
            Row("chain-thaw", {"plan": "chain_thaw"} | _PLAIN, _errors(5.39, 6.71, 5.90)),
            Row("freez", _PLAIN, _errors(6.37, 6.86, 5.81)),
            Row("freez + discr", {"schedule": "constant"}, _errors(5.39, 5.86, 6.04)),
            Row("freez + stlr", {"discriminative": 1.0}, _errors(5.04, 6.02, 5.35)),
            Row("freez + cos", {"discriminative": 1.0, "schedule": "cosine"}, _errors(5.70, 6.38, 5.29)),
            Row("freez + discr + stlr", {}, _RECIPE),
        ),
        note="The rates are the paper's: .01 with discriminative rates, .001 without, chain-thaw .001 for the head and "
        ".0001 for the other layers. All rows have as many epochs in all, chain-thaw six at least.",
    ),
    Experiment(
        name="bidirectional",
        title="Section 5: both directions",
        shows="what a backward model adds to a forward one",
        measure="test",
        reference="both",
        rows=(
            Row("forward", _PRESET, {"imdb": 5.30}),
            Row("backward", _PRESET | {"direction": "backward"}),
            Row("both", _PRESET | {"direction": "both"}, {"imdb": 4.58}),
        ),
        note="Both: the mean of the two classifiers' probabilities.",
    ),
    Experiment(
        name="low-shot",
        title="Figure 3: few labels",
        shows="how many labels a tuned language model saves",
        measure="test",
        reference="semi-supervised",
        labels=(100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, ALL),
        figure="labels",
        rows=(
            Row("from scratch", _SCRATCH | {"text": "labelled"}),
            # Of the words in a hundred texts few are in the next one; the base knows the others.
            Row("supervised", _NETWORK | {"text": "labelled", "base_words": True}),
            Row("semi-supervised", _NETWORK),
            Row("semi-supervised + self-training", _NETWORK | {"self_training": 0.5}),
            Row("semi-supervised + bag of words", _NETWORK | {"bag_of_words": 1.0}),
            Row("both directions", _NETWORK | {"direction": "both"}),
            Row("both directions + self-training", _NETWORK | {"direction": "both", "self_training": 0.5}),
            Row("tf-idf", {"learner": "tf-idf"}),
        ),
        note="Supervised: the language model is tuned on the drawn texts alone, and its vocabulary keeps the base's "
        "words. Semi-supervised: on all the task's text. The paper draws validation error and prints no numbers; here "
        "it is test error: of the last epoch, or, from 2,000 labels on, of the epoch that was best on a tenth of the "
        "drawn labels. Rows that the paper does not have. Self-training: a second classifier learns as well from "
        "half of some unlabelled texts (classify.self_training_documents), the ones that the first is surest of, as it "
        "labels them. Bag of words: a linear model of words and pairs, made from the same labels and text, votes "
        "beside the network. Both directions: the mean of a forward and a backward classifier, each all of its own.",
    ),
    Experiment(
        name="forgetting",
        title="Figure 4: forgetting",
        shows="whether the recipe keeps what the language model knew, epoch by epoch",
        reference="ULMFiT",
        figure="epochs",
        rows=(Row("full", {"plan": "full"} | _PLAIN), Row("ULMFiT", {})),
        note="The paper draws the curves and prints no numbers.",
    ),
    Experiment(
        name="multi-task",
        title="The language model's loss beside the classifier's",
        shows="whether going on with the language model helps, at few and at many labels",
        reference="weight 0",
        labels=(500, ALL),
        rows=(
            Row("weight 0", _NETWORK),
            Row("weight 0.1", _NETWORK | {"language_model_weight": 0.1}),
            Row("weight 0.3", _NETWORK | {"language_model_weight": 0.3}),
            Row("weight 1", _NETWORK | {"language_model_weight": 1.0}),
            Row("weight 1, x 0.7 an epoch", _NETWORK | {"language_model_weight": 1.0, "language_model_decay": 0.7}),
        ),
        note="Not in the paper; SiATL (Chronopoulou et al. 2019) has such a loss, with decay.",
    ),
    Experiment(
        name="schedule",
        title="One cycle over all layers at once, or gradual unfreezing",
        shows="which schedule should be the default",
        reference="gradual unfreezing",
        labels=(1_000, ALL),
        rows=(
            Row("gradual unfreezing", {"tuning": "preset"}),
            Row("one cycle, all layers", {"tuning": "preset", "plan": "full", "schedule": "one_cycle"}),
            Row(
                "one cycle, all layers, one rate",
                {"tuning": "preset", "plan": "full", "schedule": "one_cycle", "discriminative": 1.0},
            ),
            Row("preset", _NETWORK),
        ),
        note="Not in the paper; MultiFiT (Eisenschlos et al. 2019) found one cycle the better one at 1,000 labels. As "
        "many epochs in all.",
    ),
)


def experiment_named(name: str) -> Experiment:
    """The experiment of this name; ConfigError with the nearest one where there is none."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = [experiment.name for experiment in EXPERIMENTS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
    raise ConfigError(f"no experiment {name!r}; {hint}")
