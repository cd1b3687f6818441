"""How many more labelled images or patients a gain is worth: learning curves of cross-validated configurations.

A curve is an inverse power law of the number n of labelled units, Dice(n) = a - b n^-c. For an exponent c that is given
it is linear: what it says of any n, or of the difference of two n, is a sum of a fold's scores with weights, one number
for each fold. So the corrected test for folds that share training data (`statistics.corrected_paired_test`) holds for
it, and what the exponent adds is the union over all exponents that the data do not exclude. Undefined results are NaN.
`benchmarks/learning_curves.py` counts how often the intervals hold.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..errors import InputError

MOST, USUAL = 2.0, 0.5  # exponents: the bound, and what is taken where the data cannot tell
EXPONENTS = np.linspace(0, MOST, 41)
LARGEST = 100  # times all units: what a curve says of more is no longer told
FOR_EXPONENT = 4  # numbers of units from which on the exponent is fitted


@dataclass(frozen=True)
class Prediction:
    """The mean Dice at some number of labelled units, with its interval; all 0..1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Worth:
    """How many more labelled units of the reference a gain at full labels is worth.

    Attributes:
        gain: in Dice, mean over folds.
        units: so many more than all; negative for a loss, never below minus all; inf where it takes the reference more
            than 100 times as many as all, or where no number is enough; NaN where its curve does not rise, so that no
            number of units says it.
        low, high: the interval. high is inf, likewise, or where the data do not bound it; low is then minus all units.
            Both are NaN for fewer than two folds.
    """

    gain: float
    units: float
    low: float
    high: float

    def in_words(self, unit: str = "patients") -> str:
        """One sentence's end: what the arm is worth.

        Example:
            >>> Worth(0.02, 6.2, -2.4, 15.0).in_words()
            'worth 6 more labelled patients [-2, 15]'
            >>> Worth(0.2, np.inf, 3.0, np.inf).in_words("images")
            'worth more than 100 times as many labelled images [3, no upper end]'
        """
        low = "unknown" if math.isnan(self.low) else f"{self.low:.0f}"
        high = "unknown" if math.isnan(self.high) else "no upper end" if math.isinf(self.high) else f"{self.high:.0f}"
        if math.isnan(self.units):
            return f"worth no number of labelled {unit}: more of them do not raise the reference's Dice [{low}, {high}]"
        if math.isinf(self.units):
            return f"worth more than {LARGEST} times as many labelled {unit} [{low}, {high}]"
        count = f"{abs(self.units):.0f}"
        return f"worth {count} {'more' if self.units >= 0 else 'fewer'} labelled {unit} [{low}, {high}]"


