"""What a sweep could tell, before its first training, and which sweep could tell a given difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from ..config.checks import is_finite
from ..errors import InputError, naming
from ..scoring.designs import Design

POWER = 0.8  # in four of five such sweeps
_FOLDS, _MOST_REPEATS = (3, 5, 10), 20


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a training's Dice about its arm and fold.

    Attributes:
        std: the standard deviation.
        low, high: its 95% interval; equal to it where it is stated and not measured.
        source: where it is from, in words.
    """

    std: float
    low: float
    high: float
    source: str


def stated_spread(std: float) -> Spread:
    """A guess.

    Raises:
        InputError: it is not a number in (0, 0.5].

    Example:
        >>> stated_spread(0.02)
        Spread(std=0.02, low=0.02, high=0.02, source='as stated')
    """
    if not is_finite(std) or not 0 < std <= 0.5:
        raise InputError(f"`spread` must be a standard deviation of Dice in (0, 0.5], got spread={std!r}.")
    return Spread(std, std, std, "as stated")


def pilot_spread(folder: Path, storage: str | None = None) -> Spread:
    """The spread of an earlier sweep, or of as much of one as is finished.

    Raises:
        InputError: it is no sweep, or too little of it is finished to show a spread.
    """
    from .collecting import results
    from .comparing import answer
    from .state import open_state

    with naming("pilot"):
        state = open_state(folder, storage)
    found = answer(results(state))
    std, degrees = found.std, found.degrees
    if not (degrees > 0 and std > 0):
        raise InputError(
            f"`pilot` {folder} has {found.trained} finished training(s), which show no spread: two arms that are "
            "complete in the same two folds are needed."
        )
    low, high = (std * math.sqrt(degrees / stats.chi2(degrees).ppf(share)) for share in (0.975, 0.025))
    return Spread(std, low, high, f"of {folder}, {found.trained} trainings")


def what_it_tells(design: Design, spread: Spread) -> str:
    """A sentence on the difference that a design can detect.

    Example:
        >>> from segdrop.scoring.designs import Design
        >>> print(what_it_tells(Design(arms=4, folds=5, reference_seeds=2), stated_spread(0.02)))
        With a spread of 0.020 (as stated), a difference of Dice of 0.065 would be told in four of five such sweeps...
    """
    found, least, most = (design.detectable(std, POWER) for std in (spread.std, spread.low, spread.high))
    bounds = (
        f" ({least:.3f} to {most:.3f}, as the spread is known to {spread.low:.3f} to {spread.high:.3f} only)"
        if spread.high > spread.low
        else ""
    )
    return (
        f"With a spread of {spread.std:.3f} ({spread.source}), a difference of Dice of {found:.3f} would be told in "
        f"four of five such sweeps{bounds}; the intervals would reach {design.half_width(spread.std):.3f} to both "
        "sides."
    )


@dataclass(frozen=True)
class Proposal:
    """A sweep that can tell a difference.

    Attributes:
        folds, repeats: of the cross-validation.
        arms: number of arms beside the reference.
        reference_seeds: trainings of the reference in each fold.
        trainings: their number.
        seconds: what they take one after the other; NaN where the time of one is not known.
        detectable: the difference that is told in four of five such sweeps.
    """

    folds: int
    repeats: int
    arms: int
    reference_seeds: int
    trainings: int
    seconds: float
    detectable: float


def proposals(
    detect: float, spread: Spread, arms: int, seconds: float = math.nan, hours: float | None = None
) -> list[Proposal]:
    """For each number of arms, `arms` and fewer, the cheapest sweep that tells the difference; the most arms first.

    Args:
        detect: the difference of Dice, in (0, 0.5].
        spread: of a training; taken to be the same for every number of folds.
        arms: to compare with the reference, at least 1.
        seconds: of a training.
        hours: what the sweep may take; None: any time.

    Raises:
        InputError: a number is out of its range, or no sweep tells the difference, or none in that time: the message
            says what could.

    Example:
        >>> best, *_ = proposals(0.03, stated_spread(0.01), arms=4, seconds=60)
        >>> best.folds, best.repeats, best.trainings, round(best.detectable, 3)
        (5, 2, 60, 0.028)
    """
    if not is_finite(detect) or not 0 < detect <= 0.5:
        raise InputError(f"`detect` must be a difference of Dice in (0, 0.5], got detect={detect!r}.")
    if hours is not None and not (is_finite(hours) and hours > 0):
        raise InputError(f"`hours` must be a positive number, got hours={hours!r}.")
    found = [one for number in range(arms, 0, -1) if (one := _cheapest(detect, spread, number, seconds))]
    if not found:
        best = min(_designs(1), key=lambda design: design.detectable(spread.std, POWER))
        least = best.detectable(spread.std, POWER)
        raise InputError(
            f"`detect` {detect:g} can be told by no sweep of one arm with a spread of {spread.std:.3f}: "
            f"{best.repeats} repeats of {best.folds} folds tell {least:.3f}; about {(least / detect) ** 2:.2g} times "
            "as many patients would be needed."
        )
    affordable = [one for one in found if hours is None or one.seconds <= 3600 * hours]
    if not affordable:
        cheapest = min(found, key=lambda one: one.seconds)
        raise InputError(
            f"`hours` {hours:g} are too few to tell {detect:g}: one arm with {cheapest.repeats} repeat(s) of "
            f"{cheapest.folds} folds takes {cheapest.seconds / 3600:.1f} hours."
        )
    return affordable


def _designs(arms: int) -> Sequence[Design]:
    seeds = max(1, round(math.sqrt(arms)))
    return [Design(arms, folds, repeats, seeds) for folds in _FOLDS for repeats in range(1, _MOST_REPEATS + 1)]


def _cheapest(detect: float, spread: Spread, arms: int, seconds: float) -> Proposal | None:
    """With as many arms, of those that tell the difference."""
    cheap_first = sorted(_designs(arms), key=lambda design: design.folds * design.repeats)
    design = next((one for one in cheap_first if one.detectable(spread.std, POWER) <= detect), None)
    if design is None:
        return None
    trainings = design.folds * design.repeats * (arms + int(design.reference_seeds))
    return Proposal(
        folds=design.folds,
        repeats=design.repeats,
        arms=arms,
        reference_seeds=int(design.reference_seeds),
        trainings=trainings,
        seconds=trainings * seconds,
        detectable=design.detectable(spread.std, POWER),
    )
