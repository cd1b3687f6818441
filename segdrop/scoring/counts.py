"""Overlap of two label maps from counts: Dice, IoU, precision, recall."""

import functools

import numpy as np

from ..conventions import IGNORED, has_class


def to_labels(probabilities, threshold: float = 0.5, multilabel: bool = False) -> np.ndarray:
    """Class indices, uint8 (..., H, W), of probabilities (..., H, W, C): at the threshold for C = 1, else argmax; for
    `multilabel` the sums of the bits of the classes that reach the threshold.

    Example:
        >>> to_labels([[0.2], [0.7]]), to_labels([[0.2, 0.5, 0.3]])
        (array([0, 1], dtype=uint8), array([1], dtype=uint8))
        >>> to_labels([[0.7, 0.6]], multilabel=True)
        array([3], dtype=uint8)
    """
    probabilities = np.asarray(probabilities)
    if multilabel:
        bits = ((probabilities[..., i] >= threshold) * np.uint8(1 << i) for i in range(probabilities.shape[-1]))
        return functools.reduce(np.bitwise_or, bits)
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= threshold).astype(np.uint8)
    return probabilities.argmax(axis=-1).astype(np.uint8)


def confusion_counts(truth, pred, classes: int = 2, multilabel: bool = False) -> np.ndarray:
    """True positives, false positives and false negatives of each class.

    Args:
        truth: class indices of any shape, IGNORED (255) where not scored.
        pred: class indices of the same shape.
        classes: number of classes counting the background, at least 2.
        multilabel: both are sums of the classes' bits; the background's counts are then of the pixels of no class.

    Returns:
        int64 (classes, 3); counts of several images may be added before a score is taken.

    Raises:
        ValueError: the shapes differ, or a number is of no class.

    Example:
        >>> truth, pred = [0, 1, 1, 255], [1, 1, 0, 1]
        >>> confusion_counts(truth, pred).tolist()
        [[0, 1, 1], [1, 1, 1]]
        >>> confusion_counts([3, 1], [1, 1], classes=3, multilabel=True).tolist()  # 3 is class 1 and class 2
        [[0, 0, 0], [2, 0, 0], [0, 0, 1]]
    """
    truth, pred = np.asarray(truth), np.asarray(pred)
    if truth.shape != pred.shape:
        raise ValueError(f"`truth` and `pred` must have one shape, got {truth.shape} and {pred.shape}.")
    valid = truth != IGNORED
    truth, pred = truth[valid], pred[valid]
    values = 1 << (classes - 1) if multilabel else classes
    for name, array in (("truth", truth), ("pred", pred)):
        if array.size and not 0 <= array.min() <= array.max() < values:
            kind = "sums of the classes' bits, " if multilabel else "classes "
            raise ValueError(f"`{name}` must hold {kind}0..{values - 1}, got {array.min()}..{array.max()}.")
    # uint16 holds every pair of values and is counted several times as fast as int64.
    pair = truth.astype(np.uint16) * np.uint16(values) + pred.astype(np.uint16)
    matrix = np.bincount(pair, minlength=values**2).reshape(values, values)
    shown = np.stack([has_class(np.arange(values), index, multilabel) for index in range(classes)]).astype(np.int64)
    hits = ((shown @ matrix) * shown).sum(axis=1)
    return np.stack([hits, shown @ matrix.sum(axis=0) - hits, shown @ matrix.sum(axis=1) - hits], axis=1)


def dice_from_counts(counts) -> np.ndarray:
    """Dice 2TP / (2TP + FP + FN), float64 (...), of counts (..., 3); NaN where there is nothing to count.

    Example:
        >>> dice_from_counts([[3, 1, 1], [0, 0, 0]])
        array([0.75,  nan])
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _divide(2 * tp, 2 * tp + fp + fn)


def iou_from_counts(counts) -> np.ndarray:
    """IoU TP / (TP + FP + FN), float64 (...), of counts (..., 3); NaN where there is nothing to count.

    Example:
        >>> iou_from_counts([[3, 1, 1], [0, 0, 0]])
        array([0.6, nan])
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _divide(tp, tp + fp + fn)


def precision_from_counts(counts) -> np.ndarray:
    """Precision TP / (TP + FP), float64 (...), of counts (..., 3); NaN where nothing was predicted.

    Example:
        >>> precision_from_counts([[3, 1, 2], [0, 0, 2]])
        array([0.75,  nan])
    """
    tp, fp, _ = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _divide(tp, tp + fp)


def recall_from_counts(counts) -> np.ndarray:
    """Recall TP / (TP + FN), float64 (...), of counts (..., 3); NaN where the truth has nothing.

    Example:
        >>> recall_from_counts([[3, 1, 2], [0, 1, 0]])
        array([0.6, nan])
    """
    tp, _, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _divide(tp, tp + fn)


def dice(truth, pred, classes: int = 2) -> np.ndarray:
    """Dice of each class over all pixels given (micro), float64 (classes,); arguments as in `confusion_counts`.

    Example:
        >>> dice(truth=[0, 0, 1, 1], pred=[0, 1, 1, 1]).round(3)
        array([0.667, 0.8  ])
    """
    return dice_from_counts(confusion_counts(truth, pred, classes))


def iou(truth, pred, classes: int = 2) -> np.ndarray:
    """IoU of each class over all pixels given (micro), float64 (classes,); arguments as in `confusion_counts`.

    Example:
        >>> iou(truth=[0, 0, 1, 1], pred=[0, 1, 1, 1]).round(3)
        array([0.5  , 0.667])
    """
    return iou_from_counts(confusion_counts(truth, pred, classes))


def foreground_mean(scores) -> float:
    """Mean over the classes but the background (index 0) that are defined; NaN where none is.

    Example:
        >>> foreground_mean([0.9, 0.5, np.nan, 1.0])
        0.75
    """
    scores = np.asarray(scores)[1:]
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else float("nan")


def constant_dice(counts) -> float:
    """The Dice, mean over the foreground classes, of the one class that is best predicted for all pixels; NaN where
    the truth has no foreground.

    Args:
        counts: of any prediction, int (classes, 3). Of classes that overlap they do not tell the number of pixels; the
            sum over the classes is taken for it, so that the Dice is a little too low.

    Example:
        >>> constant_dice([[6, 1, 1], [0, 1, 3]])  # 3 of 10 pixels are foreground: 2 x 3 / (10 + 3)
        0.46153846153846156
    """
    true = np.asarray(counts, np.float64)[:, [0, 2]].sum(axis=1)
    dice = 2 * true[1:] / (true[1:] + true.sum()) if true.sum() else np.zeros(0)
    return float(dice.max() / np.count_nonzero(true[1:])) if np.any(true[1:]) else float("nan")


def hardly_better(dice: float, constant: float) -> bool:
    """Whether a Dice is not worth more than that of one class for all pixels: at most a twentieth of what is missing to
    1 above it. False where either is NaN.

    Example:
        >>> hardly_better(0.2, constant=0.18), hardly_better(0.3, constant=0.18), hardly_better(0.81, constant=0.8)
        (True, False, True)
    """
    return bool(dice <= constant + 0.05 * (1 - constant))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(b.shape, np.nan), where=b > 0)


COUNTED = {
    "dice": dice_from_counts,
    "iou": iou_from_counts,
    "precision": precision_from_counts,
    "recall": recall_from_counts,
}
