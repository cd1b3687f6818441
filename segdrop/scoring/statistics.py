"""Comparisons of cross-validated configurations: a paired test for folds that share training data, and its company.

A difference is what a fold's score in one configuration is above its score in another, both trained and validated on
the same images. Undefined results are NaN.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from ..errors import InputError


@dataclass(frozen=True)
class PairedTest:
    """Result of `corrected_paired_test`, in the unit of the differences.

    Attributes:
        mean: of the differences.
        std: their standard deviation, ddof 1.
        standard_error: of the mean, corrected for the training data that folds share.
        statistic: mean / standard_error.
        degrees: degrees of freedom of the t distribution.
        p: two-sided p value, 0..1.
        low, high: confidence interval of the mean.
    """

    mean: float
    std: float
    standard_error: float
    statistic: float
    degrees: int
    p: float
    low: float
    high: float


def corrected_paired_test(differences, test_share: float, confidence: float = 0.95) -> PairedTest:
    """Corrected resampled t test of whether the mean difference is 0, for (repeated) K-fold cross-validation.

    The variance of the mean is s^2 (1/J + test_share) instead of s^2 / J, with J - 1 degrees of freedom. That is right
    where two folds' differences have the correlation n_test / (n_test + n_train), and too small where it is higher.

    Args:
        differences: float (J,), one for each fold of each repeat.
        test_share: n_test / n_train in images, not negative; 1 / (K - 1) for K equal folds. 0 is the plain t test.
        confidence: of the interval, in (0, 1).

    Returns:
        All numbers are NaN, and `degrees` 0, for fewer than two differences or where one is NaN. Where all are equal
        the interval has no width: p is 1 if they are 0 and otherwise 0, its limit as the spread goes to 0.

    Raises:
        InputError: `differences` is not one-dimensional, or a number is out of its range.

    Example:
        >>> test = corrected_paired_test([0.01, 0.03, 0.02], test_share=1 / 2)  # of three folds
        >>> round(test.mean, 3), round(test.standard_error, 4), round(test.p, 2)  # 0.01 * sqrt(1/3 + 1/2)
        (0.02, 0.0091, 0.16)

    References:
        Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
        Bouckaert and Frank, "Evaluating the replicability of significance tests for comparing learning algorithms",
        PAKDD 2004, for repeated cross-validation.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 1:
        raise InputError(f"`differences` must have one dimension, got the shape {differences.shape}.")
    if not 0 <= test_share < math.inf:
        raise InputError(f"`test_share` must be a number that is not negative, got test_share={test_share}.")
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must be in (0, 1), got confidence={confidence}.")
    count, nan = len(differences), math.nan
    if count < 2 or not np.isfinite(differences).all():
        return PairedTest(nan, nan, nan, nan, 0, nan, nan, nan)
    degrees = count - 1
    if np.ptp(differences) == 0:  # rounding in the mean would leave a spread
        mean = float(differences[0])
        statistic = math.copysign(math.inf, mean) if mean else 0.0
        return PairedTest(mean, 0.0, 0.0, statistic, degrees, 0.0 if mean else 1.0, mean, mean)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    standard_error = std * math.sqrt(1 / count + test_share)
    statistic = mean / standard_error
    half = float(_quantile(confidence, degrees)) * standard_error
    p = 2 * float(special.stdtr(degrees, -abs(statistic)))
    return PairedTest(mean, std, standard_error, statistic, degrees, p, mean - half, mean + half)


