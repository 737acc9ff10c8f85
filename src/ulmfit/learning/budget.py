"""A plan that fits into some minutes: a pure function of what things cost, how much there is of them, and the settings.

The settings are the most that is ever done. Plans lie on one path, from the least there is to the settings in full, on
which nothing shrinks; the last one on it that fits is taken, and what time is left goes to more unlabelled texts, as
the next step of the path may be much more than that: another epoch of all of them. So more minutes mean more epochs, or
as many and more texts. The path:

- Tuning and the classifier grow side by side, whichever has had fewer seconds so far: the settings of the demo, found
  by search, spend 238 seconds on the one and 179 on the other.
- Tuning grows by unlabelled texts while there is too little text to read it twice, then by its epochs, then by all
  other texts: with fewer minutes these are the first to go. On the demo's 300,000 tokens one epoch instead of two cost
  1.3 points; on 91,000 tokens of long reviews a second one made held-out perplexity worse (docs/results, minutes).
- The classifier's phases grow together and each keeps an epoch, so that the shape of the recipe stays.

Where the settings want self-training and there is time for it on as many unlabelled texts as there are labelled ones, a
few hundred at least, it comes before all of this: a classifier of few epochs that teaches a second one is better than
one of many (300 short reviews: 86.5 % after one and two epochs of the first, 84.6 after two and eight without a second;
docs/results, self-training). Else there is none.

Where an epoch of each phase on all labelled texts is too much, there is a path before that one: the network learns from
more and more of them, by the settings for few labels, and the bag of words beside it from all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from ulmfit.config import Config, Phase, TrainConfig, UnfreezingPlan
from ulmfit.errors import ConfigError
from ulmfit.learning.costs import Costs, Seconds, Sizes, seconds_of

SAFETY = 0.85
"""of the time: what a plan may take by its own estimate"""
TEXT_STEP = 1.02
"""how much more text the next plan on the path has"""
WORTH_REPEATING = 200_000
"""tokens of text below which more text comes before another epoch"""
LEAST_LABELLED = 50
"""labelled texts that a network learns from at least, where there are as many"""
LABEL_STEP = 1.1
"""how many more the next plan on the path has, while it has not all"""
LEAST_TAUGHT = 500
"""unlabelled texts, where there are as many, from which on a classifier teaches a second one"""
TEACHING_EPOCHS = 2
"""of the longest phase of a classifier that does, where its settings have as many"""
TEACHING_SHARE = 1 / 8
"""of a plan's seconds, up to which such a classifier has more epochs: few or short labelled texts cost little"""
TUNING, CLASSIFIER = "tune.training.phases", "classify.phases"
BAG, SELF_TRAINING = "classify.bag_of_words", "classify.self_training"
"""the settings that a plan may change"""


@dataclass(frozen=True, slots=True)
class FewerLabels:
    """How to learn where there is no time for all labelled texts."""

    config: TrainConfig
    """settings for few labels, the most that is done"""
    most: int
    """labelled texts that they are for, at most"""
    least: int = LEAST_LABELLED
    """and at least, where there are as many"""