@dataclass(frozen=True)
class LearningCurve:
    """The learning curve of one arm; of `fit_curve`.

    Attributes:
        units: float64 (fractions,), the numbers of labelled units, rising.
        scores: float64 (fractions, folds), of the folds that have all of them.
        exponent: c of the curve, in 0..2; 0 is its limit, a line in log n.
        exponents: float64 (tried,), those of 0, 0.05, ... 2 that the data do not exclude.
        level, slope: of the curve, `level + slope (1 - (n / N)^-c) / c` with N all units: Dice at N, and its rise there
            for each e-fold of n; of a power law a = level + slope / c and b = slope N^c / c.
        test_share: n_test / n_train.
        confidence: of the intervals.
    """

    units: np.ndarray
    scores: np.ndarray
    exponent: float
    exponents: np.ndarray
    level: float
    slope: float
    test_share: float
    confidence: float

    def predict(self, units: float, same_folds: bool = False) -> Prediction:
        """The mean Dice that folds have with so many labelled units.

        For more units than there are, the interval also holds that Dice rises no further than with those.

        Args:
            units: positive.
            same_folds: the interval is for the mean that these very folds would have, whose ease or difficulty is
                known, and not for such folds of other patients, too. It takes the luck of a training to vary as much
                with many units as it does with those that are there.

        Returns:
            low and high are NaN for fewer than two folds, all for none.

        Raises:
            InputError: `units` is not a positive number.
        """
        if not (np.isreal(units) and 0 < units < math.inf):
            raise InputError(f"`units` must be a positive number, got units={units!r}.")
        ratio, folds = units / self.units[-1], self.scores.shape[1]
        mean = self.level + self.slope * _rise(ratio, self.exponent)
        found = _weights(self.units, self.exponents)
        weights = found[:, 0] + found[:, 1] * _rise(ratio, self.exponents)[:, None]
        if ratio > 1:
            weights = np.concatenate([weights, np.eye(len(self.units))[-1:]])
        each = weights @ self.scores  # (exponents, folds)
        if folds < 2:
            return Prediction(float(np.clip(mean, 0, 1)), math.nan, math.nan)
        variance, degrees = each.var(axis=1, ddof=1), folds - 1
        if same_folds:  # weights add up to 1: what a fold is like drops out of the error, and luck stays
            luck, degrees = _luck(self.scores)
            variance = luck * ((weights**2).sum(axis=1) + 1)
        half = _quantile(self.confidence, degrees) * np.sqrt(variance * (1 / folds + self.test_share))
        low, high = (each.mean(axis=1) - half).min(), (each.mean(axis=1) + half).max()
        return Prediction(*(float(np.clip(value, 0, 1)) for value in (mean, min(low, mean), max(high, mean))))

    def worth(self, other: "LearningCurve") -> Worth:
        """How many more units of this curve, the reference, the other's gain at all units is worth.

        The gain is that of the folds that both have, as they were scored. An interval has no upper end where the
        reference's rise cannot be told from none, given that more labels do not lower the mean Dice.

        Raises:
            InputError: the two are of other numbers of units, or of other numbers of folds.
        """
        if not np.array_equal(self.units, other.units) or self.scores.shape != other.scores.shape:
            raise InputError(
                "`other` must have the same numbers of units and the same folds; fit both by `fit_curves`."
            )
        gains = other.scores[-1] - self.scores[-1]
        if not gains.size:
            return Worth(math.nan, math.nan, math.nan, math.nan)
        gain, total = float(gains.mean()), self.units[-1]
        point = total * (_ratio(gain / self.slope, self.exponent) - 1) if self.slope > 0 else math.nan
        if gains.size < 2:
            return Worth(gain, point, math.nan, math.nan)
        ends = []
        for exponent, slopes in zip(
            self.exponents, _weights(self.units, self.exponents)[:, 1] @ self.scores, strict=True
        ):
            low, high = self._fieller(gains, slopes)
            ends.append([total * (_ratio(end, exponent) - 1) for end in (low, high)])
        low, high = np.min(ends, axis=0)[0], np.max(ends, axis=0)[1]
        return Worth(gain, float(point), float(np.fmin(low, point)), float(np.fmax(high, point)))

    def _fieller(self, gains: np.ndarray, slopes: np.ndarray) -> tuple[float, float]:
        """All u for which the mean of `u slopes - gains` may be 0, by Fieller's theorem, slopes not being negative."""
        factor = _quantile(self.confidence, len(gains) - 1) ** 2 * (1 / len(gains) + self.test_share)
        covariance = np.cov(slopes, gains)
        a = slopes.mean() ** 2 - factor * covariance[0, 0]
        b = slopes.mean() * gains.mean() - factor * covariance[0, 1]
        c = gains.mean() ** 2 - factor * covariance[1, 1]
        root = math.sqrt(max(0.0, b * b - a * c))
        if a > 0:
            ends = ((b - root) / a, (b + root) / a)
            return ends if slopes.mean() > 0 else (-math.inf, math.inf)
        if c <= 0 or a == 0:  # neither the gain nor the rise can be told from none
            return -math.inf, math.inf
        # The gain is told: of the two unbounded parts the one with its sign.
        inner = ((b - root) / a, (b + root) / a)
        return (max(inner), math.inf) if gains.mean() > 0 else (-math.inf, min(inner))


def fit_curve(scores, units, test_share: float, confidence: float = 0.95) -> LearningCurve:
    """Fit the learning curve of one arm to its folds' Dice at several numbers of labelled units.

    The exponent c of Dice(n) = a - b n^-c is fitted by least squares, within 0..2, where there are at least four
    numbers of units. Two or three cannot tell it: it is then 0.5, or the nearest that the data do not exclude. In
    either case the intervals are for all exponents that they do not exclude.

    Args:
        scores: float (fractions, folds), Dice, 0..1; a fold of any repeat with a NaN is left out.
        units: (fractions,), positive, none twice: how many labelled images or patients each fraction has.
        test_share: n_test / n_train at all labels, as in `statistics.corrected_paired_test`; 0 for independent folds.
        confidence: of the intervals, in (0, 1).

    Raises:
        InputError: fewer than two numbers of units, or an argument has another shape or range.

    Example:
        >>> curve = fit_curve([[0.60, 0.62], [0.70, 0.71], [0.75, 0.76]], units=[10, 20, 40], test_share=1)
        >>> curve.exponent, round(curve.predict(80).mean, 3)
        (0.5, 0.802)

    References:
        Figueroa et al. 2012, Predicting sample size required for classification performance, BMC Medical Informatics
        and Decision Making 12:8. Hestness et al. 2017, Deep learning scaling is predictable, empirically,
        https://arxiv.org/abs/1712.00409. Fieller 1954, Some problems in interval estimation, for `worth`.
    """
    scores, units = np.asarray(scores, np.float64), np.asarray(units, np.float64)
    if units.ndim != 1 or len(units) < 2:
        raise InputError(f"`units` must be at least two numbers of labelled units, got units={units.tolist()}.")
    if not (np.isfinite(units) & (units > 0)).all() or len(np.unique(units)) < len(units):
        raise InputError(f"`units` must be positive numbers, none of them twice, got units={units.tolist()}.")
    if scores.ndim != 2 or len(scores) != len(units):
        raise InputError(f"`scores` must have a row for each of {len(units)} numbers of units, got {scores.shape}.")
    if ((scores < 0) | (scores > 1)).any() or np.isinf(scores).any():
        raise InputError("`scores` must be Dice, 0..1, or NaN.")
    if not 0 <= test_share < math.inf:
        raise InputError(f"`test_share` must be a number that is not negative, got test_share={test_share}.")
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must be in (0, 1), got confidence={confidence}.")
    order = np.argsort(units)
    units, scores = units[order], scores[order]
    scores = scores[:, ~np.isnan(scores).any(axis=0)]
    allowed = _not_excluded(scores, units, test_share, confidence)
    exponent = _exponent(scores, units, allowed)
    nan = np.full(2, math.nan)
    level, slope = _weights(units, np.array([exponent]))[0] @ scores.mean(axis=1) if scores.size else nan
    return LearningCurve(units, scores, exponent, allowed, float(level), float(slope), float(test_share), confidence)


