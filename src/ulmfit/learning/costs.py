"""What a run takes: how much there is to read, what reading and learning cost on a machine, and the seconds of both.

Pure functions of what `planning.py` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulmfit.config import ClassifySettings, Phase, TrainConfig, UnfreezingPlan
from ulmfit.learning.bag_of_words import MOST_FEATURES, MOST_UNLABELLED
from ulmfit.learning.self_training import taught
from ulmfit.training.schedules import groups_of, phases_of

CHECKPOINT_MODELS = 3
"""a checkpoint has the optimizer's two moments beside the weights"""
BAG_READINGS = 4
"""readings of the text that take as long as a bag of words does to learn from it"""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take on a machine, with a base and with texts like these."""

    reading: float
    """a token, to find its vocabulary and its id"""
    tuning: float
    """a token of an epoch of tuning, but for the softmax"""
    softmax: float
    """a token of the same, for each word of the vocabulary"""
    classifying: float
    """a token of an epoch of the classifier with all layers learning"""
    head: float
    """a token with the head alone learning; measuring takes no longer"""
    saving: float
    """one model, written or read"""
    fixed: float
    """what comes once, whatever the plan"""

    def tuning_a_token(self, words: float) -> float:
        """Seconds of an epoch of tuning, with so large a vocabulary."""
        return self.tuning + self.softmax * words


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How many words a text has: `size` in the first `tokens`, growing with a power of them (Heaps' law)."""

    size: int
    tokens: float
    exponent: float
    limit: int

    def at(self, tokens: float) -> float:
        """The words of so much text."""
        return min(float(self.limit), self.size * math.pow(tokens / self.tokens, self.exponent))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is: documents, and tokens in them."""

    labelled: int
    labelled_tokens: float
    unlabelled: int
    unlabelled_tokens: float
    vocabulary: Vocabulary
    groups: int
    """layer groups of the classifier"""

    def tokens(self, unlabelled: int) -> float:
        """Those of all labelled and of so many unlabelled documents."""
        return self.labelled_tokens + self.unlabelled_tokens * unlabelled / max(1, self.unlabelled)

    def with_labelled(self, labelled: int) -> Sizes:
        """The same with so many of the labelled documents."""
        tokens = self.labelled_tokens * labelled / self.labelled
        return replace(self, labelled=labelled, labelled_tokens=tokens)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a plan or a run takes."""

    tuning: float = 0.0
    classifying: float = 0.0
    other: float = 0.0
    """reading, saving, starting"""

    def __add__(self, more: Seconds) -> Seconds:
        return Seconds(self.tuning + more.tuning, self.classifying + more.classifying, self.other + more.other)

    @property
    def total(self) -> float:
        """All of it."""
        return self.tuning + self.classifying + self.other


def seconds_of(
    unlabelled: int, config: TrainConfig, costs: Costs, sizes: Sizes, *, labelled: int | None = None
) -> Seconds:
    """What a run with these settings takes: tokens by their costs, and how often a model is written or read.

    The network learns from so many of the labelled documents, all if None.
    """
    everything = sizes
    if labelled is not None:
        sizes = sizes.with_labelled(labelled)
    tune, classify = config.tune, config.classify
    directions = len(config.run.directions)
    tokens = sizes.tokens(unlabelled)
    tuning_epochs = sum(phase.epochs for phase in tune.training.phases) if tune.learn else 0
    a_token = costs.tuning_a_token(sizes.vocabulary.at(tokens))
    tuning = directions * tuning_epochs * tokens * a_token
    phases = _phases(classify.phases, sizes.groups)
    classifying = _classifying(phases, costs, sizes, classify, learnt=sizes.labelled_tokens)
    if classify.self_training and unlabelled:
        pool = min(unlabelled, classify.self_training_documents)
        pool_tokens = sizes.tokens(pool) - sizes.labelled_tokens
        more = 1 + classify.self_training * pool / sizes.labelled
        again = _phases(taught(classify, documents=1, of=more).phases, sizes.groups)
        learnt = sizes.labelled_tokens + classify.self_training * pool_tokens
        classifying += pool_tokens * costs.head + _classifying(again, costs, sizes, classify, learnt=learnt)
        phases = [*phases, *again]
    classifying *= directions
    measured = sum(phase.epochs for phase in phases) if classify.valid_share else 0
    # The best epoch's weights, the last checkpoint of each stage, and each stage's result, written and read back.
    models = directions * (tuning_epochs + measured + 2 + 4)
    checkpoints = (tuning + classifying) / (60 * config.run.checkpoint_minutes)
    saving = (models + CHECKPOINT_MODELS * checkpoints) * costs.saving
    reading = (tokens + sizes.labelled_tokens) * costs.reading
    if classify.bag_of_words:  # whatever is planned, it has some of all the text
        reading += BAG_READINGS * everything.tokens(min(sizes.unlabelled, MOST_UNLABELLED)) * costs.reading
        asked = min(1.0, MOST_FEATURES / sizes.labelled) * sizes.labelled_tokens  # how far the features can be trusted
        reading += directions * asked * costs.head
    return Seconds(tuning, classifying, reading + saving + costs.fixed)


def _classifying(
    phases: Sequence[Phase], costs: Costs, sizes: Sizes, settings: ClassifySettings, *, learnt: float
) -> float:
    """Seconds of a classifier that learns from so many tokens, what is held out taken from them."""
    total = 0.0
    for phase in phases:
        alone = groups_of(phase, count=sizes.groups) == [sizes.groups - 1]
        learning = (1 - settings.valid_share) * (costs.head if alone else costs.classifying)
        total += phase.epochs * (learnt * learning + sizes.labelled_tokens * settings.valid_share * costs.head)
    return total


def _phases(phases: Sequence[Phase] | UnfreezingPlan, groups: int) -> Sequence[Phase]:
    return phases_of(phases, groups=groups) if isinstance(phases, UnfreezingPlan) else phases
