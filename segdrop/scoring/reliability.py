"""How far probabilities and uncertainties can be trusted: calibration, error detection, confidence intervals.

What is counted for an image can be added over the images of a split, so that no more than one image's maps are held.
Pixels whose truth is `IGNORED` count nowhere. Undefined scores are NaN.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import special, stats

from ..conventions import IGNORED, class_by_class, has_class
from .counts import to_labels

BINS = 15
NEIGHBOURHOOD = 10  # px around the foreground
_FLOAT16 = 0x8000  # bit patterns of the float16 without the sign, which as whole numbers have the order of the floats


def reliability(probabilities, truth, pred=None, multilabel: bool = False) -> np.ndarray:
    """Counts from which a reliability diagram is drawn: confidence and correctness of the predicted labels.

    Args:
        probabilities: float32 (H, W, C); C = 1 is the probability of the foreground, thresholded at 0.5.
        truth: uint8 (H, W), class indices or IGNORED.
        pred: uint8 (H, W), the predicted class indices where they are at hand.
        multilabel: truth and prediction are sums of the classes' bits; each class of a pixel is counted by itself.

    Returns:
        float64 (2, 3, 15): over all pixels, and over those within 10 px of the foreground of truth or prediction; the
        number of pixels, the sum of their confidences and the number of correct ones; in 15 bins of equal width of
        the confidence over 0..1, the lower edge within. The arrays of several images may be added.

    Example:
        >>> bins = reliability(np.full((2, 2, 1), 0.9), truth=[[1, 1], [1, 0]])
        >>> count, confidence, correct = bins[0, :, 13]  # 13/15 <= 0.9 < 14/15
        >>> int(count), round(float(confidence), 3), int(correct)
        (4, 3.6, 3)
    """
    probabilities, truth = np.asarray(probabilities, np.float32), np.asarray(truth)
    pred = to_labels(probabilities, multilabel=multilabel) if pred is None else np.asarray(pred)
    if multilabel:
        channels = probabilities.shape[-1]
        masks = (class_by_class(labels, channels + 1, True) for labels in (truth, pred))
        return sum(reliability(probabilities[..., i, None], *both) for i, both in enumerate(zip(*masks, strict=True)))
    if probabilities.shape[-1] == 1:
        confidence = np.maximum(probabilities[..., 0], 1 - probabilities[..., 0])
    else:  # many times as fast as max(axis=-1)
        confidence = np.maximum.reduce([probabilities[..., i] for i in range(probabilities.shape[-1])])
    valid = truth != IGNORED
    near = cv2.dilate((((truth != 0) | (pred != 0)) & valid).view(np.uint8), _disc(NEIGHBOURHOOD))
    # One number for bin, region and correctness, so that all is counted in one pass.
    cell = np.minimum((confidence * BINS).astype(np.uint8), BINS - 1)
    cell += np.uint8(BINS) * near + np.uint8(2 * BINS) * (truth == pred)
    cell, confidence = _scored(valid, cell, confidence)
    counts = np.bincount(cell, minlength=4 * BINS).reshape(2, 2, BINS)  # wrong or correct, far or near
    sums = np.bincount(cell, weights=confidence, minlength=4 * BINS).reshape(2, 2, BINS).sum(axis=0)
    table = np.stack([counts.sum(axis=0), sums, counts[1]], axis=1)
    return np.stack([table.sum(axis=0), table[1]])


def expected_calibration_error(bins) -> float:
    """Mean over pixels of the difference of confidence and accuracy of their bin; NaN without pixels.

    Args:
        bins: float64 (3, bins), one of the two tables of `reliability`.

    Example:
        >>> count, confidence, correct = [4, 4], [3.6, 2.4], [3, 3]
        >>> round(expected_calibration_error([count, confidence, correct]), 3)  # (0.6 + 0.6) / 8
        0.15

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    count, confidence, correct = np.asarray(bins)
    return float(np.abs(confidence - correct).sum() / count.sum()) if count.sum() else float("nan")