def fit_curves(dice, units, test_share: float, confidence: float = 0.95) -> list[LearningCurve]:
    """The learning curves of several arms, of the folds that all of them have at all numbers of units.

    Args:
        dice: float (arms, fractions, folds x repeats), 0..1, NaN where missing.
        units, test_share, confidence: as in `fit_curve`.

    Returns:
        One for each arm; `curves[0].worth(curves[1])` is what arm 1 is worth in units of arm 0.

    Raises:
        InputError: as `fit_curve`, or `dice` has another shape.

    Example:
        >>> plain, dropped = [[0.60, 0.62], [0.71, 0.70]], [[0.66, 0.65], [0.73, 0.74]]
        >>> curves = fit_curves([plain, dropped], units=[10, 40], test_share=1)
        >>> round(curves[0].worth(curves[1]).units, 1)  # 0.03, where all that came with 10 to 40 units was 0.095
        45.4
    """
    dice = np.array(dice, np.float64)
    if dice.ndim != 3:
        raise InputError(f"`dice` must be of the shape (arms, fractions, folds), got {dice.shape}.")
    dice[:, :, np.isnan(dice).any(axis=(0, 1))] = np.nan
    return [fit_curve(scores, units, test_share, confidence) for scores in dice]


def _rise(ratio: float, exponents) -> np.ndarray:
    """(1 - ratio^-c) / c, and its limit log(ratio) at c = 0."""
    logs = math.log(ratio)
    exponents = np.asarray(exponents, np.float64)
    safe = np.where(exponents > 0, exponents, 1)
    return np.where(exponents > 0, -np.expm1(-safe * logs) / safe, logs)


def _ratio(rise: float, exponent: float) -> float:
    """The inverse of `_rise`: inf where no ratio up to LARGEST rises so far."""
    if rise > _rise(LARGEST, exponent):
        return math.inf
    if rise == -math.inf:
        return 0.0
    return math.exp(-math.log1p(-exponent * rise) / exponent if exponent > 0 else rise)


def _weights(units: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """What makes level and slope of the scores at `units`, by least squares: float64 (exponents, 2, fractions)."""
    rises = np.stack([_rise(unit / units[-1], exponents) for unit in units], axis=1)
    return np.linalg.pinv(np.stack([np.ones_like(rises), rises], axis=2))


def _misfit(mean: np.ndarray, units: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Sum of squares, float64 (exponents,), that the best curve of each exponent leaves of the mean scores."""
    found = _weights(units, exponents) @ mean
    rises = np.stack([_rise(unit / units[-1], exponents) for unit in units], axis=1)
    return ((found[:, :1] + found[:, 1:] * rises - mean) ** 2).sum(axis=1)


def _not_excluded(scores: np.ndarray, units: np.ndarray, test_share: float, confidence: float) -> np.ndarray:
    """The exponents whose misfit is not larger than the best one's by more than chance, as far as folds tell it."""
    fractions, folds = scores.shape
    if folds < 2 or fractions < 3:
        return EXPONENTS
    luck, degrees = _luck(scores)
    variance = luck * (1 / folds + test_share)
    misfit = _misfit(scores.mean(axis=1), units, EXPONENTS)
    return EXPONENTS[misfit - misfit.min() <= _quantile(confidence, degrees) ** 2 * variance]


def _luck(scores: np.ndarray) -> tuple[float, int]:
    """The variance of what neither the fold nor the number of units explains, and its degrees of freedom."""
    fractions, folds = scores.shape
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    degrees = (fractions - 1) * (folds - 1)
    return float((rest**2).sum() / degrees), degrees


def _exponent(scores: np.ndarray, units: np.ndarray, allowed: np.ndarray) -> float:
    if len(units) < FOR_EXPONENT or not scores.size:
        return float(allowed[np.abs(allowed - USUAL).argmin()])
    mean = scores.mean(axis=1)
    best = float(EXPONENTS[_misfit(mean, units, EXPONENTS).argmin()])
    step = EXPONENTS[1]
    around = (max(0.0, best - step), min(MOST, best + step))
    found = optimize.minimize_scalar(lambda c: _misfit(mean, units, np.array([c]))[0], bounds=around, method="bounded")
    return float(found.x)


def _quantile(confidence: float, degrees: int) -> float:
    """What |t| exceeds with the probability 1 - confidence; NaN without a degree of freedom."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2)) if degrees > 0 else math.nan
