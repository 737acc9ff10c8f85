"""How learning rates move: shares of the peak as pure functions of progress, and plans of what learns when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ulmfit.config import Phase, UnfreezingPlan
from ulmfit.errors import ConfigError

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1e-5


def slanted_triangular(progress: float, *, cut_frac: float = 0.1, ratio: float = 32.0) -> float:
    """Share of the peak rate at `progress` in [0, 1]: a short linear rise, a long linear fall. ULMFiT, eq. 3.

    With progress = t / T this is the paper's formula; its floor(T * cut_frac) is taken as T * cut_frac, which is the
    same where that is a whole number and is defined for any T.
    """
    rising = progress < cut_frac
    share = progress / cut_frac if rising else 1 - (progress - cut_frac) / (1 - cut_frac)
    return (1 + share * (ratio - 1)) / ratio


def one_cycle(progress: float, *, rise: float = 0.3) -> float:
    """Share of the peak rate: half a cosine up from 1/25, half a cosine down to 1e-5 (Smith 2018)."""
    if progress < rise:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _half_cosine(progress / rise)
    return 1 - (1 - ONE_CYCLE_END) * _half_cosine((progress - rise) / (1 - rise))


def cosine(progress: float) -> float:
    """Share of the peak rate: half a cosine from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 1 - _half_cosine(progress)


def _half_cosine(progress: float) -> float:
    """0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * progress)) / 2


def schedule_of(phase: Phase) -> Callable[[float], float]:
    """The phase's schedule with its own rise filled in."""
    schedules: dict[str, Callable[[float], float]] = {
        "slanted_triangular": lambda progress: slanted_triangular(progress, cut_frac=phase.rise),
        "one_cycle": lambda progress: one_cycle(progress, rise=phase.rise),
        "cosine": cosine,
        "constant": lambda progress: 1.0,
    }
    return schedules[phase.schedule]


def discriminative_rates(peak: float, *, groups: int, factor: float = 2.6) -> list[float]:
    """A rate for each layer group, the last the peak, each one below smaller by `factor`. ULMFiT, section 3.2."""
    return [peak / factor**depth for depth in reversed(range(groups))]


def groups_of(phase: Phase, *, count: int) -> list[int]:
    """The phase's groups as indices from 0, sorted. Raises ConfigError where the model has no such group."""
    chosen = range(count) if phase.groups is None else phase.groups
    if not chosen:
        raise ConfigError(f"a phase trains no layer group; name some of -{count} to {count - 1}, or null for all")
    for index in chosen:
        if not -count <= index < count:
            raise ConfigError(
                f"a phase trains layer group {index}, but the model has {count}; use -{count} to {count - 1}"
            )
    return sorted({index % count for index in chosen})


def phases_of(plan: UnfreezingPlan, *, groups: int) -> tuple[Phase, ...]:
    """The paper's ways of fine-tuning a classifier with `groups` layer groups, as a list of phases.

    - gradual: the last group for one epoch, then one more group each epoch, then all for `epochs` (section 3.3);
    - full: everything for `epochs`;
    - last: the head alone for `epochs`;
    - chain_thaw: the head for one epoch at `rate`, then each group by itself from the bottom for one epoch, then all
      for `epochs`, these at `lower_rate`, the same for every group (Felbo et al. 2017; ULMFiT, section 5).
    """

    def phase(which: tuple[int, ...] | None, epochs: int, rate: float, factor: float) -> Phase:
        return Phase(groups=which, epochs=epochs, rate=rate, discriminative=factor, schedule=plan.schedule)

    rate, factor = plan.rate, plan.discriminative
    if plan.plan == "full":
        return (phase(None, plan.epochs, rate, factor),)
    if plan.plan == "last":
        return (phase((-1,), plan.epochs, rate, factor),)
    if plan.plan == "gradual":
        growing = [tuple(range(-depth, 0)) for depth in range(1, groups)]
        return (*(phase(which, 1, rate, factor) for which in growing), phase(None, plan.epochs, rate, factor))
    lower = rate / 10 if plan.lower_rate is None else plan.lower_rate
    singles = [phase((index,), 1, lower, 1.0) for index in range(groups - 1)]
    return (phase((-1,), 1, rate, 1.0), *singles, phase(None, plan.epochs, lower, 1.0))


def phases_over_more(
    phases: Sequence[Phase] | UnfreezingPlan, *, documents: float, of: float
) -> tuple[Phase, ...] | UnfreezingPlan:
    """Phases over `of` documents that take about twice the steps they took over `documents`, two epochs at least.

    Where they have as many to begin with, and never more.
    """

    def fewer(epochs: int) -> int:
        return min(epochs, max(2, round(2 * epochs * documents / of)))

    if isinstance(phases, UnfreezingPlan):
        return phases.model_copy(update={"epochs": fewer(phases.epochs)})
    return tuple(phase.model_copy(update={"epochs": fewer(phase.epochs)}) for phase in phases)
