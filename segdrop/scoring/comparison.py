"""Cross-validated configurations compared as one table: a spread that all share, and intervals that hold together.

Folds are blocks and arms are treatments. What a training scores is its arm's mean, and its fold's, and luck; the luck
of the whole table is one number, so that ten arms on three folds tell it with 20 degrees of freedom and not with two.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from ..config.checks import check_whole, is_finite, is_whole, plain, real_numbers
from ..config.sweep import MARGIN
from ..errors import InputError
from ..typed import shortened
from .dunnett import largest_exceeds, simultaneous_quantile
from .table import Table

NO_DIFFERENCE = "no difference beyond the margin"
NOT_TOLD = "cannot be told"


@dataclass(frozen=True)
class ArmComparison:
    """An arm beside the reference, or a contrast of arms; differences in the unit of the scores, positive is better.

    Attributes:
        difference: of the arms' means, freed of the folds that are missing.
        standard_error: of it, with the correction for training images that folds share.
        degrees: degrees of freedom of that.
        p: two-sided, of this comparison by itself.
        low, high: confidence interval of this comparison by itself.
        adjusted_p: p of all comparisons together: below 0.05 for one or more of them in at most 5% of sweeps without
            any effect.
        simultaneous_low, simultaneous_high: interval that holds for all comparisons together.
        helps, equal, hurts: probabilities, which add up to 1, that the difference is above the margin, within it, and
            below it, for this comparison by itself and without any belief beforehand.
        verdict: by the simultaneous interval: "no difference beyond the margin" where it lies within the margin,
            "helps" and "hurts" where it leaves out 0, else "cannot be told".
        folds: how many folds and repeats both sides have.
        pooled: whether it is within Dunnett's integral; else its arm has a spread of its own, and the adjusted p is p
            times the number of comparisons.
    """

    difference: float = math.nan
    standard_error: float = math.nan
    degrees: float = math.nan
    p: float = math.nan
    low: float = math.nan
    high: float = math.nan
    adjusted_p: float = math.nan
    simultaneous_low: float = math.nan
    simultaneous_high: float = math.nan
    helps: float = math.nan
    equal: float = math.nan
    hurts: float = math.nan
    verdict: str = NOT_TOLD
    folds: int = 0
    pooled: bool = True


@dataclass(frozen=True)
class Compared:
    """Result of `compare`.

    Attributes:
        arms: one entry for each arm, in order; NaN for the reference, and where an arm has fewer than two folds.
        contrasts: one entry for each contrast.
        std: standard deviation of a training's score about its arm and fold.
        degrees: degrees of freedom of that.
        spread: the same of each arm by itself; NaN where it has fewer than two folds.
        apart: the arms that vary more than the others: their own spread is taken in their part of the variance, and p
            times the number of comparisons.
        noisy: the references of several that do: their own spread is taken likewise, and Dunnett's integral.
    """

    arms: tuple[ArmComparison, ...]
    contrasts: Mapping[str, ArmComparison]
    std: float
    degrees: float
    spread: tuple[float, ...]
    apart: tuple[int, ...]
    noisy: tuple[int, ...]


def compare(
    scores,
    test_share: float | Sequence[float],
    reference: int | Sequence[int] = 0,
    *,
    contrasts: Mapping[str, Sequence[float]] | None = None,
    margin: float = MARGIN,
    confidence: float = 0.95,
    further: int = 0,
) -> Compared:
    """Compare cross-validated arms with a reference: intervals for each by itself and for all together.

    The scores are fitted by arm and fold (least squares, so that missing trainings do no harm), and the spread of the
    residuals serves all comparisons, with (arms - 1)(folds - 1) degrees of freedom. Its variance of a mean is 1/J +
    test_share instead of 1/J, for the training images that folds share. Dunnett's integral makes the intervals hold
    together. Where an arm or the reference varies more than the others, its own spread takes the place of the common
    one in its part of the variance (Welch's test); p of such an arm is multiplied by the number of comparisons.

    Args:
        scores: float (arms, folds x repeats), or (arms, folds x repeats, seeds), in 0..1; NaN, or masked, where
            missing. All arms of a column were trained and validated on the same images. Seeds of an arm count as its
            mean, which varies less.
        test_share: n_test / n_train in images, not negative; 1 / (K - 1) for K equal folds; or one for each arm.
        reference: index of the arm that the others are compared with; or one for each arm (its own: not compared).
        contrasts: weights (arms,) by name, which add up to 0: [-1, 0.5, 0.5] is the mean of two arms against the
            first. Stated before the scores are seen, they are a family of their own, instead of the arms.
        margin: differences up to it do not matter, 0..0.5.
        confidence: of the intervals, in (0, 1).
        further: comparisons that were looked at and are not in the table.

    Raises:
        InputError: fewer than two arms or columns; a reference that is no arm; an infinite score, or what is no
            number; a margin, confidence or share out of its range; contrasts that do not add up to 0 or that share an
            arm beside the reference.

    Example:
        >>> scores = [[0.80, 0.82, 0.81], [0.84, 0.86, 0.86], [0.80, 0.82, 0.82]]  # none, 0.1, 0.2 on three folds
        >>> first = compare(scores, test_share=1 / 2).arms[1]
        >>> round(first.difference, 3), round(first.simultaneous_low, 3), round(first.helps, 2), first.verdict
        (0.043, 0.022, 0.99, 'helps')

    References:
        Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50, 1955.
        Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
        Welch, "The generalization of Student's problem when several different population variances are involved",
        Biometrika 34, 1947.
        Corani and Benavoli, "A Bayesian approach for comparing cross-validated algorithms on multiple data sets",
        Machine Learning 100, 2015, for the probabilities.
    """
    table = Table(scores)
    count, margin, confidence = table.arms, plain(margin), plain(confidence)
    shares = _check_shares(test_share, count)
    references = _check_references(reference, count)
    if not is_finite(margin) or not 0 <= margin <= 0.5:
        raise InputError(f"`margin` must be a number in 0..0.5, got margin={shortened(margin)}.")
    if not is_finite(confidence) or not 0 < confidence < 1:
        raise InputError(f"`confidence` must be in (0, 1), got confidence={shortened(confidence)}.")
    further = check_whole(further, "further", minimum=0)
    weights = _check_contrasts({} if contrasts is None else contrasts, count, references)

    apart, noisy = table.apart(references)
    how = _How(table, apart, noisy, shares, margin, confidence)
    identity = np.eye(count)
    pairs = {i: identity[i] - identity[other] for i, other in enumerate(references) if i != other}
    compared = dict(zip(pairs, how.family(list(pairs.values()), [references[i] for i in pairs], further), strict=True))
    control = references[0] if len(set(references)) == 1 else -1
    return Compared(
        arms=tuple(compared.get(i, ArmComparison()) for i in range(count)),
        contrasts=dict(zip(weights, how.family(list(weights.values()), [control] * len(weights)), strict=True)),
        std=table.std,
        degrees=table.degrees,
        spread=tuple(table.spread_by_arm().tolist()),
        apart=tuple(apart),
        noisy=tuple(noisy),
    )


@dataclass(frozen=True)
class _How:
    """How contrasts of arms are tested, all in the same way."""

    table: Table
    apart: Sequence[int]
    noisy: Sequence[int]
    shares: np.ndarray
    margin: float
    confidence: float

    def family(
        self, contrasts: Sequence[np.ndarray], references: Sequence[int], further: int = 0
    ) -> list[ArmComparison]:
        """Comparisons whose simultaneous intervals hold together; (arms,) weights, and the reference of each."""
        singles = [self._single(contrast, reference) for contrast, reference in zip(contrasts, references, strict=True)]
        defined = [single for single in singles if single is not None]
        number = len(defined) + further
        families: dict[int, list[float]] = {-1 - i: [0.0] for i in range(further)}
        for single in defined:
            families.setdefault(single.reference, []).append(single.correlation)
        together = list(families.values())
        quantiles = {  # the same for all arms of a complete table
            degrees: simultaneous_quantile(self.confidence, degrees, together)
            for degrees in {single.degrees for single in defined if single.pooled}
        }
        return [
            ArmComparison() if single is None else self._told(single, number, together, quantiles) for single in singles
        ]

    def _single(self, contrast: np.ndarray, reference: int) -> "_Single | None":
        """One contrast by itself; None where the trainings that are there do not tell it."""
        table, involved = self.table, np.flatnonzero(contrast)
        if not table.usable[involved].all():
            return None
        folds = int(np.count_nonzero(~np.isnan(contrast[involved] @ table.cells[involved])))
        estimate = table.estimate(contrast, self.shares, (*self.noisy, *self.apart))
        if estimate is None:
            return None
        difference, variances, degrees = estimate
        error = math.sqrt(variances.sum())
        pooled = not np.isin(involved, self.apart).any()
        common = 0.0 if reference < 0 or not (error and pooled) else math.sqrt(variances[reference]) / error
        return _Single(difference, error, degrees, common, reference, folds, pooled)

    def _told(
        self, single: "_Single", number: int, families: list[list[float]], quantiles: Mapping[float, float]
    ) -> ArmComparison:
        difference, error, degrees = single.difference, single.error, single.degrees
        statistic = abs(difference) / error if error else math.inf if difference else 0.0
        p = 2 * float(special.stdtr(degrees, -statistic))
        one = float(special.stdtrit(degrees, (1 + self.confidence) / 2))
        if single.pooled:
            adjusted = largest_exceeds(statistic, degrees, families)
            all_of_them = quantiles[degrees]
        else:
            adjusted = min(1.0, number * p)
            all_of_them = float(special.stdtrit(degrees, 1 - (1 - self.confidence) / 2 / number))
        low, high = difference - all_of_them * error, difference + all_of_them * error
        hurts, helps = (_below(-self.margin - side * difference, error, degrees) for side in (1, -1))
        return ArmComparison(
            difference=difference,
            standard_error=error,
            degrees=degrees,
            p=p,
            low=difference - one * error,
            high=difference + one * error,
            adjusted_p=max(p, adjusted),
            simultaneous_low=low,
            simultaneous_high=high,
            helps=helps,
            equal=max(0.0, 1 - helps - hurts),
            hurts=hurts,
            verdict=verdict_of(low, high, self.margin),
            folds=single.folds,
            pooled=single.pooled,
        )


@dataclass(frozen=True)
class _Single:
    difference: float
    error: float
    degrees: float
    correlation: float  # with the mean of the reference
    reference: int
    folds: int
    pooled: bool


def verdict_of(low: float, high: float, margin: float) -> str:
    """What an interval of the difference says.

    Example:
        >>> verdict_of(-0.004, 0.008, margin=0.01), verdict_of(0.004, 0.03, margin=0.01)
        ('no difference beyond the margin', 'helps')
    """
    if -margin <= low and high <= margin:
        return NO_DIFFERENCE
    return "helps" if low > 0 else "hurts" if high < 0 else NOT_TOLD


def _below(bound: float, error: float, degrees: float) -> float:
    """Probability that a t variable of this scale lies below the bound."""
    if not error:
        return float(bound > 0)
    return float(special.stdtr(degrees, bound / error))


def _check_shares(test_share, count: int) -> np.ndarray:
    shares = real_numbers(test_share)
    wanted = shares is not None and shares.shape in ((), (1,), (count,))
    if not wanted or not ((shares >= 0) & (shares < math.inf)).all():
        raise InputError(
            f"`test_share` must be a number that is not negative, or {count}, got {shortened(plain(test_share))}."
        )
    return np.broadcast_to(shares, (count,))


def _check_references(reference, count: int) -> list[int]:
    reference = plain(reference)
    given = list(reference) if isinstance(reference, Iterable) else [reference] * count
    if len(given) != count or not all(is_whole(one) and 0 <= one < count for one in given):
        raise InputError(
            f"`reference` must be the index of an arm, 0 to {count - 1}, or {count}, got {shortened(reference)}."
        )
    return [int(one) for one in given]


def _check_contrasts(contrasts: Mapping[str, Sequence[float]], count: int, references: list[int]) -> dict:
    if not isinstance(contrasts, Mapping):
        raise InputError(f"`contrasts` must map names to weights of the arms, got {shortened(plain(contrasts))}.")
    weights = {}
    used: dict[int, str] = {}
    for name, given in contrasts.items():
        values = real_numbers(given)
        wanted = values is not None and values.shape == (count,) and np.isfinite(values).all() and values.any()
        if not wanted or abs(values.sum()) > 1e-9 * np.abs(values).sum():
            raise InputError(
                f"`contrasts` needs {count} weights that add up to 0 for {name!r}, got {shortened(plain(given))}."
            )
        weights[name] = values
        for arm in set(np.flatnonzero(values)) - set(references):
            if arm in used:
                raise InputError(
                    f"`contrasts` {used[arm]!r} and {name!r} overlap: both have the arm {arm}; keep one of them."
                )
            used[int(arm)] = name
    return weights