@dataclass(frozen=True, slots=True)
class Budget:
    """Minutes from `began` on, and the settings, by dotted name, that are not to be changed for them.

    Where they are too few for the least plan there is, that is an error if `strict`, else it is taken all the same.
    Without `fewer_labels` every plan has all labelled texts.
    """

    minutes: float
    keep: Collection[str] = ()
    began: float = field(default_factory=time.monotonic)
    strict: bool = True
    fewer_labels: FewerLabels | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError where there is no time at all."""
        if not 0 < self.minutes < math.inf:
            raise ConfigError(f"--minutes {self.minutes:g}: expected more than none, and an end")

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def keeps(self, name: str) -> bool:
        """Whether this setting, a group it is in or a part of it was given."""
        return any(name == given or name.startswith(f"{given}.") or given.startswith(f"{name}.") for given in self.keep)


class Plan(Config):
    """What was chosen; the settings in full where there was time for them."""

    minutes: float
    labelled: int
    """documents that the network learns from, drawn with the seed of `config`; a bag of words beside it has all"""
    of_labelled: int
    unlabelled: int
    """documents, drawn likewise"""
    of: int
    seconds: float
    """expected, from here on"""
    config: TrainConfig


def choose(costs: Costs, sizes: Sizes, config: TrainConfig, budget: Budget, *, spent: float = 0.0) -> Plan:
    """The largest plan whose seconds fit what is left of the budget.

    Where none does: ConfigError, with the least minutes that would do, or the smallest if the budget is not strict.
    """
    seconds_left = 60 * budget.minutes - spent
    least, chosen = _least_and_largest(costs, sizes, config, budget, seconds_left)
    fewer = budget.fewer_labels
    if chosen is None and fewer is not None:
        config = fewer.config
        if not config.classify.bag_of_words and not budget.keeps(BAG):
            config = config.override({BAG: 1.0})  # or nothing would learn from the other labels
        counts = _more_and_more_labelled(fewer.least, min(fewer.most, sizes.labelled))
        least, chosen = _least_and_largest(costs, sizes, config, budget, seconds_left, labelled=counts)
    if chosen is None and budget.strict:
        seconds = least.seconds(costs, sizes, config).total
        minutes = math.ceil((spent + seconds / SAFETY) / 6) / 10
        kept = ", with the phases as you set them," if _kept(budget) else ""
        texts = f"the {sizes.labelled:,}" if least.labelled == sizes.labelled else f"{least.labelled:,}"
        raise ConfigError(
            f"--minutes {budget.minutes:g}: too few for an epoch of each phase on {texts} labelled "
            f"texts alone; the least that would do here{kept} is --minutes {minutes:g}"
        )
    chosen = chosen or least
    return Plan(
        minutes=budget.minutes,
        labelled=chosen.labelled,
        of_labelled=sizes.labelled,
        unlabelled=chosen.unlabelled,
        of=sizes.unlabelled,
        seconds=round(chosen.seconds(costs, sizes, config).total, 1),
        config=chosen.config(config),
    )


def fits_all_labelled(costs: Costs, sizes: Sizes, config: TrainConfig, budget: Budget, *, spent: float = 0.0) -> bool:
    """Whether there is time for the least plan on all labelled texts."""
    least = next(_path(costs, sizes, config, budget))
    return least.seconds(costs, sizes, config).total <= SAFETY * (60 * budget.minutes - spent)


def _least_and_largest(
    costs: Costs,
    sizes: Sizes,
    config: TrainConfig,
    budget: Budget,
    seconds_left: float,
    *,
    labelled: Iterable[int] | None = None,
) -> tuple[_Point, _Point | None]:
    """The first plan of a path, and the last one that fits with what more texts fit as well; None where none does.

    The path with self-training comes before the one without, where the settings want it.
    """

    def fits(point: _Point) -> bool:
        return point.seconds(costs, sizes, config).total <= SAFETY * seconds_left

    ways: tuple[bool, ...] = (False,)
    if config.classify.self_training and sizes.unlabelled:
        if budget.keeps(SELF_TRAINING):
            ways = (True,)
        elif labelled is None:
            ways = (True, False)
    for teaches in ways:
        path = _path(costs, sizes, config, budget, labelled=labelled, teaches=teaches)
        least = chosen = next(path)
        if fits(least):
            break
    else:
        return least, None
    for point in path:
        if not fits(point):
            break
        chosen = point
    while (more := chosen.more_texts(sizes)) != chosen and fits(more):
        chosen = more
    return least, chosen


# --- the path -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Point:
    """A plan on the path, its epochs counted by those of the longest phase of each stage."""

    labelled: int
    unlabelled: int
    tuning: int
    classifying: int
    teaches: bool = False
    """whether there is self-training, as the settings have it"""

    def config(self, most: TrainConfig) -> TrainConfig:
        """The settings with so many epochs."""
        training = most.tune.training.model_copy(update={"phases": shrunk(most.tune.training.phases, self.tuning)})
        phases: tuple[Phase, ...] | UnfreezingPlan
        if isinstance(most.classify.phases, UnfreezingPlan):
            phases = most.classify.phases.model_copy(update={"epochs": self.classifying})
        else:
            phases = shrunk(most.classify.phases, self.classifying)
        classify = {"phases": phases} | ({} if self.teaches else {"self_training": 0.0})
        return most.model_copy(
            update={
                "tune": most.tune.model_copy(update={"training": training}),
                "classify": most.classify.model_copy(update=classify),
            }
        )

    def seconds(self, costs: Costs, sizes: Sizes, most: TrainConfig) -> Seconds:
        return seconds_of(self.unlabelled, self.config(most), costs, sizes, labelled=self.labelled)

    def classifier_lags(self, costs: Costs, sizes: Sizes, most: TrainConfig) -> bool:
        """Whether the classifier, not tuning, is to grow next where both can."""
        seconds = self.seconds(costs, sizes, most)
        if not self.teaches:
            return seconds.classifying < seconds.tuning
        first = replace(self, teaches=False).seconds(costs, sizes, most).classifying
        return first < TEACHING_SHARE * seconds.total

    def more_tuning(self, longest: int, sizes: Sizes, most: TrainConfig) -> Self:
        tokens = sizes.with_labelled(self.labelled).tokens(self.unlabelled)
        enough = tokens >= WORTH_REPEATING
        if self.teaches:  # each text teaches the second classifier as well
            enough = self.unlabelled >= most.classify.self_training_documents
        enough = enough or self.unlabelled == sizes.unlabelled
        if self.tuning < longest and enough:
            return replace(self, tuning=self.tuning + 1)
        return self.more_texts(sizes)

    def more_texts(self, sizes: Sizes) -> Self:
        texts = math.ceil(TEXT_STEP * (self.labelled + self.unlabelled)) - self.labelled
        return replace(self, unlabelled=min(texts, sizes.unlabelled))


def _path(
    costs: Costs,
    sizes: Sizes,
    config: TrainConfig,
    budget: Budget,
    *,
    labelled: Iterable[int] | None = None,
    teaches: bool = False,
) -> Iterator[_Point]:
    """All plans, each with more of one thing than the one before: first of the labelled texts, all of them if None.

    Those with self-training, or those without.
    """
    longest = max(phase.epochs for phase in config.tune.training.phases)
    most = _longest(config.classify.phases)
    kept = {name: budget.keeps(name) for name in (TUNING, CLASSIFIER)}
    texts = min(sizes.unlabelled, max(LEAST_TAUGHT, sizes.labelled)) if teaches else 0
    epochs = min(most, TEACHING_EPOCHS if teaches else 1)
    for count in (sizes.labelled,) if labelled is None else labelled:
        point = _Point(
            count, texts, longest if kept[TUNING] else 1, most if kept[CLASSIFIER] else epochs, teaches=teaches
        )
        yield point
    while True:
        tuning_grows = point.tuning < longest or point.unlabelled < sizes.unlabelled
        classifier_grows = point.classifying < most
        if not tuning_grows and not classifier_grows:
            return
        if tuning_grows and not (classifier_grows and point.classifier_lags(costs, sizes, config)):
            point = point.more_tuning(longest, sizes, config)
        else:
            point = replace(point, classifying=point.classifying + 1)
        yield point


def _more_and_more_labelled(least: int, most: int) -> Iterator[int]:
    """Growing numbers of labelled texts."""
    count = min(least, most)
    while count < most:
        yield count
        count = min(most, math.ceil(LABEL_STEP * count))
    yield most


def shrunk(phases: Sequence[Phase], longest: int) -> tuple[Phase, ...]:
    """The phases with epochs in proportion, the longest `longest` of them; whole ones, and one at least."""
    share = longest / _longest(phases)
    return tuple(
        phase.model_copy(update={"epochs": max(1, math.floor(phase.epochs * share + 0.5))}) for phase in phases
    )


def _longest(phases: Sequence[Phase] | UnfreezingPlan) -> int:
    return phases.epochs if isinstance(phases, UnfreezingPlan) else max(phase.epochs for phase in phases)


def _kept(budget: Budget) -> list[str]:
    return [name for name in (TUNING, CLASSIFIER) if budget.keeps(name)]


# --- in words -------------------------------------------------------------------------------------------------------


def described(plan: Plan, sizes: Sizes, costs: Costs, config: TrainConfig, budget: Budget) -> str:
    """What was chosen, beside what the settings ask for at most."""
    tuning = _counted(plan.config.tune.training.phases, config.tune.training.phases)
    classifier = _counted(plan.config.classify.phases, config.classify.phases)
    texts = f"{plan.unlabelled:,} of {plan.of:,} unlabelled texts beside" if plan.of else "no unlabelled texts beside"
    a_token = costs.tuning_a_token(sizes.vocabulary.at(sizes.with_labelled(plan.labelled).tokens(plan.unlabelled)))
    labelled = f"the {plan.labelled:,} labelled"
    if plan.labelled < plan.of_labelled:
        bag = plan.config.classify.bag_of_words
        labelled = f"{plan.labelled:,} of {plan.of_labelled:,} labelled"
        labelled += ", all of which the bag of words has" if bag else ""
    if config.classify.self_training and plan.of:
        classifier += ", which teaches a second one" if plan.config.classify.self_training else ", no self-training"
    kept = _kept(budget)
    stays = f"; {' and '.join(kept)} {'stays' if len(kept) == 1 else 'stay'} as set" if kept else ""
    return (
        f"for {plan.minutes:g} minutes: {texts} {labelled}; epochs of tuning: {tuning}, of the "
        f"classifier: {classifier}; about {in_words(plan.seconds)} at {1 / a_token:,.0f} tokens/s tuning and "
        f"{1 / costs.classifying:,.0f} classifying{stays}"
    )


def in_words(seconds: float) -> str:
    """`41 seconds` or `3.6 minutes`."""
    return f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def _counted(chosen: Sequence[Phase] | UnfreezingPlan, most: Sequence[Phase] | UnfreezingPlan) -> str:
    """`1 + 4 of 2 + 8`, phase by phase, or `2 + 8` where those are all."""
    few, many = (
        str(phases.epochs) if isinstance(phases, UnfreezingPlan) else " + ".join(str(phase.epochs) for phase in phases)
        for phases in (chosen, most)
    )
    return few if few == many else f"{few} of {many}"