def brier_sum(probabilities, truth, multilabel: bool = False) -> float:
    """Sum over pixels of (p - y)^2, over the classes too where C > 1; divided by their number it is the Brier score.

    Args:
        probabilities: float32 (H, W, C).
        truth: uint8 (H, W), class indices or IGNORED.
        multilabel: the truth is the sum of the classes' bits, and C their number without the background.

    Example:
        >>> round(brier_sum([[[0.75], [0.5]]], truth=[[1, 0]]), 4)  # 0.25^2 + 0.5^2
        0.3125

    References:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.
    """
    probabilities, truth = np.asarray(probabilities, np.float32), np.asarray(truth)
    channels = probabilities.shape[-1]
    total = 0.0
    for channel, label in enumerate(range(channels) if channels > 1 and not multilabel else range(1, channels + 1)):
        (error,) = _scored(truth != IGNORED, probabilities[..., channel] - has_class(truth, label, multilabel))
        total += cv2.norm(error, cv2.NORM_L2SQR) if error.size else 0.0  # float32 in, summed as float64
    return total


def error_histograms(uncertainty, truth, pred) -> np.ndarray:
    """How often each uncertainty, rounded to float16, occurs in correct and in wrong pixels of a prediction.

    Args:
        uncertainty: float (H, W), not negative; larger is less certain.
        truth: uint8 (H, W), class indices or sums of bits, or IGNORED.
        pred: uint8 (H, W), the same of the prediction.

    Returns:
        int64 (2, 32768): correct and wrong pixels; ascending uncertainty. Arrays of several images may be added.

    Example:
        >>> histograms = error_histograms([[0.0, 0.5, 0.5]], truth=[[0, 1, 1]], pred=[[0, 1, 0]])
        >>> histograms.sum(axis=1).tolist()
        [2, 1]
    """
    truth = np.asarray(truth)
    # The sign bit, which -0.0 has too, is put to another use: it marks the wrong pixels.
    bits = np.maximum(uncertainty, 0, dtype=np.float32).astype(np.float16).view(np.uint16) & np.uint16(_FLOAT16 - 1)
    bits |= (truth != pred) * np.uint16(_FLOAT16)
    return np.bincount(*_scored(truth != IGNORED, bits), minlength=2 * _FLOAT16).reshape(2, _FLOAT16)


def auroc(histograms) -> float:
    """Probability that a wrong pixel is less certain than a correct one, ties one half; NaN without one of either.

    Args:
        histograms: int (2, bins) of correct and wrong pixels, ascending uncertainty, as from `error_histograms`.

    Example:
        >>> correct, wrong = [1, 1, 0], [0, 1, 1]
        >>> auroc([correct, wrong])  # of four pairs three are in order and one is a tie
        0.875
    """
    correct, wrong = np.asarray(histograms, np.float64)
    if not correct.any() or not wrong.any():
        return float("nan")
    below = np.cumsum(correct) - correct / 2
    return float(wrong @ below / (correct.sum() * wrong.sum()))


def risk_coverage(histograms, points: int = 100) -> np.ndarray:
    """Error rate of the most certain pixels, for about equally spaced shares of them.

    Args:
        histograms: as in `auroc`; pixels of equal uncertainty come in random order, of which this is the mean.
        points: the largest number of points.

    Returns:
        float64 (points, 2): coverage, ascending, the last 1; risk. Fewer points with fewer pixels, none without.

    Example:
        >>> correct, wrong = [1, 1, 0], [0, 0, 2]
        >>> risk_coverage([correct, wrong], points=4).round(2).tolist()
        [[0.25, 0.0], [0.5, 0.0], [0.75, 0.33], [1.0, 0.5]]
    """
    correct, wrong = np.asarray(histograms, np.float64)
    total = int((correct + wrong).sum())
    kept = np.unique(np.ceil(total * np.arange(1, points + 1) / points)) if total else np.empty(0)
    errors = np.interp(kept, np.r_[0, np.cumsum(correct + wrong)], np.r_[0, np.cumsum(wrong)])
    return np.stack([kept / max(total, 1), errors / np.maximum(kept, 1)], axis=1)


def aurc(histograms) -> float:
    """Area under the risk-coverage curve: the mean over all coverages of the risk; NaN without pixels.

    Args:
        histograms: as in `risk_coverage`.

    Example:
        >>> correct, wrong = [1, 1, 0], [0, 0, 2]
        >>> round(aurc([correct, wrong]), 3)  # (0 + 0 + 1/3 + 1/2) / 4
        0.208

    References:
        Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
    """
    correct, wrong = np.asarray(histograms, np.float64)
    return _mean_risk(correct + wrong, wrong)


