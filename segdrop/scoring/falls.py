"""How much Dice falls where something is done to a network, on training and on validation images."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .counts import dice_from_counts
from .statistics import paired_bootstrap, resampled_sums
from .tally import add_up


@dataclass(frozen=True)
class Fall:
    """A mean with its 95% interval, in the unit of Dice."""

    mean: float
    low: float
    high: float


def dice_of_present(counts) -> np.ndarray:
    """Dice of an image, mean over the foreground classes that its truth has: defined whatever is predicted.

    Args:
        counts: int (..., classes, 3), true positives, false positives and false negatives.

    Returns:
        float64 (...), 0..1; NaN where the truth has no foreground.

    Example:
        >>> dice_of_present([[[5, 0, 0], [3, 1, 1], [0, 9, 0]], [[5, 0, 0], [0, 1, 0], [0, 0, 0]]])
        array([0.75,  nan])
    """
    foreground = np.asarray(counts)[..., 1:, :]
    present = foreground[..., 0] + foreground[..., 2] > 0
    total = np.where(present, np.nan_to_num(dice_from_counts(foreground)), 0).sum(axis=-1)
    number = present.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def compare_falls(
    train,
    val,
    train_groups: Sequence[Hashable] | None = None,
    val_groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[Fall, Fall, Fall]:
    """The mean fall of training images, that of validation images, and how much larger the first is.

    The intervals are of other images, or patients, with the same trained network: those of the falls by
    `paired_bootstrap`, that of the difference by both drawn anew, each by itself.

    Args:
        train, val: float (images,), the fall of each image; NaN, an image without a score, is left out.
        train_groups, val_groups: (images,), the group of each image; None: each image is its own.
        seed: of the draws.

    Returns:
        Intervals are NaN where fewer than two groups have a score.

    Example:
        >>> train, val, difference = compare_falls([0.3, 0.3], [0.1, 0.2, np.nan])
        >>> round(train.mean, 3), round(val.mean, 3), round(difference.mean, 3)
        (0.3, 0.15, 0.15)
        >>> round(difference.low, 3), round(difference.high, 3)
        (0.1, 0.2)
    """
    seeds = (2 * seed, 2 * seed + 1)  # equal draws of both would make them alike
    parts = [(np.asarray(falls, np.float64), groups) for falls, groups in ((train, train_groups), (val, val_groups))]
    found = [Fall(*paired_bootstrap(*part, seed=each)) for part, each in zip(parts, seeds, strict=True)]
    drawn = [_resampled_means(*part, seed=each) for part, each in zip(parts, seeds, strict=True)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return found[0], found[1], Fall(found[0].mean - found[1].mean, float(low), float(high))


def _resampled_means(falls: np.ndarray, groups: Sequence[Hashable] | None, seed: int) -> np.ndarray:
    """The means, float64 (resamples,), that `paired_bootstrap` takes its interval of."""
    names = [str(group) for group in (range(len(falls)) if groups is None else groups)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}  # in the order of `paired_bootstrap`
    defined = ~np.isnan(falls)
    each = np.stack([np.nan_to_num(falls), defined], axis=1)
    table = add_up(each, np.array([number[name] for name in names], int), len(number))
    totals = resampled_sums(table[table[:, 1] > 0], seed)
    return totals[:, 0] / totals[:, 1]