def holm(p_values) -> np.ndarray:
    """P values adjusted for the number of comparisons, such that p < 0.05 has one false finding or more in at most 5%.

    Args:
        p_values: float (comparisons,), 0..1; NaN is no comparison: it stays, and the others are adjusted without it.

    Returns:
        float64 (comparisons,), 0..1, in the order given.

    Raises:
        InputError: `p_values` is not one-dimensional, or a value is not in 0..1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted = np.array(p_values, np.float64)
    if adjusted.ndim != 1 or ((adjusted < 0) | (adjusted > 1)).any():
        raise InputError(f"`p_values` must be a list of numbers in 0..1, got {p_values}.")
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(adjusted[order] * factors), 1)
    return adjusted


def paired_bootstrap(
    differences, groups: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean difference of images and its 95% interval over other images, or patients, with the same trained networks.

    How the difference varies from training to training is not in the interval.

    Args:
        differences: float (images,), paired by image; NaN, an image without a score, is left out.
        groups: (images,), the group of each image, such as its patient: whole groups are drawn. None: each image is
            its own.
        seed: of the draws.
        resamples: number of draws, each of as many groups as there are.

    Returns:
        mean over images, low and high of the percentile interval; both NaN for fewer than two groups with a score,
        the mean too where there is none.

    Raises:
        InputError: `groups` has not one entry for each difference.

    Example:
        >>> mean, low, high = paired_bootstrap([0.1, 0.3])
        >>> round(mean, 3), low, high
        (0.2, 0.1, 0.3)

    References:
        Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8, for whole groups.
    """
    differences = np.asarray(differences, np.float64)
    groups = range(len(differences)) if groups is None else groups
    if len(groups) != len(differences):
        raise InputError(f"`groups` must have one entry for each of {len(differences)} differences, got {len(groups)}.")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(group, len(number)) for group in groups], np.int64)
    defined = ~np.isnan(differences)
    counts = np.bincount(index[defined], minlength=len(number))
    sums = np.bincount(index[defined], weights=differences[defined], minlength=len(number))
    table = np.stack([sums, counts], axis=1)[counts > 0]
    if not len(table):
        return math.nan, math.nan, math.nan
    mean = float(table[:, 0].sum() / table[:, 1].sum())
    totals = resampled_sums(table, seed, resamples)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return mean, float(low), float(high)


def resampled_sums(sums, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """Sums over units drawn with replacement, as many as there are: the bootstrap of all scores that sums give.

    Args:
        sums: float (units, ...): what each unit, an image or all images of a group, adds to each sum.
        seed: of the draws, which are the same for every column.
        resamples: number of repetitions.

    Returns:
        float64 (resamples, ...); NaN for fewer than two units, which tell nothing of how units vary.

    Example:
        >>> resampled_sums([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], resamples=2).tolist()
        [[3.0, 6.0], [3.0, 6.0]]
    """
    sums = np.asarray(sums, np.float64)
    units, columns = len(sums), sums.reshape(len(sums), -1)
    if units < 2:
        return np.full((resamples, *sums.shape[1:]), np.nan)
    rng = np.random.default_rng(seed)
    at_once = max(1, 2**22 // units)
    totals = []
    for rows in [min(at_once, resamples - done) for done in range(0, resamples, at_once)]:
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        totals.append(times @ columns)
    return np.concatenate(totals).reshape(resamples, *sums.shape[1:])


def fold_correlation(differences) -> float:
    """Correlation of two folds' differences over many sweeps of the same kind: mean covariance over mean variance.

    One sweep cannot tell it, which is why `corrected_paired_test` has to assume one.

    Args:
        differences: float (sweeps, J), each sweep on data of its own.

    Returns:
        -1 / (J - 1) to 1; NaN for fewer than two sweeps or folds, and where nothing varies.

    Example:
        >>> round(fold_correlation([[0.1, 0.1], [0.2, 0.2], [0.4, 0.4]]), 3)
        1.0
    """
    differences = np.asarray(differences, np.float64)
    sweeps, count = differences.shape
    if sweeps < 2 or count < 2:
        return math.nan
    covariance = np.cov(differences, rowvar=False)
    variance = np.trace(covariance) / count
    if variance == 0:
        return math.nan
    return float((covariance.sum() / count - variance) / (count - 1) / variance)


def pooled_std(values: np.ndarray) -> float:
    """Standard deviation (ddof 1) along the last axis of float64 (..., n), pooled over all others; NaN if n < 2.

    Example:
        >>> pooled_std(np.array([[1.0, 3.0], [2.0, 2.0]]))  # variances 2 and 0
        1.0
    """
    return float(np.sqrt(values.var(axis=-1, ddof=1).mean())) if values.size and values.shape[-1] > 1 else math.nan


def _quantile(confidence: float, degrees):
    """What |t| exceeds with the probability 1 - confidence."""
    return special.stdtrit(degrees, (1 + confidence) / 2)