def auroc_images(uncertainty, dice) -> float:
    """How well the uncertainty of images finds those whose Dice is below the median: an AUROC, ties one half.

    Args:
        uncertainty: float (images,).
        dice: float (images,), NaN where undefined: these images are left out.

    Returns:
        0..1; NaN where no image or every one is below the median.

    Example:
        >>> auroc_images(uncertainty=[0.1, 0.2, 0.8, 0.9], dice=[0.9, 0.8, 0.5, 0.4])
        1.0
    """
    uncertainty, dice = _defined(uncertainty, dice)
    low = dice < np.median(dice) if dice.size else np.empty(0, bool)
    positive, negative = np.count_nonzero(low), np.count_nonzero(~low)
    if not positive or not negative:
        return float("nan")
    ranks = stats.rankdata(uncertainty)[low].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * negative))


def spearman_images(uncertainty, dice) -> float:
    """Rank correlation of the images' uncertainty and 1 - Dice; arguments as in `auroc_images`.

    Returns:
        -1..1; NaN where either is constant, or for fewer than two images.

    Example:
        >>> round(spearman_images(uncertainty=[0.1, 0.3, 0.2], dice=[0.9, 0.8, 0.7]), 3)
        0.5
    """
    uncertainty, dice = _defined(uncertainty, dice)
    if dice.size < 2 or np.ptp(uncertainty) == 0 or np.ptp(dice) == 0:
        return float("nan")
    return float(stats.spearmanr(uncertainty, 1 - dice).statistic)


def aurc_images(uncertainty, dice) -> float:
    """Area under the risk-coverage curve of images with the risk 1 - Dice; arguments as in `auroc_images`.

    Example:
        >>> aurc_images(uncertainty=[0.1, 0.2], dice=[1.0, 0.5])  # (0 + 0.5 / 2) / 2
        0.125
    """
    uncertainty, dice = _defined(uncertainty, dice)
    _, block = np.unique(uncertainty, return_inverse=True)
    return _mean_risk(np.bincount(block), np.bincount(block, weights=1 - dice))


def interval(scores: Sequence[float] | np.ndarray) -> list[float] | None:
    """95% percentile bootstrap interval of a score from its values in the resamples.

    Undefined resamples are left out. A score that only one unit has is undefined in a quarter of them or more, one that
    two units have in an eighth or so: above a fifth there is no interval.

    Example:
        >>> interval(range(101))
        [2.5, 97.5]

    References:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).mean() > 0.2:
        return None
    return np.nanpercentile(scores, [2.5, 97.5]).tolist()


def _scored(valid: np.ndarray, *maps: np.ndarray) -> tuple[np.ndarray, ...]:
    """The valid pixels of each map as a vector."""
    return tuple(values.ravel() for values in maps) if valid.all() else tuple(values[valid] for values in maps)


def _disc(radius: int) -> np.ndarray:
    row, column = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (row**2 + column**2 <= radius**2).astype(np.uint8)


def _defined(uncertainty, dice) -> tuple[np.ndarray, np.ndarray]:
    uncertainty, dice = np.asarray(uncertainty, np.float64), np.asarray(dice, np.float64)
    keep = ~np.isnan(dice)
    return uncertainty[keep], dice[keep]


def _mean_risk(counts: np.ndarray, risks: np.ndarray) -> float:
    """Mean over k of the mean risk of the first k of all; blocks of ties, with their summed risk, in random order."""
    counts, risks = counts[counts > 0].astype(np.float64), risks[counts > 0]
    if not counts.size:
        return float("nan")
    before, risk_before = np.cumsum(counts) - counts, np.cumsum(risks) - risks
    # After j of a block's m the expected risk is (R + r j/m) / (n + j); its sum over j, with harmonic numbers:
    harmonic = special.digamma(before + counts + 1) - special.digamma(before + 1)
    return float((risks + (risk_before - risks * before / counts) * harmonic).sum() / counts.sum())
