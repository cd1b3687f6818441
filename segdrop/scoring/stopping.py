"""Looks at a comparison while it grows: which arms are told by now, and which will not be told at all.

What is spent at a look is the chance of a false alarm; the looks share 5% of it, most of them kept for the last.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .comparison import NOT_TOLD, ArmComparison, Compared, compare
from .designs import Design
from .dunnett import largest_exceeds

_LOOKS = 5  # at most
_HOPELESS = 0.1  # of being told at the last look; costs little of what is told, and spares most of the trainings
_DRAWS = 20_000


def looks_of(columns: int) -> list[int]:
    """The numbers of folds and repeats after which is looked, from the second on.

    Example:
        >>> looks_of(3), looks_of(5), looks_of(15)
        ([2, 3], [2, 3, 4, 5], [3, 6, 9, 12, 15])
    """
    return sorted({max(2, math.ceil(columns * (k + 1) / _LOOKS)) for k in range(_LOOKS)})


@functools.lru_cache(maxsize=64)
def levels_of(arms: int, folds: int, repeats: int, level: float = 0.05) -> tuple[float, ...]:
    """For each look the adjusted p below which an arm is told, such that one or more of `arms` are told in at most
    `level` of sweeps without any effect.

    Error spending (Lan and DeMets, 1983): by a look that has the share t of the folds, level * t^3 is spent. What an
    adjusted p must be for that is simulated (seeded), for folds that are as alike as the correction assumes.

    Example:
        >>> [round(value, 3) for value in levels_of(4, folds=5, repeats=1)]
        [0.004, 0.008, 0.019, 0.038]

    References:
        Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983.
    """
    columns, share = folds * repeats, 1 / (folds - 1)
    rng, draws = np.random.default_rng(0), min(_DRAWS, 2 * 10**7 // ((arms + 1) * columns))
    tables = math.sqrt(1 / folds) * rng.standard_normal((draws, arms + 1, 1))
    tables = tables + math.sqrt(1 - 1 / folds) * rng.standard_normal((draws, arms + 1, columns))
    out, spent, levels = np.zeros(draws, bool), 0, []
    for look in looks_of(columns):
        seen = tables[:, :, :look]
        means = seen.mean(axis=2)
        rest = seen - means[:, :, None] - seen.mean(axis=1)[:, None] + means.mean(axis=1)[:, None, None]
        degrees = arms * (look - 1)
        error = np.sqrt(2 * (rest**2).sum(axis=(1, 2)) / degrees * (1 / look + share))
        largest = np.abs(means[:, 1:] - means[:, :1]).max(axis=1) / error
        target = round(level * (look / columns) ** 3 * draws)
        bound = np.sort(largest[~out])[::-1][max(0, target - spent)]  # as many exceed it as are to be spent
        out |= largest > bound
        spent = int(out.sum())
        levels.append(largest_exceeds(float(bound), degrees, [[0.5**0.5] * arms]))
    return tuple(levels)


@dataclass(frozen=True)
class Course:
    """How far a comparison has come.

    Attributes:
        columns: (arms,), the folds and repeats that are to be trained of each arm by now; in the end all folds of the
            arm that helps most, or else of the reference, for one network of each.
        told: by arm the comparison of the last look at it.
        going: the arms that further looks are for; none, once it is over.
    """

    columns: list[int]
    told: dict[int, ArmComparison]
    going: list[int]


def follow(
    scores: np.ndarray,
    ended: np.ndarray,
    folds: int,
    test_share: Sequence[float],
    references: Sequence[int],
    margin: float,
) -> Course:
    """Look after look, as far as trainings have ended: an arm is trained no further once it is told, or hopeless.

    Args:
        scores: float (arms, folds x repeats, seeds), NaN where missing.
        ended: bool (arms, folds x repeats), whether all trainings there have ended.
        folds: of the cross-validation.
        test_share, references, margin: as for `comparison.compare`, one for each arm.

    Example:
        >>> scores = np.array([[[0.80], [0.81], [0.79]], [[0.90], [0.91], [0.90]]])  # told after two folds
        >>> follow(scores, np.isfinite(scores[..., 0]), 3, [0.5, 0.5], [0, 0], 0.01).columns
        [2, 3]
    """
    arms, columns = scores.shape[:2]
    active = [i for i, reference in enumerate(references) if reference != i]
    told: dict[int, ArmComparison] = {}
    wanted = [0 if i in {*active, *(references[j] for j in active)} else columns for i in range(arms)]
    looks, levels = looks_of(columns), levels_of(max(1, len(active)), folds, columns // folds)
    for look, level in zip(looks, levels, strict=True):
        needed = sorted({*active, *(references[i] for i in active)})
        for i in needed:
            wanted[i] = look
        if not ended[needed, :look].all():
            return Course(wanted, told, going=active)
        seen = scores.copy()
        for i, own in enumerate(wanted):
            seen[i, own:] = np.nan
        compared = compare(seen, test_share, references, margin=margin, confidence=1 - level)
        told |= {i: compared.arms[i] for i in active}
        design = Design(len(told), folds, columns // folds, test_share=max(test_share), confidence=1 - levels[-1])
        if look < columns:
            active = [i for i in active if _goes_on(compared, i, look, design, margin)]
        if not active or look == columns:
            break
    best = _best(told, references)
    wanted[best] = max(wanted[best], folds)
    return Course(wanted, told, going=[])


def _best(told: dict[int, ArmComparison], references: Sequence[int]) -> int:
    """The arm that helps most, or else the one that most are compared with."""
    helping = [i for i, one in told.items() if one.verdict == "helps"]
    if helping:
        return max(helping, key=lambda i: told[i].difference)
    return max(set(references), key=list(references).count)


def _goes_on(compared: Compared, arm: int, look: int, last: Design, margin: float) -> bool:
    """Whether an arm is not told by now, and is told at the last look with a probability that is worth it."""
    told = compared.arms[arm]
    if told.verdict != NOT_TOLD or math.isnan(told.difference):
        return False
    columns = last.folds * last.repeats
    step = compared.std * math.sqrt(max(2 / look - 2 / columns, 1e-12))
    half = last.half_width(compared.std)
    later = stats.t(compared.degrees, loc=told.difference, scale=step)
    chance = later.cdf(-half) + later.sf(half)
    if margin > half:
        chance += max(0.0, later.cdf(margin - half) - later.cdf(half - margin))
    return bool(chance >= _HOPELESS)
